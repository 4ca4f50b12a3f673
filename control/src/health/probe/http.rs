//! `http` and `https`: requests are answered with the right status and body. A connection per request, so that what is
//! asked is whether clients get one too.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::pin;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pattern::Pattern;
use super::tls::Tls;
use super::{Failure, Limit, tcp};

/// Requests that must all be answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Http {
    /// `None` for `http`.
    pub tls: Option<Tls>,
    /// One after the other.
    pub urls: Vec<Url>,
}

/// A request and how it must be answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    /// GET, HEAD, …
    pub method: Method,
    /// Path and query.
    pub path: Uri,
    /// What the Host header says; `None`: the address that is asked.
    pub host: Option<Authority>,
    /// More headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Statuses that are good.
    pub status: Statuses,
    /// What must be in the first [`BODY_MAX`] bytes of the body; `None`: it is not read.
    pub body: Option<Pattern>,
}

/// A set of HTTP statuses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

/// Not the response that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Another status than those that are good.
    #[error("{path}: status {status}, not {expected}")]
    Status {
        /// What was asked for.
        path: String,
        /// What came.
        status: u16,
        /// What would have been good.
        expected: String,
    },
    /// A body without what must be in it.
    #[error("{path}: no {expected} in {}", bytes(*.len))]
    Body {
        /// What was asked for.
        path: String,
        /// What was looked for.
        expected: String,
        /// How many bytes were looked at.
        len: usize,
    },
    /// Something that is no HTTP response, or one of absurd size.
    #[error("{path}: the answer is not HTTP")]
    NotHttp {
        /// What was asked for.
        path: String,
    },
    /// The connection ended within the response.
    #[error("{path}: the connection was closed before the answer was complete")]
    Incomplete {
        /// What was asked for.
        path: String,
    },
}

fn bytes(len: usize) -> String {
    if len == BODY_MAX { format!("the first {len} bytes of the body") } else { "the body".to_owned() }
}

/// Bytes of a body that are read.
pub const BODY_MAX: usize = 256 << 10;

/// Bytes of a response's head that are read.
const HEAD_MAX: usize = 64 << 10;

impl Http {
    pub(super) async fn ask(&self, address: SocketAddr, limit: Limit) -> Result<(), Failure> {
        for url in &self.urls {
            let stream = tcp::connect(address, limit).await?;
            match &self.tls {
                None => url.ask(stream, &url.host(address, 80)).await?,
                Some(tls) => {
                    let host = url.host.as_ref().map(Authority::host);
                    url.ask(tls.connect(stream, host, address.ip()).await?, &url.host(address, 443)).await?;
                }
            }
        }
        Ok(())
    }
}

impl Url {
    /// What the Host header says to `address` (RFC 9110 §7.2).
    fn host(&self, address: SocketAddr, default_port: u16) -> String {
        match (&self.host, address.ip()) {
            (Some(host), _) => host.to_string(),
            (None, IpAddr::V4(v4)) if address.port() == default_port => v4.to_string(),
            (None, IpAddr::V6(v6)) if address.port() == default_port => format!("[{v6}]"),
            (None, _) => address.to_string(),
        }
    }

    /// Asks over `stream`, calling the server `host`.
    ///
    /// # Errors
    /// When the answer is not what it must be.
    pub async fn ask<S>(&self, stream: S, host: &str) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let request = self.request(host);
        let mut client = http1::Builder::new();
        client.max_buf_size(HEAD_MAX);
        let (mut sender, connection) =
            client.handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        // The connection's own end is told to whoever reads from it: it is only kept going here.
        let going = async {
            let _ = connection.await;
            std::future::pending().await
        };
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
            let status = response.status().as_u16();
            if !self.status.has(status) {
                let (path, expected) = (self.path.to_string(), self.status.to_string());
                return Err(Wrong::Status { path, status, expected }.into());
            }
            match &self.body {
                None => Ok(()),
                Some(pattern) => self.read(response.into_body(), pattern).await,
            }
        };
        let (going, exchange) = (pin!(going), pin!(exchange));
        tokio::select! {
            answer = exchange => answer,
            never = going => never,
        }
    }

    fn request(&self, host: &str) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        if let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, HeaderValue::from_static("shunt"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        request
    }

    async fn read<B>(&self, mut body: B, pattern: &Pattern) -> Result<(), Failure>
    where
        B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
    {
        let mut seen = Vec::new();
        while seen.len() < BODY_MAX {
            let Some(frame) = body.frame().await else { break };
            let frame = frame.map_err(|error| self.broken(&error))?;
            let data = frame.into_data().unwrap_or_default();
            seen.extend_from_slice(&data[..data.len().min(BODY_MAX - seen.len())]);
        }
        if pattern.is_in(&seen) {
            return Ok(());
        }
        let (path, expected, len) = (self.path.to_string(), pattern.to_string(), seen.len());
        Err(Wrong::Body { path, expected, len }.into())
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        let path = self.path.to_string();
        let source = std::error::Error::source(error);
        if let Some(error) = source.and_then(|source| source.downcast_ref::<std::io::Error>()) {
            return match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Wrong::Incomplete { path }.into(),
                _ => Failure::lost(error),
            };
        }
        if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            return Wrong::Incomplete { path }.into();
        }
        Wrong::NotHttp { path }.into()
    }
}

impl Statuses {
    /// The statuses written as `"200,301-302"`.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn new(text: &str) -> Result<Self, String> {
        let status = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            let status = text.parse().ok().filter(|status| digits && (100..=599).contains(status));
            status.ok_or_else(|| format!("{text:?} is no status from 100 to 599"))
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (status(first.trim())?, status(last.trim())?);
            if first > last {
                Err(format!("the range {first}-{last} runs backwards"))
            } else {
                Ok(first..=last)
            }
        };
        text.split(',').map(|part| range(part.trim())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `status` is one of them.
    pub fn has(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl Default for Statuses {
    /// 200 to 299.
    fn default() -> Self {
        Self(vec![200..=299])
    }
}

impl std::fmt::Display for Statuses {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(out, "{comma}{first}")?,
                (first, last) => write!(out, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_written_as_a_list_of_ranges() {
        let statuses = Statuses::new("200, 301-302").unwrap();
        let has = |status| statuses.has(status);
        assert!(has(200) && has(301) && has(302) && !has(201) && !has(300) && !has(303));
        assert_eq!(statuses.to_string(), "200,301-302");
        assert_eq!(Statuses::default().to_string(), "200-299");
        for (bad, why) in [
            ("", "\"\" is no status from 100 to 599"),
            ("200,", "\"\" is no status from 100 to 599"),
            ("+20", "\"+20\" is no status from 100 to 599"),
            ("99", "\"99\" is no status from 100 to 599"),
            ("600", "\"600\" is no status from 100 to 599"),
            ("302-301", "the range 302-301 runs backwards"),
        ] {
            assert_eq!(Statuses::new(bad).unwrap_err(), why);
        }
    }

    #[test]
    fn the_host_is_the_address_unless_it_has_a_name() {
        let mut url = Url {
            method: Method::GET,
            path: Uri::from_static("/"),
            host: None,
            headers: Vec::new(),
            status: Statuses::default(),
            body: None,
        };
        let host = |url: &Url, address: &str| url.host(address.parse().unwrap(), 80);
        assert_eq!(host(&url, "10.0.0.1:80"), "10.0.0.1");
        assert_eq!(host(&url, "10.0.0.1:8080"), "10.0.0.1:8080");
        assert_eq!(host(&url, "[fd00::1]:80"), "[fd00::1]");
        assert_eq!(host(&url, "[fd00::1]:81"), "[fd00::1]:81");
        url.host = Some(Authority::from_static("example.com:81"));
        assert_eq!(host(&url, "10.0.0.1:80"), "example.com:81");
    }
}
