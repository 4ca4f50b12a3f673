//! How long frames are.

use std::str::FromStr;

/// Lengths of a benchmark's frames in memory, from the destination link address to the last byte of payload. The frame
/// check sequence is not there: on the wire a frame is 4 bytes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All frames are so long, or as long as their headers if those are longer (74 bytes in IPv6).
    Bytes(u16),
    /// The "Internet mix" as testers have it: of twelve frames seven are 64 bytes long, four 576, one 1500.
    Imix,
}

/// The shortest and the longest frame.
const BYTES_ALLOWED: std::ops::RangeInclusive<u16> = 64..=1500;

impl Size {
    /// The lengths of the first frames, of which the others are repetitions.
    pub const fn pattern(&self) -> &[u16] {
        match self {
            Self::Bytes(bytes) => std::slice::from_ref(bytes),
            Self::Imix => &[64, 64, 576, 64, 64, 576, 64, 64, 576, 64, 576, 1500],
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word.parse() {
            Ok(bytes) if BYTES_ALLOWED.contains(&bytes) => Ok(Self::Bytes(bytes)),
            _ if word == "imix" => Ok(Self::Imix),
            _ => Err(format!("a length from {} to {}, or imix", BYTES_ALLOWED.start(), BYTES_ALLOWED.end())),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(out),
            Self::Imix => "imix".fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_internet_mix_is_seven_to_four_to_one() {
        let count = |bytes| Size::Imix.pattern().iter().filter(|&&length| length == bytes).count();
        assert_eq!([64, 576, 1500].map(count), [7, 4, 1]);
        assert_eq!(Size::Imix.pattern().len(), 12);
    }

    #[test]
    fn lengths_are_read_as_they_are_written() {
        assert_eq!(
            ["64", "1500", "imix"].map(|word| word.parse::<Size>().unwrap().to_string()),
            ["64", "1500", "imix"]
        );
        for wrong in ["63", "1501", "mix", "", "-64"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
