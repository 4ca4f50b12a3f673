//! The URLs of an `http` or `https` check. What the check itself says is one URL, or what its URLs have in common.

use std::collections::BTreeMap;

use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Uri};
use toml::Spanned;

use super::check::{parsed, pattern};
use super::diagnostic::Diagnostics;
use super::raw::{self, Typed};
use super::resolve::word;
use super::words::HttpMethod;
use crate::health::probe::http::{Statuses, Url};
use crate::health::probe::pattern::Pattern;

type Headers = BTreeMap<Spanned<String>, Spanned<String>>;

/// The URLs of the check `typed`, at least one. Wrong parts are left out and noted in `diagnostics`.
pub(super) fn urls(key: &str, typed: &raw::Check, diagnostics: &mut Diagnostics) -> Vec<Url> {
    let common = Request {
        method: &typed.method,
        path: &typed.path,
        host: &typed.host,
        headers: &typed.headers,
        status: &typed.status,
        body: &typed.body,
        body_regex: &typed.body_regex,
    };
    let root = Url {
        method: Method::GET,
        path: Uri::from_static("/"),
        host: None,
        headers: Vec::new(),
        status: Statuses::default(),
        body: None,
    };
    let common = common.url(key, &root, diagnostics);
    if typed.url.is_empty() {
        return vec![common];
    }
    let one = |url: &Spanned<raw::Url>| {
        let typed = url.as_ref();
        let request = Request {
            method: &typed.method,
            path: &typed.path,
            host: &typed.host,
            headers: &typed.headers,
            status: &typed.status,
            body: &typed.body,
            body_regex: &typed.body_regex,
        };
        request.url(&format!("{key}: url"), &common, diagnostics)
    };
    typed.url.iter().map(one).collect()
}

/// The keys of a URL, wherever they were typed.
struct Request<'a> {
    method: &'a Typed<String>,
    path: &'a Typed<String>,
    host: &'a Typed<String>,
    headers: &'a Headers,
    status: &'a Typed<raw::Status>,
    body: &'a Typed<String>,
    body_regex: &'a Typed<String>,
}

impl Request<'_> {
    /// What was typed, the rest as `common` has it.
    fn url(&self, key: &str, common: &Url, diagnostics: &mut Diagnostics) -> Url {
        let name = |name: &str| format!("{key}: {name}");
        let method = match self.method {
            None => common.method.clone(),
            typed => match word(&name("method"), typed, HttpMethod::Get, diagnostics) {
                HttpMethod::Get => Method::GET,
                HttpMethod::Head => Method::HEAD,
                HttpMethod::Options => Method::OPTIONS,
            },
        };
        let path = self.path.as_ref().and_then(|typed| parsed(&name("path"), typed, diagnostics, path));
        let host = self.host.as_ref().and_then(|typed| parsed(&name("host"), typed, diagnostics, host));
        let mut headers = common.headers.clone();
        headers.extend(self.headers(&name("headers"), diagnostics));
        let body = self.body(key, common, diagnostics);
        if let Some(typed) =
            self.body.as_ref().or(self.body_regex.as_ref()).filter(|_| method == Method::HEAD)
        {
            let message = format!("{key}: a body with method \"HEAD\"");
            diagnostics.error(typed.span(), message, "such an answer has none");
        }
        Url {
            method,
            path: path.unwrap_or_else(|| common.path.clone()),
            host: host.or_else(|| common.host.clone()),
            headers,
            status: self.status(&name("status"), diagnostics).unwrap_or_else(|| common.status.clone()),
            body,
        }
    }

    fn body(&self, key: &str, common: &Url, diagnostics: &mut Diagnostics) -> Option<Pattern> {
        let name = |name: &str| format!("{key}: {name}");
        let text = |text: &str| Ok(text.into());
        let (body, expression) = (("body", self.body), ("body_regex", self.body_regex));
        pattern(name, body, expression, text, diagnostics).or_else(|| common.body.clone())
    }

    fn status(&self, key: &str, diagnostics: &mut Diagnostics) -> Option<Statuses> {
        let typed = self.status.as_ref()?;
        let text = match typed.as_ref() {
            raw::Status::Text(text) => text.clone(),
            raw::Status::Number(number) => number.to_string(),
        };
        parsed(key, &Spanned::new(typed.span(), text), diagnostics, Statuses::new)
    }

    fn headers(&self, key: &str, diagnostics: &mut Diagnostics) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for (name, value) in self.headers {
            let name = parsed(key, name, diagnostics, header);
            let value = parsed(key, value, diagnostics, |text| {
                HeaderValue::from_str(text).map_err(|_| "not the value of a header".to_owned())
            });
            headers.extend(name.zip(value));
        }
        headers
    }
}

fn path(text: &str) -> Result<Uri, String> {
    if !text.starts_with('/') {
        return Err("must begin with /".to_owned());
    }
    text.parse().map_err(|_| "has a character that paths do not have".to_owned())
}

fn host(text: &str) -> Result<Authority, String> {
    let authority: Option<Authority> = text.parse().ok().filter(|_| !text.contains('@'));
    authority.ok_or_else(|| "not the name of a host".to_owned())
}

fn header(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| "not the name of a header".to_owned())?;
    match name {
        HOST => Err("a key of its own: host".to_owned()),
        CONNECTION => Err("every request has a connection of its own".to_owned()),
        name => Ok(name),
    }
}
