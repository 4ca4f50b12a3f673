//! The in-memory port at its wire.

use shunt_engine::Mempool;
use shunt_engine::port::mem::{MemConfig, MemPort, Wire};
use shunt_engine::port::{MacAddr, Port};
use shunt_engine::rss::Rss;

use super::{Harness, MTU, PORT_MAC, to_port};

pub struct MemHarness {
    port: MemPort,
    wire: Wire,
    jammed: bool,
}

impl Harness for MemHarness {
    const QUEUES: u16 = 4;

    fn open(queues: u16, _pool: &Mempool) -> Self {
        let rss = (queues > 1).then(|| Rss::even(queues));
        let mac = MacAddr(PORT_MAC);
        let config = MemConfig { name: "mem".to_owned(), mac, mtu: MTU, queues, rss, depth: 1024 };
        let (port, wire) = MemPort::open(config).unwrap();
        Self { port, wire, jammed: false }
    }

    fn port(&mut self) -> &mut dyn Port {
        &mut self.port
    }

    fn send(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            assert!(self.wire.send(frame), "the queue has room for a window");
        }
    }

    fn recv(&mut self) -> Option<Vec<u8>> {
        if self.jammed { None } else { self.wire.recv() }
    }

    fn send_oversize(&mut self) -> bool {
        self.wire.send(&to_port(0, usize::from(MTU) + 19))
    }

    fn jam(&mut self) -> bool {
        self.jammed = true;
        true
    }

    fn unjam(&mut self) {
        self.jammed = false;
    }
}
