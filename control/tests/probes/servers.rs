//! Programs that answer, and tasks that misbehave.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::world::{Folder, sh};

/// A server's process, killed at the end.
pub(crate) struct Server(Child);

impl Server {
    /// Starts `command` and waits until it takes connections at `ready`.
    pub(crate) fn start(command: &[&str], ready: &str) -> Self {
        let child = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).spawn();
        let mut server = Self(child.unwrap_or_else(|error| panic!("{}: {error}", command[0])));
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(ready).is_err() {
            assert!(server.0.try_wait().unwrap().is_none(), "{} has ended", command[0]);
            assert!(Instant::now() < deadline, "{} does not listen on {ready}", command[0]);
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nginx with these `server` blocks, listening on 127.0.0.1:80 at least.
pub(crate) fn nginx(folder: &Folder, servers: &str) -> Server {
    let root = folder.path().display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {root}/{kind};"))
        .collect();
    let text = format!(
        "daemon off; master_process off; pid {root}/pid; error_log stderr crit; events {{}}\n\
         http {{ access_log off; {paths}\n{servers}\n}}\n"
    );
    let path = folder.write("nginx.conf", &text).display().to_string();
    Server::start(&["nginx", "-e", "stderr", "-c", &path], "127.0.0.1:80")
}

/// A certificate authority and certificates that it has signed, for the key `key.pem`: `good.pem` for web.example and
/// 127.0.0.1, `expired.pem` for the same and over since 2020, `other.pem` for other.example; `ca.pem` and `stranger.pem`
/// are authorities.
pub(crate) fn certificates(folder: &Folder) {
    let config = "[ca]\ndefault_ca=it\n[it]\ndir=.\ndatabase=index\nserial=serial\nnew_certs_dir=.\n\
        certificate=ca.pem\nprivate_key=ca.key\ndefault_md=sha256\npolicy=any\nunique_subject=no\n\
        [any]\ncommonName=supplied\n";
    folder.write("ca.cnf", config);
    sh(&format!(
        "cd {}; : >index; echo 1000 >serial
        key() {{ openssl ecparam -name prime256v1 -genkey -noout -out $1; }}
        authority() {{ key $1.key; openssl req -x509 -new -key $1.key -out $1.pem -subj /CN=$1 -days 2; }}
        sign() {{
            echo subjectAltName=$2 >$1.ext
            openssl ca -batch -notext -config ca.cnf -in it.csr -out $1.pem -extfile $1.ext -startdate $3 -enddate $4
        }}
        authority ca; authority stranger; key key.pem; openssl req -new -key key.pem -subj /CN=it -out it.csr
        now=$(date -u -d yesterday +%Y%m%d%H%M%SZ) later=$(date -u -d '2 days' +%Y%m%d%H%M%SZ)
        sign good DNS:web.example,IP:127.0.0.1 $now $later
        sign expired DNS:web.example,IP:127.0.0.1 20200101000000Z 20200201000000Z
        sign other DNS:other.example $now $later",
        folder.path().display()
    ));
}

/// What a misbehaving server does with a connection.
#[derive(Clone, Copy)]
pub(crate) enum Habit {
    /// Says these bytes and no more, and keeps the connection.
    Says(&'static [u8]),
    /// Says these bytes and closes.
    SaysAndCloses(&'static [u8]),
    /// Says these bytes, then a byte per second.
    Drips(&'static [u8]),
    /// Says these bytes, then a gigabyte.
    Floods(&'static [u8]),
}

/// A server with a bad habit on 127.0.0.1 and this port; it counts the bytes that it got rid of.
pub(crate) async fn misbehaving(port: u16, habit: Habit) -> Arc<AtomicU64> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                // A greeting is said at once; HTTP waits for the request.
                let mut request = [0; 1024];
                if port != 25 {
                    let _ = stream.read(&mut request).await;
                }
                let piece = vec![b'x'; 1 << 16];
                match habit {
                    Habit::Says(bytes) => {
                        let _ = stream.write_all(bytes).await;
                        std::future::pending::<()>().await;
                    }
                    Habit::SaysAndCloses(bytes) => drop(stream.write_all(bytes).await),
                    Habit::Drips(bytes) => {
                        let _ = stream.write_all(bytes).await;
                        while stream.write_all(b"x").await.is_ok() {
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                    Habit::Floods(bytes) => {
                        let _ = stream.write_all(bytes).await;
                        for _ in 0..1 << 14 {
                            match stream.write(&piece).await {
                                Ok(len) => counter.fetch_add(len as u64, Ordering::Relaxed),
                                Err(_) => break,
                            };
                        }
                    }
                }
            });
        }
    });
    sent
}
