//! Several receivers of the same content behind links of one rate: how much of it its owner sends, and how long it takes.

use std::collections::VecDeque;

use meshfarm_core::transfer::{Line, Run, Transfer};
use meshfarm_protocol::id::{Millis, SiteId};

/// Bytes of a run, and how many there are: half a gigabyte.
const RUN_BYTES: u64 = 8 << 20;
const RUNS: u32 = 64;

/// A line asks on while less than this is under way.
const WINDOW: u64 = 8 << 20;

/// Time passes in steps of this.
const STEP: Millis = Millis(5);

/// How long a receiver's word takes to another one.
const DELAY: Millis = Millis(20);

/// One flow of pieces: what was asked for, and how many bytes of the first of them are still to come.
#[derive(Default)]
struct Flow {
    asked: VecDeque<Run>,
    left: u64,
}

impl Flow {
    fn under_way(&self) -> u64 {
        self.left + RUN_BYTES * (self.asked.len() as u64).saturating_sub(1)
    }
}

/// The owner is site 0, the receivers are those after it. Every site's link has a rate each way, in bytes a millisecond.
struct Mesh {
    now: Millis,
    rates: Vec<u64>,
    begins: Vec<Millis>,
    transfers: Vec<Transfer>,
    /// By receiver, then by source.
    flows: Vec<Vec<Flow>>,
    ended: Vec<Option<Millis>>,
    /// What was said of what is here, by whom, and when it is heard.
    said: VecDeque<(Millis, usize, Vec<u8>)>,
    sent_by_owner: u64,
}

fn line(site: usize) -> Line {
    Line { site: SiteId([u8::try_from(site).unwrap(); 32]), lane: 0 }
}

impl Mesh {
    fn new(rates: &[u64], begins: &[u64]) -> Self {
        let n = rates.len();
        let transfers = (1..n).map(|me| Transfer::new(line(me).site, RUNS, &[]));
        Self {
            now: Millis(0),
            rates: rates.to_vec(),
            begins: begins.iter().map(|at| Millis(*at)).collect(),
            transfers: transfers.collect(),
            flows: (1..n).map(|_| (0..n).map(|_| Flow::default()).collect()).collect(),
            ended: vec![None; n - 1],
            said: VecDeque::new(),
            sent_by_owner: 0,
        }
    }

    fn step(&mut self) {
        self.meet();
        self.ask();
        self.flow();
        self.now = self.now.plus(STEP);
        assert!(self.now < Millis::seconds(900), "it never ends");
    }

    /// Until this receiver has everything: when that is.
    fn until(mut self, me: usize) -> Millis {
        while self.ended[me].is_none() {
            self.step();
        }
        self.now
    }

    /// Until all have everything. Returns how often the owner sent it, and how long it took.
    fn run(mut self) -> (f64, Millis) {
        while self.ended.iter().any(Option::is_none) {
            self.step();
        }
        self.transfers.iter().for_each(Transfer::check);
        let all = u64::from(RUNS) * RUN_BYTES;
        (self.sent_by_owner as f64 / all as f64, self.now)
    }

    /// Who begins now is told of those that have begun, and they of it.
    fn meet(&mut self) {
        for one in 0..self.transfers.len() {
            if self.begins[one] != self.now {
                continue;
            }
            self.transfers[one].add_owner(line(0));
            for other in 0..self.transfers.len() {
                if other != one && self.begins[other] <= self.now {
                    for (at, site) in [(one, other), (other, one)] {
                        self.transfers[at].add_sharer(line(site + 1));
                        let here = self.transfers[site].here().bytes().to_vec();
                        self.transfers[at].has(line(site + 1), &here);
                    }
                }
            }
        }
        while self.said.front().is_some_and(|(at, ..)| *at <= self.now) {
            let (_, from, here) = self.said.pop_front().unwrap();
            self.transfers.iter_mut().for_each(|transfer| transfer.has(line(from + 1), &here));
        }
    }

    fn ask(&mut self) {
        for (transfer, flows) in self.transfers.iter_mut().zip(&mut self.flows) {
            for (source, flow) in flows.iter_mut().enumerate() {
                while flow.under_way() < WINDOW {
                    let Some(run) = transfer.next(line(source), self.now) else { break };
                    if flow.asked.is_empty() {
                        flow.left = RUN_BYTES;
                    }
                    flow.asked.push_back(run);
                }
            }
        }
    }

    /// A step of every flow: links are divided evenly between those that use them, also when one uses less than its part.
    fn flow(&mut self) {
        let active = |flow: &Flow| !flow.asked.is_empty();
        let up = |source: usize| self.flows.iter().filter(|flows| active(&flows[source])).count();
        let uploads: Vec<_> = (0..self.rates.len()).map(|source| up(source) as u64).collect();
        for me in 0..self.transfers.len() {
            let downloads = self.flows[me].iter().filter(|flow| active(flow)).count() as u64;
            for (source, uploads) in uploads.iter().enumerate() {
                let flow = &mut self.flows[me][source];
                let Some(run) = flow.asked.front().copied() else { continue };
                let fair = self.rates[source] / uploads;
                let rate = fair.min(self.rates[me + 1] / downloads);
                let came = (rate * STEP.0).min(flow.left);
                flow.left -= came;
                self.sent_by_owner += if source == 0 { came } else { 0 };
                if flow.left > 0 {
                    continue;
                }
                flow.asked.pop_front();
                flow.left = if flow.asked.is_empty() { 0 } else { RUN_BYTES };
                self.came(me, line(source), run);
            }
        }
    }

    fn came(&mut self, me: usize, from: Line, run: Run) {
        let transfer = &mut self.transfers[me];
        transfer.done(run, Some(from), self.now);
        transfer.check();
        let here = transfer.here().bytes().to_vec();
        if transfer.is_done() {
            self.ended[me].get_or_insert(self.now);
        }
        self.said.push_back((self.now.plus(DELAY), me, here));
    }
}

/// 400 Mbit/s in bytes a millisecond, and what all content needs there.
const LINK: u64 = 50_000;
const ONCE: Millis = Millis(RUN_BYTES * RUNS as u64 / LINK);

#[test]
fn an_owner_sends_about_one_copy_to_three_receivers_with_links_like_its_own() {
    for begins in [[0, 0, 0], [0, 300, 700], [0, 0, 3000]] {
        let (copies, took) = Mesh::new(&[LINK; 4], &begins).run();
        assert!(copies <= 1.2, "{copies:.2} copies, {begins:?}");
        let floor = ONCE.plus(Millis(begins[2]));
        assert!(took.0 * 10 <= floor.0 * 14, "{took:?} where the links need {floor:?}, {begins:?}");
    }
}

#[test]
fn a_receiver_with_a_slow_link_is_no_burden_for_the_others() {
    let fast = Mesh::new(&[LINK, LINK, LINK / 20], &[0, 0]).until(0);
    // Half of the owner's link is the other one's.
    assert!(fast.0 * 10 <= ONCE.0 * 22, "{fast:?} where the link alone needs {ONCE:?}");
    let (copies, took) = Mesh::new(&[LINK, LINK, LINK, LINK / 20], &[0, 0, 0]).run();
    assert!(copies <= 1.5, "{copies:.2} copies");
    assert!(took.0 <= ONCE.0 * 24, "{took:?} where the slow link needs {:?}", ONCE.times(20));
}

#[test]
fn what_the_others_have_already_comes_from_them() {
    let (copies, took) = Mesh::new(&[LINK; 4], &[0, 0, 30_000]).run();
    assert!(copies <= 1.4, "{copies:.2} copies");
    assert!(took.0 <= 30_000 + ONCE.0 * 14 / 10, "{took:?}");
}
