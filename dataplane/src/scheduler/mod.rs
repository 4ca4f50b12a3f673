//! Schedulers: which server a new connection goes to. One file each, named as the operator types it.

/// The schedulers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchedulerKind {
    /// Round robin.
    Rr,
    /// Weighted round robin, smooth.
    Wrr,
    /// Weighted least connections.
    Wlc,
}
