//! The closed sets of words an operator may write, each beside its meaning.

use shunt_dataplane::scheduler::{HashKind, SchedulerKind};
use shunt_dataplane::server::Mode;
use shunt_dataplane::service::{OutOfState, ServerGone};
use shunt_dataplane::tuple::Protocol;

use crate::health::probe::exec::WeightFrom;
use crate::health::probe::file::Says;

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
    /// `service.server.state`: whether a server is in use.
    ServerState: "state of a server" {
        /// It is.
        Enabled = "enabled",
        /// It takes no new connections and keeps those it has, as with weight 0.
        Draining = "draining",
        /// As if it had been found dead: no new connections, and UDP flows leave it at once.
        Disabled = "disabled",
    }
}

words! {
    /// `check.kind`: what a check asks.
    CheckKind: "kind of check" {
        /// Whether the address answers an ICMP echo.
        Ping = "ping",
        /// Whether a connection can be opened.
        Tcp = "tcp",
        /// Whether a datagram is answered, or not refused.
        Udp = "udp",
        /// Whether HTTP requests are answered as they should be.
        Http = "http",
        /// The same over TLS.
        Https = "https",
        /// Whether a DNS query is answered as it should be.
        Dns = "dns",
        /// Whether a mail server greets.
        Smtp = "smtp",
        /// What a program says.
        Exec = "exec",
        /// What a file says.
        File = "file",
        /// What the workers see of it.
        Passive = "passive",
    }
}

/// `check.file_says`.
impl Word for Says {
    const KIND: &'static str = "meaning of a file";
    const ALL: &'static [Self] = &[Self::Exists, Self::Status, Self::Weight];

    fn word(self) -> &'static str {
        match self {
            Self::Exists => "exists",
            Self::Status => "status",
            Self::Weight => "weight",
        }
    }
}

/// `check.weight_from`.
impl Word for WeightFrom {
    const KIND: &'static str = "source of a weight";
    const ALL: &'static [Self] = &[Self::Nothing, Self::Code, Self::Output];

    fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Code => "exit-code",
            Self::Output => "output",
        }
    }
}

words! {
    /// `check.method` and `check.url.method`: requests without a body.
    HttpMethod: "method" {
        /// The whole response.
        Get = "GET",
        /// Its head alone.
        Head = "HEAD",
        /// What is possible.
        Options = "OPTIONS",
    }
}

words! {
    /// `check.type`: what a DNS query asks for.
    DnsType: "type of records" {
        /// IPv4 addresses.
        A = "A",
        /// IPv6 addresses.
        Aaaa = "AAAA",
        /// The name behind an alias.
        Cname = "CNAME",
        /// Keys of a zone.
        Dnskey = "DNSKEY",
        /// Mail servers.
        Mx = "MX",
        /// Name servers.
        Ns = "NS",
        /// Names of addresses.
        Ptr = "PTR",
        /// The head of a zone.
        Soa = "SOA",
        /// Servers of a service.
        Srv = "SRV",
        /// Text.
        Txt = "TXT",
    }
}

words! {
    /// `check.rcode`: how a DNS query is answered (RFC 1035 §4.1.1).
    DnsCode: "rcode" {
        /// There is such a name.
        NoError = "NOERROR",
        /// There is no such name.
        NxDomain = "NXDOMAIN",
        /// The server will not say.
        Refused = "REFUSED",
        /// The server does not know how.
        NotImp = "NOTIMP",
        /// The server cannot say.
        ServFail = "SERVFAIL",
    }
}

words! {
    /// `service.initial` and `service.server.initial`: what a server is before its first verdict.
    Initial: "initial state" {
        /// It takes no connections until its checks have passed.
        Down = "down",
        /// It takes connections until a check fails.
        Up = "up",
    }
}

words! {
    /// `service.on_down` and `service.server.on_down`: what becomes of a server that its checks find dead.
    OnDown: "on_down action" {
        /// It is as if a reload had left it out.
        Remove = "remove",
        /// It is as if its weight were 0.
        Inhibit = "inhibit",
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
