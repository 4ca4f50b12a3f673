//! What is fuzzed: bytes in, a panic if something that must hold does not. `fuzz/fuzz_targets` runs these under
//! libFuzzer; [`super`] runs them over kept crashes and random bytes with the stable compiler.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use hyper::{Method, Uri};
use shunt_control::config::{Config, ConfigError};
use shunt_control::health::probe::Layer;
use shunt_control::health::probe::dns::{Dns, Reply};
use shunt_control::health::probe::http::{BODY_MAX, Statuses, Url};
use shunt_control::health::probe::pattern::Pattern;

/// A target by its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: [Target; 3] = [("http", http), ("dns", dns), ("config", config)];

/// Any bytes as the answer of a web server; the first says whether the body is read too.
pub(crate) fn http(bytes: &[u8]) {
    let Some((first, reply)) = bytes.split_first() else { return };
    let url = Url {
        method: Method::GET,
        path: Uri::from_static("/health"),
        host: None,
        headers: Vec::new(),
        status: Statuses::default(),
        body: (first & 1 == 1).then(|| Pattern::Contains(b"well".to_vec())),
    };
    let stream = tokio::io::join(reply, tokio::io::sink());
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    match runtime.block_on(url.ask(stream, "example.com")) {
        // Interim responses may come before the one that counts (RFC 9110 §15.2).
        Ok(()) => {
            let has = |wanted: &[u8]| reply.windows(wanted.len()).any(|window| window == wanted);
            assert!(has(b"HTTP/1.1 2") || has(b"HTTP/1.0 2"), "no good status");
            // A body in chunks may have it in pieces.
            assert!(url.body.is_none() || reply.len() <= BODY_MAX && has(b"w"), "no such body");
        }
        Err(failure) => assert_eq!(failure.layer(), Layer::L7, "{failure}"),
    }
}

/// Any datagram as the answer of a DNS server; the first byte says whether it must have a certain record.
pub(crate) fn dns(bytes: &[u8]) {
    let Some((first, reply)) = bytes.split_first() else { return };
    let name = Name::from_ascii("example.com.").expect("a name");
    let answer = (first & 1 == 1).then(|| "192.0.2.1".to_owned());
    let dns = Dns { name, kind: RecordType::A, rcode: ResponseCode::NoError, answer };
    let id = reply.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    match dns.reply(id, reply) {
        Reply::Judged(Ok(())) => {
            // RFC 1035 §4.1.1: a response, not cut off, code 0.
            assert_eq!((reply[2] & 0x82, reply[3] & 0x0f), (0x80, 0));
            let has = |wanted: &[u8]| reply.windows(wanted.len()).any(|window| window == wanted);
            assert!(dns.answer.is_none() || has(&[192, 0, 2, 1]));
        }
        Reply::Truncated => assert_eq!(reply[2] & 0x82, 0x82),
        Reply::Judged(Err(wrong)) => assert!(!wrong.to_string().is_empty()),
        Reply::Stray => {}
    }
    // To another query it is nothing.
    assert_eq!(dns.reply(id ^ 1, reply), Reply::Stray);
}

/// Any text as a configuration.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Config::parse("fuzz", text, false) {
        Ok(loaded) => {
            let again = Config::parse("fuzz", text, false).expect("what loads once loads again");
            assert_eq!(loaded.config, again.config);
        }
        Err(ConfigError::Wrong(diagnostics)) => {
            assert!(diagnostics.contains("error"), "{diagnostics:?}");
        }
        Err(other) => panic!("{other}"),
    }
}
