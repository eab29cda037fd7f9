//! The node on the network: who is connected, what they ask, what they gossip, and the bytes of chunks.
//!
//! One task owns the swarm. It is driven through [`Net`], a handle that can be cloned, and it tells what
//! happened as [`Event`]s. All channels are bounded: when the events are not taken, the network waits, while
//! commands still go through.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshfarm_protocol::id::{MeshId, Millis, SiteId};
use meshfarm_protocol::membership::{Certificate, Refused, Role, Ticket};
use meshfarm_protocol::message::{Answer, Join, LaneHello, Message, Request, SignedProfile};
use meshfarm_protocol::profile::Profile;
use meshfarm_protocol::seal::SigningKey;
use tokio::sync::{mpsc, oneshot};

mod behaviour;
pub mod clock;
mod codec;
mod dial;
mod gossip;
pub mod lanes;
mod membership;
pub mod peer;
mod profiles;
mod requests;
mod streams;
mod swarm;
pub mod transport;

#[cfg(test)]
pub(crate) mod tests;

pub use clock::{Clock, Outside, SystemClock};
pub use lanes::{AskedId, Lane, LaneError, LaneStream, Piece, Shelf, serve};
pub use libp2p::multiaddr::Multiaddr;
pub use membership::Membership;

use lanes::Lane as OpenLane;

/// Commands that wait for the task.
const COMMANDS: usize = 256;

/// Events that wait for the daemon.
const EVENTS: usize = 256;

/// Requests are given up after this; a little later than the protocol's own limit, which says why.
const REQUEST_LIMIT: Duration = Duration::from_secs(25);

/// How long one address of a ticket is tried.
const CONNECT_LIMIT: Duration = Duration::from_secs(12);

/// What a node does on the network.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes any free one.
    pub listen: Vec<Multiaddr>,
    /// Whom to stay connected to, whatever happens.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether to look for other nodes on the local network.
    pub mdns: bool,
    /// Members to stay connected to, beside the bootstrap addresses.
    pub max_known: usize,
    /// Connections in all.
    pub max_connections: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            bootstrap: Vec::new(),
            mdns: true,
            max_known: 200,
            max_connections: 768,
        }
    }
}

/// Why the node is not on the network. Nothing is left open.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody else has the port.
    #[error(
        "cannot listen at {address}: the port is in use; stop the other program (another meshfarm node?) or choose another port"
    )]
    PortInUse {
        /// The address that was wanted.
        address: Multiaddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened at.
    #[error(
        "cannot listen at {address}: check that it is an address of this machine and that the port is allowed"
    )]
    Listen {
        /// The address that was wanted.
        address: Multiaddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The local network cannot be searched.
    #[error(
        "cannot look for nodes on the local network; turn mDNS off if this machine has no multicast"
    )]
    Mdns(#[source] io::Error),
}

/// What happened on the network.
#[derive(Debug)]
pub enum Event {
    /// The node can be reached here.
    Listening(Multiaddr),
    /// Both nodes have accepted each other's certificates.
    PeerUp(PeerUp),
    /// The last connection to a peer that was up is gone.
    PeerDown {
        /// Which.
        site: SiteId,
    },
    /// A member asks. Whoever drops `answer` refuses.
    Asked {
        /// Who.
        from: SiteId,
        /// What: [`Request::Core`] or [`Request::Log`].
        request: Request,
        /// Where the answer goes.
        answer: oneshot::Sender<Answer>,
    },
    /// A stranger wants to join. Whoever drops `answer` refuses.
    JoinAsked {
        /// Who.
        peer: SiteId,
        /// With which secret, as what.
        join: Join,
        /// Where the answer goes.
        answer: oneshot::Sender<Answer>,
    },
    /// A site's newest profile, checked.
    Profile {
        /// The mesh that it was gossiped in.
        mesh: MeshId,
        /// What the site offers.
        profile: Box<Profile>,
    },
    /// A member wants chunks; see [`serve`].
    Lane {
        /// Who.
        from: SiteId,
        /// Of which content, and with what right: to be checked.
        hello: LaneHello,
        /// Where they go.
        stream: LaneStream,
    },
}

/// A peer that can be worked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerUp {
    /// Who.
    pub site: SiteId,
    /// What it is in each mesh that both belong to.
    pub memberships: Vec<Membership>,
    /// The other end of the connection.
    pub address: Multiaddr,
    /// Whether we dialled `address`, so that it is worth remembering.
    pub dialled: bool,
}

impl PeerUp {
    /// The most that its certificates let it do in any mesh that both belong to.
    #[must_use]
    pub fn role(&self) -> Role {
        let roles = || self.memberships.iter().map(|membership| membership.role);
        let best = [Role::Site, Role::Host].into_iter().find(|role| roles().any(|of| of == *role));
        best.unwrap_or(Role::Submitter)
    }
}

/// Why a request was not answered. Whether it was received is unknown unless stated.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// It was not sent. The node calls the site by itself; try again when it is up.
    #[error("site {} is not connected", .0.short())]
    NotConnected(SiteId),
    /// No answer came in time.
    #[error("site {} did not answer in time", .0.short())]
    Timeout(SiteId),
    /// The connection broke, or the other end talks nonsense.
    #[error("the connection to site {} broke: {why}", .site.short())]
    Lost {
        /// Whom it led to.
        site: SiteId,
        /// What happened.
        why: String,
    },
    /// The lane did not open.
    #[error("no lane to site {}", .site.short())]
    Lane {
        /// Whom it leads to.
        site: SiteId,
        /// What happened.
        #[source]
        source: LaneError,
    },
    /// The node is shutting down.
    #[error("the node is leaving the network")]
    Stopped,
}

/// Why a ticket did not lead into its mesh. Nothing was changed; the ticket may be good still unless stated.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its time is over. Ask for a new one.
    #[error("the ticket for {0} has expired: ask for a new one")]
    Expired(String),
    /// Nobody at its addresses, or somebody else.
    #[error("cannot reach {mesh}; tried {tried}; is that node running, and is there a way to it?")]
    Unreachable {
        /// The mesh's name.
        mesh: String,
        /// Each address, and why it failed.
        tried: Tried,
    },
    /// The authority said no.
    #[error("{mesh} refused: {reason}")]
    Refused {
        /// The mesh's name.
        mesh: String,
        /// In its words.
        reason: String,
    },
    /// The certificate that came back admits nobody. Do not trust that node.
    #[error("the node of {mesh} sent a certificate that does not hold")]
    Forged {
        /// The mesh's name.
        mesh: String,
        /// What is wrong with it.
        #[source]
        source: Refused,
    },
    /// It answered something else. One of the two nodes needs an update.
    #[error("the node of {0} answered what does not belong here; one of the two needs an update")]
    Confused(String),
    /// The connection broke while the answer was awaited; the ticket may be used up.
    #[error("lost {mesh} while joining; try again")]
    Lost {
        /// The mesh's name.
        mesh: String,
        /// How.
        #[source]
        source: NetError,
    },
}

/// Addresses that were tried, with the reason that each one failed.
#[derive(Debug)]
pub struct Tried(pub Vec<(String, String)>);

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing, since the ticket names no address");
        }
        for (n, (address, why)) in self.0.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{address} ({why})")?;
        }
        Ok(())
    }
}

/// What was dropped because a limit was hit, and what misbehaved, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages to sites that were not connected or whose queue was full.
    pub messages_dropped: AtomicU64,
    /// Messages that were sent and not answered.
    pub messages_failed: AtomicU64,
    /// Requests that were refused: strangers, too many, or nobody free to answer.
    pub requests_refused: AtomicU64,
    /// Control messages that were none, were too long, or did not come whole in time.
    pub messages_broken: AtomicU64,
    /// Connections that were closed because no good certificate was shown, or it expired.
    pub peers_cut: AtomicU64,
    /// Gossip that was dropped without blame.
    pub gossip_ignored: AtomicU64,
    /// Gossip that should not have been passed on.
    pub gossip_rejected: AtomicU64,
    /// Inbound lanes that were dropped: strangers, too many, or no proper request.
    pub lanes_dropped: AtomicU64,
}

/// Adds one to a counter.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What the task is told to do.
enum Command {
    Request(SiteId, Request, oneshot::Sender<Result<Answer, NetError>>),
    Join(SiteId, Join, oneshot::Sender<Result<Answer, NetError>>),
    Send(SiteId, Box<Message>),
    Publish(MeshId, Box<SignedProfile>),
    Lane(SiteId, streams::Opened),
    Widen(SiteId, usize, oneshot::Sender<Result<(), String>>),
    Dial(Vec<Multiaddr>),
    Connect(SiteId, Multiaddr, oneshot::Sender<Result<(), String>>),
    AddMesh(MeshId, Box<Certificate>),
    Remember(SiteId, Vec<Multiaddr>),
    Peers(oneshot::Sender<Vec<PeerUp>>),
    Listening(oneshot::Sender<Vec<Multiaddr>>),
    Shutdown(oneshot::Sender<()>),
}

/// Drives the network task. Clones drive the same one; it stops when the last is dropped.
#[derive(Clone)]
pub struct Net {
    me: SiteId,
    clock: Arc<dyn Clock>,
    commands: mpsc::Sender<Command>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Net({})", self.me.short())
    }
}

/// Puts the node that holds `key` on the network. Call it inside a tokio runtime.
///
/// # Errors
/// When an address cannot be listened at, or the local network cannot be searched.
pub fn start(
    key: &SigningKey,
    settings: &Settings,
    outside: Outside,
) -> Result<(Net, mpsc::Receiver<Event>), StartError> {
    let (commands, commands_rx) = mpsc::channel(COMMANDS);
    let (events, events_rx) = mpsc::channel(EVENTS);
    let counters = Arc::new(Counters::default());
    let net = Net {
        me: key.site(),
        clock: Arc::clone(&outside.clock),
        commands,
        counters: Arc::clone(&counters),
    };
    let ends = swarm::Ends { commands: commands_rx, events, counters };
    let task = swarm::Task::new(key, settings, outside, ends)?;
    tokio::spawn(task.run());
    Ok((net, events_rx))
}

impl Net {
    /// Asks a member and waits for its answer. Dropping it midway is safe; the request may still be received.
    ///
    /// # Errors
    /// When the site is not up, does not answer in time, or the connection breaks.
    pub async fn request(&self, site: SiteId, request: Request) -> Result<Answer, NetError> {
        self.ask(site, |reply| Command::Request(site, request, reply)).await
    }

    /// Says something to a member without waiting for it. Messages to one site mostly arrive in order; nothing
    /// may depend on it. One that cannot be delivered is dropped and counted. Dropping it midway may drop the
    /// message.
    pub async fn send(&self, site: SiteId, message: Message) {
        self.tell(Command::Send(site, Box::new(message))).await;
    }

    /// Gossips our profile in `mesh`.
    pub async fn publish(&self, mesh: MeshId, profile: SignedProfile) {
        self.tell(Command::Publish(mesh, Box::new(profile))).await;
    }

    /// Opens a lane to a member, on the direct connection that has carried the fewest. Dropping it midway is safe.
    ///
    /// # Errors
    /// When the site is not up or the stream does not open.
    pub async fn lane(&self, site: SiteId, hello: &LaneHello) -> Result<Lane, NetError> {
        let (opened, stream) = oneshot::channel();
        self.tell(Command::Lane(site, opened)).await;
        let opened = tokio::time::timeout(REQUEST_LIMIT, stream).await;
        let failed = |source| NetError::Lane { site, source: LaneError::Open(source) };
        match opened {
            Err(_elapsed) => Err(NetError::Timeout(site)),
            Ok(Err(_dropped)) => Err(NetError::NotConnected(site)),
            Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::NotConnected => {
                Err(NetError::NotConnected(site))
            }
            Ok(Ok(Err(error))) => Err(failed(error)),
            Ok(Ok(Ok(stream))) => OpenLane::greet(stream, hello)
                .await
                .map_err(|source| NetError::Lane { site, source }),
        }
    }

    /// Opens another direct connection to a member when there are fewer than `n`, so that the next lane has one of
    /// its own. Returns when it is there, or when there will be none. Dropping it midway is safe.
    pub async fn widen(&self, site: SiteId, n: usize) {
        let (reply, widened) = oneshot::channel();
        self.tell(Command::Widen(site, n, reply)).await;
        match tokio::time::timeout(CONNECT_LIMIT, widened).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(why))) => tracing::debug!(site = %site.short(), why, "no further connection"),
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Calls these addresses now and whenever the connection is lost, like bootstrap addresses.
    pub async fn dial(&self, addresses: Vec<Multiaddr>) {
        self.tell(Command::Dial(addresses)).await;
    }

    /// Belongs to `mesh` from now on, or shows a renewed certificate of it. A new mesh opens all connections
    /// anew, because what is spoken on them is agreed when they open.
    pub async fn add_mesh(&self, mesh: MeshId, certificate: Certificate) {
        self.tell(Command::AddMesh(mesh, Box::new(certificate))).await;
    }

    /// Stays connected to `site`, which was reached at these addresses or says that it listens there.
    pub async fn remember(&self, site: SiteId, addresses: Vec<Multiaddr>) {
        self.tell(Command::Remember(site, addresses)).await;
    }

    /// Everybody who is up.
    pub async fn peers(&self) -> Vec<PeerUp> {
        self.look(Command::Peers).await.unwrap_or_default()
    }

    /// Where the node can be reached now.
    pub async fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.look(Command::Listening).await.unwrap_or_default()
    }

    /// What was dropped so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Says farewell to everybody and waits until the ports are free.
    pub async fn shutdown(&self) {
        let _stopped = self.look(Command::Shutdown).await;
    }

    /// Joins the mesh of `ticket` under `name`; the certificate that comes back is for [`Self::add_mesh`].
    /// Dropping it midway may use up the ticket.
    ///
    /// # Errors
    /// When the ticket is old, nobody is reached, or the answer is no or worthless.
    pub async fn join(&self, ticket: &Ticket, name: &str) -> Result<Certificate, JoinError> {
        let mesh = || ticket.mesh_name.clone();
        if self.clock.now() >= ticket.expires {
            return Err(JoinError::Expired(mesh()));
        }
        let site = ticket.authority;
        self.reach(ticket).await.map_err(|tried| JoinError::Unreachable { mesh: mesh(), tried })?;
        let join = Join { secret: ticket.secret, name: name.into(), role: ticket.role };
        let answer = self.ask(site, |reply| Command::Join(site, join, reply)).await;
        let certificate = match answer {
            Ok(Answer::Joined(certificate)) => certificate,
            Ok(Answer::Refused(reason)) => {
                return Err(JoinError::Refused { mesh: mesh(), reason: for_people(&reason) });
            }
            Ok(Answer::Hello(_) | Answer::Heard | Answer::LogHave(_)) => {
                return Err(JoinError::Confused(mesh()));
            }
            Err(source) => {
                return Err(JoinError::Lost { mesh: mesh(), source });
            }
        };
        match certificate.admits(ticket.mesh, self.me, self.clock.now()) {
            Ok(_body) => Ok(certificate),
            Err(source) => Err(JoinError::Forged { mesh: mesh(), source }),
        }
    }

    /// Connects to the ticket's authority at the first of its addresses that works, and remembers that one.
    async fn reach(&self, ticket: &Ticket) -> Result<(), Tried> {
        let site = ticket.authority;
        let mut tried = Vec::new();
        for text in &ticket.addresses {
            let why = match text.parse::<Multiaddr>() {
                Err(error) => error.to_string(),
                Ok(address) => match self.connect(site, address.clone()).await {
                    Ok(()) => {
                        self.remember(site, vec![address]).await;
                        return Ok(());
                    }
                    Err(why) => why,
                },
            };
            tried.push((for_people(text), why));
        }
        Err(Tried(tried))
    }

    async fn connect(&self, site: SiteId, address: Multiaddr) -> Result<(), String> {
        let (reply, connected) = oneshot::channel();
        self.tell(Command::Connect(site, address, reply)).await;
        match tokio::time::timeout(CONNECT_LIMIT, connected).await {
            Ok(Ok(result)) => result,
            Ok(Err(_dropped)) => Err(NetError::Stopped.to_string()),
            Err(_elapsed) => Err("no answer in time".into()),
        }
    }

    async fn ask<T>(
        &self,
        site: SiteId,
        command: impl FnOnce(oneshot::Sender<Result<T, NetError>>) -> Command,
    ) -> Result<T, NetError> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await;
        match tokio::time::timeout(REQUEST_LIMIT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_dropped)) => Err(NetError::Stopped),
            Err(_elapsed) => Err(NetError::Timeout(site)),
        }
    }

    async fn look<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await;
        answer.await.ok()
    }

    /// A command to a task that has stopped is moot; those who wait for a reply learn it from that.
    async fn tell(&self, command: Command) {
        let _stopped = self.commands.send(command).await;
    }
}

/// A text from outside, short and without control characters, fit to be shown.
fn for_people(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The later of two moments matters to nobody: the earlier one wakes.
fn earlier(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
