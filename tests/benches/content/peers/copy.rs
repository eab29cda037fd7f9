//! A plain copy on the same disk: `cp`, and then the disk has it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{Peer, remove};
use crate::content::files;
use crate::content::processes;

#[derive(Debug)]
pub(crate) struct Copy;

impl Peer for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn servers(&self) -> Vec<u32> {
        Vec::new()
    }

    fn bring(&mut self, from: &Path, to: &Path, patience: Duration) -> Result<Duration> {
        remove(to)?;
        let began = std::time::Instant::now();
        let mut command = Command::new("cp");
        command.arg("-a").arg(from).arg(to);
        processes::run(command, &to.with_extension("cp"), patience)?;
        files::flush(to)?;
        Ok(began.elapsed())
    }
}
