//! Who is connected at a time, and who gives way when there are too many: first those that have not asked yet, each after a
//! moment; then those that are being answered, each after a while. However many clients ask slowly, whoever asks at once is
//! answered: they keep others waiting for moments, not until they are done.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long clients may stay when others wait to be let in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// One that has not asked yet.
    pub(super) to_ask: Duration,
    /// One that is being answered.
    pub(super) to_hear: Duration,
}

/// Connections under way.
#[derive(Clone, Debug)]
pub(super) struct Room {
    most: usize,
    patience: Patience,
    guests: Arc<Mutex<Guests>>,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    present: BTreeMap<u64, Guest>,
}

#[derive(Debug)]
struct Guest {
    since: Instant,
    asked: Asked,
    conversation: AbortHandle,
}

impl Guest {
    /// Until when it may stay though others wait.
    fn until(&self, patience: Patience) -> Instant {
        self.since + if self.asked.get() { patience.to_hear } else { patience.to_ask }
    }
}

/// Whether a client has asked its question, all of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Arc<AtomicBool>);

impl Asked {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Room {
    /// Room for so many.
    pub(super) fn new(most: usize, patience: Patience) -> Self {
        Self { most, patience, guests: Arc::default() }
    }

    /// Runs a conversation when there is room for it, ending another one if there was none.
    pub(super) async fn admit<F>(&self, converse: impl FnOnce(Asked) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while let Some(until) = self.waits_until() {
            // Somebody may go before.
            tokio::time::sleep_until(until.min(Instant::now() + self.patience.to_ask / 10)).await;
        }
        let mut guests = self.guests();
        let (asked, number) = (Asked::default(), guests.next);
        guests.next += 1;
        let (room, talk) = (self.clone(), converse(asked.clone()));
        let task = tokio::spawn(async move {
            talk.await;
            room.guests().present.remove(&number);
        });
        let guest = Guest { since: Instant::now(), asked, conversation: task.abort_handle() };
        guests.present.insert(number, guest);
    }

    /// Makes room by ending the conversation that has lasted beyond its time for longest. Until when the next one waits if
    /// there is none such; `None` when there is room.
    fn waits_until(&self) -> Option<Instant> {
        let mut guests = self.guests();
        if guests.present.len() < self.most {
            return None;
        }
        let ends = guests.present.iter().map(|(number, guest)| (*number, guest.until(self.patience)));
        let (number, until) = ends.min_by_key(|(_, until)| *until)?;
        if until > Instant::now() {
            return Some(until);
        }
        if let Some(guest) = guests.present.remove(&number) {
            guest.conversation.abort();
        }
        None
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// Says its number when it is sent away.
    struct Leaves(u32, mpsc::UnboundedSender<u32>);

    impl Drop for Leaves {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }

    const PATIENCE: Patience =
        Patience { to_ask: Duration::from_millis(100), to_hear: Duration::from_millis(1_000) };

    #[tokio::test]
    async fn who_does_not_ask_gives_way_after_a_moment_and_who_is_answered_after_a_while() {
        let (tell, mut left) = mpsc::unbounded_channel();
        let room = Room::new(3, PATIENCE);
        let began = Instant::now();
        let enter = async |number: u32, asks: bool| {
            let leaves = Leaves(number, tell.clone());
            let converse = |asked: Asked| async move {
                if asks {
                    asked.set();
                }
                let _leaves = leaves;
                std::future::pending::<()>().await;
            };
            room.admit(converse).await;
            tokio::task::yield_now().await;
            began.elapsed()
        };
        for (number, asks) in [(1, true), (2, false), (3, true)] {
            enter(number, asks).await;
        }
        assert!(left.try_recv().is_err(), "there is room for three");
        let Patience { to_ask, to_hear } = PATIENCE;
        for (number, asks, leaves, waits) in
            [(4, true, 2, to_ask), (5, true, 1, to_hear), (6, true, 3, to_hear)]
        {
            let waited = enter(number, asks).await;
            assert!(waited >= waits, "{number} waits {waited:?}");
            assert_eq!(left.recv().await, Some(leaves), "when {number} comes");
            assert!(left.try_recv().is_err(), "and nobody else");
        }
    }

    #[tokio::test]
    async fn who_is_done_makes_room() {
        let room = Room::new(1, PATIENCE);
        room.admit(|_| async {}).await;
        tokio::task::yield_now().await;
        assert!(room.guests().present.is_empty());
    }
}
