//! A disk of the jail's own: a filesystem of fixed size in a file without a name, for everything that the job writes.
//!
//! It is mounted in a mount namespace that only the launcher is in, so that the kernel unmounts it, frees the loop
//! device and the space when launcher, jail and whoever reads the outputs are gone, however they went.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Limits, SandboxError, Step, report::During, sys};

/// Where distributions keep the program that makes an ext4 filesystem.
const MAKERS: [&str; 3] = ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4", "/usr/bin/mkfs.ext4"];
/// Smaller than this no filesystem holds anything.
const LEAST_BYTES: u64 = 1 << 20;
/// Bytes that the filesystem needs for itself, for each file that it may hold.
const BYTES_PER_FILE: u64 = 512;

/// The mounted volume. Its folders are those of the job's writable places, by number.
#[derive(Debug)]
pub(crate) struct Volume {
    at: PathBuf,
}

impl Volume {
    /// Make the volume and go to a mount namespace of our own, where it is mounted.
    ///
    /// # Errors
    /// [`Step::Volume`]: not root, no loop device, no program that makes a filesystem.
    pub(crate) fn make(base: &Path, limits: &Limits) -> Result<Self, SandboxError> {
        Self::try_make(base, limits).during(Step::Volume, base.display())
    }

    fn try_make(base: &Path, limits: &Limits) -> io::Result<Self> {
        let maker = MAKERS.iter().find(|path| Path::new(path).exists());
        let maker = maker.ok_or_else(|| io::Error::other("mkfs.ext4 is not installed"))?;
        sys::own_mounts()?;
        sys::make_mounts_private()?;
        let at = base.join(format!(".meshfarm-volume-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&at)?;
        let volume = Self { at };
        let image = sys::unnamed_file(base)?;
        let bytes = limits.disk_bytes.max(LEAST_BYTES) + limits.disk_files * BYTES_PER_FILE;
        image.set_len(bytes)?;
        format(maker, &image, limits.disk_files)?;
        let device = sys::attach_loop(image.as_fd())?;
        sys::mount_from(&device.1, c"ext4", &volume.at, sys::MOUNT_FILES, "")?;
        Ok(volume)
    }

    /// Make a folder in the volume with a copy of what lies in a host folder, all of it the job's.
    pub(crate) fn fill(&self, name: &str, from: &Path, owner: u32) -> io::Result<PathBuf> {
        let to = self.at.join(name);
        copy(from, &to, owner)?;
        Ok(to)
    }

    /// The volume's root, for whoever collects from it when the jail is gone.
    pub(crate) fn root(&self) -> io::Result<OwnedFd> {
        sys::open_name(&self.at, sys::FOLDER)
    }

    /// What is in force, for the report.
    pub(crate) fn evidence(limits: &Limits) -> String {
        format!("a filesystem of {} bytes and {} files", limits.disk_bytes, limits.disk_files)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily, because the outputs may still be read; the folder beneath is empty and ours.
        drop(sys::unmount(&self.at));
        drop(fs::remove_dir(&self.at));
    }
}

fn format(maker: &str, image: &fs::File, files: u64) -> io::Result<()> {
    let made = Command::new(maker)
        // No journal: what a crash spoils is gone with the session anyway. Nothing is kept for root.
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode"])
        .args(["-E", "lazy_itable_init=1,nodiscard", "-N"])
        .arg((files + 16).to_string())
        .arg("/proc/self/fd/0")
        .env_clear()
        // Its guess of the device's best layout would read files that are not ours.
        .env("MKE2FS_CONFIG", "/dev/null")
        .stdin(Stdio::from(image.try_clone()?))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr);
    let line = said.lines().last().unwrap_or("it does not say why").to_owned();
    Err(io::Error::other(format!("{maker}: {line}")))
}

/// Copy folders and regular files; whoever laid them out made nothing else.
fn copy(from: &Path, to: &Path, owner: u32) -> io::Result<()> {
    if fs::symlink_metadata(from)?.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()), owner)?;
        }
        fs::set_permissions(to, fs::Permissions::from_mode(0o700))?;
    } else {
        fs::copy(from, to)?;
    }
    std::os::unix::fs::lchown(to, Some(owner), Some(owner))
}
