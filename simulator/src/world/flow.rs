//! Content on its way: every transfer gets its fair share of its sender's uplink and its receiver's downlink.

use std::collections::{BTreeMap, BTreeSet};

use meshfarm_protocol::id::Millis;

/// Larger sets of transfers that touch each other share each line evenly instead of exactly: what one cannot use
/// is not given to others then.
const EXACT: usize = 40;

/// A transfer.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// In all.
    pub(crate) bytes: u64,
    /// Still to come, as of `since`.
    pub(crate) left: u64,
    /// Bytes a second now.
    pub(crate) rate: u64,
    since: Millis,
    pub(crate) began: Millis,
    /// What it can use at most.
    pub(crate) cap: u64,
    /// Counts changes of its rate: a moment that was foreseen before is void.
    pub(crate) version: u64,
}

/// All transfers.
#[derive(Debug)]
pub(crate) struct Flows {
    up: Vec<u64>,
    down: Vec<u64>,
    flows: BTreeMap<u64, Flow>,
    sending: Vec<BTreeSet<u64>>,
    receiving: Vec<BTreeSet<u64>>,
    next: u64,
}

/// A transfer's rate has changed: when it will be over, if it moves at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) flow: u64,
    pub(crate) version: u64,
    pub(crate) over_in: Option<u64>,
}

impl Flows {
    pub(crate) fn new(rates: impl Iterator<Item = (u64, u64)>) -> Self {
        let (up, down): (Vec<_>, Vec<_>) = rates.unzip();
        let none = vec![BTreeSet::new(); up.len()];
        Self { sending: none.clone(), receiving: none, up, down, flows: BTreeMap::new(), next: 0 }
    }

    pub(crate) fn get(&self, flow: u64) -> Option<&Flow> {
        self.flows.get(&flow)
    }

    /// Begin a transfer; it moves once its line has been shared out.
    pub(crate) fn begin(&mut self, (from, to): (usize, usize), bytes: u64, now: Millis) -> u64 {
        self.next += 1;
        let flow = Flow {
            from,
            to,
            bytes,
            left: bytes,
            rate: 0,
            since: now,
            began: now,
            cap: u64::MAX,
            version: 0,
        };
        self.flows.insert(self.next, flow);
        self.sending[from].insert(self.next);
        self.receiving[to].insert(self.next);
        self.next
    }

    /// End a transfer: what was left of it.
    pub(crate) fn end(&mut self, flow: u64, now: Millis) -> Option<Flow> {
        let mut ended = self.flows.remove(&flow)?;
        self.sending[ended.from].remove(&flow);
        self.receiving[ended.to].remove(&flow);
        ended.advance(now);
        Some(ended)
    }

    /// Take half of what is left of a transfer away: another source has it too.
    pub(crate) fn halve(&mut self, flow: u64, now: Millis) -> u64 {
        let Some(flow) = self.flows.get_mut(&flow) else {
            return 0;
        };
        flow.advance(now);
        let half = flow.left / 2;
        flow.left -= half;
        flow.bytes -= half;
        half
    }

    /// A transfer has less to bring than was foreseen: its end is foreseen anew.
    pub(crate) fn moved(&mut self, flow: u64) {
        if let Some(flow) = self.flows.get_mut(&flow) {
            flow.rate = 0;
        }
    }

    /// Transfers that a site sends or receives.
    pub(crate) fn of(&self, site: usize) -> Vec<u64> {
        self.sending[site].iter().chain(&self.receiving[site]).copied().collect()
    }

    /// Share the lines of these sites out anew. `cap` says what a transfer between two sites can use at most.
    pub(crate) fn share(
        &mut self,
        sites: &[usize],
        now: Millis,
        cap: impl Fn(&Flow) -> u64,
    ) -> Vec<Turn> {
        let (touched, exact) = self.touched(sites);
        for flow in &touched {
            if let Some(flow) = self.flows.get_mut(flow) {
                flow.cap = cap(flow);
            }
        }
        let rates = if exact { self.fair(&touched) } else { self.even(&touched) };
        let mut turns = Vec::new();
        for (id, rate) in touched.into_iter().zip(rates) {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            if flow.rate == rate && flow.version > 0 {
                continue;
            }
            flow.advance(now);
            flow.rate = rate;
            flow.version += 1;
            let over_in = (rate > 0).then(|| (flow.left * 1000).div_ceil(rate));
            turns.push(Turn { flow: id, version: flow.version, over_in });
        }
        turns
    }

    /// Every transfer whose rate depends on the lines of these sites, or those at these lines only when they are many.
    fn touched(&self, sites: &[usize]) -> (Vec<u64>, bool) {
        let mut found = BTreeSet::new();
        let mut lines: Vec<_> =
            sites.iter().flat_map(|site| [(*site, true), (*site, false)]).collect();
        let mut seen: BTreeSet<_> = lines.iter().copied().collect();
        while let Some((site, up)) = lines.pop() {
            let on = if up { &self.sending[site] } else { &self.receiving[site] };
            for id in on.iter().filter(|id| found.insert(**id)).collect::<Vec<_>>() {
                let flow = &self.flows[id];
                lines.extend(
                    [(flow.from, true), (flow.to, false)]
                        .into_iter()
                        .filter(|line| seen.insert(*line)),
                );
            }
            if found.len() > EXACT {
                let direct = sites.iter().flat_map(|site| self.of(*site));
                return (direct.collect::<BTreeSet<_>>().into_iter().collect(), false);
            }
        }
        (found.into_iter().collect(), true)
    }

    fn even(&self, touched: &[u64]) -> Vec<u64> {
        let share = |id: &u64| {
            let flow = &self.flows[id];
            let up = self.up[flow.from] / (self.sending[flow.from].len() as u64).max(1);
            let down = self.down[flow.to] / (self.receiving[flow.to].len() as u64).max(1);
            if flow.cap == 0 { 0 } else { up.min(down).min(flow.cap).max(1) }
        };
        touched.iter().map(share).collect()
    }

    /// Progressive filling: the narrowest line is shared evenly among its transfers, which then have their rate.
    fn fair(&self, touched: &[u64]) -> Vec<u64> {
        let mut rates: BTreeMap<u64, u64> = BTreeMap::new();
        let mut room: BTreeMap<(usize, bool), (u64, u64)> = BTreeMap::new();
        for id in touched {
            let flow = &self.flows[id];
            if flow.cap == 0 {
                rates.insert(*id, 0);
                continue;
            }
            room.entry((flow.from, true)).or_insert((self.up[flow.from], 0)).1 += 1;
            room.entry((flow.to, false)).or_insert((self.down[flow.to], 0)).1 += 1;
        }
        while rates.len() < touched.len() {
            let open = || touched.iter().filter(|id| !rates.contains_key(id));
            let capped = open().map(|id| (self.flows[id].cap, *id)).min();
            let narrow = room.iter().filter(|(_, (_, n))| *n > 0);
            let narrow = narrow.map(|(line, (left, n))| (left / n, *line)).min();
            let fixed: Vec<(u64, u64)> = match (capped, narrow) {
                (Some((cap, id)), Some((share, _))) if cap <= share => vec![(id, cap)],
                (_, Some((share, (site, up)))) => {
                    let on = |id: &&u64| {
                        let flow = &self.flows[id];
                        if up { flow.from == site } else { flow.to == site }
                    };
                    open().filter(on).map(|id| (*id, share.max(1))).collect()
                }
                (_, None) => break,
            };
            for (id, rate) in fixed {
                let flow = &self.flows[&id];
                for line in [(flow.from, true), (flow.to, false)] {
                    if let Some((left, n)) = room.get_mut(&line) {
                        (*left, *n) = (left.saturating_sub(rate), *n - 1);
                    }
                }
                rates.insert(id, rate);
            }
        }
        touched.iter().map(|id| rates.get(id).copied().unwrap_or(0)).collect()
    }
}

impl Flow {
    fn advance(&mut self, now: Millis) {
        let moved = now.since(self.since).0.saturating_mul(self.rate) / 1000;
        self.left = self.left.saturating_sub(moved);
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(flows: &mut Flows, sites: &[usize]) -> Vec<u64> {
        flows.share(sites, Millis(0), |_| u64::MAX);
        flows.flows.values().map(|flow| flow.rate).collect()
    }

    #[test]
    fn transfers_get_max_min_fair_shares() {
        // Site 0 sends to 1 and 2; site 2 has a narrow downlink: 1 gets what 2 cannot use.
        let mut flows = Flows::new([(100, 100), (100, 100), (100, 20), (100, 100)].into_iter());
        flows.begin((0, 1), 1000, Millis(0));
        flows.begin((0, 2), 1000, Millis(0));
        assert_eq!(rates(&mut flows, &[0]), [80, 20]);
        // A third transfer into the same downlink halves it.
        flows.begin((3, 2), 1000, Millis(0));
        assert_eq!(rates(&mut flows, &[3]), [90, 10, 10]);
    }

    #[test]
    fn a_transfer_that_is_halved_or_ended_keeps_its_account() {
        let mut flows = Flows::new([(100, 100), (100, 100)].into_iter());
        let flow = flows.begin((0, 1), 1000, Millis(0));
        let turns = flows.share(&[0], Millis(0), |_| u64::MAX);
        assert_eq!(turns, [Turn { flow, version: 1, over_in: Some(10_000) }]);
        assert_eq!(flows.halve(flow, Millis(5000)), 250);
        let ended = flows.end(flow, Millis(6000)).unwrap();
        assert_eq!((ended.bytes, ended.left), (750, 150));
    }
}
