//! Pure: from a Windows path as a program wrote it to `Pass`, `Redirect` or `Refuse`. No allocation, no system call.

use crate::rules::{Cuts, Table};

/// Longest path, with its final NUL, that the kernel takes.
pub(crate) const PATH_MAX: usize = 4096;
/// The path cannot exist.
pub(crate) const ENOENT: i32 = 2;
/// The path became too long.
pub(crate) const ENAMETOOLONG: i32 = 36;

/// A path that only this library understands: whoever can open it knows that the library is in force.
pub(crate) const LOADED: &[u8] = br"\\?\meshfarm\loaded";
/// What it stands for: something that lies in every jail and on every host.
pub(crate) const LOADED_AT: &[u8] = b"/dev/null";

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

/// What to do with a path, and where the Windows path within it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) decision: Decision,
    /// Where the path begins that the artist wrote; none when this is no Windows path.
    pub(crate) spelled_at: Option<usize>,
}

const NOT_OURS: Verdict = Verdict { decision: Decision::Pass, spelled_at: None };

/// The root of a Windows path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    Drive(u8),
    /// The server's name and its share come first in what follows.
    Server,
    /// `\\.\` and what else names no file.
    Device,
}

/// Decide about one path. The output holds the result, or is too short: then the errno says so.
pub(crate) fn redirect(table: &Table<'_>, path: &[u8], out: &mut [u8]) -> Verdict {
    if path.len() >= PATH_MAX {
        return NOT_OURS;
    }
    if path == LOADED {
        let decision = write(out, 0..0, LOADED_AT, None, false);
        return Verdict { decision, spelled_at: None };
    }
    let Some((start, root, rest)) = find_root(path) else {
        return drive_relative(table, path);
    };
    let decision = match root {
        // In the midst of a path these are only strange names.
        Root::Device if start > 0 => Decision::Pass,
        Root::Device => Decision::Refuse(ENOENT),
        Root::Drive(_) | Root::Server => {
            let absolute = Absolute { root, rest, embedded: start > 0 };
            absolute.decide(table, path.last().copied().is_some_and(is_separator), out)
        }
    };
    Verdict { decision, spelled_at: Some(start) }
}

/// `X:name` depends on a current folder per drive, which nobody here has. Where the job knows the drive, a
/// file of that name in the current folder would be a lost one.
fn drive_relative(table: &Table<'_>, path: &[u8]) -> Verdict {
    let (Some(letter), Some(b':')) = (path.first(), path.get(1)) else { return NOT_OURS };
    let drive = [*letter, b':'];
    let known =
        |source: &[u8]| source.get(..2).is_some_and(|root| root.eq_ignore_ascii_case(&drive));
    if !letter.is_ascii_alphabetic() || !table.rules().any(|rule| known(rule.source)) {
        return NOT_OURS;
    }
    Verdict { decision: Decision::Refuse(ENOENT), spelled_at: Some(0) }
}

/// Where a Windows path begins within a path, its root, and what follows the root.
///
/// POV-Ray tries a path glued to each of its folders: `/usr/share/povray/C:\show\x`. So a drive or a
/// double backslash at the start of any part counts.
fn find_root(path: &[u8]) -> Option<(usize, Root, &[u8])> {
    let start = (0..path.len())
        .filter(|i| *i == 0 || path[i - 1] == b'/')
        .find(|i| drive(&path[*i..]).is_some() || path[*i..].starts_with(br"\\"))?;
    let (root, rest) = root_of(&path[start..])?;
    Some((start, root, rest))
}

fn root_of(path: &[u8]) -> Option<(Root, &[u8])> {
    if let Some(letter) = drive(path) {
        return Some((Root::Drive(letter), &path[2..]));
    }
    // Two backslashes make a server; scenes made of text often double each of them.
    let n_slashes = path.iter().take_while(|b| **b == b'\\').count();
    if n_slashes != 2 && n_slashes != 4 {
        return None;
    }
    let rest = &path[n_slashes..];
    match rest {
        [b'?', b'\\' | b'/', ..] => {
            let verbatim = without_separators(&rest[1..]);
            if let Some(letter) = drive(verbatim) {
                return Some((Root::Drive(letter), &verbatim[2..]));
            }
            match verbatim {
                [a, b, c, separator, after @ ..]
                    if [*a, *b, *c].eq_ignore_ascii_case(b"UNC") && is_separator(*separator) =>
                {
                    Some((Root::Server, without_separators(after)))
                }
                _ => Some((Root::Device, rest)),
            }
        }
        [b'.', b'\\' | b'/', ..] => Some((Root::Device, rest)),
        [first, ..] if !is_separator(*first) => Some((Root::Server, rest)),
        _ => None,
    }
}

fn without_separators(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|b| !is_separator(*b)).unwrap_or(path.len());
    &path[start..]
}

/// The drive letter of `X:\` or `X:/`.
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

/// A Windows path whose root is known.
struct Absolute<'p> {
    root: Root,
    rest: &'p [u8],
    embedded: bool,
}

impl Absolute<'_> {
    fn decide(&self, table: &Table<'_>, trailing: bool, out: &mut [u8]) -> Decision {
        let mut plain = Plain { bytes: out, length: 0 };
        let popped = match plain.fill(self.root, self.rest) {
            Ok(popped) => popped,
            Err(errno) => return Decision::Refuse(errno),
        };
        let length = plain.length;
        let cuts = Cuts::of(&out[..length]);
        let Some((rule, end)) = table.longest(&out[..length], &cuts) else {
            // What climbed out of a rule is nowhere; what was under none is not ours.
            return if popped && !self.embedded {
                Decision::Refuse(ENOENT)
            } else {
                Decision::Pass
            };
        };
        let start = (end + 1).min(length);
        let rest = &out[start..length];
        if rest.contains(&b':') || rest.split(|b| *b == b'/').any(is_impossible) {
            return Decision::Refuse(ENOENT);
        }
        // The longest part of the path that is in the index takes its true spelling; what is new keeps its own.
        let known = rule.insensitive.then(|| table.known(&rule, &out[..length], start, &cuts));
        let (name, end) =
            known.flatten().map_or((None, start), |(name, end)| (Some(name), end + 1));
        write(out, end.min(length)..length, rule.at, name, trailing)
    }
}

/// Put a result together in place: the rule's target, the known name, and what is already in the output.
fn write(
    out: &mut [u8],
    fresh: core::ops::Range<usize>,
    at: &[u8],
    known: Option<&[u8]>,
    trailing: bool,
) -> Decision {
    let known = known.unwrap_or_default();
    let named = at.len() + if known.is_empty() { 0 } else { 1 + known.len() };
    let length = named + if fresh.is_empty() { 0 } else { 1 + fresh.len() };
    let end = length + usize::from(trailing);
    if end >= out.len() {
        return Decision::Refuse(ENAMETOOLONG);
    }
    if !fresh.is_empty() {
        out.copy_within(fresh, named + 1);
        out[named] = b'/';
    }
    out[..at.len()].copy_from_slice(at);
    if !known.is_empty() {
        out[at.len()] = b'/';
        out[at.len() + 1..named].copy_from_slice(known);
    }
    if trailing {
        out[length] = b'/';
    }
    out[end] = 0;
    Decision::Redirect(end)
}

/// A Windows path with single forward separators, without `.`, `..`, trailing dots and spaces.
struct Plain<'o> {
    bytes: &'o mut [u8],
    length: usize,
}

impl Plain<'_> {
    /// Whether a `..` took a part away.
    fn fill(&mut self, root: Root, rest: &[u8]) -> Result<bool, i32> {
        // What `..` cannot take away: a drive, or a server and its share.
        let kept = if let Root::Drive(letter) = root {
            self.push(letter)?;
            self.push(b':')?;
            0
        } else {
            self.push(b'/')?;
            2
        };
        let (mut n_parts, mut popped) = (0, false);
        let mut start = self.length;
        for byte in rest.iter().chain(b"/") {
            if !is_separator(*byte) {
                if self.length == start {
                    self.push(b'/')?;
                }
                self.push(*byte)?;
                continue;
            }
            match self.bytes.get(start + 1..self.length).unwrap_or_default() {
                b"" | b"." => self.length = start,
                b".." => {
                    popped = true;
                    self.length = start;
                    if n_parts > kept {
                        n_parts -= 1;
                        let cut = self.bytes[..start].iter().rposition(|b| *b == b'/');
                        self.length = cut.unwrap_or(start);
                    }
                }
                part => {
                    self.length = start + 1 + trimmed(part);
                    n_parts += 1;
                }
            }
            start = self.length;
        }
        Ok(popped)
    }

    #[inline]
    fn push(&mut self, byte: u8) -> Result<(), i32> {
        *self.bytes.get_mut(self.length).ok_or(ENAMETOOLONG)? = byte;
        self.length += 1;
        Ok(())
    }
}

/// The length of a part as Windows would store it: without dots and spaces at its end. What is nothing else stays.
fn trimmed(part: &[u8]) -> usize {
    part.iter().rposition(|b| *b != b'.' && *b != b' ').map_or(part.len(), |end| end + 1)
}

/// Whether Windows has no file of this name: a device, or nothing but dots and spaces. Streams are found by
/// their colon.
fn is_impossible(part: &[u8]) -> bool {
    match part.first() {
        Some(b'.' | b' ') => part.iter().all(|b| *b == b'.' || *b == b' '),
        Some(first) => b"aclnp".contains(&first.to_ascii_lowercase()) && is_device(part),
        None => false,
    }
}

fn is_device(part: &[u8]) -> bool {
    let stem = part.split(|b| *b == b'.').next().unwrap_or(part);
    let stem = stem.iter().rposition(|b| *b != b' ').map_or(&[][..], |end| &stem[..=end]);
    let one_of = |name: &[u8], devices: &[&[u8]]| {
        devices.iter().any(|device| name.eq_ignore_ascii_case(device))
    };
    match stem {
        // Superscript digits name the same devices.
        [name @ .., b'1'..=b'9'] | [name @ .., 0xc2, 0xb9 | 0xb2 | 0xb3] => {
            one_of(name, &[b"COM", b"LPT"])
        }
        _ => one_of(stem, &[b"CON", b"NUL", b"AUX", b"PRN", b"CONIN$", b"CONOUT$"]),
    }
}
