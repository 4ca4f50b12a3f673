//! The closed sets of words an operator may write, each beside its meaning.

use shunt_dataplane::scheduler::{HashKind, SchedulerKind};
use shunt_dataplane::server::Mode;
use shunt_dataplane::service::{OutOfState, ServerGone};
use shunt_dataplane::tuple::Protocol;

/// A closed set of words.
pub trait Word: Copy + 'static {
    /// What the words choose, for error messages: `"scheduler"`.
    const KIND: &'static str;
    /// All of the set.
    const ALL: &'static [Self];

    /// The word in the configuration.
    fn word(self) -> &'static str;

    /// The value of a word, if it is one of the set.
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.word() == word)
    }
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident: $kind:literal { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl Word for $name {
            const KIND: &'static str = $kind;
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}

words! {
    /// `engine.idle`: what a worker does when no frame comes.
    Idle: "idle strategy" {
        /// Spin a little, then sleep until woken.
        Adaptive = "adaptive",
        /// Never sleep: for isolated cores.
        Spin = "spin",
    }
}

words! {
    /// `port.driver`: how frames are taken from the interface.
    Driver: "driver" {
        /// An XDP program and AF_XDP sockets.
        AfXdp = "af_xdp",
        /// A packet socket, where XDP is not allowed. Slower.
        AfPacket = "af_packet",
    }
}

words! {
    /// `port.xdp`: where the XDP program runs.
    XdpMode: "XDP mode" {
        /// In the driver, else in the kernel's generic path.
        Auto = "auto",
        /// In the driver, or refuse.
        Native = "native",
        /// In the kernel's generic path.
        Generic = "generic",
    }
}

words! {
    /// `check.kind`: what a check asks.
    CheckKind: "kind of check" {
        /// Whether a connection can be opened.
        Tcp = "tcp",
    }
}

/// `service.protocol`.
impl Word for Protocol {
    const KIND: &'static str = "protocol";
    const ALL: &'static [Self] = &[Self::Tcp, Self::Udp];

    fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// `service.mode` and `service.server.mode`.
impl Word for Mode {
    const KIND: &'static str = "forwarding mode";
    const ALL: &'static [Self] = &Mode::ALL;

    fn word(self) -> &'static str {
        self.name()
    }
}

/// `service.scheduler`.
impl Word for SchedulerKind {
    const KIND: &'static str = "scheduler";
    const ALL: &'static [Self] = &SchedulerKind::ALL;

    fn word(self) -> &'static str {
        self.name()
    }
}

/// `service.hash`.
impl Word for HashKind {
    const KIND: &'static str = "hash";
    const ALL: &'static [Self] = &[Self::Keyed, Self::Kernel];

    fn word(self) -> &'static str {
        match self {
            Self::Keyed => "keyed",
            Self::Kernel => "kernel",
        }
    }
}

/// `service.out_of_state`.
impl Word for OutOfState {
    const KIND: &'static str = "out_of_state action";
    const ALL: &'static [Self] = &[Self::Reset, Self::Drop, Self::Schedule];

    fn word(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Drop => "drop",
            Self::Schedule => "schedule",
        }
    }
}

/// `service.server_gone`.
impl Word for ServerGone {
    const KIND: &'static str = "server_gone action";
    const ALL: &'static [Self] = &[Self::Reset, Self::Reschedule, Self::Drop];

    fn word(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Reschedule => "reschedule",
            Self::Drop => "drop",
        }
    }
}
