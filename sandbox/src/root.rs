//! The jail's empty root on the host's disk: which names are in it, made for one jail or kept for all of its shape.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use crate::{
    SandboxError, Step,
    report::During,
    spec::{KeptRoots, Spec},
    sys,
};

/// More roots than this are not kept in one folder: the oldest that no jail uses goes.
const MOST_KEPT: usize = 64;

/// A root that was begun so long ago and is not in its place belongs to a launcher that was killed.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// In the place of a kept root: the root itself, and its shape, which whoever uses the root has locked.
const ROOT: &str = "root";
const SHAPE: &str = "shape";

/// How the names of roots begin that belong to one launcher.
const OWN_PREFIX: &str = ".meshfarm-root-";

/// What a name of the root is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Folder,
    Link(PathBuf),
    File(Vec<u8>),
}

/// The names of a root, relative to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(BTreeMap<PathBuf, Name>);

impl Names {
    /// A folder, and those above it.
    ///
    /// # Errors
    /// Something else has one of these names.
    pub(crate) fn folder(&mut self, at: &Path) -> io::Result<()> {
        for above in at.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            let name = self.0.entry(above.to_path_buf()).or_insert(Name::Folder);
            if *name != Name::Folder {
                return Err(taken(above));
            }
        }
        Ok(())
    }

    /// An empty file to attach something to.
    ///
    /// # Errors
    /// A folder or a link has this name, or what is above it is no folder.
    pub(crate) fn place(&mut self, at: &Path) -> io::Result<()> {
        self.text(at, Vec::new())
    }

    /// A file with this content, in place of one that was there.
    ///
    /// # Errors
    /// As [`Names::place`].
    pub(crate) fn text(&mut self, at: &Path, text: impl Into<Vec<u8>>) -> io::Result<()> {
        self.put(at, Name::File(text.into()))
    }

    /// Whether there is something of this name.
    pub(crate) fn has(&self, at: &Path) -> bool {
        self.0.contains_key(at)
    }

    /// A link.
    ///
    /// # Errors
    /// As [`Names::place`].
    pub(crate) fn link(&mut self, at: &Path, target: impl Into<PathBuf>) -> io::Result<()> {
        self.put(at, Name::Link(target.into()))
    }

    fn put(&mut self, at: &Path, name: Name) -> io::Result<()> {
        self.folder(at.parent().unwrap_or(at))?;
        match (self.0.get(at), &name) {
            (None, _) | (Some(Name::File(_)), Name::File(_)) => {
                self.0.insert(at.to_path_buf(), name);
                Ok(())
            }
            (Some(_), _) => Err(taken(at)),
        }
    }

    /// Make them in an empty folder.
    fn write(&self, root: &Path) -> io::Result<()> {
        // In order of names a folder comes before what is in it.
        for (at, name) in &self.0 {
            let at = root.join(at);
            match name {
                Name::Folder => fs::DirBuilder::new().mode(0o755).create(at)?,
                Name::Link(target) => symlink(target, at)?,
                Name::File(text) => fs::write(at, text)?,
            }
        }
        Ok(())
    }

    /// What is in a folder now.
    fn read(root: &Path) -> io::Result<Self> {
        let mut names = BTreeMap::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(root.join(&folder))? {
                let entry = entry?;
                let (at, path) = (folder.join(entry.file_name()), entry.path());
                let kind = entry.file_type()?;
                let name = if kind.is_symlink() {
                    Name::Link(fs::read_link(path)?)
                } else if kind.is_dir() {
                    folders.push(at.clone());
                    Name::Folder
                } else {
                    Name::File(fs::read(path)?)
                };
                names.insert(at, name);
            }
        }
        Ok(Self(names))
    }

    /// The names as bytes that are equal only when the names are.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, name) in &self.0 {
            let (kind, content) = match name {
                Name::Folder => (b'd', &[][..]),
                Name::Link(target) => (b'l', target.as_os_str().as_bytes()),
                Name::File(text) => (b'f', text.as_slice()),
            };
            bytes.push(kind);
            for part in [at.as_os_str().as_bytes(), content] {
                bytes.extend((part.len() as u64).to_le_bytes());
                bytes.extend(part);
            }
        }
        bytes
    }
}

fn taken(at: &Path) -> io::Error {
    let text = format!("something else is at /{} in the jail", at.display());
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

/// An empty root that stands.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    /// The locked shape of a kept root; one of our own is removed when we are gone.
    kept: Option<File>,
}

impl Root {
    /// Find a kept root with these names or make one.
    ///
    /// # Errors
    /// [`Step::Skeleton`] with the folder that it cannot be made in.
    pub(crate) fn stand(spec: &Spec, names: &Names) -> Result<Self, SandboxError> {
        if let Some(roots) = &spec.roots
            && let Some(root) =
                find_or_keep(roots, names).during(Step::Skeleton, roots.folder.display())?
        {
            return Ok(root);
        }
        let base = base_of(spec);
        let path = fresh_folder(&base).during(Step::Skeleton, base.display())?;
        let root = Self { path, kept: None };
        names.write(&root.path).during(Step::Skeleton, root.path.display())?;
        Ok(root)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.kept.is_none() {
            // The node sweeps its folder at the next start, so a root that stays behind is only untidy.
            drop(fs::remove_dir_all(&self.path));
        }
    }
}

/// A kept root of this shape, made if there is none; nothing when another shape has its place.
fn find_or_keep(roots: &KeptRoots, names: &Names) -> io::Result<Option<Root>> {
    let folder = roots.folder.as_path();
    only_ours(folder)?;
    // Not over a start of the machine: what was not synced may be gone then.
    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let shape = [&boot, roots.owner.as_bytes(), b"\n", &names.bytes()].concat();
    let mut hash = DefaultHasher::new();
    shape.hash(&mut hash);
    let place = folder.join(format!("{:016x}", hash.finish()));
    // Another launcher may make or remove it at any moment.
    for _ in 0..8 {
        let mut file = match File::open(place.join(SHAPE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                keep(folder, &place, names, &shape)?;
                continue;
            }
            opened => opened?,
        };
        file.lock_shared()?;
        let there = fs::metadata(place.join(SHAPE)).map(|found| found.ino()).ok();
        if there != Some(file.metadata()?.ino()) {
            continue;
        }
        let mut found = Vec::new();
        file.read_to_end(&mut found)?;
        let root = Root { path: place.join(ROOT), kept: Some(file) };
        return Ok((found == shape).then_some(root));
    }
    Ok(None)
}

/// Refuse a folder that others could put a root into.
fn only_ours(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    if found.is_dir() && found.uid() == sys::effective_uid() && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    let text =
        "roots are kept only in a folder that nobody but its owner, the node's user, can write to";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Make a root aside, then give it its place unless another launcher was faster.
fn keep(folder: &Path, place: &Path, names: &Names, shape: &[u8]) -> io::Result<()> {
    let made = fresh_folder(folder)?;
    let root = made.join(ROOT);
    let kept = fs::DirBuilder::new()
        .mode(0o755)
        .create(&root)
        .and_then(|()| names.write(&root))
        .and_then(|()| fs::write(made.join(SHAPE), shape))
        .and_then(|()| match fs::rename(&made, place) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                fs::remove_dir_all(&made)
            }
            renamed => renamed,
        });
    if kept.is_err() {
        drop(fs::remove_dir_all(&made));
    }
    kept?;
    // That old ones stay is no reason to have no jail.
    drop(thin_out(folder));
    Ok(())
}

/// Remove the oldest roots that no jail uses, and what killed launchers have left.
fn thin_out(folder: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    let mut kept = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let made = entry.metadata()?.modified()?;
        if !entry.file_name().as_bytes().starts_with(OWN_PREFIX.as_bytes()) {
            kept.push((made, entry.path()));
        } else if now.duration_since(made).is_ok_and(|age| age > FORGOTTEN) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    kept.sort();
    let mut surplus = kept.len().saturating_sub(MOST_KEPT);
    for (_, place) in kept {
        if surplus == 0 {
            break;
        }
        let Ok(shape) = File::open(place.join(SHAPE)) else {
            continue;
        };
        if shape.try_lock().is_ok() {
            // First out of its place: whoever opened the shape meanwhile sees that it is gone.
            let aside = fresh_folder(folder)?;
            fs::rename(&place, &aside)?;
            drop(fs::remove_dir_all(&aside));
            surplus -= 1;
        }
    }
    Ok(())
}

/// The kept roots of a folder that are no longer what they were made as, in words. What jails see must never change.
///
/// # Errors
/// The folder or a root in it cannot be read.
pub fn changed_roots(folder: &Path) -> io::Result<Vec<String>> {
    let mut changed = Vec::new();
    for entry in fs::read_dir(folder)? {
        let place = entry?.path();
        let shape = fs::read(place.join(SHAPE))?;
        let names = Names::read(&place.join(ROOT))?.bytes();
        if !shape.ends_with(&names) {
            changed.push(format!("{} is not as it was made", place.display()));
        }
    }
    Ok(changed)
}

/// The folder for what is made for one jail alone.
pub(crate) fn base_of(spec: &Spec) -> PathBuf {
    spec.base.clone().unwrap_or_else(std::env::temp_dir)
}

/// Make a folder for one jail that has no other name on this host.
pub(crate) fn fresh_folder(base: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("{OWN_PREFIX}{process}-{n}"));
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                return Ok(path);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < 1000 => {}
            Err(e) => return Err(e),
        }
    }
}
