//! The channel for people and programs: HTTP/1.1 with JSON on a Unix socket, under `/v1`. The command line is its
//! first client. Everything is answered by the one task that owns the state; this side only carries questions.

mod answers;
pub mod client;
pub mod connections;
pub mod events;
pub mod filter;
pub mod metrics;
mod room;
pub mod server;
pub mod socket;
pub mod view;

use tokio::sync::oneshot;

use crate::config::{Edit, Sources};

/// Where whoever asked for a change hears of it.
pub type Changed = oneshot::Sender<Result<view::Reloaded, String>>;

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
    /// `GET /metrics`
    Metrics(oneshot::Sender<metrics::Scrape>),
    /// `GET /v1/config`
    Config(oneshot::Sender<view::ConfigText>),
    /// `POST /v1/config/diff`
    Diff(Sources, oneshot::Sender<Result<view::Diff, String>>),
    /// `POST /v1/reload`
    Reload(Changed),
    /// `POST /v1/rollback`
    RollBack(Changed),
    /// `POST /v1/config/edit`, and whether to save what comes of it.
    Edit(Edit, bool, Changed),
    /// `POST /v1/config/save`
    Save(oneshot::Sender<Result<view::Saved, String>>),
}
