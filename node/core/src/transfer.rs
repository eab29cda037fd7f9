//! Which part of a manifest's content to ask of which source: order, rotation, duplication at the end, blame.
//!
//! Content is a flattened list of chunks. It is asked for in *runs* of [`RUN`] neighbours, so that what is
//! open, asked for and done is a few bits a run, also with millions of chunks. Pure: whoever drives it tells
//! what has happened and asks what to do next.

use std::collections::{BTreeMap, BTreeSet};

use meshfarm_protocol::id::{Millis, SiteId};

/// Chunks in one run: with the usual cuts 8 MiB.
pub const RUN: u64 = 32;

/// How many sources may be asked for one run at once, when nothing else is left to ask for.
const MAX_ASKED: usize = 2;

/// One run of a manifest's content, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run(pub u32);

impl Run {
    /// The places of its chunks in the flattened list of `n_chunks`.
    #[must_use]
    pub fn chunks(self, n_chunks: u64) -> std::ops::Range<u64> {
        let start = u64::from(self.0) * RUN;
        start.min(n_chunks)..(start + RUN).min(n_chunks)
    }
}

/// A set of runs, as a bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    bits: Vec<u8>,
}

impl Runs {
    /// None of `n` runs.
    #[must_use]
    pub fn none(n: u32) -> Self {
        Self { bits: vec![0; (n as usize).div_ceil(8)] }
    }

    /// Whether `run` is in it. What lies beyond the bitmap is not.
    #[must_use]
    pub fn contains(&self, run: Run) -> bool {
        self.bits.get(run.0 as usize / 8).is_some_and(|byte| byte >> (run.0 % 8) & 1 == 1)
    }

    /// Adds `run`, if it lies within the bitmap.
    pub fn insert(&mut self, run: Run) {
        if let Some(byte) = self.bits.get_mut(run.0 as usize / 8) {
            *byte |= 1 << (run.0 % 8);
        }
    }

    /// Removes `run`.
    pub fn remove(&mut self, run: Run) {
        if let Some(byte) = self.bits.get_mut(run.0 as usize / 8) {
            *byte &= !(1 << (run.0 % 8));
        }
    }

    /// Adds everything that is in `other` and within this bitmap.
    pub fn unite(&mut self, other: &[u8]) {
        for (byte, more) in self.bits.iter_mut().zip(other) {
            *byte |= more;
        }
    }

    /// The bitmap: run 0 is the lowest bit of the first byte.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bits
    }
}

/// What a source has of the content.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Has {
    /// Everything, as the submitting site does.
    All,
    /// What it has said so far.
    Some(Runs),
}

/// One lane to one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// The source.
    pub site: SiteId,
    /// Which of the lanes to it.
    pub lane: u8,
}

/// A line to a site that has some of the content.
#[derive(Clone, Debug)]
struct Source {
    has: Has,
    /// Runs that it was asked for and has not answered, and when it was asked.
    asked: BTreeMap<Run, Millis>,
    /// Runs that it said it has not, whatever it had said before.
    lacks: BTreeSet<Run>,
    speed: Speed,
}

/// How fast runs come on a line, while there are any to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Speed {
    /// Runs that came.
    brought: u64,
    /// How long some were under way until the last of them came.
    busy: Millis,
    /// Since when some are under way that have not come.
    since: Option<Millis>,
}

/// Why a source is asked no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It sent bytes that are not those of the chunk that it was asked for.
    Wrong,
    /// It sent what is no piece.
    Garbled,
}

/// A run may be asked of a second source when it has been under way for so long, and three times as long as its
/// source needs for what it was asked for; one that has brought nothing yet is given the time of the slowest other.
const OVERDUE: Millis = Millis::seconds(1);

/// The transfer of one manifest's content.
///
/// Several receivers of the same content share its owner's line best when each part crosses it once. So each begins
/// with a part of its own and helps with the others' from behind, and asks the owner for nothing that another
/// receiver offers, unless those are slower than the owner.
#[derive(Clone, Debug)]
pub struct Transfer {
    me: SiteId,
    n_runs: u32,
    done: Runs,
    n_done: u32,
    /// Runs that come before all others.
    first: Runs,
    /// The order in which an owner is asked.
    order: Vec<Run>,
    /// How many of them were looked at: they are here, under way, to be asked for again, or another receiver's to
    /// give.
    looked: usize,
    /// Runs that were asked for in vain, to be asked for again before anything new.
    again: BTreeSet<Run>,
    sources: BTreeMap<Line, Source>,
    banned: BTreeMap<SiteId, Dropped>,
}

impl Transfer {
    /// A transfer to `me` of `n_runs` of which nothing is known to be here. `first` come before all others.
    #[must_use]
    pub fn new(me: SiteId, n_runs: u32, first: &[Run]) -> Self {
        let mut before = Runs::none(n_runs);
        first.iter().filter(|run| run.0 < n_runs).for_each(|run| before.insert(*run));
        let mut transfer = Self {
            me,
            n_runs,
            done: Runs::none(n_runs),
            n_done: 0,
            first: before,
            order: Vec::new(),
            looked: 0,
            again: BTreeSet::new(),
            sources: BTreeMap::new(),
            banned: BTreeMap::new(),
        };
        transfer.divide();
        transfer
    }

    /// A site that has everything.
    pub fn add_owner(&mut self, line: Line) {
        self.add(line, Has::All);
    }

    /// Another receiver, that has said nothing yet and will say what it has.
    pub fn add_sharer(&mut self, line: Line) {
        if self.add(line, Has::Some(Runs::none(self.n_runs))) {
            self.divide();
        }
    }

    /// Whether it is new.
    fn add(&mut self, line: Line, has: Has) -> bool {
        let is_new = !self.banned.contains_key(&line.site) && !self.sources.contains_key(&line);
        if is_new {
            let (asked, lacks, speed) = Default::default();
            self.sources.insert(line, Source { has, asked, lacks, speed });
        }
        is_new
    }

    /// Divides the content between all receivers that are known, by their ids: the same at each of them. We begin
    /// with our part; every other one is taken from behind, or from elsewhere in it when others help there too.
    fn divide(&mut self) {
        let sharers = self.sources.iter().filter(|(_, source)| source.shares());
        let mut all: BTreeSet<SiteId> = sharers.map(|(line, _)| line.site).collect();
        all.insert(self.me);
        let rank = all.iter().position(|site| *site == self.me).unwrap_or(0);
        self.order.clear();
        self.looked = 0;
        for is_first in [true, false] {
            let runs = (0..self.n_runs).map(Run);
            let runs: Vec<_> = runs.filter(|run| self.first.contains(*run) == is_first).collect();
            let (len, n_all) = (runs.len(), all.len());
            let part = |n: usize| &runs[len * n / n_all..len * (n + 1) / n_all];
            self.order.extend(part(rank));
            for ahead in 1..n_all {
                let part = part((rank + ahead) % n_all);
                let from = part.len() - part.len() * (ahead - 1) / (n_all - 1);
                let (before, behind) = part.split_at(from);
                self.order.extend(before.iter().rev().chain(behind.iter().rev()));
            }
        }
    }

    /// A source says that it has these runs too, as a bitmap.
    pub fn has(&mut self, line: Line, bitmap: &[u8]) {
        if let Some(Source { has: Has::Some(runs), .. }) = self.sources.get_mut(&line) {
            runs.unite(bitmap);
        }
    }

    /// The next run to ask for on `line`. None when its source has nothing that is missing here, not asked for
    /// already, and better asked of it than of others: ask again when something has come, or after a while.
    pub fn next(&mut self, line: Line, now: Millis) -> Option<Run> {
        let run = self.open(line, now).or_else(|| self.overdue(line, now))?;
        self.again.remove(&run);
        let source = self.sources.get_mut(&line)?;
        source.speed.since.get_or_insert(now);
        source.asked.insert(run, now);
        Some(run)
    }

    /// A run that nobody is asked for.
    fn open(&mut self, line: Line, now: Millis) -> Option<Run> {
        let source = self.sources.get(&line)?;
        let may_be_asked = |run: &Run| source.shares() || !self.is_shared(*run);
        let mut again = self.again.iter().copied();
        let found = again.find(|run| source.offers(*run) && may_be_asked(run));
        if found.is_some() {
            return found;
        }
        if let Has::Some(has) = &source.has {
            return self.open_among(source, has.bytes());
        }
        let mut left = (self.looked..).zip(self.order.iter().skip(self.looked).copied());
        let wanted = |run: Run| self.is_open(run) && !self.is_shared(run) && source.offers(run);
        if let Some((at, run)) = left.find(|(_, run)| wanted(*run)) {
            self.looked = at + 1;
            return Some(run);
        }
        let slow = self.sharers_are_slow(now);
        let found = if slow { self.open_among(source, &[]) } else { None };
        self.looked = self.order.len();
        found
    }

    /// An open run of those that `source` has: first those that come first. An owner's bitmap is empty.
    fn open_among(&self, source: &Source, has: &[u8]) -> Option<Run> {
        let find = |first: bool| {
            let done = self.done.bytes().iter().zip(self.first.bytes()).enumerate();
            let bytes = done.filter_map(move |(at, (done, wanted))| {
                let has = if source.shares() { has.get(at).copied().unwrap_or(0) } else { 0xff };
                let bits = has & !done & if first { *wanted } else { !wanted };
                (bits != 0).then_some((at, bits))
            });
            let runs = bytes.flat_map(|(at, bits)| {
                let set = (0..8).filter(move |bit| bits >> bit & 1 == 1);
                set.filter_map(move |bit| Some(Run(u32::try_from(at * 8 + bit).ok()?)))
            });
            runs.take_while(|run| run.0 < self.n_runs)
                .find(|run| source.offers(*run) && self.is_open(*run))
        };
        find(true).or_else(|| find(false))
    }

    /// Neither here nor asked for.
    fn is_open(&self, run: Run) -> bool {
        !self.done.contains(run)
            && !self.sources.values().any(|source| source.asked.contains_key(&run))
    }

    /// Whether another receiver offers it.
    fn is_shared(&self, run: Run) -> bool {
        self.sources.values().any(|source| source.shares() && source.offers(run))
    }

    /// Whether the other receivers together bring less than the owner does. While that is not known of the owner,
    /// one run of it tells; while it is not known of another receiver, it is waited for.
    fn sharers_are_slow(&self, now: Millis) -> bool {
        let (mut owner, mut others, mut tried) = (0, 0, false);
        let slowest = self.slowest();
        for source in self.sources.values() {
            let Speed { brought, since, .. } = source.speed;
            let rate = source.speed.rate(now);
            match &source.has {
                Has::All => {
                    tried |= brought > 0 || since.is_some();
                    owner += rate;
                }
                Has::Some(has)
                    if brought == 0 && source.speed.busy(now) < source.patience(slowest) =>
                {
                    if has.bytes().iter().any(|byte| *byte != 0) {
                        return false;
                    }
                }
                Has::Some(_) => others += rate,
            }
        }
        !tried || others < owner
    }

    /// How long the slowest of all sources needs for a run.
    fn slowest(&self) -> Millis {
        let each = self.sources.values().filter_map(|source| source.speed.each());
        each.max().unwrap_or_default()
    }

    /// A run that another site was asked for so long ago that it is asked for once more, when nothing else is left:
    /// one slow line never holds the end.
    fn overdue(&self, line: Line, now: Millis) -> Option<Run> {
        let source = self.sources.get(&line)?;
        let slowest = self.slowest();
        let others = self.sources.iter().filter(|(other, _)| other.site != line.site);
        let late = others.flat_map(|(_, other)| {
            let patience = other.patience(slowest);
            let late = other.asked.iter().filter(move |(_, at)| now.since(**at) >= patience);
            late.map(|(run, _)| *run)
        });
        let n_asked =
            |run: &Run| self.sources.values().filter(|other| other.asked.contains_key(run)).count();
        late.filter(|run| source.offers(*run) && n_asked(run) < MAX_ASKED).min()
    }

    /// Every chunk of `run` is in the store; the last of them came on `line`, or all were there.
    pub fn done(&mut self, run: Run, line: Option<Line>, now: Millis) {
        if run.0 < self.n_runs && !self.done.contains(run) {
            self.done.insert(run);
            self.n_done += 1;
            if let Some(source) = line.and_then(|line| self.sources.get_mut(&line)) {
                source.speed.came(now);
            }
        }
        self.again.remove(&run);
        for source in self.sources.values_mut() {
            source.answered(run, now);
        }
    }

    /// `line` will not bring `run` after all, through no fault of its source.
    pub fn returned(&mut self, line: Line, run: Run, now: Millis) {
        if let Some(source) = self.sources.get_mut(&line) {
            source.answered(run, now);
        }
        if self.is_open(run) {
            self.again.insert(run);
        }
    }

    /// The source of `line` has not got `run`, or not all of it, whatever it said. Another one may.
    pub fn lacking(&mut self, line: Line, run: Run, now: Millis) {
        for (other, source) in &mut self.sources {
            if other.site == line.site {
                source.lacks.insert(run);
            }
        }
        self.returned(line, run, now);
    }

    /// A line is gone. What was asked for on it is open again.
    pub fn lost(&mut self, line: Line) {
        let Some(source) = self.sources.remove(&line) else {
            return;
        };
        for run in source.asked.into_keys() {
            if self.is_open(run) {
                self.again.insert(run);
            }
        }
        if let Has::Some(_) = source.has {
            // What it offered was looked at for nothing.
            self.divide();
        }
    }

    /// `site` misbehaves: it is asked for nothing more in this transfer.
    pub fn ban(&mut self, site: SiteId, why: Dropped) {
        self.banned.insert(site, why);
        let lines: Vec<_> = self.sources.keys().filter(|line| line.site == site).copied().collect();
        lines.into_iter().for_each(|line| self.lost(line));
    }

    /// Whether `site` has misbehaved.
    #[must_use]
    pub fn is_banned(&self, site: SiteId) -> bool {
        self.banned.contains_key(&site)
    }

    /// Whether somebody is left who has `run`, banned ones not counted. When not, waiting is useless.
    #[must_use]
    pub fn is_offered(&self, run: Run) -> bool {
        self.sources.values().any(|source| source.offers(run))
    }

    /// Runs that every source that is left lacks.
    pub fn lacked_by_all(&self) -> Option<Run> {
        let all = |run: &Run| !self.is_offered(*run) && !self.done.contains(*run);
        self.again.iter().copied().find(all)
    }

    /// Whether every run is here.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.n_done == self.n_runs
    }

    /// What is here, to be told to others.
    #[must_use]
    pub fn here(&self) -> &Runs {
        &self.done
    }

    /// How many runs are here, of how many.
    #[must_use]
    pub fn progress(&self) -> (u32, u32) {
        (self.n_done, self.n_runs)
    }

    /// Panics when the parts disagree.
    pub fn check(&self) {
        let n = (0..self.n_runs).filter(|run| self.done.contains(Run(*run))).count();
        assert_eq!(n, self.n_done as usize, "the number of runs that are done");
        assert_eq!(self.order.len(), self.n_runs as usize, "each run has a place in the order");
        assert_eq!(self.order.iter().collect::<BTreeSet<_>>().len(), self.order.len(), "and one");
        for run in &self.again {
            assert!(self.is_open(*run), "{run:?} is asked for twice or done");
        }
        for (line, source) in &self.sources {
            assert!(!self.banned.contains_key(&line.site), "a banned source is asked");
            let asked = || source.asked.keys();
            assert!(asked().all(|run| !self.done.contains(*run)), "done and asked for");
            assert_eq!(source.asked.is_empty(), source.speed.since.is_none(), "busy with nothing");
        }
        if !self.sources.values().any(Source::shares) {
            let passed = self.order.iter().take(self.looked);
            let lost = |run: &&Run| self.is_open(**run) && !self.again.contains(run);
            assert_eq!(passed.into_iter().find(lost), None, "a run was passed over and forgotten");
        }
    }
}

impl Source {
    fn offers(&self, run: Run) -> bool {
        let has = match &self.has {
            Has::All => true,
            Has::Some(runs) => runs.contains(run),
        };
        has && !self.lacks.contains(&run)
    }

    /// Whether it is another receiver.
    fn shares(&self) -> bool {
        match self.has {
            Has::All => false,
            Has::Some(_) => true,
        }
    }

    fn answered(&mut self, run: Run, now: Millis) {
        if self.asked.remove(&run).is_some() && self.asked.is_empty() {
            self.speed.busy = self.speed.busy(now);
            self.speed.since = None;
        }
    }

    /// After which time what it was asked for is late, when the slowest source needs so long for a run.
    fn patience(&self, slowest: Millis) -> Millis {
        let each = self.speed.each().unwrap_or(slowest);
        OVERDUE.max(each.times(3 * self.asked.len() as u64))
    }
}

impl Speed {
    fn came(&mut self, now: Millis) {
        self.brought += 1;
        self.busy = self.busy(now);
        self.since = self.since.map(|_| now);
    }

    fn busy(&self, now: Millis) -> Millis {
        self.busy.plus(self.since.map_or(Millis(0), |since| now.since(since)))
    }

    /// How long a run has taken; none when none has come.
    fn each(&self) -> Option<Millis> {
        self.busy.0.checked_div(self.brought).map(Millis)
    }

    /// Runs in a million milliseconds.
    fn rate(&self, now: Millis) -> u64 {
        self.brought.saturating_mul(1_000_000) / self.busy(now).0.max(1)
    }
}

/// The least that a lane may have under way, in bytes.
const MIN_WINDOW: u64 = 4 << 20;

/// The most: with eight lanes still within a node's memory.
const MAX_WINDOW: u64 = 32 << 20;

/// How many bytes one lane may have under way: asked for and not here yet. Asking is granting: a source sends
/// nothing that it was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    size: u64,
    under_way: u64,
    /// Bytes that came since the window last grew.
    came: u64,
    /// Whether the line had run dry since.
    dry: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self { size: MIN_WINDOW, under_way: 0, came: 0, dry: false }
    }
}

impl Window {
    /// Whether so much more may be asked for that it is worth a message.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.under_way <= self.size / 4 * 3
    }

    /// How many bytes more may be asked for.
    #[must_use]
    pub const fn room(&self) -> u64 {
        self.size.saturating_sub(self.under_way)
    }

    /// So many bytes were asked for.
    pub const fn ask(&mut self, bytes: u64) {
        self.under_way = self.under_way.saturating_add(bytes);
    }

    /// So many bytes came, or will not come. The window doubles, up to a bound, when a whole one came and the
    /// line was nearly dry meanwhile: then it is too small for the line's delay.
    pub fn came(&mut self, bytes: u64) {
        self.under_way = self.under_way.saturating_sub(bytes);
        self.came += bytes;
        self.dry |= self.under_way < self.size / 4;
        if self.came >= self.size {
            if self.dry {
                self.size = (self.size * 2).min(MAX_WINDOW);
            }
            self.came = 0;
            self.dry = false;
        }
    }
}

/// How many lanes a fetch opens to one source: one for every two of our processors, since each line is
/// decrypted by one of them, and at most eight, which is what a source accepts of one peer.
#[must_use]
pub fn n_lanes(processors: usize) -> usize {
    (processors / 2).clamp(1, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(n: u8) -> SiteId {
        SiteId([n; 32])
    }

    fn line(n: u8) -> Line {
        Line { site: site(n), lane: 0 }
    }

    const NOW: Millis = Millis(1000);

    /// A transfer to a site whose id is less than all others.
    fn transfer(n_runs: u32, first: &[Run]) -> Transfer {
        Transfer::new(site(0), n_runs, first)
    }

    #[test]
    fn everything_is_asked_for_once_and_what_comes_first_comes_first() {
        let mut transfer = transfer(5, &[Run(4), Run(1)]);
        transfer.add_owner(line(1));
        let asked: Vec<_> = std::iter::from_fn(|| transfer.next(line(1), NOW)).collect();
        assert_eq!(asked, [1, 4, 0, 2, 3].map(Run));
        transfer.check();
        asked.into_iter().for_each(|run| transfer.done(run, Some(line(1)), NOW));
        transfer.check();
        assert!(transfer.is_done());
        assert_eq!(transfer.next(line(1), NOW), None);
    }

    #[test]
    fn receivers_begin_with_parts_of_their_own_and_help_from_behind() {
        let order = |me: u8| {
            let mut transfer = Transfer::new(site(me), 9, &[]);
            transfer.add_owner(line(9));
            (1..=3).filter(|n| *n != me).for_each(|n| transfer.add_sharer(line(n)));
            transfer.check();
            std::iter::from_fn(|| transfer.next(line(9), NOW)).map(|run| run.0).collect::<Vec<_>>()
        };
        assert_eq!(order(1), [0, 1, 2, 5, 4, 3, 7, 6, 8]);
        assert_eq!(order(2), [3, 4, 5, 8, 7, 6, 1, 0, 2]);
        assert_eq!(order(3), [6, 7, 8, 2, 1, 0, 4, 3, 5]);
    }

    #[test]
    fn a_sharer_is_asked_for_what_it_said_and_the_owner_for_the_rest() {
        let mut transfer = transfer(4, &[]);
        transfer.add_owner(line(1));
        transfer.add_sharer(line(2));
        assert_eq!(transfer.next(line(2), NOW), None);
        transfer.has(line(2), &[0b1010]);
        assert_eq!(transfer.next(line(1), NOW), Some(Run(0)));
        assert_eq!(transfer.next(line(2), NOW), Some(Run(1)));
        assert_eq!(transfer.next(line(1), NOW), Some(Run(2)));
        assert_eq!(transfer.next(line(1), NOW), None, "the other receiver offers it");
        assert_eq!(transfer.next(line(2), NOW), Some(Run(3)));
        transfer.check();
    }

    #[test]
    fn an_owner_helps_out_when_the_other_receivers_are_slower() {
        let mut transfer = transfer(8, &[]);
        transfer.add_owner(line(1));
        transfer.add_sharer(line(2));
        transfer.has(line(2), &[0b1111_1110]);
        assert_eq!(transfer.next(line(1), NOW), Some(Run(0)));
        assert_eq!(transfer.next(line(2), NOW), Some(Run(1)));
        transfer.done(Run(0), Some(line(1)), NOW.plus(Millis(100)));
        assert_eq!(transfer.next(line(1), NOW.plus(Millis(200))), None, "nothing is known yet");
        let later = NOW.plus(OVERDUE);
        assert_eq!(transfer.next(line(1), later), Some(Run(2)));
        transfer.check();
        transfer.lost(line(2));
        transfer.check();
        assert_eq!(transfer.next(line(1), later), Some(Run(1)));
        assert_eq!(transfer.next(line(1), later), Some(Run(3)));
    }

    #[test]
    fn what_a_lost_source_was_asked_for_is_asked_of_another() {
        let mut transfer = transfer(2, &[]);
        transfer.add_owner(line(1));
        transfer.add_owner(line(2));
        assert_eq!(transfer.next(line(1), NOW), Some(Run(0)));
        transfer.lost(line(1));
        transfer.check();
        assert_eq!(transfer.next(line(2), NOW), Some(Run(0)));
        transfer.returned(line(2), Run(0), NOW);
        transfer.check();
        assert_eq!(transfer.next(line(2), NOW), Some(Run(0)));
    }

    #[test]
    fn a_banned_source_never_comes_back() {
        let mut transfer = transfer(1, &[]);
        transfer.add_owner(line(1));
        transfer.next(line(1), NOW);
        transfer.ban(site(1), Dropped::Wrong);
        transfer.add_owner(line(1));
        assert!(transfer.is_banned(site(1)));
        assert_eq!(transfer.next(line(1), NOW), None);
        assert_eq!(transfer.lacked_by_all(), Some(Run(0)));
    }

    #[test]
    fn a_run_that_is_late_is_asked_of_a_second_source_and_of_no_third() {
        let mut transfer = transfer(1, &[]);
        (1..=3).for_each(|n| transfer.add_owner(line(n)));
        assert_eq!(transfer.next(line(1), NOW), Some(Run(0)));
        assert_eq!(transfer.next(line(2), NOW), None, "it may still come");
        let later = NOW.plus(OVERDUE);
        assert_eq!(transfer.next(line(1), later), None);
        assert_eq!(transfer.next(line(2), later), Some(Run(0)));
        assert_eq!(transfer.next(line(3), later.plus(OVERDUE)), None);
        transfer.done(Run(0), Some(line(2)), later);
        transfer.check();
        assert!(transfer.is_done());
    }

    #[test]
    fn a_slow_line_is_given_three_times_the_time_that_it_needs() {
        let mut transfer = transfer(2, &[]);
        transfer.add_owner(line(1));
        assert_eq!(transfer.next(line(1), NOW), Some(Run(0)));
        transfer.done(Run(0), Some(line(1)), NOW.plus(OVERDUE.times(5)));
        let asked = NOW.plus(OVERDUE.times(5));
        assert_eq!(transfer.next(line(1), asked), Some(Run(1)));
        transfer.add_owner(line(2));
        assert_eq!(transfer.next(line(2), asked.plus(OVERDUE.times(14))), None);
        assert_eq!(transfer.next(line(2), asked.plus(OVERDUE.times(40))), Some(Run(1)));
    }

    #[test]
    fn lanes_to_one_site_share_the_work_and_never_double_it() {
        let mut transfer = transfer(2, &[]);
        let other = Line { lane: 1, ..line(1) };
        transfer.add_owner(line(1));
        transfer.add_owner(other);
        assert_eq!(transfer.next(line(1), NOW), Some(Run(0)));
        assert_eq!(transfer.next(other, NOW), Some(Run(1)));
        assert_eq!(transfer.next(other, NOW.plus(OVERDUE)), None);
        transfer.lost(line(1));
        assert_eq!(transfer.next(other, NOW), Some(Run(0)));
        transfer.check();
    }

    #[test]
    fn a_source_that_lacks_a_run_is_not_asked_for_it_again() {
        let mut transfer = transfer(1, &[]);
        transfer.add_sharer(line(1));
        transfer.has(line(1), &[0xff, 0xff]);
        assert_eq!(transfer.next(line(1), NOW), Some(Run(0)));
        transfer.lacking(line(1), Run(0), NOW);
        transfer.check();
        assert_eq!(transfer.next(line(1), NOW), None);
        assert_eq!(transfer.lacked_by_all(), Some(Run(0)));
        transfer.add_owner(line(2));
        assert_eq!(transfer.lacked_by_all(), None);
        assert_eq!(transfer.next(line(2), NOW), Some(Run(0)));
    }

    #[test]
    fn a_window_grows_while_the_line_runs_dry_and_never_beyond_its_bound() {
        let mut window = Window::default();
        for _ in 0..100 {
            while window.is_open() {
                window.ask(1 << 20);
            }
            window.came(window.under_way);
        }
        assert_eq!(window.size, MAX_WINDOW);
        let mut steady = Window::default();
        for _ in 0..100 {
            while steady.is_open() {
                steady.ask(1 << 20);
            }
            steady.came(1 << 20);
        }
        assert_eq!(steady.size, MIN_WINDOW);
    }
}
