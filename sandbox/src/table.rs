//! Writes the preload library's table: path rules, true names of files for lookups without case, watched folders.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::spec::{RECORDS_AT, Spec, WindowsRule};

#[path = "../preload/src/fold.rs"]
mod fold;
#[path = "../preload/src/format.rs"]
mod format;
#[path = "../preload/src/marks.rs"]
mod marks;

/// Most names in one table. A show with more has its case-insensitive rules on fewer folders.
const MOST_NAMES: usize = 1_000_000;
/// Deepest folder that is looked into.
const DEEPEST: usize = 64;

/// A table, and what a look-up without case cannot tell apart.
#[derive(Debug)]
pub(crate) struct Built {
    /// The table.
    pub(crate) bytes: Vec<u8>,
    /// Files in one folder whose names differ only in case or composition, as jail paths. A job that names
    /// one of them exactly gets it; for other spellings the first in byte order is taken.
    pub(crate) ambiguous: Vec<[PathBuf; 2]>,
}

/// The table of a policy. Reads the folders of case-insensitive rules on the host.
///
/// # Errors
/// When a folder cannot be read, or holds too many names.
pub(crate) fn build(spec: &Spec) -> io::Result<Built> {
    let mut table = Writer::default();
    let mut ambiguous = Vec::new();
    for rule in &spec.windows {
        let mut names = Names::new();
        let mut flags = 0;
        if rule.case_insensitive {
            names = names_below(spec, rule)?;
            flags = format::INSENSITIVE;
        }
        ambiguous.extend(doubles(&names).map(|pair| pair.map(|name| rule.at.join(name))));
        let at = rule.at.as_os_str().as_bytes();
        table.rule(source_of(rule).as_bytes(), at, flags, names)?;
    }
    for mount in &spec.mounts {
        table.watch(&mount.at)?;
    }
    ambiguous.sort();
    ambiguous.dedup();
    Ok(Built { bytes: table.finish(Some(Path::new(RECORDS_AT)), 0)?, ambiguous })
}

/// The table of a policy on a host that cannot show its folders where the artist has them.
///
/// # Errors
/// As [`build`], and when a path is not absolute and plain.
pub(crate) fn build_bare(spec: &Spec, relocation: &Relocation) -> io::Result<Built> {
    let mut table = Writer::default();
    let mut ambiguous = Vec::new();
    for rule in &spec.windows {
        let names = if rule.case_insensitive { names_below(spec, rule)? } else { Names::new() };
        ambiguous.extend(doubles(&names).map(|pair| pair.map(|name| rule.at.join(name))));
        let flags = if rule.case_insensitive { format::INSENSITIVE } else { 0 };
        let Some(mount) = spec.mount_of(&rule.at) else { continue };
        let at = match rule.at.strip_prefix(&mount.at) {
            Ok(inner) if !inner.as_os_str().is_empty() => mount.host.join(inner),
            _ => mount.host.clone(),
        };
        table.rule(source_of(rule).as_bytes(), plain(&at)?, flags, names)?;
    }
    let bytes = relocation.finish(table)?;
    Ok(Built { bytes, ambiguous })
}

/// Paths for hosts that cannot show a folder where the artist has it, for programs that load the preload
/// library with `MESHFARM_PATHS` naming a file of these bytes. A convenience: it keeps no program from anything.
#[derive(Debug, Clone, Default)]
pub struct Relocation {
    /// The artist's folders and the host folders that stand for them, absolute and plain.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// Whether programs are told the artist's names where the system says the host's (getcwd, readlink, realpath).
    pub reverse: bool,
    /// Folders below which is noted what is missing and what is opened, as the program spells them.
    pub watched: Vec<PathBuf>,
    /// The file for these notes.
    pub records: Option<PathBuf>,
}

impl Relocation {
    /// The table as the library reads it.
    ///
    /// # Errors
    /// When a path is not absolute and plain.
    pub fn table(&self) -> io::Result<Vec<u8>> {
        self.finish(Writer::default())
    }

    fn finish(&self, mut table: Writer) -> io::Result<Vec<u8>> {
        for (source, at) in &self.pairs {
            let (source, at) = (plain(source)?, plain(at)?);
            table.rule(source, at, format::POSIX, Names::new())?;
        }
        for folder in &self.watched {
            table.watch(folder)?;
        }
        table.finish(self.records.as_deref(), if self.reverse { format::REVERSE } else { 0 })
    }
}

fn plain(path: &Path) -> io::Result<&[u8]> {
    use std::path::Component;
    let mut parts = path.components();
    let absolute = parts.next() == Some(Component::RootDir);
    let bytes = path.as_os_str().as_bytes();
    let rebuilt: PathBuf = path.components().collect();
    if absolute
        && bytes.len() > 1
        && rebuilt.as_os_str() == path.as_os_str()
        && parts.all(|part| matches!(part, Component::Normal(_)))
    {
        Ok(bytes)
    } else {
        let text = format!("{} is no plain absolute path below the root", path.display());
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }
}

/// The parts of a table as they grow.
#[derive(Default)]
struct Writer {
    text: Vec<u8>,
    /// Hash of the source, and the rest of the rule.
    rules: Vec<(u64, [u32; 6])>,
    entries: Vec<u8>,
    watched: Vec<u8>,
}

impl Writer {
    fn put(&mut self, piece: &[u8]) -> io::Result<[u32; 2]> {
        let at = index(self.text.len())?;
        self.text.extend_from_slice(piece);
        Ok([at, index(piece.len())?])
    }

    fn rule(&mut self, source: &[u8], at: &[u8], flags: u32, names: Names) -> io::Result<()> {
        let first = index(self.entries.len() / format::ENTRY)?;
        let [source_at, source_length] = self.put(source)?;
        let [at, at_length] = self.put(at)?;
        let before = self.entries.len();
        for ((hash, _), alike) in names {
            for name in alike {
                let [at, length] = self.put(&name)?;
                self.entries.extend_from_slice(&hash.to_le_bytes());
                self.entries.extend_from_slice(&at.to_le_bytes());
                self.entries.extend_from_slice(&length.to_le_bytes());
            }
        }
        let count = index((self.entries.len() - before) / format::ENTRY)?;
        if count > format::COUNT {
            return Err(io::Error::other("too many names for one rule"));
        }
        let fields = [source_at, source_length, at, at_length, first, count | flags];
        self.rules.push((hash(format::SEED, source), fields));
        Ok(())
    }

    fn watch(&mut self, folder: &Path) -> io::Result<()> {
        for n in self.put(folder.as_os_str().as_bytes())? {
            self.watched.extend_from_slice(&n.to_le_bytes());
        }
        Ok(())
    }

    fn finish(mut self, records: Option<&Path>, flags: u32) -> io::Result<Vec<u8>> {
        let mut recorded = [0, 0];
        if let Some(records) = records {
            recorded = self.put(&[records.as_os_str().as_bytes(), b"\0"].concat())?;
        }
        self.rules.sort_by_key(|(hash, _)| *hash);
        let mut rules = Vec::with_capacity(self.rules.len() * format::RULE);
        for (hash, fields) in &self.rules {
            rules.extend_from_slice(&hash.to_le_bytes());
            fields.iter().for_each(|n| rules.extend_from_slice(&n.to_le_bytes()));
        }
        let start = format::HEAD + rules.len() + self.entries.len() + self.watched.len();
        let mut bytes = format::MAGIC.to_vec();
        for n in [
            index(self.rules.len())?,
            index(self.entries.len() / format::ENTRY)?,
            index(self.watched.len() / format::WATCHED)?,
            index(start)?,
            index(self.text.len())?,
            flags,
            recorded[0],
            recorded[1],
        ] {
            bytes.extend_from_slice(&n.to_le_bytes());
        }
        bytes.resize(format::HEAD, 0);
        Ok([bytes, rules, self.entries, self.watched, self.text].concat())
    }
}

/// The hash of a path, from that of the folder above it.
fn hash(above: u64, path: &[u8]) -> u64 {
    path.split(|b| *b == b'/').fold(above, format::hash_part)
}

fn index(n: usize) -> io::Result<u32> {
    u32::try_from(n).map_err(|_range| io::Error::other("the table exceeds four gigabytes"))
}

/// True names relative to the rule's folder, by hash of source and folded name and then by folded name; those that
/// fold equally in byte order, on every host alike.
type Names = BTreeMap<(u64, Vec<u32>), Vec<Vec<u8>>>;

/// Names that fold equally and lie in one folder, by their first two spellings.
fn doubles(names: &Names) -> impl Iterator<Item = [PathBuf; 2]> + '_ {
    let path = |name: &Vec<u8>| PathBuf::from(std::ffi::OsStr::from_bytes(name));
    names.values().flat_map(move |alike| {
        let mut paths: Vec<PathBuf> = alike.iter().map(path).collect();
        // Beneath two folders that differ only in case, only the folders are named.
        paths.dedup_by(|later, earlier| later.parent() != earlier.parent());
        paths.windows(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect::<Vec<_>>()
    })
}

/// A rule's source as the library compares it: `c:/show` or `//server/share/show`.
fn source_of(rule: &WindowsRule) -> String {
    let mut parts = rule.source.split(['/', '\\']).filter(|p| !p.is_empty()).peekable();
    let drive = parts.peek().is_some_and(|p| p.len() == 2 && p.ends_with(':'));
    let joined = parts.collect::<Vec<_>>().join("/");
    if drive { joined } else { format!("//{joined}") }
}

fn names_below(spec: &Spec, rule: &WindowsRule) -> io::Result<Names> {
    let mut names = Names::new();
    let mut n_names = 0;
    let above = hash(format::SEED, source_of(rule).as_bytes());
    let mut waiting: Vec<(PathBuf, PathBuf, usize)> = Vec::new();
    // The mount that the rule lies in, and every mount that lies beneath the rule.
    for mount in spec.mounts_in_order() {
        if let Ok(inner) = rule.at.strip_prefix(&mount.at) {
            waiting = vec![(mount.host.join(inner), PathBuf::new(), 0)];
        } else if let Ok(deeper) = mount.at.strip_prefix(&rule.at) {
            waiting.push((mount.host.clone(), deeper.to_path_buf(), 0));
        }
    }
    while let Some((host, relative, depth)) = waiting.pop() {
        let listed = match fs::read_dir(&host) {
            // The rule's folder may be made by the job itself; a file has no names below it.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                continue;
            }
            other => other?,
        };
        for entry in listed {
            let entry = entry?;
            let name = relative.join(entry.file_name());
            if entry.file_type()?.is_dir() && depth < DEEPEST {
                waiting.push((entry.path(), name.clone(), depth + 1));
            }
            keep(&mut names, above, &name);
            n_names += 1;
            if n_names > MOST_NAMES {
                let text = format!("more than {MOST_NAMES} names below {}", rule.at.display());
                return Err(io::Error::other(text));
            }
        }
    }
    Ok(names)
}

fn keep(names: &mut Names, above: u64, name: &Path) {
    let bytes = name.as_os_str().as_bytes();
    let alike = names.entry((hash(above, bytes), fold::folded(bytes).collect())).or_default();
    if let Err(place) = alike.binary_search_by(|other| other.as_slice().cmp(bytes)) {
        alike.insert(place, bytes.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Mount};

    #[test]
    fn a_table_holds_the_rules_and_the_true_names_in_order_of_their_hashes() {
        let room = tempfile::tempdir().unwrap();
        fs::create_dir_all(room.path().join("tex/Old")).unwrap();
        for name in ["tex/Wood.PNG", "tex/Old/a.exr", "tex/twin", "tex/TWIN"] {
            fs::write(room.path().join(name), "").unwrap();
        }
        let mut spec = Spec::new("/bin/true", "/srv/work");
        spec.mounts.push(Mount {
            host: room.path().into(),
            at: "/mnt/show".into(),
            access: Access::Read,
            exec: false,
        });
        spec.windows.push(WindowsRule {
            source: r"S:\\Show\".into(),
            at: "/mnt/show/tex".into(),
            case_insensitive: true,
        });
        let built = build(&spec).unwrap();
        let twins = ["/mnt/show/tex/TWIN", "/mnt/show/tex/twin"].map(PathBuf::from);
        assert_eq!(built.ambiguous, [twins]);
        let bytes = built.bytes;
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((&bytes[..8], number(8), number(12), number(16)), (&format::MAGIC[..], 1, 5, 1));
        let text = &bytes[number(20)..];
        let piece =
            |at: usize| String::from_utf8_lossy(&text[number(at)..][..number(at + 4)]).into_owned();
        let rule = format::HEAD + 8;
        assert_eq!((piece(rule), piece(rule + 8)), ("S:/Show".into(), "/mnt/show/tex".into()));
        assert_eq!(piece(32), "/session/.meshfarm-paths\0");
        let first = format::HEAD + format::RULE;
        let hashes: Vec<u64> = (0..5)
            .map(|n| u64::from_le_bytes(bytes[first + 16 * n..][..8].try_into().unwrap()))
            .collect();
        assert!(hashes.is_sorted());
        let mut names: Vec<String> = (0..5).map(|n| piece(first + 16 * n + 8)).collect();
        names.sort();
        assert_eq!(names, ["Old", "Old/a.exr", "TWIN", "Wood.PNG", "twin"]);
        assert_eq!(piece(first + 16 * 5), "/mnt/show");
    }

    #[test]
    fn twins_in_composition_are_told_and_what_lies_below_twin_folders_is_not_told_again() {
        let room = tempfile::tempdir().unwrap();
        for folder in ["Tex", "tex"] {
            fs::create_dir(room.path().join(folder)).unwrap();
            fs::write(room.path().join(folder).join("a.png"), "").unwrap();
        }
        for name in ["\u{e9}.exr", "e\u{301}.exr"] {
            fs::write(room.path().join(name), "").unwrap();
        }
        let mut spec = Spec::new("/bin/true", "/srv/work");
        spec.mounts.push(Mount {
            host: room.path().into(),
            at: "/m".into(),
            access: Access::Read,
            exec: false,
        });
        let rule = WindowsRule { source: r"C:\m".into(), at: "/m".into(), case_insensitive: true };
        spec.windows.push(rule);
        let told = build(&spec).unwrap().ambiguous;
        let pair = |one: &str, other: &str| [PathBuf::from(one), PathBuf::from(other)];
        assert_eq!(told, [pair("/m/Tex", "/m/tex"), pair("/m/e\u{301}.exr", "/m/\u{e9}.exr")]);
    }

    #[test]
    fn only_plain_absolute_paths_are_relocated() {
        for bad in ["", "/", "show", "/a/../b", "/a/", "//a", "/a/./b"] {
            let pairs = vec![(PathBuf::from(bad), PathBuf::from("/srv"))];
            assert!(Relocation { pairs, ..Relocation::default() }.table().is_err(), "{bad}");
        }
        let pairs = vec![("/home/artist".into(), "/srv/in".into())];
        let bytes = Relocation { pairs, ..Relocation::default() }.table().unwrap();
        assert_eq!(bytes[..8], format::MAGIC);
    }
}
