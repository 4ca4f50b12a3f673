//! Workers with a tiny program over queues of plain bytes: turned by hand, and on threads of their own.

#![allow(clippy::unwrap_used)] // The kit is test code too, which clippy cannot see.

mod kit;
mod threads;
mod turns;
