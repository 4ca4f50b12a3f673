//! Opens connections as clients and servers do, through the director that is measured, and makes the frames of the
//! established ones.

use anyhow::{Context as _, ensure};
use shunt_dataplane::conn::State;
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::{Address, Endpoint, Protocol, Tuple};
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags::{ACK, PSH, SYN};

use crate::director::{self, ROUTER, US};
use crate::family::Family;
use crate::rig::Rig;
use crate::size::Size;
use crate::wire::{Feed, Series};

/// Established connections of one mode, as seen from outside.
#[derive(Clone, Debug, Default)]
pub struct Connections<A: Address> {
    /// What clients send.
    pub requests: Vec<Tuple<A>>,
    /// What servers answer; none where answers do not pass the director.
    pub replies: Vec<Tuple<A>>,
}

/// Frames that are fed at once while connections are opened: what is noted of them takes memory.
const AT_ONCE: usize = 1 << 20;

/// Opens connections of the clients with these numbers with the three packets of TCP's handshake.
///
/// # Errors
/// When a packet is not forwarded or a connection is not established afterwards.
pub fn open<A: Family>(
    rig: &mut Rig<Pipeline>,
    mode: Mode,
    clients: impl Iterator<Item = u32>,
) -> anyhow::Result<Connections<A>> {
    let requests = requests(clients, director::vip(mode));
    let before = established::<A>(rig);
    let mut replies = Vec::new();
    // Some of them at a time: a handshake has a minute, which is soon over where the machine has more to do.
    for requests in requests.chunks(AT_ONCE) {
        let sent = forward(rig, requests, SYN).context("opening connections: SYN")?;
        // What left for the server, turned round, is what the server answers; for NAT and FULLNAT alone it comes here.
        let answers: Vec<_> = match mode.sees_replies() {
            true => sent.into_iter().map(Tuple::reversed).collect(),
            false => Vec::new(),
        };
        forward(rig, &answers, SYN | ACK).context("opening connections: SYN and ACK")?;
        forward(rig, requests, ACK).context("opening connections: ACK")?;
        replies.extend(answers);
    }
    let opened = established::<A>(rig) - before;
    ensure!(opened == requests.len(), "{opened} of {} connections are established", requests.len());
    Ok(Connections { requests, replies })
}

/// The first packet of each of the clients with these numbers.
pub fn syns<A: Family>(mode: Mode, clients: impl Iterator<Item = u32>) -> Feed {
    feed(&requests::<A>(clients, director::vip(mode)), SYN, Size::Bytes(64))
}

/// What the clients with these numbers send to `to`.
pub fn requests<A: Family>(clients: impl Iterator<Item = u32>, to: Endpoint<A>) -> Vec<Tuple<A>> {
    clients.map(|index| Tuple { src: director::client(index), dst: to, protocol: Protocol::Tcp }).collect()
}

/// Sends one segment for every tuple; what left for each, in order.
fn forward<A: Family>(
    rig: &mut Rig<Pipeline>,
    tuples: &[Tuple<A>],
    flags: u8,
) -> anyhow::Result<Vec<Tuple<A>>> {
    let mut sent = Vec::with_capacity(tuples.len());
    for tuples in tuples.chunks(AT_ONCE) {
        rig.wire().watch(tuples.len());
        rig.receive_all(feed(tuples, flags, Size::Bytes(64)));
        let seen = rig.wire().seen();
        ensure!(seen.len() == tuples.len(), "{} of {} packets were forwarded", seen.len(), tuples.len());
        sent.extend(seen.iter().map(A::tuple));
    }
    Ok(sent)
}

fn established<A: Family>(rig: &Rig<Pipeline>) -> usize {
    let mut count = 0;
    A::flows(rig.worker().program()).table().scan(0, u32::MAX, |_, conn| {
        count += usize::from(conn.state == State::Established as u8);
    });
    count
}

impl<A: Family> Connections<A> {
    /// Data in both directions in a pseudo-random order that is the same every time.
    pub fn data(&self, size: Size) -> Feed {
        let mut tuples: Vec<_> = self.requests.iter().chain(&self.replies).copied().collect();
        shuffle(&mut tuples);
        feed(&tuples, ACK | PSH, size)
    }

    /// Share of its frames that are servers' answers.
    pub fn reply_share(&self) -> f64 {
        self.replies.len() as f64 / (self.requests.len() + self.replies.len()) as f64
    }
}

/// One segment with `flags` for every tuple.
pub fn feed<A: Family>(tuples: &[Tuple<A>], flags: u8, size: Size) -> Feed {
    A::feed(Series::new(tuples.len(), size, |number, bytes| segment(&tuples[number], flags, bytes)))
}

/// A TCP segment of zeros that fills a frame of `bytes`.
fn segment<A: Family>(tuple: &Tuple<A>, flags: u8, bytes: usize) -> Vec<u8> {
    let payload = vec![0; bytes - 14 - A::HEADER_LEN - 20];
    PacketBuilder::tuple(tuple).link(ROUTER, US).flags(flags).payload(payload).build()
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
    use shunt_dataplane::tuple::{V4, V6};
    use shunt_engine::Mempool;
    use shunt_engine::mempool::PoolConfig;

    use super::*;

    fn frames_are_what_the_builder_makes<A: Family>(bytes_min: usize) {
        let tuple = |index| Tuple {
            src: director::client::<A>(index),
            dst: director::vip(Mode::Nat),
            protocol: Protocol::Tcp,
        };
        let mut pool = Mempool::single(PoolConfig { chunks: 40, ..PoolConfig::default() }).unwrap();
        for (count, size) in
            [(1, Size::Bytes(64)), (40, Size::Bytes(1500)), (5, Size::Imix), (40, Size::Imix)]
        {
            let tuples: Vec<_> = (0..count).map(tuple).collect();
            let feed = feed(&tuples, ACK, size);
            let pattern = size.pattern();
            assert_eq!(feed.len(), tuples.len().max(pattern.len()));
            let mut frames: Vec<_> = (0..feed.len()).map(|_| pool.alloc().unwrap()).collect();
            let (first, rest) = frames.split_at_mut(feed.len() / 3);
            feed.write(first.len(), rest);
            feed.write(0, first);
            for (number, frame) in frames.iter().enumerate() {
                let bytes = usize::from(pattern[number % pattern.len()]).max(bytes_min);
                let tuple = &tuples[number % tuples.len()];
                assert_eq!(frame.data(), segment(tuple, ACK, bytes), "{size} {number}");
                assert_eq!(A::tuple(frame.data().first_chunk().unwrap()), *tuple);
            }
            pool.free_all(frames);
        }
    }

    #[test]
    fn the_source_writes_whole_frames_with_correct_checksums_in_every_size() {
        frames_are_what_the_builder_makes::<V4>(64);
        frames_are_what_the_builder_makes::<V6>(74);
    }

    #[test]
    fn a_shuffle_keeps_every_item_and_not_their_order() {
        let mut items: Vec<_> = (0..1000).collect();
        shuffle(&mut items);
        assert!(items.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() < 10);
        items.sort_unstable();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}
