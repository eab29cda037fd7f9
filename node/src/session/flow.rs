//! How much a task may log: so many bytes in all, and so many a second after a burst. Pure; time is an argument.

use meshfarm_protocol::id::Millis;

use super::MAX_LOG;

/// So many bytes may come at once: a renderer that lists every texture it has loaded does that.
const BURST: u64 = 4 << 20;

/// So many bytes a second may come for ever. A person reads less, and a frame that logs more says nothing with it.
const BYTES_PER_SECOND: u64 = 256 << 10;

/// What one task's log has taken, and may take now.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    kept: u64,
    /// Bytes that may come at once, as of `at`.
    burst: u64,
    at: Millis,
    /// Lines left out since the last one that was kept.
    left_out: u64,
}

impl Flow {
    pub(super) fn new(now: Millis) -> Self {
        Self { kept: 0, burst: BURST, at: now, left_out: 0 }
    }

    /// The text that is kept of some lines. Lines are left out whole, and counted; when lines go on, one says
    /// how many were left out before it.
    pub(super) fn take(&mut self, lines: &[String], now: Millis) -> Vec<u8> {
        let gained = now.since(self.at).0.saturating_mul(BYTES_PER_SECOND) / 1000;
        self.burst = self.burst.saturating_add(gained).min(BURST);
        self.at = now;
        let mut text = Vec::new();
        for line in lines {
            let size = line.len() as u64 + 1;
            // While lines are left out, a few must fit again: else each second one stray line would come through.
            let reserve = if self.left_out > 0 { BYTES_PER_SECOND / 4 } else { 0 };
            if size + reserve > self.burst || size > MAX_LOG - self.kept {
                self.left_out += 1;
                continue;
            }
            text.extend(self.note());
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
            self.burst -= size;
            self.kept += size;
        }
        text
    }

    /// Says, once, how many lines were left out since the last one that was kept.
    pub(super) fn note(&mut self) -> Vec<u8> {
        let n = std::mem::take(&mut self.left_out);
        if n == 0 {
            return Vec::new();
        }
        let lines = if n == 1 { "1 line was".to_owned() } else { format!("{n} lines were") };
        let (most, rate) = (MAX_LOG >> 20, BYTES_PER_SECOND >> 10);
        let why = format!("a log takes {rate} KiB a second for long, and {most} MiB in all");
        format!("meshfarm: {lines} left out: {why}\n").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
