//! Who hears of whom: connections, profiles, and the bounded view of a site in a large mesh.

use std::rc::Rc;

use meshfarm_core::Input;
use meshfarm_protocol::id::{MeshId, Millis};
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::profile::Profile;

use crate::plan::Lie;
use crate::seen::What;
use crate::world::{Event, World};

/// How long a cut line goes unnoticed at most, in milliseconds.
pub(crate) const NOTICE: u64 = 20_000;

/// How long a member that is back needs to connect, in milliseconds.
pub(crate) const CONNECT: [u64; 2] = [100, 2000];

impl World<'_> {
    /// In a large mesh each site with work hears of a sample of the others.
    pub(crate) fn draw_views(&mut self) {
        let n = self.nodes.len();
        let Some(size) = self.plan.view.filter(|size| *size + 1 < n) else {
            return;
        };
        for at in 0..n {
            let number = self.nodes[at].number;
            let mut view = std::collections::BTreeSet::new();
            let mut k = 0;
            while view.len() < size {
                let peer = self.streams.between("view", (number, k), [0, n as u64 - 1]);
                k += 1;
                if let Ok(peer) = usize::try_from(peer)
                    && peer != at
                {
                    view.insert(peer);
                }
            }
            self.nodes[at].view = view.into_iter().collect();
        }
    }

    fn is_crowd(&self) -> bool {
        self.plan.view.is_some_and(|size| size + 1 < self.nodes.len())
    }

    /// A site has work: it looks around.
    pub(crate) fn attend(&mut self, at: usize) {
        if !self.is_crowd() || self.nodes[at].attentive {
            return;
        }
        self.nodes[at].attentive = true;
        for peer in self.nodes[at].view.clone() {
            if !self.nodes[peer].watchers.contains(&at) {
                self.nodes[peer].watchers.push(at);
            }
            self.notice(at, peer);
            if let Some(profile) =
                self.nodes[peer].profile.clone().filter(|_| self.connects(at, peer))
            {
                self.after(1, Event::Gossip { from: peer, to: at, profile });
            }
        }
    }

    /// A site's last job is over: it looks at nobody any more.
    pub(crate) fn look_away(&mut self, at: usize) {
        self.nodes[at].attentive = false;
    }

    /// A site of a large mesh that has nothing to do sleeps through the refresh of a profile that has not changed.
    pub(crate) fn may_sleep(&self, at: usize) -> bool {
        self.may_sleep_until(at, self.now)
    }

    /// The same of a moment at which it wants to be woken.
    pub(crate) fn may_sleep_until(&self, at: usize, wake: Millis) -> bool {
        let node = &self.nodes[at];
        let refresh = node
            .profile
            .as_ref()
            .is_some_and(|profile| wake >= node.published.plus(Millis(profile.ttl.0 / 3)));
        self.is_crowd()
            && refresh
            && node.n_leases == 0
            && node.active.is_empty()
            && node.sessions.is_empty()
            && node.site.as_ref().is_some_and(|site| site.slots().leases.is_empty())
    }

    fn connects(&self, a: usize, b: usize) -> bool {
        let runs = |site: usize| self.nodes[site].site.is_some() && self.nodes[site].paused == 0;
        runs(a) && runs(b) && self.net.is_whole(a, b)
    }

    /// Both ends of a line look at it, each after a while of its own.
    pub(crate) fn look_at(&mut self, (a, b): (usize, usize), after: [u64; 2]) {
        for (a, b) in [(a, b), (b, a)] {
            let key = (self.nodes[a].number ^ self.nodes[b].number.rotate_left(9), self.now.0);
            let ms = self.streams.between("notice", key, after);
            self.after(ms, Event::Link(a, b));
        }
    }

    /// Whether a site would keep a line to another without having to.
    fn seeks(&self, a: usize, b: usize) -> bool {
        let node = &self.nodes[a];
        !self.is_crowd() || (node.attentive && node.view.contains(&b))
    }

    /// A site learns whether another is connected.
    pub(crate) fn notice(&mut self, a: usize, b: usize) {
        let connected = self.connects(a, b);
        if connected && self.seeks(a, b) {
            self.connect(a, b);
        } else if !connected && self.nodes[a].peers.remove(&b) {
            self.nodes[b].known_by.remove(&a);
            let site = self.nodes[b].id;
            self.hear(a, Input::PeerDown { site });
        }
    }

    /// A site learns that another is connected.
    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        if self.nodes[a].site.is_some() && self.nodes[a].peers.insert(b) {
            self.nodes[b].known_by.insert(a);
            let (site, name) = (self.nodes[b].id, self.nodes[b].name.clone());
            let host = self.plan.site[b].host_of.is_some();
            let role = if host { Role::Host } else { Role::Site };
            let head = self.plan.site[a].host_of.is_some();
            let mesh = (!host && !head).then_some(MeshId([3; 32]));
            let meshes = mesh.into_iter().collect();
            self.hear(a, Input::PeerUp { site, name, role, meshes });
        }
    }

    /// Lines of a site that somebody must look at, because something happened to them.
    pub(crate) fn lines_of(&self, at: usize) -> Vec<usize> {
        let node = &self.nodes[at];
        if self.is_crowd() {
            let all = node.peers.iter().chain(&node.known_by).chain(&node.watchers);
            let mut all: Vec<_> =
                all.chain(node.view.iter().filter(|_| node.attentive)).copied().collect();
            all.sort_unstable();
            all.dedup();
            return all;
        }
        let meets = |other: &usize| {
            *other != at && self.net.way(at, *other) != crate::world::net::Way::None
        };
        (0..self.nodes.len()).filter(meets).collect()
    }

    /// A site tells its profile.
    pub(crate) fn publish(&mut self, at: usize, mut profile: Profile) {
        if let Some((Lie::Boast, _)) = self.nodes[at].lie {
            profile.free = self.plan.site[at].slots.saturating_mul(10).max(profile.free);
            profile.hosts.iter_mut().for_each(|host| host.speed = host.speed.saturating_mul(10));
        }
        let profile = Rc::new(profile);
        let node = &mut self.nodes[at];
        node.published = self.now;
        node.profile = Some(profile.clone());
        let told: Vec<usize> = if self.is_crowd() {
            let mut watchers = std::mem::take(&mut self.nodes[at].watchers);
            watchers.retain(|watcher| self.nodes[*watcher].attentive);
            self.nodes[at].watchers.clone_from(&watchers);
            watchers
        } else {
            self.nodes[at].peers.iter().copied().collect()
        };
        self.see(at, What::Profile { sequence: profile.sequence, to: told.len() });
        for to in told {
            self.counts.profiles += 1;
            if !self.connects(at, to) && !self.is_crowd() {
                continue;
            }
            for ms in self.net.send(self.streams, at, to).into_iter().flatten() {
                let event = Event::Gossip { from: at, to, profile: profile.clone() };
                self.deliver((at, to), ms, event);
            }
        }
    }

    /// Something that was sent arrives after so long, unless its way is clogged.
    pub(crate) fn deliver(&mut self, (from, to): (usize, usize), ms: u64, event: Event) {
        if self.net.is_clogged(from, to) {
            self.clogged.push((from, to, event));
        } else {
            self.after(ms, event);
        }
    }
}
