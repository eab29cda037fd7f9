//! Which files of a laid-out content are opened, and when: seen from outside the jails that read them.
//!
//! The kernel tells of every opening of a watched file or of a file in a watched folder, by whatever path and
//! through whatever mount. A file that comes late replaces its placeholder, so that an opening of the
//! placeholder itself says that somebody was too early, also when it is heard of only later.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use meshfarm_protocol::id::Millis;

use crate::net::Clock;
use crate::traces::{Mark, Marks};

/// More folders than this are not watched: what is opened in them is not known then.
const MAX_FOLDERS: usize = 4096;

/// How often events are taken while nobody asks. The kernel keeps 16,384 of each kind.
const LOOK_EVERY: Millis = Millis(200);

/// Watches one laid-out content. Shared between threads.
#[derive(Debug)]
pub struct Opened {
    /// Placeholders of files that come late: events are rare here, so that none is lost.
    early: Inotify,
    /// Folders of files that are worth knowing about.
    folders: Inotify,
    marks: Marks,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Folders by their watch, as the manifest calls them.
    names: HashMap<WatchDescriptor, String>,
    /// Files that were opened, of those that are worth knowing about.
    opened: BTreeSet<Mark>,
    worth: BTreeSet<Mark>,
    /// Openings in folders may have been missed.
    missed: bool,
    /// So often a placeholder was opened.
    n_early: u64,
    /// A placeholder is not watched.
    blind: bool,
    /// The watches of placeholders that become files themselves.
    held: HashMap<PathBuf, WatchDescriptor>,
}

impl Opened {
    /// Watches nothing so far. Of files that are opened it remembers those in `worth`.
    ///
    /// # Errors
    /// When the system has no more watches to give.
    pub fn new(marks: Marks, worth: BTreeSet<Mark>) -> io::Result<Self> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let (early, folders) = (Inotify::init(flags)?, Inotify::init(flags)?);
        let state = Mutex::new(State { worth, ..State::default() });
        Ok(Self { early, folders, marks, state })
    }

    /// A placeholder stands at `path`.
    pub fn hold(&self, path: &Path) {
        let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_DONT_FOLLOW;
        match self.early.add_watch(path, flags) {
            Ok(watch) => drop(self.lock().held.insert(path.to_owned(), watch)),
            Err(error) => {
                tracing::debug!(%error, "a placeholder is not watched");
                self.lock().blind = true;
            }
        }
    }

    /// The placeholder at `path` has become the file itself, which may be opened.
    pub fn release(&self, path: &Path) {
        let watch = self.lock().held.remove(path);
        if let Some(Err(error)) = watch.map(|watch| self.early.rm_watch(watch)) {
            tracing::debug!(%error, "a file is still watched as a placeholder");
        }
    }

    /// Whether an opening of a placeholder could go unseen.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        self.lock().blind
    }

    /// Watch a folder, which the manifest calls `name`.
    pub fn watch(&self, folder: &Path, name: &str) {
        let mut state = self.lock();
        let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ONLYDIR;
        if state.names.len() >= MAX_FOLDERS {
            state.missed = true;
            return;
        }
        match self.folders.add_watch(folder, flags) {
            Ok(watch) => drop(state.names.insert(watch, name.to_owned())),
            Err(error) => {
                tracing::debug!(%error, "a folder is not watched");
                state.missed = true;
            }
        }
    }

    /// How often placeholders were opened so far. Whatever happened before the call is counted.
    #[must_use]
    pub fn n_early(&self) -> u64 {
        let mut state = self.lock();
        let counts = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_Q_OVERFLOW;
        let whole = read_all(&self.early, |event| {
            state.n_early += u64::from(event.mask.intersects(counts));
        });
        // What cannot be read may have been an opening.
        state.n_early += u64::from(!whole);
        state.n_early
    }

    /// The files that were opened so far, of those that are worth knowing about. None when some may have been missed.
    #[must_use]
    pub fn all(&self) -> Option<BTreeSet<Mark>> {
        let mut state = self.lock();
        self.look(&mut state);
        (!state.missed).then(|| state.opened.clone())
    }

    /// Take events again and again, so that their queue never fills, and call `too_early` when a placeholder was
    /// opened. Never ends by itself; dropping it midway is safe.
    pub async fn follow(&self, clock: &dyn Clock, too_early: impl Fn(u64) + Send) {
        let mut before = self.n_early();
        loop {
            clock.wait_until(clock.now().plus(LOOK_EVERY)).await;
            self.look(&mut self.lock());
            let n = self.n_early();
            if n != before {
                before = n;
                too_early(n);
            }
        }
    }

    fn look(&self, state: &mut State) {
        let State { names, opened, worth, missed, .. } = state;
        let whole = read_all(&self.folders, |event| {
            *missed |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            let (Some(folder), Some(name)) = (names.get(&event.wd), &event.name) else {
                return;
            };
            if event.mask.contains(AddWatchFlags::IN_ISDIR) {
                return;
            }
            if let Some(name) = name.to_str() {
                let mark = self.marks.of(&format!("{folder}/{name}"));
                if worth.contains(&mark) {
                    opened.insert(mark);
                }
            }
        });
        *missed |= !whole;
    }

    /// A panic elsewhere leaves sets and counts, which are true all the same.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes all events that wait. Returns whether there was no trouble.
fn read_all(events: &Inotify, mut take: impl FnMut(InotifyEvent)) -> bool {
    loop {
        match events.read_events() {
            Ok(some) => some.into_iter().for_each(&mut take),
            Err(Errno::EAGAIN) => return true,
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "what is opened cannot be seen");
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use meshfarm_protocol::id::TenantId;
    use meshfarm_protocol::seal::SigningKey;

    use super::*;

    fn marks() -> Marks {
        Marks::new(&SigningKey::from_seed(&[1; 32]), TenantId([2; 16]))
    }

    #[test]
    fn an_opening_of_a_placeholder_is_seen_also_after_the_file_has_come() {
        let home = tempfile::tempdir().unwrap();
        let (place, part) = (home.path().join("big.vdb"), home.path().join("part"));
        fs::write(&place, [0; 100]).unwrap();
        fs::write(&part, [1; 100]).unwrap();
        let opened = Opened::new(marks(), BTreeSet::new()).unwrap();
        opened.hold(&place);
        assert_eq!(fs::metadata(&place).unwrap().len(), 100);
        fs::read_dir(home.path()).unwrap().for_each(drop);
        assert_eq!(opened.n_early(), 0, "a look from outside does no harm");
        let held = fs::File::open(&place).unwrap();
        fs::rename(&part, &place).unwrap();
        drop(held);
        assert_eq!(opened.n_early(), 1);
        assert_eq!(fs::read(&place).unwrap(), [1; 100]);
        assert_eq!(opened.n_early(), 1, "the file itself may be opened");
        assert!(!opened.is_blind());
        let kept = home.path().join("kept");
        fs::write(&kept, [1; 100]).unwrap();
        opened.hold(&kept);
        fs::read(&kept).unwrap();
        opened.release(&kept);
        fs::read(&kept).unwrap();
        assert_eq!(opened.n_early(), 2, "what was opened before it was released counts");
        opened.hold(&home.path().join("nothing"));
        assert!(opened.is_blind());
    }

    #[test]
    fn what_is_opened_in_watched_folders_is_known() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("tex")).unwrap();
        for name in ["tex/wood.png", "tex/small", "other"] {
            fs::write(home.path().join(name), "bytes").unwrap();
        }
        let marks = marks();
        let worth = ["r0/tex/wood.png", "r0/tex/never.png"].map(|name| marks.of(name)).into();
        let opened = Opened::new(marks.clone(), worth).unwrap();
        opened.watch(&home.path().join("tex"), "r0/tex");
        for name in ["tex/wood.png", "tex/small", "other"] {
            fs::read(home.path().join(name)).unwrap();
        }
        assert_eq!(opened.all(), Some([marks.of("r0/tex/wood.png")].into()));
        opened.watch(&home.path().join("nothing"), "r0/nothing");
        assert_eq!(opened.all(), None, "what may have been missed is not guessed");
    }
}
