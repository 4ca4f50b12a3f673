//! Receive-side scaling: which queue a NIC puts a flow on (Toeplitz hash and indirection table, as Microsoft's
//! "RSS hashing functions" define them).

/// How a port spreads received frames over its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// The secret key; 40 bytes on most NICs.
    pub key: Box<[u8]>,
    /// Indirection table: `hash % len` → queue.
    pub reta: Box<[u16]>,
    /// Whether TCP ports are hashed (else addresses only).
    pub tcp_ports: bool,
    /// Whether UDP ports are hashed (else addresses only).
    pub udp_ports: bool,
}
