//! Every kind of check against what it is made for: nginx, dnsmasq, a mail server, programs, files; nothing at all, a
//! black hole, servers that misbehave. Each test has a network namespace of its own. Needs root and what `scripts/setup`
//! installs; what cannot run fails.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cost;
mod dns;
mod exec;
mod http;
mod https;
mod reach;
mod servers;
mod smtp;
mod world;
