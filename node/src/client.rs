//! The command line's side of the local API: HTTP over the node's Unix socket.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use meshfarm_core::{
    Explained, HostView, JobView, LedgerView, Operation, SiteOperation, SiteView, SlotsView,
};
use meshfarm_protocol::id::{AttemptId, JobId, SiteId, StepNo, TaskNo};
use meshfarm_protocol::profile::Profile;

use crate::api::{
    BackedUp, Backup, By, Changed, Collect, Dispute, DryRun, Invite, Invited, Join, LogPart,
    MeshCreate, MeshView, Outputs, Problem, SetHost, Statement, StatementAsk, Status,
    StoreCollected, StoreStat, StoreVerified, Submit, SubmitLine, Submitted, Transfers, Verify,
    VerifyLine, causes,
};
use crate::web::LOG_ENDED;

/// A longer answer of the node is refused, in bytes: a million tasks with labels fit.
const MAX_ANSWER: usize = 1 << 30;

/// A longer line of a stream is refused, in bytes.
const MAX_LINE: usize = 16 << 20;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket. Nothing was changed.
    #[error("no node is running on the home {}", .home.display())]
    NotReachable {
        /// The home.
        home: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The node refused. Nothing was changed.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The node went away while it answered, or does not speak our language. Look before asking again.
    #[error("the node's answer broke off: {0}")]
    Broken(String),
}

/// The local API of one node. Every call opens a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

type Result<T, E = ClientError> = std::result::Result<T, E>;

fn broken(error: &dyn std::error::Error) -> ClientError {
    ClientError::Broken(causes(error))
}

impl Client {
    /// The node whose API listens on `socket`. Nothing is opened yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let home = self.socket.parent().map(Path::to_owned).unwrap_or_default();
            ClientError::NotReachable { home, source }
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(&e))?;
        tokio::spawn(async move {
            // The error reaches the caller through its own request.
            drop(connection.await);
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "meshfarm")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| broken(&e))?;
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = collect(response).await?;
        let problem = serde_json::from_slice::<Problem>(&bytes)
            .map_err(|_other| ClientError::Broken(format!("it says {status} without a reason")))?;
        Err(problem.into())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parse(&collect(self.send(Method::GET, path, Vec::new()).await?).await?)
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|e| broken(&e))?;
        parse(&collect(self.send(Method::POST, path, body).await?).await?)
    }

    /// The node itself.
    ///
    /// # Errors
    /// When there is no answer, as with every call here.
    pub async fn status(&self) -> Result<Status> {
        self.get("/v1/status").await
    }

    /// What the site tells the mesh.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn profile(&self) -> Result<Profile> {
        self.get("/v1/profile").await
    }

    /// Every job, the newest first, without steps.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn jobs(&self) -> Result<Vec<JobView>> {
        self.get("/v1/jobs").await
    }

    /// The job whose id begins with `name`; without steps when `brief`.
    ///
    /// # Errors
    /// When there is no answer, no such job, or more than one.
    pub async fn job(&self, name: &str, brief: bool) -> Result<JobView> {
        let name = check_id(name)?;
        self.get(&format!("/v1/jobs/{name}?brief={brief}")).await
    }

    /// Why the tasks of a job wait, or one of them.
    ///
    /// # Errors
    /// When there is no answer, no such job, or no such task.
    pub async fn explain(&self, job: JobId, task: Option<(StepNo, TaskNo)>) -> Result<Explained> {
        let which = task.map(|(step, task)| format!("?step={}&task={}", step.0, task.0));
        self.get(&format!("/v1/jobs/{job}/explain{}", which.unwrap_or_default())).await
    }

    /// Folders that a job's outputs go to.
    ///
    /// # Errors
    /// When there is no answer or no such job.
    pub async fn outputs(&self, job: JobId) -> Result<Outputs> {
        self.get(&format!("/v1/jobs/{job}/outputs")).await
    }

    /// Do something to a job or to tasks of it.
    ///
    /// # Errors
    /// When there is no answer, no such job or task, or as things stand it cannot be done.
    pub async fn operate(&self, job: JobId, operation: &Operation) -> Result<Changed> {
        self.post(&format!("/v1/jobs/{job}/operations"), operation).await
    }

    /// Do something to the site itself.
    ///
    /// # Errors
    /// When there is no answer, or no such site.
    pub async fn operate_site(&self, operation: &SiteOperation) -> Result<Changed> {
        self.post("/v1/operations", operation).await
    }

    /// A piece of the log of an attempt, from `offset` on, in bytes.
    ///
    /// # Errors
    /// When there is no answer or no such log.
    pub async fn log(&self, attempt: AttemptId, offset: u64) -> Result<LogPart> {
        let path = format!("/v1/attempts/{attempt}/log?offset={offset}");
        let response = self.send(Method::GET, &path, Vec::new()).await?;
        let ended = response.headers().get(LOG_ENDED).is_some_and(|value| value == "true");
        let bytes = collect(response).await?;
        Ok(LogPart { bytes: bytes.into(), ended })
    }

    /// Bytes moved.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn transfers(&self) -> Result<Transfers> {
        self.get("/v1/transfers").await
    }

    /// Our site and every other that it knows.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn sites(&self) -> Result<Vec<SiteView>> {
        self.get("/v1/sites").await
    }

    /// Write a backup of the node's home.
    ///
    /// # Errors
    /// When there is no answer, or it was not written.
    pub async fn backup(&self, backup: &Backup) -> Result<BackedUp> {
        self.post("/v1/backup", backup).await
    }

    /// The machines of our site.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn hosts(&self) -> Result<Vec<HostView>> {
        self.get("/v1/hosts").await
    }

    /// Stop, start or remove a host; how many tasks it still has.
    ///
    /// # Errors
    /// When there is no answer or no such host.
    pub async fn set_host(&self, host: SiteId, set: &SetHost) -> Result<Changed> {
        self.post(&format!("/v1/hosts/{host}"), set).await
    }

    /// Our slots.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn slots(&self) -> Result<SlotsView> {
        self.get("/v1/slots").await
    }

    /// Every mesh that the site belongs to.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn meshes(&self) -> Result<Vec<MeshView>> {
        self.get("/v1/meshes").await
    }

    /// Found a mesh.
    ///
    /// # Errors
    /// When there is no answer or the name is not one.
    pub async fn mesh_create(&self, name: String) -> Result<MeshView> {
        self.post("/v1/meshes", &MeshCreate { name }).await
    }

    /// Make a ticket.
    ///
    /// # Errors
    /// When there is no answer or the site founded no such mesh.
    pub async fn invite(&self, invite: &Invite) -> Result<Invited> {
        self.post("/v1/invitations", invite).await
    }

    /// Use a ticket.
    ///
    /// # Errors
    /// When there is no answer or the ticket does not count.
    pub async fn join(&self, join: &Join) -> Result<MeshView> {
        self.post("/v1/memberships", join).await
    }

    /// What a submission would be.
    ///
    /// # Errors
    /// When there is no answer or it would be refused.
    pub async fn dry_run(&self, submit: &Submit) -> Result<DryRun> {
        self.post("/v1/jobs/dry-run", submit).await
    }

    /// Submit a job; `seen` is called with every progress line.
    ///
    /// # Errors
    /// When there is no answer or it is refused. When the answer breaks off, the job may be queued.
    pub async fn submit(
        &self,
        submit: &Submit,
        mut seen: impl FnMut(&crate::api::Progress),
    ) -> Result<Submitted> {
        let body = serde_json::to_vec(submit).map_err(|e| broken(&e))?;
        let mut lines = Lines::new(self.send(Method::POST, "/v1/jobs", body).await?);
        while let Some(line) = lines.next().await? {
            match parse(&line)? {
                SubmitLine::Progress(progress) => seen(&progress),
                SubmitLine::Submitted(submitted) => return Ok(submitted),
                SubmitLine::Problem(problem) => return Err(problem.into()),
            }
        }
        Err(ClientError::Broken("the node stopped before it had queued the job".to_owned()))
    }

    /// What is in the store of chunks.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn store(&self) -> Result<StoreStat> {
        self.get("/v1/store").await
    }

    /// Remove from the store what nobody uses.
    ///
    /// # Errors
    /// When there is no answer, or the disk refuses.
    pub async fn store_collect(&self, collect: &Collect) -> Result<StoreCollected> {
        self.post("/v1/store/gc", collect).await
    }

    /// Look at every chunk of the store; `seen` is called with every progress line.
    ///
    /// # Errors
    /// When there is no answer or the disk refuses. Dropping the call stops it.
    pub async fn store_verify(
        &self,
        verify: &Verify,
        mut seen: impl FnMut(&crate::api::Progress),
    ) -> Result<StoreVerified> {
        let body = serde_json::to_vec(verify).map_err(|e| broken(&e))?;
        let mut lines = Lines::new(self.send(Method::POST, "/v1/store/verify", body).await?);
        while let Some(line) = lines.next().await? {
            match parse(&line)? {
                VerifyLine::Progress(progress) => seen(&progress),
                VerifyLine::Verified(verified) => return Ok(verified),
                VerifyLine::Problem(problem) => return Err(problem.into()),
            }
        }
        Err(ClientError::Broken("the node stopped before every chunk was verified".to_owned()))
    }

    /// What we owe and are owed.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ledger(&self) -> Result<LedgerView> {
        self.get("/v1/ledger").await
    }

    /// What was used and is owed in a span of time.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn statement(&self, ask: &StatementAsk) -> Result<Statement> {
        let by = ask.by.map(|by| match by {
            By::Tenant => "by=tenant".to_owned(),
            By::Site => "by=site".to_owned(),
            By::Month => "by=month".to_owned(),
        });
        let from = ask.from.map(|from| format!("from={from}"));
        let to = ask.to.map(|to| format!("to={to}"));
        let query: Vec<_> = [from, to, by].into_iter().flatten().collect();
        self.get(&format!("/v1/ledger/statement?{}", query.join("&"))).await
    }

    /// Receipts that their borrowers contest.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn disputes(&self) -> Result<Vec<Dispute>> {
        self.get("/v1/ledger/disputes").await
    }

    /// The lines of the exported ledger.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ledger_export(&self) -> Result<Lines> {
        Ok(Lines::new(self.send(Method::GET, "/v1/ledger/export", Vec::new()).await?))
    }

    /// Everything that happens from now on, one JSON object a line.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn events(&self) -> Result<Lines> {
        Ok(Lines::new(self.send(Method::GET, "/v1/events", Vec::new()).await?))
    }
}

/// Keeps what cannot be a job id out of the request's path.
fn check_id(name: &str) -> Result<&str> {
    let is_id = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(name).ok_or_else(|| {
        let detail = format!("{name:?} is no job id: hexadecimal digits are wanted");
        Problem::bad_input(detail).with_help("list them: meshfarm jobs").into()
    })
}

async fn collect(response: Response<Incoming>) -> Result<Bytes> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| broken(&*error))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let odd = format!("it is not understood ({error}); are both programs of the same version?");
        ClientError::Broken(odd)
    })
}

/// The lines of a streamed answer.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next line without its end; none when the stream is over. Dropping the call loses nothing.
    ///
    /// # Errors
    /// When the stream breaks off or a line is too long.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::Broken(format!("a line is longer than {MAX_LINE} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}
