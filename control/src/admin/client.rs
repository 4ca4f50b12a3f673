//! The asking side.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::view::Problem;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "shunt is not running: nobody answers on {0} (start it with `shunt run -c FILE`, or name its socket with \
         --socket)"
    )]
    NotRunning(PathBuf),
    /// The socket is its owner's.
    #[error("{0}: not for this user; ask as the one who runs the daemon, root as a rule")]
    Forbidden(PathBuf),
    /// The socket is there, and nobody comes to it.
    #[error("{path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The daemon said no, and why.
    #[error("{0}")]
    Refused(String),
    /// It answers too slowly.
    #[error("{0}: no answer within half a minute")]
    Timeout(PathBuf),
    /// It answers what we do not understand.
    #[error("{path}: {reason}")]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// How long an answer, or its next piece, may take. A reload waits for workers and for nft.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer.
const ANSWER_MAX: usize = 64 << 20;

/// Asks for `path` and reads the answer.
///
/// # Errors
/// When the daemon does not run, refuses, or answers garbage.
pub async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T, ClientError> {
    answer(socket, method, path, Bytes::new()).await
}

/// Sends `question` to `path` and reads the answer.
///
/// # Errors
/// As [`ask`].
pub async fn tell<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    question: &impl Serialize,
) -> Result<T, ClientError> {
    let body = serde_json::to_vec(question).map_err(|error| garbled(socket, error))?;
    answer(socket, Method::POST, path, body.into()).await
}

async fn answer<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<T, ClientError> {
    let asked = tokio::time::timeout(TIMEOUT, exchange(socket, method, path, body));
    let (status, body) = asked.await.map_err(|_| ClientError::Timeout(socket.to_owned()))??;
    if status != StatusCode::OK {
        return Err(refusal(status, &body));
    }
    serde_json::from_slice(&body).map_err(|error| garbled(socket, error))
}

/// Asks for `path` and shows every line of the answer to `read` as it comes, until `read` has seen enough.
///
/// # Errors
/// When the daemon does not run, refuses, pauses for longer than [`TIMEOUT`], or ends in the middle.
pub async fn lines(
    socket: &Path,
    path: &str,
    mut read: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), ClientError> {
    let slow = |_| ClientError::Timeout(socket.to_owned());
    let asked = tokio::time::timeout(TIMEOUT, request(socket, Method::GET, path, Bytes::new()));
    let mut response = asked.await.map_err(slow)??;
    if response.status() != StatusCode::OK {
        let status = response.status();
        return Err(refusal(status, &whole(socket, response).await?));
    }
    let mut rest = Vec::new();
    while let Some(frame) = tokio::time::timeout(TIMEOUT, response.frame()).await.map_err(slow)? {
        let Ok(bytes) = frame.map_err(|error| garbled(socket, error))?.into_data() else { continue };
        rest.extend_from_slice(&bytes);
        let ended = rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        for line in rest[..ended].split_inclusive(|&byte| byte == b'\n') {
            if read(line).is_break() {
                return Ok(());
            }
        }
        rest.drain(..ended);
    }
    Ok(())
}

/// `text` as a value in the query of a path.
pub fn query_value(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    let problem: Result<Problem, _> = serde_json::from_slice(body);
    ClientError::Refused(problem.map_or_else(|_| status.to_string(), |problem| problem.error))
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), ClientError> {
    let response = request(socket, method, path, body).await?;
    Ok((response.status(), whole(socket, response).await?))
}

async fn whole(socket: &Path, response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    Ok(body.map_err(|error| garbled(socket, error))?.to_bytes())
}

async fn request(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NotRunning(socket.to_owned()),
        ErrorKind::PermissionDenied => ClientError::Forbidden(socket.to_owned()),
        _ => ClientError::Connect { path: socket.to_owned(), source },
    })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| garbled(socket, error))?;
    // Ends with the connection: when the answer was read, or is dropped.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "shunt");
    let request = request.body(Full::new(body)).map_err(|error| garbled(socket, error))?;
    sender.send_request(request).await.map_err(|error| garbled(socket, error))
}

fn garbled(socket: &Path, reason: impl ToString) -> ClientError {
    ClientError::Garbled { path: socket.to_owned(), reason: reason.to_string() }
}
