//! Intent: what the operator wants, brought to the workers. Everything here may be slow; nothing here sees a packet.
//!
//! One change's way through the files: [`config`] reads the file as typed and then what it means; [`state`] keeps the
//! numbers of what stays; [`kernel`] is the machine's network as [`netlink`] shows it; [`compile`] makes of all three
//! the snapshot that workers read; `reload` puts it in force. Around it [`capabilities`], [`guard`],
//! [`addresses`], [`announce`], [`neighbours`] and [`offloads`] change the outside world, [`devices`] opens ports,
//! [`rss`] says by which of them flows find their workers, [`health`] asks servers whether they are well, [`events`]
//! tells of every change, [`supervisor`] owns everything, [`admin`] answers questions and [`cli`] asks them.
#![forbid(unsafe_code)]

#[cfg(not(panic = "unwind"))]
compile_error!("a worker that panics must leave the rest of the daemon able to clean up: panic = \"unwind\"");

pub mod addresses;
pub mod admin;
pub mod announce;
pub mod capabilities;
pub mod census;
mod change;
pub mod cli;
pub mod compile;
pub mod config;
pub mod devices;
pub mod drain;
pub mod events;
pub mod guard;
mod handoff;
pub mod health;
mod history;
pub mod kernel;
pub mod neighbours;
pub mod netlink;
mod notify;
pub mod offloads;
mod recent;
mod reload;
pub mod rss;
mod shortage;
pub mod state;
pub mod supervisor;
