//! What happens to nodes: they start, die, stand still, fill their disks, lie, and open and close by the hour.

use std::collections::BTreeSet;

use meshfarm_core::opening::{Opening, Owner, WeekMinute};
use meshfarm_core::{Ask, Config, Input, Key, Pricing, Request, Site};
use meshfarm_protocol::id::{JobId, Millis, StepNo};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::seal::SealingKey;

use crate::bug::Bug;
use crate::plan::{Away, FOREVER, Trouble};
use crate::seen::What;
use crate::workload;
use crate::world::crowd::{CONNECT, NOTICE};
use crate::world::net::{Weather, Zone};
use crate::world::{Event, SUBMIT_AGAIN, World};

/// Minutes of a day.
const DAY: u64 = 24 * 60;

impl World<'_> {
    /// A fault begins or ends.
    pub(crate) fn trouble(&mut self, n: usize, begins: bool) {
        self.see(0, What::Fault { n, begins });
        let plan = self.plan;
        let fault = &plan.fault[n];
        let numbers = |names: &[String]| -> Vec<usize> {
            names.iter().filter_map(|name| self.by_name.get(name.as_str()).copied()).collect()
        };
        let (sites, others) = (numbers(&fault.sites), numbers(&fault.others));
        match &fault.what {
            Trouble::Cut { one_way } => self.line(n, begins, (&sites, &others), Some(!one_way)),
            Trouble::Clog => self.line(n, begins, (&sites, &others), None),
            Trouble::Slow { .. }
            | Trouble::Jitter { .. }
            | Trouble::Drop { .. }
            | Trouble::Duplicate { .. } => self.weather(n, begins, &sites),
            Trouble::Crash => {
                for site in sites {
                    if begins {
                        self.nodes[site].dead += 1;
                        self.kill(site);
                    } else {
                        self.boot(site);
                    }
                }
            }
            Trouble::KillPoint { outputs } => {
                let until = Millis(fault.at_ms.saturating_add(fault.for_ms.min(FOREVER)));
                for site in sites {
                    self.nodes[site].kill_after = begins.then_some((*outputs, until));
                }
            }
            Trouble::Clock { .. }
            | Trouble::Pause
            | Trouble::DiskFull
            | Trouble::DiskSlow { .. }
            | Trouble::Lie { .. }
            | Trouble::Licences => {
                for site in sites {
                    self.ail(site, &fault.what, begins);
                }
            }
        }
    }

    /// Lines are cut (with or without their way back) or clogged, or are well again.
    fn line(&mut self, n: usize, begins: bool, (a, b): (&[usize], &[usize]), cut: Option<bool>) {
        let zone = Zone::new(n, self.nodes.len(), (a, b), cut.unwrap_or(false));
        let zones = if cut.is_some() { &mut self.net.cuts } else { &mut self.net.clogs };
        if begins {
            zones.push(zone.clone());
        } else {
            zones.retain(|zone| zone.fault != n);
        }
        if cut.is_some() {
            for from in a {
                let lines = self.lines_of(*from).into_iter();
                for to in lines.filter(|to| zone.touches(*from, *to)).collect::<Vec<_>>() {
                    self.look_at((*from, to), if begins { [0, NOTICE] } else { CONNECT });
                }
            }
        } else if !begins {
            for (from, to, event) in std::mem::take(&mut self.clogged) {
                self.deliver((from, to), self.net.latency(from, to), event);
            }
        }
        self.share_lines(a);
    }

    fn weather(&mut self, n: usize, begins: bool, sites: &[usize]) {
        self.net.weather.retain(|weather| weather.fault != n);
        if begins {
            let mut set = vec![false; self.nodes.len()];
            sites.iter().for_each(|site| set[*site] = true);
            let fair = Weather {
                fault: n,
                sites: set,
                jitter_ms: 0,
                drop_ppm: 0,
                duplicate_ppm: 0,
                percent: 100,
            };
            self.net.weather.push(match self.plan.fault[n].what {
                Trouble::Jitter { ms } => Weather { jitter_ms: ms, ..fair },
                Trouble::Drop { ppm } => Weather { drop_ppm: ppm, ..fair },
                Trouble::Duplicate { ppm } => Weather { duplicate_ppm: ppm, ..fair },
                Trouble::Slow { percent } => Weather { percent, ..fair },
                _ => fair,
            });
        }
        self.share_lines(sites);
    }

    /// Something is wrong with one node that goes on living, or is no more.
    fn ail(&mut self, at: usize, what: &Trouble, begins: bool) {
        let count = |n: u32| if begins { n + 1 } else { n.saturating_sub(1) };
        let node = &mut self.nodes[at];
        match what {
            Trouble::Clock { ahead_ms } => {
                node.ahead = if begins { Millis(*ahead_ms) } else { Millis(0) };
                node.wake = None;
                self.hear(at, Input::Tick);
            }
            Trouble::Pause => {
                node.paused = count(node.paused);
                if node.paused == 0 {
                    for event in std::mem::take(&mut node.held) {
                        self.after(1, event);
                    }
                    self.nodes[at].wake = None;
                    self.set_wake(at);
                }
                for other in self.lines_of(at) {
                    self.look_at((other, at), if begins { [NOTICE / 2, NOTICE] } else { CONNECT });
                }
                self.share_lines(&[at]);
            }
            Trouble::DiskFull => {
                node.disk_full = count(node.disk_full);
                let full = node.disk_full > 0;
                self.hear(at, Input::Disk { full });
            }
            Trouble::DiskSlow { ms } => node.disk_ms = if begins { *ms } else { 0 },
            Trouble::Lie { how, ppm } => node.lie = begins.then_some((*how, *ppm)),
            Trouble::Licences => {
                node.unlicensed = count(node.unlicensed);
                let host = node.host(&self.plan.site[at]);
                self.hear(at, Input::Host(Box::new(host)));
            }
            _ => {}
        }
    }

    /// A node starts, unless something else still keeps it dead.
    pub(crate) fn boot(&mut self, at: usize) {
        let head = self.plan.site[at].host_of.as_ref();
        let head =
            head.and_then(|head| self.by_name.get(head.as_str())).map(|head| self.nodes[*head].id);
        let node = &mut self.nodes[at];
        node.dead = node.dead.saturating_sub(1);
        if node.dead > 0 || node.site.is_some() {
            return;
        }
        let seed = self.streams.bytes("site", node.number, node.life);
        let plan = &self.plan.site[at];
        // What a session had stored before its end was recorded belongs to nobody.
        let disk = &node.disk;
        node.kept.retain(|attempt, _| disk.contains_key(&Key::Finished(*attempt)));
        let mut host = node.host(plan);
        if self.bug == Some(Bug::OverCommit) {
            host.slots = host.slots.saturating_mul(2);
        }
        let opening = if plan.hours.is_some() && plan.away == Away::Closed {
            let (idle, grace) = (Some(Millis(1000)), Millis(plan.grace_ms));
            Opening { idle, grace, ..Opening::default() }
        } else {
            Opening::default()
        };
        let config = Config {
            me: node.id,
            name: node.name.clone(),
            host,
            head,
            submitter: false,
            sealing_key: SealingKey([1; 32]),
            addresses: Vec::new(),
            lending: plan.lending,
            floor: Level::S2,
            opening,
            keep_jobs: Millis(u64::MAX),
            pass_on: false,
            kept: BTreeSet::new(),
            pricing: Pricing::default(),
            seed,
        };
        let records: Vec<_> = node.disk.values().cloned().collect();
        let jobs: Vec<JobId> = node
            .disk
            .keys()
            .filter_map(|key| match key {
                Key::Job(job) => Some(*job),
                _ => None,
            })
            .collect();
        let done = records
            .iter()
            .filter(|record| {
                matches!(record, meshfarm_core::Record::Task(_, meshfarm_core::Task::Done { .. }))
            })
            .count() as u64;
        let life = node.life;
        node.site = Some(Box::new(Site::new(config, self.now.plus(node.ahead), records)));
        node.attentive = false;
        self.see(at, What::Up { life, jobs, done });
        for other in self.lines_of(at) {
            self.look_at((at, other), CONNECT);
        }
        if !self.nodes[at].active.is_empty() {
            self.attend(at);
        }
        self.look_at_owner(at);
        self.hear(at, Input::Tick);
        self.share_lines(&[at]);
    }

    /// The node dies: what it had made durable stays.
    pub(crate) fn kill(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.site.take().is_none() {
            return;
        }
        node.life += 1;
        node.laid.clear();
        node.keys.clear();
        node.unsynced.clear();
        node.held.clear();
        (node.kill_after, node.wake) = (None, None);
        if self.bug == Some(Bug::LoseRecords) {
            let tasks = |key: &Key| matches!(key, Key::Task(_));
            if let Some(last) = node.disk.keys().rev().find(|key| tasks(key)).copied() {
                node.disk.remove(&last);
            }
        }
        for peer in std::mem::take(&mut node.peers) {
            self.nodes[peer].known_by.remove(&at);
        }
        self.sessions_die(at);
        self.see(at, What::Down);
        for other in self.nodes[at].known_by.clone() {
            self.after(100, Event::Link(other, at));
        }
        self.transfers_die(at);
    }

    pub(crate) fn submit(&mut self, n: usize) {
        if self.acknowledged[n] {
            return;
        }
        let job = &self.plan.job[n];
        let Some(at) = self.by_name.get(job.site.as_str()).copied() else {
            return;
        };
        let up = self.nodes[at].site.is_some() && self.nodes[at].paused == 0;
        self.after(if up { SUBMIT_AGAIN } else { 10 * SUBMIT_AGAIN }, Event::Submit(n));
        if up {
            let mut spec = workload::spec(job);
            if self.bug == Some(Bug::IgnorePlace) {
                spec.policy.place = meshfarm_protocol::job::Place::Auto;
            }
            let (root, bytes) = (workload::root(job.id, StepNo(0)), job.bytes);
            self.attend(at);
            let ask = Ask::Submit { spec: Box::new(spec), root, bytes };
            self.hear(at, Input::Asked(Request(n as u64), ask));
        }
    }

    /// A submission was acknowledged.
    pub(crate) fn submitted(&mut self, at: usize, request: Request, job: JobId) {
        let n = usize::try_from(request.0).unwrap_or(usize::MAX);
        self.acknowledged[n] = true;
        self.see(at, What::Acknowledged { job, number: self.plan.job[n].id });
    }

    fn is_open(&self, at: usize) -> bool {
        let minute = self.now.0 / 60_000 % DAY;
        self.plan.site[at].hours.is_none_or(|[from, to]| {
            if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
        })
    }

    /// How long until a site's hours begin or end, in milliseconds.
    pub(crate) fn until_hours_turn(&self, at: usize) -> u64 {
        let day = DAY * 60_000;
        let now = self.now.0 % day;
        let turns = self.plan.site[at].hours.into_iter().flatten();
        let until = |minute: u64| match (minute * 60_000 + day - now) % day {
            0 => day,
            ms => ms,
        };
        turns.map(until).min().unwrap_or(day)
    }

    pub(crate) fn hours_turn(&mut self, at: usize) {
        if self.now.0 < self.plan.duration_ms.saturating_mul(2) {
            self.after(self.until_hours_turn(at), Event::Hours(at));
        }
        self.look_at_owner(at);
    }

    /// A site learns whether its owner needs the machine.
    fn look_at_owner(&mut self, at: usize) {
        let plan = &self.plan.site[at];
        if plan.hours.is_some() && plan.away == Away::Closed {
            let idle = (!self.is_open(at)).then_some(Millis(0));
            let owner = Owner { at: WeekMinute::new(0, 0), idle, load: 0 };
            self.hear(at, Input::Owner(owner));
        }
    }
}
