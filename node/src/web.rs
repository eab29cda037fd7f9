//! The local API: HTTP routes over a Unix socket that belongs to the node's owner.
//!
//! Whatever the core decides or shows goes through the [`Gate`]; whatever else a node does for people is
//! asked of its [`Backend`]. Every error is a problem document, and a request that ends in one has changed
//! nothing.

use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::future::BoxFuture;
use futures::{Stream, StreamExt, stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use meshfarm_core::{Ask, Explained, JobView, LedgerView, Operation, Reply, SiteOperation};
use meshfarm_protocol::id::{AttemptId, JobId, SiteId, StepNo, TaskNo};
use meshfarm_protocol::profile::Profile;

use crate::api::{
    BackedUp, Backup, Changed, Collect, Dispute, DryRun, Examination, Invite, Invited, Join,
    LedgerLine, LogPart, MeshCreate, MeshView, Outputs, Problem, Progress, SetHost, Statement,
    StatementAsk, Status, StoreCollected, StoreStat, StoreVerified, Submit, SubmitLine, Submitted,
    Transfers, Verify, VerifyLine,
};
use crate::gate::{Gate, Stopping};

/// Media type of problem documents.
pub const PROBLEM: &str = "application/problem+json";

/// Media type of streams of JSON lines.
pub const LINES: &str = "application/x-ndjson";

/// Header of an answer with a piece of a log: `true` when nothing will be added to the log any more.
pub const LOG_ENDED: &str = "x-meshfarm-log-ended";

/// A longer body of a request is refused, in bytes. A submission names files; it does not carry them.
const MAX_BODY: usize = 4 << 20;

/// So many progress lines wait for a slow reader; what submits then waits too.
const PROGRESS: usize = 16;

/// The answer to a call of the backend.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Problem>>;

/// What a node does for people beyond the decisions of its core. A dropped call changes nothing, or all of
/// what it was asked for.
pub trait Backend: Send + Sync + 'static {
    /// Take a job: load it, store its content, queue it. Progress may be dropped when nobody reads it.
    fn submit(&self, submit: Submit, progress: mpsc::Sender<Progress>) -> Answer<'_, Submitted>;
    /// Say what a submission would be.
    fn dry_run(&self, submit: Submit) -> Answer<'_, DryRun>;
    /// A piece of the log of an attempt, from `offset` on, in bytes.
    fn log(&self, attempt: AttemptId, offset: u64) -> Answer<'_, LogPart>;
    /// Folders that a job's outputs go to.
    fn outputs(&self, job: JobId) -> Answer<'_, Outputs>;
    /// Bytes moved.
    fn transfers(&self) -> Answer<'_, Transfers>;
    /// Found a mesh.
    fn mesh_create(&self, name: String) -> Answer<'_, MeshView>;
    /// Every mesh that the site belongs to.
    fn meshes(&self) -> Answer<'_, Vec<MeshView>>;
    /// Make a ticket.
    fn invite(&self, invite: Invite) -> Answer<'_, Invited>;
    /// Use a ticket.
    fn join(&self, join: Join) -> Answer<'_, MeshView>;
    /// Write a backup of the home.
    fn backup(&self, backup: Backup) -> Answer<'_, BackedUp>;
    /// What the site tells the mesh.
    fn profile(&self) -> Answer<'_, Profile>;
    /// What the machine is fit for.
    fn doctor(&self) -> Answer<'_, Examination>;
    /// Whether a job's content is here whole, so that its tasks can be rendered again.
    fn can_retry(&self, job: JobId) -> Answer<'_, ()>;
    /// What is in the store of chunks.
    fn store(&self) -> Answer<'_, StoreStat>;
    /// Look at every chunk. Progress may be dropped when nobody reads it; when the reader is gone it stops.
    fn store_verify(
        &self,
        verify: Verify,
        progress: mpsc::Sender<Progress>,
    ) -> Answer<'_, StoreVerified>;
    /// Remove what nobody uses.
    fn store_collect(&self, collect: Collect) -> Answer<'_, StoreCollected>;
    /// What was used and is owed in a span of time.
    fn statement(&self, ask: StatementAsk) -> Answer<'_, Statement>;
    /// Receipts that their borrowers contest.
    fn disputes(&self) -> Answer<'_, Vec<Dispute>>;
    /// Every receipt with both signatures. It stops when nobody reads the lines.
    fn ledger_export(&self, lines: mpsc::Sender<LedgerLine>) -> Answer<'_, ()>;
    /// The node itself.
    fn status(&self) -> Answer<'_, Status>;
}

/// What the routes work on.
#[derive(Clone)]
struct Node {
    gate: Gate,
    backend: Arc<dyn Backend>,
    /// Ends the event streams, which would keep the server from ending.
    stopping: CancellationToken,
}

/// Listen on `socket`, for its owner only. A socket that a dead node left is replaced; the caller holds
/// the home, so no living one has it.
///
/// # Errors
/// When the system refuses.
pub fn bind(socket: &FilePath) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answer requests until `stop` comes; then open event streams end, and requests under way are answered.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: UnixListener,
    gate: Gate,
    backend: Arc<dyn Backend>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let stopping = CancellationToken::new();
    let node = Node { gate, backend, stopping: stopping.clone() };
    let stop = async move {
        stop.await;
        stopping.cancel();
    };
    axum::serve(listener, routes(node)).with_graceful_shutdown(stop).await
}

fn routes(node: Node) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/doctor", get(doctor))
        .route("/v1/profile", get(profile))
        .route("/v1/jobs", get(jobs).post(submit))
        .route("/v1/jobs/dry-run", post(dry_run))
        .route("/v1/jobs/{job}", get(job))
        .route("/v1/jobs/{job}/outputs", get(outputs))
        .route("/v1/jobs/{job}/operations", post(operate))
        .route("/v1/operations", post(operate_site))
        .route("/v1/jobs/{job}/explain", get(explain))
        .route("/v1/attempts/{attempt}/log", get(log))
        .route("/v1/transfers", get(transfers))
        .route("/v1/sites", get(sites))
        .route("/v1/slots", get(slots))
        .route("/v1/hosts", get(hosts))
        .route("/v1/backup", post(backup))
        .route("/v1/hosts/{host}", post(set_host))
        .route("/v1/meshes", get(meshes).post(mesh_create))
        .route("/v1/invitations", post(invite))
        .route("/v1/memberships", post(join))
        .route("/v1/store", get(store))
        .route("/v1/store/verify", post(store_verify))
        .route("/v1/store/gc", post(store_collect))
        .route("/v1/ledger", get(ledger))
        .route("/v1/ledger/statement", get(statement))
        .route("/v1/ledger/disputes", get(disputes))
        .route("/v1/ledger/export", get(ledger_export))
        .route("/v1/events", get(events))
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .with_state(node)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, PROBLEM)], body).into_response()
    }
}

impl From<Stopping> for Problem {
    fn from(_: Stopping) -> Self {
        Self::stopping()
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_input(rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_input(rejection.body_text())
    }
}

/// JSON in and out, with problem documents for what does not parse.
struct Json<T>(T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection: BytesRejection| Problem::bad_input(rejection.body_text()))?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| Problem::bad_input(format!("the body of the request: {error}")))
    }
}

type Result<T, E = Problem> = std::result::Result<T, E>;
type Named = Result<Path<String>, PathRejection>;

async fn nowhere(request: Request) -> Problem {
    Problem::not_found(format!("this node has no {}", request.uri().path()))
        .with_help("the node and the command line may be of different versions: restart the node")
}

async fn wrong_method(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    let mut problem = Problem::bad_input(format!("{path} does not take {method}"));
    problem.status = 405;
    problem
}

async fn status(State(node): State<Node>) -> Result<Json<Status>> {
    node.backend.status().await.map(Json)
}

async fn doctor(State(node): State<Node>) -> Result<Json<Examination>> {
    node.backend.doctor().await.map(Json)
}

async fn profile(State(node): State<Node>) -> Result<Json<Profile>> {
    node.backend.profile().await.map(Json)
}

async fn transfers(State(node): State<Node>) -> Result<Json<Transfers>> {
    node.backend.transfers().await.map(Json)
}

async fn jobs(State(node): State<Node>) -> Result<Json<Vec<JobView>>> {
    Ok(Json(node.gate.look(|site, _now| site.jobs()).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    /// Without steps and tasks.
    #[serde(default)]
    brief: bool,
}

async fn job(
    State(node): State<Node>,
    name: Named,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<JobView>> {
    let (Path(name), Query(which)) = (name?, which?);
    let head = find_job(&node.gate, &name).await?;
    if which.brief {
        return Ok(Json(head));
    }
    let id = head.job;
    let view = node.gate.look(move |site, now| site.job(id, now)).await?;
    view.map(Json).ok_or_else(|| no_job(&name))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneTask {
    /// The step of the task; both or none.
    step: Option<u32>,
    /// The task.
    task: Option<u32>,
}

async fn explain(
    State(node): State<Node>,
    name: Named,
    which: Result<Query<OneTask>, QueryRejection>,
) -> Result<Json<Explained>> {
    let (Path(name), Query(which)) = (name?, which?);
    let task = match (which.step, which.task) {
        (Some(step), Some(task)) => Some((StepNo(step), TaskNo(task))),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Problem::bad_input("a step and a task name a task together"));
        }
    };
    let id = find_job(&node.gate, &name).await?.job;
    let explained = node.gate.look(move |site, now| site.explain(id, task, now)).await?;
    explained.map(Json).ok_or_else(|| {
        let detail = format!("job {name} has no such task");
        Problem::not_found(detail).with_help(format!("list them: meshfarm job {name}"))
    })
}

fn no_job(name: &str) -> Problem {
    Problem::not_found(format!("there is no job {name}")).with_help("list them: meshfarm jobs")
}

/// The job whose id is `name`, or whose id alone begins with it.
async fn find_job(gate: &Gate, name: &str) -> Result<JobView> {
    let wanted = name.to_ascii_lowercase();
    if wanted.is_empty() || !wanted.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let detail = format!("{name:?} is no job id: hexadecimal digits are wanted");
        return Err(Problem::bad_input(detail).with_help("list them: meshfarm jobs"));
    }
    let begins = move |job: &JobView| job.job.to_string().starts_with(&wanted);
    let mut found = gate
        .look(move |site, _now| site.jobs().into_iter().filter(begins).take(8).collect::<Vec<_>>())
        .await?;
    match (found.pop(), found.len()) {
        (None, _) => Err(no_job(name)),
        (Some(job), 0) => Ok(job),
        (Some(last), _) => {
            found.push(last);
            let ids: Vec<_> = found.iter().map(|job| job.job.to_string()).collect();
            let detail = format!("{name} begins the ids of several jobs: {}", ids.join(", "));
            Err(Problem::bad_input(detail).with_help("write more digits of the id"))
        }
    }
}

async fn outputs(State(node): State<Node>, name: Named) -> Result<Json<Outputs>> {
    let job = find_job(&node.gate, &name?.0).await?;
    node.backend.outputs(job.job).await.map(Json)
}

async fn operate(
    State(node): State<Node>,
    name: Named,
    Json(operation): Json<Operation>,
) -> Result<Json<Changed>> {
    let job = find_job(&node.gate, &name?.0).await?.job;
    if matches!(operation, Operation::Retry { .. }) {
        node.backend.can_retry(job).await?;
    }
    decide(&node.gate, Ask::Operate { job, operation }).await
}

async fn operate_site(
    State(node): State<Node>,
    Json(operation): Json<SiteOperation>,
) -> Result<Json<Changed>> {
    decide(&node.gate, Ask::OperateSite(operation)).await
}

async fn decide(gate: &Gate, ask: Ask) -> Result<Json<Changed>> {
    match gate.ask(ask).await? {
        Reply::Changed(tasks) => Ok(Json(Changed { tasks })),
        Reply::Submitted(_) => Ok(Json(Changed { tasks: 0 })),
        Reply::Refused(reason) => Err(Problem::refused(reason)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    /// In bytes.
    #[serde(default)]
    offset: u64,
}

async fn log(
    State(node): State<Node>,
    attempt: Named,
    from: Result<Query<Since>, QueryRejection>,
) -> Result<Response> {
    let (Path(attempt), Query(from)) = (attempt?, from?);
    let attempt: AttemptId = attempt
        .parse()
        .map_err(|error| Problem::bad_input(format!("attempt {attempt:?}: {error}")))?;
    let part = node.backend.log(attempt, from.offset).await?;
    let ended = HeaderValue::from_static(if part.ended { "true" } else { "false" });
    let mut response = part.bytes.into_response();
    response.headers_mut().insert(LOG_ENDED, ended);
    Ok(response)
}

async fn sites(State(node): State<Node>) -> Result<Response> {
    Ok(Json(node.gate.look(|site, now| site.sites(now)).await?).into_response())
}

async fn slots(State(node): State<Node>) -> Result<Response> {
    Ok(Json(node.gate.look(|site, _now| site.slots()).await?).into_response())
}

async fn backup(State(node): State<Node>, Json(backup): Json<Backup>) -> Result<Json<BackedUp>> {
    if !backup.file.is_absolute() {
        return Err(Problem::bad_input("the path of a backup is absolute"));
    }
    node.backend.backup(backup).await.map(Json)
}

async fn hosts(State(node): State<Node>) -> Result<Response> {
    Ok(Json(node.gate.look(|site, now| site.hosts(now)).await?).into_response())
}

async fn set_host(
    State(node): State<Node>,
    host: Named,
    Json(set): Json<SetHost>,
) -> Result<Json<Changed>> {
    let Path(host) = host?;
    let host: SiteId =
        host.parse().map_err(|error| Problem::bad_input(format!("host {host:?}: {error}")))?;
    decide(&node.gate, Ask::Host(host, set.mode)).await
}

async fn meshes(State(node): State<Node>) -> Result<Json<Vec<MeshView>>> {
    node.backend.meshes().await.map(Json)
}

async fn mesh_create(
    State(node): State<Node>,
    Json(create): Json<MeshCreate>,
) -> Result<Json<MeshView>> {
    if !meshfarm_protocol::membership::is_name(&create.name) {
        return Err(Problem::bad_input(crate::config::bad_name(&create.name)));
    }
    node.backend.mesh_create(create.name).await.map(Json)
}

async fn invite(State(node): State<Node>, Json(invite): Json<Invite>) -> Result<Json<Invited>> {
    if invite.uses == 0 {
        return Err(Problem::bad_input("--uses 0: a ticket is for at least one site"));
    }
    node.backend.invite(invite).await.map(Json)
}

async fn join(State(node): State<Node>, Json(join): Json<Join>) -> Result<Json<MeshView>> {
    if let Some(name) = &join.name
        && !meshfarm_protocol::membership::is_name(name)
    {
        return Err(Problem::bad_input(crate::config::bad_name(name)));
    }
    node.backend.join(join).await.map(Json)
}

async fn dry_run(State(node): State<Node>, Json(submit): Json<Submit>) -> Result<Json<DryRun>> {
    node.backend.dry_run(submit).await.map(Json)
}

async fn ledger(State(node): State<Node>) -> Result<Json<LedgerView>> {
    Ok(Json(node.gate.look(|site, now| site.ledger(now)).await?))
}

async fn statement(
    State(node): State<Node>,
    ask: Result<Query<StatementAsk>, QueryRejection>,
) -> Result<Json<Statement>> {
    node.backend.statement(ask?.0).await.map(Json)
}

async fn disputes(State(node): State<Node>) -> Result<Json<Vec<Dispute>>> {
    node.backend.disputes().await.map(Json)
}

/// An export that breaks off has no last line, which is how its reader knows.
async fn ledger_export(State(node): State<Node>) -> Response {
    let (line_tx, line_rx) = mpsc::channel(PROGRESS);
    tokio::spawn(async move {
        if let Err(problem) = node.backend.ledger_export(line_tx).await {
            tracing::error!(%problem, "the export of the ledger broke off");
        }
    });
    lines(receive(line_rx))
}

async fn store(State(node): State<Node>) -> Result<Json<StoreStat>> {
    node.backend.store().await.map(Json)
}

async fn store_collect(
    State(node): State<Node>,
    Json(collect): Json<Collect>,
) -> Result<Json<StoreCollected>> {
    node.backend.store_collect(collect).await.map(Json)
}

async fn store_verify(State(node): State<Node>, Json(verify): Json<Verify>) -> Response {
    let (progress_tx, progress_rx) = mpsc::channel(PROGRESS);
    let (line_tx, line_rx) = mpsc::channel(1);
    tokio::spawn(async move {
        let line = match node.backend.store_verify(verify, progress_tx).await {
            Ok(verified) => VerifyLine::Verified(verified),
            Err(problem) => VerifyLine::Problem(problem),
        };
        if line_tx.send(line).await.is_err() {
            tracing::debug!("nobody waited for the end of a verification");
        }
    });
    let progress = receive(progress_rx).map(VerifyLine::Progress);
    lines(progress.chain(receive(line_rx)))
}

async fn submit(State(node): State<Node>, Json(submit): Json<Submit>) -> Response {
    let (progress_tx, progress_rx) = mpsc::channel(PROGRESS);
    let (line_tx, line_rx) = mpsc::channel(1);
    // A task of its own: a reader that hangs up stops neither the submission nor its answer to the log.
    tokio::spawn(async move {
        let line = match node.backend.submit(submit, progress_tx).await {
            Ok(submitted) => SubmitLine::Submitted(submitted),
            Err(problem) => SubmitLine::Problem(problem),
        };
        if line_tx.send(line).await.is_err() {
            tracing::debug!("nobody waited for the end of a submission");
        }
    });
    // The progress channel closes before the last line is sent, so the order is right.
    let progress = receive(progress_rx).map(SubmitLine::Progress);
    lines(progress.chain(receive(line_rx)))
}

fn receive<T>(rx: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(rx, |mut rx| async { rx.recv().await.map(|item| (item, rx)) })
}

fn lines<T: Serialize>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    let bytes = items.map(|item| {
        let mut line = serde_json::to_vec(&item).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(line)
    });
    let content = [(header::CONTENT_TYPE, LINES)];
    (content, Body::from_stream(bytes)).into_response()
}

/// Said in the event stream in place of events that were too many for a slow listener.
#[derive(Serialize)]
struct Missed {
    event: &'static str,
    missed: u64,
}

async fn events(State(node): State<Node>) -> Response {
    let rx = node.gate.events();
    let items = stream::unfold(rx, |mut rx| async {
        let value = match rx.recv().await {
            Ok(happened) => serde_json::to_value(&*happened),
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                serde_json::to_value(Missed { event: "missed", missed })
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some((value.unwrap_or_default(), rx))
    });
    lines(items.take_until(node.stopping.cancelled_owned()))
}
