//! Stories: the real daemon between real kernels, nginx and curl, in the network namespaces of `scripts/lab`.
//!
//! One story per file. [`lab`] builds the network, [`daemon`] runs shunt in it, [`capture`] records every edge and lets
//! tshark be the judge. A story that fails leaves its captures and the daemon's log and prints where.
//! Needs root and what `scripts/setup` installs; what cannot run fails.
#![allow(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

mod calls;
mod capture;
mod concurrent;
mod connections;
mod crash;
mod daemon;
mod director_service;
mod downloads;
mod drain;
mod ecmp;
mod guest;
mod health;
mod ipv6;
mod judge;
mod lab;
mod lab_itself;
mod modes;
mod neighbour;
mod offloads;
mod path_mtu;
mod persist;
mod port_reuse;
mod prefix;
mod reload;
mod reloads;
mod schedulers;
mod stop;
mod traceroute;
mod udp_server_leaves;
mod uml;
mod workers;
