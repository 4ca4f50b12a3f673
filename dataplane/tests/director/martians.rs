//! Packets from where no client can be.

use shunt_dataplane::tuple::{Endpoint, Protocol, V4};
use shunt_dataplane::verdict::DropReason;
use shunt_dataplane::wire::builder::PacketBuilder;
use shunt_dataplane::wire::tcp::flags;

use crate::lab::{CLIENT_MAC, CLIENTS, LOCAL, Lab, US, VIP, World, every, vip};

#[test]
fn what_claims_to_come_from_us_or_from_no_host_opens_no_connection() {
    let sources = [VIP, LOCAL, V4(0), V4(0x7f00_0001), V4(0xe000_0001), V4(0xffff_ffff)];
    for (mode, protocol) in every() {
        let mut lab = Lab::new(World::default());
        for (worker, source) in (0..3).flat_map(|worker| sources.map(|source| (worker, source))) {
            let (src, dst) = (Endpoint::new(source, 8000), vip(mode, protocol));
            let packet = match protocol {
                Protocol::Tcp => PacketBuilder::tcp(src, dst).flags(flags::SYN),
                Protocol::Udp => PacketBuilder::udp(src, dst),
            };
            assert_eq!(lab.deliver(worker, CLIENTS, &[packet.link(CLIENT_MAC, US[0]).build()]), []);
        }
        assert_eq!(lab.dropped(DropReason::BadSource), 18);
        assert_eq!(lab.connections().len(), 0);
        lab.finish();
    }
}
