//! Connections: the records, the table that finds them, the states they go through and when they end.

mod bucket;
mod entry;
mod limits;
mod quarantine;
mod table;
mod tcp_state;
mod timeouts;
mod wheel;

pub use entry::{Conn, ConnFlags, Deltas, Ticks};
pub use limits::{GivesWay, Hand, IDLE};
pub use table::{ConnId, Direction, Expired, Hash, Hit, InsertError, Table};
pub use tcp_state::{State, View};
pub use timeouts::Timeouts;
