//! IPv6 extension headers, RFC 8200 §4: the chain that leads from the IPv6 header to the transport header.

use shunt_engine::steer::HEADERS_MAX;

use super::{get_u16, get_u32, ipv6};

/// Numbers of the extension headers that are walked over.
pub mod kind {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication (RFC 4302).
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// Bytes of a fragment header, and of the shortest of the others.
pub const HEADER_LEN: usize = 8;

/// Whether `number` is that of an extension header that is walked over.
#[inline]
pub const fn is_extension(number: u8) -> bool {
    use kind::{AUTHENTICATION, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// What a fragment header says.
///
/// ```text
///  0                   1                   2                   3
///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |  Next Header  |   Reserved    |      Fragment Offset    |Res|M|
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// |                         Identification                        |
/// +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in bytes of the data behind the header.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// Which packet.
    pub id: u32,
    /// The number of what follows the header in the whole packet, as this fragment has it.
    pub next_header: u8,
}

/// Where the chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// The number of what is there. Behind the fragment header of a later fragment: of what the whole packet has.
    pub protocol: u8,
    /// Its offset from the start of the IPv6 header.
    pub at: usize,
    /// The fragment header, if there is one.
    pub fragment: Option<Fragment>,
}

/// Why the chain could not be walked to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A header goes beyond the bytes.
    Truncated,
    /// A routing header has segments left: the destination is but a station of the way.
    Underway,
    /// There are more than [`HEADERS_MAX`].
    TooMany,
}

/// Walks the chain of `packet`, which begins with an IPv6 header. A later fragment's chain ends at its fragment header:
/// what follows that is somewhere in the middle of the packet.
///
/// # Errors
/// [`Broken`].
#[inline]
pub fn walk(packet: &[u8]) -> Result<Upper, Broken> {
    if packet.len() < ipv6::HEADER_LEN {
        return Err(Broken::Truncated);
    }
    let mut upper = Upper { protocol: packet[6], at: ipv6::HEADER_LEN, fragment: None };
    for _ in 0..HEADERS_MAX {
        if !is_extension(upper.protocol) {
            return Ok(upper);
        }
        let rest = packet.get(upper.at..).ok_or(Broken::Truncated)?;
        let header: &[u8; HEADER_LEN] = rest.first_chunk().ok_or(Broken::Truncated)?;
        let next_header = header[0];
        let len = match upper.protocol {
            kind::FRAGMENT => {
                let (offset, id) = (get_u16(header, 2), get_u32(header, 4));
                let more = offset & 1 != 0;
                upper.fragment = Some(Fragment { offset: offset & !7, more, id, next_header });
                HEADER_LEN
            }
            kind::ROUTING if header[3] != 0 => return Err(Broken::Underway),
            kind::AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        upper.protocol = next_header;
        upper.at += len;
        if upper.at > packet.len() {
            return Err(Broken::Truncated);
        }
        if upper.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return Ok(upper);
        }
    }
    if is_extension(upper.protocol) { Err(Broken::TooMany) } else { Ok(upper) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv6 header and what follows, each extension as (its number, its bytes but for the next header).
    fn packet(chain: &[(u8, Vec<u8>)], last: u8) -> Vec<u8> {
        let mut bytes = vec![0; ipv6::HEADER_LEN];
        bytes[0] = 0x60;
        bytes[6] = chain.first().map_or(last, |&(number, _)| number);
        for (place, (_, body)) in chain.iter().enumerate() {
            bytes.push(chain.get(place + 1).map_or(last, |&(number, _)| number));
            bytes.extend(body);
        }
        bytes
    }

    fn options(number: u8, units: u8) -> (u8, Vec<u8>) {
        let mut body = vec![0; usize::from(units) * 8 + 7];
        body[0] = units;
        (number, body)
    }

    fn fragment(offset: u16, more: bool, id: u32) -> (u8, Vec<u8>) {
        let field = (offset | u16::from(more)).to_be_bytes();
        (kind::FRAGMENT, [&[0], &field[..], &id.to_be_bytes()[..]].concat())
    }

    #[test]
    fn a_chain_leads_to_the_transport_header() {
        let upper = |protocol, at| Ok(Upper { protocol, at, fragment: None });
        assert_eq!(walk(&packet(&[], 6)), upper(6, 40));
        assert_eq!(walk(&packet(&[options(kind::HOP_BY_HOP, 0)], 17)), upper(17, 48));
        let chain = [options(kind::HOP_BY_HOP, 0), options(kind::ROUTING, 2), options(kind::DESTINATION, 1)];
        assert_eq!(walk(&packet(&chain, 58)), upper(58, 40 + 8 + 24 + 16));
        let authentication = (kind::AUTHENTICATION, [&[4][..], &[0; 22]].concat());
        assert_eq!(walk(&packet(&[authentication], 6)), upper(6, 40 + 24));
    }

    #[test]
    fn a_first_fragment_leads_on_and_a_later_one_ends() {
        let first = Fragment { offset: 0, more: true, id: 0xdead_beef, next_header: kind::DESTINATION };
        let chain = [fragment(0, true, 0xdead_beef), options(kind::DESTINATION, 0)];
        assert_eq!(walk(&packet(&chain, 6)), Ok(Upper { protocol: 6, at: 56, fragment: Some(first) }));
        let later = Fragment { offset: 1448, more: false, id: 7, next_header: kind::DESTINATION };
        let chain = [options(kind::HOP_BY_HOP, 0), fragment(1448, false, 7)];
        let upper = Upper { protocol: kind::DESTINATION, at: 56, fragment: Some(later) };
        assert_eq!(walk(&packet(&chain, kind::DESTINATION)), Ok(upper));
    }

    #[test]
    fn a_chain_that_is_too_long_or_cut_off_is_broken() {
        let chain = |count| vec![options(kind::DESTINATION, 0); count];
        assert!(walk(&packet(&chain(HEADERS_MAX), 6)).is_ok());
        assert_eq!(walk(&packet(&chain(HEADERS_MAX + 1), 6)), Err(Broken::TooMany));
        let whole = packet(&[options(kind::ROUTING, 0), fragment(0, true, 1)], 6);
        (0..whole.len()).for_each(|len| assert_eq!(walk(&whole[..len]), Err(Broken::Truncated), "{len}"));
        let mut underway = packet(&[options(kind::ROUTING, 0)], 6);
        underway[43] = 1;
        assert_eq!(walk(&underway), Err(Broken::Underway));
        let beyond = packet(&[(kind::ROUTING, vec![200, 0, 0, 0, 0, 0, 0])], kind::DESTINATION);
        assert_eq!(walk(&beyond), Err(Broken::Truncated));
    }
}
