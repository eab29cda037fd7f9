//! Whether a gossiped profile is believed: checked once, whoever passed it on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use meshfarm_protocol::codec;
use meshfarm_protocol::id::{MeshId, Millis, SiteId};
use meshfarm_protocol::membership::{Certificate, CertificateBody, Refused, Role};
use meshfarm_protocol::message::{PROFILE_CONTEXT, SignedProfile};
use meshfarm_protocol::profile::{MAX_PROFILE_BYTES, Profile};
use meshfarm_protocol::seal;

use super::gossip::MAX_GOSSIP_BYTES;

/// A profile that was made longer ago than this, or so far ahead, is dropped.
const MAX_SKEW: Millis = Millis::seconds(120);

/// A site is heard at most once in this time.
const MIN_INTERVAL: Millis = Millis::seconds(1);

/// A site that was silent for so long is forgotten when room is needed.
const FORGET: Millis = Millis::seconds(3600);

/// More sites than this are not remembered, and so not heard.
const MAX_SITES: usize = 16 * 1024;

/// What becomes of a gossiped message.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Believed, and passed on.
    Accept(Box<Profile>),
    /// Believed, and nobody else's business: what a host of ours offers.
    Keep(Box<Profile>),
    /// Dropped; whoever passed it on did nothing wrong.
    Ignore(&'static str),
    /// Dropped, and whoever passed it on should not have.
    Reject(&'static str),
}

/// The newest profile of each site that was heard, as far as checking needs it.
#[derive(Debug)]
pub(crate) struct Profiles {
    me: SiteId,
    seen: HashMap<(MeshId, SiteId), Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    sequence: u64,
    at: Millis,
}

impl Profiles {
    /// Checks for the site `me`, whose own profiles come back to it and are dropped.
    pub(crate) fn new(me: SiteId) -> Self {
        Self { me, seen: HashMap::new() }
    }

    /// Checks one message that was gossiped in `mesh`. What costs little is looked at first.
    pub(crate) fn check(&mut self, mesh: MeshId, data: &[u8], now: Millis) -> Verdict {
        let signed: SignedProfile = match codec::decode(data, MAX_GOSSIP_BYTES) {
            Ok(signed) => signed,
            Err(_) => return Verdict::Reject("not a profile"),
        };
        let mut profile: Profile = match codec::decode(&signed.body, MAX_PROFILE_BYTES) {
            Ok(profile) => profile,
            Err(_) => return Verdict::Reject("a malformed profile"),
        };
        if profile.site == self.me {
            return Verdict::Ignore("our own");
        }
        let seen = self.seen.get(&(mesh, profile.site));
        if let Some(seen) = seen {
            if profile.sequence <= seen.sequence {
                return Verdict::Ignore("an old sequence");
            }
            if now.since(seen.at) < MIN_INTERVAL {
                return Verdict::Ignore("more than one a second");
            }
        }
        if now.since(profile.issued) > MAX_SKEW || profile.issued.since(now) > MAX_SKEW {
            return Verdict::Ignore("made too long ago or in the future");
        }
        let body = match certified(&signed.certificate, mesh, &profile, now) {
            Ok(body) => body,
            Err(verdict) => return verdict,
        };
        if body.head().is_some_and(|head| head != self.me) {
            return Verdict::Ignore("a host of another site");
        }
        let genuine =
            seal::verify(&profile.site.0, PROFILE_CONTEXT, &signed.body, &signed.signature);
        if genuine.is_err() {
            return Verdict::Reject("a forged signature");
        }
        let seen = Seen { sequence: profile.sequence, at: now };
        if body.role == Role::Submitter {
            // Its certificate is believed, and not what it claims to offer.
            (profile.lending, profile.free) = (false, 0);
            profile.hosts.clear();
        }
        match (self.remember((mesh, profile.site), seen), body.role) {
            (false, _) => Verdict::Ignore("more sites than fit in memory"),
            (true, Role::Host) => Verdict::Keep(Box::new(profile)),
            (true, Role::Site | Role::Submitter) => Verdict::Accept(Box::new(profile)),
        }
    }

    fn remember(&mut self, key: (MeshId, SiteId), seen: Seen) -> bool {
        if self.seen.len() >= MAX_SITES && !self.seen.contains_key(&key) {
            let now = seen.at;
            self.seen.retain(|_, old| now.since(old.at) < FORGET);
        }
        let full = self.seen.len() >= MAX_SITES;
        match self.seen.entry(key) {
            Entry::Vacant(_) if full => return false,
            Entry::Vacant(free) => {
                free.insert(seen);
            }
            Entry::Occupied(mut old) => {
                old.insert(seen);
            }
        }
        true
    }
}

/// Whether `certificate` lets the site of `profile` speak in `mesh` under the name that it uses.
fn certified(
    certificate: &Certificate,
    mesh: MeshId,
    profile: &Profile,
    now: Millis,
) -> Result<CertificateBody, Verdict> {
    match certificate.admits(mesh, profile.site, now) {
        Ok(body) if body.name == profile.name => Ok(body),
        Ok(_) => Err(Verdict::Reject("another name than its certificate's")),
        // It was good when it was sent; clocks differ.
        Err(Refused::Expired) => Err(Verdict::Ignore("an expired certificate")),
        Err(Refused::Malformed | Refused::Forged | Refused::OtherSite | Refused::OtherMesh) => {
            Err(Verdict::Reject("a certificate that does not hold"))
        }
    }
}

#[cfg(test)]
mod tests {
    use meshfarm_protocol::membership::mesh_of_hosts;
    use meshfarm_protocol::profile::PROFILE_VERSION;
    use meshfarm_protocol::receipt::Price;
    use meshfarm_protocol::seal::{SealingKey, SigningKey};

    use super::*;

    const NOW: Millis = Millis::seconds(10_000);

    struct Case {
        root: SigningKey,
        key: SigningKey,
        role: Role,
        profile: Profile,
    }

    fn case() -> Case {
        let key = SigningKey::from_seed(&[2; 32]);
        let profile = Profile {
            version: PROFILE_VERSION,
            site: key.site(),
            name: "oslo".into(),
            sequence: 5,
            issued: NOW,
            ttl: Millis::seconds(90),
            hosts: Vec::new(),
            free: 1,
            lending: true,
            passes_on: false,
            sealing_key: SealingKey([1; 32]),
            addresses: Vec::new(),
            price: Price::default(),
        };
        let root = SigningKey::from_seed(&[1; 32]);
        Case { root, key, role: Role::Site, profile }
    }

    impl Case {
        fn gossip(&self, by: &SigningKey, expires: Millis) -> Vec<u8> {
            let body = CertificateBody {
                version: 1,
                mesh: self.root.mesh(),
                mesh_name: "consortium".into(),
                site: self.key.site(),
                name: "oslo".into(),
                role: self.role,
                issued: Millis(0),
                expires,
                serial: 1,
            };
            let certificate = Certificate::sign(&body, &self.root);
            codec::encode(&SignedProfile::sign(&self.profile, certificate, by))
        }

        fn verdict(&self, profiles: &mut Profiles, now: Millis) -> &'static str {
            let data = self.gossip(&self.key, Millis(u64::MAX));
            word(&profiles.check(self.root.mesh(), &data, now))
        }
    }

    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Accept(_) => "accepted",
            Verdict::Keep(_) => "kept",
            Verdict::Ignore(why) | Verdict::Reject(why) => why,
        }
    }

    #[test]
    fn the_newest_profile_is_believed_once_and_not_too_often() {
        let mut case = case();
        let mut profiles = Profiles::new(SiteId([0; 32]));
        assert_eq!(case.verdict(&mut profiles, NOW), "accepted");
        assert_eq!(case.verdict(&mut profiles, NOW), "an old sequence");
        case.profile.sequence = 6;
        let soon = NOW.plus(Millis(999));
        assert_eq!(case.verdict(&mut profiles, soon), "more than one a second");
        let later = NOW.plus(MIN_INTERVAL);
        assert_eq!(case.verdict(&mut profiles, later), "accepted");
        case.profile.sequence = 4;
        let much = NOW.plus(Millis::seconds(60));
        assert_eq!(case.verdict(&mut profiles, much), "an old sequence");
    }

    #[test]
    fn what_a_forwarder_cannot_know_is_ignored_and_what_it_must_check_is_rejected() {
        let mut case = case();
        let profiles = || Profiles::new(SiteId([0; 32]));
        let check = |data: &[u8], mesh| profiles().check(mesh, data, NOW);
        let mesh = case.root.mesh();
        let forever = Millis(u64::MAX);
        let good = case.gossip(&case.key, forever);
        assert!(matches!(check(&good, mesh), Verdict::Accept(_)));
        assert!(matches!(check(&good[1..], mesh), Verdict::Reject(_)));
        assert!(matches!(check(&good, MeshId([7; 32])), Verdict::Reject(_)));
        let forged = case.gossip(&case.root, forever);
        assert!(matches!(check(&forged, mesh), Verdict::Reject(_)));
        let expired = case.gossip(&case.key, NOW);
        assert!(matches!(check(&expired, mesh), Verdict::Ignore(_)));
        let own = Profiles::new(case.key.site()).check(mesh, &good, NOW);
        assert!(matches!(own, Verdict::Ignore(_)));
        for issued in [NOW.0 - 120_001, NOW.0 + 120_001] {
            case.profile.issued = Millis(issued);
            let data = case.gossip(&case.key, forever);
            assert!(matches!(check(&data, mesh), Verdict::Ignore(_)));
        }
        case.profile.issued = NOW;
        case.profile.name = "lyon".into();
        let renamed = case.gossip(&case.key, forever);
        assert!(matches!(check(&renamed, mesh), Verdict::Reject(_)));
    }

    #[test]
    fn a_host_is_heard_by_its_head_and_passed_on_to_nobody() {
        let case = Case { role: Role::Host, ..case() };
        let head = case.root.site();
        assert_eq!(mesh_of_hosts(head), case.root.mesh());
        assert_eq!(case.verdict(&mut Profiles::new(head), NOW), "kept");
        let other = SiteId([9; 32]);
        assert_eq!(case.verdict(&mut Profiles::new(other), NOW), "a host of another site");
    }

    #[test]
    fn a_submitter_offers_nothing_whatever_it_says() {
        let case = Case { role: Role::Submitter, ..case() };
        let data = case.gossip(&case.key, Millis(u64::MAX));
        match Profiles::new(SiteId([0; 32])).check(case.root.mesh(), &data, NOW) {
            Verdict::Accept(profile) => assert_eq!((profile.lending, profile.free), (false, 0)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_forged_profile_does_not_silence_the_real_one() {
        let mut case = case();
        let mut profiles = Profiles::new(SiteId([0; 32]));
        case.profile.sequence = u64::MAX;
        let forged = case.gossip(&case.root, Millis(u64::MAX));
        let verdict = profiles.check(case.root.mesh(), &forged, NOW);
        assert_eq!(word(&verdict), "a forged signature");
        case.profile.sequence = 1;
        assert_eq!(case.verdict(&mut profiles, NOW), "accepted");
    }
}
