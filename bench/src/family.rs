//! What differs between IPv4 and IPv6 for a benchmark: addresses, and where a flow stands in a frame.

use shunt_dataplane::flow::Flows;
use shunt_dataplane::ip::Ip;
use shunt_dataplane::pipeline::Pipeline;
use shunt_dataplane::tuple::{Endpoint, Protocol, Tuple, V4, V6};

use crate::wire::{Feed, Header, HeaderV4, HeaderV6, Series};

/// The bytes of a frame in which its addresses and ports are, in either version: Ethernet, IPv6, ports.
pub const HEAD_BYTES: usize = 14 + 40 + 4;

/// An IP version, named by its address.
pub trait Family: Ip {
    /// What it is called.
    const NAME: &'static str;
    /// What distinguishes one flow's frames from another's.
    type Header: Header;

    /// The address that `bits` are in IPv4, or the one like it in 2001:db8::/96.
    fn address(bits: u32) -> Self;

    /// A worker's connections of this version.
    fn flows(pipeline: &Pipeline) -> &Flows<Self>;

    /// The source's way of sending such frames.
    fn feed(series: Series<Self::Header>) -> Feed;

    /// Addresses and ports at the beginning of an untagged frame; for a tunnelled one those of the outer header and
    /// no ports.
    fn tuple(head: &[u8; HEAD_BYTES]) -> Tuple<Self>;
}

impl Family for V4 {
    const NAME: &'static str = "ipv4";
    type Header = HeaderV4;

    fn address(bits: u32) -> Self {
        Self(bits)
    }

    fn flows(pipeline: &Pipeline) -> &Flows<Self> {
        pipeline.flows_v4()
    }

    fn feed(series: Series<HeaderV4>) -> Feed {
        Feed::V4(series)
    }

    fn tuple(head: &[u8; HEAD_BYTES]) -> Tuple<Self> {
        tuple(head[23], Self(word(head, 26)), Self(word(head, 30)), word(head, 34))
    }
}

impl Family for V6 {
    const NAME: &'static str = "ipv6";
    type Header = HeaderV6;

    fn address(bits: u32) -> Self {
        Self([0x2001_0db8, 0, 0, bits])
    }

    fn flows(pipeline: &Pipeline) -> &Flows<Self> {
        pipeline.flows_v6()
    }

    fn feed(series: Series<HeaderV6>) -> Feed {
        Feed::V6(series)
    }

    fn tuple(head: &[u8; HEAD_BYTES]) -> Tuple<Self> {
        let address = |at| Self(std::array::from_fn(|part| word(head, at + 4 * part)));
        tuple(head[20], address(22), address(38), word(head, 54))
    }
}

fn word(head: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|byte| head[at + byte]))
}

fn tuple<A: Family>(protocol: u8, src: A, dst: A, ports: u32) -> Tuple<A> {
    let protocol = Protocol::from_number(protocol);
    let [src_port, dst_port] = protocol.map_or([0, 0], |_| [(ports >> 16) as u16, ports as u16]);
    Tuple {
        src: Endpoint::new(src, src_port),
        dst: Endpoint::new(dst, dst_port),
        protocol: protocol.unwrap_or(Protocol::Tcp),
    }
}
