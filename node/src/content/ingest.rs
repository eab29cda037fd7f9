//! Files become sealed chunks and a manifest: all cores read, cut, seal and store.

mod crew;
mod cut;
mod source;

use std::ops::ControlFlow;
use std::path::PathBuf;

use meshfarm_protocol::id::Millis;
use meshfarm_protocol::manifest::Limits;
use meshfarm_protocol::manifest::build::Built;
use meshfarm_protocol::manifest::path::{check_all, sort_key};
use meshfarm_protocol::seal::TenantSecret;

use super::ContentError;
use super::memory::Memory;
use crate::chunks::Chunks;
use crate::store::Store;
use crew::{Crew, Work};
pub(super) use source::Stamp;

/// A file to be taken.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its path in the manifest; the first name is the id of a root.
    pub path: String,
    /// Where its contents come from.
    pub source: Source,
}

/// Where the contents of a file come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From memory.
    Bytes(Vec<u8>),
    /// From a file that its owner named; links are followed.
    File(PathBuf),
    /// From a file in a folder that a job has written: no link beneath `folder` is followed.
    Beneath {
        /// The folder.
        folder: PathBuf,
        /// Names with `/` between them.
        path: String,
    },
}

/// How files are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutting {
    /// Where the content says so: versions of a file share chunks. For inputs.
    ByContent,
    /// Every MiB: frames are new data anyway. For outputs.
    Fixed,
}

/// How far an ingestion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were read and cut, or need not be.
    pub bytes_done: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
    /// Files that were read and cut, or need not be.
    pub files_done: usize,
    /// All files.
    pub files_total: usize,
}

/// Takes files into the chunk store.
#[derive(Clone, Copy, Debug)]
pub struct Ingest<'a> {
    /// Where the chunks go.
    pub chunks: &'a Chunks,
    /// Under whose secret they are sealed.
    pub secret: &'a TenantSecret,
    /// How files are cut.
    pub cutting: Cutting,
    /// What time it is: what the manifest says about when it was made.
    pub created: Millis,
    /// What readers of the manifest accept.
    pub limits: Limits,
}

/// What spares work when files are taken again, and bytes when they travel.
///
/// Outputs of tasks have neither: they are new, renderers compress what they write, and a lender's
/// cores are there for the tasks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Savings<'a> {
    /// Where it is remembered what was in files and which chunks they have.
    pub records: Option<&'a Store>,
    /// Whether a file is compressed when a probe of it says that it pays.
    pub compress: bool,
}

impl Ingest<'_> {
    /// Takes the files, in any order, and returns the manifest when everything is durable.
    /// `on_progress` is told now and then, by whichever thread, and stops it by breaking.
    ///
    /// # Errors
    /// When a path is refused or two collide, a file cannot be read or changes, or the disk is full.
    /// Chunks that were stored stay and are found again by the next try.
    pub fn run(
        &self,
        inputs: Vec<Input>,
        on_progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
    ) -> Result<Built, ContentError> {
        self.run_saving(Savings::default(), inputs, on_progress)
    }

    /// As [`Ingest::run`], but files that did not change since they were remembered are not read.
    ///
    /// # Errors
    /// As [`Ingest::run`].
    pub fn run_saving(
        &self,
        savings: Savings<'_>,
        mut inputs: Vec<Input>,
        mut on_progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
    ) -> Result<Built, ContentError> {
        inputs.sort_by_cached_key(|input| sort_key(&input.path));
        check_names(&inputs)?;
        let found = source::look(&inputs)?;
        let bytes = found.iter().fold(0, |sum: u64, file| sum.saturating_add(file.size));
        self.limits.check(inputs.len() as u64, bytes)?;
        let memory = savings.records.map(|records| Memory::new(records, self));
        let work = Work {
            ingest: self,
            memory: memory.as_ref(),
            compress: savings.compress,
            inputs: &inputs,
            found: &found,
        };
        let built = Crew::new(work, bytes, &mut on_progress)?.run()?;
        self.chunks.flush()?;
        if let Some(memory) = memory {
            memory.forget_old();
        }
        Ok(built)
    }
}

/// Refuses what the manifest's readers would, before a long job has read anything.
fn check_names(inputs: &[Input]) -> Result<(), ContentError> {
    let checked = check_all(inputs.iter().map(|input| &*input.path));
    checked.map_err(|(place, why)| {
        let source = &inputs[place].source;
        match source {
            Source::Bytes(_) => ContentError::Manifest(*why),
            Source::File(_) | Source::Beneath { .. } => {
                ContentError::Refused { path: source.path(), why: *why }
            }
        }
    })
}

#[cfg(test)]
mod tests;
