//! `http` against nginx, and against servers that do what nginx does not.

use std::sync::atomic::Ordering;

use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Uri};
use shunt_control::health::probe::http::{BODY_MAX, Http, Statuses, Url};
use shunt_control::health::probe::pattern::{Expression, Pattern};
use shunt_control::health::probe::{Layer, Probe};

use crate::servers::{Habit, misbehaving, nginx};
use crate::world::{Folder, alone, fails, passes, waits};

/// A request for `path` that wants 200 to 299.
pub(crate) fn url(path: &'static str) -> Url {
    Url {
        method: Method::GET,
        path: Uri::from_static(path),
        host: None,
        headers: Vec::new(),
        status: Statuses::default(),
        body: None,
    }
}

fn http(url: Url) -> Probe {
    Probe::Http(Http { tls: None, urls: vec![url] })
}

fn contains(text: &str) -> Option<Pattern> {
    Some(Pattern::Contains(text.into()))
}

const SERVERS: &str = "server { listen 127.0.0.1:80; listen [::1]:80;
    location = /health { return 200 \"all is well\\n\"; }
    location = /moved { return 301 /health; }
    location = /broken { return 503 \"no\\n\"; }
    location = /secret { if ($http_x_check != \"yes\") { return 403; } return 204; }
    location = /who { return 200 \"$request_method $http_host $http_user_agent $http_connection\"; }
}";

#[test]
fn a_status_is_one_of_those_that_are_good_or_not() {
    alone(async || {
        let folder = Folder::new();
        let _nginx = nginx(&folder, SERVERS);
        for address in ["127.0.0.1:80", "[::1]:80"] {
            passes(&http(url("/health")), address).await;
            passes(&http(Url { method: Method::HEAD, ..url("/health") }), address).await;
            let expected = (Layer::L7, "/broken: status 503, not 200-299".to_owned());
            assert_eq!(fails(&http(url("/broken")), address).await, expected);
            let expected = (Layer::L7, "/moved: status 301, not 200-299".to_owned());
            assert_eq!(fails(&http(url("/moved")), address).await, expected);
            let status = Statuses::new("200,301-302").unwrap();
            passes(&http(Url { status, ..url("/moved") }), address).await;
        }
        assert_eq!(
            fails(&http(url("/health")), "127.0.0.1:81").await,
            (Layer::L4, "connection refused".into())
        );
    });
}

#[test]
fn a_body_has_what_must_be_in_it_or_not() {
    alone(async || {
        let folder = Folder::new();
        let _nginx = nginx(&folder, SERVERS);
        let with = |body| http(Url { body, ..url("/health") });
        let matches = |text| Some(Pattern::Matches(Expression::new(text).unwrap()));
        passes(&with(contains("is well")), "127.0.0.1:80").await;
        passes(&with(matches("^all .. w[aeiou]ll\n$")), "127.0.0.1:80").await;
        let wrong = fails(&with(contains("is lost")), "127.0.0.1:80").await;
        assert_eq!(wrong, (Layer::L7, "/health: no \"is lost\" in the body".into()));
        let wrong = fails(&with(matches("^well")), "127.0.0.1:80").await;
        assert_eq!(wrong, (Layer::L7, "/health: no /^well/ in the body".into()));
    });
}

#[test]
fn a_request_says_method_host_and_headers() {
    alone(async || {
        let folder = Folder::new();
        let _nginx = nginx(&folder, SERVERS);
        passes(&http(Url { body: contains("GET 127.0.0.1 shunt close"), ..url("/who") }), "127.0.0.1:80")
            .await;
        passes(&http(Url { body: contains("GET [::1] shunt close"), ..url("/who") }), "[::1]:80").await;
        let host = Some(Authority::from_static("web.example:8080"));
        let (method, body) = (Method::OPTIONS, contains("OPTIONS web.example:8080 shunt"));
        passes(&http(Url { method, host, body, ..url("/who") }), "127.0.0.1:80").await;
        assert_eq!(
            fails(&http(url("/secret")), "127.0.0.1:80").await,
            (Layer::L7, "/secret: status 403, not 200-299".into())
        );
        let headers = vec![(HeaderName::from_static("x-check"), HeaderValue::from_static("yes"))];
        passes(&http(Url { headers, ..url("/secret") }), "127.0.0.1:80").await;
    });
}

#[test]
fn every_url_of_a_check_must_be_well() {
    alone(async || {
        let folder = Folder::new();
        let _nginx = nginx(&folder, SERVERS);
        let urls = |paths: [&'static str; 3]| Probe::Http(Http { tls: None, urls: paths.map(url).to_vec() });
        passes(&urls(["/health", "/who", "/health"]), "127.0.0.1:80").await;
        let wrong = fails(&urls(["/health", "/who", "/broken"]), "127.0.0.1:80").await;
        assert_eq!(wrong, (Layer::L7, "/broken: status 503, not 200-299".into()));
    });
}

#[test]
fn a_server_that_drips_or_says_nothing_has_no_more_time_than_any_other() {
    alone(async || {
        misbehaving(81, Habit::Drips(b"HTTP/1.1 200 OK\r\n\r\n")).await;
        misbehaving(82, Habit::Drips(b"HTTP/1.1 200 OK\r\nx: ")).await;
        misbehaving(83, Habit::Says(b"")).await;
        let late = || (Layer::L7, "no answer within 1.5s".to_owned());
        let reads = http(Url { body: contains("well"), ..url("/") });
        assert_eq!(waits(&reads, "127.0.0.1:81").await, late());
        // Whoever wants the status alone has it.
        passes(&http(url("/")), "127.0.0.1:81").await;
        assert_eq!(waits(&http(url("/")), "127.0.0.1:82").await, late());
        assert_eq!(waits(&http(url("/")), "127.0.0.1:83").await, late());
    });
}

#[test]
fn of_a_gigabyte_only_the_beginning_is_read() {
    alone(async || {
        let sent =
            misbehaving(81, Habit::Floods(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")).await;
        let reads = |text| http(Url { body: contains(text), ..url("/") });
        passes(&reads("xxxx"), "127.0.0.1:81").await;
        let wrong = fails(&reads("well"), "127.0.0.1:81").await;
        assert_eq!(wrong, (Layer::L7, "/: no \"well\" in the first 262144 bytes of the body".into()));
        let head = misbehaving(82, Habit::Floods(b"HTTP/1.1 200 OK\r\nx: ")).await;
        assert_eq!(
            fails(&http(url("/")), "127.0.0.1:82").await,
            (Layer::L7, "/: the answer is not HTTP".into())
        );
        // What the kernel holds on both ends is on top of what was read.
        let kernel = 32 << 20;
        let (body, head) = (sent.load(Ordering::Relaxed), head.load(Ordering::Relaxed));
        assert!(body >= 2 * BODY_MAX as u64 && body < kernel, "{body}");
        assert!(head < kernel, "{head}");
    });
}

#[test]
fn what_is_not_http_or_ends_too_early_is_told() {
    alone(async || {
        misbehaving(81, Habit::SaysAndCloses(b"SSH-2.0-OpenSSH_9.2\r\n")).await;
        misbehaving(82, Habit::SaysAndCloses(b"HTTP/1.1 200 OK\r\n")).await;
        misbehaving(83, Habit::SaysAndCloses(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nall")).await;
        misbehaving(84, Habit::SaysAndCloses(b"")).await;
        let plain = http(url("/"));
        let reads = http(Url { body: contains("well"), ..url("/") });
        let early = "/: the connection was closed before the answer was complete";
        assert_eq!(fails(&plain, "127.0.0.1:81").await, (Layer::L7, "/: the answer is not HTTP".into()));
        assert_eq!(fails(&plain, "127.0.0.1:82").await, (Layer::L7, early.into()));
        assert_eq!(fails(&reads, "127.0.0.1:83").await, (Layer::L7, early.into()));
        assert_eq!(fails(&plain, "127.0.0.1:84").await, (Layer::L7, early.into()));
    });
}
