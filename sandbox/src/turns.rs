//! Turns for starting jails: as many at once as there are processors, in the order in which they were asked for.
//!
//! Starting is work for the kernel. Sixteen starts at once on two processors would all take as long as all of them together;
//! in turn, half of them are through in half of that time and the last one no later.

use std::{
    num::NonZero,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// So long a turn is waited for. A start that hangs, as on a disk that does not answer, must not hold back all others.
const PATIENCE: Duration = Duration::from_secs(1);

static TURNS: Turns =
    Turns { line: Mutex::new(Line { next: 0, admitted: 0 }), moved: Condvar::new() };

/// Who is next, and up to whom all may start. Tickets are numbers from zero.
#[derive(Debug)]
struct Line {
    next: u64,
    /// One for each start that is through.
    admitted: u64,
}

#[derive(Debug)]
struct Turns {
    line: Mutex<Line>,
    moved: Condvar,
}

/// The right to start a jail now; it goes on to the next one when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Turns);

/// Wait for a turn, but not for long.
pub(crate) fn take() -> Turn<'static> {
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    TURNS.take(u64::try_from(at_once).unwrap_or(1), PATIENCE)
}

impl Turns {
    fn take(&self, at_once: u64, patience: Duration) -> Turn<'_> {
        let end = Instant::now() + patience;
        let mut line = self.lock();
        let mine = line.next;
        line.next += 1;
        while mine >= line.admitted + at_once {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.moved.wait_timeout(line, left);
            line = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().admitted += 1;
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn turns() -> Turns {
        Turns { line: Mutex::new(Line { next: 0, admitted: 0 }), moved: Condvar::new() }
    }

    #[test]
    fn no_more_start_at_once_than_there_are_turns_and_all_of_them_do() {
        let turns = turns();
        let (now, most, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _turn = turns.take(3, Duration::from_secs(60));
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!((1..=3).contains(&most.into_inner()));
        assert_eq!(done.into_inner(), 800);
    }

    #[test]
    fn a_start_that_hangs_does_not_hold_others_back_for_ever() {
        let turns = turns();
        let _hangs = turns.take(1, PATIENCE);
        drop(turns.take(1, Duration::from_millis(10)));
        // It was through without a turn, and its turn is counted all the same.
        drop(turns.take(1, Duration::from_millis(10)));
    }
}
