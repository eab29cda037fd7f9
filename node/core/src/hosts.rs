//! The hosts of this site: machines that joined it, lend to it only, and are stopped and started here.

use std::collections::BTreeMap;

use meshfarm_protocol::id::{LeaseId, Millis, SiteId};
use meshfarm_protocol::lease::LENDER_GRACE;
use meshfarm_protocol::message::Message;

use crate::borrow::State;
use crate::door::{Output, Reply};
use crate::jobs::put;
use crate::operate::SiteOperation;
use crate::record::{HostMode, HostRecord, Record};
use crate::site::Site;

/// How long a silent host is waited for before its tasks go elsewhere, and what it has finished is given up.
///
/// Longer than for another site: it is as near as our own machine, what it was given it goes on with, and the usual
/// reason of its silence is a switch or a head that starts again. A host that was itself started again says so.
const HOST_GRACE: Millis = LENDER_GRACE.times(4);

/// More hosts than this do not join, counting those that were removed.
const MAX_HOSTS: usize = 4096;

/// Every host that ever joined.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    known: BTreeMap<SiteId, HostRecord>,
}

impl Hosts {
    pub(crate) fn restore(&mut self, record: HostRecord) {
        self.known.insert(record.host, record);
    }

    /// Whether `site` is a host of ours, or was one: then it is no site, whatever it says.
    pub(crate) fn contains(&self, site: SiteId) -> bool {
        self.known.contains_key(&site)
    }

    /// Whether a host of ours shall take tasks.
    pub(crate) fn is_open(&self, host: SiteId) -> bool {
        self.known.get(&host).is_some_and(|record| record.mode == HostMode::Open)
    }

    pub(crate) fn is_removed(&self, host: SiteId) -> bool {
        self.known.get(&host).is_some_and(|record| record.mode == HostMode::Removed)
    }

    /// Whether a host of ours has this name.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.all().any(|record| record.name == name)
    }

    pub(crate) fn name(&self, host: SiteId) -> Option<&str> {
        self.known.get(&host).map(|record| record.name.as_str())
    }

    /// Every host that was not removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &HostRecord> {
        self.known.values().filter(|record| record.mode != HostMode::Removed)
    }

    pub(crate) fn is_full(&self, joining: SiteId) -> bool {
        self.known.len() >= MAX_HOSTS && !self.contains(joining)
    }

    /// A machine has joined, or joins again: what a person has stopped stays so.
    pub(crate) fn joined(
        &mut self,
        host: SiteId,
        name: String,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let old = self.known.get(&host).map(|record| record.mode);
        let mode = old.filter(|mode| *mode != HostMode::Removed).unwrap_or(HostMode::Open);
        let record = HostRecord { host, name, joined: now, mode };
        put(out, Record::Host(record.clone()));
        self.known.insert(host, record);
    }

    /// Durably stop, start or remove a host. Returns its name, or none when there is no such host.
    pub(crate) fn set(
        &mut self,
        host: SiteId,
        mode: HostMode,
        out: &mut Vec<Output>,
    ) -> Option<&str> {
        let record = self.known.get_mut(&host)?;
        if record.mode == HostMode::Removed {
            return None;
        }
        if record.mode != mode {
            record.mode = mode;
            put(out, Record::Host(record.clone()));
        }
        Some(&record.name)
    }

    pub(crate) fn check(&self) {
        assert!(self.known.len() <= MAX_HOSTS, "more hosts than the bound");
        assert!(self.known.iter().all(|(host, record)| *host == record.host), "a host is misfiled");
    }
}

impl Site {
    /// Whether a machine is ours: this one, or a host.
    pub(crate) fn owns(&self, machine: SiteId) -> bool {
        machine == self.config.me || self.hosts.contains(machine)
    }

    /// How long a silent lender is waited for.
    pub(crate) fn grace(&self, lender: SiteId) -> Millis {
        if self.hosts.contains(lender) { HOST_GRACE } else { LENDER_GRACE }
    }

    /// A person stops, starts or removes a host. Answers how many tasks it still runs.
    pub(crate) fn set_host(
        &mut self,
        (host, mode): (SiteId, HostMode),
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Reply {
        if host == self.config.me {
            return self.set_own_machine(mode, now, out);
        }
        if self.hosts.set(host, mode, out).is_none() {
            return Reply::Refused(format!("this site has no host {}", host.short()));
        }
        match mode {
            HostMode::Open => {}
            HostMode::Stopped => {
                self.take_back_queued(host, now, out);
                self.drain_relays(host, now, out);
            }
            HostMode::Removed => {
                self.leave_host(host, now, out);
                self.lose_relays(host, now, out);
            }
        }
        Reply::Changed(u32::try_from(self.tasks_at(host)).unwrap_or(u32::MAX))
    }

    /// A person stops or starts this machine as one of the site's: its slots take no tasks of anybody, or take them again.
    fn set_own_machine(&mut self, mode: HostMode, now: Millis, out: &mut Vec<Output>) -> Reply {
        let operation = match mode {
            HostMode::Open => SiteOperation::Resume,
            HostMode::Stopped => SiteOperation::Pause { own: true, give_back: None },
            HostMode::Removed => {
                let text = "this is the head itself, whose hosts and jobs would be lost with it: stop it instead";
                return Reply::Refused(text.to_owned());
            }
        };
        self.on_site_operation(operation, now, out);
        Reply::Changed(self.n_running())
    }

    /// How many tasks sessions on this machine have, of whomever.
    pub(crate) fn n_running(&self) -> u32 {
        let tasks = self.lend.all().map(|(_, lent)| lent.in_sessions().count());
        u32::try_from(tasks.sum::<usize>()).unwrap_or(u32::MAX)
    }

    /// What a stopped host has not begun with waits again. Tasks that share a session are one piece with those that
    /// run: they stay.
    fn take_back_queued(&mut self, host: SiteId, now: Millis, out: &mut Vec<Output>) {
        let jobs = &self.jobs;
        let queued = self.borrow.take_queued(host, |job, step| {
            let spec = jobs.get(job).and_then(|job| job.step_spec(step));
            spec.is_some_and(|spec| !spec.shares_sessions())
        });
        for (at, attempt) in queued {
            self.give_up((at, attempt), (host, "the host was stopped"), now, out);
        }
    }

    /// What a removed host has waits again.
    fn leave_host(&mut self, host: SiteId, now: Millis, out: &mut Vec<Output>) {
        let of_it = self.borrow.all().filter(|(_, borrowed)| borrowed.lender == host);
        let leases: Vec<LeaseId> = of_it.map(|(lease, _)| lease).collect();
        for lease in leases {
            if self.borrow.forget_offer(lease).is_none() {
                self.lose((lease, "the host was removed"), &[], now, out);
            }
            out.push(Output::Send { to: host, message: Message::Close { lease } });
        }
    }

    /// How many tasks a host has of us, and of others by way of us.
    pub(crate) fn tasks_at(&self, host: SiteId) -> usize {
        let held = self.borrow.all().filter_map(|(_, borrowed)| match &borrowed.state {
            State::Held(held) if borrowed.lender == host => Some(held.attempts.len()),
            State::Held(_) | State::Offered { .. } => None,
        });
        let relayed = self.relays.at(host).into_iter().filter_map(|lease| self.lend.away(lease));
        held.sum::<usize>() + relayed.map(|lent| lent.queue.len()).sum::<usize>()
    }

    /// Panic if a host has what it should not.
    pub(crate) fn check_hosts(&self) {
        for (_, borrowed) in self.borrow.all() {
            assert!(!self.hosts.is_removed(borrowed.lender), "a removed host holds a lease");
        }
        assert!(!self.lend.lends_to(|site| self.hosts.contains(site)), "a host borrows");
    }
}
