//! Tests of the pages of jobs.

use meshfarm_core::{DeadlineState, DeadlineView, Why};
use meshfarm_protocol::id::{JobId, TaskNo};
use meshfarm_protocol::matching::Misfit;
use meshfarm_protocol::profile::AttributeNeed;
use meshfarm_protocol::receipt::Money;

use crate::print::{Printer, TablePrinter};

use meshfarm_protocol::profile::Level;

use super::*;

/// When the pages are made.
const NOW: Millis = Millis(90_000);

fn text(page: &Page) -> String {
    TablePrinter { colour: false }.text(page)
}

fn task(number: u32, state: &str, site: Option<&str>) -> TaskView {
    TaskView {
        task: TaskNo(number),
        label: format!("Frame={}", number + 1),
        state: state.into(),
        site: site.map(str::to_owned),
        attempt: None,
        isolation: site.map(|_| Level::S2),
        wall: (state == "done").then_some(Millis(2000 + u64::from(number) * 100)),
        at: None,
        failures: 0,
        reason: None,
    }
}

fn view(phase: JobPhase, tasks: Vec<TaskView>, why: Vec<Why>) -> JobView {
    let count = |state: &str| tasks.iter().filter(|task| task.state == state).count();
    JobView {
        job: JobId([0xab; 16]),
        name: "camera2".into(),
        user: "ada".into(),
        project: "ada".into(),
        priority: 50,
        place: Place::Auto,
        queue: if phase == JobPhase::Active { Queue::Active } else { Queue::Done },
        ended: (phase != JobPhase::Active).then_some(Millis(61_000)),
        phase,
        submitted: Millis(1_000),
        deadline: None,
        bytes: 3536,
        tasks: tasks.len(),
        done: count("done"),
        running: count("running"),
        leased: count("running") + count("leased"),
        failed: count("failed"),
        canceled: count("canceled"),
        held: count("held"),
        spent: Money(0),
        budget: None,
        steps: vec![StepView { name: "Render".into(), tasks, why }],
    }
}

#[test]
fn a_summary_says_who_rendered_what_and_how_long() {
    let tasks = vec![
        task(0, "done", Some("lyon")),
        task(1, "done", Some("kyoto")),
        task(2, "done", Some("lyon")),
        task(3, "done", Some("lyon")),
    ];
    let view = view(JobPhase::Done, tasks, Vec::new());
    let outputs = Outputs { folders: vec!["/show/frames".into()] };
    let mut moved = JobBytes {
        job: view.job,
        sent: 8192,
        wanted: None,
        received: 1 << 20,
        sending: 0,
        receiving: 0,
        seconds_left: None,
        peers: Vec::new(),
    };
    assert_eq!(speed(&moved), "out, 1.0 MiB in");
    (moved.sending, moved.seconds_left) = (2048, Some(61));
    let now = "now 2.0 KiB/s out, 0 B/s in, 0 sites";
    assert_eq!(speed(&moved), format!("out, 1.0 MiB in; {now}; 1m 01s left"));
    let end = Summary::new(&view, &outputs, Some(&moved));
    assert_eq!(
        text(&summary(&view, &end)),
        "camera2 done after 1m 00s: 4 of 4 tasks done\n\
         outputs in /show/frames\n\
         SITE   TASKS   EACH  LONGEST  IN ALL  WHICH\n\
         kyoto      1  2.1 s    2.1 s   2.1 s  Frame=2\n\
         lyon       3  2.1 s    2.3 s   6.5 s  Frame=1,3-4\n\
         moved 8.0 KiB out and 1.0 MiB in\n"
    );
    let json = summary(&view, &end).json;
    assert_eq!(json["sites"][1]["tasks"][2], "Frame=4");
    assert_eq!(json["makespan_ms"], 60_000);
    assert_eq!(json["state"], "done");
}

#[test]
fn a_job_that_no_site_can_take_says_what_is_missing_where() {
    let need = AttributeNeed { any_of: ["v9".to_owned()].into(), ..AttributeNeed::default() };
    let name = "meshfarm:attr.software.blender".to_owned();
    let misfits = vec![Misfit::Attribute { name, need, have: Vec::new() }];
    let why = vec![
        Why { site: "oslo".into(), misfits: misfits.clone(), reason: Some("has no slots".into()) },
        Why { site: "lyon".into(), misfits, reason: None },
    ];
    let view = view(JobPhase::Active, vec![task(0, "waiting", None)], why);
    let text = text(&job(&view, &Outputs::default(), NOW));
    for words in [
        "No site meets what this step asks for",
        "lyon meshfarm:attr.software.blender: asks one of v9, has none",
        "0 of 1 tasks done, 1 waiting",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_list_of_jobs_says_which_queue_each_is_in_and_names_batches_of_others() {
    let held =
        view(JobPhase::Active, vec![task(0, "held", None), task(1, "canceled", None)], vec![]);
    let held = JobView { queue: Queue::Held, ..held };
    let lease = LeaseView {
        lease: meshfarm_protocol::id::LeaseId([0xcd; 16]),
        borrower: "lyon".into(),
        own: false,
        tenant: meshfarm_protocol::id::TenantId([0xef; 16]),
        slots: 2,
        each: BTreeMap::default(),
        running: 2,
        queued: 1,
        runs_on: Some("render01".into()),
    };
    let shown = text(&jobs(std::slice::from_ref(&held), &[lease], NOW));
    assert!(!shown.contains("DEADLINE"), "nobody has one: {shown}");
    let mut lines = shown.lines();
    let words = |line: &str| line.split_whitespace().take(5).collect::<Vec<_>>().join(" ");
    assert_eq!(lines.next().map(words).unwrap(), "JOB NAME STATE QUEUE DONE");
    assert_eq!(lines.next().map(words).unwrap(), "abababab camera2 held held 0/2");
    assert_eq!(lines.next_back().map(words).unwrap(), "cdcdcdcd lyon efefefef render01 2");
    assert_eq!(counts(&held), "0 of 2 tasks done, 1 held, 1 canceled");
}

#[test]
fn deadlines_are_shown_where_a_job_has_one() {
    let (at, expected) = (NOW.plus(Millis(7_200_000)), Some(NOW.plus(Millis(10_800_000))));
    let deadline = Some(DeadlineView { at, expected, state: DeadlineState::WillMiss });
    let plain = view(JobPhase::Active, vec![task(0, "waiting", None)], Vec::new());
    let due = JobView { deadline, ..plain.clone() };
    let listed = text(&jobs(&[plain, due.clone()], &[], NOW));
    let lines: Vec<_> = listed.lines().map(str::trim_end).collect();
    assert!(lines[0].ends_with("DEADLINE") && lines[2].ends_with("2h 00m, will miss"), "{listed}");
    let shown = text(&job(&due, &Outputs::default(), NOW));
    assert!(shown.contains("will miss by 1h 00m"), "{shown}");
}

#[test]
fn a_job_with_very_many_tasks_is_summed_up() {
    let mut tasks: Vec<_> = (0..1000).map(|n| task(n, "waiting", None)).collect();
    tasks[0].state = "done".into();
    let view = view(JobPhase::Active, tasks, Vec::new());
    let text = text(&job(&view, &Outputs::default(), NOW));
    assert!(text.contains("waiting    999") && text.lines().count() < 15, "{text}");
}

#[test]
fn labels_become_ranges_where_they_are_numbers_of_one_parameter() {
    let of = |texts: &[&str]| labels(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
    assert_eq!(of(&["Frame=10", "Frame=9", "Frame=11"]), "Frame=9-11");
    assert_eq!(of(&["Frame=1", "Tile=2"]), "Frame=1, Tile=2");
    assert_eq!(of(&["task"]), "task");
    assert_eq!(of(&[]), "");
}

#[test]
fn a_job_that_may_leave_the_site_says_who_can_read_the_scene() {
    assert_eq!(reads(&Place::Local), None);
    assert!(reads(&Place::Auto).unwrap().contains("can read the scene"));
    assert!(reads(&Place::Site("lyon".into())).unwrap().contains("lyon"));
}
