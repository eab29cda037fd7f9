//! Logs of tasks: written where they run, sent home while they grow, read where they are.
//!
//! An attempt's log is a file. A lender appends to its own and sends what is new to the borrower, which
//! says how much it has; so nothing is lost or doubled by whatever goes down, and a byte is home within
//! half a second of being written while the line holds.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::time::timeout;

use meshfarm_protocol::id::{AttemptId, Millis, SiteId};
use meshfarm_protocol::message::{Answer, LogPart, MAX_LOG_BYTES, Request};

use crate::net::Net;
use crate::session::MAX_LOG;

/// How long what is written may wait before it is sent.
const SEND_EVERY: Duration = Duration::from_millis(400);

/// How long a borrower that does not answer is left alone.
const PAUSE: Duration = Duration::from_secs(2);

/// Logs that a borrower does not take are given up after so many tries in a row: a day.
const TRIES: u32 = 24 * 3600 / 2;

/// A log is given up that a borrower has refused so often in a row. One that was just restarted refuses what it
/// will take in a moment, when it knows again who we are.
const REFUSALS: u32 = 30;

/// A received log is cut here. A lender's own limit is lower; its notes about itself come on top.
const MAX_RECEIVED: u64 = MAX_LOG + (1 << 20);

/// A log that has not grown for so long has ended: whoever wrote it is gone without a word.
const SILENCE: Duration = Duration::from_secs(24 * 3600);

/// Kind of the note that says who gets a log which is written here.
const OURS: &str = "to";

/// Kind of the note that says who gets a log which another machine sends here.
const ANOTHERS: &str = "on";

/// The folder of all logs.
#[derive(Debug)]
pub struct Logs {
    folder: PathBuf,
    growing: Mutex<BTreeMap<AttemptId, Arc<Growth>>>,
}

/// Tells who sends a log that it has grown, or that it is whole.
#[derive(Debug, Default)]
struct Growth {
    grown: Notify,
    whole: std::sync::atomic::AtomicBool,
}

impl Logs {
    /// The logs in `folder`, which is made if need be.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        for kind in ["here", "sending"] {
            fs::create_dir_all(folder.join(kind))?;
        }
        Ok(Self { folder, growing: Mutex::default() })
    }

    fn here(&self, attempt: AttemptId) -> PathBuf {
        self.folder.join("here").join(format!("{attempt}.log"))
    }

    fn sending(&self, attempt: AttemptId, kind: &str) -> PathBuf {
        self.folder.join("sending").join(format!("{attempt}.{kind}"))
    }

    /// Append to the log of one of our own attempts on our own slots.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_here(&self, attempt: AttemptId, text: &[u8]) -> io::Result<()> {
        append(&self.here(attempt), text)
    }

    /// Append to the log of a borrower's attempt.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_sending(&self, attempt: AttemptId, text: &[u8]) -> io::Result<()> {
        append(&self.sending(attempt, "log"), text)?;
        self.growth(attempt).grown.notify_one();
        Ok(())
    }

    /// Keep the report of what was in force around an attempt, beside the logs.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_report(&self, attempt: AttemptId, text: &[u8]) -> io::Result<()> {
        let folder = self.folder.join("reports");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{attempt}.json")), text)
    }

    /// No more will be appended to the log of one of our own attempts on our own slots.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub fn end_here(&self, attempt: AttemptId) -> io::Result<()> {
        File::create(self.whole(attempt)).map(drop)
    }

    /// Whether everything of an attempt's log is here. Never so when its lender has gone before it had sent all.
    #[must_use]
    pub fn is_whole(&self, attempt: AttemptId) -> bool {
        self.whole(attempt).exists()
    }

    fn whole(&self, attempt: AttemptId) -> PathBuf {
        self.folder.join("here").join(format!("{attempt}.whole"))
    }

    /// No more will be appended to a borrower's log.
    pub fn end_sending(&self, attempt: AttemptId) {
        let growth = self.growth(attempt);
        growth.whole.store(true, std::sync::atomic::Ordering::Release);
        growth.grown.notify_one();
    }

    fn growth(&self, attempt: AttemptId) -> Arc<Growth> {
        let mut growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(growing.entry(attempt).or_default())
    }

    /// Take a part of a log from a lender. Returns how much of it is here now. A part without bytes says that the
    /// log ends where it begins.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn receive(&self, part: &LogPart) -> io::Result<u64> {
        receive(&self.here(part.attempt), part, || self.end_here(part.attempt))
    }

    /// Take a part of a log that is [sent on](Logs::send_on). Returns as [`Logs::receive`] does.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn receive_on(&self, part: &LogPart) -> io::Result<u64> {
        let end = || {
            self.end_sending(part.attempt);
            Ok(())
        };
        let have = receive(&self.sending(part.attempt, "log"), part, end);
        self.growth(part.attempt).grown.notify_one();
        have
    }

    /// At most `max` bytes of an attempt's log from `offset` on. None when there is no log yet.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(&self, attempt: AttemptId, offset: u64, max: usize) -> io::Result<Option<Vec<u8>>> {
        read(&self.here(attempt), offset, max)
    }

    /// Drop the logs and reports of these attempts, and those that nobody wrote to since `before`. What cannot be
    /// removed stays until the next time.
    pub fn purge(&self, attempts: &[AttemptId], before: Millis) {
        let reports = self.folder.join("reports");
        for attempt in attempts {
            drop(fs::remove_file(self.here(*attempt)));
            drop(fs::remove_file(reports.join(format!("{attempt}.json"))));
        }
        let before = UNIX_EPOCH + Duration::from_millis(before.0);
        for folder in [self.folder.join("here"), reports] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let written = entry.metadata().and_then(|about| about.modified());
                if written.is_ok_and(|written| written < before) {
                    drop(fs::remove_file(entry.path()));
                }
            }
        }
    }

    /// Begin to send a log to the borrower while it grows, or go on when the attempt runs once more. Remembered
    /// over a restart.
    ///
    /// # Errors
    /// When the note of who gets it cannot be written.
    pub fn send(self: &Arc<Self>, attempt: AttemptId, to: SiteId, net: &Net) -> io::Result<()> {
        self.begin(attempt, (to, OURS), net)
    }

    /// Begin to send a log on to the borrower that is [received](Logs::receive_on) from another machine, or go on.
    /// Remembered over a restart.
    ///
    /// # Errors
    /// When the note of who gets it cannot be written.
    pub fn send_on(self: &Arc<Self>, attempt: AttemptId, to: SiteId, net: &Net) -> io::Result<()> {
        self.begin(attempt, (to, ANOTHERS), net)
    }

    fn begin(
        self: &Arc<Self>,
        attempt: AttemptId,
        (to, kind): (SiteId, &'static str),
        net: &Net,
    ) -> io::Result<()> {
        let note = self.sending(attempt, kind);
        if note.exists() {
            return Ok(());
        }
        fs::write(note, to.to_string())?;
        tokio::spawn(Arc::clone(self).pump(attempt, to, net.clone()));
        Ok(())
    }

    /// Go on sending the logs that were not home before the restart.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn resume(self: &Arc<Self>, net: &Net) -> io::Result<()> {
        for entry in fs::read_dir(self.folder.join("sending"))? {
            let path = entry?.path();
            let attempt = path.file_stem().and_then(|name| name.to_str()?.parse().ok());
            let kind = path.extension().filter(|kind| *kind == OURS || *kind == ANOTHERS);
            let to =
                kind.and_then(|_| fs::read_to_string(&path).ok()?.trim().parse::<SiteId>().ok());
            if let (Some(attempt), Some(to)) = (attempt, to) {
                // What wrote ours is dead; another machine goes on.
                if kind.is_some_and(|kind| kind == OURS) {
                    self.end_sending(attempt);
                }
                tokio::spawn(Arc::clone(self).pump(attempt, to, net.clone()));
            }
        }
        Ok(())
    }

    /// Send what is new until it is whole and home. Dropping it midway is safe.
    async fn pump(self: Arc<Self>, attempt: AttemptId, to: SiteId, net: Net) {
        let growth = self.growth(attempt);
        let file = self.sending(attempt, "log");
        let (mut sent, mut tries, mut refusals) = (0, 0, 0);
        while tries < TRIES && refusals < REFUSALS {
            let whole = growth.whole.load(std::sync::atomic::Ordering::Acquire);
            let bytes = read(&file, sent, MAX_LOG_BYTES).ok().flatten().unwrap_or_default();
            if bytes.is_empty() && !whole {
                if timeout(SILENCE, growth.grown.notified()).await.is_err() {
                    growth.whole.store(true, std::sync::atomic::Ordering::Release);
                }
                // Lines that come together are sent together.
                drop(timeout(SEND_EVERY, std::future::pending::<()>()).await);
                continue;
            }
            let is_last = bytes.is_empty();
            let part = LogPart { attempt, offset: sent, bytes };
            match net.request(to, Request::Log(part)).await {
                Ok(Answer::LogHave(have)) if is_last && have == sent => break,
                Ok(Answer::LogHave(have)) => {
                    sent = have;
                    (tries, refusals) = (0, 0);
                }
                answer => {
                    refusals += u32::from(matches!(answer, Ok(Answer::Refused(_))));
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(fs::remove_file(file));
        for kind in [OURS, ANOTHERS] {
            drop(fs::remove_file(self.sending(attempt, kind)));
        }
        self.growing.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
    }
}

/// Append what is new of a part to the file that a log is received in.
fn receive(path: &Path, part: &LogPart, end: impl FnOnce() -> io::Result<()>) -> io::Result<u64> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let have = file.metadata()?.len();
    if part.bytes.is_empty() {
        // What is missing of a log that was cut is not asked for again.
        if have < part.offset && part.offset <= MAX_RECEIVED {
            return Ok(have);
        }
        end()?;
        return Ok(part.offset);
    }
    let Some(skip) = have.checked_sub(part.offset).and_then(|n| usize::try_from(n).ok()) else {
        return Ok(have);
    };
    let new = part.bytes.get(skip..).unwrap_or_default();
    if have + new.len() as u64 > MAX_RECEIVED {
        // Said to be here, so that the lender does not send it for ever.
        return Ok(part.offset + part.bytes.len() as u64);
    }
    file.write_all(new)?;
    Ok(have + new.len() as u64)
}

fn append(path: &Path, text: &[u8]) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(path)?.write_all(text)
}

fn read(path: &Path, offset: u64, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(max as u64).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_forgotten_jobs_go_and_those_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(folder.path().join("logs")).unwrap();
        let attempts = [1, 2, 3].map(|n| AttemptId([n; 16]));
        for attempt in attempts {
            logs.append_here(attempt, b"line").unwrap();
            logs.keep_report(attempt, b"{}").unwrap();
        }
        let old = File::options().append(true).open(logs.here(attempts[1])).unwrap();
        old.set_modified(UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
        logs.purge(&attempts[..1], Millis::seconds(1001));
        let left = attempts.map(|attempt| logs.read(attempt, 0, 9).unwrap().is_some());
        assert_eq!(left, [false, false, true]);
        assert!(!folder.path().join(format!("logs/reports/{}.json", attempts[0])).exists());
    }

    #[test]
    fn parts_that_repeat_overlap_or_leave_a_gap_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(folder.path().join("logs")).unwrap();
        let attempt = AttemptId([7; 16]);
        let part = |offset, text: &str| LogPart { attempt, offset, bytes: text.into() };
        assert_eq!(logs.receive(&part(0, "hello ")).unwrap(), 6);
        assert_eq!(logs.receive(&part(0, "hello ")).unwrap(), 6);
        assert_eq!(logs.receive(&part(9, "gap")).unwrap(), 6);
        assert_eq!(logs.receive(&part(3, "lo world")).unwrap(), 11);
        assert_eq!(logs.read(attempt, 0, 100).unwrap().unwrap(), b"hello world");
        assert_eq!(logs.read(attempt, 6, 3).unwrap().unwrap(), b"wor");
        assert_eq!(logs.read(attempt, 99, 3).unwrap().unwrap(), b"");
        assert_eq!(logs.read(AttemptId([8; 16]), 0, 3).unwrap(), None);
    }

    #[test]
    fn a_log_that_goes_on_to_a_borrower_is_kept_apart_from_our_own() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(folder.path().join("logs")).unwrap();
        let attempt = AttemptId([7; 16]);
        let part = |offset, text: &str| LogPart { attempt, offset, bytes: text.into() };
        assert_eq!(logs.receive_on(&part(0, "hello ")).unwrap(), 6);
        assert_eq!(logs.receive_on(&part(3, "lo world")).unwrap(), 11);
        assert_eq!(logs.read(attempt, 0, 100).unwrap(), None, "it is not ours");
        let sent = fs::read(logs.sending(attempt, "log")).unwrap();
        assert_eq!(sent, b"hello world");
        let whole = || logs.growth(attempt).whole.load(std::sync::atomic::Ordering::Acquire);
        assert_eq!((logs.receive_on(&part(12, "")).unwrap(), whole()), (11, false));
        assert_eq!((logs.receive_on(&part(11, "")).unwrap(), whole()), (11, true));
        assert!(!logs.is_whole(attempt));
    }

    #[test]
    fn a_log_is_whole_when_its_end_is_said_and_everything_before_it_is_here() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(folder.path().join("logs")).unwrap();
        let (attempt, silent) = (AttemptId([7; 16]), AttemptId([8; 16]));
        let part = |offset, text: &str| LogPart { attempt, offset, bytes: text.into() };
        logs.receive(&part(0, "hello ")).unwrap();
        assert_eq!(logs.receive(&part(11, "")).unwrap(), 6, "the rest is asked for");
        assert!(!logs.is_whole(attempt));
        logs.receive(&part(6, "world")).unwrap();
        assert_eq!(logs.receive(&part(11, "")).unwrap(), 11);
        assert!(logs.is_whole(attempt));
        let nothing = LogPart { attempt: silent, offset: 0, bytes: Vec::new() };
        assert_eq!((logs.receive(&nothing).unwrap(), logs.is_whole(silent)), (0, true));
        let cut = LogPart { attempt: AttemptId([9; 16]), offset: MAX_RECEIVED + 1, bytes: vec![] };
        assert_eq!(logs.receive(&cut).unwrap(), MAX_RECEIVED + 1, "what is too long is let go");
    }
}
