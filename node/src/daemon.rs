//! The loop of a node: wait for something, let the core decide, make it durable, then do it.
//!
//! Nothing is decided here. Inputs that have piled up are decided together and made durable by one synced
//! write, then their outputs are performed in order; so a promise is on disk before anybody hears of it,
//! and a sync costs the same for one task as for a hundred.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use meshfarm_core::{ChainId, Event, Input, Output, Reply, Request, Site};
use meshfarm_protocol::id::{Millis, SiteId};
use meshfarm_protocol::message::{
    Answer, LaneHello, LogPart, Message, Pass, Request as Asked, SignedProfile,
};
use meshfarm_protocol::profile::Profile;
use meshfarm_protocol::receipt::Entry;
use meshfarm_protocol::seal::{self, SigningKey};

use crate::gate::{Gate, Happened, Look, Question};
use crate::ledger;
use crate::lending::Lending;
use crate::logs::Logs;
use crate::machine::Machine;
use crate::means::Means;
use crate::mesh::Meshes;
use crate::neighbours::Neighbours;
use crate::net::{self, LaneStream, Multiaddr, Net};
use crate::passing::{Made, Passing};
use crate::pins::Pins;
use crate::records;
use crate::returning::Returning;
use crate::sharing::Sharer;
use crate::store::{Batch, Store, StoreError};

/// So many inputs are decided together at most.
const MAX_TURN: usize = 256;

/// So many inputs of our own tasks may wait.
pub const INPUTS: usize = 1024;

/// The loop looks up at least this often.
const IDLE: Millis = Millis::seconds(60);

/// How long a full disk is waited for before the write is tried again.
const DISK_PAUSE: Millis = Millis::seconds(1);

/// Why a running node had to stop. What was told to anybody is on disk.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The store refuses to write.
    #[error("the node stops, because its records cannot be written")]
    Store(#[from] StoreError),
    /// The network task is gone.
    #[error("the node stops, because its network task has ended")]
    Net,
}

/// Everything that the loop works with.
#[derive(Debug)]
pub struct Rooms {
    /// Time, entropy, threads.
    pub machine: Machine,
    /// The database.
    pub store: Arc<Store>,
    /// The network.
    pub net: Net,
    /// Memberships.
    pub meshes: Arc<Meshes>,
    /// Who we are.
    pub key: SigningKey,
    /// What the data rooms share.
    pub means: Arc<Means>,
    /// Other sites' tasks on our slots, and our own.
    pub lending: Arc<Lending>,
    /// Other sites' tasks on further machines.
    pub passing: Arc<Passing>,
    /// Our tasks' results.
    pub returning: Arc<Returning>,
    /// Which content is in use.
    pub pins: Arc<Pins>,
    /// Where members are found.
    pub neighbours: Neighbours,
    /// Logs.
    pub logs: Arc<Logs>,
    /// Who asks, and who listens.
    pub gate: Gate,
}

/// What comes in.
#[derive(Debug)]
pub(crate) struct Inlets {
    /// From our own tasks.
    pub(crate) input_rx: mpsc::Receiver<Input>,
    /// From people.
    pub(crate) question_rx: mpsc::Receiver<Question>,
    /// From the network.
    pub(crate) net_rx: mpsc::Receiver<net::Event>,
}

/// A running node's loop.
pub struct Daemon {
    site: Site,
    rooms: Rooms,
    inlets: Inlets,
    addresses: Vec<Multiaddr>,
    asking: BTreeMap<u64, oneshot::Sender<Reply>>,
    joining: BTreeMap<u64, oneshot::Sender<Answer>>,
    looks: Vec<Look>,
    next_request: u64,
    n_events: u64,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("site", &self.site).finish_non_exhaustive()
    }
}

impl Daemon {
    /// A loop around `site`.
    #[must_use]
    pub(crate) fn new(site: Site, rooms: Rooms, inlets: Inlets) -> Self {
        Self {
            site,
            rooms,
            inlets,
            addresses: Vec::new(),
            asking: BTreeMap::new(),
            joining: BTreeMap::new(),
            looks: Vec::new(),
            next_request: 0,
            n_events: 0,
        }
    }

    /// Run until `shutdown` ends. Dropping it is like a crash: nothing is lost.
    ///
    /// # Errors
    /// When the store refuses to write or the network is gone.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Stopped> {
        let mut shutdown = pin!(shutdown);
        let mut inputs = VecDeque::from([Input::Tick]);
        loop {
            self.turn(inputs.drain(..)).await?;
            let now = self.rooms.machine.clock.now();
            let wake = self.site.wake_at(now).unwrap_or(Millis(u64::MAX)).min(now.plus(IDLE));
            // Finished local work first, then timers, then the network: what is begun gets done.
            tokio::select! {
                biased;
                () = &mut shutdown => {
                    self.rooms.lending.stop_all().await;
                    self.rooms.net.shutdown().await;
                    return Ok(());
                }
                Some(input) = self.inlets.input_rx.recv() => inputs.push_back(input),
                Some(question) = self.inlets.question_rx.recv() => {
                    inputs.extend(self.question(question));
                }
                () = self.rooms.machine.clock.wait_until(wake) => inputs.push_back(Input::Tick),
                event = self.inlets.net_rx.recv() => {
                    let event = event.ok_or(Stopped::Net)?;
                    inputs.extend(self.heard(event).await);
                }
            }
            self.take_more(&mut inputs).await;
        }
    }

    /// Take what else has arrived meanwhile, so that one sync serves all of it.
    async fn take_more(&mut self, inputs: &mut VecDeque<Input>) {
        for _ in 0..MAX_TURN {
            if let Ok(input) = self.inlets.input_rx.try_recv() {
                inputs.push_back(input);
            } else if let Ok(question) = self.inlets.question_rx.try_recv() {
                inputs.extend(self.question(question));
            } else if let Ok(event) = self.inlets.net_rx.try_recv() {
                inputs.extend(self.heard(event).await);
            } else {
                break;
            }
        }
    }

    fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    fn question(&mut self, question: Question) -> Option<Input> {
        match question {
            Question::Ask(ask, answer) => {
                let n = self.request();
                self.asking.insert(n, answer);
                Some(Input::Asked(Request(n), ask))
            }
            Question::Look(look) => {
                self.looks.push(look);
                None
            }
        }
    }

    /// Turn what the network says into an input, or serve it at once where nothing is to be decided.
    async fn heard(&mut self, event: net::Event) -> Option<Input> {
        match event {
            net::Event::Listening(address) => {
                tracing::info!(%address, "listening");
                self.addresses.push(address);
                let texts = self.addresses.iter().map(ToString::to_string).collect();
                self.site.set_addresses(texts);
                None
            }
            net::Event::PeerUp(up) => {
                let (site, role) = (up.site, up.role());
                if up.dialled {
                    self.remember(site, vec![up.address]).await;
                }
                let name = up.memberships.first().map(|member| member.name.clone());
                let meshes = up.memberships.iter().map(|member| member.mesh).collect();
                let name = name.unwrap_or_else(|| site.short());
                Some(Input::PeerUp { site, name, role, meshes })
            }
            net::Event::PeerDown { site } => Some(Input::PeerDown { site }),
            net::Event::Asked { from, request: Asked::Core(message), answer } => {
                drop(answer.send(Answer::Heard));
                if let Message::Receipt(entry) = &message
                    && let Err(error) = ledger::check(entry, from, self.rooms.means.me)
                {
                    tracing::warn!(site = %from.short(), %error, "a receipt was refused");
                    return None;
                }
                Some(Input::Heard { from, message })
            }
            net::Event::Asked { from, request: Asked::Log(part), answer } => {
                if self.site.may_log(from, part.attempt) {
                    self.receive_log(part, None, answer);
                } else if let Some(to) = self.site.log_goes_to(from, part.attempt) {
                    self.receive_log(part, Some(to), answer);
                } else {
                    drop(answer.send(Answer::Refused("no such attempt".to_owned())));
                }
                None
            }
            net::Event::Asked { answer, .. } => {
                drop(answer.send(Answer::Refused("not understood here".to_owned())));
                None
            }
            net::Event::JoinAsked { peer, join, answer } => {
                let n = self.request();
                self.joining.insert(n, answer);
                let secret_hash = seal::content_hash(&join.secret);
                let (name, role) = (join.name, join.role);
                Some(Input::JoinAsked { request: Request(n), peer, secret_hash, name, role })
            }
            net::Event::Profile { mesh: _, profile } => {
                let addresses = profile.addresses.iter().filter_map(|text| text.parse().ok());
                self.remember(profile.site, addresses.collect()).await;
                Some(Input::Profile(*profile))
            }
            net::Event::Lane { from, hello, stream } => {
                self.serve(from, &hello, stream);
                None
            }
        }
    }

    /// Send content to a site that has a lease with us, or a pass of one that has.
    fn serve(&self, from: SiteId, hello: &LaneHello, stream: LaneStream) {
        let means = &self.rooms.means;
        let now = self.rooms.machine.clock.now();
        let Some(pass) = &hello.pass else {
            if self.site.may_read(from, hello.lease) {
                means.serve(stream, (from, self.site.job_of(hello.lease)), None);
            } else {
                tracing::warn!(site = %from.short(), "a lane without a lease was refused");
            }
            return;
        };
        let right = pass.open(from, now).filter(|body| body.root == hello.root);
        match right.filter(|body| self.site.may_share(body)) {
            Some(body) => {
                // Before the first chunk is here, there is nothing to say and nothing to send.
                let here = means.sharing.here(body.lease, body.root);
                if here.is_some() {
                    means.serve(stream, (from, None), here);
                }
            }
            None => {
                tracing::warn!(site = %from.short(), "a lane with a worthless pass was refused")
            }
        }
    }

    /// Stay connected to a member that is found at these addresses, and find it there after a restart.
    async fn remember(&mut self, site: SiteId, addresses: Vec<Multiaddr>) {
        self.rooms.neighbours.note(site, &addresses);
        self.rooms.net.remember(site, addresses).await;
    }

    /// Keep a part of a log, or send it on to whoever borrowed.
    fn receive_log(&self, part: LogPart, to: Option<SiteId>, answer: oneshot::Sender<Answer>) {
        let logs = Arc::clone(&self.rooms.logs);
        if let Some(to) = to
            && let Err(error) = logs.send_on(part.attempt, to, &self.rooms.net)
        {
            tracing::warn!(%error, "a log will not be sent on");
        }
        self.rooms.machine.blocking.run(Box::new(move || {
            let have = if to.is_some() { logs.receive_on(&part) } else { logs.receive(&part) };
            let said = have.map_or_else(|e| Answer::Refused(e.to_string()), Answer::LogHave);
            drop(answer.send(said));
        }));
    }

    /// Decide, make durable, do.
    async fn turn(&mut self, inputs: impl Iterator<Item = Input>) -> Result<(), Stopped> {
        let now = self.rooms.machine.clock.now();
        let mut outputs = Vec::new();
        let inputs = inputs.inspect(|input| tracing::trace!(?input, "decide"));
        self.site.handle_all(now, inputs, &mut outputs);
        let mut batch = Batch::new();
        for output in &outputs {
            if let Output::Persist(change) = output {
                records::stage(change, &mut batch);
            }
        }
        self.rooms.neighbours.stage(&mut batch);
        self.rooms.pins.place_for(&outputs)?;
        self.commit(batch).await?;
        self.rooms.pins.lift_for(&outputs);
        for output in outputs {
            self.perform(output, now).await;
        }
        for look in std::mem::take(&mut self.looks) {
            look(&self.site, now);
        }
        Ok(())
    }

    /// Write a batch. A full disk is waited for: nothing was said yet, so nothing is lost.
    async fn commit(&self, batch: Batch) -> Result<(), Stopped> {
        if batch.is_empty() {
            return Ok(());
        }
        loop {
            let (store, copy) = (Arc::clone(&self.rooms.store), batch.clone());
            match self.rooms.machine.block(move || store.commit(copy)).await {
                Some(Ok(())) => return Ok(()),
                Some(Err(error @ StoreError::NoSpace { .. })) => {
                    tracing::error!(%error, "the disk is full; the node waits for space");
                    let clock = &self.rooms.machine.clock;
                    clock.wait_until(clock.now().plus(DISK_PAUSE)).await;
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Err(Stopped::Net),
            }
        }
    }

    async fn perform(&mut self, output: Output, now: Millis) {
        let rooms = &self.rooms;
        match output {
            // What the borrower has is not pinned any more, and goes with the next collection.
            Output::Persist(_) | Output::Forget { .. } => {}
            Output::Send { to, message } => rooms.net.send(to, message).await,
            Output::Commit { to, sealing_key, job, root, want, session } => {
                let lease = want.lease;
                let sealed = rooms.returning.commit((to, sealing_key), job, root, (want, session));
                match sealed {
                    Ok(message) => rooms.net.send(to, message).await,
                    Err(error) => tracing::error!(%lease, %error, "the commit was not sealed"),
                }
            }
            Output::Introduce { to, lease, source, pass } => {
                let pass = Box::new(Pass::sign(&pass, &rooms.key));
                rooms.net.send(to, Message::Source { lease, source, pass }).await;
            }
            Output::Share { lease, source, pass } => {
                rooms.means.sharing.add(lease, Sharer { site: source, pass });
            }
            Output::Prepare { lease, borrower, root, content } => {
                Arc::clone(&rooms.lending).prepare(lease, borrower, root, content);
            }
            Output::Start { session, lease, borrower, isolation, holds, run } => {
                let promised = (isolation, holds);
                Arc::clone(&rooms.lending).start((session, lease), borrower, promised, run);
            }
            Output::Stop(session) => rooms.lending.stop(session),
            output @ (Output::Release(_)
            | Output::Fetch { .. }
            | Output::HandOn { .. }
            | Output::TakeIn { .. }) => self.relay(output).await,
            Output::Purge { attempts, before } => {
                let logs = Arc::clone(&rooms.logs);
                rooms.machine.blocking.run(Box::new(move || logs.purge(&attempts, before)));
            }
            Output::Collect { attempt, task, lease, lender, outputs } => {
                let layout = self.site.layout(task.job).unwrap_or_default();
                let layout = (layout, self.site.content(task.job));
                let found = (lease, lender, outputs);
                Arc::clone(&rooms.returning).collect(attempt, task, layout, found);
            }
            Output::BuildInputs { job, step, needs, root } => {
                Arc::clone(&rooms.returning).build_inputs((job, step), needs, root);
            }
            Output::SendReceipt { to, entry } => {
                let entry = Box::new(ledger::sign(&entry, &rooms.key));
                rooms.net.send(to, Message::Receipt(entry)).await;
            }
            Output::ShowReceipt { to, chain, sequence, against } => {
                self.show_receipt(to, (chain, sequence), against).await;
            }
            Output::Publish(profile) => self.publish(&profile).await,
            Output::Admit(request, body) => {
                let answer = match rooms.meshes.admit(&body) {
                    Ok(certificate) => Answer::Joined(certificate),
                    Err(error) => Answer::Refused(error.to_string()),
                };
                self.joining.remove(&request.0).map(|asked| asked.send(answer));
            }
            Output::Refuse(request, reason) => {
                let answer = Answer::Refused(reason);
                self.joining.remove(&request.0).map(|asked| asked.send(answer));
            }
            Output::Answer(request, reply) => {
                self.asking.remove(&request.0).map(|asked| asked.send(reply));
            }
            Output::Tell(event) => self.tell(event, now),
        }
    }

    /// Send a receipt that stands in the store; say so to the core when somebody else's word for it differs.
    async fn show_receipt(
        &self,
        to: SiteId,
        (chain, sequence): (ChainId, u64),
        against: Option<Box<Entry>>,
    ) {
        let rooms = &self.rooms;
        match ledger::entry(&rooms.store, chain, sequence) {
            Ok(Some(stored)) => {
                if let Some(entry) = against.filter(|entry| entry.receipt != stored.receipt) {
                    // The loop itself must not wait for room in its own queue.
                    let (means, input) =
                        (Arc::clone(&rooms.means), Input::Forked { site: to, entry });
                    tokio::spawn(async move { means.tell(input).await });
                }
                let entry = Box::new(ledger::sign(&stored, &rooms.key));
                rooms.net.send(to, Message::Receipt(entry)).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "a receipt cannot be read"),
        }
    }

    /// What is to be done for a lease that runs on another machine, and for any that is over.
    async fn relay(&self, output: Output) {
        let rooms = &self.rooms;
        let passing = Arc::clone(&rooms.passing);
        if let Output::Release(lease) = output {
            passing.release(lease);
            rooms.lending.release(lease);
        } else if let Output::Fetch { lease, borrower, root, envelope } = output {
            passing.fetch(lease, borrower, root, envelope);
        } else if let Output::HandOn { lease, to, sealing_key, job, root, want } = output {
            match passing.hand_on(lease, (to, sealing_key), (job, root), want) {
                Ok(message) => rooms.net.send(to, message).await,
                Err(error) => tracing::error!(%lease, %error, "keys were not handed on"),
            }
        } else if let Output::TakeIn { lease, attempt, to, job, from, outputs } = output {
            passing.take_in(Made { lease, attempt, to, job, from, outputs });
        }
    }

    async fn publish(&self, profile: &Profile) {
        for (mesh, certificate) in self.rooms.meshes.all() {
            // A site may have another name in each mesh.
            let mut profile = profile.clone();
            if let Ok(body) = certificate.open() {
                profile.name = body.name;
            }
            let signed = SignedProfile::sign(&profile, certificate, &self.rooms.key);
            self.rooms.net.publish(mesh, signed).await;
        }
    }

    fn tell(&mut self, event: Event, at: Millis) {
        match &event {
            Event::Blame { .. }
            | Event::LeaseLost { .. }
            | Event::OutputBlocked { .. }
            | Event::DeadlineAtRisk { .. }
            | Event::DeadlineMissed { .. }
            | Event::Disputed { .. }
            | Event::ReceiptsLacking { .. } => {
                tracing::warn!(?event, "event");
            }
            // As many as there are tasks: who listens to events has them anyway.
            Event::TaskLeased { .. } | Event::TaskStarted { .. } | Event::TaskDone { .. } => {
                tracing::debug!(?event, "event");
            }
            event => tracing::info!(?event, "event"),
        }
        self.n_events += 1;
        self.rooms.gate.tell(Happened { number: self.n_events, at, event });
    }
}
