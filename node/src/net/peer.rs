//! A site as libp2p names it: the peer id that wraps the same Ed25519 key.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use libp2p::multiaddr::{Multiaddr, Protocol};
use meshfarm_protocol::id::SiteId;
use meshfarm_protocol::seal::SigningKey;

/// First bytes of every Ed25519 peer id: identity multihash of 36 bytes, then key type 1 and a key of 32 bytes.
const PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The site's key pair as libp2p wants it.
///
/// # Panics
/// Never: every 32 bytes are the seed of an Ed25519 key.
#[must_use]
pub fn keypair(key: &SigningKey) -> Keypair {
    let mut seed = key.seed();
    Keypair::ed25519_from_bytes(seed.as_mut_slice()).expect("32 bytes are an Ed25519 seed")
}

/// The peer of `site`; none when the bytes are no point on the curve, so nobody can hold such a key.
#[must_use]
pub fn peer_of(site: &SiteId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&site.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The site of `peer`; none when its key is not an Ed25519 key.
#[must_use]
pub fn site_of(peer: &PeerId) -> Option<SiteId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&PREFIX)?;
    Some(SiteId(key.try_into().ok()?))
}

/// The peer that `address` ends with, and the address without it.
pub(crate) fn split(address: &Multiaddr) -> (Option<PeerId>, Multiaddr) {
    let mut rest = address.clone();
    match rest.pop() {
        Some(Protocol::P2p(peer)) => (Some(peer), rest),
        _ => (None, address.clone()),
    }
}

/// Whether bulk data flows well over `address`: one TCP connection costs half the processor time of QUIC.
pub(crate) fn is_tcp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_and_its_peer_are_two_names_of_one_key() {
        let key = SigningKey::from_seed(&[7; 32]);
        let peer = keypair(&key).public().to_peer_id();
        assert_eq!(site_of(&peer), Some(key.site()));
        assert_eq!(peer_of(&key.site()), Some(peer));
    }

    #[test]
    fn a_peer_with_another_kind_of_key_is_no_site() {
        assert_eq!(site_of(&PeerId::random()), None);
    }

    #[test]
    fn an_address_gives_up_its_peer() {
        let peer = keypair(&SigningKey::from_seed(&[7; 32])).public().to_peer_id();
        let plain: Multiaddr = "/ip4/10.0.0.1/tcp/4001".parse().unwrap();
        let whole = plain.clone().with(Protocol::P2p(peer));
        assert_eq!(split(&whole), (Some(peer), plain.clone()));
        assert_eq!(split(&plain), (None, plain.clone()));
        assert!(is_tcp(&plain));
        assert!(!is_tcp(&"/ip4/10.0.0.1/udp/4001/quic-v1".parse().unwrap()));
    }
}
