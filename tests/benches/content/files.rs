//! Files to move: noise as textures are, text as scenes are, many small ones. Deterministic for a seed; the store of a site
//! deduplicates, so every round takes a seed of its own.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::table::Scale;

/// Bytes that are made at once.
const PIECE: usize = 1 << 20;

/// Small files in one folder, as a cache of a simulation has them.
const IN_A_FOLDER: u64 = 1000;

const MIB: u64 = 1 << 20;

/// The textures of a shot in mebibytes: a few are large, most are not. With the scenes it is 4 GiB.
const TEXTURES: [(u64, u64); 6] = [(1, 1024), (1, 512), (2, 256), (4, 128), (8, 64), (20, 20)];

/// The scenes of a shot: text that compresses to about two fifths.
const SCENES: [(u64, u64); 2] = [(4, 100), (8, 28)];

/// How many of the files an edit touches: every so many, from the largest on.
const EDITED: usize = 4;

/// Places in each of them.
const PLACES: u64 = 2;

/// What a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    /// Gigabytes of 10^9 bytes.
    pub(crate) fn giga(self) -> f64 {
        self.bytes as f64 / 1e9
    }

    /// Megabytes of 10^6 bytes.
    pub(crate) fn mega(self) -> f64 {
        self.bytes as f64 / 1e6
    }
}

/// A folder of files that this room made.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) folder: PathBuf,
    random: ChaCha8Rng,
}

impl Tree {
    /// An empty folder.
    pub(crate) fn new(folder: PathBuf, seed: u64) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, random: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// 4 GiB of textures and scenes, times `scale`.
    pub(crate) fn shot(folder: PathBuf, seed: u64, scale: Scale) -> Result<Self> {
        let mut tree = Self::new(folder, seed)?;
        for (n, mib) in TEXTURES {
            for i in 0..n {
                tree.noise(&format!("texture.{mib}.{i}.exr"), scale.of(mib * MIB))?;
            }
        }
        for (n, mib) in SCENES {
            for i in 0..n {
                tree.text(&format!("scene.{mib}.{i}.usda"), scale.of(mib * MIB))?;
            }
        }
        tree.flush()?;
        Ok(tree)
    }

    /// Many files of the same size.
    pub(crate) fn small(folder: PathBuf, seed: u64, (n, bytes): (u64, usize)) -> Result<Self> {
        let mut tree = Self::new(folder, seed)?;
        let mut contents = vec![0; bytes];
        for i in 0..n {
            let path = tree.small_path(i);
            if i % IN_A_FOLDER == 0 {
                fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
            }
            tree.random.fill_bytes(&mut contents);
            fs::write(path, &contents)?;
        }
        tree.flush()?;
        Ok(tree)
    }

    fn small_path(&self, i: u64) -> PathBuf {
        self.folder.join(format!("cache{:03}", i / IN_A_FOLDER)).join(format!("{i:06}.bin"))
    }

    /// Writes every `every`-th of the small files anew.
    pub(crate) fn change_small(&mut self, (n, bytes): (u64, usize), every: usize) -> Result<()> {
        let mut contents = vec![0; bytes];
        for i in (0..n).step_by(every) {
            self.random.fill_bytes(&mut contents);
            fs::write(self.small_path(i), &contents)?;
        }
        self.flush()
    }

    /// A file that nothing compresses and no other file shares a chunk with.
    pub(crate) fn noise(&mut self, name: &str, bytes: u64) -> Result<()> {
        let mut file = File::create(self.folder.join(name))?;
        let mut piece = vec![0; PIECE];
        let mut left = bytes;
        while left > 0 {
            let n = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
            self.random.fill_bytes(&mut piece[..n]);
            file.write_all(&piece[..n])?;
            left -= n as u64;
        }
        Ok(())
    }

    /// A file of numbers in decimal digits, each different.
    fn text(&mut self, name: &str, bytes: u64) -> Result<()> {
        let mut file = BufWriter::with_capacity(PIECE, File::create(self.folder.join(name))?);
        let words: Vec<String> =
            (0..=u8::MAX).map(|n| format!("{:.3}, ", f32::from(n) / 51.0)).collect();
        let mut noise = [0; 4096];
        let mut left = bytes;
        while left > 0 {
            self.random.fill_bytes(&mut noise);
            for byte in noise {
                let word = words[usize::from(byte)].as_bytes();
                let n = word.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                file.write_all(&word[..n])?;
                left -= n as u64;
            }
        }
        file.flush()?;
        Ok(())
    }

    /// Overwrites a hundredth of all bytes in place, with noise: in every fourth file, the largest among them.
    pub(crate) fn edit(&mut self) -> Result<()> {
        let files = self.by_size()?;
        let all: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        let edited: Vec<_> = files.into_iter().step_by(EDITED).collect();
        let there: u64 = edited.iter().map(|(_, bytes)| bytes).sum();
        for (path, bytes) in edited {
            let share = all / 100 * bytes / there;
            let mut noise = vec![0; usize::try_from(share / PLACES)?];
            let file = File::options().write(true).open(path)?;
            for place in 0..PLACES {
                self.random.fill_bytes(&mut noise);
                // Somewhere in the middle of its part, on no boundary.
                file.write_all_at(&noise, bytes / PLACES * place + bytes / 5 + 13)?;
            }
        }
        self.flush()
    }

    /// Inserts a line at the front of the largest file.
    pub(crate) fn insert(&mut self) -> Result<()> {
        let files = self.by_size()?;
        let (path, bytes) = files.first().context("there is a file")?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(b"# one line more than yesterday\n")?;
        std::io::copy(&mut File::open(path)?, &mut file)?;
        ensure!(file.metadata()?.len() > *bytes, "the insertion is missing");
        fs::rename(new, path)?;
        self.flush()
    }

    /// Gives every file another name in the same folder.
    pub(crate) fn rename(&mut self) -> Result<()> {
        for (path, _) in self.by_size()? {
            let name =
                path.file_name().and_then(|name| name.to_str()).context("names are ASCII")?;
            fs::rename(&path, path.with_file_name(format!("v2-{name}")))?;
        }
        self.flush()
    }

    /// Files and their sizes, the largest first, then by name.
    fn by_size(&self) -> Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        walk(&self.folder, &mut |path, bytes| files.push((path, bytes)))?;
        files.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(files)
    }

    pub(crate) fn amount(&self) -> Result<Amount> {
        amount_in(&self.folder)
    }

    /// Waits until the disk has everything, so that the writing of it slows nothing that is measured.
    fn flush(&self) -> Result<()> {
        flush(&self.folder)
    }
}

pub(crate) fn amount_in(folder: &Path) -> Result<Amount> {
    let mut amount = Amount { files: 0, bytes: 0 };
    walk(folder, &mut |_, bytes| {
        amount.files += 1;
        amount.bytes += bytes;
    })?;
    Ok(amount)
}

fn walk(folder: &Path, found: &mut dyn FnMut(PathBuf, u64)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), found)?;
        } else {
            found(entry.path(), entry.metadata()?.len());
        }
    }
    Ok(())
}

/// Waits until the disk of `folder` has everything that was written to it.
pub(crate) fn flush(folder: &Path) -> Result<()> {
    let folder = File::open(folder)?;
    let file = std::os::fd::AsRawFd::as_raw_fd(&folder);
    #[expect(unsafe_code, reason = "the standard library has no such call")]
    // SAFETY: the descriptor is open for the time of the call.
    let done = unsafe { libc::syncfs(file) };
    ensure!(done == 0, "syncfs: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Whether two folders hold the same files: names, sizes, and the bytes at the end of each.
pub(crate) fn same(a: &Path, b: &Path) -> Result<bool> {
    let list = |folder: &Path| -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut files = Vec::new();
        walk(folder, &mut |path, bytes| files.push((path, bytes)))?;
        let mut ends = Vec::new();
        for (path, bytes) in files {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(bytes.saturating_sub(PIECE as u64 / 16)))?;
            let mut end = bytes.to_le_bytes().to_vec();
            file.read_to_end(&mut end)?;
            ends.push((path.strip_prefix(folder)?.to_owned(), end));
        }
        ends.sort();
        Ok(ends)
    };
    Ok(list(a)? == list(b)?)
}
