//! What differs between IPv4 and IPv6 on a packet's way, beyond where things are in the headers.
//!
//! Everything that handles flows is written once, over [`Ip`]; each worker has one instance per version.

use shunt_engine::Frame;

use crate::classify::{self, FragmentKey, Meta};
use crate::forward::{NoHeadroom, split, tun};
use crate::icmp::{self, Quoted, Tunnelled};
use crate::tuple::{Protocol, V4, V6};
use crate::wire::extension::walk;
use crate::wire::{Family, ipip, ipv6};
use crate::{emit, wire};

/// An IP version, named by its address.
pub trait Ip: Family {
    /// Bytes of a packet that every link carries whole, and the least that a sender can be asked to keep to.
    const MTU_MIN: u16;
    /// Bytes that a tunnel adds to a packet.
    const TUNNEL_OVERHEAD: u16;
    /// A packet of so many bytes passes a tunnel whatever the MTU of its way: if need be the packet around it is cut.
    const TUNNEL_CARRIES: u16;
    /// Whether the checksum of an ICMP message covers the addresses of the packet it is in.
    const ICMP_COVERS_ADDRESSES: bool;
    /// Type of the ICMP error "destination unreachable" (RFC 792, RFC 4443 §3.1).
    const ICMP_UNREACHABLE: u8;

    /// Bytes of a header without options or extension headers.
    const HEADER_LEN: usize;

    /// Whether the address can be that of a single host.
    fn is_host(self) -> bool;

    /// Writes the header of a TCP packet of our own, `payload_len` bytes behind it.
    fn write_header(out: &mut [u8], src: Self, dst: Self, payload_len: u16);

    /// What names the packet of which `packet`, with its IP header, is a fragment.
    fn fragment_key(packet: &[u8]) -> Option<FragmentKey<Self>>;

    /// Whether a fragment of the packet `key` may be one of TCP or UDP.
    fn may_be_balanced(key: &FragmentKey<Self>) -> bool;

    /// Puts the packet behind `l2_len` bytes of link header, which go, into another from `src` to `dst`. `id` is the
    /// identification of the outer header, if the version has one.
    ///
    /// # Errors
    /// [`NoHeadroom`], also for bytes that are no packet; the frame is then unchanged.
    fn encapsulate(frame: &mut Frame, l2_len: usize, src: Self, dst: Self, id: u16)
    -> Result<(), NoHeadroom>;

    /// The fragments of `packet` that fit `mtu`; see [`split`]. `id` is their identification, if the version has one that
    /// is not the packet's.
    fn fragments(packet: &[u8], mtu: u16, id: u32) -> Option<split::Fragments<'_>>;

    /// Writes the RST that answers the TCP segment in `packet`; see [`emit`].
    #[must_use]
    fn reset(out: &mut Frame, packet: &[u8]) -> bool;

    /// Whether an ICMP error may be sent about `packet`.
    fn may_answer(packet: &[u8]) -> bool;

    /// Writes an ICMP error from `source` about `packet`; see [`icmp`].
    #[must_use]
    fn icmp_error(out: &mut Frame, error: icmp::Error, source: Self, packet: &[u8]) -> bool;

    /// Reads the packet that the ICMP error in `frame` is about; see [`icmp`].
    fn quoted(frame: &[u8], meta: &Meta) -> Option<Quoted<Self>>;

    /// Reads the packet in a tunnel that the ICMP error in `frame` is about; see [`icmp`].
    fn tunnelled(frame: &[u8], meta: &Meta) -> Option<Tunnelled<Self>>;
}

impl Ip for V4 {
    const MTU_MIN: u16 = icmp::v4::MTU_MIN;
    const TUNNEL_OVERHEAD: u16 = ipip::OVERHEAD;
    /// RFC 2003 §5.1: a packet that must not be cut inside must not be outside.
    const TUNNEL_CARRIES: u16 = 0;
    const ICMP_COVERS_ADDRESSES: bool = false;
    const ICMP_UNREACHABLE: u8 = 3;
    const HEADER_LEN: usize = wire::ipv4::HEADER_LEN;

    fn write_header(out: &mut [u8], src: Self, dst: Self, payload_len: u16) {
        let header = wire::ipv4::Repr {
            tos: 0,
            payload_len,
            id: 0,
            dont_fragment: true,
            ttl: emit::TTL,
            protocol: 6,
            src,
            dst,
        };
        out.copy_from_slice(&header.emit());
    }

    fn is_host(self) -> bool {
        emit::is_host(self)
    }

    fn fragment_key(packet: &[u8]) -> Option<FragmentKey<Self>> {
        let header = wire::ipv4::Packet::new_header(packet).ok()?;
        let (src, dst) = (header.src(), header.dst());
        Some(FragmentKey { src, dst, id: header.id().into(), protocol: header.protocol() })
    }

    fn may_be_balanced(key: &FragmentKey<Self>) -> bool {
        Protocol::from_number(key.protocol).is_some()
    }

    #[inline]
    fn encapsulate(
        frame: &mut Frame,
        l2_len: usize,
        src: Self,
        dst: Self,
        id: u16,
    ) -> Result<(), NoHeadroom> {
        tun::encapsulate(frame, l2_len, src, dst, id)
    }

    fn fragments(packet: &[u8], mtu: u16, _id: u32) -> Option<split::Fragments<'_>> {
        split::fragments(packet, mtu)
    }

    fn reset(out: &mut Frame, packet: &[u8]) -> bool {
        emit::reset(out, packet)
    }

    fn may_answer(packet: &[u8]) -> bool {
        icmp::v4::may_answer(packet)
    }

    fn icmp_error(out: &mut Frame, error: icmp::Error, source: Self, packet: &[u8]) -> bool {
        icmp::v4::error(out, error, source, packet)
    }

    fn quoted(frame: &[u8], meta: &Meta) -> Option<Quoted<Self>> {
        icmp::v4::quoted(frame, meta)
    }

    fn tunnelled(frame: &[u8], meta: &Meta) -> Option<Tunnelled<Self>> {
        icmp::v4::tunnelled(frame, meta)
    }
}

impl Ip for V6 {
    const MTU_MIN: u16 = icmp::v6::MTU_MIN;
    const TUNNEL_OVERHEAD: u16 = ipv6::HEADER_LEN as u16;
    /// RFC 2473 §7.1: no sender can be asked for less.
    const TUNNEL_CARRIES: u16 = Self::MTU_MIN;
    const ICMP_COVERS_ADDRESSES: bool = true;
    const ICMP_UNREACHABLE: u8 = 1;
    const HEADER_LEN: usize = ipv6::HEADER_LEN;

    fn write_header(out: &mut [u8], src: Self, dst: Self, payload_len: u16) {
        let header = ipv6::Repr {
            traffic_class: 0,
            flow_label: 0,
            payload_len,
            next_header: 6,
            hop_limit: emit::TTL,
            src,
            dst,
        };
        out.copy_from_slice(&header.emit());
    }

    fn is_host(self) -> bool {
        emit::is_host_v6(self)
    }

    fn fragment_key(packet: &[u8]) -> Option<FragmentKey<Self>> {
        let fragment = walk(packet).ok()?.fragment?;
        let (src, dst) = ipv6::addresses(packet);
        Some(classify::ipv6::fragment_key(src, dst, &fragment))
    }

    fn may_be_balanced(key: &FragmentKey<Self>) -> bool {
        key.protocol == 0
    }

    #[inline]
    fn encapsulate(
        frame: &mut Frame,
        l2_len: usize,
        src: Self,
        dst: Self,
        _id: u16,
    ) -> Result<(), NoHeadroom> {
        tun::encapsulate_v6(frame, l2_len, src, dst)
    }

    /// None is longer than every link carries: an error about a fragment says too little of the packet inside to be of use.
    fn fragments(packet: &[u8], mtu: u16, id: u32) -> Option<split::Fragments<'_>> {
        split::tunnel_fragments(packet, mtu.min(Self::MTU_MIN), id)
    }

    fn reset(out: &mut Frame, packet: &[u8]) -> bool {
        emit::reset_v6(out, packet)
    }

    fn may_answer(packet: &[u8]) -> bool {
        icmp::v6::may_answer(packet)
    }

    fn icmp_error(out: &mut Frame, error: icmp::Error, source: Self, packet: &[u8]) -> bool {
        icmp::v6::error(out, error, source, packet)
    }

    fn quoted(frame: &[u8], meta: &Meta) -> Option<Quoted<Self>> {
        icmp::v6::quoted(frame, meta)
    }

    fn tunnelled(frame: &[u8], meta: &Meta) -> Option<Tunnelled<Self>> {
        icmp::v6::tunnelled(frame, meta)
    }
}
