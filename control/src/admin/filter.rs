//! Which connections somebody wants to see.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use shunt_dataplane::conn::State;
use shunt_engine::steer::Prefix;

/// The query of `GET /v1/connections`, as typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Address or prefix of the client, with a port or without.
    pub client: Option<String>,
    /// Address of the server, with a port or without; or its name.
    pub server: Option<String>,
    /// A state's name, in upper or lower case.
    pub state: Option<String>,
}

/// The same, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) client: Option<Peer>,
    pub(super) server: Option<Server>,
    pub(super) state: Option<State>,
}

/// Addresses, with one port or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    prefix: Prefix,
    port: Option<u16>,
}

/// A server, by what it is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    At(Peer),
    Named(String),
}

impl Filter {
    /// What `query` means. The error is for people.
    pub(super) fn new(query: &Query) -> Result<Self, String> {
        let client = |text: &String| {
            peer(text).ok_or_else(|| {
                format!(
                    "client: {text:?} is no address; write \"10.0.0.1\", \"10.0.0.0/8\" or \"10.0.0.1:4000\""
                )
            })
        };
        let server = |text: &String| peer(text).map_or_else(|| Server::Named(text.clone()), Server::At);
        Ok(Self {
            client: query.client.as_ref().map(client).transpose()?,
            server: query.server.as_ref().map(server),
            state: query.state.as_ref().map(|text| state(text)).transpose()?,
        })
    }
}

impl Peer {
    pub(super) fn matches(&self, address: SocketAddr) -> bool {
        self.prefix.contains(address.ip()) && self.port.is_none_or(|port| port == address.port())
    }
}

fn state(text: &str) -> Result<State, String> {
    let found = State::ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let known: Vec<_> = State::ALL.iter().map(|state| state.name()).collect();
        format!("state: {text:?} is no state; known are {}", known.join(", "))
    })
}

/// `10.0.0.1`, `10.0.0.0/8`, `10.0.0.1:4000`, `10.0.0.0/8:4000`, `2001:db8::/32`, `[2001:db8::1]:4000`,
/// `[2001:db8::]/32:4000`.
fn peer(text: &str) -> Option<Peer> {
    let (address, rest) = match text.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None if text.matches(':').count() > 1 => text.split_at(text.find('/').unwrap_or(text.len())),
        None => text.split_at(text.find(['/', ':']).unwrap_or(text.len())),
    };
    let address: IpAddr = address.parse().ok()?;
    let (len, port) = rest.split_at(rest.find(':').unwrap_or(rest.len()));
    let prefix = match len.strip_prefix('/') {
        Some(len) => Prefix::new(address, len.parse().ok()?)?,
        None if len.is_empty() => Prefix::host(address),
        None => return None,
    };
    let port = match port.strip_prefix(':') {
        Some(port) => Some(port.parse().ok()?),
        None => None,
    };
    Some(Peer { prefix, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, address: &str) -> bool {
        peer(filter).unwrap_or_else(|| panic!("{filter}")).matches(address.parse().unwrap())
    }

    #[test]
    fn a_peer_is_an_address_or_a_prefix_with_a_port_or_without() {
        let client = "10.1.2.3:4000";
        for yes in ["10.1.2.3", "10.0.0.0/8", "10.1.2.3:4000", "10.0.0.0/8:4000", "0.0.0.0/0"] {
            assert!(matches(yes, client), "{yes}");
        }
        for no in ["10.1.2.4", "11.0.0.0/8", "10.1.2.3:4001", "10.0.0.0/8:4001", "::/0"] {
            assert!(!matches(no, client), "{no}");
        }
        let client = "[2001:db8::7]:4000";
        for yes in
            ["2001:db8::7", "2001:db8::/32", "[2001:db8::7]", "[2001:db8::7]:4000", "[2001:db8::]/32:4000"]
        {
            assert!(matches(yes, client), "{yes}");
        }
        assert!(!matches("[2001:db8::7]:4001", client) && !matches("0.0.0.0/0", client));
        for bad in [
            "",
            "web",
            "10.0.0.1:",
            "10.0.0.1:x",
            "10.0.0.1/",
            "10.0.0.0/33",
            "[::1",
            "[::1]x",
            "10.0.0.1:1/8",
        ] {
            assert_eq!(peer(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_filter_is_said() {
        let client = Query { client: Some("web".into()), ..Query::default() };
        assert!(Filter::new(&client).unwrap_err().starts_with("client: \"web\" is no address"));
        let state = |text: &str| Filter::new(&Query { state: Some(text.into()), ..Query::default() });
        assert_eq!(state("established").unwrap().state, Some(State::Established));
        assert!(
            state("open")
                .unwrap_err()
                .starts_with("state: \"open\" is no state; known are NONE, ESTABLISHED")
        );
        let server = |text: &str| Filter::new(&Query { server: Some(text.into()), ..Query::default() });
        assert_eq!(server("rs1").unwrap().server, Some(Server::Named("rs1".into())));
        assert!(matches!(server("10.0.0.11:80").unwrap().server, Some(Server::At(_))));
    }
}
