//! What one `[[service.check]]` asks: its kind, and the keys that this kind knows. How often it is asked is not said here.

use std::ops::Range;
use std::path::PathBuf;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use nix::unistd::{Group, User};
use rustls::pki_types::ServerName;
use toml::Spanned;

use super::diagnostic::Diagnostics;
use super::http_check::urls;
use super::raw::{self, Typed};
use super::resolve::{integer, list, word};
use super::words::{CheckKind, DnsCode, DnsType, Word};
use crate::health::probe::Probe;
use crate::health::probe::dns::Dns;
use crate::health::probe::exec::{Account, Exec, Running, WeightFrom};
use crate::health::probe::file::{File, Says};
use crate::health::probe::http::Http;
use crate::health::probe::pattern::{Expression, Pattern};
use crate::health::probe::smtp::Smtp;
use crate::health::probe::tls::{self, Tls, Trust};
use crate::health::probe::udp::Udp;

/// What a check asks, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asks {
    /// The question.
    pub probe: Probe,
    /// The port that is asked; `None`: the server's own.
    pub port: Option<u16>,
}

impl Asks {
    /// Whether it cannot ask without knowing a port.
    pub(super) fn needs_port(&self) -> bool {
        self.port.is_none() && self.probe.needs_port()
    }
}

/// What a check asks, called `key` in messages (`service "web": check`). `None` when that cannot be told, which is noted.
pub(super) fn asks(key: &str, spanned: &Spanned<raw::Check>, diagnostics: &mut Diagnostics) -> Option<Asks> {
    let typed = spanned.as_ref();
    let Some(named) = &typed.kind else {
        diagnostics
            .error(spanned.span(), format!("{key}: `kind` is missing"), "of this check")
            .help(format!("known are {}", list(CheckKind::ALL.iter().map(|kind| kind.word()))));
        return None;
    };
    let kind = word(&format!("{key}: kind"), &typed.kind, CheckKind::Tcp, diagnostics);
    // Which keys a kind knows is told when it is known.
    CheckKind::from_word(named.as_ref())?;
    for known in keys(typed) {
        known.used_by(kind, key, diagnostics);
    }
    let port = format!("{key}: port");
    let port = typed.port.as_ref().map(|_| integer(&port, &typed.port, 1, 1..=65_535, diagnostics));
    let mut reader = Reader { key, place: spanned.span(), typed, diagnostics };
    let probe = match kind {
        CheckKind::Ping => Some(Probe::Ping),
        CheckKind::Tcp => Some(Probe::Tcp),
        CheckKind::Udp => Some(Probe::Udp(reader.udp())),
        CheckKind::Http => Some(Probe::Http(Http { tls: None, urls: urls(key, typed, reader.diagnostics) })),
        CheckKind::Https => reader.https(),
        CheckKind::Dns => reader.dns(),
        CheckKind::Smtp => Some(Probe::Smtp(reader.smtp())),
        CheckKind::Exec => reader.exec(),
        CheckKind::File => reader.file(),
        // It asks nothing ([`super::health`]).
        CheckKind::Passive => None,
    };
    Some(Asks { probe: probe?, port })
}

/// A key that not every kind knows.
struct Key {
    name: &'static str,
    place: Option<Range<usize>>,
    kinds: &'static [CheckKind],
}

impl Key {
    fn used_by(&self, kind: CheckKind, key: &str, diagnostics: &mut Diagnostics) {
        let Some(place) = self.place.clone().filter(|_| !self.kinds.contains(&kind)) else { return };
        let message = format!("{key}: {} is not possible with kind {:?}", self.name, kind.word());
        let users = self.kinds.iter().map(|kind| kind.word());
        diagnostics
            .error(place, message, "it has no use for this")
            .help(format!("possible with {}", list(users)));
    }
}

/// Every such key of a check.
fn keys(typed: &raw::Check) -> Vec<Key> {
    use CheckKind::{Dns, Exec, File, Http, Https, Passive, Ping, Smtp, Tcp, Udp};
    const ASKING: &[CheckKind] = &[Ping, Tcp, Udp, Http, Https, Dns, Smtp, Exec, File];
    const HTTP: &[CheckKind] = &[Http, Https];
    fn key<T>(name: &'static str, typed: &Typed<T>, kinds: &'static [CheckKind]) -> Key {
        Key { name, place: typed.as_ref().map(Spanned::span), kinds }
    }
    let headers = typed.headers.first_key_value().map(|(name, _)| name.span());
    let url = typed.url.first().map(Spanned::span);
    vec![
        key("port", &typed.port, &[Tcp, Udp, Http, Https, Dns, Smtp, Exec]),
        key("send", &typed.send, &[Udp]),
        key("expect", &typed.expect, &[Udp]),
        key("expect_regex", &typed.expect_regex, &[Udp]),
        key("method", &typed.method, HTTP),
        key("path", &typed.path, HTTP),
        key("host", &typed.host, HTTP),
        Key { name: "headers", place: headers, kinds: HTTP },
        key("status", &typed.status, HTTP),
        key("body", &typed.body, HTTP),
        key("body_regex", &typed.body_regex, HTTP),
        Key { name: "url", place: url, kinds: HTTP },
        key("verify", &typed.verify, &[Https]),
        key("ca", &typed.ca, &[Https]),
        key("sni", &typed.sni, &[Https]),
        key("query", &typed.query, &[Dns]),
        key("type", &typed.r#type, &[Dns]),
        key("rcode", &typed.rcode, &[Dns]),
        key("answer", &typed.answer, &[Dns]),
        key("helo", &typed.helo, &[Smtp]),
        key("command", &typed.command, &[Exec]),
        key("user", &typed.user, &[Exec]),
        key("group", &typed.group, &[Exec]),
        key("weight_from", &typed.weight_from, &[Exec]),
        key("file", &typed.file, &[File]),
        key("file_says", &typed.file_says, &[File]),
        key("failures", &typed.failures, &[Passive]),
        key("hold", &typed.hold, &[Passive]),
        key("fast_interval", &typed.fast_interval, ASKING),
        key("jitter", &typed.jitter, ASKING),
        key("timeout", &typed.timeout, ASKING),
        key("rise", &typed.rise, ASKING),
        key("fall", &typed.fall, ASKING),
    ]
}

/// A check that is read.
struct Reader<'a> {
    key: &'a str,
    place: Range<usize>,
    typed: &'a raw::Check,
    diagnostics: &'a mut Diagnostics,
}

impl Reader<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}: {name}", self.key)
    }

    /// A key without which the kind is nothing.
    fn needed<'a, T>(&mut self, name: &str, example: &str, typed: &'a Typed<T>) -> Option<&'a Spanned<T>> {
        if typed.is_none() {
            let message = format!("{}: `{name}` is missing", self.key);
            let place = self.place.clone();
            self.diagnostics.error(place, message, "of this check").help(format!("add {name} = {example}"));
        }
        typed.as_ref()
    }

    /// What `parse` makes of a text, or `None` with the error noted.
    fn parsed<T>(
        &mut self,
        name: &str,
        typed: &Spanned<String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parsed(&self.key(name), typed, self.diagnostics, parse)
    }

    fn udp(&mut self) -> Udp {
        let typed = self.typed;
        let send = typed.send.as_ref().and_then(|send| self.parsed("send", send, bytes));
        let key = |name: &str| format!("{}: {name}", self.key);
        let contains = ("expect", &typed.expect);
        let matches = ("expect_regex", &typed.expect_regex);
        Udp {
            send: send.unwrap_or_default(),
            expect: pattern(key, contains, matches, bytes, self.diagnostics),
        }
    }

    fn https(&mut self) -> Option<Probe> {
        let typed = self.typed;
        let urls = urls(self.key, typed, self.diagnostics);
        let name = match &typed.sni {
            None => None,
            Some(sni) => Some(self.parsed("sni", sni, |text| {
                ServerName::try_from(text.to_owned()).map_err(|_| "not the name of a server".to_owned())
            })?),
        };
        let verify = typed.verify.as_ref().is_none_or(|verify| *verify.as_ref());
        if let Some(ca) = typed.ca.as_ref().filter(|_| !verify) {
            let message = format!("{} without verification", self.key("ca"));
            self.diagnostics
                .error(ca.span(), message, "no certificate is looked at")
                .help("leave out verify = false");
        }
        let (place, trust) = match &typed.ca {
            _ if !verify => (self.place.clone(), Trust::Anybody),
            None => (self.place.clone(), Trust::System),
            Some(ca) => (ca.span(), Trust::Own(self.parsed("ca", ca, authorities)?)),
        };
        match Tls::new(name, trust) {
            Ok(tls) => Some(Probe::Http(Http { tls: Some(tls), urls })),
            Err(why) => {
                let message = format!("{}: no certificate authorities", self.key);
                self.diagnostics
                    .error(place, message, why)
                    .help("name yours with ca = \"/etc/…\", or set verify = false");
                None
            }
        }
    }

    fn dns(&mut self) -> Option<Probe> {
        let typed = self.typed;
        let query = self.needed("query", "\"example.com\"", &typed.query);
        let name = query.and_then(|query| self.parsed("query", query, domain));
        let kind = word(&self.key("type"), &typed.r#type, DnsType::A, self.diagnostics);
        let code = word(&self.key("rcode"), &typed.rcode, DnsCode::NoError, self.diagnostics);
        let answer =
            typed.answer.as_ref().and_then(|answer| self.parsed("answer", answer, |text| record(kind, text)));
        if let Some(answer) = typed.answer.as_ref().filter(|_| code != DnsCode::NoError) {
            let message = format!("{} with rcode {:?}", self.key("answer"), code.word());
            self.diagnostics.error(answer.span(), message, "such an answer has no records");
        }
        Some(Probe::Dns(Dns { name: name?, kind: record_type(kind), rcode: response_code(code), answer }))
    }

    fn smtp(&mut self) -> Smtp {
        let helo = self.typed.helo.as_ref().and_then(|helo| self.parsed("helo", helo, greeting));
        Smtp { helo: helo.unwrap_or_else(|| "localhost".to_owned()) }
    }

    fn exec(&mut self) -> Option<Probe> {
        let typed = self.typed;
        let command = self.needed("command", "[\"/usr/local/bin/check\"]", &typed.command);
        let account = self.account();
        let weight =
            word(&self.key("weight_from"), &typed.weight_from, WeightFrom::Nothing, self.diagnostics);
        let command = command?;
        let wrong = match command.as_ref().first() {
            None => Some("names no program"),
            Some(program) if !program.starts_with('/') => Some("the program's path must begin with /"),
            Some(_) if command.as_ref().iter().any(|word| word.contains('\0')) => Some("has a zero byte"),
            Some(_) => None,
        };
        if let Some(why) = wrong {
            self.diagnostics.error(command.span(), self.key("command is not possible"), why);
        }
        let (command, launcher, running) = (command.as_ref().clone(), LAUNCHER.into(), Running::default());
        Some(Probe::Exec(Exec { command, account: account?, weight, launcher, running }))
    }

    /// Whom a program runs as.
    fn account(&mut self) -> Option<Account> {
        let typed = self.typed;
        let nobody = || Spanned::new(self.place.clone(), NOBODY.to_owned());
        let user = typed.user.clone().unwrap_or_else(nobody);
        let user = self.parsed("user", &user, |name| match User::from_name(name) {
            Ok(Some(user)) => Ok(user),
            Ok(None) => Err("there is no such user".to_owned()),
            Err(error) => Err(error.desc().to_lowercase()),
        });
        let group = match &typed.group {
            None => None,
            Some(group) => Some(self.parsed("group", group, |name| match Group::from_name(name) {
                Ok(Some(group)) => Ok(group.gid),
                Ok(None) => Err("there is no such group".to_owned()),
                Err(error) => Err(error.desc().to_lowercase()),
            })?),
        };
        let user = user?;
        Some(Account { uid: user.uid.as_raw(), gid: group.unwrap_or(user.gid).as_raw() })
    }

    fn file(&mut self) -> Option<Probe> {
        let typed = self.typed;
        let file = self.needed("file", "\"/run/web.up\"", &typed.file);
        let says = word(&self.key("file_says"), &typed.file_says, Says::Exists, self.diagnostics);
        let path = self.parsed("file", file?, absolute)?;
        Some(Probe::File(File { path, says }))
    }
}

/// The program of this very process.
const LAUNCHER: &str = "/proc/self/exe";

/// Who runs programs when nobody else is named.
const NOBODY: &str = "nobody";

/// What `parse` makes of a text, or `None` with the error noted.
pub(super) fn parsed<T>(
    key: &str,
    typed: &Spanned<String>,
    diagnostics: &mut Diagnostics,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    match parse(typed.as_ref()) {
        Ok(value) => Some(value),
        Err(why) => {
            diagnostics.error(typed.span(), format!("{key}: {:?} is not possible", typed.as_ref()), why);
            None
        }
    }
}

/// What must be in an answer: text or an expression, each under the key that it comes with; `key` names them in full.
pub(super) fn pattern(
    key: impl Fn(&str) -> String,
    (contains, text): (&str, &Typed<String>),
    (matches, expression): (&str, &Typed<String>),
    read: impl FnOnce(&str) -> Result<Vec<u8>, String>,
    diagnostics: &mut Diagnostics,
) -> Option<Pattern> {
    if let (Some(text), Some(expression)) = (text, expression) {
        let message = format!("{contains} and {matches} together");
        diagnostics
            .error(expression.span(), key(&message), "one of them will do")
            .related(text.span(), "the other");
    }
    if let Some(expression) = expression {
        return parsed(&key(matches), expression, diagnostics, Expression::new).map(Pattern::Matches);
    }
    parsed(&key(contains), text.as_ref()?, diagnostics, read).map(Pattern::Contains)
}

/// The bytes of a text, or those behind `hex:`.
fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let Some(digits) = text.strip_prefix("hex:") else { return Ok(text.into()) };
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit))?;
        u8::from_str_radix(text, 16).ok().filter(|_| pair.len() == 2)
    };
    let read: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
    read.ok_or_else(|| "not pairs of hexadecimal digits".to_owned())
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') && !text.contains('\0') {
        Ok(text.into())
    } else {
        Err("must begin with /".to_owned())
    }
}

fn authorities(path: &str) -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, String> {
    let path = absolute(path)?;
    let words = |error: std::io::Error| error.to_string();
    match std::fs::metadata(&path).map_err(words)? {
        // Devices and pipes may have no end.
        file if !file.is_file() => Err("not a file".to_owned()),
        file if file.len() > CA_LEN_MAX => Err(format!("larger than {CA_LEN_MAX} bytes")),
        _ => tls::certificates(&std::fs::read(path).map_err(words)?),
    }
}

/// Bytes of a file with certificates: ten times what a machine trusts.
const CA_LEN_MAX: u64 = 4 << 20;

fn domain(text: &str) -> Result<Name, String> {
    if !text.is_ascii() {
        return Err("write it in ASCII, as in a zone file".to_owned());
    }
    if text.is_empty() {
        return Err("write \".\" for the root".to_owned());
    }
    let mut name = Name::from_ascii(text).map_err(|_| "not the name of a domain".to_owned())?;
    name.set_fqdn(true);
    Ok(name)
}

/// The data of a record as an answer may have it.
fn record(kind: DnsType, text: &str) -> Result<String, String> {
    let wrong = match kind {
        DnsType::A => text.parse::<std::net::Ipv4Addr>().err().map(|_| "not an IPv4 address"),
        DnsType::Aaaa => text.parse::<std::net::Ipv6Addr>().err().map(|_| "not an IPv6 address"),
        _ if text.is_empty() => Some("an empty record"),
        _ => None,
    };
    match wrong {
        Some(why) => Err(why.to_owned()),
        // An address has several spellings.
        None => Ok(text
            .parse::<std::net::IpAddr>()
            .map_or_else(|_| text.to_owned(), |address| address.to_string())),
    }
}

fn greeting(text: &str) -> Result<String, String> {
    let odd = |byte: u8| !byte.is_ascii_graphic();
    if text.is_empty() || text.len() > HELO_MAX || text.bytes().any(odd) {
        return Err(format!("must have 1 to {HELO_MAX} letters of ASCII and no spaces"));
    }
    Ok(text.to_owned())
}

/// The longest domain (RFC 5321 §4.5.3.1.2).
const HELO_MAX: usize = 255;

fn record_type(kind: DnsType) -> RecordType {
    match kind {
        DnsType::A => RecordType::A,
        DnsType::Aaaa => RecordType::AAAA,
        DnsType::Cname => RecordType::CNAME,
        DnsType::Dnskey => RecordType::DNSKEY,
        DnsType::Mx => RecordType::MX,
        DnsType::Ns => RecordType::NS,
        DnsType::Ptr => RecordType::PTR,
        DnsType::Soa => RecordType::SOA,
        DnsType::Srv => RecordType::SRV,
        DnsType::Txt => RecordType::TXT,
    }
}

fn response_code(code: DnsCode) -> ResponseCode {
    match code {
        DnsCode::NoError => ResponseCode::NoError,
        DnsCode::NxDomain => ResponseCode::NXDomain,
        DnsCode::Refused => ResponseCode::Refused,
        DnsCode::NotImp => ResponseCode::NotImp,
        DnsCode::ServFail => ResponseCode::ServFail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_text_or_hexadecimal_digits() {
        assert_eq!(bytes("ping\n"), Ok(b"ping\n".to_vec()));
        assert_eq!(bytes("hex:00 ff0A"), Ok(vec![0, 255, 10]));
        assert_eq!(bytes("hex:"), Ok(vec![]));
        for bad in ["hex:0", "hex:0g", "hex:+1", "hex:0 é"] {
            assert_eq!(bytes(bad), Err("not pairs of hexadecimal digits".into()), "{bad}");
        }
    }

    #[test]
    fn an_address_is_compared_as_an_address() {
        assert_eq!(record(DnsType::Aaaa, "2001:DB8:0::1"), Ok("2001:db8::1".into()));
        assert_eq!(record(DnsType::A, "192.0.2"), Err("not an IPv4 address".into()));
        assert_eq!(record(DnsType::Mx, "10 mail.example.com"), Ok("10 mail.example.com".into()));
    }
}
