//! Whether servers can take connections: [`probe`] asks them.

pub mod probe;
