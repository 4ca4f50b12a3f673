//! Who serves which queue: every receive queue has exactly one worker, every worker can transmit on every port.

use crate::port::PortId;
use crate::program::WorkerId;

/// What one worker serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Receive queues this worker polls.
    pub rx: Vec<(PortId, u16)>,
    /// How it transmits, indexed by [`PortId`].
    pub tx: Vec<TxShare>,
}

/// How a worker transmits on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxShare {
    /// By its own transmit queue of this number.
    Own(u16),
    /// By handing frames to this worker, which has a queue of its own.
    Via(WorkerId),
}

/// The worker among `workers` that polls queue `queue` of a port.
pub const fn owner(queue: u16, workers: u16) -> WorkerId {
    WorkerId(queue % workers)
}

/// Deals the queues of all ports out to `workers` workers; `queues[p]` is the number of queue pairs of `PortId(p)`.
///
/// Each queue belongs to its [`owner`]. A worker transmits on its first queue of a port; one that has none
/// transmits through the worker of queue `worker % queues`. The transmit halves of further queues stay unused.
///
/// # Panics
/// When there is no worker, a port has no queue, or there are more ports than a [`PortId`] can number.
pub fn assign(queues: &[u16], workers: u16) -> Vec<Share> {
    assert!(workers > 0, "there is a worker");
    assert!(queues.iter().all(|&count| count > 0), "every port has a queue");
    let ports = || {
        let number = |index| PortId(u8::try_from(index).expect("ports are numbered by a byte"));
        queues.iter().enumerate().map(move |(index, &count)| (number(index), count))
    };
    let share = |worker: u16| Share {
        rx: ports()
            .flat_map(|(port, count)| {
                (0..count).filter(|&queue| owner(queue, workers) == WorkerId(worker)).map(move |q| (port, q))
            })
            .collect(),
        tx: ports()
            .map(|(_, count)| match worker < count {
                true => TxShare::Own(worker),
                false => TxShare::Via(WorkerId(worker % count)),
            })
            .collect(),
    };
    (0..workers).map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_queues_than_workers_are_dealt_round() {
        let shares = assign(&[5, 1], 2);
        let (eth, lan) = (PortId(0), PortId(1));
        assert_eq!(shares[0].rx, [(eth, 0), (eth, 2), (eth, 4), (lan, 0)]);
        assert_eq!(shares[1].rx, [(eth, 1), (eth, 3)]);
        assert_eq!(shares[0].tx, [TxShare::Own(0), TxShare::Own(0)]);
        assert_eq!(shares[1].tx, [TxShare::Own(1), TxShare::Via(WorkerId(0))]);
    }

    #[test]
    fn every_queue_has_one_worker_and_every_helper_owns_a_queue() {
        for workers in 1..9 {
            for count in 1..9 {
                let shares = assign(&[count, 3], workers);
                let mut polled: Vec<_> = shares.iter().flat_map(|share| share.rx.clone()).collect();
                polled.sort_unstable();
                let all = (0..count).map(|q| (PortId(0), q)).chain((0..3).map(|q| (PortId(1), q)));
                assert_eq!(polled, all.collect::<Vec<_>>());
                for share in &shares {
                    for (port, tx) in share.tx.iter().enumerate() {
                        if let TxShare::Via(WorkerId(other)) = tx {
                            let owner = &shares[usize::from(*other)];
                            assert!(matches!(owner.tx[port], TxShare::Own(_)));
                        }
                    }
                }
            }
        }
    }
}
