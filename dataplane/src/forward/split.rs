//! Cutting an IPv4 packet into fragments for a smaller MTU (RFC 791 §3.2).

use arrayvec::ArrayVec;
use shunt_engine::Frame;

use crate::wire::checksum;

/// Parts a packet may be cut into: a full frame of 4 KiB for the smallest MTU with room to spare for its options.
const PARTS_MAX: usize = 64;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// One part of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    header: &'a [u8],
    payload: &'a [u8],
    /// Flags and offset field.
    flags_offset: u16,
    first: bool,
}

/// The parts of `packet` (IPv4, its total length and no more) that fit `mtu`; a fragment is cut into smaller ones. `None`
/// when `mtu` has no room for data, or there would be too many.
pub fn fragments(packet: &[u8], mtu: u16) -> Option<ArrayVec<Part<'_>, PARTS_MAX>> {
    let header_len = usize::from(packet[0] & 15) * 4;
    let (header, payload) = packet.split_at(header_len);
    let step = usize::from(mtu).checked_sub(header_len)? & !7;
    if step == 0 || payload.len().div_ceil(step) > PARTS_MAX {
        return None;
    }
    let flags_offset = u16::from_be_bytes([header[6], header[7]]);
    let parts = payload.chunks(step).enumerate().map(|(number, payload_part)| {
        let at = number * step;
        let last = at + payload_part.len() == payload.len();
        let more = if last { flags_offset & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let offset = (flags_offset & OFFSET) + (at / 8) as u16;
        let keep = flags_offset & !(MORE_FRAGMENTS | OFFSET);
        Part {
            header,
            payload: payload_part,
            flags_offset: keep | more | (offset & OFFSET),
            first: number == 0,
        }
    });
    Some(parts.collect())
}

impl Part<'_> {
    /// Writes the part into an empty frame. False when it does not fit.
    pub fn write(&self, frame: &mut Frame) -> bool {
        if !frame.set_len(60 + self.payload.len()) {
            return false;
        }
        let data = frame.data_mut();
        let header_len = self.write_header(data);
        data[header_len..header_len + self.payload.len()].copy_from_slice(self.payload);
        frame.set_len(header_len + self.payload.len())
    }

    fn write_header(&self, out: &mut [u8]) -> usize {
        let header_len = if self.first { self.copy_whole(out) } else { self.copy_lasting(out) };
        let total = (header_len + self.payload.len()) as u16;
        out[0] = 0x40 | (header_len / 4) as u8;
        out[2..4].copy_from_slice(&total.to_be_bytes());
        out[6..8].copy_from_slice(&self.flags_offset.to_be_bytes());
        out[10..12].fill(0);
        let sum = checksum::of(&out[..header_len]);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        header_len
    }

    fn copy_whole(&self, out: &mut [u8]) -> usize {
        out[..self.header.len()].copy_from_slice(self.header);
        self.header.len()
    }

    /// The fixed header and those options that every fragment carries (copied flag, RFC 791 §3.1).
    fn copy_lasting(&self, out: &mut [u8]) -> usize {
        out[..20].copy_from_slice(&self.header[..20]);
        let (mut from, mut to) = (20, 20);
        while from < self.header.len() {
            let kind = self.header[from];
            let len = match kind {
                0 => break,
                1 => 1,
                _ => usize::from(self.header.get(from + 1).copied().unwrap_or(0)),
            };
            if len == 0 || from + len > self.header.len() {
                break;
            }
            if kind & 0x80 != 0 {
                out[to..to + len].copy_from_slice(&self.header[from..from + len]);
                to += len;
            }
            from += len;
        }
        let padded = to.next_multiple_of(4);
        out[to..padded].fill(0);
        padded
    }
}
