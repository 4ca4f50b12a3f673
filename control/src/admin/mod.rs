//! The channel for people and programs: HTTP/1.1 with JSON on a Unix socket, under `/v1`. The command line is its
//! first client. Everything is answered by the one task that owns the state; this side only carries questions.

mod answers;
pub mod client;
pub mod connections;
pub mod events;
pub mod filter;
pub mod server;
pub mod socket;
pub mod view;

use tokio::sync::oneshot;

/// A question to the daemon, with the place for the answer.
#[derive(Debug)]
pub enum Ask {
    /// `GET /v1/status`
    Status(oneshot::Sender<view::Status>),
    /// `GET /v1/workers`
    Workers(oneshot::Sender<view::Workers>),
    /// `GET /v1/counters`
    Counters(oneshot::Sender<view::Counters>),
    /// `GET /v1/connections`: the answer is where to get them.
    Connections(oneshot::Sender<connections::Access>),
    /// `POST /v1/reload`
    Reload(oneshot::Sender<Result<view::Reloaded, String>>),
}
