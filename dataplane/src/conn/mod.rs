//! Connections: the records, the table that finds them, the states they go through and when they end.

mod entry;
mod tcp_state;
mod timeouts;

pub use entry::{Conn, ConnFlags, Ticks};
pub use tcp_state::State;
pub use timeouts::Timeouts;
