//! The lab without shunt: its servers do take NAT, DR and TUN traffic, and its judge does see a wrong checksum.
//! When these fail, look here before looking at shunt.

use crate::capture::Judged;
use crate::lab::{Cables, Lab, PLAIN};

/// The kernel routes to the servers as a director would: DR is a route to the VIP over a server, TUN a TUN device whose
/// packets socat wraps in IPIP, NAT is nftables'.
const DIRECTOR: &str = "
    sysctl -qw net.ipv4.ip_forward=1
    nft add table ip plain
    nft add chain ip plain in '{ type nat hook prerouting priority -100; }'
    nft add rule ip plain in ip daddr 203.0.113.20 dnat to 10.2.0.11
    ip route add 203.0.113.30 via 10.2.0.12
    setsid socat -u -b 65536 TUN,tun-name=encap,iff-no-pi,iff-up IP4-SENDTO:10.2.0.13:4 >/dev/null 2>&1 &
    until ip route add 203.0.113.40 dev encap 2>/dev/null; do sleep 0.05; done";

#[test]
fn the_labs_servers_answer_by_nat_dr_and_tun_without_shunt() {
    let lab = Lab::new("lab-itself", PLAIN);
    lab.sh("director", DIRECTOR);
    for (vip, server) in [("203.0.113.20", "rs1"), ("203.0.113.30", "rs2"), ("203.0.113.40", "rs3")] {
        assert_eq!(lab.get(&format!("http://{vip}/")), server);
        assert_eq!(lab.udp_echo(vip, "hello"), format!("{server} hello"));
    }
}

#[test]
fn the_judge_sees_a_wrong_checksum() {
    // Captured where it is sent, with the sender's offload on, a frame has no more than a partial checksum.
    let mut lab = Lab::new("judge", Cables { offload: true, ..PLAIN });
    assert_eq!(lab.udp_echo("10.2.0.11", "hello"), "rs1 hello");
    // The judge wants to see the director as well.
    lab.sh("client", "ping -c 1 -W 1 10.1.0.2");
    lab.judge();
    let at_the_sender = lab.capture(("client", "back"));
    assert!(at_the_sender.findings(Judged::Every).wrong > 0);
    assert_eq!(at_the_sender.findings(Judged::FromDirector).wrong, 0);
}
