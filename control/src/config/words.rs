//! The closed sets of words an operator may write, each beside its meaning.

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
    DriverWord: "driver" {
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
    /// `service.protocol`.
    Protocol: "protocol" {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

words! {
    /// `service.mode` and `service.server.mode`: how packets reach a server and how its answers come back.
    Mode: "forwarding mode" {
        /// Both addresses rewritten; the server answers to a local address of the director.
        Fullnat = "fullnat",
        /// Destination rewritten; the server's way to the client leads through the director (LVS: Masq).
        Nat = "nat",
        /// Only the link address changes; the server owns the VIP (LVS: Route).
        Dr = "dr",
        /// IP in IP to the server, which owns the VIP (LVS: Tunnel).
        Tun = "tun",
    }
}

impl Mode {
    /// Whether the mode rewrites the port, so that a server may listen on another one than its service.
    pub fn maps_ports(self) -> bool {
        matches!(self, Self::Fullnat | Self::Nat)
    }
}

words! {
    /// `service.scheduler`: how a server is picked.
    Scheduler: "scheduler" {
        /// Round robin.
        Rr = "rr",
        /// Weighted round robin.
        Wrr = "wrr",
        /// Weighted least connections.
        Wlc = "wlc",
    }
}

words! {
    /// `service.out_of_state`: what becomes of a packet that belongs to no connection and opens none.
    OutOfState: "out_of_state action" {
        /// Answer with a TCP RST.
        Reset = "reset",
        /// Drop it.
        Drop = "drop",
        /// Schedule it as if it were the first of its connection.
        Schedule = "schedule",
    }
}
