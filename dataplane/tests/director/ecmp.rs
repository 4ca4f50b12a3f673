//! Several next hops: each flow keeps its own, in both directions, and moves only when it goes.

use shunt_dataplane::server::Mode;
use shunt_dataplane::tuple::Protocol;

use crate::lab::{CLIENTS, Lab, ROUTER_MAC, SERVERS, US, World, client, vip, way_mac};
use crate::packets::data;

/// Ports of clients.
const FLOWS: std::ops::Range<u16> = 40_000..40_012;

/// The routers that each flow's requests and answers go to.
fn ways(lab: &mut Lab) -> Vec<[Vec<u8>; 2]> {
    let router = |lab: &mut Lab, port, frame: Vec<u8>| {
        let out = lab.deliver(0, port, &[frame]);
        assert_eq!(out.len(), 1);
        out[0].bytes[..6].to_vec()
    };
    FLOWS
        .map(|port| {
            let (src, dst) = (client(port), vip(Mode::Nat, Protocol::Udp));
            let request = data(Protocol::Udp, src, dst, 10).link(ROUTER_MAC, US[0]).build();
            let to_server = router(lab, CLIENTS, request);
            let conn = lab.conn(src, dst).unwrap().1;
            let answer = data(Protocol::Udp, conn.server, conn.peer, 10).link(ROUTER_MAC, US[1]).build();
            [to_server, router(lab, SERVERS, answer)]
        })
        .collect()
}

#[test]
fn flows_take_both_ways_and_only_those_of_a_lost_way_move() {
    let mut lab = Lab::new(World { ways: &[0, 1], ..World::default() });
    let both = ways(&mut lab);
    assert_eq!(ways(&mut lab), both, "a flow keeps its way");
    let [first, second] = [0, 1].map(|way| way_mac(way).0.to_vec());
    for direction in [0, 1] {
        for way in [&first, &second] {
            assert!(both.iter().any(|flow| flow[direction] == *way), "{direction}: nobody takes {way:?}");
        }
    }
    lab.reload(|world| world.ways = &[1]);
    assert!(ways(&mut lab).iter().flatten().all(|way| *way == second), "the way that is left");
    lab.reload(|world| world.ways = &[0, 1]);
    assert_eq!(ways(&mut lab), both, "who moved comes back, and who stayed stays");
    lab.finish();
}
