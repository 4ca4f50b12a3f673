//! The classic pcap file format (draft-ietf-opsawg-pcap), as tcpdump writes it with `-w`: a header of 24 bytes, then
//! for every frame one of 16 bytes and its data.
//!
//! ```text
//! magic(4) major(2) minor(2) zone(4) accuracy(4) snaplen(4) linktype(4)
//! seconds(4) micro- or nanoseconds(4) captured(4) original(4)   data(captured)
//! ```

use std::io::{self, Read, Write};

/// Why a file cannot be read as pcap.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("is not a pcap file")]
    NotPcap,
    #[error("is a pcapng file; convert it with: editcap -F pcap IN OUT")]
    PcapNg,
    #[error("has link type {0}; only Ethernet (1) can be read")]
    LinkType(u32),
    #[error("is cut off inside the packet at offset {0}")]
    Truncated(u64),
    #[error("is damaged: the packet at offset {offset} claims {captured} bytes")]
    Damaged { offset: u64, captured: u32 },
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// One packet of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Bytes in the file.
    pub(super) captured: usize,
    /// Bytes on the wire.
    pub(super) original: usize,
}

/// Reads packets in order.
#[derive(Debug)]
pub(super) struct Reader<R> {
    input: R,
    big_endian: bool,
    offset: u64,
}

impl<R: Read> Reader<R> {
    /// Reads and checks the file header.
    pub(super) fn new(mut input: R) -> Result<Self, ReadError> {
        let mut header = [0; 24];
        if fill(&mut input, &mut header)? < header.len() {
            return Err(ReadError::NotPcap);
        }
        let magic = [header[0], header[1], header[2], header[3]];
        let big_endian = match u32::from_le_bytes(magic) {
            MAGIC_MICROS | MAGIC_NANOS => false,
            swapped if matches!(swapped.swap_bytes(), MAGIC_MICROS | MAGIC_NANOS) => true,
            MAGIC_PCAPNG => return Err(ReadError::PcapNg),
            _ => return Err(ReadError::NotPcap),
        };
        let reader = Self { input, big_endian, offset: header.len() as u64 };
        // The upper bits tell of a frame check sequence.
        match reader.word(&header, 20) & 0x03ff_ffff {
            ETHERNET => Ok(reader),
            other => Err(ReadError::LinkType(other)),
        }
    }

    /// Reads the next packet into the front of `buffer`; what does not fit is skipped. `None` at the end of the file;
    /// a file that has grown since is read on.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> Result<Option<Record>, ReadError> {
        let mut header = [0; 16];
        match fill(&mut self.input, &mut header)? {
            0 => return Ok(None),
            16 => {}
            _ => return Err(ReadError::Truncated(self.offset)),
        }
        let captured = self.word(&header, 8);
        if captured > SNAPLEN_MAX {
            return Err(ReadError::Damaged { offset: self.offset, captured });
        }
        let record = Record { captured: captured as usize, original: self.word(&header, 12) as usize };
        let wanted = record.captured.min(buffer.len());
        let mut got = fill(&mut self.input, &mut buffer[..wanted])?;
        if got == wanted && record.captured > wanted {
            let rest = (record.captured - wanted) as u64;
            got += io::copy(&mut (&mut self.input).take(rest), &mut io::sink())? as usize;
        }
        if got < record.captured {
            return Err(ReadError::Truncated(self.offset));
        }
        self.offset += header.len() as u64 + u64::from(captured);
        Ok(Some(record))
    }

    fn word(&self, bytes: &[u8], at: usize) -> u32 {
        let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        if self.big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
    }
}

/// Reads until `buffer` is full or the input ends; returns how much.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes packets in order, with nanosecond timestamps.
#[derive(Debug)]
pub(super) struct Writer<W> {
    output: W,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the file header.
    pub(super) fn new(mut output: W) -> io::Result<Self> {
        let words = [MAGIC_NANOS, VERSION, 0, 0, SNAPLEN_MAX, ETHERNET];
        output.write_all(&words.map(u32::to_le_bytes).concat())?;
        Ok(Self { output, written: 0 })
    }

    /// Writes a packet. Its timestamp is its number in the file, in nanoseconds.
    pub(super) fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let len = frame.len() as u32;
        let (seconds, nanos) = (self.written / NANOS_PER_SECOND, self.written % NANOS_PER_SECOND);
        let mut header = [0; 16];
        for (to, word) in header.chunks_exact_mut(4).zip([seconds as u32, nanos as u32, len, len]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.output.write_all(&header)?;
        self.output.write_all(frame)?;
        self.written += 1;
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

const MAGIC_MICROS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOS: u32 = 0xa1b2_3c4d;
const MAGIC_PCAPNG: u32 = 0x0a0d_0d0a;
/// Major 2, minor 4, as two little-endian halves.
const VERSION: u32 = 4 << 16 | 2;
const ETHERNET: u32 = 1;
/// What libpcap takes for the longest possible packet.
const SNAPLEN_MAX: u32 = 262_144;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(magic: u32, big_endian: bool, linktype: u32, packets: &[(&[u8], u32)]) -> Vec<u8> {
        let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut file: Vec<u8> =
            [magic, VERSION, 0, 0, 65535, linktype].iter().flat_map(|&w| word(w)).collect();
        for (data, original) in packets {
            file.extend([1, 2, data.len() as u32, *original].iter().flat_map(|&w| word(w)));
            file.extend(*data);
        }
        file
    }

    fn refusal(file: &[u8]) -> String {
        Reader::new(file).unwrap_err().to_string()
    }

    #[test]
    fn both_byte_orders_and_both_resolutions_are_read() {
        for magic in [MAGIC_MICROS, MAGIC_NANOS] {
            for big_endian in [false, true] {
                let file = file(magic, big_endian, ETHERNET, &[(b"first", 5), (b"sec", 900)]);
                let mut reader = Reader::new(&file[..]).unwrap();
                let mut buffer = [0; 16];
                let first = reader.next(&mut buffer).unwrap();
                assert_eq!(first, Some(Record { captured: 5, original: 5 }));
                assert_eq!(&buffer[..5], b"first");
                let second = reader.next(&mut buffer).unwrap();
                assert_eq!(second, Some(Record { captured: 3, original: 900 }));
                assert_eq!(&buffer[..3], b"sec");
                assert_eq!(reader.next(&mut buffer).unwrap(), None);
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_buffer_is_skipped() {
        let file = file(MAGIC_NANOS, false, ETHERNET, &[(&[7; 100], 100), (b"next", 4)]);
        let mut reader = Reader::new(&file[..]).unwrap();
        let mut buffer = [0; 10];
        assert_eq!(reader.next(&mut buffer).unwrap(), Some(Record { captured: 100, original: 100 }));
        reader.next(&mut buffer).unwrap();
        assert_eq!(&buffer[..4], b"next");
    }

    #[test]
    fn other_files_are_refused_by_name() {
        assert_eq!(refusal(b"short"), "is not a pcap file");
        assert_eq!(refusal(&[0x55; 24]), "is not a pcap file");
        let pcapng = file(MAGIC_PCAPNG, false, ETHERNET, &[]);
        assert_eq!(refusal(&pcapng), "is a pcapng file; convert it with: editcap -F pcap IN OUT");
        let raw_ip = file(MAGIC_MICROS, true, 101, &[]);
        assert_eq!(refusal(&raw_ip), "has link type 101; only Ethernet (1) can be read");
    }

    #[test]
    fn a_file_cut_anywhere_says_where_its_last_packet_begins() {
        let whole = file(MAGIC_MICROS, false, ETHERNET, &[(b"first", 5), (b"second", 6)]);
        let second = 24 + 16 + 5;
        for len in second + 1..whole.len() {
            let mut reader = Reader::new(&whole[..len]).unwrap();
            let mut buffer = [0; 4];
            reader.next(&mut buffer).unwrap();
            let error = reader.next(&mut buffer).unwrap_err().to_string();
            assert_eq!(error, format!("is cut off inside the packet at offset {second}"));
        }
    }

    #[test]
    fn an_absurd_length_is_damage() {
        let mut file = file(MAGIC_MICROS, false, ETHERNET, &[(b"first", 5)]);
        file[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = Reader::new(&file[..]).unwrap().next(&mut [0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "is damaged: the packet at offset 24 claims 4294967295 bytes");
    }

    #[test]
    fn what_was_written_is_read_back_with_rising_timestamps() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).unwrap();
        writer.write(b"one").unwrap();
        writer.write(b"three").unwrap();
        let times: Vec<_> = [24, 24 + 16 + 3].map(|at| file[at..at + 8].to_vec()).into();
        assert_eq!(times, [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]]);
        let mut reader = Reader::new(&file[..]).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(reader.next(&mut buffer).unwrap(), Some(Record { captured: 3, original: 3 }));
        assert_eq!(reader.next(&mut buffer).unwrap(), Some(Record { captured: 5, original: 5 }));
        assert_eq!(&buffer[..5], b"three");
    }
}
