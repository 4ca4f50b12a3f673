//! The pcap port between a file that grows and one that is read while it is written.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use shunt_engine::Mempool;
use shunt_engine::port::pcap::{PcapConfig, PcapPort};
use shunt_engine::port::{MacAddr, Port};

use super::{Harness, MTU, PORT_MAC, to_port};

pub struct PcapHarness {
    port: PcapPort,
    input: File,
    output: File,
    sent: u64,
    unread: Vec<u8>,
    read: u64,
    _files: Files,
}

/// Removed on drop.
struct Files([PathBuf; 2]);

impl Harness for PcapHarness {
    const QUEUES: u16 = 1;

    fn open(queues: u16, _pool: &Mempool) -> Self {
        assert_eq!(queues, 1, "a file has one queue");
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = |end: &str| {
            std::env::temp_dir().join(format!("shunt-contract-{}-{number}-{end}.pcap", std::process::id()))
        };
        let files = Files([path("in"), path("out")]);
        let [read, write] = &files.0;
        let mut input = File::create(read).unwrap();
        let header = [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, 1];
        input.write_all(&header.map(u32::to_le_bytes).concat()).unwrap();
        let config = PcapConfig {
            read: Some(read.clone()),
            write: Some(write.clone()),
            mac: MacAddr(PORT_MAC),
            mtu: MTU,
        };
        let port = PcapPort::open(config).unwrap();
        let output = File::options().read(true).write(true).open(write).unwrap();
        Self { port, input, output, sent: 24, unread: Vec::new(), read: 0, _files: files }
    }

    fn port(&mut self) -> &mut dyn Port {
        &mut self.port
    }

    fn send(&mut self, frames: &[Vec<u8>]) {
        let mut records = Vec::new();
        for frame in frames {
            let len = frame.len() as u32;
            records.extend([0, 0, len, len].map(u32::to_le_bytes).concat());
            records.extend(frame);
        }
        self.input.write_all(&records).unwrap();
        // What was sent before this window has been read: it need not stay on the disk.
        release(&self.input, self.sent);
        self.sent += records.len() as u64;
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        if self.read == 0 {
            self.take(24)?;
        }
        let len = |header: &[u8]| u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        self.fetch(16)?;
        let len = len(&self.unread);
        self.fetch(16 + len)?;
        self.take(16 + len).map(|record| record[16..].to_vec())
    }

    fn send_oversize(&mut self) -> bool {
        self.send(&[to_port(0, usize::from(MTU) + 19)]);
        true
    }

    fn jam(&mut self) -> bool {
        false
    }

    fn unjam(&mut self) {}
}

impl PcapHarness {
    /// Makes `len` bytes of the output available.
    fn fetch(&mut self, len: usize) -> Option<()> {
        if self.unread.len() < len {
            let mut more = vec![0; 65_536];
            let count = self.output.read(&mut more).unwrap();
            self.unread.extend(&more[..count]);
            release(&self.output, self.read);
        }
        (self.unread.len() >= len).then_some(())
    }

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        self.fetch(len)?;
        self.read += len as u64;
        Some(self.unread.drain(..len).collect())
    }
}

/// Gives the disk back what lies before `end`, now and then.
fn release(file: &File, end: u64) {
    const STEP: u64 = 16 << 20;
    if end % STEP < 65_536 && end > STEP {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // A file system that cannot is only less tidy.
        let _ = fallocate(file, hole, 0, end / 4096 * 4096);
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}
