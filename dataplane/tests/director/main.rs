//! What a director of one or three workers does with fragments, packets too big, ICMP errors, reloads and rubbish:
//! real pipelines without threads, frames handed on by the test ([`lab`]), whole packets compared ([`packets`]).
#![allow(clippy::unwrap_used)]

mod ecmp;
mod fragments;
mod icmp;
mod ipv6;
mod lab;
mod limits;
mod martians;
mod on_workers;
mod oversize;
mod packets;
mod reload;
mod rss;
mod rubbish;
mod stations;
