//! The serving side: bounded in connections, header size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::filter::{self, Filter};
use super::view::Problem;
use super::{Ask, connections, events};
use crate::events::Events;

/// Connections at a time; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 32;

/// Bytes of a request's head.
const HEAD_MAX: usize = 16 << 10;

/// How long a client may take to ask.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may last: a dump that is not read by then is cut off.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Questions that wait for the daemon; a client whose question finds no room waits.
pub const ASKS_MAX: usize = 32;

/// Answers on `listener` with what the receiver of `asks` says and what `events` tell, for ever.
pub async fn serve(listener: UnixListener, asks: mpsc::Sender<Ask>, events: Events) {
    let router = router(asks).merge(events::router(events));
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    // A client that is too slow, or asks in no HTTP we know, is its own problem.
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, converse(stream, router)).await;
                });
            }
            Err(error) => {
                tracing::warn!("api: cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, router: Router) -> Result<(), hyper::Error> {
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
}

fn router(asks: mpsc::Sender<Ask>) -> Router {
    Router::new()
        .route("/v1/status", get(|State(asks): Asks| answer(asks, Ask::Status)))
        .route("/v1/workers", get(|State(asks): Asks| answer(asks, Ask::Workers)))
        .route("/v1/counters", get(|State(asks): Asks| answer(asks, Ask::Counters)))
        .route("/v1/connections", get(connections))
        .route("/v1/reload", post(reload))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "no such resource") })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "not possible with this method")
        })
        .with_state(asks)
}

type Asks = State<mpsc::Sender<Ask>>;

async fn answer<T: serde::Serialize>(
    asks: mpsc::Sender<Ask>,
    ask: impl FnOnce(oneshot::Sender<T>) -> Ask,
) -> Response {
    match inquire(asks, ask).await {
        Some(answer) => Json(answer).into_response(),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
    }
}

async fn reload(State(asks): Asks) -> Response {
    match inquire(asks, Ask::Reload).await {
        Some(Ok(reloaded)) => Json(reloaded).into_response(),
        Some(Err(error)) => problem(StatusCode::UNPROCESSABLE_ENTITY, &error),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
    }
}

async fn connections(State(asks): Asks, query: Result<Query<filter::Query>, QueryRejection>) -> Response {
    let filter = query.map_err(|rejection| rejection.body_text()).and_then(|query| Filter::new(&query));
    let filter = match filter {
        Ok(filter) => filter,
        Err(why) => return problem(StatusCode::BAD_REQUEST, &why),
    };
    match inquire(asks, Ask::Connections).await {
        Some(access) => connections::stream(access, filter)
            .await
            .unwrap_or_else(|why| problem(StatusCode::BAD_REQUEST, &why)),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
    }
}

async fn inquire<T>(asks: mpsc::Sender<Ask>, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    asks.send(ask(answer)).await.ok()?;
    answered.await.ok()
}

pub(super) fn problem(status: StatusCode, error: &str) -> Response {
    (status, Json(Problem { error: error.to_owned() })).into_response()
}
