//! Lines between sites: who reaches whom, what stands still, how long a message travels.

use crate::plan::{Nat, Plan, PlanSite};
use crate::streams::Streams;

/// A line through a relay takes so much longer, in milliseconds one way.
const RELAY_MS: u64 = 25;

/// What one relayed line carries at most, in bytes a second.
pub(crate) const RELAY_RATE: u64 = 1_000_000;

/// How long a segment that was lost takes to be sent again, in milliseconds, doubled each time.
const RETRANSMIT_MS: u64 = 200;

/// How two sites reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Relayed,
    None,
}

/// Lines that something is wrong with: those from some sites to some others.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    /// The fault that made it.
    pub(crate) fault: usize,
    from: Vec<bool>,
    /// None: everybody else.
    to: Option<Vec<bool>>,
    /// Whether the way back is as bad.
    both: bool,
}

impl Zone {
    pub(crate) fn new(
        fault: usize,
        n: usize,
        (from, to): (&[usize], &[usize]),
        both: bool,
    ) -> Self {
        let set = |sites: &[usize]| {
            let mut set = vec![false; n];
            sites.iter().for_each(|site| set[*site] = true);
            set
        };
        Self { fault, from: set(from), to: (!to.is_empty()).then(|| set(to)), both }
    }

    fn one_way(&self, from: usize, to: usize) -> bool {
        self.from[from] && self.to.as_ref().map_or(!self.from[to], |set| set[to])
    }

    fn holds(&self, from: usize, to: usize) -> bool {
        self.one_way(from, to) || (self.both && self.one_way(to, from))
    }

    /// Whether a site is at one of its ends.
    pub(crate) fn touches(&self, a: usize, b: usize) -> bool {
        self.one_way(a, b) || self.one_way(b, a)
    }
}

/// Something that is wrong with single messages of some sites.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) fault: usize,
    pub(crate) sites: Vec<bool>,
    pub(crate) jitter_ms: u64,
    pub(crate) drop_ppm: u32,
    pub(crate) duplicate_ppm: u32,
    /// Of the usual rate.
    pub(crate) percent: u64,
}

/// All lines.
#[derive(Debug)]
pub(crate) struct Net {
    ends: Vec<End>,
    relay: bool,
    pub(crate) cuts: Vec<Zone>,
    pub(crate) clogs: Vec<Zone>,
    pub(crate) weather: Vec<Weather>,
    n_sent: u64,
}

/// A site's end of its lines.
#[derive(Clone, Copy, Debug)]
struct End {
    id: u64,
    latency_ms: u64,
    jitter_ms: u64,
    loss_ppm: u32,
    nat: Nat,
    /// A host has lines to its head only.
    head: Option<usize>,
}

impl Net {
    pub(crate) fn new(plan: &Plan) -> Self {
        let end = |site: &PlanSite| End {
            id: crate::streams::number_of(&site.name),
            latency_ms: site.latency_ms,
            jitter_ms: site.jitter_ms,
            loss_ppm: site.loss_ppm,
            nat: site.nat,
            head: site
                .host_of
                .as_ref()
                .and_then(|head| plan.site.iter().position(|site| site.name == *head)),
        };
        Self {
            ends: plan.site.iter().map(end).collect(),
            relay: plan.relay,
            cuts: Vec::new(),
            clogs: Vec::new(),
            weather: Vec::new(),
            n_sent: 0,
        }
    }

    /// How two sites reach each other when nothing is cut.
    pub(crate) fn way(&self, a: usize, b: usize) -> Way {
        let strange =
            |host: usize, other: usize| self.ends[host].head.is_some_and(|head| head != other);
        if a != b && (strange(a, b) || strange(b, a)) {
            return Way::None;
        }
        let direct = match (self.ends[a].nat, self.ends[b].nat) {
            (Nat::Open | Nat::FullCone, _) | (_, Nat::Open | Nat::FullCone) => true,
            (Nat::Firewalled, _) | (_, Nat::Firewalled) => false,
            (Nat::Symmetric, Nat::Restricted) | (Nat::Restricted, Nat::Symmetric) => true,
            (Nat::Symmetric, _) | (_, Nat::Symmetric) => false,
            (Nat::Restricted | Nat::PortRestricted, Nat::Restricted | Nat::PortRestricted) => true,
        };
        match (direct || a == b, self.relay) {
            (true, _) => Way::Direct,
            (false, true) => Way::Relayed,
            (false, false) => Way::None,
        }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.iter().any(|zone| zone.holds(from, to))
    }

    /// Whether a connection between two sites lives: both ways are needed.
    pub(crate) fn is_whole(&self, a: usize, b: usize) -> bool {
        a == b || (self.way(a, b) != Way::None && !self.is_cut(a, b) && !self.is_cut(b, a))
    }

    /// Whether what is sent arrives, sooner or later.
    pub(crate) fn carries(&self, from: usize, to: usize) -> bool {
        self.way(from, to) != Way::None && !self.is_cut(from, to)
    }

    /// Whether what is sent stands still.
    pub(crate) fn is_clogged(&self, from: usize, to: usize) -> bool {
        self.clogs.iter().any(|zone| zone.holds(from, to))
    }

    fn weather(&self, a: usize, b: usize) -> impl Iterator<Item = &Weather> {
        self.weather.iter().filter(move |weather| weather.sites[a] || weather.sites[b])
    }

    /// After how many milliseconds each copy of a message arrives.
    pub(crate) fn send(&mut self, streams: Streams, from: usize, to: usize) -> [Option<u64>; 2] {
        if !self.carries(from, to) {
            return [None, None];
        }
        self.n_sent += 1;
        let key = (self.ends[from].id ^ self.ends[to].id.rotate_left(17), self.n_sent);
        let dropped = self.weather(from, to).map(|weather| weather.drop_ppm).max().unwrap_or(0);
        if streams.chance("drop", key, dropped) {
            return [None, None];
        }
        let first = self.travel(streams, (from, to), key);
        let doubled =
            self.weather(from, to).map(|weather| weather.duplicate_ppm).max().unwrap_or(0);
        let copy = streams.chance("duplicate", key, doubled);
        let again = copy.then(|| self.travel(streams, (from, to), (key.0 ^ 1, key.1)));
        [Some(first), again]
    }

    fn travel(&self, streams: Streams, (from, to): (usize, usize), key: (u64, u64)) -> u64 {
        let (a, b) = (self.ends[from], self.ends[to]);
        let storm = self.weather(from, to).map(|weather| weather.jitter_ms).sum::<u64>();
        let jitter = a.jitter_ms + b.jitter_ms + storm;
        let mut ms = self.latency(from, to) + streams.between("jitter", key, [0, jitter]);
        // A lost segment of a stream comes late; it is never missing.
        let loss = a.loss_ppm.saturating_add(b.loss_ppm).min(900_000);
        let mut wait = RETRANSMIT_MS;
        while wait < 10_000 && streams.chance("loss", (key.0 ^ wait, key.1), loss) {
            ms += wait;
            wait *= 2;
        }
        ms
    }

    /// One way, in milliseconds.
    pub(crate) fn latency(&self, a: usize, b: usize) -> u64 {
        let relay = if self.way(a, b) == Way::Relayed { RELAY_MS } else { 0 };
        self.ends[a].latency_ms + self.ends[b].latency_ms + relay
    }

    /// What one stream carries at most, in bytes a second (Mathis: a lossy line does not fill), and how long it takes
    /// to get going, in milliseconds (slow start from ten segments).
    pub(crate) fn stream(&self, a: usize, b: usize, bytes: u64) -> (u64, u64) {
        let rtt = (2 * self.latency(a, b)).max(1);
        let loss = u64::from(self.ends[a].loss_ppm) + u64::from(self.ends[b].loss_ppm);
        // 1460 B / (rtt * sqrt(2p/3)), with p in parts of a million.
        let lossy = (1460 * 1000 * 1000 / (rtt * (loss * 2 / 3).max(1).isqrt())).max(1000);
        let cap = if loss == 0 { u64::MAX } else { lossy };
        let cap = if self.way(a, b) == Way::Relayed { cap.min(RELAY_RATE) } else { cap };
        let rounds = (bytes / 14_600 + 1).ilog2().min(8);
        (cap, rtt * u64::from(rounds + 1))
    }

    /// Percent of the usual rate at which content goes between two sites now.
    pub(crate) fn percent(&self, a: usize, b: usize) -> u64 {
        self.weather(a, b).map(|weather| weather.percent).min().unwrap_or(100)
    }
}
