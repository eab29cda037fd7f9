//! What comes from a session's runner, read within bounds: its lines, and what it complains about.

use std::io::{self, BufRead, BufReader, Read};
use std::process::ChildStderr;
use std::sync::mpsc;

use meshfarm_protocol::lease::MAX_REASON;
use meshfarm_protocol::session::MAX_LINE;

/// Read lines of bounded length until the end; a longer one ends it too.
pub(crate) fn read_lines(from: impl Read, to: &mpsc::SyncSender<Vec<u8>>) {
    let mut reader = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX).saturating_add(1);
        match reader.by_ref().take(limit).read_until(b'\n', &mut line) {
            Ok(n) if n > 0 && line.last() == Some(&b'\n') => {
                if to.send(line).is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => return,
        }
    }
}

/// The beginning of what the runner complains about; the rest is read and dropped, so that it never blocks.
pub(crate) fn read_some(mut from: ChildStderr) -> String {
    let mut text = Vec::new();
    drop(from.by_ref().take(MAX_REASON as u64).read_to_end(&mut text));
    drop(io::copy(&mut from, &mut io::sink()));
    String::from_utf8_lossy(&text).into_owned()
}
