//! What people see of the machines of a site.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{JobId, LeaseId, Millis, SiteId};
use meshfarm_protocol::profile::HostClass;

use crate::borrow::State;
use crate::licences;
use crate::record::{HostMode, HostRecord};
use crate::site::Site;

/// A machine of a site as people see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// Its id.
    pub host: SiteId,
    /// Its name.
    pub name: String,
    /// Whether it is the machine that was asked.
    pub own: bool,
    /// Whether it takes tasks, and if not, why.
    pub state: HostState,
    /// When it was last heard of; none when that is longer ago than is remembered.
    pub heard: Option<Millis>,
    /// Slots that it has; 0 while it is away.
    pub slots: u32,
    /// Slots that somebody holds.
    pub used: u32,
    /// Slots that nobody holds.
    pub free: u32,
    /// Tasks that run there.
    pub running: u32,
    /// What it has, once it has said so, and the licences of the site.
    pub offers: Option<HostClass>,
}

/// Whether a machine of a site takes tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// It does.
    Connected,
    /// It is not connected.
    Away,
    /// It was stopped at the head and still has tasks.
    Pausing,
    /// It was stopped at the head and has none.
    Stopped,
    /// Somebody at the machine itself has stopped it.
    Paused,
}

/// A lease that we hold of a host, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostLease {
    /// Name of the host.
    pub host: String,
    /// The lease.
    pub lease: LeaseId,
    /// The job that it serves.
    pub job: JobId,
    /// Slots that it holds.
    pub slots: u32,
    /// Tasks that run.
    pub running: usize,
    /// Tasks that wait there.
    pub queued: usize,
}

impl Site {
    /// The site that this one is a host of.
    #[must_use]
    pub fn head(&self) -> Option<SiteId> {
        self.config.head
    }

    /// Every machine of this site: this one, then its hosts by name.
    #[must_use]
    pub fn hosts(&self, now: Millis) -> Vec<HostView> {
        let mut hosts: Vec<_> = self.hosts.all().map(|record| self.host_view(record)).collect();
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        hosts.insert(0, self.own_machine(now));
        hosts
    }

    fn own_machine(&self, now: Millis) -> HostView {
        let (slots, free) = (self.lend.host().slots, self.lend.free());
        let running = self.n_running();
        let state = match (self.told.own.is_open(), running) {
            (true, _) => HostState::Connected,
            (false, 0) => HostState::Stopped,
            (false, _) => HostState::Pausing,
        };
        HostView {
            host: self.config.me,
            name: self.config.name.clone(),
            own: true,
            state,
            heard: Some(now),
            slots,
            used: slots.saturating_sub(free),
            free,
            running,
            offers: Some(self.lend.host().clone()),
        }
    }

    fn host_view(&self, record: &HostRecord) -> HostView {
        let known = self.sites.get(record.host);
        let profile = known.and_then(|known| known.profile.as_ref());
        let connected = known.is_some_and(|known| known.connected);
        let lends = profile.is_none_or(|profile| profile.lending);
        let state = match record.mode {
            HostMode::Stopped | HostMode::Removed => {
                if self.tasks_at(record.host) > 0 {
                    HostState::Pausing
                } else {
                    HostState::Stopped
                }
            }
            HostMode::Open if !connected => HostState::Away,
            HostMode::Open if !lends => HostState::Paused,
            HostMode::Open => HostState::Connected,
        };
        let offers = profile.and_then(|profile| profile.hosts.first()).cloned();
        let offers = offers.map(|host| licences::with_ours(host, self.lend.host()));
        let slots = offers.as_ref().filter(|_| connected).map_or(0, |host| host.slots);
        let (mut used, mut running) = (0u32, 0);
        for (_, borrowed) in self.borrow.all().filter(|(_, b)| b.lender == record.host) {
            if let State::Held(held) = &borrowed.state {
                used = used.saturating_add(held.slots);
                running += held.running.len();
            }
        }
        for lent in self.relays.at(record.host).into_iter().filter_map(|l| self.lend.away(l)) {
            running += lent.started.len();
        }
        used = used.saturating_add(self.relays.slots_at(record.host));
        HostView {
            host: record.host,
            name: record.name.clone(),
            own: false,
            state,
            heard: known.map(|known| known.heard),
            slots,
            used: used.min(slots),
            free: slots.saturating_sub(used),
            running: u32::try_from(running).unwrap_or(u32::MAX),
            offers,
        }
    }

    /// Leases that we hold of hosts.
    pub(super) fn host_leases(&self) -> Vec<HostLease> {
        let held = self.borrow.all().filter_map(|(lease, borrowed)| match &borrowed.state {
            State::Held(held) if self.hosts.contains(borrowed.lender) => Some(HostLease {
                host: self.name_of(borrowed.lender),
                lease,
                job: borrowed.job,
                slots: held.slots,
                running: held.running.len(),
                queued: held.attempts.len().saturating_sub(held.running.len()),
            }),
            State::Held(_) | State::Offered { .. } => None,
        });
        let mut held: Vec<_> = held.collect();
        held.sort_by(|a, b| (&a.host, a.lease).cmp(&(&b.host, b.lease)));
        held
    }
}
