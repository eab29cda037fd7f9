//! Maps the artist's own absolute paths on hosts where no mount can show them: resolves as the kernel would.
//!
//! `..` and links mean what they would mean if the artist's folders lay where the artist says: a path is walked
//! part by part in the artist's names, links are read, and only the final place is turned into a host path.
//! So `..` never climbs from a target into the host's folders around it. The walk costs a call per part below
//! a rule, and only paths that could lie under a rule are walked.

use crate::{
    redirect::{Decision, ENAMETOOLONG, PATH_MAX},
    rules::{Table, below},
};

const EINVAL: i32 = 22;
const ELOOP: i32 = 40;
/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// What the walk asks the kernel about host paths, which end with NUL.
pub(crate) trait Host {
    /// Read a link; EINVAL when it is none.
    fn link(&self, path: &[u8], out: &mut [u8]) -> Result<usize, i32>;
    /// Whether `..` may be taken from here: the path names a folder that may be entered.
    fn enter(&self, path: &[u8]) -> Result<(), i32>;
}

/// Decide about an absolute path. `follow` says whether a link at its end is followed.
pub(crate) fn resolve(
    table: &Table<'_>,
    path: &[u8],
    follow: bool,
    host: &dyn Host,
    out: &mut [u8; PATH_MAX],
) -> Decision {
    let climbs = path.split(|b| *b == b'/').any(|part| part == b"..");
    let sources = || table.rules().filter(|rule| rule.posix).map(|rule| rule.source);
    if path.first() != Some(&b'/') || (!climbs && !sources().any(|source| lies_under(path, source)))
    {
        return Decision::Pass;
    }
    let mut walk = Walk {
        table,
        spot: Text { bytes: [0; PATH_MAX], length: 0 },
        ahead: [0; PATH_MAX],
        next: PATH_MAX,
        ours: false,
        n_links: 0,
    };
    let walked = walk.put_ahead(path).and_then(|()| walk.go(follow, host, out));
    let found = walked.and_then(|end| walk.finish(end, out)).unwrap_or_else(Decision::Refuse);
    // Where no rule had a say, the kernel sees what we saw.
    if walk.ours { found } else { Decision::Pass }
}

/// Turn a host path that lies below a target into the artist's; the length, or none if it is not ours.
pub(crate) fn reverse(table: &Table<'_>, path: &[u8], out: &mut [u8; PATH_MAX]) -> Option<usize> {
    let ours = table.rules().filter(|rule| rule.posix);
    let fitting = ours.filter_map(|rule| Some((below(path, rule.at)?, rule.source)));
    let (rest, source) = fitting.min_by_key(|(rest, _)| rest.len())?;
    let end = source.len() + rest.len();
    out.get_mut(..source.len())?.copy_from_slice(source);
    out.get_mut(source.len()..end)?.copy_from_slice(rest);
    *out.get_mut(end)? = 0;
    Some(end)
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".")
}

fn lies_under(path: &[u8], source: &[u8]) -> bool {
    let mut path = parts(path);
    parts(source).all(|part| path.next() == Some(part))
}

struct Text {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl Text {
    fn get(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn push(&mut self, part: &[u8]) -> Result<(), i32> {
        let end = self.length + part.len();
        self.bytes.get_mut(self.length..end).ok_or(ENAMETOOLONG)?.copy_from_slice(part);
        self.length = end;
        Ok(())
    }

    fn pop(&mut self) {
        self.length = self.get().iter().rposition(|b| *b == b'/').unwrap_or(0);
    }
}

/// How a walk ended.
#[derive(Clone, Copy)]
enum End {
    /// Every part was taken; what a trailing separator or dot adds is the text.
    There(&'static [u8]),
    /// The kernel will fail at this spot: what lies ahead goes with it unchanged.
    Stuck,
}

struct Walk<'a> {
    table: &'a Table<'a>,
    /// Where the walk is, in the artist's names; empty at the root.
    spot: Text,
    /// What is still to be taken, from `next` to the end.
    ahead: [u8; PATH_MAX],
    next: usize,
    /// Whether a rule had a say.
    ours: bool,
    n_links: usize,
}

impl Walk<'_> {
    fn put_ahead(&mut self, path: &[u8]) -> Result<(), i32> {
        let start = self.next.checked_sub(path.len()).ok_or(ENAMETOOLONG)?;
        self.ahead[start..self.next].copy_from_slice(path);
        self.next = start;
        Ok(())
    }

    /// Take the next part off what lies ahead and say where it is.
    fn take(&mut self) -> Option<core::ops::Range<usize>> {
        let left = &self.ahead[self.next..];
        let start = self.next + left.iter().position(|b| *b != b'/')?;
        let length = self.ahead[start..].iter().position(|b| *b == b'/');
        self.next = length.map_or(PATH_MAX, |length| start + length);
        Some(start..self.next)
    }

    fn go(&mut self, follow: bool, host: &dyn Host, real: &mut [u8; PATH_MAX]) -> Result<End, i32> {
        let mut dotted: &[u8] = b"";
        while let Some(part) = self.take() {
            let last = !self.ahead[self.next..].iter().any(|b| *b != b'/');
            let trailing = last && self.next < PATH_MAX;
            dotted = if trailing { b"/" } else { b"" };
            match &self.ahead[part.clone()] {
                b"." => dotted = if last { b"/." } else { b"" },
                b".." => {
                    if !self.is_above_a_rule() {
                        host.enter(self.real(real)?)?;
                    }
                    self.spot.pop();
                    dotted = if last { b"/." } else { b"" };
                }
                _ => {
                    self.spot.push(b"/")?;
                    self.spot.push(&self.ahead[part])?;
                    // The kernel's own folders of links name what no path does.
                    if self.spot.get() == b"/proc" {
                        return Ok(End::Stuck);
                    }
                    if self.is_above_a_rule() || (last && !trailing && !follow) {
                        continue;
                    }
                    if !self.follow_link(host, real)? {
                        return Ok(End::Stuck);
                    }
                }
            }
        }
        Ok(End::There(dotted))
    }

    /// If the spot is a link, go on from what it says. False when the spot cannot be looked at.
    fn follow_link(&mut self, host: &dyn Host, real: &mut [u8; PATH_MAX]) -> Result<bool, i32> {
        let path = self.real(real)?;
        let mut target = [0; PATH_MAX];
        let length = match host.link(path, &mut target) {
            Ok(length) => length,
            Err(EINVAL) => return Ok(true),
            Err(_) => return Ok(false),
        };
        self.n_links += 1;
        if self.n_links > MOST_LINKS {
            return Err(ELOOP);
        }
        self.put_ahead(&target[..length])?;
        if target[0] == b'/' {
            self.spot.length = 0;
        } else {
            self.spot.pop();
        }
        Ok(true)
    }

    /// Whether the spot is a rule's source or a folder above one: these are folders by definition.
    fn is_above_a_rule(&mut self) -> bool {
        let spot = self.spot.get();
        let mut above = false;
        for rule in self.table.rules().filter(|rule| rule.posix) {
            above |= below(rule.source, spot).is_some();
            self.ours |= below(spot, rule.source).is_some();
        }
        above
    }

    /// The host path of the spot, with its NUL.
    fn real<'o>(&self, out: &'o mut [u8; PATH_MAX]) -> Result<&'o [u8], i32> {
        let end = self.place(out)?;
        *out.get_mut(end).ok_or(ENAMETOOLONG)? = 0;
        Ok(&out[..=end])
    }

    fn place(&self, out: &mut [u8; PATH_MAX]) -> Result<usize, i32> {
        let spot = self.spot.get();
        let fitting = self.table.rules().filter(|rule| rule.posix);
        let fitting = fitting.filter_map(|rule| Some((below(spot, rule.source)?, rule.at)));
        // The rule that leaves the least over is the longest, in whatever order they come.
        let (rest, at): (&[u8], &[u8]) = match fitting.min_by_key(|(rest, _)| rest.len()) {
            Some(found) => found,
            None if spot.is_empty() => (b"/", b""),
            None => (spot, b""),
        };
        let end = at.len() + rest.len();
        out.get_mut(..at.len()).ok_or(ENAMETOOLONG)?.copy_from_slice(at);
        out.get_mut(at.len()..end).ok_or(ENAMETOOLONG)?.copy_from_slice(rest);
        Ok(end)
    }

    fn finish(&self, end: End, out: &mut [u8; PATH_MAX]) -> Result<Decision, i32> {
        let mut length = self.place(out)?;
        let after: &[u8] = match &end {
            End::There(dotted) => dotted,
            End::Stuck => &self.ahead[self.next..],
        };
        let place = out.get_mut(length..length + after.len()).ok_or(ENAMETOOLONG)?;
        place.copy_from_slice(after);
        length += after.len();
        *out.get_mut(length).ok_or(ENAMETOOLONG)? = 0;
        Ok(Decision::Redirect(length))
    }
}
