//! `udp`: a datagram is answered as it should be; or, when no answer is asked for, nobody says that there is no such port.
//! Silence is a good answer then, and takes the whole timeout.

use std::net::SocketAddr;

use rustix::net::SocketType;
use tokio::time::timeout_at;

use super::pattern::Pattern;
use super::{Failure, Layer, Limit, icmp};

/// A datagram and what is to come back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Udp {
    /// The payload.
    pub send: Vec<u8>,
    /// What must be in the answer; `None`: there need not be one.
    pub expect: Option<Pattern>,
}

/// Not the datagram that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// An answer without what must be in it.
    #[error("no {0} in the answer")]
    Answer(String),
}

/// Bytes of a datagram that are looked at: as many as one has.
const ANSWER_MAX: usize = 1 << 16;

impl Udp {
    pub(super) async fn ask(&self, address: SocketAddr, limit: Limit) -> Result<(), Failure> {
        let failed = |error| Failure::connecting(&error, limit.timeout);
        let socket = icmp::connected(address, SocketType::DGRAM, None).await?;
        let mut answer = vec![0; ANSWER_MAX];
        let asking = async {
            socket.send(&self.send).await?;
            socket.recv(&mut answer).await
        };
        match (timeout_at(limit.deadline, asking).await, &self.expect) {
            (Ok(Err(error)), _) => Err(failed(error)),
            (Ok(Ok(len)), Some(expect)) if !expect.is_in(&answer[..len]) => {
                Err(Wrong::Answer(expect.to_string()).into())
            }
            (Err(_), Some(_)) => Err(Failure::NoAnswer(Layer::L4, limit.timeout)),
            (Ok(Ok(_)), _) | (Err(_), None) => Ok(()),
        }
    }
}
