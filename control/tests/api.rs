//! The API over a real Unix socket, answered by a stand-in for the daemon.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use shunt_control::admin::client::{ClientError, ask};
use shunt_control::admin::server::{ASKS_MAX, serve};
use shunt_control::admin::socket::{SocketError, claim};
use shunt_control::admin::{Ask, view};
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
            // No worker, no connection: tests/connections.rs has both.
            Ask::Connections(answer) => drop(answer),
            Ask::Reload(answer) => answer.send(Err("a.toml:3:1: unknown key".into())).unwrap(),
        }
    }
}

async fn serving(scratch: &Scratch) -> shunt_control::admin::socket::Claim {
    let (listener, claimed) = claim(&scratch.socket()).await.unwrap();
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
    assert!(matches!(claim(&scratch.socket()).await, Err(SocketError::InUse(_))));
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
    drop(claim(&scratch.socket()).await.unwrap());
    std::fs::write(scratch.socket(), "precious").unwrap();
    assert!(matches!(claim(&scratch.socket()).await, Err(SocketError::NoSocket(_))));
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
