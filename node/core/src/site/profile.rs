//! What a site tells the mesh of itself, and when.

use meshfarm_protocol::codec;
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::profile::{PROFILE_VERSION, Profile};

use crate::door::Output;
use crate::telling::Pace;

use super::Site;

impl Site {
    /// Slots that could take a task of another site now.
    pub(super) fn offered(&self) -> u32 {
        let free = || self.lend.offered().saturating_add(self.free_at_hosts());
        if self.lend.lending && !self.lend.full { free() } else { 0 }
    }

    fn pace(&self) -> Pace {
        Pace::of(self.sites.n(), self.told_bytes)
    }

    /// When our profile is to be told again.
    pub(super) fn publish_at(&self) -> Millis {
        let pace = self.pace();
        let (free, lending) = (self.offered(), self.lend.lending);
        self.published.map_or(Millis(0), |(at, old_free, old_lending)| {
            let changed = self.news
                || (old_free == 0) != (free == 0)
                || (old_free != free && old_free.abs_diff(free).saturating_mul(4) >= old_free)
                || old_lending != lending;
            at.plus(match (changed, at < self.greet_until) {
                (_, true) => pace.greet,
                (true, false) => pace.pause,
                (false, false) => pace.refresh,
            })
        })
    }

    pub(super) fn publish(&mut self, now: Millis, out: &mut Vec<Output>) {
        let free = self.offered();
        let lending = self.lend.lending;
        if self.publish_at() > now {
            return;
        }
        self.sequence += 1;
        self.published = Some((now, free, lending));
        self.news = false;
        let mut profile = self.own_profile(now);
        if self.config.submitter {
            profile.hosts.clear();
        }
        self.told_bytes = codec::encode(&profile).len();
        out.push(Output::Publish(profile));
    }

    /// What this site offers, as it would be told at `now`.
    pub(crate) fn own_profile(&self, now: Millis) -> Profile {
        Profile {
            version: PROFILE_VERSION,
            site: self.config.me,
            name: self.config.name.clone(),
            sequence: self.sequence,
            issued: now,
            ttl: self.pace().refresh.times(3),
            hosts: self.lent_classes(),
            free: self.offered(),
            lending: self.lend.lending,
            passes_on: self.config.pass_on && self.config.head.is_none() && !self.config.submitter,
            sealing_key: self.config.sealing_key,
            addresses: self.config.addresses.clone(),
            price: self.ledger.price(),
        }
    }
}
