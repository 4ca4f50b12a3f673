//! `GET /v1/events?after=NUMBER&wait=SECONDS`: the events after that number as JSON lines, and those of the next seconds
//! as they come. Who wants more asks again after the last number it has seen.
//!
//! A reader takes events at its own pace from those that are kept; when it is too slow, the oldest are gone and it is
//! told how many. Nothing waits for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::server::problem;
use crate::events::Events;

/// Readers that wait for events at a time; they must not take the room of those who ask something.
const READERS_MAX: usize = 8;

/// How long a reader may wait; a connection is cut off a little later.
pub const WAIT_MAX: Duration = Duration::from_secs(50);

/// Events in a piece of the answer.
const PIECE: usize = 64;

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    /// The number of the last event the reader knows.
    after: u64,
    /// So many seconds it waits for more.
    wait: u64,
}

pub(super) fn router(events: Events) -> Router {
    Router::new().route("/v1/events", get(answer)).with_state((events, Arc::new(Semaphore::new(READERS_MAX))))
}

async fn answer(
    State((events, readers)): State<(Events, Arc<Semaphore>)>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let Asked { after, wait } = match asked {
        Ok(Query(asked)) => asked,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let wait = Duration::from_secs(wait);
    if wait > WAIT_MAX {
        let most = WAIT_MAX.as_secs();
        return problem(
            StatusCode::BAD_REQUEST,
            &format!("wait: at most {most} seconds; ask again after them"),
        );
    }
    let Ok(permit) = readers.try_acquire_owned() else {
        let error = format!("{READERS_MAX} readers wait for events already");
        return problem(StatusCode::SERVICE_UNAVAILABLE, &error);
    };
    let reader = Reader { events, after, until: Instant::now() + wait, _permit: permit };
    let body = Body::from_stream(stream::unfold(reader, Reader::more));
    ([(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

struct Reader {
    events: Events,
    after: u64,
    until: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// The next piece of the answer; called when the reader has room for it.
    async fn more(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            let events = self.events.after(self.after, PIECE);
            if let Some(last) = events.last() {
                self.after = last.number;
                let line = |event| serde_json::to_string(event).expect("an event is plain data") + "\n";
                let lines: String = events.iter().map(line).collect();
                return Some((Ok(lines.into()), self));
            }
            tokio::time::timeout_at(self.until, self.events.news(self.after)).await.ok()?;
        }
    }
}
