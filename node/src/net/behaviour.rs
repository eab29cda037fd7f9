//! The protocols of a node, put together and limited.

use std::io;
use std::iter;
use std::sync::Arc;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::PublicKey;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, behaviour::toggle::Toggle};
use libp2p::{StreamProtocol, identify, mdns, memory_connection_limits, ping};
use meshfarm_protocol::message::CONTROL_PROTOCOL;

use super::Counters;
use super::codec::ControlCodec;
use super::gossip::Gossip;
use super::streams::Streams;

/// Parallel lanes, a QUIC and a TCP path and both directions at once still fit.
const MAX_PER_PEER: u32 = 10;

/// Handshakes that may be under way in one direction.
const MAX_PENDING: u32 = 128;

/// Beyond this share of the machine's memory, taken by this process, no more connections are made.
const MAX_MEMORY: f64 = 0.5;

/// An answer that takes longer never comes.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Requests of one peer that may be under way in one direction.
const MAX_REQUESTS: usize = 256;

/// What a node speaks. The limits come first: what they refuse, no other protocol hears of.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    pub(crate) control: request_response::Behaviour<ControlCodec>,
    pub(crate) gossip: Gossip,
    pub(crate) lanes: Streams,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

impl Behaviour {
    /// The protocols of the node with this key.
    pub(crate) fn new(
        key: PublicKey,
        max_connections: u32,
        mdns: bool,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let me = key.to_peer_id();
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING))
            .with_max_pending_outgoing(Some(MAX_PENDING))
            .with_max_established_incoming(Some(max_connections / 4 * 3))
            .with_max_established_per_peer(Some(MAX_PER_PEER))
            .with_max_established(Some(max_connections));
        let control = request_response::Behaviour::with_codec(
            ControlCodec::new(counters),
            iter::once((StreamProtocol::new(CONTROL_PROTOCOL), ProtocolSupport::Full)),
            request_response::Config::default()
                .with_request_timeout(ANSWER_LIMIT)
                .with_max_concurrent_streams(MAX_REQUESTS),
        );
        let about = identify::Config::new("meshfarm/1".into(), key)
            .with_agent_version(format!("meshfarm/{}", env!("CARGO_PKG_VERSION")))
            .with_hide_listen_addrs(true)
            // What a peer says of its own addresses is not used: members say it in their profiles.
            .with_cache_size(0);
        let mdns =
            mdns.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), me)).transpose()?;
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits),
            memory: memory_connection_limits::Behaviour::with_max_percentage(MAX_MEMORY),
            control,
            gossip: Gossip::default(),
            lanes: Streams::default(),
            identify: identify::Behaviour::new(about),
            ping: ping::Behaviour::new(ping::Config::new()),
            mdns: Toggle::from(mdns),
        })
    }
}
