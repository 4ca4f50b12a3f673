//! The API over a real Unix socket, answered by a stand-in for the daemon.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use shunt_control::admin::client::{ClientError, ask, tell};
use shunt_control::admin::metrics::Scrape;
use shunt_control::admin::server::{ASKS_MAX, serve, serve_metrics};
use shunt_control::admin::socket::{SocketError, claim};
use shunt_control::admin::{Ask, view};
use shunt_control::config::Edit;
use shunt_control::events::Events;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

struct Scratch(PathBuf);

impl Scratch {
    fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shunt-api-{}-{label}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/shunt.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Answers like a daemon whose configuration file is bad.
async fn stand_in(mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        match ask {
            Ask::Status(answer) => {
                let service = view::Service { name: "web".into(), ..view::Service::default() };
                answer
                    .send(view::Status { pid: 7, services: vec![service], ..view::Status::default() })
                    .unwrap();
            }
            Ask::Workers(answer) => answer.send(view::Workers::default()).unwrap(),
            Ask::Counters(answer) => answer.send(view::Counters::default()).unwrap(),
            Ask::Metrics(answer) => answer.send(Scrape::default()).unwrap(),
            // No worker, no connection: tests/connections.rs has both.
            Ask::Connections(answer) => drop(answer),
            Ask::Config(answer) => answer.send(view::ConfigText::default()).unwrap(),
            Ask::Diff(sources, answer) => {
                let names = sources.iter().map(|(_, source)| source.name().to_owned()).collect();
                answer.send(Ok(view::Diff { needs_restart: names, ..view::Diff::default() })).unwrap();
            }
            Ask::Reload(answer) | Ask::RollBack(answer) => {
                answer.send(Err("a.toml:3:1: unknown key".into())).unwrap();
            }
            Ask::Edit(edit, save, answer) => answer.send(Err(format!("{edit:?} {save}"))).unwrap(),
            Ask::Save(answer) => answer.send(Ok(view::Saved { files: 2 })).unwrap(),
        }
    }
}

async fn serving(scratch: &Scratch) -> shunt_control::admin::socket::Claim {
    let (listener, claimed) = claim(&scratch.socket(), None).await.unwrap();
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    tokio::spawn(serve(listener, asks, Events::default()));
    tokio::spawn(stand_in(asked));
    claimed
}

#[tokio::test]
async fn questions_are_answered_and_a_refusal_is_an_error_with_its_text() {
    let scratch = Scratch::new("answers");
    let _claimed = serving(&scratch).await;
    let status: view::Status = ask(&scratch.socket(), Method::GET, "/v1/status").await.unwrap();
    assert_eq!((status.pid, status.services[0].name.as_str()), (7, "web"));
    let _: view::Workers = ask(&scratch.socket(), Method::GET, "/v1/workers").await.unwrap();
    let _: view::Counters = ask(&scratch.socket(), Method::GET, "/v1/counters").await.unwrap();
    let refused = ask::<view::Reloaded>(&scratch.socket(), Method::POST, "/v1/reload").await.unwrap_err();
    assert_eq!(refused.to_string(), "a.toml:3:1: unknown key");
    let file = |path: &str| view::File { path: path.into(), text: "[[port]]".into() };
    let files = view::Files { files: vec![file("a"), file("b")] };
    let diff: view::Diff = tell(&scratch.socket(), "/v1/config/diff", &files).await.unwrap();
    assert_eq!(diff.needs_restart, ["a", "b"]);
    let edit = Edit::RemoveService { service: "web".into() };
    let edited = tell::<view::Reloaded>(&scratch.socket(), "/v1/config/edit?save=true", &edit).await;
    assert_eq!(edited.unwrap_err().to_string(), format!("{edit:?} true"));
    let saved: view::Saved = ask(&scratch.socket(), Method::POST, "/v1/config/save").await.unwrap();
    assert_eq!(saved.files, 2);
    let unknown = ask::<Value>(&scratch.socket(), Method::GET, "/v2/status").await.unwrap_err();
    assert_eq!(unknown.to_string(), "no such resource");
    let wrong = ask::<Value>(&scratch.socket(), Method::GET, "/v1/reload").await.unwrap_err();
    assert_eq!(wrong.to_string(), "not possible with this method");
}

#[tokio::test]
async fn the_socket_is_private_single_and_gone_at_the_end() {
    let scratch = Scratch::new("socket");
    let claimed = serving(&scratch).await;
    let mode = std::fs::metadata(scratch.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(claim(&scratch.socket(), None).await, Err(SocketError::InUse(_))));
    drop(claimed);
    assert!(!scratch.socket().exists());
    let missing = ask::<Value>(&scratch.socket(), Method::GET, "/v1/status").await.unwrap_err();
    assert!(matches!(missing, ClientError::NotRunning(_)), "{missing}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let scratch = Scratch::new("stale");
    std::fs::create_dir_all(scratch.socket().parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(scratch.socket()).unwrap());
    drop(claim(&scratch.socket(), None).await.unwrap());
    std::fs::write(scratch.socket(), "precious").unwrap();
    assert!(matches!(claim(&scratch.socket(), None).await, Err(SocketError::NoSocket(_))));
    assert_eq!(std::fs::read(scratch.socket()).unwrap(), b"precious");
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let scratch = Scratch::new("head");
    let _claimed = serving(&scratch).await;
    let mut stream = UnixStream::connect(scratch.socket()).await.unwrap();
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: shunt\r\nlong: ").await.unwrap();
    let filler = [b'a'; 4096];
    let flood = async { while stream.write_all(&filler).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(3), flood).await.expect("the server hangs up");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
}

#[tokio::test]
async fn a_question_that_is_too_long_or_makes_no_sense_is_refused() {
    let scratch = Scratch::new("questions");
    let _claimed = serving(&scratch).await;
    let refused = async |path: &str, question: Value| {
        tell::<Value>(&scratch.socket(), path, &question).await.unwrap_err().to_string()
    };
    let long = serde_json::json!({"edit": "remove_service", "service": "x".repeat(70_000)});
    assert_eq!(refused("/v1/config/edit", long).await, "length limit exceeded");
    let odd = serde_json::json!({"edit": "remove_everything"});
    assert!(refused("/v1/config/edit", odd).await.contains("unknown variant `remove_everything`"));
    let odd = serde_json::json!({"edit": "remove_service", "service": "web"});
    assert!(refused("/v1/config/edit?svae=true", odd).await.contains("svae"));
    assert_eq!(refused("/v1/config/diff", serde_json::json!({"files": []})).await, "there is no file");
}

#[tokio::test]
async fn a_group_may_use_the_socket_if_there_is_one_of_that_name() {
    let scratch = Scratch::new("group");
    let claimed = claim(&scratch.socket(), Some("root")).await.unwrap();
    let mode = std::fs::metadata(scratch.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(claimed);
    let nobody = claim(&scratch.socket(), Some("no-such-group")).await.unwrap_err();
    assert_eq!(nobody.to_string(), "api.group: there is no group \"no-such-group\" in /etc/group");
    assert!(!scratch.socket().exists());
}

#[tokio::test]
async fn metrics_are_plain_text_and_their_own_port_has_nothing_else() {
    let scratch = Scratch::new("metrics");
    let (listener, _claimed) = claim(&scratch.socket(), None).await.unwrap();
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    tokio::spawn(serve_metrics(tcp, asks.clone()));
    tokio::spawn(serve(listener, asks, Events::default()));
    tokio::spawn(stand_in(asked));
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = get("/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("# EOF\n"), "{answer}");
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{answer}"
    );
    for path in ["/v1/status", "/v1/config"] {
        assert!(get(path).await.starts_with("HTTP/1.1 404"), "{path}");
    }
    let mut stream = UnixStream::connect(scratch.socket()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

/// Three times as many clients as there is room for, none of which ever finishes its question; some send the head and
/// never the body. Whoever asks properly is answered all the while.
#[tokio::test]
async fn clients_that_never_finish_their_question_keep_nobody_waiting() {
    let scratch = Scratch::new("slow");
    let _claimed = serving(&scratch).await;
    let socket = scratch.socket();
    for number in 0..96 {
        let socket = socket.clone();
        tokio::spawn(async move {
            let question: &[u8] = match number % 3 {
                0 => b"",
                1 => b"POST /v1/config/edit HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
                _ => b"GET /v1/status HTTP/1.1\r\nlong: ",
            };
            loop {
                let Ok(mut stream) = UnixStream::connect(&socket).await else { continue };
                let _ = stream.write_all(question).await;
                while stream.write_all(b"a").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..10 {
        let asked = ask::<view::Status>(&socket, Method::GET, "/v1/status");
        let answer = tokio::time::timeout(Duration::from_secs(4), asked).await;
        // Less than a slow client is given: nobody waits for one of those to be over.
        assert_eq!(answer.expect("answered at once").unwrap().pid, 7);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
