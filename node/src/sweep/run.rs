//! The sweeper's own hours: it watches the disk, collects now and then, and verifies slowly.

use std::sync::Arc;

use tokio::sync::mpsc;

use meshfarm_core::Input;
use meshfarm_protocol::id::Millis;

use super::Sweeper;
use crate::machine::Machine;

/// How often the disk is looked at.
const LOOK_AT_DISK: Millis = Millis::seconds(5);

/// Unused content is collected this often.
const COLLECT_EVERY: Millis = Millis::seconds(600);

/// Content that came out of use is collected so long after, together with what follows it.
const COLLECT_AFTER: Millis = Millis::seconds(20);

/// A full disk makes us collect at most this often.
const PRESSED_EVERY: Millis = Millis::seconds(15);

/// Verification goes on this often.
const SCRUB_EVERY: Millis = Millis::seconds(10);

/// So many bytes are verified each time: 4 MiB a second, a terabyte in three days.
const SCRUB_BYTES: u64 = 40 << 20;

/// When nothing is to be verified, it is asked again so much later.
const SCRUB_IDLE: Millis = Millis::seconds(3600);

impl Sweeper {
    /// Free bytes at which other sites' work is declined, taken again, and room is made before either.
    fn marks(&self) -> (u64, u64, u64) {
        let full = self.settings.keep_free;
        (full, full + full / 2, full.saturating_mul(2))
    }

    /// Tell the loop when the disk is full, and when there is room again; and make room before. Ends with
    /// the loop.
    pub async fn watch_disk(self: Arc<Self>, machine: Machine, input_tx: mpsc::Sender<Input>) {
        let clock = &machine.clock;
        let (low, again, near) = self.marks();
        let mut full = false;
        let mut pressed = None;
        loop {
            let (free, now) = (self.free(), clock.now());
            let is_due = pressed.is_none_or(|at| now.since(at) >= PRESSED_EVERY);
            if free < near && is_due {
                pressed = Some(now);
                self.pressed.notify_one();
            }
            let now_full = free < if full { again } else { low };
            if now_full != full {
                full = now_full;
                tracing::warn!(full, free, "the disk of this node's home");
                if input_tx.send(Input::Disk { full }).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                biased;
                () = input_tx.closed() => return,
                () = clock.wait_until(clock.now().plus(LOOK_AT_DISK)) => {}
            }
        }
    }

    /// Collect when it is time, when content came out of use, and when the disk is nearly full. For ever.
    pub async fn collect_in_time(self: Arc<Self>, machine: Machine) {
        let clock = &machine.clock;
        let mut due = clock.now().plus(COLLECT_AFTER);
        loop {
            let mut wanted = 0;
            tokio::select! {
                biased;
                () = self.pressed.notified() => {
                    let (_, _, near) = self.marks();
                    wanted = near.saturating_sub(self.free());
                }
                () = clock.wait_until(due) => {}
                () = self.pins.lifted.notified() => {
                    due = due.min(clock.now().plus(COLLECT_AFTER));
                    continue;
                }
            }
            let (this, now) = (Arc::clone(&self), clock.now());
            match machine.block(move || this.collect(now, wanted, false)).await {
                Some(Ok(_)) | None => {}
                Some(Err(error)) => tracing::warn!(%error, "unused content was not collected"),
            }
            due = clock.now().plus(COLLECT_EVERY);
        }
    }

    /// Verify what is stored, slowly. For ever.
    pub async fn scrub_in_time(self: Arc<Self>, machine: Machine) {
        let clock = &machine.clock;
        loop {
            let (this, now) = (Arc::clone(&self), clock.now());
            let more = match machine.block(move || this.scrub(now, SCRUB_BYTES)).await {
                Some(Ok(more)) => more,
                Some(Err(error)) => {
                    tracing::warn!(%error, "stored chunks cannot be verified");
                    false
                }
                None => false,
            };
            let pause = if more { SCRUB_EVERY } else { SCRUB_IDLE };
            clock.wait_until(clock.now().plus(pause)).await;
        }
    }
}
