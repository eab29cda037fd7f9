//! The person's writable folders: lent to the jail's user while a command runs, or filled with what is accepted of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use meshfarm_sandbox::{Jail, TENANT_UID_BASE, collect};

use crate::beneath::{Descent, Folder};
use crate::sys;

use super::plan::Plan;

/// Folders that belong to the jail's user for a while, and to whom before.
#[derive(Debug)]
pub(super) struct Lent(Vec<(PathBuf, u32, u32)>);

/// When we are root, the jail has a user of its own, who must own what it may change.
///
/// # Errors
/// When a folder cannot be given away; what was given by then is given back.
pub(super) fn lend(plan: &Plan) -> io::Result<Lent> {
    let mut lent = Lent(Vec::new());
    if plan.outputs().is_some() || !sys::is_root() || !sys::has_user(TENANT_UID_BASE) {
        return Ok(lent);
    }
    for target in &plan.targets {
        let about = fs::metadata(&target.folder)?;
        lent.0.push((target.folder.clone(), about.uid(), about.gid()));
        if let Err(error) = give(&target.folder, (TENANT_UID_BASE, TENANT_UID_BASE)) {
            lent.give_back()?;
            return Err(error);
        }
    }
    Ok(lent)
}

impl Lent {
    /// Everything in the folders belongs to the folders' owners again.
    ///
    /// # Errors
    /// When one cannot be given back; the others are.
    pub(super) fn give_back(&self) -> io::Result<()> {
        let all = self.0.iter().map(|(folder, uid, gid)| give(folder, (*uid, *gid)));
        // All are tried, whatever the first one says.
        let all: Vec<_> = all.collect();
        all.into_iter().collect()
    }
}

/// Give a tree away, links themselves and not what they lead to.
fn give(path: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    lchown(path, Some(uid), Some(gid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), (uid, gid))?;
        }
    }
    Ok(())
}

/// Copy what is accepted of the outputs into the person's folders, when the jail is dead.
///
/// # Errors
/// When a folder cannot be written; what was copied stays.
pub(super) fn take(plan: &Plan, jail: &Jail) -> io::Result<()> {
    let Some(outputs) = plan.outputs() else {
        return Ok(());
    };
    for target in &plan.targets {
        let written = jail.written(&target.at).map_err(io::Error::other)?;
        let mut descent = Descent::new(Folder::open(&target.folder)?);
        collect(written, outputs.limits, |path, file, length| {
            if outputs.accepts(path) { land(&mut descent, path, (file, length)) } else { Ok(()) }
        })?;
        if sys::is_root() {
            let about = fs::metadata(&target.folder)?;
            give(&target.folder, (about.uid(), about.gid()))?;
        }
    }
    Ok(())
}

fn land(descent: &mut Descent, path: &Path, (file, length): (File, u64)) -> io::Result<()> {
    let names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
    let Some((name, folders)) = names.split_last() else {
        return Ok(());
    };
    let folder = descent.enter(folders, |_| Ok(()))?;
    // Aside first, so that an older file is replaced by a whole one.
    let draft = format!(".{name}.part");
    match folder.remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut to = folder.create_file(&draft, false)?;
    io::copy(&mut io::Read::take(file, length), &mut to)?;
    folder.rename(&draft, name)
}
