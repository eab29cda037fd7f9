//! The jail as a job on another site meets it: a background process, a disk of its own, limits, and files that are missing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::thread;

use crate::harness::{
    A_JOB, Mesh, SOON, Site, alone, borrower, folder, lender, tasks, text, wait_until, write,
};
use crate::outsource::processes_with;

/// A bundle whose environment starts a process in the background, which its tasks hear and nobody ends.
const BUNDLE: &str = r#"
specificationVersion: jobtemplate-2023-09
name: A server in the background
parameterDefinitions:
  - {name: Out, type: PATH, objectType: DIRECTORY, dataFlow: OUT}
  - {name: Mark, type: STRING}
jobEnvironments:
  - name: Server
    script:
      embeddedFiles:
        - name: Serve
          filename: serve.sh
          type: TEXT
          data: |
            (setsid sh -c 'while :; do date +%s%N > /session/beat; sleep 0.05; done; exit' "$1" &) </dev/null >/dev/null 2>&1
      actions:
        onEnter: {command: sh, args: ["{{Env.File.Serve}}", "{{Param.Mark}}"]}
steps:
  - name: Ask
    parameterSpace:
      taskParameterDefinitions:
        - {name: Frame, type: INT, range: "1-2"}
    script:
      embeddedFiles:
        - name: Ask
          filename: ask.sh
          type: TEXT
          data: |
            until [ -s /session/beat ]; do sleep 0.05; done
            before=$(cat /session/beat)
            while [ "$(cat /session/beat)" = "$before" ]; do sleep 0.05; done
            echo answered > "$1/$2.txt"
      actions:
        onRun: {command: sh, args: ["{{Task.File.Ask}}", "{{Param.Out}}", "{{Task.Param.Frame}}"]}
"#;

fn write_bundle(mesh: &Mesh, policy: &str) -> PathBuf {
    let bundle = mesh.new_folder("bundle");
    write(&bundle.join("template.yaml"), BUNDLE);
    write(&bundle.join("mesh.toml"), policy);
    bundle
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Runs the bundle through another site; the level that its tasks had.
fn level_of(mesh: &Mesh, policy: &str, mark: &str) -> String {
    let (bundle, out) = (write_bundle(mesh, policy), mesh.new_folder("out"));
    let (mark_flag, out_flag) = (format!("Mark={mark}"), format!("Out={}", out.display()));
    let job = mesh[0].submit(&[bundle.to_str().unwrap(), "-p", &mark_flag, "-p", &out_flag]);
    let done = mesh[0].wait_done(&job);
    for frame in ["1.txt", "2.txt"] {
        assert_eq!(fs::read_to_string(out.join(frame)).unwrap(), "answered\n");
    }
    wait_until("the background process is gone", SOON, || {
        (processes_with(mark) == 0).then_some(())
    });
    text(&tasks(&done)[0]["isolation"]).to_owned()
}

#[test]
fn a_background_process_of_an_environment_serves_its_tasks_and_ends_with_the_session() {
    let mesh = Mesh::of(vec![borrower("oslo"), lender("lyon", 1)]);
    let mark = format!("mark-{}", std::process::id());
    assert_eq!(level_of(&mesh, "", &mark), "S2");
    if is_root() {
        // Where the machine has it, a job gets a disk of its own, and its outputs come home from there.
        let sites = mesh[0].json(&["sites"]);
        let lyon = sites.as_array().unwrap().iter().find(|site| site["name"] == "lyon").unwrap();
        if lyon["profile"]["hosts"][0]["level"] == "S3" {
            assert_eq!(level_of(&mesh, "isolation = 'S3'\n", &format!("{mark}-own-disk")), "S3");
        }
    }
}

#[test]
fn a_task_that_makes_too_many_files_is_ended_with_the_limit_in_words() {
    let folder = folder();
    let mut site = Site::init(folder.path(), alone("oslo", 1));
    let config = site.home.join("meshfarm.toml");
    let settings = fs::read_to_string(&config).unwrap();
    let limited = settings.replace("# disk_files = 200000", "disk_files = 300");
    assert_ne!(limited, settings);
    write(&config, limited);
    site.start();
    let out = folder.path().join("out");
    let flags = ["bundle:command", "--frames", "1", "--retries", "0", "-p"];
    let command = "Command=i=0; while :; do : > $i; i=$((i+1)); done";
    let job = site.submit(&[&flags[..], &[command, "--output", out.to_str().unwrap()]].concat());
    let ended = site.wait_ended(&job);
    let reason = text(&tasks(&ended)[0]["reason"]);
    assert!(reason.contains("more than the 300 files"), "{ended:#}");
    assert!(site.run(&["logs", &job]).out.contains("more than the 300 files"));
}

#[test]
fn a_file_that_a_task_looks_for_in_vain_is_named_in_its_log() {
    let mesh = Mesh::of(vec![borrower("oslo"), lender("lyon", 1)]);
    let shot = mesh.new_folder("shot");
    write(&shot.join("there.txt"), "there\n");
    let out = mesh.new_folder("out");
    let (there, none) = (shot.join("there.txt"), shot.join("none.png"));
    let command = format!("Command=cat {} {} || true", there.display(), none.display());
    let flags = ["bundle:command", "--frames", "1", "-p", &command, "--input"];
    let paths = [shot.to_str().unwrap(), "--output", out.to_str().unwrap()];
    let job = mesh[0].submit(&[&flags[..], &paths].concat());
    mesh[0].wait_done(&job);
    let line = format!("meshfarm: not found: {}", none.display());
    wait_until("the log names the missing file", A_JOB, || {
        let log = mesh[0].run(&["logs", &job]).out;
        assert!(!log.contains(&format!("not found: {}", there.display())), "{log}");
        log.contains(&line).then_some(())
    });
    let missing = mesh[0].json(&["missing", &job]);
    let files = missing["missing"].as_array().unwrap();
    let file = files.iter().find(|file| file["path"] == none.to_str().unwrap()).unwrap();
    assert_eq!(file["tasks"][0], "Frame=1");
    assert!(!files.iter().any(|file| file["path"] == there.to_str().unwrap()), "{missing:#}");
}

/// A server that tells every caller a word; its port. It serves until the test's process ends.
fn server(word: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // A caller that hangs up early has its own reason.
            drop(writeln!(stream, "{word}").and_then(|()| stream.read(&mut [0])));
        }
    });
    port
}

#[test]
fn the_licence_server_of_a_site_is_the_only_network_that_its_tasks_have() {
    let folder = folder();
    let mut site = Site::init(folder.path(), alone("oslo", 1));
    let (licences, other) = (server("a-licence"), server("something-else"));
    let config = site.home.join("meshfarm.toml");
    let settings = fs::read_to_string(&config).unwrap();
    write(&config, format!("{settings}\n[[service]]\nhost = \"127.0.0.1\"\nport = {licences}\n"));
    site.start();
    let out = folder.path().join("out");
    let ask = |port| format!("(exec 3<>/dev/tcp/127.0.0.1/{port} && head -n 1 <&3)");
    let script =
        format!("{} > licence; {} > other || echo refused > other", ask(licences), ask(other));
    let command = format!("Command=bash -c '{script}'");
    let flags = ["bundle:command", "--frames", "1", "-p", &command, "--output"];
    let job = site.submit(&[&flags[..], &[out.to_str().unwrap()]].concat());
    site.wait_done(&job);
    let log = site.run(&["logs", &job]).out;
    assert_eq!(fs::read_to_string(out.join("licence")).unwrap(), "a-licence\n", "{log}");
    assert_eq!(fs::read_to_string(out.join("other")).unwrap(), "refused\n");
}

/// Words in front of a program that shall find a machine without namespaces, and no root there.
fn without_namespaces() -> Vec<String> {
    let limit = "for kind in user mnt pid net ipc uts cgroup; do \
        echo 0 > /proc/sys/user/max_${kind}_namespaces; done; \
        exec setpriv --inh-caps=-all --bounding-set=-all --ambient-caps=-all \"$0\" \"$@\"";
    let words = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--keep-caps"];
    words.into_iter().chain(["sh", "-c", limit]).map(str::to_owned).collect()
}

#[test]
fn a_machine_without_namespaces_renders_for_its_own_site_and_for_nobody_else() {
    let mut weak = lender("lyon", 1);
    weak.within = without_namespaces();
    let mesh = Mesh::of(vec![borrower("oslo"), weak]);
    let out = mesh.new_folder("out");
    let flags = ["bundle:command", "--frames", "1", "-p", "Command=echo here > done", "--output"];
    let flags = [&flags[..], &[out.to_str().unwrap()]].concat();
    let own = mesh[1].submit(&[&flags[..], &["--where", "local"]].concat());
    let done = mesh[1].wait_done(&own);
    assert_eq!(tasks(&done)[0]["isolation"], "S1", "{done:#}");
    assert_eq!(fs::read_to_string(out.join("done")).unwrap(), "here\n");
    let log = mesh[1].run(&["logs", &own]).out;
    assert!(log.lines().next().unwrap().contains("S1"), "{log}");
    let doctor = mesh[1].run(&["doctor"]).out;
    assert!(doctor.contains("S1"), "{doctor}");
    // A job of another site asks for more by itself, and says so while it waits.
    let waits = mesh[0].submit(&flags);
    wait_until("the job says why it waits", SOON, || {
        let said = mesh[0].run(&["job", &waits]).out;
        (said.contains("lyon") && said.contains("S1")).then_some(())
    });
    assert_eq!(mesh[0].job(&waits)["phase"], "active");
}
