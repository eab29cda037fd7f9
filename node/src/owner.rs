//! The machine's owner, as far as a program sees one: when keyboard and pointer were last touched, and what else runs.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::mpsc;

use meshfarm_core::Input;
use meshfarm_core::opening::{Opening, Owner, WeekMinute};
use meshfarm_protocol::id::Millis;

use crate::machine::Machine;

/// How often the owner is looked at.
const LOOK_EVERY: Millis = Millis::seconds(5);

/// Load is the mean over so many looks: a minute, so that opening a program does not count.
const LOOKS: usize = 12;

/// Interrupt lines of keyboards and pointers, by a part of what the kernel calls them.
const INPUT_LINES: [&str; 3] = ["i8042", "xhci_hcd", "i2c_designware"];

/// Interrupts within one look that a quiet machine may have on such a line: disks and cameras share them.
const QUIET: u64 = 20;

/// Look at the owner again and again, and tell the loop. Ends with the loop, or at once when nobody needs to look.
pub async fn watch(opening: Opening, machine: Machine, input_tx: mpsc::Sender<Input>) {
    if opening.is_always() {
        return;
    }
    let (clock, mut watch) = (&machine.clock, Some(Watch::new()));
    loop {
        let (now, mut looking) = (clock.now(), watch.take().unwrap_or_default());
        let seen = machine.block(move || (looking.look(std::process::id(), now), looking)).await;
        if let Some((owner, looked)) = seen {
            watch = Some(looked);
            if input_tx.send(Input::Owner(owner)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            biased;
            () = input_tx.closed() => return,
            () = clock.wait_until(clock.now().plus(LOOK_EVERY)) => {}
        }
    }
}

/// Looks at a machine again and again.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    /// Interrupts of input devices that were counted before.
    interrupts: Option<u64>,
    /// When they were last more than a quiet machine has.
    touched: Option<Millis>,
    /// Busy time of the machine and of our sessions before, in clock ticks, and when.
    busy: Option<(u64, u64, Millis)>,
    loads: VecDeque<u32>,
}

impl Watch {
    /// Nothing was seen so far.
    #[must_use]
    pub fn new() -> Self {
        Self::beneath("/")
    }

    fn beneath(root: impl Into<PathBuf>) -> Self {
        let (interrupts, touched, busy, loads) = (None, None, None, VecDeque::new());
        Self { root: root.into(), interrupts, touched, busy, loads }
    }

    /// What is seen at `now`. `me` is the node's process: what descends from it is ours.
    pub fn look(&mut self, me: u32, now: Millis) -> Owner {
        let stamp = i64::try_from(now.0).ok().and_then(|n| Timestamp::from_millisecond(n).ok());
        let local = stamp.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::system());
        let day = u8::try_from(local.weekday().to_monday_zero_offset()).unwrap_or(0);
        let minute = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute()));
        let at = WeekMinute::new(day, minute.unwrap_or(0));
        let idle = [self.terminals(now), self.devices(now)].into_iter().flatten().min();
        let load = self.load(me, now);
        Owner { at, idle, load }
    }

    /// How long no terminal was typed at: what `w` shows.
    fn terminals(&self, now: Millis) -> Option<Millis> {
        let mut newest = None;
        for (folder, prefix) in [("dev/pts", ""), ("dev", "tty")] {
            let entries = fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
            let named = entries.filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let number = name.strip_prefix(prefix).unwrap_or_default();
                !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
            });
            // One that nobody has logged in to belongs to root and was never read from.
            let read = named.filter_map(|entry| entry.metadata().ok()).filter(|found| {
                found.atime() > found.ctime().min(found.mtime()) || prefix.is_empty()
            });
            newest = newest.max(read.filter_map(|found| found.accessed().ok()).max());
        }
        let since = newest?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(now.since(Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))))
    }

    /// How long no keyboard or pointer has interrupted.
    fn devices(&mut self, now: Millis) -> Option<Millis> {
        let text = fs::read_to_string(self.root.join("proc/interrupts")).ok()?;
        let count = input_interrupts(&text)?;
        let before = self.interrupts.replace(count);
        if before.is_some_and(|before| count.saturating_sub(before) > QUIET) {
            self.touched = Some(now);
        }
        self.touched.map(|touched| now.since(touched))
    }

    /// Processors that others have used over the last minute, in thousandths.
    fn load(&mut self, me: u32, now: Millis) -> u32 {
        let all = fs::read_to_string(self.root.join("proc/stat")).ok();
        let all = all.as_deref().and_then(busy_ticks);
        if let Some(all) = all {
            let ours = ticks_of_descendants(&self.root.join("proc"), me);
            if let Some((all_before, ours_before, when)) = self.busy.replace((all, ours, now)) {
                let others =
                    all.saturating_sub(all_before).saturating_sub(ours.saturating_sub(ours_before));
                let span = now.since(when).0.max(1);
                // A tick is 10 ms on every Linux that people run.
                let load = others.saturating_mul(10 * 1000) / span;
                self.loads.push_back(u32::try_from(load).unwrap_or(u32::MAX));
            }
            if self.loads.len() > LOOKS {
                self.loads.pop_front();
            }
        }
        let sum: u64 = self.loads.iter().map(|load| u64::from(*load)).sum();
        let mean = sum.checked_div(self.loads.len() as u64).unwrap_or(0);
        u32::try_from(mean).unwrap_or(u32::MAX)
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

/// Interrupts of input devices since the machine started; none when it has no such line.
fn input_interrupts(text: &str) -> Option<u64> {
    let lines = text.lines().filter(|line| INPUT_LINES.iter().any(|name| line.contains(name)));
    let counts = lines.map(|line| {
        let numbers = line.split_whitespace().skip(1);
        numbers.map_while(|word| word.parse::<u64>().ok()).fold(0, u64::saturating_add)
    });
    counts.reduce(u64::saturating_add)
}

/// Ticks that the processors were not idle.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user time.
    let busy = [0, 1, 2, 5, 6].into_iter().filter_map(|n| numbers.get(n));
    Some(busy.fold(0, |sum, n| sum.saturating_add(*n)))
}

/// Ticks that a process and all that descend from it have used, with those of their ended children.
fn ticks_of_descendants(proc: &Path, me: u32) -> u64 {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut ticks = BTreeMap::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).ok();
        if let Some((parent, used)) = stat.as_deref().and_then(parent_and_ticks) {
            children.entry(parent).or_default().push(pid);
            ticks.insert(pid, used);
        }
    }
    let (mut sum, mut open) = (0_u64, vec![me]);
    while let Some(pid) = open.pop() {
        sum = sum.saturating_add(ticks.remove(&pid).unwrap_or(0));
        open.extend(children.remove(&pid).unwrap_or_default());
    }
    sum
}

/// A process's parent, and the ticks that it and its ended children have used.
fn parent_and_ticks(stat: &str) -> Option<(u32, u64)> {
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let used = fields.get(11..15)?.iter().filter_map(|n| n.parse::<u64>().ok());
    Some((parent, used.fold(0, u64::saturating_add)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn now() -> Millis {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Millis(u64::try_from(now.as_millis()).unwrap())
    }

    #[test]
    fn only_input_devices_interrupt_as_a_person_does() {
        let text = "           CPU0       CPU1\n\
             \x20 1:         10         20   IO-APIC    1-edge      i8042\n\
             \x20 8:          1          0   IO-APIC    8-edge      rtc0\n\
             \x2012:        100          5   IO-APIC   12-edge      i8042\n\
             NMI:          7          7   Non-maskable interrupts\n";
        assert_eq!(input_interrupts(text), Some(135));
        assert_eq!(input_interrupts("NMI: 1 2 Non-maskable\n"), None);
    }

    #[test]
    fn a_process_is_found_below_its_parent_whatever_its_name_is() {
        let stat = "42 (a) S 7 (x) R 41 42 42 0 -1 4194304 1 0 0 0 11 12 13 14 20 0";
        assert_eq!(parent_and_ticks(stat), Some((41, 50)));
        assert_eq!(parent_and_ticks("42 (a"), None);
    }

    #[test]
    fn what_we_start_ourselves_is_no_load_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path().join("proc");
        let process = |pid: u32, parent: u32, ticks: u64| {
            fs::create_dir_all(proc.join(pid.to_string())).unwrap();
            let fields = format!("{pid} (p) S {parent} 0 0 0 0 0 0 0 0 0 {ticks} 0 0 0 0");
            fs::write(proc.join(pid.to_string()).join("stat"), fields).unwrap();
        };
        let busy = |ticks: u64| {
            fs::write(proc.join("stat"), format!("cpu  {ticks} 0 0 999 9 0 0 0 0 0\n")).unwrap();
        };
        for (pid, parent) in [(1, 0), (10, 1), (11, 10), (12, 11), (20, 1)] {
            process(pid, parent, 0);
        }
        busy(0);
        let mut watch = Watch::beneath(folder.path());
        assert_eq!(watch.look(10, now()).load, 0);
        // Two of our processes and one of somebody else.
        process(11, 10, 1_000_000);
        process(12, 11, 500_000);
        busy(1_500_000);
        assert_eq!(watch.look(10, now()).load, 0);
        process(20, 1, 1_000_000);
        busy(2_500_000);
        assert!(watch.look(10, now()).load > 0);
    }

    #[test]
    fn a_key_press_shows_and_a_quiet_machine_does_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("proc")).unwrap();
        let count = |n: u64| {
            let text = format!(" 1: {n} 0 IO-APIC 1-edge i8042\n");
            fs::write(folder.path().join("proc/interrupts"), text).unwrap();
        };
        let mut watch = Watch::beneath(folder.path());
        count(1000);
        assert_eq!(watch.look(1, now()).idle, None);
        count(1002);
        assert_eq!(watch.look(1, now()).idle, None);
        count(1100);
        assert!(watch.look(1, now()).idle.is_some_and(|idle| idle < Millis::seconds(60)));
    }

    #[test]
    fn a_terminal_that_was_typed_at_shows() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("dev/pts")).unwrap();
        let mut watch = Watch::beneath(folder.path());
        assert_eq!(watch.look(1, now()).idle, None);
        let terminal = fs::File::create(folder.path().join("dev/pts/3")).unwrap();
        let hour = SystemTime::now() - Duration::from_secs(3600);
        terminal.set_times(fs::FileTimes::new().set_accessed(hour)).unwrap();
        let idle = watch.look(1, now()).idle.unwrap();
        assert!((Millis::seconds(3590)..Millis::seconds(3700)).contains(&idle), "{idle:?}");
    }
}
