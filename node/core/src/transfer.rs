//! Which part of a manifest's content to ask of which source: order, rotation, duplication at the end, blame.
//!
//! Content is a flattened list of chunks. It is asked for in *runs* of [`RUN`] neighbours, so that what is
//! open, asked for and done is a few bits a run, also with millions of chunks. Pure: whoever drives it tells
//! what has happened and asks what to do next.

use std::collections::{BTreeMap, BTreeSet};

use meshfarm_protocol::id::SiteId;

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
    /// Runs that it was asked for and has not answered.
    asked: BTreeSet<Run>,
    /// Runs that it said it has not, whatever it had said before.
    lacks: BTreeSet<Run>,
}

/// Why a source is asked no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It sent bytes that are not those of the chunk that it was asked for.
    Wrong,
    /// It sent what is no piece.
    Garbled,
}

/// The transfer of one manifest's content.
#[derive(Clone, Debug)]
pub struct Transfer {
    n_runs: u32,
    done: Runs,
    n_done: u32,
    /// Runs that come before all others, in their order.
    first: Vec<Run>,
    /// The first of those that nobody has been asked for yet.
    next_first: usize,
    /// Where the others begin: several receivers of one job begin at different places, so that they soon have
    /// something for each other.
    start: u32,
    /// How many of the others were looked at, from `start` on and around.
    looked: u32,
    /// Runs that were asked for in vain, to be asked for again before anything new.
    again: BTreeSet<Run>,
    sources: BTreeMap<Line, Source>,
    banned: BTreeMap<SiteId, Dropped>,
}

impl Transfer {
    /// A transfer of `n_runs` of which nothing is known to be here. `first` come first, and `seed` says where the
    /// others begin.
    #[must_use]
    pub fn new(n_runs: u32, first: Vec<Run>, seed: u64) -> Self {
        let start = u32::try_from(seed % u64::from(n_runs.max(1))).unwrap_or(0);
        Self {
            n_runs,
            done: Runs::none(n_runs),
            n_done: 0,
            first: first.into_iter().filter(|run| run.0 < n_runs).collect(),
            next_first: 0,
            start,
            looked: 0,
            again: BTreeSet::new(),
            sources: BTreeMap::new(),
            banned: BTreeMap::new(),
        }
    }

    /// A site that has everything.
    pub fn add_owner(&mut self, line: Line) {
        self.add(line, Has::All);
    }

    /// A site that has said nothing yet, and will say what it has.
    pub fn add_sharer(&mut self, line: Line) {
        self.add(line, Has::Some(Runs::none(self.n_runs)));
    }

    fn add(&mut self, line: Line, has: Has) {
        if !self.banned.contains_key(&line.site) {
            let fresh = Source { has, asked: BTreeSet::new(), lacks: BTreeSet::new() };
            self.sources.entry(line).or_insert(fresh);
        }
    }

    /// A source says that it has these runs too, as a bitmap.
    pub fn has(&mut self, line: Line, bitmap: &[u8]) {
        if let Some(Source { has: Has::Some(runs), .. }) = self.sources.get_mut(&line) {
            runs.unite(bitmap);
        }
    }

    /// The next run to ask for on `line`. None when its source has nothing that is missing here and not asked for
    /// already.
    pub fn next(&mut self, line: Line) -> Option<Run> {
        let run = self.open(line).or_else(|| self.duplicate(line))?;
        self.sources.get_mut(&line)?.asked.insert(run);
        Some(run)
    }

    /// A run that nobody is asked for.
    fn open(&mut self, line: Line) -> Option<Run> {
        let source = self.sources.get(&line)?;
        if let Some(run) = self.again.iter().copied().find(|run| source.offers(*run)) {
            self.again.remove(&run);
            return Some(run);
        }
        while let Some(run) = self.first.get(self.next_first).copied() {
            if !self.is_open(run) {
                self.next_first += 1;
            } else if source.offers(run) {
                self.next_first += 1;
                return Some(run);
            } else {
                break;
            }
        }
        match &source.has {
            Has::All => self.open_in_order(),
            Has::Some(_) => {
                let found = self.in_order(0).find(|run| source.offers(*run) && self.is_open(*run));
                found.or_else(|| {
                    self.first.iter().copied().find(|run| source.offers(*run) && self.is_open(*run))
                })
            }
        }
    }

    /// The next run for a source that has everything. What was looked at is not looked at again, so that asking
    /// for a million runs takes a million steps.
    fn open_in_order(&mut self) -> Option<Run> {
        while self.looked < self.n_runs {
            let run = self.in_order(self.looked).next()?;
            self.looked += 1;
            if self.is_open(run) {
                return Some(run);
            }
        }
        None
    }

    fn in_order(&self, from: u32) -> impl Iterator<Item = Run> + use<> {
        let (start, n) = (u64::from(self.start), u64::from(self.n_runs));
        (u64::from(from)..n).map(move |at| {
            Run(u32::try_from((start + at) % n).expect("less than the number of runs"))
        })
    }

    /// Neither here nor asked for.
    fn is_open(&self, run: Run) -> bool {
        !self.done.contains(run) && !self.sources.values().any(|source| source.asked.contains(&run))
    }

    /// A run that another site is asked for, when nothing else is left: one slow line never holds the end.
    fn duplicate(&self, line: Line) -> Option<Run> {
        let source = self.sources.get(&line)?;
        let others = self.sources.iter().filter(|(other, _)| other.site != line.site);
        let asked: BTreeSet<Run> = others.flat_map(|(_, other)| &other.asked).copied().collect();
        let n_asked =
            |run: &Run| self.sources.values().filter(|source| source.asked.contains(run)).count();
        asked.into_iter().find(|run| source.offers(*run) && n_asked(run) < MAX_ASKED)
    }

    /// Every chunk of `run` is in the store.
    pub fn done(&mut self, run: Run) {
        if run.0 < self.n_runs && !self.done.contains(run) {
            self.done.insert(run);
            self.n_done += 1;
        }
        self.again.remove(&run);
        for source in self.sources.values_mut() {
            source.asked.remove(&run);
        }
    }

    /// `line` will not bring `run` after all, through no fault of its source.
    pub fn returned(&mut self, line: Line, run: Run) {
        if let Some(source) = self.sources.get_mut(&line) {
            source.asked.remove(&run);
        }
        if self.is_open(run) {
            self.again.insert(run);
        }
    }

    /// The source of `line` has not got `run`, or not all of it, whatever it said. Another one may.
    pub fn lacking(&mut self, line: Line, run: Run) {
        for (other, source) in &mut self.sources {
            if other.site == line.site {
                source.lacks.insert(run);
            }
        }
        self.returned(line, run);
    }

    /// A line is gone. What was asked for on it is open again.
    pub fn lost(&mut self, line: Line) {
        if let Some(source) = self.sources.remove(&line) {
            self.reopen(source);
        }
    }

    /// `site` misbehaves: it is asked for nothing more in this transfer.
    pub fn ban(&mut self, site: SiteId, why: Dropped) {
        self.banned.insert(site, why);
        let lines: Vec<_> = self.sources.keys().filter(|line| line.site == site).copied().collect();
        lines.into_iter().for_each(|line| self.lost(line));
    }

    fn reopen(&mut self, source: Source) {
        for run in source.asked {
            if self.is_open(run) {
                self.again.insert(run);
            }
        }
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
        for run in &self.again {
            assert!(self.is_open(*run), "{run:?} is asked for twice or done");
        }
        for (line, source) in &self.sources {
            assert!(!self.banned.contains_key(&line.site), "a banned source is asked");
            assert!(source.asked.iter().all(|run| !self.done.contains(*run)), "done and asked for");
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

    #[test]
    fn everything_is_asked_for_once_and_what_comes_first_comes_first() {
        let mut transfer = Transfer::new(5, vec![Run(4), Run(1)], 2);
        transfer.add_owner(line(1));
        let asked: Vec<_> = std::iter::from_fn(|| transfer.next(line(1))).collect();
        assert_eq!(asked, [4, 1, 2, 3, 0].map(Run));
        transfer.check();
        asked.into_iter().for_each(|run| transfer.done(run));
        assert!(transfer.is_done());
        assert_eq!(transfer.next(line(1)), None);
    }

    #[test]
    fn receivers_with_other_seeds_begin_elsewhere() {
        let mut one = Transfer::new(100, vec![], 10);
        let mut other = Transfer::new(100, vec![], 60);
        one.add_owner(line(1));
        other.add_owner(line(1));
        assert_eq!(one.next(line(1)), Some(Run(10)));
        assert_eq!(other.next(line(1)), Some(Run(60)));
    }

    #[test]
    fn a_sharer_is_asked_for_what_it_said_and_the_owner_for_the_rest() {
        let mut transfer = Transfer::new(4, vec![], 0);
        transfer.add_owner(line(1));
        transfer.add_sharer(line(2));
        assert_eq!(transfer.next(line(2)), None);
        transfer.has(line(2), &[0b1010]);
        assert_eq!(transfer.next(line(2)), Some(Run(1)));
        assert_eq!(transfer.next(line(1)), Some(Run(0)));
        assert_eq!(transfer.next(line(1)), Some(Run(2)));
        assert_eq!(transfer.next(line(2)), Some(Run(3)));
        transfer.check();
    }

    #[test]
    fn what_a_lost_source_was_asked_for_is_asked_of_another() {
        let mut transfer = Transfer::new(2, vec![], 0);
        transfer.add_owner(line(1));
        transfer.add_owner(line(2));
        assert_eq!(transfer.next(line(1)), Some(Run(0)));
        transfer.lost(line(1));
        transfer.check();
        assert_eq!(transfer.next(line(2)), Some(Run(0)));
        transfer.returned(line(2), Run(0));
        assert_eq!(transfer.next(line(2)), Some(Run(0)));
    }

    #[test]
    fn a_banned_source_never_comes_back() {
        let mut transfer = Transfer::new(1, vec![], 0);
        transfer.add_owner(line(1));
        transfer.next(line(1));
        transfer.ban(site(1), Dropped::Wrong);
        transfer.add_owner(line(1));
        assert!(transfer.is_banned(site(1)));
        assert_eq!(transfer.next(line(1)), None);
        assert_eq!(transfer.lacked_by_all(), Some(Run(0)));
    }

    #[test]
    fn the_last_runs_are_asked_of_a_second_source_and_of_no_third() {
        let mut transfer = Transfer::new(1, vec![], 0);
        (1..=3).for_each(|n| transfer.add_owner(line(n)));
        assert_eq!(transfer.next(line(1)), Some(Run(0)));
        assert_eq!(transfer.next(line(1)), None);
        assert_eq!(transfer.next(line(2)), Some(Run(0)));
        assert_eq!(transfer.next(line(3)), None);
        transfer.done(Run(0));
        transfer.check();
        assert!(transfer.is_done());
    }

    #[test]
    fn lanes_to_one_site_share_the_work_and_never_double_it() {
        let mut transfer = Transfer::new(2, vec![], 0);
        let other = Line { lane: 1, ..line(1) };
        transfer.add_owner(line(1));
        transfer.add_owner(other);
        assert_eq!(transfer.next(line(1)), Some(Run(0)));
        assert_eq!(transfer.next(other), Some(Run(1)));
        assert_eq!(transfer.next(other), None);
        transfer.lost(line(1));
        assert_eq!(transfer.next(other), Some(Run(0)));
        transfer.check();
    }

    #[test]
    fn a_source_that_lacks_a_run_is_not_asked_for_it_again() {
        let mut transfer = Transfer::new(1, vec![], 0);
        transfer.add_sharer(line(1));
        transfer.has(line(1), &[0xff, 0xff]);
        assert_eq!(transfer.next(line(1)), Some(Run(0)));
        transfer.lacking(line(1), Run(0));
        transfer.check();
        assert_eq!(transfer.next(line(1)), None);
        assert_eq!(transfer.lacked_by_all(), Some(Run(0)));
        transfer.add_owner(line(2));
        assert_eq!(transfer.lacked_by_all(), None);
        assert_eq!(transfer.next(line(2)), Some(Run(0)));
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
