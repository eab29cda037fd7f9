//! The commands' client and the served API together: a real socket, a real core, and a backend that
//! answers from memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, timeout};

use meshfarm_core::{Ask, Input, Operation, Output, Reply, Request, Site, Tasks};
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, MeshId, SiteId, StepNo, TaskNo, TenantId};
use meshfarm_protocol::job::{JobSpec, Layout, MeshPolicy, Place, StepSpec};
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::profile::{HostClass, Level, Profile, Requirement};
use meshfarm_protocol::receipt::Money;
use meshfarm_protocol::seal::SealingSecret;

use crate::api::{
    BackedUp, Backup, Collect, Dispute, DryRun, Examination, Invite, Invited, Join, LedgerLine,
    LogPart, MeshView, Outputs, Phase, Progress, Statement, StatementAsk, StoreCollected,
    StoreStat, StoreVerified, Submit, Submitted, TenantBytes, Transfers, Verify,
};
use crate::gate::{Gate, Happened, Question};
use crate::web::{self, Answer, Backend};

use super::*;

/// A node with a real core and without a network: it renders nothing.
struct World {
    client: Client,
    gate: Gate,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<io::Result<()>>,
    _folder: tempfile::TempDir,
}

fn site() -> Site {
    let host = HostClass {
        count: 1,
        description: "a machine".into(),
        amounts: Default::default(),
        attributes: Default::default(),
        software: Default::default(),
        slots: 0,
        speed: 1000,
        level: Level::S2,
    };
    let config = meshfarm_core::Config {
        me: SiteId([1; 32]),
        name: "oslo".into(),
        host,
        head: None,
        submitter: false,
        sealing_key: SealingSecret::from_seed([2; 32]).public(),
        addresses: Vec::new(),
        lending: false,
        floor: Level::S2,
        opening: meshfarm_core::opening::Opening::default(),
        keep_jobs: Millis::seconds(60),
        pass_on: false,
        kept: Default::default(),
        pricing: meshfarm_core::Pricing::default(),
        seed: [3; 32],
    };
    Site::new(config, Millis(0), Vec::new())
}

/// Owns the core as the node's loop does: performs answers and events, and forgets what is to be stored.
fn run_core(gate: Gate, mut questions: mpsc::Receiver<Question>) {
    tokio::spawn(async move {
        let (mut site, mut asked, mut events) = (site(), None, 0);
        while let Some(question) = questions.recv().await {
            let mut out = Vec::new();
            match question {
                Question::Look(look) => look(&site, Millis(5000)),
                Question::Ask(ask, tx) => {
                    asked = Some(tx);
                    site.handle(Millis(5000), Input::Asked(Request(1), ask), &mut out);
                }
            }
            for output in out {
                match output {
                    Output::Answer(_, reply) => asked.take().unwrap().send(reply).unwrap(),
                    Output::Tell(event) => {
                        events += 1;
                        gate.tell(Happened { number: events, at: Millis(5000), event });
                    }
                    _ => {}
                }
            }
        }
    });
}

/// Answers from memory; submissions reach the core.
struct Memory {
    gate: Gate,
    submitted: AtomicU64,
}

fn no<T: Send + 'static>() -> Answer<'static, T> {
    async { Err(Problem::refused("not in this test")) }.boxed()
}

fn spec(name: &str) -> JobSpec {
    JobSpec {
        name: name.into(),
        user: "ada".into(),
        project: "ada".into(),
        tenant: TenantId([4; 16]),
        policy: MeshPolicy { place: Place::Remote, ..MeshPolicy::default() },
        steps: vec![StepSpec {
            name: "Render".into(),
            requirement: Requirement::default(),
            labels: (1..=3).map(|n| format!("Frame={n}")).collect(),
            needs: Vec::new(),
            environments: false,
            session: None,
        }],
        layout: Layout::default(),
    }
}

impl Backend for Memory {
    fn submit(&self, submit: Submit, progress: mpsc::Sender<Progress>) -> Answer<'_, Submitted> {
        async move {
            if submit.source.ends_with("missing.pov") {
                let detail = format!("{}: there is no such file", submit.source);
                return Err(Problem::bad_input(detail).with_help("look at the path"));
            }
            for done in [0, 50, 100] {
                let step = Progress { phase: Phase::Hashing, done, total: Some(100) };
                progress.send(step).await.expect("the reader is there");
            }
            self.submitted.fetch_add(1, Ordering::SeqCst);
            let spec = spec("scene");
            let ask = Ask::Submit { spec: Box::new(spec), root: ChunkId([5; 32]), bytes: 100 };
            let Reply::Submitted(job) = self.gate.ask(ask).await? else { panic!("not submitted") };
            Ok(Submitted {
                job,
                name: "scene".into(),
                tasks: 3,
                files: 1,
                bytes: 100,
                place: Place::Remote,
                outputs: vec![submit.folder.join("frames")],
                held: false,
                warnings: Vec::new(),
            })
        }
        .boxed()
    }

    fn dry_run(&self, _: Submit) -> Answer<'_, DryRun> {
        no()
    }

    fn log(&self, attempt: AttemptId, offset: u64) -> Answer<'_, LogPart> {
        async move {
            if attempt != AttemptId([6; 16]) {
                return Err(Problem::not_found(format!("attempt {attempt} has no log here")));
            }
            let log = b"line one\nline two\n";
            let from = usize::try_from(offset).unwrap().min(log.len());
            Ok(LogPart { bytes: log[from..].to_vec(), ended: true })
        }
        .boxed()
    }

    fn outputs(&self, _: JobId) -> Answer<'_, Outputs> {
        async { Ok(Outputs::default()) }.boxed()
    }

    fn transfers(&self) -> Answer<'_, Transfers> {
        async { Ok(Transfers::default()) }.boxed()
    }

    fn backup(&self, backup: Backup) -> Answer<'_, BackedUp> {
        async move { Ok(BackedUp { file: backup.file, records: 0, chunks: 0 }) }.boxed()
    }

    fn mesh_create(&self, name: String) -> Answer<'_, MeshView> {
        async move {
            Ok(MeshView {
                mesh: MeshId([7; 32]),
                name,
                site_name: "oslo".into(),
                role: Role::Site,
                expires: Millis(9),
                founder: true,
            })
        }
        .boxed()
    }

    fn meshes(&self) -> Answer<'_, Vec<MeshView>> {
        no()
    }

    fn invite(&self, _: Invite) -> Answer<'_, Invited> {
        no()
    }

    fn join(&self, _: Join) -> Answer<'_, MeshView> {
        async { Err(Problem::bad_input("the ticket is garbled")) }.boxed()
    }

    fn profile(&self) -> Answer<'_, Profile> {
        no()
    }

    fn can_retry(&self, _: JobId) -> Answer<'_, ()> {
        async { Ok(()) }.boxed()
    }

    fn store(&self) -> Answer<'_, StoreStat> {
        async {
            Ok(StoreStat {
                chunks: 3,
                bytes: 3000,
                pinned: 1000,
                strays: 0,
                collectable: 500,
                segments: 1,
                disk: 4096,
                reclaimable: 1096,
                unread: 0,
                free: 1 << 40,
                keep_free: 2 << 30,
                damaged: 0,
                verified: None,
                tenants: vec![TenantBytes {
                    site: SiteId([1; 32]),
                    name: "lyon".into(),
                    tenant: Some(TenantId([4; 16])),
                    bytes: 3000,
                    pinned: 1000,
                    quota: Some(1 << 38),
                }],
            })
        }
        .boxed()
    }

    fn store_verify(
        &self,
        verify: Verify,
        progress: mpsc::Sender<Progress>,
    ) -> Answer<'_, StoreVerified> {
        async move {
            for done in [0, 1000] {
                let step = Progress { phase: Phase::Verifying, done, total: Some(1000) };
                progress.send(step).await.expect("the reader is there");
            }
            Ok(StoreVerified {
                chunks: 3,
                bytes: 3000,
                found: u64::from(verify.rebuild),
                n_damaged: 1,
                damaged: vec![ChunkId([9; 32])],
                jobs: vec![JobId([8; 16])],
            })
        }
        .boxed()
    }

    fn statement(&self, ask: StatementAsk) -> Answer<'_, Statement> {
        async move {
            Ok(Statement {
                site: "oslo".into(),
                id: SiteId([1; 32]),
                from: ask.from.map(Millis),
                to: ask.to.map(Millis),
                rows: Vec::new(),
                credit: Money(1_500),
                debit: Money(0),
            })
        }
        .boxed()
    }

    fn disputes(&self) -> Answer<'_, Vec<Dispute>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn ledger_export(&self, lines: mpsc::Sender<LedgerLine>) -> Answer<'_, ()> {
        async move {
            let end = LedgerLine::End { receipts: 0, credit: Money(0), debit: Money(0) };
            lines.send(end).await.expect("the reader is there");
            Ok(())
        }
        .boxed()
    }

    fn store_collect(&self, collect: Collect) -> Answer<'_, StoreCollected> {
        async move {
            Ok(StoreCollected {
                dry_run: collect.dry_run,
                contents: 1,
                chunks: 2,
                bytes: collect.wanted,
                segments: 0,
                blocked: None,
            })
        }
        .boxed()
    }

    fn doctor(&self) -> Answer<'_, Examination> {
        no()
    }

    fn status(&self) -> Answer<'_, Status> {
        no()
    }
}

impl World {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let (gate, questions) = Gate::new();
        run_core(gate.clone(), questions);
        let backend = Memory { gate: gate.clone(), submitted: AtomicU64::new(0) };
        let listener = web::bind(&socket).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = stopped.map(|_| ());
        let server = web::serve(listener, gate.clone(), Arc::new(backend), stopped);
        Self {
            client: Client::new(&socket),
            gate,
            socket,
            stop: Some(stop),
            server: tokio::spawn(server),
            _folder: folder,
        }
    }

    async fn submit(&self) -> JobId {
        self.client.submit(&submission("scene.pov"), |_| {}).await.unwrap().job
    }

    /// What the server says to these bytes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }
}

fn submission(source: &str) -> Submit {
    let json = serde_json::json!({"source": source, "folder": "/show", "user": "ada"});
    serde_json::from_value(json).unwrap()
}

fn problem<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Problem {
    match result {
        Err(ClientError::Problem(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_submission_streams_its_progress_and_ends_with_the_job() {
    let world = World::start();
    let mut seen = Vec::new();
    let submitted = world.client.submit(&submission("scene.pov"), |p| seen.push(p.done)).await;
    let submitted = submitted.unwrap();
    assert_eq!(seen, [0, 50, 100]);
    assert_eq!(submitted.outputs, [PathBuf::from("/show/frames")]);
    let jobs = world.client.jobs().await.unwrap();
    assert_eq!((jobs.len(), jobs[0].job), (1, submitted.job));
    let view = world.client.job(&submitted.job.to_string(), false).await.unwrap();
    assert_eq!(view.steps[0].tasks.len(), 3);
    assert_eq!(
        view.steps[0].why[0].reason.as_deref(),
        Some("the job's policy does not allow this site")
    );
    let brief = world.client.job(&submitted.job.to_string(), true).await.unwrap();
    assert!(brief.steps.is_empty());
}

#[tokio::test]
async fn a_job_or_one_task_of_it_is_explained() {
    let world = World::start();
    let job = world.submit().await;
    let explained = world.client.explain(job, None).await.unwrap();
    assert_eq!((explained.job, explained.steps[0].waiting), (job, 3));
    let blocks = ["the job's policy does not allow this site", "it has no slots"];
    assert_eq!(explained.steps[0].sites[0].blocks, blocks);
    let task = world.client.explain(job, Some((StepNo(0), TaskNo(2)))).await.unwrap().task;
    assert_eq!(task.map(|task| task.state).as_deref(), Some("waiting"));
    let gone = problem(world.client.explain(job, Some((StepNo(0), TaskNo(3)))).await);
    assert!(gone.status == 404 && gone.detail.is_some_and(|it| it.contains("no such task")));
    let half = format!(
        "GET /v1/jobs/{job}/explain?step=0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    );
    let said = world.raw(&half).await;
    assert!(said.contains("a step and a task name a task together"), "{said}");
}

#[tokio::test]
async fn a_refused_submission_is_a_problem_and_queues_nothing() {
    let world = World::start();
    let refused = problem(world.client.submit(&submission("missing.pov"), |_| {}).await);
    assert!(refused.text().contains("missing.pov"));
    assert_eq!(refused.help.as_deref(), Some("look at the path"));
    assert_eq!(Failure::from(refused).exit(), 2);
    assert!(world.client.jobs().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_job_is_named_by_the_beginning_of_its_id_when_that_is_enough() {
    let world = World::start();
    let mut jobs = Vec::new();
    // Seventeen jobs: two of them share their first digit.
    for _ in 0..17 {
        jobs.push(world.submit().await.to_string());
    }
    jobs.sort_unstable();
    let twins = jobs.windows(2).find(|pair| pair[0][..1] == pair[1][..1]).unwrap();
    let ambiguous = problem(world.client.job(&twins[0][..1], true).await);
    assert_eq!(ambiguous.status, 400);
    assert!(ambiguous.text().contains(&twins[1]), "{ambiguous:?}");
    let found = world.client.job(&twins[0][..12], true).await.unwrap();
    assert_eq!(found.job.to_string(), twins[0]);
    let upper = world.client.job(&twins[0].to_uppercase(), true).await.unwrap();
    assert_eq!(upper.job, found.job);
    assert_eq!(problem(world.client.job("xyz", true).await).status, 400);
    let none = (0..=255_u8).map(|n| format!("{n:02x}"));
    let mut none = none.filter(|two| !jobs.iter().any(|job| job.starts_with(two.as_str())));
    assert_eq!(problem(world.client.job(&none.next().unwrap(), true).await).status, 404);
}

#[tokio::test]
async fn cancel_and_retry_reach_the_core_and_refusals_come_back() {
    let world = World::start();
    let job = world.submit().await;
    let cancel = Operation::Cancel { tasks: Tasks::All };
    world.client.operate(job, &cancel).await.unwrap();
    let view = world.client.job(&job.to_string(), true).await.unwrap();
    assert_eq!(view.phase, meshfarm_core::JobPhase::Canceled);
    let again = Operation::Retry { tasks: Tasks::Failed };
    assert_eq!(world.client.operate(job, &again).await.unwrap().tasks, 3);
    world.client.operate(job, &cancel).await.unwrap();
    let ended = problem(world.client.operate(job, &cancel).await);
    assert!(ended.text().contains("has ended already"), "{ended:?}");
    assert_eq!((ended.status, Failure::from(ended).exit()), (409, 2));
}

#[tokio::test]
async fn events_are_streamed_and_end_with_the_node() {
    let mut world = World::start();
    let mut events = world.client.events().await.unwrap();
    let job = world.submit().await;
    let line = timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap().unwrap();
    assert!(watch::concerns(&line, job), "{}", String::from_utf8_lossy(&line));
    assert!(!watch::concerns(&line, JobId([0; 16])));
    world.stop.take().unwrap().send(()).unwrap();
    while let Some(line) = timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap() {
        assert!(line.starts_with(b"{"));
    }
    timeout(Duration::from_secs(10), &mut world.server).await.unwrap().unwrap().unwrap();
    let gone = world.client.jobs().await.unwrap_err();
    assert!(matches!(gone, ClientError::NotReachable { .. }), "{gone}");
    assert_eq!(Failure::from(gone).exit(), 3);
    drop(world.gate);
}

#[tokio::test]
async fn a_log_is_read_from_an_offset() {
    let world = World::start();
    let part = world.client.log(AttemptId([6; 16]), 9).await.unwrap();
    assert_eq!(part, LogPart { bytes: b"line two\n".to_vec(), ended: true });
    assert_eq!(problem(world.client.log(AttemptId([0; 16]), 0).await).status, 404);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_request_is_a_problem_document() {
    let world = World::start();
    let end = "host: x\r\nconnection: close\r\n";
    let body = |text: &str| format!("{end}content-length: {}\r\n\r\n{text}", text.len());
    for (line, rest, status, words) in [
        ("GET /v2/jobs", format!("{end}\r\n"), "404", "/v2/jobs"),
        ("DELETE /v1/jobs", format!("{end}\r\n"), "405", "DELETE"),
        ("GET /v1/jobs/zz", format!("{end}\r\n"), "400", "hexadecimal"),
        ("GET /v1/jobs/ab?brief=perhaps", format!("{end}\r\n"), "400", "brief"),
        ("GET /v1/attempts/ab/log", format!("{end}\r\n"), "400", "32 hexadecimal digits"),
        ("POST /v1/jobs", body("{\"source\":1}"), "400", "expected a string"),
        ("POST /v1/jobs", body("{"), "400", "body of the request"),
        ("POST /v1/jobs/ab/operations", body("{\"explode\":{}}"), "400", "variant `explode`"),
        ("POST /v1/jobs/ab/operations", body("{\"priority\":999}"), "400", "body of the request"),
        ("POST /v1/jobs/ab/operations", body("\"recall\""), "404", "no job ab"),
        ("POST /v1/operations", body("\"stop\""), "400", "variant `stop`"),
        ("POST /v1/meshes", body("{\"name\":\"a/b\"}"), "400", "is no name"),
        ("POST /v1/memberships", body("{\"ticket\":\"x\"}"), "400", "garbled"),
        ("POST /v1/memberships", body("{\"ticket\":\"x\",\"name\":\"\"}"), "400", "is no name"),
    ] {
        let answer = world.raw(&format!("{line} HTTP/1.1\r\n{rest}")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        assert!(answer.contains(web::PROBLEM) && answer.contains(words), "{line}: {answer}");
    }
    // The node hangs up while the rest is on its way, so the refusal itself may not arrive.
    let huge = submission(&"a".repeat(8 << 20));
    let refused = world.client.submit(&huge, |_| {}).await.unwrap_err();
    let problem = matches!(&refused, ClientError::Problem(problem) if problem.status == 400);
    assert!(problem || matches!(refused, ClientError::Broken(_)), "{refused}");
    assert!(world.client.jobs().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_socket_is_for_its_owner_only_and_replaces_that_of_a_dead_node() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    drop(web::bind(&socket).unwrap());
    let _listener = web::bind(&socket).unwrap();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn without_a_node_the_way_out_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let home = Home::find(Some(temp.path().join("h"))).unwrap();
    let failure = Failure::from(Client::new(home.socket()).jobs().await.unwrap_err());
    assert_eq!(failure.exit(), 3);
    assert!(failure.to_string().contains("no node is running on the home"));
    assert!(failure.help(Some(&home)).unwrap().contains("meshfarm init"));
    home.create(&Config::new("oslo")).unwrap();
    assert!(failure.help(Some(&home)).unwrap().contains("meshfarm node"));
}

impl World {
    fn desk(&self) -> Desk {
        Desk {
            home: Home::find(self.socket.parent().map(Path::to_owned)).unwrap(),
            client: self.client.clone(),
            printer: print::printer(false, true),
            json: false,
            quiet: true,
        }
    }
}

#[tokio::test]
async fn watching_ends_with_the_job_and_fails_as_it_does() {
    let world = World::start();
    let job = world.submit().await;
    let (desk, client) = (world.desk(), world.client.clone());
    let id = job.to_string();
    let cancel = async {
        // The watcher holds an event stream by the time that this is answered or soon after; either way
        // it sees the end.
        let cancel = Operation::Cancel { tasks: Tasks::All };
        client.operate(job, &cancel).await.unwrap();
    };
    let both = futures::future::join(watch::watch(&desk, &id[..10]), cancel);
    let (watched, ()) = timeout(Duration::from_secs(10), both).await.unwrap();
    assert!(matches!(watched, Err(Failure::Said)), "{watched:?}");
    let again = watch::watch(&desk, &id).await;
    assert!(
        matches!(again, Err(Failure::Said)),
        "a job that has ended needs no waiting: {again:?}"
    );
}

#[tokio::test]
async fn watching_says_when_the_node_stops() {
    let mut world = World::start();
    let id = world.submit().await.to_string();
    let desk = world.desk();
    let stop = world.stop.take().unwrap();
    let stop = async {
        tokio::task::yield_now().await;
        stop.send(()).unwrap();
    };
    let both = futures::future::join(watch::watch(&desk, &id), stop);
    let (watched, ()) = timeout(Duration::from_secs(20), both).await.unwrap();
    let failure = watched.unwrap_err();
    assert!(
        matches!(failure, Failure::Client(_)),
        "the node is gone, and the job is not over: {failure:?}"
    );
}

#[tokio::test]
async fn a_task_that_is_not_there_has_no_log() {
    let world = World::start();
    let id = world.submit().await.to_string();
    let flags = |task: Option<&str>| cli::Logs {
        which: cli::JobArg { job: id.clone() },
        task: task.map(str::to_owned),
        follow: false,
    };
    let desk = world.desk();
    let Failure::Problem(problem) = logs::logs(&desk, &flags(Some("Frame=9"))).await.unwrap_err()
    else {
        panic!("no problem")
    };
    assert!(problem.text().contains("Frame=9"), "{problem:?}");
    logs::logs(&desk, &flags(Some("Frame=2"))).await.unwrap();
    logs::logs(&desk, &flags(None)).await.unwrap();
}

#[tokio::test]
async fn retrying_tasks_that_are_not_there_changes_nothing() {
    let world = World::start();
    let job = world.submit().await;
    let desk = world.desk();
    let odd = type_in(&desk, &format!("retry {job} --tasks 1,3")).await.unwrap_err();
    assert!(odd.to_string().contains("Render has tasks 0 to 2"), "{odd}");
    let odd = type_in(&desk, &format!("retry {job} --tasks 1 --step Comp")).await.unwrap_err();
    assert!(odd.to_string().contains("Comp: name one of Render"), "{odd}");
    assert_eq!((odd.exit(), odd.text().contains("--step")), (2, true));
}

/// What a person types behind `meshfarm`.
async fn type_in(desk: &Desk, line: &str) -> Done {
    let words = std::iter::once("meshfarm").chain(line.split_whitespace());
    ask(desk, Cli::try_parse_from(words).unwrap().command).await
}

#[tokio::test]
async fn what_people_type_reaches_the_tasks_that_they_mean() {
    let world = World::start();
    let job = world.submit().await;
    let (desk, id) = (world.desk(), job.to_string());
    let view = async || world.client.job(&id, false).await.unwrap();
    let states = async || {
        let steps = view().await.steps;
        steps[0].tasks.iter().map(|task| task.state.clone()).collect::<Vec<_>>()
    };
    type_in(&desk, &format!("hold {id} --tasks 0,2")).await.unwrap();
    assert_eq!(states().await, ["held", "waiting", "held"]);
    assert_eq!(view().await.queue, Queue::New);
    type_in(&desk, &format!("hold {id} --step Render --return")).await.unwrap();
    assert_eq!((view().await.queue, view().await.held), (Queue::Held, 3));
    type_in(&desk, "jobs --queue held").await.unwrap();
    type_in(&desk, &format!("release {id} --tasks 2")).await.unwrap();
    type_in(&desk, &format!("priority {id} 7")).await.unwrap();
    type_in(&desk, &format!("outsource {id} --best")).await.unwrap();
    type_in(&desk, &format!("cancel {id} --tasks 1")).await.unwrap();
    assert_eq!(states().await, ["held", "canceled", "waiting"]);
    assert_eq!((view().await.priority, view().await.place), (7, Place::Remote));
    for (line, words) in [
        (format!("hold {id} --tasks 1"), "each is over already"),
        (format!("kill {id}"), "runs now"),
        (format!("outsource {id} --to lyon"), "there is no site lyon"),
        (format!("outsource {id} --to oslo"), "is this site"),
        (format!("recall {id}"), "no slots"),
        ("pause --site lyon".to_owned(), "there is no site lyon"),
        ("pause --grace 10m".to_owned(), "--after return"),
        ("hold 00ff".to_owned(), "no job 00ff"),
    ] {
        let refused = type_in(&desk, &line).await.unwrap_err();
        assert!(refused.text().contains(words), "{line}: {}", refused.text());
        assert_eq!(refused.exit(), 2, "{line}");
    }
    type_in(&desk, "pause --after return --grace 10m --own").await.unwrap();
    let slots = world.client.slots().await.unwrap();
    assert_eq!(slots.own.give_back(), Some(Millis(605_000)));
    type_in(&desk, "slots").await.unwrap();
    type_in(&desk, "resume").await.unwrap();
    assert!(world.client.slots().await.unwrap().foreign.is_open());
    type_in(&desk, &format!("cancel {id}")).await.unwrap();
    let odd = type_in(&desk, &format!("priority {id} 1")).await.unwrap_err();
    assert!(odd.text().contains("ended already"), "{odd}");
}

#[test]
fn the_ready_line_is_one_line_in_both_formats() {
    let status = Status {
        version: "0.1.0".into(),
        site: SiteId([1; 32]),
        name: "oslo".into(),
        home: "/h".into(),
        pid: 7,
        listen: vec!["/ip4/127.0.0.1/tcp/4510".into()],
        started: Millis(1),
        resident: 1,
    };
    let text = ready_line(LogFormat::Text, &status);
    assert_eq!(text, "ready: oslo (process 7) listens on /ip4/127.0.0.1/tcp/4510\n");
    let json = ready_line(LogFormat::Json, &status);
    assert_eq!(json.lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["ready"], &json["listen"][0]),
        (&true.into(), &"/ip4/127.0.0.1/tcp/4510".into())
    );
}
