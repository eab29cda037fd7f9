//! The session runner as a real process, without a jail: what it says, in which order, and what it leaves.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use meshfarm_protocol::id::{StepNo, TaskNo};
use meshfarm_protocol::job::PathFormat;
use meshfarm_protocol::session::{
    EnvironmentFile, FromRunner, JobFile, MappedFormat, MappingRule, Outcome, OutputRoot, PathRule,
    Play, PlayedStep, PlayedTasks, SESSION_VERSION, Start, TemplateFormat, ToRunner, from_line,
    to_line,
};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A runner and its folder; killed when dropped.
struct Runner {
    child: Child,
    input: Option<ChildStdin>,
    said_rx: Receiver<FromRunner>,
    folder: TempDir,
}

impl Runner {
    fn start(template: &str, parameters: &[(&str, &str)], step: u32) -> Self {
        Self::start_with(template, parameters, step, |_, _| vec![])
    }

    /// As [`Runner::start`], with path mapping rules; `prepare` sees the command and the runner's folder.
    fn start_with(
        template: &str,
        parameters: &[(&str, &str)],
        step: u32,
        prepare: impl FnOnce(&mut Command, &Path) -> Vec<PathRule>,
    ) -> Self {
        let (mut runner, path_mapping) = Self::begin(template, parameters, prepare, |_| {});
        let text = |name| runner.path(name).to_str().unwrap().to_owned();
        let start = Start {
            version: SESSION_VERSION,
            job_file: text("job.json"),
            session_dir: text("session"),
            step: StepNo(step),
            path_mapping,
            outputs: vec![OutputRoot { id: "r1".into(), path: text("out") }],
            log_bytes: 1 << 20,
        };
        runner.tell(&ToRunner::Start(start));
        runner
    }

    /// A runner that plays these tasks of these steps; `around` changes the job file.
    fn play(
        template: &str,
        steps: &[(u32, PlayedTasks)],
        around: impl FnOnce(&mut JobFile),
    ) -> Self {
        let (mut runner, _) = Self::begin(template, &[], |_, _| vec![], around);
        let text = |name| runner.path(name).to_str().unwrap().to_owned();
        let steps = steps.iter().cloned();
        let play = Play {
            version: SESSION_VERSION,
            job_file: text("job.json"),
            session_dir: text("session"),
            steps: steps.map(|(step, tasks)| PlayedStep { step: StepNo(step), tasks }).collect(),
            keep: false,
        };
        runner.tell(&ToRunner::Play(play));
        runner
    }

    fn begin(
        template: &str,
        parameters: &[(&str, &str)],
        prepare: impl FnOnce(&mut Command, &Path) -> Vec<PathRule>,
        around: impl FnOnce(&mut JobFile),
    ) -> (Self, Vec<PathRule>) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["session", "out"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let out = folder.path().join("out").to_str().unwrap().to_owned();
        let mut values: BTreeMap<_, _> = parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        if template.contains("name: Out,") {
            values.insert("Out".into(), out.clone());
        }
        let mut job = JobFile {
            version: SESSION_VERSION,
            format: TemplateFormat::Yaml,
            template: template.into(),
            parameters: values,
            environments: vec![],
            path_mapping: vec![],
        };
        around(&mut job);
        let job_file = folder.path().join("job.json");
        fs::write(&job_file, serde_json::to_vec(&job).unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshfarm-session"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let path_mapping = prepare(&mut command, folder.path());
        let mut child = command.spawn().unwrap();
        let said_rx = listen(child.stdout.take().unwrap());
        let input = child.stdin.take();
        (Self { child, input, said_rx, folder }, path_mapping)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn tell(&mut self, message: &ToRunner) {
        let line = to_line(message).unwrap();
        self.input.as_mut().unwrap().write_all(&line).unwrap();
    }

    fn run(&mut self, task: u32) {
        self.tell(&ToRunner::Run { task: TaskNo(task) });
    }

    /// Everything said up to and with the first message that `wanted` accepts.
    fn until(&self, wanted: impl Fn(&FromRunner) -> bool) -> Vec<FromRunner> {
        let deadline = Instant::now() + DEADLINE;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.said_rx.recv_timeout(left);
            said.push(message.unwrap_or_else(|_| panic!("no more after {said:?}")));
            if said.last().is_some_and(&wanted) {
                return said;
            }
        }
    }

    fn until_ready(&self) -> Vec<FromRunner> {
        self.until(|message| matches!(message, FromRunner::Ready { .. }))
    }

    fn until_task_ended(&self) -> (Vec<FromRunner>, Outcome, Vec<String>) {
        let said = self.until(|message| matches!(message, FromRunner::TaskEnded { .. }));
        let Some(FromRunner::TaskEnded { outcome, outputs, .. }) = said.last().cloned() else {
            unreachable!()
        };
        (said, outcome, outputs.into_iter().map(|output| output.path).collect())
    }

    fn until_ended(&mut self) -> (Vec<FromRunner>, Option<String>) {
        let said = self.until(|message| matches!(message, FromRunner::Ended { .. }));
        assert!(self.child.wait().unwrap().success());
        let Some(FromRunner::Ended { error }) = said.last().cloned() else { unreachable!() };
        (said, error)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(output: ChildStdout) -> Receiver<FromRunner> {
    let (said_tx, said_rx) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let message = from_line(&line.unwrap()).expect("only messages on standard output");
            if said_tx.send(message).is_err() {
                return;
            }
        }
    });
    said_rx
}

fn log_of(said: &[FromRunner]) -> Vec<String> {
    let logs = said.iter().filter_map(|message| match message {
        FromRunner::Log { lines, .. } => Some(lines.clone()),
        _ => None,
    });
    logs.flatten().collect()
}

const TWO_STEPS: &str = r#"
specificationVersion: jobtemplate-2023-09
name: Two steps
parameterDefinitions:
  - {name: Out, type: PATH, dataFlow: OUT}
  - {name: Frames, type: STRING, default: "1-3"}
jobEnvironments:
  - name: Outer
    variables: {GREETING: hello}
    script:
      actions:
        onEnter: {command: sh, args: ["-c", "echo outer in; echo openjd_env: SEED=7"]}
        onExit: {command: sh, args: ["-c", "echo outer out"]}
steps:
  - name: Draw
    parameterSpace:
      taskParameterDefinitions:
        - {name: Frame, type: INT, range: "{{Param.Frames}}"}
    stepEnvironments:
      - name: Inner
        script:
          actions:
            onEnter: {command: sh, args: ["-c", "echo inner in"]}
            onExit: {command: sh, args: ["-c", "echo inner out"]}
    script:
      embeddedFiles:
        - name: Draw
          type: TEXT
          runnable: true
          data: |
            #!/bin/sh
            cat
            echo "$GREETING frame {{Task.Param.Frame}} seed $SEED"
            echo "openjd_progress: 50"
            echo "openjd_status: half way"
            mkdir -p "{{Param.Out}}/sub"
            echo "$SEED" > "{{Param.Out}}/sub/frame{{Task.Param.Frame}}.txt"
      actions:
        onRun: {command: "{{Task.File.Draw}}"}
  - name: Join
    dependencies: [{dependsOn: Draw}]
    script:
      actions:
        onRun: {command: sh, args: ["-c", "cat {{Param.Out}}/sub/* > {{Param.Out}}/all.txt"]}
"#;

#[test]
fn a_session_enters_its_environments_once_runs_its_tasks_and_leaves() {
    let mut runner = Runner::start(TWO_STEPS, &[("Frames", "10-12")], 0);
    assert_eq!(log_of(&runner.until_ready()), ["outer in", "openjd_env: SEED=7", "inner in"]);
    for (task, frame) in [(2, 12), (0, 10)] {
        runner.run(task);
        let (said, outcome, outputs) = runner.until_task_ended();
        assert_eq!(outcome, Outcome::Done);
        assert_eq!(outputs, [format!("sub/frame{frame}.txt")]);
        assert!(log_of(&said).contains(&format!("hello frame {frame} seed 7")));
        assert!(said.contains(&FromRunner::Progress {
            task: Some(TaskNo(task)),
            permille: Some(500),
            status: Some("half way".into()),
        }));
    }
    runner.tell(&ToRunner::Finish);
    let (said, error) = runner.until_ended();
    assert_eq!(log_of(&said), ["inner out", "outer out"]);
    assert_eq!(error, None);
    let left = fs::read_dir(runner.path("session")).unwrap().count();
    assert_eq!(left, 0, "the session cleans up after itself");
}

#[test]
fn a_step_without_parameters_is_one_task_and_finds_what_earlier_steps_left() {
    let mut runner = Runner::start(TWO_STEPS, &[], 1);
    fs::create_dir(runner.path("out/sub")).unwrap();
    fs::write(runner.path("out/sub/frame1.txt"), "from before").unwrap();
    runner.until_ready();
    runner.run(0);
    let (_, outcome, outputs) = runner.until_task_ended();
    assert_eq!((outcome, outputs), (Outcome::Done, vec!["all.txt".into()]));
    assert_eq!(fs::read_to_string(runner.path("out/all.txt")).unwrap(), "from before");
    drop(runner.input.take());
    assert_eq!(runner.until_ended().1, None);
}

const FAILING: &str = r#"
specificationVersion: jobtemplate-2023-09
name: Failing
parameterDefinitions: [{name: Command, type: STRING}]
jobEnvironments:
  - name: Outer
    script: {actions: {onEnter: {command: "true"}, onExit: {command: sh, args: ["-c", "echo outer out"]}}}
steps:
  - name: Fail
    script: {actions: {onRun: {command: sh, args: ["-c", "{{Param.Command}}"], timeout: 5}}}
"#;

#[test]
fn a_failing_task_says_why_and_ends_its_session() {
    let cases = [
        ("exit 7", Some(7), "the action exited with code 7"),
        ("echo openjd_fail: no licence; exit 1", Some(1), "no licence"),
    ];
    for (command, exit_code, message) in cases {
        let mut runner = Runner::start(FAILING, &[("Command", command)], 0);
        runner.until_ready();
        runner.run(0);
        let (_, outcome, _) = runner.until_task_ended();
        let message = message.to_owned();
        assert_eq!(outcome, Outcome::Failed { exit_code, message });
        let (said, error) = runner.until_ended();
        assert_eq!((log_of(&said), error), (vec!["outer out".into()], None));
    }
}

const PLAYED: &str = r#"
specificationVersion: jobtemplate-2023-09
name: Played
parameterDefinitions: [{name: Scene, type: PATH, default: /old/scene}]
jobEnvironments:
  - name: Outer
    script:
      actions:
        onEnter: {command: sh, args: ["-c", "echo outer in $QUEUE; echo openjd_env: SEED=7"]}
        onExit: {command: sh, args: ["-c", "echo outer out"]}
steps:
  - name: Draw
    parameterSpace: {taskParameterDefinitions: [{name: Frame, type: INT, range: "1-9"}]}
    stepEnvironments:
      - name: Inner
        script:
          actions:
            onEnter: {command: sh, args: ["-c", "echo inner in $SEED"]}
            onExit: {command: sh, args: ["-c", "echo inner out"]}
    script: {actions: {onRun: {command: sh, args: ["-c", "echo frame {{Task.Param.Frame}}"]}}}
  - name: Join
    script: {actions: {onRun: {command: sh, args: ["-c", "echo join {{Param.Scene}}; exit 3"]}}}
"#;

/// What was said that is no heading.
fn plain_log_of(said: &[FromRunner]) -> Vec<String> {
    log_of(said).into_iter().filter(|line| !line.starts_with("-----")).collect()
}

#[test]
fn a_job_is_played_whole_in_one_session_whose_environments_stand_around_all_steps() {
    let steps = [(0, PlayedTasks::These(vec![TaskNo(4), TaskNo(1)])), (1, PlayedTasks::First(9))];
    let mut runner = Runner::play(PLAYED, &steps, |job| {
        job.environments = vec![EnvironmentFile {
            format: TemplateFormat::Yaml,
            template: "{specificationVersion: environment-2023-09, \
                environment: {name: Farm, variables: {QUEUE: night}}}"
                .into(),
        }];
        job.path_mapping = vec![MappingRule {
            source_path_format: MappedFormat::Posix,
            source_path: "/old".into(),
            destination_path: "/new".into(),
        }];
    });
    let (said, error) = runner.until_ended();
    let zero = "Process exited with code: 0";
    let wanted = [
        ["outer in night", "openjd_env: SEED=7", zero],
        ["inner in 7", zero, "frame 5"],
        [zero, "frame 2", zero],
        ["inner out", zero, "join /new/scene"],
        ["Process exited with code: 3", "outer out", zero],
    ];
    assert_eq!(
        (plain_log_of(&said), error),
        (wanted.as_flattened().iter().map(ToString::to_string).collect(), None)
    );
    let ended = said.iter().filter_map(|said| match said {
        FromRunner::TaskEnded { task, outcome, .. } => Some((task.0, outcome == &Outcome::Done)),
        _ => None,
    });
    assert_eq!(ended.collect::<Vec<_>>(), [(0, true), (1, true), (2, false)]);
    assert_eq!(fs::read_dir(runner.path("session")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn nothing_is_played_after_an_environment_that_cannot_be_entered_and_all_are_left() {
    let template = PLAYED.replace("echo inner in $SEED", "exit 9");
    let mut runner = Runner::play(&template, &[(0, PlayedTasks::First(2))], |_| {});
    let (said, error) = runner.until_ended();
    let log = plain_log_of(&said);
    assert!(error.unwrap().contains("entering the environment Inner"));
    assert!(!log.iter().any(|line| line.starts_with("frame")), "{log:?}");
    let zero = "Process exited with code: 0";
    assert_eq!(log[3..], ["Process exited with code: 9", "inner out", zero, "outer out", zero]);
}

#[test]
fn a_job_that_is_played_is_stopped_on_request_and_leaves_its_environments() {
    let template = PLAYED.replace("echo frame {{Task.Param.Frame}}", "echo begun; sleep 600");
    let mut runner = Runner::play(&template, &[(0, PlayedTasks::First(2))], |_| {});
    runner.until(
        |said| matches!(said, FromRunner::Log { lines, .. } if lines.contains(&"begun".into())),
    );
    runner.tell(&ToRunner::Cancel);
    assert_eq!(runner.until_task_ended().1, Outcome::Canceled);
    let log = plain_log_of(&runner.until_ended().0);
    assert!(log.contains(&"inner out".into()) && log.contains(&"outer out".into()), "{log:?}");
}

#[test]
fn a_program_that_is_not_there_and_a_task_that_is_none_fail_and_say_so() {
    let template = FAILING.replace(
        "command: sh, args: [\"-c\", \"{{Param.Command}}\"]",
        "command: \"{{Param.Command}}\"",
    );
    let mut runner = Runner::start(&template, &[("Command", "no-such-renderer")], 0);
    runner.until_ready();
    runner.run(0);
    let (_, outcome, _) = runner.until_task_ended();
    assert!(
        matches!(&outcome, Outcome::Failed { exit_code: None, message } if message.contains("no-such-renderer")),
        "{outcome:?}"
    );
    runner.until_ended();

    let mut runner = Runner::start(FAILING, &[("Command", "true")], 0);
    runner.until_ready();
    runner.run(1);
    let (_, outcome, _) = runner.until_task_ended();
    assert!(matches!(outcome, Outcome::Failed { message, .. } if message == "task 1 of 1"));
}

#[test]
fn a_task_is_stopped_on_request_and_by_its_own_timeout() {
    let mut runner = Runner::start(FAILING, &[("Command", "echo begun; sleep 600")], 0);
    runner.until_ready();
    runner.run(0);
    runner.until(|message| matches!(message, FromRunner::Log { .. }));
    runner.tell(&ToRunner::Cancel);
    assert_eq!(runner.until_task_ended().1, Outcome::Canceled);
    assert_eq!(runner.until_ended().1, None);

    let mut runner =
        Runner::start(&FAILING.replace("timeout: 5", "timeout: 1"), &[("Command", "sleep 600")], 0);
    runner.until_ready();
    runner.run(0);
    let outcome = runner.until_task_ended().1;
    assert!(matches!(outcome, Outcome::Failed { message, .. } if message.contains("timeout")));
}

#[test]
fn a_node_that_dies_in_mid_task_leaves_nothing_running() {
    let mut runner = Runner::start(FAILING, &[("Command", "echo begun; sleep 600")], 0);
    runner.until_ready();
    runner.run(0);
    runner.until(|message| matches!(message, FromRunner::Log { .. }));
    drop(runner.input.take());
    assert_eq!(runner.until_task_ended().1, Outcome::Canceled);
    assert_eq!(log_of(&runner.until_ended().0), ["outer out"]);
}

#[test]
fn a_broken_job_or_environment_or_node_ends_the_session_with_the_reason() {
    let mut runner = Runner::start("specificationVersion: jobtemplate-2099-01\n", &[], 0);
    let (_, error) = runner.until_ended();
    assert!(error.unwrap().contains("jobtemplate-2099-01"));

    let broken = FAILING.replace("onEnter: {command: \"true\"}", "onEnter: {command: \"false\"}");
    let mut runner = Runner::start(&broken, &[("Command", "true")], 0);
    let (said, error) = runner.until_ended();
    assert!(error.unwrap().contains("entering the environment Outer"));
    assert_eq!(log_of(&said), ["Process exited with code: 1", "outer out"]);

    let mut runner = Runner::start(FAILING, &[("Command", "true")], 0);
    runner.until_ready();
    runner.input.as_mut().unwrap().write_all(b"{}\n").unwrap();
    assert!(runner.until_ended().1.unwrap().contains("malformed"));
}

#[test]
fn the_tasks_of_adaptive_chunks_are_numbered_as_the_node_numbers_them() {
    let template = r#"
specificationVersion: jobtemplate-2023-09
extensions: [TASK_CHUNKING]
name: Chunks
steps:
  - name: Draw
    parameterSpace:
      taskParameterDefinitions:
        - name: Frames
          type: CHUNK[INT]
          range: "1-10"
          chunks: {defaultTaskCount: 4, targetRuntimeSeconds: 60, rangeConstraint: CONTIGUOUS}
    script: {actions: {onRun: {command: echo, args: ["chunk {{Task.Param.Frames}}"]}}}
"#;
    let mut runner = Runner::start(template, &[], 0);
    runner.until_ready();
    let mut chunks = Vec::new();
    for task in 0..3 {
        runner.run(task);
        let (said, outcome, _) = runner.until_task_ended();
        assert_eq!(outcome, Outcome::Done);
        chunks.extend(log_of(&said));
    }
    let frames: Vec<&str> = chunks.iter().map(|line| &line["chunk ".len()..]).collect();
    assert!(frames[0].starts_with("1-") && frames[2].ends_with("-10"), "{frames:?}");
    runner.run(3);
    assert!(matches!(runner.until_task_ended().1, Outcome::Failed { .. }));
}

const BALL: &str = "#version 3.7; global_settings { assumed_gamma 1 } camera { location -3*z look_at 0 }
    light_source { <2, 4, -3> rgb 1 } sphere { <clock - 0.5, 0, 0>, 0.5 pigment { rgb <1, clock, 0> } }";

/// A folder with the scene and its settings, and in `native` the frames that POV-Ray renders by itself.
fn animation() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ball.pov"), BALL).unwrap();
    let settings = "Input_File_Name=ball.pov\nInitial_Frame=1\nFinal_Frame=12\n\
                    Initial_Clock=0\nFinal_Clock=1\nAntialias=On\n";
    fs::write(folder.path().join("ball.ini"), settings).unwrap();
    fs::create_dir(folder.path().join("native")).unwrap();
    folder
}

fn native(folder: &TempDir, arguments: &[&str]) {
    let ran = Command::new("povray")
        .current_dir(folder.path())
        .args(arguments)
        .args(["+Onative/ball.png", "+FN", "+W32", "+H24", "-D", "+WT1"])
        .stderr(Stdio::null())
        .status();
    assert!(ran.expect("POV-Ray is installed").success());
}

/// Size and pixels of a PNG, without the date that POV-Ray writes into it: the same pixels are
/// packed into the same bytes by the same program.
fn picture(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    assert!(bytes.starts_with(b"\x89PNG"));
    let mut rest = &bytes[8..];
    let mut kept = Vec::new();
    while let Some((head, tail)) = rest.split_at_checked(8) {
        let len = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
        if [&b"IHDR"[..], b"IDAT"].contains(&&head[4..]) {
            kept.extend_from_slice(&tail[..len]);
        }
        rest = &tail[len + 4..];
    }
    kept
}

fn renders_as_native(template: &str, folder: &TempDir, extra: &[(&str, &str)]) {
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let out = tempfile::tempdir().unwrap();
    let (scene, top, to) = (at("ball.pov"), at(""), out.path().to_str().unwrap().to_owned());
    let mut parameters = vec![
        ("Scene", scene.as_str()),
        ("SceneFolder", top.as_str()),
        ("Name", "ball"),
        ("OutputDir", to.as_str()),
        ("Frames", "1-12"),
        ("Width", "32"),
        ("Height", "24"),
    ];
    parameters.extend(extra);
    let mut runner = Runner::start(template, &parameters, 0);
    runner.until_ready();
    for task in [2, 11] {
        runner.run(task);
        let (said, outcome, _) = runner.until_task_ended();
        assert_eq!(outcome, Outcome::Done, "{:?}", log_of(&said));
        let name = format!("ball{:02}.png", task + 1);
        let ours = picture(&out.path().join(&name));
        let theirs = picture(&folder.path().join("native").join(&name));
        assert!(!ours.is_empty() && ours == theirs, "{name} is another picture");
    }
    let n_files = fs::read_dir(out.path()).unwrap().count();
    assert_eq!(n_files, 2, "one task leaves one frame and nothing else");
    runner.tell(&ToRunner::Finish);
    assert_eq!(runner.until_ended().1, None);
}

#[test]
fn frames_of_a_pov_ray_scene_are_the_ones_of_a_native_animation() {
    let folder = animation();
    native(&folder, &["ball.pov", "+KFI1", "+KFF12"]);
    let template = include_str!("../../../node/bundles/povray/template.yaml");
    renders_as_native(template, &folder, &[("FirstFrame", "1"), ("LastFrame", "12")]);
}

#[test]
fn frames_of_pov_ray_settings_are_the_ones_of_a_native_animation() {
    let folder = animation();
    native(&folder, &["ball.ini"]);
    let template = include_str!("../../../node/bundles/povray/animation.yaml");
    let settings = folder.path().join("ball.ini");
    renders_as_native(template, &folder, &[("Settings", settings.to_str().unwrap())]);
}

#[test]
fn the_command_bundles_run_in_the_output_folder_with_the_frame() {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().to_str().unwrap();
    let template = include_str!("../../../node/bundles/command/template.yaml");
    let command = "echo \"it's {frame}\" > f{frame4}.txt";
    let parameters = [("Command", command), ("OutputDir", to), ("Frames", "7")];
    let mut runner = Runner::start(template, &parameters, 0);
    runner.until_ready();
    runner.run(0);
    assert_eq!(runner.until_task_ended().1, Outcome::Done);
    let text = fs::read_to_string(out.path().join("f0007.txt")).unwrap();
    assert_eq!(text, "it's 7\n");

    let script = out.path().join("do it.sh");
    fs::write(&script, "echo $1 > \"script $1\"; exit 3").unwrap();
    let template = include_str!("../../../node/bundles/command/script.yaml");
    let script = script.to_str().unwrap();
    let parameters = [("Script", script), ("Name", "do"), ("OutputDir", to), ("Frames", "9")];
    let mut runner = Runner::start(template, &parameters, 0);
    runner.until_ready();
    runner.run(0);
    let outcome = runner.until_task_ended().1;
    assert!(matches!(outcome, Outcome::Failed { exit_code: Some(3), .. }));
    assert!(out.path().join("script 9").exists());
}

const LOOKING: &str = r#"
specificationVersion: jobtemplate-2023-09
name: Looking
steps:
  - name: Look
    script:
      actions:
        onRun:
          command: sh
          args: ["-c", "cat \"$SHOW/none.png\" \"$SHOW/probed\" \"$ELSE/probed\"; test -e \"$SHOW/none.png\"; true"]
"#;

fn windows_rule() -> PathRule {
    let (source, destination) = (r"S:\show".into(), "/mnt/r1".into());
    PathRule { format: PathFormat::Windows, source, destination }
}

/// The preload library, built once by a cargo of its own: it has another profile than the tests.
fn preload() -> std::path::PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_meshfarm-session")).ancestors().nth(2).unwrap();
    let done = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--profile", "preload", "-p", "meshfarm-preload"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    target.join("preload/libmeshfarm_preload.so")
}

/// The library's table with one watched folder and nothing else, as the launcher lays it out.
fn table(watched: &str, notes: &str) -> Vec<u8> {
    let short = |n: usize| u32::try_from(n).unwrap();
    let (text, start) = (format!("{watched}{notes}\0"), 48);
    let (path, length) = (short(watched.len()), short(notes.len() + 1));
    let head = [0, 0, 1, start, short(text.len()), 0, path, length, 0, path];
    let head = head.into_iter().flat_map(u32::to_le_bytes);
    b"MFMAP\0\0\x02".iter().copied().chain(head).chain(text.into_bytes()).collect()
}

#[test]
fn what_a_task_looked_for_in_vain_stands_in_its_log() {
    let mut runner = Runner::start_with(LOOKING, &[], 0, |command, folder| {
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        fs::create_dir(at("else")).unwrap();
        fs::write(at("else/probed"), "here").unwrap();
        fs::write(at("map.bin"), table(&at("show"), &at("session/.meshfarm-paths"))).unwrap();
        command.env("SHOW", at("show")).env("ELSE", at("else"));
        command.env("LD_PRELOAD", preload()).env("MESHFARM_PATHS", at("map.bin"));
        vec![windows_rule()]
    });
    runner.until_ready();
    runner.run(0);
    let (said, outcome, _) = runner.until_task_ended();
    assert_eq!(outcome, Outcome::Done);
    let told: Vec<_> =
        log_of(&said).into_iter().filter(|line| line.starts_with("meshfarm: ")).collect();
    assert_eq!(told, [format!("meshfarm: not found: {}", runner.path("show/none.png").display())]);
    runner.tell(&ToRunner::Finish);
    assert_eq!(runner.until_ended().1, None);
}

#[test]
fn a_session_with_windows_paths_that_nobody_maps_is_refused() {
    let mut runner = Runner::start_with(LOOKING, &[], 0, |_, _| vec![windows_rule()]);
    let (_, error) = runner.until_ended();
    assert!(error.as_ref().is_some_and(|e| e.contains("libmeshfarm_preload.so")), "{error:?}");
}
