//! The serving side: bounded in connections, header size and time.

use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use super::filter::{self, Filter};
use super::room::{Asked, Patience, Room};
use super::view::{Files, Problem};
use super::{Ask, connections, events, metrics};
use crate::config::{FILE_LEN_MAX, Source, Sources};
use crate::events::Events;

/// Connections at a time, of which one gives way to the next that comes ([`super::room`]).
const CONNECTIONS_MAX: usize = 32;

/// How long they may stay when others wait.
const PATIENCE: Patience = Patience { to_ask: Duration::from_millis(100), to_hear: Duration::from_secs(5) };

/// Bytes of a request's head.
const HEAD_MAX: usize = 16 << 10;

/// How long a client may take to ask.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an edit.
const EDIT_LEN_MAX: usize = 64 << 10;

/// Bytes of configuration files in a question: JSON escapes some, and adds to them.
const FILES_LEN_MAX: usize = 2 * FILE_LEN_MAX as usize;

/// How long a client may take to send a question's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may last: a dump that is not read by then is cut off.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Questions that wait for the daemon; a client whose question finds no room waits.
pub const ASKS_MAX: usize = 32;

/// Answers on `listener` with what the receiver of `asks` says and what `events` tell, for ever.
pub async fn serve(listener: UnixListener, asks: mpsc::Sender<Ask>, events: Events) {
    let router = router(asks).merge(events::router(events));
    let room = Room::new(CONNECTIONS_MAX, PATIENCE);
    loop {
        let accepted = listener.accept().await;
        take(accepted.map(|(stream, _)| stream), &room, &router).await;
    }
}

/// Answers questions for metrics on `listener`, and no others, for ever.
pub async fn serve_metrics(listener: TcpListener, asks: mpsc::Sender<Ask>) {
    let (router, room) = (metrics_router(asks), Room::new(CONNECTIONS_MAX, PATIENCE));
    loop {
        let accepted = listener.accept().await;
        take(accepted.map(|(stream, _)| stream), &room, &router).await;
    }
}

async fn take<S>(accepted: std::io::Result<S>, room: &Room, router: &Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match accepted {
        Ok(stream) => {
            room.admit(|asked| {
                let conversation = converse(stream, router.clone(), asked);
                // A client that is too slow, or asks in no HTTP we know, is its own problem.
                async { _ = tokio::time::timeout(CONNECTION_TIMEOUT, conversation).await }
            })
            .await;
        }
        Err(error) => {
            tracing::warn!("api: cannot accept a connection: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn converse<S>(stream: S, router: Router, asked: Asked) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        // Who sends a body has asked when it is read.
        if request.body().is_end_stream() {
            asked.set();
        }
        request.extensions_mut().insert(asked.clone());
        router.call(request)
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn router(asks: mpsc::Sender<Ask>) -> Router {
    Router::new()
        .route("/v1/status", get(|State(asks): Asks| answer(asks, Ask::Status)))
        .route("/v1/workers", get(|State(asks): Asks| answer(asks, Ask::Workers)))
        .route("/v1/counters", get(|State(asks): Asks| answer(asks, Ask::Counters)))
        .route("/v1/connections", get(connections))
        .route("/v1/config", get(|State(asks): Asks| answer(asks, Ask::Config)))
        .route("/v1/config/diff", post(diff))
        .route("/v1/config/edit", post(edit))
        .route("/v1/config/save", post(|State(asks): Asks| attempt(asks, Ask::Save)))
        .route("/v1/reload", post(|State(asks): Asks| attempt(asks, Ask::Reload)))
        .route("/v1/rollback", post(|State(asks): Asks| attempt(asks, Ask::RollBack)))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "no such resource") })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "not possible with this method")
        })
        .with_state(asks.clone())
        .merge(metrics_router(asks))
}

fn metrics_router(asks: mpsc::Sender<Ask>) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(asks)
}

async fn metrics(State(asks): Asks) -> Response {
    let Some(scrape) = inquire(asks, Ask::Metrics).await else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
    };
    // With very many servers that is a long text, which the daemon's own thread has no time for.
    match tokio::task::spawn_blocking(move || scrape.text()).await {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
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

async fn attempt<T: serde::Serialize>(
    asks: mpsc::Sender<Ask>,
    ask: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Ask,
) -> Response {
    match inquire(asks, ask).await {
        Some(Ok(answer)) => Json(answer).into_response(),
        Some(Err(error)) => problem(StatusCode::UNPROCESSABLE_ENTITY, &error),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
    }
}

async fn diff(State(asks): Asks, request: Request) -> Response {
    let Files { files } = match body(request, FILES_LEN_MAX).await {
        Ok(files) => files,
        Err(refusal) => return refusal,
    };
    let mut files = files.into_iter().map(|file| Source::new(file.path.into(), file.text));
    let Some(main) = files.next() else { return problem(StatusCode::BAD_REQUEST, "there is no file") };
    let sources = Sources::new(main, files);
    attempt(asks, |answer| Ask::Diff(sources, answer)).await
}

/// Whether an edit is written to the files too.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Saving {
    #[serde(default)]
    save: bool,
}

async fn edit(
    State(asks): Asks,
    saving: Result<Query<Saving>, QueryRejection>,
    request: Request,
) -> Response {
    let save = match saving {
        Ok(Query(saving)) => saving.save,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    match body(request, EDIT_LEN_MAX).await {
        Ok(edit) => attempt(asks, |answer| Ask::Edit(edit, save, answer)).await,
        Err(refusal) => refusal,
    }
}

/// Reads the body of a request, whose sender may neither say much nor take long over it.
async fn body<T: serde::de::DeserializeOwned>(request: Request, len_max: usize) -> Result<T, Response> {
    let asked = request.extensions().get::<Asked>().cloned();
    let body = Limited::new(request.into_body(), len_max).collect();
    let slow = |_| problem(StatusCode::REQUEST_TIMEOUT, "the question takes too long");
    let read = tokio::time::timeout(BODY_TIMEOUT, body).await.map_err(slow)?;
    let bytes = read.map_err(|error| problem(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string()))?.to_bytes();
    if let Some(asked) = asked {
        asked.set();
    }
    serde_json::from_slice(&bytes).map_err(|error| problem(StatusCode::BAD_REQUEST, &error.to_string()))
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
