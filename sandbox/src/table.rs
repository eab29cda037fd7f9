//! Writes the preload library's table: the Windows rules, and the true names of files for lookups without case.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::spec::{Spec, WindowsRule};

#[path = "../preload/src/format.rs"]
mod format;

/// Most names in one table. A show with more has its case-insensitive rules on fewer folders.
const MOST_NAMES: usize = 1_000_000;
/// Deepest folder that is looked into.
const DEEPEST: usize = 64;

/// The table of a policy, as bytes. Reads the folders of case-insensitive rules on the host.
///
/// # Errors
/// When a folder cannot be read, or holds too many names.
pub(crate) fn build(spec: &Spec) -> io::Result<Vec<u8>> {
    let mut text = Text::default();
    let (mut rules, mut entries) = (Vec::new(), Vec::new());
    let mut n_entries = 0_u32;
    for rule in &spec.windows {
        let names = if rule.case_insensitive { names_below(spec, rule)? } else { Names::new() };
        let source = text.put(source_of(rule).as_bytes())?;
        let at = text.put(rule.at.as_os_str().as_bytes())?;
        let flags = if rule.case_insensitive { format::INSENSITIVE } else { 0 };
        let count = index(names.len())?;
        for n in [source.0, source.1, at.0, at.1, flags, n_entries, count] {
            rules.extend_from_slice(&n.to_le_bytes());
        }
        for ((hash, _), name) in names {
            let place = text.put(&name)?;
            entries.extend_from_slice(&hash.to_le_bytes());
            entries.extend_from_slice(&place.0.to_le_bytes());
            entries.extend_from_slice(&place.1.to_le_bytes());
        }
        n_entries += count;
    }
    let n_rules = index(spec.windows.len())?;
    debug_assert_eq!(rules.len(), spec.windows.len() * format::RULE);
    debug_assert_eq!(entries.len() % format::ENTRY, 0);
    let start = index(format::HEAD + rules.len() + entries.len())?;
    let mut bytes = format::MAGIC.to_vec();
    for n in [n_rules, n_entries, start, index(text.0.len())?] {
        bytes.extend_from_slice(&n.to_le_bytes());
    }
    Ok([bytes, rules, entries, text.0].concat())
}

/// True names relative to the rule's folder, by hash of the folded name and then by folded name.
///
/// Of two names that differ only in case the first in byte order is found, on every host alike.
type Names = BTreeMap<(u64, Vec<u32>), Vec<u8>>;

#[derive(Default)]
struct Text(Vec<u8>);

impl Text {
    fn put(&mut self, piece: &[u8]) -> io::Result<(u32, u32)> {
        let at = index(self.0.len())?;
        self.0.extend_from_slice(piece);
        Ok((at, index(piece.len())?))
    }
}

fn index(n: usize) -> io::Result<u32> {
    u32::try_from(n).map_err(|_range| io::Error::other("the table exceeds four gigabytes"))
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
            keep(&mut names, &name);
            if names.len() > MOST_NAMES {
                let text = format!("more than {MOST_NAMES} names below {}", rule.at.display());
                return Err(io::Error::other(text));
            }
        }
    }
    Ok(names)
}

fn keep(names: &mut Names, name: &Path) {
    let bytes = name.as_os_str().as_bytes();
    let key = (format::hash(bytes), format::folded(bytes).collect());
    let kept = names.entry(key).or_insert_with(|| bytes.to_vec());
    if bytes < kept.as_slice() {
        *kept = bytes.to_vec();
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
        let bytes = build(&spec).unwrap();
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((bytes[..8] == format::MAGIC, number(8), number(12)), (true, 1, 4));
        let text = &bytes[number(16)..];
        let piece =
            |at: usize| String::from_utf8_lossy(&text[number(at)..][..number(at + 4)]).into_owned();
        assert_eq!((piece(24), piece(32)), ("S:/Show".into(), "/mnt/show/tex".into()));
        let first = format::HEAD + format::RULE;
        let hashes: Vec<u64> = (0..4)
            .map(|n| u64::from_le_bytes(bytes[first + 16 * n..][..8].try_into().unwrap()))
            .collect();
        assert!(hashes.is_sorted());
        let mut names: Vec<String> = (0..4).map(|n| piece(first + 16 * n + 8)).collect();
        names.sort();
        assert_eq!(names, ["Old", "Old/a.exr", "TWIN", "Wood.PNG"]);
    }
}
