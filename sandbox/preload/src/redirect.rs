//! Pure: from a path as a program wrote it to `Pass`, `Redirect` or `Refuse`. No allocation, no system call.

use crate::format::{ENTRY, HEAD, INSENSITIVE, MAGIC, RULE, folded, hash};

/// Longest path, with its final NUL, that the kernel takes.
pub(crate) const PATH_MAX: usize = 4096;
/// The path cannot exist.
pub(crate) const ENOENT: i32 = 2;
/// The path became too long.
pub(crate) const ENAMETOOLONG: i32 = 36;

/// What to do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Not ours: use it as it is.
    Pass,
    /// Use the first so many bytes of the output instead; a NUL follows them.
    Redirect(usize),
    /// Fail with this errno.
    Refuse(i32),
}

/// A table whose bytes hold together as far as they are used: every access is checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    bytes: &'a [u8],
    n_rules: usize,
    n_entries: usize,
    text: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
struct Rule<'a> {
    source: &'a [u8],
    at: &'a [u8],
    insensitive: bool,
    first: usize,
    count: usize,
}

impl<'a> Table<'a> {
    /// Read the head of a table; `None` when the bytes are none.
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..8)? != MAGIC {
            return None;
        }
        let n_rules = number(bytes, 8)?;
        let n_entries = number(bytes, 12)?;
        let start = number(bytes, 16)?;
        let end = start.checked_add(number(bytes, 20)?)?;
        let lists = HEAD + n_rules.checked_mul(RULE)? + n_entries.checked_mul(ENTRY)?;
        if lists > start {
            return None;
        }
        Some(Self { bytes, n_rules, n_entries, text: bytes.get(start..end)? })
    }

    fn rule(&self, n: usize) -> Option<Rule<'a>> {
        let at = HEAD + n.checked_mul(RULE)?;
        let field = |i: usize| number(self.bytes, at + 4 * i);
        Some(Rule {
            source: self.piece(field(0)?, field(1)?)?,
            at: self.piece(field(2)?, field(3)?)?,
            insensitive: field(4)? & INSENSITIVE as usize != 0,
            first: field(5)?,
            count: field(6)?,
        })
    }

    fn piece(&self, offset: usize, length: usize) -> Option<&'a [u8]> {
        self.text.get(offset..offset.checked_add(length)?)
    }

    /// The entry of a rule whose folded path equals that of `path`.
    fn find(&self, rule: &Rule<'a>, path: &[u8]) -> Option<&'a [u8]> {
        let wanted = hash(path);
        let (mut low, mut high) = (rule.first, rule.first.checked_add(rule.count)?);
        if high > self.n_entries {
            return None;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.0 < wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let end = rule.first + rule.count;
        (low..end)
            .map_while(|n| self.entry(n).filter(|(hash, _)| *hash == wanted))
            .map(|(_, name)| name)
            .find(|name| folded(name).eq(folded(path)))
    }

    fn entry(&self, n: usize) -> Option<(u64, &'a [u8])> {
        let at = HEAD + self.n_rules * RULE + n.checked_mul(ENTRY)?;
        let hash = self.bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)?;
        let name = self.piece(number(self.bytes, at + 8)?, number(self.bytes, at + 12)?)?;
        Some((hash, name))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

/// Whether a path could be a Windows path at all: most are not, and this is all they cost.
pub(crate) fn looks_foreign(path: &[u8]) -> bool {
    path.iter().any(|b| *b == b':' || *b == b'\\')
}

/// Decide about one path.
pub(crate) fn redirect(table: &Table<'_>, path: &[u8], out: &mut [u8; PATH_MAX]) -> Decision {
    if path.len() >= PATH_MAX || !looks_foreign(path) {
        return Decision::Pass;
    }
    let Some((root, rest)) = windows_root(path) else {
        return Decision::Pass;
    };
    let Some(root) = root else {
        return Decision::Refuse(ENOENT);
    };
    let mut plain = Plain { bytes: [0; PATH_MAX], length: 0 };
    if let Err(errno) = plain.fill(root, rest) {
        return Decision::Refuse(errno);
    }
    let plain = &plain.bytes[..plain.length];
    let rules = (0..table.n_rules).filter_map(|n| table.rule(n));
    let fitting = rules.filter_map(|rule| Some((below(plain, rule.source)?, rule)));
    // The rule that leaves the least over is the longest, in whatever order they come.
    let Some((rest, rule)) = fitting.min_by_key(|(rest, _)| rest.len()) else {
        return Decision::Pass;
    };
    let trailing = path.last().copied().is_some_and(is_separator);
    write(table, &rule, rest, trailing, out)
}

/// The root of a Windows path within a path, and what follows it; `Some(None)` for a device.
///
/// The root is a drive letter, or empty for a server whose name and share come first in the rest.
/// POV-Ray tries a path glued to each of its folders: `/usr/share/povray/C:\show\x`. So a drive or a
/// double backslash at the start of any part counts.
fn windows_root(path: &[u8]) -> Option<(Option<Option<u8>>, &[u8])> {
    let start = (0..path.len())
        .filter(|i| *i == 0 || path[i - 1] == b'/')
        .find(|i| drive(&path[*i..]).is_some() || path[*i..].starts_with(br"\\"))?;
    let path = &path[start..];
    if let Some(letter) = drive(path) {
        return Some((Some(Some(letter)), &path[2..]));
    }
    let rest = &path[2..];
    if let Some(verbatim) = rest.strip_prefix(br"?\") {
        if let Some(letter) = drive(verbatim) {
            return Some((Some(Some(letter)), &verbatim[2..]));
        }
        return match verbatim.get(..4) {
            Some(unc) if unc.eq_ignore_ascii_case(br"UNC\") => Some((Some(None), &verbatim[4..])),
            _ => Some((None, rest)),
        };
    }
    if rest.starts_with(br".\") {
        return Some((None, rest));
    }
    // Exactly two backslashes make a server.
    rest.first().filter(|b| !is_separator(**b))?;
    Some((Some(None), rest))
}

/// The drive letter of `X:\` or `X:/`. `X:name` depends on a current folder per drive and is not absolute.
fn drive(path: &[u8]) -> Option<u8> {
    match path {
        [letter, b':', separator, ..]
            if letter.is_ascii_alphabetic() && is_separator(*separator) =>
        {
            Some(letter.to_ascii_lowercase())
        }
        _ => None,
    }
}

fn is_separator(byte: u8) -> bool {
    byte == b'/' || byte == b'\\'
}

/// A Windows path with single forward separators, without `.`, `..`, trailing dots and spaces.
struct Plain {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl Plain {
    fn fill(&mut self, root: Option<u8>, rest: &[u8]) -> Result<(), i32> {
        // What `..` cannot take away: a drive, or a server and its share.
        let kept = if let Some(letter) = root {
            self.push(&[letter, b':'])?;
            0
        } else {
            self.push(b"/")?;
            2
        };
        let mut n_parts = 0;
        for part in rest.split(|b| is_separator(*b)) {
            match part {
                b"" | b"." => {}
                b".." if n_parts > kept => {
                    n_parts -= 1;
                    let cut = self.bytes[..self.length].iter().rposition(|b| *b == b'/');
                    self.length = cut.unwrap_or(self.length);
                }
                b".." => {}
                part => {
                    self.push(b"/")?;
                    self.push(fit(part)?)?;
                    n_parts += 1;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), i32> {
        let end = self.length + bytes.len();
        self.bytes.get_mut(self.length..end).ok_or(ENAMETOOLONG)?.copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }
}

/// A part as Windows would store it; `ENOENT` for names that cannot exist there.
fn fit(part: &[u8]) -> Result<&[u8], i32> {
    let end = part.iter().rposition(|b| *b != b'.' && *b != b' ').ok_or(ENOENT)?;
    let part = &part[..=end];
    let stem = part.split(|b| *b == b'.').next().unwrap_or(part);
    let device = match stem {
        [a, b, c] => {
            [b"CON", b"NUL", b"AUX", b"PRN"].iter().any(|d| [*a, *b, *c].eq_ignore_ascii_case(*d))
        }
        [a, b, c, b'1'..=b'9'] => {
            [b"COM", b"LPT"].iter().any(|d| [*a, *b, *c].eq_ignore_ascii_case(*d))
        }
        _ => false,
    };
    if device || part.contains(&b':') { Err(ENOENT) } else { Ok(part) }
}

/// What follows a source in a path, if the source ends where a part ends.
fn below<'a>(plain: &'a [u8], source: &[u8]) -> Option<&'a [u8]> {
    let n_parts = source.iter().filter(|b| **b == b'/').count();
    let mut cuts = plain.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    let cut = cuts.nth(n_parts).unwrap_or(plain.len());
    let (head, rest) = plain.split_at(cut);
    folded(head).eq(folded(source)).then(|| rest.strip_prefix(b"/").unwrap_or(rest))
}

fn write(
    table: &Table<'_>,
    rule: &Rule<'_>,
    rest: &[u8],
    trailing: bool,
    out: &mut [u8; PATH_MAX],
) -> Decision {
    // The longest part of the path that is in the index takes its true spelling; what is new keeps its own.
    let mut known: &[u8] = b"";
    let mut fresh = rest;
    if rule.insensitive {
        let mut end = rest.len();
        while end > 0 {
            if let Some(name) = table.find(rule, &rest[..end]) {
                known = name;
                let after = &rest[end..];
                fresh = after.strip_prefix(b"/").unwrap_or(after);
                break;
            }
            end = rest[..end].iter().rposition(|b| *b == b'/').unwrap_or(0);
        }
    }
    let slash = |following: &[u8]| -> &[u8] { if following.is_empty() { b"" } else { b"/" } };
    let tail: &[u8] = if trailing { b"/" } else { b"" };
    let mut length = 0;
    for piece in [rule.at, slash(known), known, slash(fresh), fresh, tail, b"\0"] {
        let Some(place) = out.get_mut(length..length + piece.len()) else {
            return Decision::Refuse(ENAMETOOLONG);
        };
        place.copy_from_slice(piece);
        length += piece.len();
    }
    Decision::Redirect(length - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn short(n: usize) -> u32 {
        u32::try_from(n).unwrap()
    }

    /// Build a table as the launcher does.
    fn table(rules: &[(&str, &str, &[&str])]) -> Vec<u8> {
        let (mut text, mut lists, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        let mut put = |piece: &str| {
            let at = short(text.len());
            text.extend_from_slice(piece.as_bytes());
            [at, short(piece.len())]
        };
        for (source, at, names) in rules {
            let mut sorted: Vec<_> = names.iter().map(|n| (hash(n.as_bytes()), *n)).collect();
            sorted.sort();
            let (source, at) = (put(source), put(at));
            let flags = if names.is_empty() { 0 } else { INSENSITIVE };
            let first = short(entries.len() / ENTRY);
            for n in [source[0], source[1], at[0], at[1], flags, first, short(names.len())] {
                lists.extend_from_slice(&n.to_le_bytes());
            }
            for (hash, name) in sorted {
                entries.extend_from_slice(&hash.to_le_bytes());
                for n in put(name) {
                    entries.extend_from_slice(&n.to_le_bytes());
                }
            }
        }
        let start = short(HEAD + lists.len() + entries.len());
        let counts = [short(rules.len()), short(entries.len() / ENTRY), start, short(text.len())];
        let mut all = MAGIC.to_vec();
        counts.iter().for_each(|n| all.extend_from_slice(&n.to_le_bytes()));
        [all, lists, entries, text].concat()
    }

    fn show() -> Vec<u8> {
        table(&[
            ("c:/show", "/home/a/show", &[]),
            ("c:/show/tex", "/mnt/tex", &["Wood.PNG", "Été", "Été/Blé.exr"]),
            ("//nas/share", "/mnt/nas", &[]),
        ])
    }

    fn map(bytes: &[u8], path: &str) -> Result<String, Decision> {
        let mut out = [0; PATH_MAX];
        match redirect(&Table::new(bytes).unwrap(), path.as_bytes(), &mut out) {
            Decision::Redirect(n) => {
                assert_eq!(out[n], 0);
                Ok(String::from_utf8_lossy(&out[..n]).into_owned())
            }
            other => Err(other),
        }
    }

    #[test]
    fn drives_and_servers_are_found_with_any_separators_and_case() {
        let table = show();
        for path in [
            r"C:\show\a.pov",
            r"c:/show/a.pov",
            r"C:\\show\\a.pov",
            r"C:\/SHOW\.\x\..\a.pov",
            r"\\?\C:\show\a.pov",
            r"/usr/share/povray-3.7/C:\\show\\a.pov",
            r"inc/C:/show/a.pov. ",
        ] {
            assert_eq!(map(&table, path), Ok("/home/a/show/a.pov".into()), "{path}");
        }
        for path in
            [r"\\nas\share\b", r"\\NAS/share\\b", r"\\?\UNC\nas\share\b", r"\\nas\share\..\b"]
        {
            assert_eq!(map(&table, path), Ok("/mnt/nas/b".into()), "{path}");
        }
        assert_eq!(map(&table, r"C:\show"), Ok("/home/a/show".into()));
        assert_eq!(map(&table, r"C:\show\dir\"), Ok("/home/a/show/dir/".into()));
    }

    #[test]
    fn the_longest_rule_wins_and_the_index_knows_the_true_names() {
        let table = show();
        assert_eq!(map(&table, r"C:\Show\Tex\wood.png"), Ok("/mnt/tex/Wood.PNG".into()));
        assert_eq!(map(&table, r"C:\show\tex\éTÉ\bLÉ.EXR"), Ok("/mnt/tex/Été/Blé.exr".into()));
        assert_eq!(map(&table, r"C:\show\tex\ÉTÉ\New.exr"), Ok("/mnt/tex/Été/New.exr".into()));
        assert_eq!(map(&table, r"C:\show\tex\..\a"), Ok("/home/a/show/a".into()));
        assert_eq!(map(&table, r"C:\show\texture"), Ok("/home/a/show/texture".into()));
    }

    #[test]
    fn what_is_no_path_of_ours_passes_and_what_cannot_exist_is_refused() {
        let table = show();
        for path in [
            "/home/x",
            "",
            "rel",
            "C:show",
            "a:b",
            r"a\b",
            r"C:\shows\x",
            r"D:\show",
            "https://x/y",
            r"\show\x",
            "/srv//nas/share",
            r"C:\..\other",
        ] {
            assert_eq!(map(&table, path), Err(Decision::Pass), "{path}");
        }
        for path in [
            r"\\.\PhysicalDrive0",
            r"C:\show\con",
            r"C:\show\nul.txt",
            r"C:\show\a:stream",
            r"\\?\GLOBALROOT\x",
            r"C:\show\...\x",
        ] {
            assert_eq!(map(&table, path), Err(Decision::Refuse(ENOENT)), "{path}");
        }
    }

    #[test]
    fn a_path_that_grows_too_long_is_refused() {
        let long = "/".to_owned() + &"t".repeat(3000);
        let table = table(&[("c:", &long, &[])]);
        let path = format!(r"C:\{}", "x".repeat(2000));
        assert_eq!(map(&table, &path), Err(Decision::Refuse(ENAMETOOLONG)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_results_stay_below_their_target(
            path in proptest::collection::vec(
                prop_oneof![3 => proptest::sample::select(br"cC:\/.show tex~nas?UNC".to_vec()), 1 => any::<u8>()], 0..300)
        ) {
            let bytes = show();
            let mut out = [0; PATH_MAX];
            if let Decision::Redirect(n) = redirect(&Table::new(&bytes).unwrap(), &path, &mut out) {
                let result = &out[..n];
                let below = [b"/home/a/show".as_slice(), b"/mnt/tex", b"/mnt/nas"].iter().any(|t| {
                    result.starts_with(t) && matches!(result.get(t.len()), None | Some(b'/'))
                });
                prop_assert!(below);
                prop_assert!(!result.split(|b| *b == b'/').any(|part| part == b".."));
                let mut again = [0; PATH_MAX];
                prop_assert_eq!(redirect(&Table::new(&bytes).unwrap(), result, &mut again), Decision::Pass);
            }
        }

        #[test]
        fn a_spoiled_table_does_no_harm(cut in 0_usize..400, at in 0_usize..400, value in any::<u8>()) {
            let mut bytes = show();
            bytes.truncate(cut.max(1));
            let n = bytes.len();
            bytes[at % n] = value;
            let mut out = [0; PATH_MAX];
            if let Some(table) = Table::new(&bytes) {
                redirect(&table, br"C:\show\tex\wood.png", &mut out);
            }
        }
    }
}
