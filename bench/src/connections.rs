//! Opens connections as clients and servers do, through the director that is measured, and makes the frames of the
//! established ones.

use anyhow::{Context as _, ensure};
use shunt_dataplane::conn::State;
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Protocol, Tuple, V4};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags::{ACK, PSH, SYN};

use crate::director::{self, ROUTER, US};
use crate::rig::Rig;
use crate::wire::{FRAME_BYTES, Feed, Header};

/// Established connections of one mode, as seen from outside.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    /// What clients send.
    pub requests: Vec<Tuple<V4>>,
    /// What servers answer; none where answers do not pass the director.
    pub replies: Vec<Tuple<V4>>,
}

/// Opens connections of the clients in `clients` with the three packets of TCP's handshake.
///
/// # Errors
/// When a packet is not forwarded or a connection is not established afterwards.
pub fn open(
    rig: &mut Rig<Pipeline>,
    mode: Mode,
    clients: std::ops::Range<u32>,
) -> anyhow::Result<Connections> {
    let requests = requests(mode, clients);
    let before = established(rig);
    let sent = forward(rig, &requests, SYN).context("opening connections: SYN")?;
    // What left for the server, turned round, is what the server answers; for NAT and FULLNAT alone it comes here.
    let replies: Vec<_> = match mode.sees_replies() {
        true => sent.into_iter().map(Tuple::reversed).collect(),
        false => Vec::new(),
    };
    forward(rig, &replies, SYN | ACK).context("opening connections: SYN and ACK")?;
    forward(rig, &requests, ACK).context("opening connections: ACK")?;
    let opened = established(rig) - before;
    ensure!(opened == requests.len(), "{opened} of {} connections are established", requests.len());
    Ok(Connections { requests, replies })
}

/// The first packet of each of the clients in `clients`.
pub fn syns(mode: Mode, clients: std::ops::Range<u32>) -> Feed {
    feed(&requests(mode, clients), SYN)
}

/// What the clients in `clients` send.
fn requests(mode: Mode, clients: std::ops::Range<u32>) -> Vec<Tuple<V4>> {
    let vip = director::vip(mode);
    clients.map(|index| Tuple { src: director::client(index), dst: vip, protocol: Protocol::Tcp }).collect()
}

/// Sends one segment for every tuple; what left for each, in order.
fn forward(rig: &mut Rig<Pipeline>, tuples: &[Tuple<V4>], flags: u8) -> anyhow::Result<Vec<Tuple<V4>>> {
    if tuples.is_empty() {
        return Ok(Vec::new());
    }
    rig.wire().watch(tuples.len());
    rig.receive_all(feed(tuples, flags));
    let seen = rig.wire().seen();
    ensure!(seen.len() == tuples.len(), "{} of {} packets were forwarded", seen.len(), tuples.len());
    Ok(seen)
}

fn established(rig: &Rig<Pipeline>) -> usize {
    let mut count = 0;
    rig.worker().program().flows_v4().table().scan(0, u32::MAX, |_, conn| {
        count += usize::from(conn.state == State::Established as u8);
    });
    count
}

impl Connections {
    /// Data in both directions in a pseudo-random order that is the same every time.
    pub fn data(&self) -> Feed {
        let mut tuples: Vec<_> = self.requests.iter().chain(&self.replies).copied().collect();
        shuffle(&mut tuples);
        feed(&tuples, ACK | PSH)
    }
}

/// One segment with `flags` for every tuple.
fn feed(tuples: &[Tuple<V4>], flags: u8) -> Feed {
    let headers = tuples.iter().map(|tuple| Header::of(&segment(tuple, flags))).collect();
    Feed::Headers { base: segment(&tuples[0], flags), headers }
}

/// A TCP segment that fills a benchmark's frame.
fn segment(tuple: &Tuple<V4>, flags: u8) -> [u8; FRAME_BYTES] {
    let payload = [0x5a; FRAME_BYTES - 14 - 20 - 20];
    let frame = PacketBuilder::tuple(tuple).link(ROUTER, US).flags(flags).payload(payload).build();
    frame.try_into().expect("headers and payload fill the frame")
}

/// Fisher and Yates's shuffle, driven by Marsaglia's xorshift.
pub(crate) fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        items.swap(last, (state % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_keeps_every_item_and_not_their_order() {
        let mut items: Vec<_> = (0..1000).collect();
        shuffle(&mut items);
        assert!(items.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() < 10);
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}
