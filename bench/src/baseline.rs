//! The least a forwarder can do: what is left when the load balancer is taken away.

use shunt_engine::program::Verdicts;
use shunt_engine::{Burst, Emit, Frame, Instant, Origin, PortId, Program, Verdict};

/// Swaps the link addresses of every frame and sends it back: what testpmd calls `macswap`.
#[derive(Debug)]
pub struct SwapMacs;

impl Program for SwapMacs {
    fn refresh(&mut self, _now: Instant) {}

    fn on_burst(
        &mut self,
        _now: Instant,
        _origin: Origin,
        frames: &mut Burst,
        verdicts: &mut Verdicts,
        _emit: &mut Emit<'_>,
    ) {
        frames.iter().for_each(Frame::prefetch);
        for frame in frames {
            if let Some((destination, source)) =
                frame.data_mut().first_chunk_mut::<12>().map(|macs| macs.split_at_mut(6))
            {
                destination.swap_with_slice(source);
            }
            verdicts.push(Verdict::Forward(PortId(0)));
        }
    }

    fn tick(&mut self, _now: Instant, _emit: &mut Emit<'_>) -> Option<Instant> {
        None
    }
}
