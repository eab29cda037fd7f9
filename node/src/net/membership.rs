//! Who is connected and what they have proved: certificates, their expiry, and time limits for strangers.

use std::collections::{BTreeMap, HashMap};

use libp2p::PeerId;
use libp2p::multiaddr::Multiaddr;
use libp2p::swarm::ConnectionId;
use meshfarm_protocol::id::{MeshId, Millis, SiteId};
use meshfarm_protocol::membership::{Certificate, Role};
use meshfarm_protocol::message::{Hello, MAX_CERTIFICATES, WIRE_VERSION};

use super::peer::site_of;

/// A connection whose peer has not shown a good certificate by then is closed.
pub(crate) const HELLO_LIMIT: Millis = Millis::seconds(10);

/// How long a stranger may stay after it asked to join: its answer may wait for a person's disk, not for a person.
const JOIN_LIMIT: Millis = Millis::seconds(30);

/// A stranger may ask this much in all before it is ignored.
const STRANGER_REQUESTS: u32 = 16;

/// A member may ask so much a second, and twice as much at once.
const MEMBER_RATE: u64 = 4000;

/// More unverified peers than this at one moment are not let in.
const MAX_STRANGERS: usize = 128;

/// What a peer is in one mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The mesh.
    pub mesh: MeshId,
    /// The site's name there.
    pub name: String,
    /// What it may do there.
    pub role: Role,
    /// When that ends, unless it shows a newer certificate.
    pub expires: Millis,
}

/// A peer with at least one connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) site: SiteId,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    pub(crate) standing: Standing,
    /// It is let alone until then although it is a stranger.
    patience: Millis,
    /// Requests that it may still make, in thousandths.
    tokens: u64,
    refilled: Millis,
}

/// One connection of a peer.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The other end.
    pub(crate) address: Multiaddr,
    /// Whether we opened it, so that `address` can be dialled again.
    pub(crate) dialled: bool,
}

/// How far two nodes have come in knowing each other.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It has proved nothing.
    Stranger,
    /// Its certificates are good; what it thinks of ours is not known yet.
    Verified(Vec<Membership>),
    /// Both accept each other.
    Member(Vec<Membership>),
    /// Its time is over and its connections are being closed.
    Leaving {
        /// Whether both accepted each other before.
        was_member: bool,
    },
}

impl Standing {
    /// What the peer has proved.
    pub(crate) fn memberships(&self) -> &[Membership] {
        match self {
            Self::Stranger | Self::Leaving { .. } => &[],
            Self::Verified(of) | Self::Member(of) => of,
        }
    }
}

/// Our own certificates, and everybody who is connected.
#[derive(Debug, Default)]
pub(crate) struct Members {
    own: BTreeMap<MeshId, Certificate>,
    peers: HashMap<PeerId, Peer>,
}

impl Members {
    /// Belongs to `mesh` from now on. Whether the mesh is new here.
    pub(crate) fn add_mesh(&mut self, mesh: MeshId, certificate: Certificate) -> bool {
        self.own.insert(mesh, certificate).is_none()
    }

    /// How many meshes this site belongs to.
    pub(crate) fn n_meshes(&self) -> usize {
        self.own.len()
    }

    /// What we show of ourselves.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            versions: (WIRE_VERSION, WIRE_VERSION),
            certificates: self.own.values().take(MAX_CERTIFICATES).cloned().collect(),
        }
    }

    /// Everybody who is connected.
    pub(crate) fn peers(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        self.peers.iter()
    }

    /// One who is connected.
    pub(crate) fn peer(&self, peer: &PeerId) -> Option<&Peer> {
        self.peers.get(peer)
    }

    /// A connection has opened. Whether it may stay.
    pub(crate) fn on_connected(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        connection: Connection,
        now: Millis,
    ) -> bool {
        let Some(site) = site_of(&peer) else {
            return false;
        };
        let strangers = |peers: &HashMap<PeerId, Peer>| {
            let unproved = |peer: &&Peer| matches!(peer.standing, Standing::Stranger);
            peers.values().filter(unproved).count()
        };
        // Whom we dialled ourselves, nobody can flood us with.
        if !self.peers.contains_key(&peer)
            && !connection.dialled
            && strangers(&self.peers) >= MAX_STRANGERS
        {
            return false;
        }
        let known = self.peers.entry(peer).or_insert_with(|| Peer {
            site,
            connections: BTreeMap::new(),
            standing: Standing::Stranger,
            patience: now.plus(HELLO_LIMIT),
            tokens: u64::from(STRANGER_REQUESTS) * 1000,
            refilled: now,
        });
        known.connections.insert(id, connection);
        true
    }

    /// A connection has closed. The peer, if that was its last one.
    pub(crate) fn on_closed(&mut self, peer: &PeerId, id: ConnectionId) -> Option<Peer> {
        let known = self.peers.get_mut(peer)?;
        known.connections.remove(&id);
        if known.connections.is_empty() { self.peers.remove(peer) } else { None }
    }

    /// `peer` has shown who it is. What it proved, or why that does not suffice, in words for its owner.
    pub(crate) fn on_hello(
        &mut self,
        peer: &PeerId,
        hello: &Hello,
        now: Millis,
    ) -> Result<(), String> {
        let known = self.peers.get_mut(peer).ok_or("you are not connected")?;
        let proved = prove(&self.own, known.site, hello, now)?;
        if let Standing::Stranger = known.standing {
            known.tokens = MEMBER_RATE * 2 * 1000;
            known.refilled = now;
        }
        known.standing = match known.standing {
            Standing::Member(_) => Standing::Member(proved),
            Standing::Stranger | Standing::Verified(_) => Standing::Verified(proved),
            Standing::Leaving { .. } => return Err("your connection is being closed".into()),
        };
        Ok(())
    }

    /// `peer` has accepted our certificates. Whether both accept each other now and did not before.
    pub(crate) fn on_accepted(&mut self, peer: &PeerId) -> bool {
        let Some(known) = self.peers.get_mut(peer) else {
            return false;
        };
        match std::mem::replace(&mut known.standing, Standing::Stranger) {
            Standing::Verified(proved) => {
                known.standing = Standing::Member(proved);
                true
            }
            standing @ (Standing::Stranger | Standing::Member(_) | Standing::Leaving { .. }) => {
                known.standing = standing;
                false
            }
        }
    }

    /// `peer` is joining, or we are joining through it: it is no mere stranger for a while.
    pub(crate) fn on_joining(&mut self, peer: &PeerId, now: Millis) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.patience = now.plus(JOIN_LIMIT);
        }
    }

    /// Whether `peer` may ask one thing more now.
    pub(crate) fn may_ask(&mut self, peer: &PeerId, now: Millis) -> bool {
        let Some(known) = self.peers.get_mut(peer) else {
            return false;
        };
        // A stranger's allowance is for its whole stay.
        if !known.standing.memberships().is_empty() {
            let fresh = now.since(known.refilled).0.saturating_mul(MEMBER_RATE);
            known.tokens = known.tokens.saturating_add(fresh).min(MEMBER_RATE * 2 * 1000);
            known.refilled = now;
        }
        match known.tokens.checked_sub(1000) {
            Some(left) => {
                known.tokens = left;
                true
            }
            None => false,
        }
    }

    /// Peers whose time is over: strangers that showed nothing, members whose certificate has expired.
    /// They are told once and count for nothing from now on; the caller closes their connections.
    pub(crate) fn take_overdue(&mut self, now: Millis) -> Vec<PeerId> {
        let mut overdue = Vec::new();
        for (id, peer) in &mut self.peers {
            if ends(peer) <= now {
                peer.leave();
                overdue.push(*id);
            }
        }
        overdue.sort_unstable();
        overdue
    }

    /// Every peer, none of which counts for anything from now on; the caller closes their connections.
    pub(crate) fn take_all(&mut self) -> Vec<PeerId> {
        self.peers.values_mut().for_each(Peer::leave);
        let mut all: Vec<_> = self.peers.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// When the next one will be overdue.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        self.peers.values().map(ends).min()
    }
}

impl Peer {
    /// Whether both accept each other.
    pub(crate) fn is_member(&self) -> bool {
        matches!(self.standing, Standing::Member(_))
    }

    fn leave(&mut self) {
        let was_member = match self.standing {
            Standing::Member(_) => true,
            Standing::Stranger | Standing::Verified(_) => false,
            Standing::Leaving { was_member } => was_member,
        };
        self.standing = Standing::Leaving { was_member };
    }
}

/// When `peer` will be overdue, as things stand.
fn ends(peer: &Peer) -> Millis {
    match &peer.standing {
        Standing::Stranger => peer.patience,
        Standing::Leaving { .. } => Millis(u64::MAX),
        Standing::Verified(of) | Standing::Member(of) => {
            of.iter().map(|membership| membership.expires).min().unwrap_or_default()
        }
    }
}

/// What `hello` proves of `site` in meshes that are ours too.
fn prove(
    own: &BTreeMap<MeshId, Certificate>,
    site: SiteId,
    hello: &Hello,
    now: Millis,
) -> Result<Vec<Membership>, String> {
    let (oldest, newest) = hello.versions;
    if !(oldest..=newest).contains(&WIRE_VERSION) {
        return Err(format!(
            "you speak wire versions {oldest} to {newest}, this node speaks {WIRE_VERSION}: one of the two needs an update"
        ));
    }
    if hello.certificates.len() > MAX_CERTIFICATES {
        return Err(format!("at most {MAX_CERTIFICATES} certificates are read"));
    }
    let mut proved: Vec<Membership> = Vec::new();
    let mut why = None;
    for certificate in &hello.certificates {
        let admitted = certificate.open().and_then(|body| certificate.admits(body.mesh, site, now));
        match admitted {
            Ok(body) => {
                let Some(ours) = own.get(&body.mesh).and_then(|ours| ours.open().ok()) else {
                    continue;
                };
                if !ours.meets(&body) {
                    why = Some("a host has to do with the site that it is a host of only".into());
                    continue;
                }
                proved.retain(|other| other.mesh != body.mesh);
                proved.push(Membership {
                    mesh: body.mesh,
                    name: body.name,
                    role: body.role,
                    expires: body.expires,
                });
            }
            Err(refused) => why = why.or_else(|| Some(refused.to_string())),
        }
    }
    if proved.is_empty() {
        let reason = why.unwrap_or_else(|| "no certificate for a mesh of this site".into());
        return Err(reason);
    }
    Ok(proved)
}

#[cfg(test)]
mod tests {
    use libp2p::swarm::ConnectionId;
    use meshfarm_protocol::membership::CertificateBody;
    use meshfarm_protocol::seal::SigningKey;

    use super::*;
    use crate::net::peer::peer_of;

    const EXPIRES: Millis = Millis::seconds(1000);

    fn certificate(root: &SigningKey, site: SiteId) -> Certificate {
        let body = CertificateBody {
            version: 1,
            mesh: root.mesh(),
            mesh_name: "consortium".into(),
            site,
            name: "oslo".into(),
            role: Role::Site,
            issued: Millis(0),
            expires: EXPIRES,
            serial: 1,
        };
        Certificate::sign(&body, root)
    }

    fn connected() -> (Members, SigningKey, PeerId, SiteId) {
        let root = SigningKey::from_seed(&[1; 32]);
        let site = SigningKey::from_seed(&[2; 32]).site();
        let peer = peer_of(&site).unwrap();
        let mut members = Members::default();
        members.add_mesh(root.mesh(), certificate(&root, SiteId([9; 32])));
        let connection =
            Connection { address: "/ip4/10.0.0.1/tcp/1".parse().unwrap(), dialled: false };
        let id = ConnectionId::new_unchecked(1);
        assert!(members.on_connected(peer, id, connection, Millis(0)));
        (members, root, peer, site)
    }

    fn hello(certificates: Vec<Certificate>) -> Hello {
        Hello { versions: (WIRE_VERSION, WIRE_VERSION), certificates }
    }

    #[test]
    fn a_stranger_has_ten_seconds_and_a_member_as_long_as_its_certificate() {
        let (mut members, root, peer, site) = connected();
        assert_eq!(members.wake_at(), Some(HELLO_LIMIT));
        assert!(members.take_overdue(Millis(9_999)).is_empty());
        members.on_joining(&peer, Millis(5_000));
        assert!(members.take_overdue(HELLO_LIMIT).is_empty());
        let shown = hello(vec![certificate(&root, site)]);
        members.on_hello(&peer, &shown, Millis(1)).unwrap();
        assert!(members.on_accepted(&peer) && !members.on_accepted(&peer));
        assert!(members.take_overdue(Millis(EXPIRES.0 - 1)).is_empty());
        assert_eq!(members.take_overdue(EXPIRES), [peer]);
        assert!(members.take_overdue(EXPIRES).is_empty());
        let (mut members, _, peer, _) = connected();
        assert_eq!(members.take_overdue(HELLO_LIMIT), [peer]);
    }

    #[test]
    fn certificates_of_others_meshes_and_times_prove_nothing() {
        let (mut members, root, peer, site) = connected();
        let other = SigningKey::from_seed(&[7; 32]);
        let cases = [
            (vec![], Millis(1), "no certificate"),
            (vec![certificate(&other, site)], Millis(1), "no certificate"),
            (vec![certificate(&root, SiteId([3; 32]))], Millis(1), "another site"),
            (vec![certificate(&root, site)], EXPIRES, "expired"),
            (vec![certificate(&root, site); 17], Millis(1), "at most 16"),
        ];
        for (certificates, now, words) in cases {
            let why = members.on_hello(&peer, &hello(certificates), now).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
        let mut newer = hello(vec![certificate(&root, site)]);
        newer.versions = (WIRE_VERSION + 1, WIRE_VERSION + 4);
        let why = members.on_hello(&peer, &newer, Millis(1)).unwrap_err();
        assert!(why.contains("update"), "{why}");
        assert!(members.peer(&peer).unwrap().standing.memberships().is_empty());
    }

    #[test]
    fn a_stranger_asks_a_few_times_and_a_member_at_a_rate() {
        let (mut members, root, peer, site) = connected();
        let asked = |members: &mut Members, now| {
            let mut n = 0;
            while members.may_ask(&peer, now) {
                n += 1;
            }
            n
        };
        assert_eq!(asked(&mut members, Millis(0)), u64::from(STRANGER_REQUESTS));
        assert_eq!(asked(&mut members, Millis::seconds(9)), 0);
        let shown = hello(vec![certificate(&root, site)]);
        members.on_hello(&peer, &shown, Millis::seconds(9)).unwrap();
        assert_eq!(asked(&mut members, Millis::seconds(9)), MEMBER_RATE * 2);
        assert_eq!(asked(&mut members, Millis::seconds(10)), MEMBER_RATE);
    }
}
