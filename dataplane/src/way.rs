//! The way of a connection: its next hops in both directions, and what its new addresses change about checksums. Worked
//! out once per generation of the snapshot and kept in the record, so that a packet on it looks nothing up.

use crate::classify;
use crate::conn::{Conn, Deltas};
use crate::flow::Context;
use crate::ip::Ip;
use crate::neigh::HopId;
use crate::snapshot::Snapshot;
use crate::transmit;

/// The generation of records whose way is to be worked out for every packet.
const NEVER: u32 = 0;

/// Works the way of `conn` out, unless that was done in this generation. What is stored stays for the generation only if
/// packets of both directions are still ours and a tunnel's way is not narrow: otherwise each is to be judged for itself.
#[inline]
pub(crate) fn settle<A: Ip>(conn: &mut Conn<A>, cx: &Context<'_, '_>) {
    if conn.generation != cx.snapshot.generation() {
        find(conn, cx);
    }
}

/// Has the way of `conn` worked out again by the next packet.
pub(crate) fn unsettle<A: Ip>(conn: &mut Conn<A>) {
    conn.generation = NEVER;
}

#[inline(never)]
fn find<A: Ip>(conn: &mut Conn<A>, cx: &Context<'_, '_>) {
    let path = || cx.shared.path_of(conn);
    let server = cx.snapshot.server(conn.server_id).and_then(|server| server.hop.as_ref());
    let client = cx.snapshot.hops(conn.client.address.to_ip());
    let [server_hop, client_hop] = [server, client].map(|hops| hops.map(|hops| hops.of(path).0));
    // A server is one station, or unreachable for now.
    let is_station = |&hop: &u16| cx.snapshot.hop(HopId(hop)).is_some_and(|hop| !hop.attached);
    conn.server_hop = server_hop.filter(is_station).unwrap_or(Conn::<A>::NO_HOP);
    conn.client_hop = client_hop.unwrap_or(Conn::<A>::NO_HOP);
    conn.deltas = Deltas::of(conn);
    let is_usual = is_ours(conn, cx.snapshot) && transmit::path_mtu(cx, conn).is_none();
    conn.generation = if is_usual { cx.snapshot.generation() } else { NEVER };
}

fn is_ours<A: Ip>(conn: &Conn<A>, snapshot: &Snapshot) -> bool {
    let ours = |tuple| classify::role(&tuple, snapshot).is_some();
    ours(conn.request()) && conn.reply().is_none_or(ours)
}
