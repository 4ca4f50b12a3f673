//! The asking side.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
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
    /// The socket is there, but not for us.
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

/// How long an answer may take. A reload waits for workers and for nft.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer.
const ANSWER_MAX: usize = 64 << 20;

/// Asks for `path` and reads the answer.
///
/// # Errors
/// When the daemon does not run, refuses, or answers garbage.
pub async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T, ClientError> {
    let asked = tokio::time::timeout(TIMEOUT, exchange(socket, method, path));
    let (status, body) = asked.await.map_err(|_| ClientError::Timeout(socket.to_owned()))??;
    if status != StatusCode::OK {
        let problem: Result<Problem, _> = serde_json::from_slice(&body);
        return Err(ClientError::Refused(
            problem.map_or_else(|_| status.to_string(), |problem| problem.error),
        ));
    }
    serde_json::from_slice(&body).map_err(|error| garbled(socket, error))
}

async fn exchange(socket: &Path, method: Method, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NotRunning(socket.to_owned()),
        _ => ClientError::Connect { path: socket.to_owned(), source },
    })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| garbled(socket, error))?;
    let driver = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "shunt");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| garbled(socket, error))?;
    let response = sender.send_request(request).await.map_err(|error| garbled(socket, error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|error| garbled(socket, error))?.to_bytes();
    driver.abort();
    Ok((status, body))
}

fn garbled(socket: &Path, reason: impl ToString) -> ClientError {
    ClientError::Garbled { path: socket.to_owned(), reason: reason.to_string() }
}
