//! What a node does for people beyond the decisions of its core: taking jobs in, meshes, logs, figures.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::mpsc;

use meshfarm_core::{Ask, Reply, Site};
use meshfarm_protocol::id::{AttemptId, JobId, Millis, SiteId};
use meshfarm_protocol::job::{Access, JobSpec, MeshPolicy};
use meshfarm_protocol::manifest::Limits;
use meshfarm_protocol::matching::fit;
use meshfarm_protocol::membership::{CertificateBody, Role, Ticket, is_name};
use meshfarm_protocol::profile::{HostClass, Level, Profile, Requirement};
use meshfarm_protocol::seal::{self, TenantSecret};
use meshfarm_protocol::session::JOB_FILE;

use crate::api::{
    BackedUp, Backup, Collect, Dispute, DryRun, Examination, FilePlan, Invite, Invited, JobBytes,
    Join, LedgerLine, LogPart, MeshView, Outputs, Phase, Problem, Progress, SiteBytes, SitePlan,
    Statement, StatementAsk, Status, StepPlan, StoreCollected, StoreStat, StoreVerified, Submit,
    Submitted, Transfers, Verify, causes,
};
use crate::archive;
use crate::command::Rooms;
use crate::config::{Compress, Home};
use crate::content::ingest::{Cutting, Ingest, Input as Taken, Progress as Cut, Savings, Source};
use crate::doctor;
use crate::gate::Gate;
use crate::job_bundle::{self, Catalog, Defaults, LoadedJob, PolicyChanges, SubmitRequest};
use crate::logs::Logs;
use crate::means::Means;
use crate::mesh::{MeshError, Meshes};
use crate::meter::Moved;
use crate::node::{DEFAULT_PROJECT, Node};
use crate::store::Batch;
use crate::sweep::Sweeper;
use crate::sys;
use crate::web::{Answer, Backend};

mod hosts;
mod ledger;
mod store;

/// So many bytes of a log are answered at a time.
const LOG_PIECE: usize = 1 << 20;

/// The most bytes that one job may bring.
const MAX_CONTENT: u64 = 1 << 40;

/// How often a starting node looks whether it listens.
const LOOK: Millis = Millis(5);

/// A running node, as people use it.
#[derive(Debug)]
pub struct NodeBackend {
    pub(crate) means: Arc<Means>,
    pub(crate) gate: Gate,
    pub(crate) meshes: Arc<Meshes>,
    pub(crate) sweeper: Arc<Sweeper>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) tenant: TenantSecret,
    pub(crate) policy: MeshPolicy,
    pub(crate) compress: Compress,
    pub(crate) name: String,
    pub(crate) home: Home,
    pub(crate) started: Millis,
}

impl NodeBackend {
    /// Wait until the node can be reached.
    pub(crate) async fn until_listening(&self) {
        let clock = &self.means.machine.clock;
        while self.means.net.listen_addresses().await.is_empty() {
            clock.wait_until(clock.now().plus(LOOK)).await;
        }
    }

    pub(crate) async fn status_now(&self) -> Status {
        let listen = self.means.net.listen_addresses().await;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            site: self.means.me,
            name: self.name.clone(),
            home: self.home.root().to_owned(),
            pid: std::process::id(),
            listen: listen.iter().map(ToString::to_string).collect(),
            started: self.started,
            resident: sys::resident_bytes(),
        }
    }

    /// Read a submission on a thread that may wait.
    async fn load(&self, submit: Submit) -> Result<LoadedJob, Problem> {
        let (catalog, policy) = (Arc::clone(&self.catalog), self.policy.clone());
        let now = self.means.machine.clock.now();
        let tenant = self.tenant.tenant();
        let load = move || {
            let request = request(submit)?;
            let tenant_of = move |_: &str| tenant;
            let defaults = Defaults {
                catalog: &catalog,
                policy: &policy,
                project: DEFAULT_PROJECT,
                tenant_of: &tenant_of,
                now,
            };
            job_bundle::load(&request, &defaults).map_err(|e| Problem::bad_input(causes(&e)))
        };
        self.means.machine.block(load).await.ok_or_else(panicked)?
    }

    async fn take_in(
        &self,
        submit: Submit,
        progress: mpsc::Sender<Progress>,
    ) -> Result<Submitted, Problem> {
        self.no_host()?;
        drop(progress.try_send(Progress { phase: Phase::Loading, done: 0, total: None }));
        let hold = submit.hold;
        let loaded = self.load(submit).await?;
        let LoadedJob { mut spec, inputs, outputs, job_json, warnings, held } = loaded;
        let held = held || hold;
        spec.policy.held = held;
        let files = inputs.len() as u64;
        let kept: BTreeSet<_> =
            inputs.iter().filter(|file| !file.returns).map(|file| file.path.clone()).collect();
        let mut taken = vec![Taken { path: JOB_FILE.to_owned(), source: Source::Bytes(job_json) }];
        taken.extend(
            inputs
                .into_iter()
                .map(|file| Taken { path: file.path, source: Source::File(file.source) }),
        );
        // Until the job is queued, which pins its content.
        let _hold = self.means.chunks.hold();
        let (means, secret) = (Arc::clone(&self.means), self.tenant.clone());
        let compress = self.compress == Compress::Auto;
        let ingest = move || {
            let room = means.chunks.check_room();
            room.map_err(|error| Problem::refused(causes(&error)))?;
            let ingest = Ingest {
                chunks: &means.chunks,
                secret: &secret,
                cutting: Cutting::ByContent,
                created: means.machine.clock.now(),
                limits: Limits::granting(MAX_CONTENT),
            };
            let savings = Savings { records: Some(&means.store), compress };
            let built = ingest.run_saving(savings, taken, |cut: Cut| {
                let (done, total) = (cut.bytes_done, Some(cut.bytes_total));
                drop(progress.try_send(Progress { phase: Phase::Hashing, done, total }));
                if progress.is_closed() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            let built = built.map_err(|error| Problem::refused(causes(&error)))?;
            let mut batch = Batch::new();
            Means::keep_root(&mut batch, &built.link);
            Means::keep_inputs(&mut batch, built.link.cid, &kept);
            let kept = means.store.commit(batch);
            kept.map_err(|error| Problem::broken(&error))?;
            let (limits, now) = (ingest.limits, means.machine.clock.now());
            let learned = means.pins.learn(&built.link, limits, (means.me, false), now);
            learned.map(|()| built).map_err(|error| Problem::broken(&error))
        };
        let built = self.means.machine.block(ingest).await.ok_or_else(panicked)??;
        let (name, place) = (spec.name.clone(), spec.policy.place.clone());
        let tasks = spec.steps.iter().map(|step| step.n_tasks()).sum();
        let (root, bytes) = (built.link.cid, built.bytes);
        let reply = self.gate.ask(Ask::Submit { spec: Box::new(spec), root, bytes }).await?;
        let Reply::Submitted(job) = reply else {
            return Err(refused(reply));
        };
        let outputs = outputs.into_iter().map(|(_, folder)| folder).collect();
        Ok(Submitted { job, name, tasks, files, bytes, place, outputs, held, warnings })
    }

    async fn try_on(&self, submit: Submit) -> Result<DryRun, Problem> {
        let loaded = self.load(submit).await?;
        let look = |site: &Site, now| (site.sites(now), site.hosts(now));
        let (sites, hosts) = self.gate.look(look).await?;
        let spec = loaded.spec;
        let sites = sites.into_iter().map(|site| SitePlan {
            blocks: site.profile.as_ref().map_or_else(
                || vec!["has not said what it offers yet".to_owned()],
                |profile| blocks(&spec, profile, site.own),
            ),
            site: site.name,
        });
        let hosts = hosts.into_iter().filter(|host| !host.own).map(|host| SitePlan {
            blocks: host.offers.as_ref().map_or_else(
                || vec!["has not said what it offers yet".to_owned()],
                |offers| misfits(&spec, Level::S0, std::slice::from_ref(offers)),
            ),
            site: host.name,
        });
        let sites = sites.chain(hosts).collect();
        let files = loaded.inputs.into_iter().map(|file| FilePlan {
            bytes: fs::metadata(&file.source).map_or(0, |about| about.len()),
            path: file.source,
        });
        let steps = spec.steps.iter().map(|step| StepPlan {
            name: step.name.clone(),
            tasks: step.labels.clone(),
            requires: requires(&step.requirement),
        });
        Ok(DryRun {
            name: spec.name.clone(),
            place: spec.policy.place.clone(),
            steps: steps.collect(),
            files: files.collect(),
            outputs: loaded.outputs.into_iter().map(|(_, folder)| folder).collect(),
            sites,
            warnings: loaded.warnings,
        })
    }

    async fn give_ticket(&self, invite: Invite) -> Result<Invited, Problem> {
        let body = self.mesh_for(&invite).await?;
        let secret: [u8; 32] = self.means.machine.random();
        let expires = self.means.machine.clock.now().plus(invite.expires_in);
        let addresses = self.means.net.listen_addresses().await;
        let ask = Ask::Invite {
            mesh: body.mesh,
            mesh_name: body.mesh_name.clone(),
            secret_hash: seal::content_hash(&secret),
            role: invite.role,
            uses: invite.uses,
            expires,
        };
        let reply = self.gate.ask(ask).await?;
        let Reply::Changed(uses) = reply else {
            return Err(refused(reply));
        };
        let ticket = Ticket {
            mesh: body.mesh,
            mesh_name: body.mesh_name.clone(),
            authority: self.means.me,
            addresses: addresses.iter().take(16).map(ToString::to_string).collect(),
            role: invite.role,
            expires,
            secret,
        };
        let (mesh_name, role) = (body.mesh_name, invite.role);
        Ok(Invited { ticket: ticket.to_text(), mesh_name, role, uses, expires })
    }

    async fn use_ticket(&self, join: Join) -> Result<MeshView, Problem> {
        let ticket = Ticket::from_text(&join.ticket);
        let ticket = ticket.map_err(|error| Problem::bad_input(error.to_string()))?;
        let name = join.name.unwrap_or_else(|| self.name.clone());
        if !is_name(&name) {
            return Err(mesh_problem(MeshError::Name(name)));
        }
        if ticket.role == Role::Host {
            self.may_serve().await?;
        } else {
            self.meshes.may_join().map_err(mesh_problem)?;
        }
        let now = self.means.machine.clock.now();
        let valid = |body: &CertificateBody| body.mesh == ticket.mesh && body.expires > now;
        if self.meshes.bodies().iter().any(valid) {
            return Err(mesh_problem(MeshError::Exists(ticket.mesh_name)));
        }
        let joined = self.means.net.join(&ticket, &name).await;
        let certificate = joined.map_err(|error| Problem::refused(causes(&error)))?;
        let body = certificate.open().map_err(|error| Problem::broken(&error))?;
        if body.role != ticket.role {
            return Err(Problem::refused("the certificate that came back is for another role"));
        }
        let mesh = self.meshes.add(&certificate).map_err(mesh_problem)?;
        // Before the first connection as a host, so that the head's is the first offer that counts.
        if let Some(head) = body.head() {
            self.gate.ask(Ask::Serve(head)).await?;
        }
        self.gate.ask(Ask::Submitter(self.meshes.is_submitter())).await?;
        self.means.net.add_mesh(mesh, certificate.clone()).await;
        Ok(self.mesh_view(&body))
    }

    async fn found_mesh(&self, name: String) -> Result<MeshView, Problem> {
        let created = self.meshes.create(&name, (self.means.me, &self.name), &self.means.machine);
        let (mesh, certificate) = created.map_err(mesh_problem)?;
        self.gate.ask(Ask::Submitter(self.meshes.is_submitter())).await?;
        self.means.net.add_mesh(mesh, certificate.clone()).await;
        let body = certificate.open().map_err(|error| Problem::broken(&error))?;
        Ok(self.mesh_view(&body))
    }

    fn mesh_view(&self, body: &CertificateBody) -> MeshView {
        MeshView {
            mesh: body.mesh,
            name: body.mesh_name.clone(),
            site_name: body.name.clone(),
            role: body.role,
            expires: body.expires,
            founder: self.meshes.root(body).is_ok(),
        }
    }

    async fn read_log(&self, attempt: AttemptId, offset: u64) -> Result<LogPart, Problem> {
        let logs = Arc::clone(&self.logs);
        // Whether it is whole is looked at first: what comes in between is not missed.
        let read = move || (logs.is_whole(attempt), logs.read(attempt, offset, LOG_PIECE));
        let (whole, bytes) = self.means.machine.block(read).await.ok_or_else(panicked)?;
        let bytes = bytes.map_err(|error| Problem::broken(&error))?;
        let bytes = bytes.ok_or_else(|| Problem::not_found("this attempt has no log yet"))?;
        Ok(LogPart { ended: bytes.is_empty() && whole, bytes })
    }

    async fn figures(&self) -> Result<Transfers, Problem> {
        let now = self.means.machine.clock.now();
        let (jobs, sites) = (self.means.meter.jobs(now), self.means.meter.sites(now));
        let ids: BTreeSet<_> = sites.keys().chain(jobs.values().flat_map(BTreeMap::keys)).collect();
        let ids: Vec<SiteId> = ids.into_iter().copied().collect();
        let names: BTreeMap<SiteId, String> = self
            .gate
            .look(move |core, _| ids.into_iter().map(|site| (site, core.name_of(site))).collect())
            .await?;
        let bytes = |(site, moved): (SiteId, Moved)| SiteBytes {
            site,
            name: names.get(&site).cloned().unwrap_or_else(|| site.short()),
            sent: moved.sent,
            received: moved.received,
            sending: moved.sending,
            receiving: moved.receiving,
            left: moved.left,
            asked: moved.asked,
            trips: moved.trips,
        };
        let jobs = jobs.into_iter().map(|(job, peers)| {
            let sum = |of: fn(&Moved) -> u64| peers.values().map(of).sum::<u64>();
            let (sent, left, sending) = (sum(|m| m.sent), sum(|m| m.left), sum(|m| m.sending));
            JobBytes {
                job,
                sent,
                wanted: (left > 0).then_some(sent + left),
                received: sum(|m| m.received),
                sending,
                receiving: sum(|m| m.receiving),
                seconds_left: (left > 0).then(|| left.checked_div(sending)).flatten(),
                peers: peers.into_iter().map(bytes).collect(),
            }
        });
        Ok(Transfers { jobs: jobs.collect(), sites: sites.into_iter().map(bytes).collect() })
    }

    async fn folders(&self, job: JobId) -> Result<Outputs, Problem> {
        let layout = self.gate.look(move |site, _| site.layout(job)).await?;
        let layout = layout.ok_or_else(|| Problem::not_found(format!("no job {job}")))?;
        let outputs = layout.roots.into_iter().filter(|root| root.access == Access::Out);
        Ok(Outputs { folders: outputs.map(|root| PathBuf::from(root.source)).collect() })
    }

    async fn own_profile(&self) -> Result<Profile, Problem> {
        let sites = self.gate.look(|site, now| site.sites(now)).await?;
        let own = sites.into_iter().find(|site| site.own).and_then(|site| site.profile);
        own.ok_or_else(|| Problem::not_found("this site offers nothing"))
    }

    async fn examine(&self) -> Result<Examination, Problem> {
        let (home, status) = (self.home.clone(), self.status_now().await);
        let slots = self.gate.look(|site, _| site.slots()).await?;
        let look = move || doctor::examine(&home, &Node.look(&home), Some(&status), Some(&slots));
        self.means.machine.block(look).await.ok_or_else(panicked)
    }
}

impl Backend for NodeBackend {
    fn submit(&self, submit: Submit, progress: mpsc::Sender<Progress>) -> Answer<'_, Submitted> {
        self.take_in(submit, progress).boxed()
    }

    fn dry_run(&self, submit: Submit) -> Answer<'_, DryRun> {
        self.try_on(submit).boxed()
    }

    fn log(&self, attempt: AttemptId, offset: u64) -> Answer<'_, LogPart> {
        self.read_log(attempt, offset).boxed()
    }

    fn outputs(&self, job: JobId) -> Answer<'_, Outputs> {
        self.folders(job).boxed()
    }

    fn transfers(&self) -> Answer<'_, Transfers> {
        self.figures().boxed()
    }

    fn mesh_create(&self, name: String) -> Answer<'_, MeshView> {
        self.found_mesh(name).boxed()
    }

    fn meshes(&self) -> Answer<'_, Vec<MeshView>> {
        async { Ok(self.meshes.bodies().iter().map(|body| self.mesh_view(body)).collect()) }.boxed()
    }

    fn invite(&self, invite: Invite) -> Answer<'_, Invited> {
        self.give_ticket(invite).boxed()
    }

    fn join(&self, join: Join) -> Answer<'_, MeshView> {
        self.use_ticket(join).boxed()
    }

    fn backup(&self, backup: Backup) -> Answer<'_, BackedUp> {
        self.save(backup).boxed()
    }

    fn profile(&self) -> Answer<'_, Profile> {
        self.own_profile().boxed()
    }

    fn doctor(&self) -> Answer<'_, Examination> {
        self.examine().boxed()
    }

    fn can_retry(&self, job: JobId) -> Answer<'_, ()> {
        self.check_content(job).boxed()
    }

    fn store(&self) -> Answer<'_, StoreStat> {
        self.store_stat().boxed()
    }

    fn store_verify(
        &self,
        verify: Verify,
        progress: mpsc::Sender<Progress>,
    ) -> Answer<'_, StoreVerified> {
        self.verify(verify, progress).boxed()
    }

    fn store_collect(&self, collect: Collect) -> Answer<'_, StoreCollected> {
        self.collect(collect).boxed()
    }

    fn statement(&self, ask: StatementAsk) -> Answer<'_, Statement> {
        self.sum_up(ask).boxed()
    }

    fn disputes(&self) -> Answer<'_, Vec<Dispute>> {
        self.contested().boxed()
    }

    fn ledger_export(&self, lines: mpsc::Sender<LedgerLine>) -> Answer<'_, ()> {
        self.export(lines).boxed()
    }

    fn status(&self) -> Answer<'_, Status> {
        async { Ok(self.status_now().await) }.boxed()
    }
}

/// The submission in the words of the bundle room. A tar archive is unpacked beside itself first, because
/// what its template names relative to itself must be somewhere.
fn request(submit: Submit) -> Result<SubmitRequest, Problem> {
    let mut source = PathBuf::from(&submit.source);
    if source.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("tar")) {
        source = unpacked(&submit.folder.join(source))?;
    }
    let policy = PolicyChanges {
        place: submit.place,
        priority: submit.priority,
        retries: submit.retries,
        max_failed_tasks: submit.max_failed_tasks,
        timeout: submit.timeout.map(job_bundle::Duration),
        silence: submit.silence.map(job_bundle::Duration),
        deadline: submit.deadline,
        hops: submit.hops,
        order: submit.order,
        max_price: submit.max_price,
        budget: submit.budget,
        ..PolicyChanges::default()
    };
    let parameters = submit.parameters.into_iter().map(|(name, value)| format!("{name}={value}"));
    Ok(SubmitRequest {
        source,
        cwd: submit.folder,
        parameters: parameters.chain(submit.arguments).collect(),
        frames: submit.frames,
        resolution: submit.resolution.map(|(width, height)| format!("{width}x{height}")),
        output: submit.output,
        inputs: submit.inputs,
        environments: submit.environments,
        path_mapping: submit.path_mapping,
        policy,
        user: submit.user,
    })
}

/// Unpack `NAME.tar` to the folder `NAME` beside it, which must not exist yet.
fn unpacked(archive: &Path) -> Result<PathBuf, Problem> {
    let folder = archive.with_extension("");
    fs::create_dir(&folder).map_err(|error| {
        let text = format!("cannot unpack {} to {}: {error}", archive.display(), folder.display());
        Problem::bad_input(text).with_help("move the folder away, or submit the folder itself")
    })?;
    if let Err(error) = archive::unpack(archive, &folder) {
        drop(fs::remove_dir_all(&folder));
        return Err(Problem::bad_input(causes(&error)));
    }
    // An archive of one folder is that folder.
    let mut entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    match (entries.next(), entries.next()) {
        (Some(only), None) if only.path().is_dir() => Ok(only.path()),
        _ => Ok(folder),
    }
}

/// What keeps a site from running a job, one line each.
fn blocks(spec: &JobSpec, profile: &Profile, own: bool) -> Vec<String> {
    let floor = if own { Level::S0 } else { spec.policy.isolation };
    let slots = profile.hosts.iter().map(|host| host.slots).sum::<u32>();
    let mut blocks = Vec::new();
    if slots == 0 {
        blocks.push("has no slots".to_owned());
    } else if !own && !profile.lending {
        blocks.push("does not lend".to_owned());
    }
    blocks.extend(misfits(spec, floor, &profile.hosts));
    blocks
}

/// What machines lack for a job, one line each: of each step, what that one lacks that lacks least.
fn misfits(spec: &JobSpec, floor: Level, hosts: &[HostClass]) -> Vec<String> {
    let mut blocks = Vec::new();
    for step in &spec.steps {
        let misfits = |host: &HostClass| fit(&step.requirement, floor, host);
        let least = hosts.iter().map(misfits).min_by_key(Vec::len);
        for misfit in least.unwrap_or_default() {
            blocks.push(format!("{}: {misfit}", step.name));
        }
    }
    blocks
}

/// A requirement, one line for each thing that is asked.
fn requires(requirement: &Requirement) -> Vec<String> {
    let amounts = requirement.amounts.iter().map(|(name, need)| {
        let most = need.max.map_or_else(String::new, |max| format!(" and at most {max}"));
        format!("{name}: at least {}{most}", need.min)
    });
    let attributes = requirement.attributes.iter().map(|(name, need)| {
        let any: Vec<_> = need.any_of.iter().map(String::as_str).collect();
        let all: Vec<_> = need.all_of.iter().map(String::as_str).collect();
        match (any.is_empty(), all.is_empty()) {
            (false, true) => format!("{name}: one of {}", any.join(", ")),
            (_, false) if any.is_empty() => format!("{name}: all of {}", all.join(", ")),
            _ => format!("{name}: one of {}, and all of {}", any.join(", "), all.join(", ")),
        }
    });
    amounts.chain(attributes).collect()
}

fn refused(reply: Reply) -> Problem {
    match reply {
        Reply::Refused(reason) => Problem::refused(reason),
        Reply::Submitted(_) | Reply::Changed(_) => Problem::refused("the node answered oddly"),
    }
}

fn mesh_problem(error: MeshError) -> Problem {
    match error {
        MeshError::Name(_) => Problem::bad_input(causes(&error)),
        MeshError::Unknown(_) | MeshError::None => Problem::not_found(causes(&error)),
        MeshError::Exists(_)
        | MeshError::Which(_)
        | MeshError::NotFounder(_)
        | MeshError::IsHost(_)
        | MeshError::IsSite(_) => Problem::refused(causes(&error)),
        MeshError::Certificate(_) | MeshError::Identity(_) | MeshError::Store(_) => {
            Problem::broken(&error)
        }
    }
}

fn panicked() -> Problem {
    Problem::refused("a thread of this node ended unexpectedly; its log says why")
}
