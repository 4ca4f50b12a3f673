//! A port on files: receives the packets of one pcap file and writes what is sent to another.
//!
//! For replaying and looking, not for speed: a worker waits for the disk. A port knows no time, so the timestamps of
//! the written file only count its packets, in nanoseconds; timestamps of the file that is read are ignored.

mod file;

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::burst::Burst;
use crate::mempool::Mempool;
use crate::port::{
    FRAME_OVERHEAD, MacAddr, Port, PortCaps, PortError, QueuePair, RxQueue, RxStats, TxQueue, TxStats,
};
use crate::rss::Unknown;
use crate::steer::Rule;
use file::{ReadError, Reader, Writer};

/// Which files a [`PcapPort`] stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcapConfig {
    /// The file whose packets are received; without it there are none.
    pub read: Option<PathBuf>,
    /// The file to write what is sent to, replaced if it exists; without it what is sent is gone.
    pub write: Option<PathBuf>,
    /// The station address to have.
    pub mac: MacAddr,
    /// Largest layer-3 packet in bytes.
    pub mtu: u16,
}

/// A port with one queue on pcap files.
#[derive(Debug)]
pub struct PcapPort {
    caps: PortCaps,
    queue: Option<(PcapRx, PcapTx)>,
    progress: Arc<Progress>,
}

/// What the receiving worker has found, for the control side.
#[derive(Debug, Default)]
struct Progress {
    at_end: AtomicBool,
    failed: OnceLock<ReadError>,
}

impl PcapPort {
    /// Opens the files.
    ///
    /// # Errors
    /// [`PortError::Other`] for a file that is not classic pcap with Ethernet frames, [`PortError::Io`] for one that
    /// cannot be opened or written.
    pub fn open(config: PcapConfig) -> Result<Self, PortError> {
        let PcapConfig { read, write, mac, mtu } = config;
        let label = read.as_ref().or(write.as_ref()).map_or_else(|| "pcap".into(), |path| shown(path));
        let progress = Arc::new(Progress::default());
        progress.at_end.store(read.is_none(), Ordering::Relaxed);
        let reader = read.as_deref().map(open_reader).transpose()?;
        let writer = write.as_deref().map(open_writer).transpose()?;
        let frame_len_max = usize::from(mtu) + FRAME_OVERHEAD;
        let stats = RxStats::default();
        let rx = PcapRx { reader, progress: progress.clone(), frame_len_max, stats };
        let tx = PcapTx { writer, unflushed: false, frame_len_max, stats: TxStats::default() };
        let caps = PortCaps {
            name: label,
            kind: "pcap",
            mac,
            mtu,
            queues: 1,
            rss: Err(Unknown::NotTold),
            kernel_sees_all: false,
        };
        Ok(Self { caps, queue: Some((rx, tx)), progress })
    }

    /// Whether the worker has received every packet of the file. A file that grows is read on.
    ///
    /// # Errors
    /// [`PortError::Other`] when the file is damaged or cut off; nothing more comes then.
    pub fn finished(&self) -> Result<bool, PortError> {
        match self.progress.failed.get() {
            Some(error) => Err(PortError::Other { name: self.caps.name.clone(), reason: error.to_string() }),
            None => Ok(self.progress.at_end.load(Ordering::Acquire)),
        }
    }
}

impl Port for PcapPort {
    fn caps(&self) -> &PortCaps {
        &self.caps
    }

    fn take_queue(&mut self, index: u16) -> Result<QueuePair, PortError> {
        let queue = if index == 0 { self.queue.take() } else { None };
        let (rx, tx) = queue.ok_or_else(|| self.caps.no_such_queue(index))?;
        Ok((Box::new(rx), Box::new(tx)))
    }

    /// Does nothing: the port receives whatever is in the file.
    fn steer(&mut self, _rules: &[Rule]) -> Result<(), PortError> {
        Ok(())
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn open_reader(path: &Path) -> Result<Reader<BufReader<File>>, PortError> {
    let file = File::open(path).map_err(|source| PortError::Io {
        name: shown(path),
        action: "opening for reading",
        source,
    })?;
    Reader::new(BufReader::with_capacity(BUFFER_BYTES, file))
        .map_err(|error| PortError::Other { name: shown(path), reason: error.to_string() })
}

fn open_writer(path: &Path) -> Result<Writer<BufWriter<File>>, PortError> {
    let fail = |action| move |source| PortError::Io { name: shown(path), action, source };
    let file = File::create(path).map_err(fail("creating"))?;
    Writer::new(BufWriter::with_capacity(BUFFER_BYTES, file)).map_err(fail("writing"))
}

#[derive(Debug)]
struct PcapRx {
    /// `None` when there is nothing to read, or nothing any more that can be trusted.
    reader: Option<Reader<BufReader<File>>>,
    progress: Arc<Progress>,
    frame_len_max: usize,
    stats: RxStats,
}

impl RxQueue for PcapRx {
    fn rx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let before = burst.len();
        let room = pool.region().frame_len_max().min(self.frame_len_max);
        while let Some(reader) = self.reader.as_mut().filter(|_| !burst.is_full()) {
            let Some(mut frame) = pool.alloc() else {
                // The packet waits in its file.
                self.stats.no_buffer += 1;
                break;
            };
            assert!(frame.set_len(room), "a fresh buffer holds the longest frame of its region");
            match reader.next(frame.data_mut()) {
                // A packet that the capture cut short is as useless as one that is too long.
                Ok(Some(record)) if record.captured != record.original || record.captured > room => {
                    self.stats.oversize += 1;
                    pool.free(frame);
                }
                Ok(Some(record)) => {
                    assert!(frame.set_len(record.captured), "it was read into this frame");
                    self.stats.packets += 1;
                    self.stats.bytes += record.captured as u64;
                    burst.push(frame);
                }
                Ok(None) => {
                    pool.free(frame);
                    self.progress.at_end.store(true, Ordering::Release);
                    break;
                }
                Err(error) => {
                    pool.free(frame);
                    self.reader = None;
                    // Only this queue reports, and only once: it has no reader any more.
                    let _ = self.progress.failed.set(error);
                }
            }
        }
        burst.len() - before
    }

    fn stats(&self) -> RxStats {
        self.stats
    }
}

#[derive(Debug)]
struct PcapTx {
    writer: Option<Writer<BufWriter<File>>>,
    unflushed: bool,
    frame_len_max: usize,
    stats: TxStats,
}

impl TxQueue for PcapTx {
    fn tx_burst(&mut self, pool: &mut Mempool, burst: &mut Burst) -> usize {
        let left = burst.len();
        for frame in burst.drain(..) {
            if frame.len() > self.frame_len_max {
                self.stats.oversize += 1;
            } else if self.writer.as_mut().is_none_or(|writer| writer.write(frame.data()).is_ok()) {
                self.unflushed = true;
                self.stats.packets += 1;
                self.stats.bytes += frame.len() as u64;
            } else {
                self.stats.errors += 1;
            }
            pool.free(frame);
        }
        left
    }

    /// Lets readers of the file see what was sent.
    fn reclaim(&mut self, _pool: &mut Mempool) {
        if std::mem::take(&mut self.unflushed)
            && let Some(writer) = &mut self.writer
            && writer.flush().is_err()
        {
            self.stats.errors += 1;
        }
    }

    fn stats(&self) -> TxStats {
        self.stats
    }
}

const BUFFER_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mempool::PoolConfig;

    /// A file that is removed again.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("shunt-{}-{name}.pcap", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn config(read: Option<&Scratch>, write: Option<&Scratch>) -> PcapConfig {
        let path = |scratch: Option<&Scratch>| scratch.map(|scratch| scratch.0.clone());
        PcapConfig { read: path(read), write: path(write), mac: MacAddr::default(), mtu: 1500 }
    }

    fn write(file: &Scratch, frames: &[&[u8]]) {
        let mut writer = Writer::new(File::create(&file.0).unwrap()).unwrap();
        frames.iter().for_each(|frame| writer.write(frame).unwrap());
    }

    #[test]
    fn packets_are_received_until_the_end_of_the_file() {
        let input = Scratch::new("end");
        write(&input, &[b"one", b"two"]);
        let mut port = PcapPort::open(config(Some(&input), None)).unwrap();
        let (mut rx, _tx) = port.take_queue(0).unwrap();
        assert!(!port.finished().unwrap());
        let mut pool = Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap();
        let mut burst = Burst::new();
        assert_eq!(rx.rx_burst(&mut pool, &mut burst), 2);
        assert_eq!((burst[0].data(), burst[1].data()), (&b"one"[..], &b"two"[..]));
        assert!(port.finished().unwrap());
        pool.free_all(burst);
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn a_packet_that_was_cut_by_the_capture_is_counted_and_not_handed_on() {
        let input = Scratch::new("snaplen");
        write(&input, &[b"cut", b"whole"]);
        let mut bytes = std::fs::read(&input.0).unwrap();
        bytes[24 + 12] = 99;
        std::fs::write(&input.0, bytes).unwrap();
        let mut port = PcapPort::open(config(Some(&input), None)).unwrap();
        let (mut rx, _tx) = port.take_queue(0).unwrap();
        let mut pool = Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap();
        let mut burst = Burst::new();
        rx.rx_burst(&mut pool, &mut burst);
        assert_eq!((burst.len(), burst[0].data(), rx.stats().oversize), (1, &b"whole"[..], 1));
        pool.free_all(burst);
    }

    #[test]
    fn a_file_that_is_cut_off_gives_its_whole_packets_and_an_error() {
        let input = Scratch::new("cut");
        write(&input, &[b"one", b"two"]);
        let bytes = std::fs::read(&input.0).unwrap();
        std::fs::write(&input.0, &bytes[..bytes.len() - 1]).unwrap();
        let mut port = PcapPort::open(config(Some(&input), None)).unwrap();
        let (mut rx, _tx) = port.take_queue(0).unwrap();
        let mut pool = Mempool::single(PoolConfig { chunks: 8, ..PoolConfig::default() }).unwrap();
        let mut burst = Burst::new();
        assert_eq!(rx.rx_burst(&mut pool, &mut burst), 1);
        assert_eq!(rx.rx_burst(&mut pool, &mut burst), 0);
        let error = port.finished().unwrap_err().to_string();
        assert_eq!(error, format!("{}: is cut off inside the packet at offset 43", input.0.display()));
        pool.free_all(burst);
        assert_eq!(pool.available(), 8);
    }

    #[test]
    fn a_full_disk_is_an_error_per_packet_that_could_not_be_written() {
        let full = PcapConfig { write: Some("/dev/full".into()), ..config(None, None) };
        let mut port = PcapPort::open(full).unwrap();
        let (_rx, mut tx) = port.take_queue(0).unwrap();
        let mut pool = Mempool::single(PoolConfig { chunks: 1, ..PoolConfig::default() }).unwrap();
        let mut burst = Burst::new();
        burst.push(pool.alloc().unwrap());
        assert_eq!(tx.tx_burst(&mut pool, &mut burst), 1);
        tx.reclaim(&mut pool);
        assert_eq!(tx.stats().errors, 1);
    }

    #[test]
    fn a_missing_or_foreign_file_is_refused_by_name() {
        let input = Scratch::new("missing");
        let error = PcapPort::open(config(Some(&input), None)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: opening for reading: No such file", input.0.display())));
        std::fs::write(&input.0, [0; 64]).unwrap();
        let error = PcapPort::open(config(Some(&input), None)).unwrap_err().to_string();
        assert_eq!(error, format!("{}: is not a pcap file", input.0.display()));
    }
}
