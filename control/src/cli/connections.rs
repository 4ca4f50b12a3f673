//! `shunt connections`: the tables line by line, as they come.

use std::ops::ControlFlow;
use std::path::Path;

use super::output::Output;
use super::runtime;
use crate::admin::client::{lines, query_value};
use crate::admin::filter::Query;
use crate::admin::view::Connection;

pub(super) fn connections(socket: &Path, query: &Query, json: bool) -> anyhow::Result<()> {
    let mut out = Output::new();
    let mut wrong = None;
    // The head waits for the daemon's consent: over a refusal it would look like an empty table.
    let mut head = if json { "" } else { HEAD };
    let show = |line: &[u8]| match serde_json::from_slice(line) {
        _ if json => out.write(line),
        Ok(connection) => {
            out.write(format!("{}{}\n", std::mem::take(&mut head), row(&connection)).as_bytes())
        }
        Err(error) => {
            wrong = Some(error);
            ControlFlow::Break(())
        }
    };
    let asked = runtime()?.block_on(lines(socket, &path(query), show));
    if asked.is_ok() {
        let _ = out.write(head.as_bytes());
    }
    out.finish()?;
    asked?;
    wrong.map_or(Ok(()), |error| Err(error.into()))
}

fn path(query: &Query) -> String {
    let Query { client, server, state } = query;
    let pairs = [("client", client), ("server", server), ("state", state)];
    let pairs = pairs.into_iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}={}", query_value(value))).collect();
    format!("/v1/connections?{}", pairs.join("&"))
}

/// Columns have fixed widths: a table of millions is not held back to measure it.
const HEAD: &str = "\
    pro expire state       source                 virtual                destination            \
    local                  mode    worker\n";

fn row(connection: &Connection) -> String {
    let Connection { protocol, state, client, virtual_address, server, mode, worker, .. } = connection;
    let expire = format!("{:02}:{:02}", connection.expires_seconds / 60, connection.expires_seconds % 60);
    let local = connection.local.as_deref().unwrap_or("-");
    let name = protocol.to_uppercase();
    format!(
        "{name:3} {expire:6} {state:11} {client:22} {virtual_address:22} {server:22} {local:22} {mode:7} {worker}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_reads_like_ipvsadms() {
        let connection = Connection {
            protocol: "tcp".into(),
            expires_seconds: 899,
            state: "ESTABLISHED".into(),
            client: "198.51.100.7:40000".into(),
            virtual_address: "203.0.113.10:80".into(),
            server: "10.0.0.11:8080".into(),
            local: Some("10.0.0.200:1025".into()),
            mode: "fullnat".into(),
            worker: 3,
            ..Connection::default()
        };
        let expected = "TCP 14:59  ESTABLISHED 198.51.100.7:40000     203.0.113.10:80        10.0.0.11:8080         \
             10.0.0.200:1025        fullnat 3";
        assert_eq!(row(&connection), expected);
        let columns = |text: &str, words: &[&str]| -> Vec<usize> {
            words.iter().map(|word| text.find(word).unwrap()).collect()
        };
        assert_eq!(
            columns(
                HEAD,
                &["expire", "state", "source", "virtual", "destination", "local", "mode", "worker"]
            ),
            columns(
                expected,
                &["14:59", "ESTABLISHED", "198.51", "203.0", "10.0.0.11", "10.0.0.200", "fullnat", "3"]
            )
            .into_iter()
            .take(7)
            .chain([expected.len() - 1])
            .collect::<Vec<_>>()
        );
    }

    #[test]
    fn filters_travel_as_they_were_typed() {
        let query =
            Query { client: Some("[2001:db8::]/32:80".into()), state: Some("udp".into()), server: None };
        assert_eq!(path(&query), "/v1/connections?client=%5B2001%3Adb8%3A%3A%5D%2F32%3A80&state=udp");
    }
}
