//! Running a program for what it prints, within bounds of time and size.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// What a program prints beyond this is not read, in bytes of each of its two outputs.
const MAX_OUTPUT: u64 = 64 << 10;

/// What `command` prints on both outputs; none when it cannot start or is not done in time.
///
/// A program whose children hold its outputs open is left alone when the time is over: the threads
/// that read end with those children.
pub(super) fn output_of(command: &[String], timeout: Duration) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let (printed_tx, printed_rx) = channel();
    read_on(child.stdout.take(), 0, printed_tx.clone());
    read_on(child.stderr.take(), 1, printed_tx);
    let deadline = Instant::now() + timeout;
    let mut outputs = [Vec::new(), Vec::new()];
    for _ in 0..2 {
        let left = deadline.saturating_duration_since(Instant::now());
        match printed_rx.recv_timeout(left) {
            Ok((which, bytes)) => outputs[which] = bytes,
            Err(_) => return stop(child),
        }
    }
    // Both outputs are closed or full: the program is done, or will be stopped for printing too much.
    stop::<()>(child);
    let [out, err] = outputs.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Some(out + "\n" + &err)
}

fn read_on(from: Option<impl Read + Send + 'static>, which: usize, to: Sender<(usize, Vec<u8>)>) {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(from) = from {
            // An output that breaks off is what it was until then.
            let _ = from.take(MAX_OUTPUT).read_to_end(&mut bytes);
        }
        // The other side has gone when the time was over.
        let _ = to.send((which, bytes));
    });
}

fn stop<T>(mut child: Child) -> Option<T> {
    // A program that has ended cannot be killed, which is as well.
    let _ = child.kill();
    let _ = child.wait();
    None
}
