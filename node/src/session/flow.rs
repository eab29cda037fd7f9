//! How much a task may log: so many bytes in all, and so many a second after a burst. Pure; time is an argument.

use meshfarm_protocol::id::Millis;
use meshfarm_sandbox::{LogLimits, Size};

use super::MAX_LOG;

/// So many bytes a second may come for ever. A person reads less, and a frame that logs more says nothing with it.
const BYTES_PER_SECOND: u64 = 256 << 10;

/// So many seconds' bytes may come at once: a renderer that lists every texture it has loaded does that.
const BURST_SECONDS: u64 = 16;

/// What one task's log has taken, and may take now.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    limits: LogLimits,
    kept: u64,
    /// Bytes that may come at once, as of `at`.
    burst: u64,
    at: Millis,
    /// Lines left out since the last one that was kept.
    left_out: u64,
}

impl Flow {
    /// The log of a task.
    pub(super) fn new(now: Millis) -> Self {
        let (bytes, bytes_per_second) = (Some(MAX_LOG), Some(BYTES_PER_SECOND));
        Self::within(LogLimits { bytes, bytes_per_second }, now)
    }

    /// What is printed, within these limits.
    pub(crate) fn within(limits: LogLimits, now: Millis) -> Self {
        let mut flow = Self { limits, kept: 0, burst: 0, at: now, left_out: 0 };
        flow.burst = flow.most_at_once();
        flow
    }

    /// Whether everything goes on.
    pub(crate) fn is_endless(&self) -> bool {
        self.limits == LogLimits::default()
    }

    fn most_at_once(&self) -> u64 {
        self.limits.bytes_per_second.map_or(u64::MAX, |rate| rate.saturating_mul(BURST_SECONDS))
    }

    /// The text that is kept of some lines. Lines are left out whole, and counted; when lines go on, one says
    /// how many were left out before it.
    pub(super) fn take(&mut self, lines: &[String], now: Millis) -> Vec<u8> {
        let mut text = Vec::new();
        for line in lines {
            let before = self.left_out;
            if self.admits(line.len() as u64 + 1, now) {
                text.extend(self.note_of(before));
                text.extend_from_slice(line.as_bytes());
                text.push(b'\n');
            }
        }
        text
    }

    /// Whether a line of this size goes on. One that does not is counted.
    pub(crate) fn admits(&mut self, size: u64, now: Millis) -> bool {
        let rate = self.limits.bytes_per_second.unwrap_or(u64::MAX);
        let gained = now.since(self.at).0.saturating_mul(rate) / 1000;
        self.burst = self.burst.saturating_add(gained).min(self.most_at_once());
        // Less than a byte's time is not lost.
        if gained > 0 {
            self.at = now;
        }
        // While lines are left out, a few must fit again: else each second one stray line would come through.
        let reserve = match self.limits.bytes_per_second {
            Some(rate) if self.left_out > 0 => rate / 4,
            Some(_) | None => 0,
        };
        let left = self.limits.bytes.map_or(u64::MAX, |most| most - self.kept);
        if size.saturating_add(reserve) > self.burst || size > left {
            self.left_out += 1;
            return false;
        }
        if self.limits.bytes_per_second.is_some() {
            self.burst -= size;
        }
        self.kept += size;
        true
    }

    /// Says, once, how many lines were left out since the last one that was kept.
    pub(crate) fn note(&mut self) -> Vec<u8> {
        let n = self.left_out;
        self.note_of(n)
    }

    fn note_of(&mut self, n: u64) -> Vec<u8> {
        self.left_out = 0;
        if n == 0 {
            return Vec::new();
        }
        let lines = if n == 1 { "1 line was".to_owned() } else { format!("{n} lines were") };
        let rate = self.limits.bytes_per_second;
        let rate = rate.map(|rate| format!("{} a second for long", Size(rate)));
        let most = self.limits.bytes.map(|most| format!("{} in all", Size(most)));
        let why: Vec<_> = rate.into_iter().chain(most).collect();
        format!("meshfarm: {lines} left out: a log takes {}\n", why.join(", and ")).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u64 = BYTES_PER_SECOND * BURST_SECONDS;

    fn lines(n: usize, size: usize) -> Vec<String> {
        vec!["x".repeat(size - 1); n]
    }

    fn at(ms: u64) -> Millis {
        Millis(1_000_000 + ms)
    }

    #[test]
    fn a_usual_log_is_kept_whole() {
        let mut flow = Flow::new(at(0));
        assert_eq!(flow.take(&["a".into(), "b".into()], at(0)), b"a\nb\n");
        for second in 1..60 {
            let text = flow.take(&lines(200, 1000), at(second * 1000));
            assert_eq!(text.len(), 200_000, "second {second}");
        }
        assert!(flow.note().is_empty());
    }

    #[test]
    fn a_burst_is_kept_and_what_is_beyond_it_is_counted_in_one_line() {
        let mut flow = Flow::new(at(0));
        let burst = usize::try_from(BURST).unwrap();
        assert_eq!(flow.take(&lines(5000, 1024), at(0)).len(), burst);
        assert!(flow.take(&lines(10, 1024), at(1)).is_empty());
        let text = flow.take(&lines(1, 1024), at(1000));
        let text = String::from_utf8(text).unwrap();
        let first = text.lines().next().unwrap();
        assert!(first.starts_with("meshfarm: 914 lines were left out: "), "{first}");
        assert_eq!(text.lines().count(), 2);
        assert!(flow.note().is_empty());
    }

    #[test]
    fn a_log_that_never_rests_comes_at_the_rate_and_ends_at_its_size() {
        let mut flow = Flow::new(at(0));
        let mut kept = 0;
        for second in 0..20 {
            kept += flow.take(&lines(2000, 1024), at(second * 1000)).len() as u64;
        }
        let most = BURST + 20 * BYTES_PER_SECOND + 20 * 200;
        assert!((BURST..most).contains(&kept), "{kept}");
        for second in 20..200 {
            kept += flow.take(&lines(2000, 1024), at(second * 1000)).len() as u64;
        }
        assert!(kept < MAX_LOG + 200 * 200, "{kept}");
        assert!(String::from_utf8(flow.note()).unwrap().contains("16 MiB in all"));
    }

    #[test]
    fn a_line_longer_than_the_burst_is_one_line_left_out() {
        let mut flow = Flow::new(at(0));
        let long = "x".repeat(usize::try_from(BURST).unwrap());
        assert!(flow.take(&[long], at(0)).is_empty());
        assert!(flow.note().starts_with(b"meshfarm: 1 line was left out"));
        assert_eq!(flow.take(&["after".into()], at(0)), b"after\n");
    }

    #[test]
    fn only_what_a_policy_limits_is_limited() {
        let few = LogLimits { bytes: Some(10), bytes_per_second: None };
        let mut flow = Flow::within(few, at(0));
        assert!(flow.admits(6, at(0)) && !flow.admits(5, at(99_999)) && flow.admits(4, at(0)));
        assert!(!flow.admits(1, at(99_999)));
        let slow = LogLimits { bytes: None, bytes_per_second: Some(10) };
        let mut flow = Flow::within(slow, at(0));
        assert!(flow.admits(160, at(0)) && !flow.admits(1, at(50)));
        // What comes in small pieces of time adds up.
        for ms in 51..1050 {
            flow.admits(1000, at(ms));
        }
        assert!(flow.admits(8, at(1050)));
        let note = String::from_utf8(flow.note()).unwrap();
        assert!(note.ends_with("left out: a log takes 10 B a second for long\n"), "{note}");
        let any = Flow::within(LogLimits::default(), at(0));
        assert!(any.is_endless() && !flow.is_endless());
    }
}
