//! Looks at the machine's renderers again and again, so that one that is installed, replaced or removed while the node
//! runs is offered, or not offered any more.
//!
//! Each look asks for the file behind each program that a bundle's probe would start: some dozens of questions to the
//! file system. Only when one of these files is another one, and has been for two looks, is the machine probed again:
//! in the middle of an installation a program may be there and not work yet.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;

use meshfarm_core::Input;
use meshfarm_protocol::codec;
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::profile::{HostClass, Level};

use crate::config::{LicenceConfig, with_licences};
use crate::job_bundle::Catalog;
use crate::machine::Machine;
use crate::probe::{self, Cards};
use crate::store::{Batch, Family, Store};

/// How often the programs are looked at.
const LOOK_EVERY: Millis = Millis::seconds(10);

/// Where the last probe of this machine is remembered.
const HOST_KEY: &[u8] = b"host";

/// A remembered probe longer than this was not written by us.
const MAX_HOST: usize = 1 << 20;

/// What a machine is probed for, and where the answer is remembered.
#[derive(Clone, Debug)]
pub struct Probing {
    /// The renderers to look for.
    pub catalog: Arc<Catalog>,
    /// Remembers the machine.
    pub store: Arc<Store>,
    /// The folder where sessions work.
    pub scratch: PathBuf,
    /// Slots.
    pub slots: u32,
    /// The isolation that the sandbox reaches here.
    pub level: Level,
    /// Licences of the site.
    pub licences: Vec<LicenceConfig>,
    /// Folders of renderers that are looked into before those of PATH.
    pub software: Vec<PathBuf>,
    /// The graphics cards.
    pub cards: Arc<Cards>,
}

/// The file behind a program, and what tells it from an older one of the same name.
type File = Option<(PathBuf, u64, u64, i64, u64)>;

impl Probing {
    /// What the machine offered when it was probed last; none before the first time.
    #[must_use]
    pub fn remembered(&self) -> Option<HostClass> {
        let bytes = self.store.get(Family::Meta, HOST_KEY).ok().flatten()?;
        let host = codec::decode::<HostClass>(&bytes, MAX_HOST).ok()?;
        let host = HostClass { slots: self.slots, level: self.level, ..host };
        Some(with_licences(host, &self.licences))
    }

    /// Probes the machine and remembers what it offers. Its speed is measured once and believed from then on.
    #[must_use]
    pub fn probe(&self) -> HostClass {
        let speed = self.remembered().map(|host| host.speed);
        let (catalog, scratch) = (&*self.catalog, self.scratch.as_path());
        let (slots, level, cards) = (Some(self.slots), self.level, &*self.cards);
        let software = self.software.as_slice();
        let ask = probe::Ask { catalog, software, scratch, slots, speed, level, cards };
        let host = probe::probe(&ask);
        let mut batch = Batch::new();
        batch.put(Family::Meta, HOST_KEY, codec::encode(&host));
        if let Err(error) = self.store.commit(batch) {
            tracing::warn!(%error, "the probe of this machine is not remembered");
        }
        with_licences(host, &self.licences)
    }

    /// The files behind all programs that probes start.
    #[must_use]
    pub fn programs(&self) -> Vec<File> {
        let path = env::var_os("PATH").unwrap_or_default();
        let own = self.software.iter().flat_map(|folder| [folder.clone(), folder.join("bin")]);
        let folders: Vec<PathBuf> = own.chain(env::split_paths(&path)).collect();
        let probes = self.catalog.renderers.values().filter_map(|r| r.about.probe.as_ref());
        let names = probes.filter_map(|probe| probe.command.first());
        names.map(|name| find(name, &folders)).collect()
    }
}

/// The program that a command of this name starts.
fn find(name: &str, folders: &[PathBuf]) -> File {
    if name.contains('/') {
        return file(Path::new(name));
    }
    folders.iter().find_map(|folder| file(&folder.join(name)))
}

fn file(path: &Path) -> File {
    let about =
        fs::metadata(path).ok().filter(|about| about.is_file() && about.mode() & 0o111 != 0)?;
    let changed = about.ctime().wrapping_mul(1_000_000_000).wrapping_add(about.ctime_nsec());
    Some((path.to_owned(), about.dev(), about.ino(), changed, about.len()))
}

/// Look again and again, and tell the loop what the machine offers when that may have changed. `probed` are the programs
/// as they were at the last probe; none: the machine is probed at once. Ends with the loop.
pub async fn watch(
    probing: Probing,
    mut probed: Option<Vec<File>>,
    machine: Machine,
    input_tx: mpsc::Sender<Input>,
) {
    let (probing, clock, mut before) = (Arc::new(probing), &machine.clock, None);
    loop {
        let looking = Arc::clone(&probing);
        let seen = machine.block(move || looking.programs()).await;
        let settled = probed.is_none() || seen == before;
        if settled && seen.is_some() && seen != probed {
            let looking = Arc::clone(&probing);
            if let Some(host) = machine.block(move || looking.probe()).await {
                tracing::info!(software = ?host.software, "the machine was probed");
                if input_tx.send(Input::Host(Box::new(host))).await.is_err() {
                    return;
                }
            }
            probed.clone_from(&seen);
        }
        before = seen;
        tokio::select! {
            biased;
            () = input_tx.closed() => return,
            () = clock.wait_until(clock.now().plus(LOOK_EVERY)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_is_the_first_of_its_name_that_can_run_and_another_when_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let folders = ["a", "b"].map(|name| folder.path().join(name));
        folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
        assert_eq!(find("sketch", &folders), None);
        let second = folders[1].join("sketch");
        fs::write(&second, "#!/bin/sh\n").unwrap();
        assert_eq!(find("sketch", &folders), None, "it cannot run");
        fs::set_permissions(&second, fs::Permissions::from_mode(0o755)).unwrap();
        let found = find("sketch", &folders);
        assert_eq!(found.as_ref().map(|file| &file.0), Some(&second));
        assert_eq!(find(second.to_str().unwrap(), &[]), found);
        fs::write(&second, "#!/bin/sh\necho 2\n").unwrap();
        assert_ne!(find("sketch", &folders), found, "it was replaced");
        fs::copy(&second, folders[0].join("sketch")).unwrap();
        assert_eq!(find("sketch", &folders).unwrap().0, folders[0].join("sketch"));
    }
}
