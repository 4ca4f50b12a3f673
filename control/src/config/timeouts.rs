//! `[timeouts]` and `[service.timeouts]`.

use shunt_dataplane::conn::{State, Timeouts};

use super::diagnostic::Diagnostics;
use super::raw;
use super::resolve::duration;

/// `timeouts` with what was typed in the table `key` in their place.
pub(super) fn timeouts(
    key: &str,
    typed: &raw::Timeouts,
    mut timeouts: Timeouts,
    diagnostics: &mut Diagnostics,
) -> Timeouts {
    let keys = [
        ("none", State::None, &typed.none),
        ("established", State::Established, &typed.established),
        ("syn_sent", State::SynSent, &typed.syn_sent),
        ("syn_recv", State::SynRecv, &typed.syn_recv),
        ("fin_wait", State::FinWait, &typed.fin_wait),
        ("time_wait", State::TimeWait, &typed.time_wait),
        ("close", State::Close, &typed.close),
        ("close_wait", State::CloseWait, &typed.close_wait),
        ("last_ack", State::LastAck, &typed.last_ack),
        ("listen", State::Listen, &typed.listen),
        ("synack", State::SynAck, &typed.synack),
        ("udp", State::Udp, &typed.udp),
    ];
    for (name, state, typed) in keys {
        if let Some(timeout) = duration(&format!("{key}.{name}"), typed, diagnostics) {
            timeouts.set(state, timeout);
        }
    }
    timeouts
}
