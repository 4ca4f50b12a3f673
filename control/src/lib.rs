//! Intent: what the operator wants, brought to the workers. Everything here may be slow; nothing here sees a packet.
//!
//! One change's way through the files: [`config`] reads the file.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod admin;
pub mod announce;
pub mod cli;
pub mod compile;
pub mod config;
pub mod devices;
pub mod guard;
pub mod kernel;
pub mod neighbours;
pub mod netlink;
mod reload;
pub mod state;
pub mod supervisor;
