//! What the runner says: one thread owns the output, gathers log lines and progress for a moment, and
//! keeps one task's log within its bound.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshfarm_protocol::id::TaskNo;
use meshfarm_protocol::session::{FromRunner, to_line};
use openjd_sessions::LogContent;

/// The longest that a printed line waits for more.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// Gathered lines of this many bytes are sent at once. Escaping makes them six times as long at worst,
/// and one more line of the same length may join them: that stays below the bound of a message.
const FLUSH_BYTES: usize = 64 << 10;

/// Lines that wait for the thread. A job that prints faster than its node reads waits, as on a pipe.
const QUEUE: usize = 1024;

/// A message for people is cut at this many bytes.
const MAX_MESSAGE: usize = 8 << 10;

enum Said {
    Line(String),
    Progress(Option<u16>, Option<String>),
    Limit(u64),
    Message(FromRunner),
    Close,
}

/// Where everything that goes to the node is put, from any thread.
#[derive(Clone, Debug)]
pub(crate) struct Speech(SyncSender<Said>);

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Speaker(JoinHandle<()>);

/// Starts to write to `output`.
pub(crate) fn start(output: impl Write + Send + 'static) -> (Speech, Speaker) {
    let (said_tx, said_rx) = sync_channel(QUEUE);
    let thread = std::thread::spawn(move || speak(&said_rx, output));
    (Speech(said_tx), Speaker(thread))
}

impl Speech {
    /// Says `message`, after everything that was printed before.
    pub(crate) fn say(&self, message: FromRunner) {
        self.put(Said::Message(message));
    }

    /// The newest progress; what was said before and not yet sent is forgotten.
    pub(crate) fn progress(&self, permille: Option<u16>, status: Option<String>) {
        self.put(Said::Progress(permille, status));
    }

    /// From now on at most `bytes` of each task's log are sent.
    pub(crate) fn limit_logs(&self, bytes: u64) {
        self.put(Said::Limit(bytes));
    }

    /// Adds a line to the running task's log.
    pub(crate) fn line(&self, line: String) {
        self.put(Said::Line(line));
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        self.put(Said::Close);
    }

    fn put(&self, said: Said) {
        // The thread ends only after `Close`; what would be said later has no reader.
        let _ = self.0.send(said);
    }
}

impl Speaker {
    /// Waits until everything is written.
    pub(crate) fn finish(self) {
        // A panic of the thread has already been printed; the node sees the output end early.
        let _ = self.0.join();
    }
}

/// Makes what actions print, and what the library says about their failures, part of the log.
pub(crate) fn capture_actions(speech: &Speech) -> Result<(), log::SetLoggerError> {
    log::set_boxed_logger(Box::new(Capture(speech.clone())))?;
    log::set_max_level(log::LevelFilter::Info);
    Ok(())
}

struct Capture(Speech);

impl log::Log for Capture {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == "openjd.sessions"
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let bits = record.key_values().get("openjd_log_content".into());
        let bits = bits.and_then(|bits| bits.to_u64()).and_then(|bits| u32::try_from(bits).ok());
        let content = LogContent::from_bits_truncate(bits.unwrap_or(0));
        let wanted = LogContent::COMMAND_OUTPUT | LogContent::EXCEPTION_INFO;
        if content.intersects(wanted) && !content.contains(LogContent::BANNER) {
            self.0.line(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// `text`, cut where a message for people becomes a burden.
pub(crate) fn clip(text: &str) -> String {
    clip_to(text, MAX_MESSAGE)
}

fn clip_to(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max).rev().find(|i| text.is_char_boundary(*i));
    format!("{} ...", &text[..end.unwrap_or(0)])
}

fn speak(said_rx: &Receiver<Said>, output: impl Write) {
    let mut voice = Voice::new(output);
    loop {
        let said = match voice.flush_at {
            Some(at) => said_rx.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => said_rx.recv().map_err(RecvTimeoutError::from),
        };
        match said {
            Ok(Said::Line(line)) => voice.line(line),
            Ok(Said::Progress(permille, status)) => voice.progress(permille, status),
            Ok(Said::Limit(bytes)) => voice.limit = bytes,
            Ok(Said::Message(message)) => voice.message(&message),
            Err(RecvTimeoutError::Timeout) => voice.flush(),
            Ok(Said::Close) | Err(RecvTimeoutError::Disconnected) => return voice.flush(),
        }
    }
}

/// What is gathered and not yet written.
struct Voice<W> {
    output: W,
    task: Option<TaskNo>,
    lines: Vec<String>,
    n_bytes: usize,
    progress: Option<(Option<u16>, Option<String>)>,
    flush_at: Option<Instant>,
    /// Bytes that one task may print in all.
    limit: u64,
    /// Bytes that may still be sent as they come; the last quarter is kept for the end of the log.
    head_left: u64,
    tail: VecDeque<String>,
    tail_bytes: u64,
    n_left_out: u64,
    /// Lines were kept back since the last message of the log: the node shall know that the task is not silent.
    kept_back: bool,
}

impl<W: Write> Voice<W> {
    fn new(output: W) -> Self {
        Self {
            output,
            task: None,
            lines: Vec::new(),
            n_bytes: 0,
            progress: None,
            flush_at: None,
            limit: u64::MAX,
            head_left: u64::MAX,
            tail: VecDeque::new(),
            tail_bytes: 0,
            n_left_out: 0,
            kept_back: false,
        }
    }

    fn line(&mut self, line: String) {
        let line = clip_to(&line, FLUSH_BYTES);
        let n = cost(&line);
        if n <= self.head_left && self.tail.is_empty() && self.n_left_out == 0 {
            self.head_left -= n;
            self.send_line(line);
            return;
        }
        self.kept_back = true;
        self.wake();
        self.tail_bytes += n;
        self.tail.push_back(line);
        while self.tail_bytes > self.limit / 4 {
            let Some(line) = self.tail.pop_front() else {
                break;
            };
            self.tail_bytes -= cost(&line);
            self.n_left_out += 1;
        }
    }

    fn send_line(&mut self, line: String) {
        self.n_bytes += line.len() + 4;
        self.lines.push(line);
        self.wake();
        if self.n_bytes >= FLUSH_BYTES {
            self.flush();
        }
    }

    fn progress(&mut self, permille: Option<u16>, status: Option<String>) {
        self.progress = Some((permille, status.map(|text| clip(&text))));
        self.wake();
    }

    fn wake(&mut self) {
        self.flush_at.get_or_insert_with(|| Instant::now() + FLUSH_AFTER);
    }

    fn message(&mut self, message: &FromRunner) {
        if matches!(message, FromRunner::TaskEnded { .. } | FromRunner::Ended { .. }) {
            self.end_of_log();
        }
        self.flush();
        self.write(message);
        match message {
            FromRunner::TaskStarted { task } => self.begin_log(Some(*task)),
            FromRunner::TaskEnded { .. } => self.begin_log(None),
            _ => {}
        }
    }

    fn begin_log(&mut self, task: Option<TaskNo>) {
        self.task = task;
        self.head_left = self.limit - self.limit / 4;
    }

    /// Sends what was kept of a log that was too long.
    fn end_of_log(&mut self) {
        if self.n_left_out > 0 {
            let n = self.n_left_out;
            self.send_line(format!("[{n} lines left out: the log was too long]"));
        }
        for line in std::mem::take(&mut self.tail) {
            self.send_line(line);
        }
        self.tail_bytes = 0;
        self.n_left_out = 0;
    }

    fn flush(&mut self) {
        self.flush_at = None;
        self.n_bytes = 0;
        let task = self.task;
        if std::mem::take(&mut self.kept_back) || !self.lines.is_empty() {
            let lines = std::mem::take(&mut self.lines);
            self.write(&FromRunner::Log { task, lines });
        }
        if let Some((permille, status)) = self.progress.take() {
            self.write(&FromRunner::Progress { task, permille, status });
        }
    }

    fn write(&mut self, message: &FromRunner) {
        let line = to_line(message).expect("every part was cut to fit a line");
        // A node that is gone reads nothing; its silence also closes our input, which ends the session.
        let _ = self.output.write_all(&line).and_then(|()| self.output.flush());
    }
}

fn cost(line: &str) -> u64 {
    line.len() as u64 + 1
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use meshfarm_protocol::session::{Outcome, from_line};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn spoken(by: impl FnOnce(&Speech)) -> Vec<FromRunner> {
        let output = Shared::default();
        let (speech, speaker) = start(output.clone());
        by(&speech);
        speech.close();
        speaker.finish();
        let bytes = output.0.lock().unwrap().clone();
        bytes.split_inclusive(|byte| *byte == b'\n').map(|line| from_line(line).unwrap()).collect()
    }

    fn ended() -> FromRunner {
        FromRunner::TaskEnded { task: TaskNo(0), outcome: Outcome::Done, outputs: vec![] }
    }

    fn lines(said: &[FromRunner]) -> Vec<&str> {
        let logs = said.iter().filter_map(|message| match message {
            FromRunner::Log { lines, .. } => Some(lines),
            _ => None,
        });
        logs.flatten().map(String::as_str).collect()
    }

    #[test]
    fn what_was_printed_comes_before_the_end_of_its_task() {
        let said = spoken(|speech| {
            speech.say(FromRunner::TaskStarted { task: TaskNo(0) });
            speech.line("one".into());
            speech.progress(Some(10), None);
            speech.progress(Some(500), Some("half".into()));
            speech.line("two".into());
            speech.say(ended());
        });
        assert_eq!(lines(&said), ["one", "two"]);
        assert!(matches!(said[2], FromRunner::Progress { permille: Some(500), .. }));
        assert_eq!(said.last(), Some(&ended()));
    }

    #[test]
    fn a_log_that_is_too_long_keeps_its_beginning_and_its_end() {
        let said = spoken(|speech| {
            speech.limit_logs(4000);
            speech.say(FromRunner::TaskStarted { task: TaskNo(0) });
            for i in 0..10_000 {
                speech.line(format!("line {i:04}"));
            }
            speech.say(ended());
            speech.say(FromRunner::TaskStarted { task: TaskNo(0) });
            speech.line("next".into());
        });
        let lines = lines(&said);
        let n_bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
        assert!(n_bytes < 4100, "{n_bytes}");
        assert_eq!(lines[0], "line 0000");
        assert_eq!(lines[lines.len() - 2], "line 9999");
        assert_eq!(lines[lines.len() - 1], "next");
        assert!(lines.iter().any(|line| line.starts_with('[') && line.contains("left out")));
    }

    #[test]
    fn a_log_that_is_too_long_still_shows_that_the_task_is_not_silent() {
        let said = spoken(|speech| {
            speech.limit_logs(40);
            speech.say(FromRunner::TaskStarted { task: TaskNo(0) });
            for batch in 0..3 {
                (0..100).for_each(|i| speech.line(format!("line {batch} {i}")));
                speech.say(FromRunner::Outputs { task: TaskNo(0), files: Vec::new() });
            }
        });
        let logs = said.iter().filter_map(|said| match said {
            FromRunner::Log { lines, .. } => Some(lines.len()),
            _ => None,
        });
        let logs: Vec<_> = logs.collect();
        assert!(logs[0] == 3 && logs.len() >= 3 && logs[1..].iter().all(|n| *n == 0), "{logs:?}");
    }

    #[test]
    fn the_worst_text_still_fits_its_line() {
        let said = spoken(|speech| {
            for _ in 0..4 {
                speech.line("\u{1}".repeat(200_000));
            }
        });
        assert!(said.len() >= 2);
    }
}
