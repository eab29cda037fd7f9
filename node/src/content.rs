//! Files become chunks and a manifest, and chunks become files again.

pub mod ingest;
mod memory;
pub mod merge;
pub mod plan;
pub mod tree;
pub mod unpack;
pub mod uses;

use std::io;
use std::path::{Path, PathBuf};

use meshfarm_protocol::id::ChunkId;
use meshfarm_protocol::manifest::{ManifestError, ReadError};
use meshfarm_protocol::seal::OpenError;

use crate::chunks::ChunkError;

/// Why files did not become chunks, or chunks not files.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// A file to be taken cannot be read. Nothing was taken.
    #[error("cannot read {}", .path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file changed while it was read. Nothing was taken; wait until it is complete.
    #[error("{} changed while it was read: submit again when it is complete", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot travel under its path. Nothing was taken; rename it.
    #[error("cannot take {}: {why}", .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The rule that its path breaks.
        why: ManifestError,
    },
    /// The caller stopped it. Chunks that were stored stay, and are not stored again next time.
    #[error("cancelled")]
    Cancelled,
    /// The manifest is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A chunk is not here, or was damaged and forgotten. Make a new plan and fetch it.
    #[error("chunk {0} is not here: fetch it again")]
    Missing(ChunkId),
    /// The chunk store refused.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    /// A file or folder cannot be written. What was written before stays.
    #[error("cannot {doing} {}", .path.display())]
    Target {
        /// What was tried.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file lies beneath no root that has a destination. Nothing of it was written.
    #[error("\"{path}\" lies beneath no root with a destination")]
    NoPlace {
        /// Its path in the manifest.
        path: String,
    },
}

impl ContentError {
    /// Whether there is no room for it on a disk of ours.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Chunks(error) => error.is_full(),
            Self::Target { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Source { .. }
            | Self::Changed { .. }
            | Self::Refused { .. }
            | Self::Cancelled
            | Self::Manifest(_)
            | Self::Missing(_)
            | Self::NoPlace { .. } => false,
        }
    }

    fn target(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Target { doing, path, source }
    }
}

impl From<ReadError<Self>> for ContentError {
    fn from(error: ReadError<Self>) -> Self {
        match error {
            ReadError::Fetch(error) => error,
            ReadError::Manifest(error) => Self::Manifest(error),
        }
    }
}

impl From<OpenError> for ContentError {
    fn from(error: OpenError) -> Self {
        Self::Manifest(error.into())
    }
}

#[cfg(test)]
mod tests;
