//! `https` against nginx with certificates of all sorts.

use hyper::http::uri::Authority;
use shunt_control::health::probe::http::{Http, Url};
use shunt_control::health::probe::pattern::Pattern;
use shunt_control::health::probe::tls::{Tls, Trust, certificates};
use shunt_control::health::probe::{Layer, Probe};

use crate::http::url;
use crate::servers::{self, Habit, Server, misbehaving, nginx};
use crate::world::{Folder, alone, fails, passes, waits};

/// nginx with a good certificate on port 443, an expired one on 444, one for another name on 445.
fn start(folder: &Folder) -> Server {
    servers::certificates(folder);
    let server = |port: u16, certificate: &str| {
        let root = folder.path().display();
        format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {root}/{certificate}.pem;
             ssl_certificate_key {root}/key.pem; location / {{ return 200 \"sni $ssl_server_name\"; }} }}\n"
        )
    };
    let tls = [server(443, "good"), server(444, "expired"), server(445, "other")].concat();
    nginx(folder, &format!("server {{ listen 127.0.0.1:80; }}\n{tls}"))
}

/// A check that trusts what the file `trust` has, or anybody, and wants a certificate for `name`.
fn https(folder: &Folder, trust: Option<&str>, name: Option<&str>, url: Url) -> Probe {
    let trust = match trust {
        Some(file) => Trust::Own(certificates(&std::fs::read(folder.path().join(file)).unwrap()).unwrap()),
        None => Trust::Anybody,
    };
    let name = name.map(|name| name.to_owned().try_into().unwrap());
    Probe::Http(Http { tls: Some(Tls::new(name, trust).unwrap()), urls: vec![url] })
}

#[test]
fn a_good_certificate_passes_for_each_of_its_names() {
    alone(async || {
        let folder = Folder::new();
        let _nginx = start(&folder);
        let says = |text: &str| Url { body: Some(Pattern::Contains(text.into())), ..url("/") };
        passes(&https(&folder, Some("ca.pem"), None, says("sni ")), "127.0.0.1:443").await;
        passes(
            &https(&folder, Some("ca.pem"), Some("web.example"), says("sni web.example")),
            "127.0.0.1:443",
        )
        .await;
        let host = Some(Authority::from_static("web.example:8443"));
        let named = Url { host, ..says("sni web.example") };
        passes(&https(&folder, Some("ca.pem"), None, named), "127.0.0.1:443").await;
    });
}

#[test]
fn a_bad_certificate_is_told_from_another() {
    alone(async || {
        let folder = Folder::new();
        let _nginx = start(&folder);
        let name = Some("web.example");
        let trusted = https(&folder, Some("ca.pem"), name, url("/"));
        let is = |text: &str| (Layer::L7, text.to_owned());
        assert_eq!(fails(&trusted, "127.0.0.1:444").await, is("the certificate has expired"));
        assert_eq!(fails(&trusted, "127.0.0.1:445").await, is("the certificate is not for web.example"));
        let by_address = https(&folder, Some("ca.pem"), None, url("/"));
        assert_eq!(fails(&by_address, "127.0.0.1:445").await, is("the certificate is not for 127.0.0.1"));
        let stranger = https(&folder, Some("stranger.pem"), name, url("/"));
        let unknown = is("the certificate is signed by nobody who is trusted");
        assert_eq!(fails(&stranger, "127.0.0.1:443").await, unknown);
        let system =
            Probe::Http(Http { tls: Some(Tls::new(None, Trust::System).unwrap()), urls: vec![url("/")] });
        assert_eq!(fails(&system, "127.0.0.1:443").await, unknown);
    });
}

#[test]
fn without_verification_any_certificate_passes() {
    alone(async || {
        let folder = Folder::new();
        let _nginx = start(&folder);
        for port in [443, 444, 445] {
            passes(&https(&folder, None, None, url("/")), &format!("127.0.0.1:{port}")).await;
        }
    });
}

#[test]
fn a_server_without_tls_or_that_does_not_shake_hands_is_told() {
    alone(async || {
        let folder = Folder::new();
        let _nginx = start(&folder);
        misbehaving(81, Habit::Says(b"")).await;
        misbehaving(82, Habit::SaysAndCloses(b"")).await;
        let https = https(&folder, None, None, url("/"));
        assert_eq!(fails(&https, "127.0.0.1:80").await, (Layer::L7, "the server does not speak TLS".into()));
        assert_eq!(waits(&https, "127.0.0.1:81").await, (Layer::L7, "no answer within 1.5s".into()));
        assert_eq!(
            fails(&https, "127.0.0.1:82").await,
            (Layer::L7, "connection lost: closed by the server".into())
        );
    });
}
