//! Nodes that talk over loopback: greetings, strangers, joining, gossip, lanes and lost connections.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::Ordering;

use meshfarm_protocol::id::{AttemptId, ChunkId, LeaseId};
use meshfarm_protocol::membership::{CertificateBody, Role};
use meshfarm_protocol::message::LogPart;
use meshfarm_protocol::profile::PROFILE_VERSION;
use meshfarm_protocol::seal::SealingKey;

use super::*;

mod hostile;
mod hostile_lanes;
mod hosts;
mod joining;
mod moving;
mod strangers;

/// Nothing that a test waits for may take longer.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const FOREVER: Millis = Millis(u64::MAX);

pub(crate) const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A node with its events, as a daemon would hold it.
pub(crate) struct Node {
    pub(crate) key: SigningKey,
    pub(crate) net: Net,
    pub(crate) events: mpsc::Receiver<Event>,
}

fn key(byte: u8) -> SigningKey {
    SigningKey::from_seed(&[byte; 32])
}

pub(crate) fn root() -> SigningKey {
    key(200)
}

pub(crate) fn certificate(root: &SigningKey, key: &SigningKey, expires: Millis) -> Certificate {
    let body = CertificateBody {
        version: 1,
        mesh: root.mesh(),
        mesh_name: "consortium".into(),
        site: key.site(),
        name: format!("site {}", key.site().short()),
        role: Role::Site,
        issued: Millis(0),
        expires,
        serial: 1,
    };
    Certificate::sign(&body, root)
}

pub(crate) fn start_at(byte: u8, listen: &[Multiaddr]) -> Result<Node, StartError> {
    let key = key(byte);
    let settings = Settings { listen: listen.to_vec(), mdns: false, ..Settings::default() };
    let outside = Outside {
        transport: transport::transport(&key).unwrap(),
        clock: Arc::new(SystemClock),
        seed: [byte; 32],
        is_free: transport::is_free,
    };
    let (net, events) = start(&key, &settings, outside)?;
    Ok(Node { key, net, events })
}

/// A node that belongs to no mesh.
fn stranger(byte: u8, listen: &str) -> Node {
    start_at(byte, &[listen.parse().unwrap()]).unwrap()
}

/// A node that belongs to the mesh of `root`.
pub(crate) async fn member(byte: u8, listen: &str) -> Node {
    let node = stranger(byte, listen);
    let certificate = certificate(&root(), &node.key, FOREVER);
    node.net.add_mesh(root().mesh(), certificate).await;
    node
}

/// Two members that have met.
async fn pair(listen: &str) -> (Node, Node) {
    let (mut a, mut b) = (member(1, listen).await, member(2, listen).await);
    a.call(&b).await;
    a.up(&b).await;
    b.up(&a).await;
    (a, b)
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("waited in vain for {what}"),
    }
}

/// Asks again and again until `done`, or the deadline.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(what, waiting).await;
}

impl Node {
    pub(crate) fn site(&self) -> SiteId {
        self.key.site()
    }

    /// Where it listens, as soon as it does.
    pub(crate) async fn address(&self) -> Multiaddr {
        let net = &self.net;
        until("an address", || async move { !net.listen_addresses().await.is_empty() }).await;
        net.listen_addresses().await.remove(0)
    }

    /// Stays connected to `other` from now on.
    pub(crate) async fn call(&self, other: &Self) {
        let address = other.address().await;
        self.net.remember(other.site(), vec![address]).await;
    }

    /// The first event that `pick` takes; the ones before it are dropped.
    async fn event<T>(&mut self, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        within(what, async {
            loop {
                let event = self.events.recv().await.expect("the node runs");
                if let Some(picked) = pick(event) {
                    return picked;
                }
            }
        })
        .await
    }

    pub(crate) async fn up(&mut self, other: &Self) -> PeerUp {
        let site = other.site();
        self.event("a peer to come up", |event| match event {
            Event::PeerUp(up) if up.site == site => Some(up),
            _ => None,
        })
        .await
    }

    async fn down(&mut self, site: SiteId) {
        self.event("a peer to go down", |event| match event {
            Event::PeerDown { site: gone } if gone == site => Some(()),
            _ => None,
        })
        .await;
    }

    /// Answers the next request of a member with `answer` and returns the request.
    async fn answer(&mut self, reply: Answer) -> (SiteId, Request) {
        let mut reply = Some(reply);
        self.event("a request", |event| match event {
            Event::Asked { from, request, answer } => {
                answer.send(reply.take()?).unwrap();
                Some((from, request))
            }
            _ => None,
        })
        .await
    }
}

fn log_part(len: usize) -> Request {
    Request::Log(LogPart { attempt: AttemptId([1; 16]), offset: 0, bytes: vec![7; len] })
}

fn close(n: u8) -> Message {
    Message::Close { lease: LeaseId([n; 16]) }
}

async fn two_members_talk_both_ways(listen: &str) {
    let (mut a, mut b) = pair(listen).await;
    for _ in 0..2 {
        let (asked, heard) =
            tokio::join!(a.net.request(b.site(), log_part(100)), b.answer(Answer::LogHave(100)));
        assert!(matches!(asked.unwrap(), Answer::LogHave(100)));
        assert_eq!(heard.0, a.site());
        a.net.send(b.site(), close(3)).await;
        let (from, request) = b.answer(Answer::Heard).await;
        assert_eq!(from, a.site());
        assert!(matches!(request, Request::Core(message) if message == close(3)));
        std::mem::swap(&mut a, &mut b);
    }
    let peers = a.net.peers().await;
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].memberships[0].mesh, root().mesh());
    b.net.shutdown().await;
    a.down(b.site()).await;
    assert!(a.net.peers().await.is_empty());
    let error = a.net.request(b.site(), log_part(1)).await.unwrap_err();
    assert!(matches!(error, NetError::NotConnected(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_talk_both_ways_over_tcp() {
    two_members_talk_both_ways(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_talk_both_ways_over_quic_alone() {
    two_members_talk_both_ways(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_messages_arrive_and_none_is_lost() {
    let (a, mut b) = pair(TCP).await;
    let sender = a.net.clone();
    let to = b.site();
    tokio::spawn(async move {
        for n in 0..1000_u32 {
            let message = Message::Close {
                lease: LeaseId([[0; 12].as_slice(), &n.to_be_bytes()].concat().try_into().unwrap()),
            };
            sender.send(to, message).await;
        }
    });
    let mut heard = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        match b.answer(Answer::Heard).await.1 {
            Request::Core(Message::Close { lease }) => heard.insert(lease),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(heard.len(), 1000);
    assert_eq!(a.net.counters().messages_dropped.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_nobody_is_dropped_and_counted() {
    let a = member(1, TCP).await;
    a.net.send(key(9).site(), close(1)).await;
    assert!(a.net.peers().await.is_empty());
    assert_eq!(a.net.counters().messages_dropped.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_too_long_is_not_sent_and_harms_nothing() {
    let (a, mut b) = pair(TCP).await;
    let long = a.net.request(b.site(), log_part(2 * 1024 * 1024)).await;
    assert!(matches!(long, Err(NetError::Lost { .. })), "{long:?}");
    let (asked, _) =
        tokio::join!(a.net.request(b.site(), log_part(1)), b.answer(Answer::LogHave(1)));
    assert!(asked.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_restarts_at_the_same_port_is_called_again_at_once() {
    for listen in [TCP, QUIC] {
        let (mut a, b) = pair(listen).await;
        let address = b.address().await;
        b.net.shutdown().await;
        a.down(b.site()).await;
        let mut again = start_at(2, std::slice::from_ref(&address)).unwrap();
        let shown = certificate(&root(), &again.key, FOREVER);
        again.net.add_mesh(root().mesh(), shown).await;
        let up = a.up(&again).await;
        assert!(up.dialled);
        again.up(&a).await;
        let (asked, _) = tokio::join!(
            a.net.request(again.site(), log_part(1)),
            again.answer(Answer::LogHave(1))
        );
        assert!(asked.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_said_with_its_address() {
    for listen in [TCP, QUIC] {
        let first = stranger(1, listen);
        let address = first.address().await;
        let error = start_at(2, std::slice::from_ref(&address)).err().unwrap();
        assert!(matches!(error, StartError::PortInUse { .. }), "{error:?}");
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
    let odd = "/ip4/127.0.0.1".parse().unwrap();
    assert!(matches!(start_at(3, &[odd]), Err(StartError::Listen { .. })));
}
