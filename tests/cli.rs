//! The command line as people and scripts use it.

use crate::harness::{A_JOB, Site, finish, folder};
use crate::harness::{Mesh, alone, borrower, lender, list, programs, text, wait_until};

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

const COMMANDS: [&str; 30] = [
    "init",
    "node",
    "doctor",
    "profile",
    "mesh",
    "invite",
    "join",
    "sites",
    "hosts",
    "submit",
    "jobs",
    "job",
    "watch",
    "logs",
    "missing",
    "cancel",
    "hold",
    "release",
    "retry",
    "kill",
    "priority",
    "outsource",
    "recall",
    "pause",
    "resume",
    "slots",
    "sandbox",
    "openjd",
    "backup",
    "restore",
];

#[test]
fn every_command_explains_itself_with_an_example() {
    let meshfarm = || Command::new(programs().join("meshfarm"));
    let overview = finish(meshfarm().arg("--help"));
    assert_eq!(overview.code, 0);
    assert!(overview.out.contains("Exit codes"), "{overview:?}");
    for command in COMMANDS {
        assert!(overview.out.contains(&format!("\n  {command} ")), "{command} is not listed");
        let help = finish(meshfarm().args([command, "--help"]));
        assert_eq!(help.code, 0, "{command}: {help:?}");
        assert!(help.out.contains(&format!("meshfarm {command}")), "{command}: {help:?}");
        assert!(help.out.contains("Example"), "{command}: {help:?}");
    }
}

#[test]
fn flags_that_are_wrong_end_with_exit_code_2_and_are_named() {
    let place = folder();
    let site = Site::init(place.path(), alone("oslo", 1));
    let wrong: [(&[&str], &str); 7] = [
        (&["submit", "a.pov", "--priority", "101"], "--priority"),
        (&["submit", "a.pov", "--resolution", "640"], "--resolution"),
        (&["submit", "a.pov", "--frames", "1-x"], "--frames"),
        (&["job", "xyz"], "hexadecimal"),
        (&["invite", "--uses", "0"], "--uses"),
        (&["retry", "aa", "--tasks", "3-1"], "--tasks"),
        (&["render"], "render"),
    ];
    for (args, word) in wrong {
        site.run(args).refused(2, &[word]);
    }
    for args in [&["jobs"][..], &["sites"], &["submit", "a.pov"], &["watch", "aa"], &["slots"]] {
        site.run(args).refused(3, &["no node is running", "meshfarm node"]);
    }
}

#[test]
fn a_job_is_watched_to_its_end_and_seen_from_every_side() {
    let mesh = Mesh::of(vec![borrower("oslo"), lender("lyon", 2)]);
    let (oslo, lyon) = (&mesh[0], &mesh[1]);
    let out = mesh.new_folder("out");
    let command = "Command=echo frame {frame}; sleep 0.3; echo {frame} > {frame4}.txt";
    let flags = ["submit", "bundle:command", "--frames", "1-6", "-p", command, "-o"];
    let args = [&flags[..], &[out.to_str().unwrap()]].concat();

    let dry = oslo.json(&[&args[..], &["--dry-run"]].concat());
    assert_eq!(list(&dry["steps"][0]["tasks"]).len(), 6);
    assert_eq!(list(&oslo.json(&["jobs"])).len(), 0);

    let watched = oslo.run(&[&["--json"][..], &args, &["--watch"]].concat());
    assert_eq!(watched.code, 0, "{watched:?}");
    let summary: serde_json::Value =
        serde_json::from_str(watched.out.lines().last().unwrap()).unwrap();
    assert_eq!(summary["state"], "done");
    assert_eq!(summary["sites"][0]["site"], "lyon");
    let jobs = oslo.json(&["jobs"]);
    let id = text(&jobs[0]["job"]);
    assert_eq!(jobs[0]["done"], 6);
    assert!(oslo.run(&["job", &id[..6]]).out.contains("lyon"));
    assert_eq!(oslo.run(&["--quiet", "jobs"]).out.trim(), id);
    oslo.run(&["job", "00000000000000000000000000000000"]).refused(2, &["000000"]);
    oslo.run(&["logs", id, "Frame=7"]).refused(2, &["Frame=7"]);
    wait_until("the logs are home", A_JOB, || {
        // Each begins with the isolation that the task had.
        (oslo.run(&["logs", id]).out.lines().count() == 12).then_some(())
    });

    let slots = lyon.json(&["slots"]);
    assert_eq!((slots["free"].as_u64(), slots["lending"].as_bool()), (Some(2), Some(true)));
    assert_eq!(lyon.json(&["profile"])["name"], "lyon");
    let doctor = lyon.json(&["doctor"]);
    let checks = list(&doctor["checks"]);
    assert!(
        checks.len() > 3 && checks.iter().all(|check| check["state"] != "broken"),
        "{doctor:#}"
    );
}

#[test]
fn any_command_runs_in_the_sandbox_with_its_own_exit_code_and_nothing_but_what_is_shown() {
    let place = folder();
    let scene = place.path().join("scene");
    std::fs::create_dir(&scene).unwrap();
    std::fs::write(scene.join("scene.txt"), "a sphere").unwrap();
    let secret = place.path().join("secret");
    std::fs::write(&secret, "canary-51").unwrap();
    for path in [place.path(), &scene] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let run = |flags: &[&str], script: &str| {
        let mut command = Command::new(programs().join("meshfarm"));
        command.current_dir(&scene).args(["sandbox", "run"]).args(flags);
        finish(command.args(["--", "/bin/sh", "-c", script]))
    };
    let ran = run(&[], "cat scene.txt; echo x > scene.txt; echo y > /session/y; exit 7");
    assert_eq!((ran.code, ran.out.as_str()), (7, "a sphere"), "{ran:?}");
    let ran = run(&[], &format!("cat {}", secret.display()));
    assert!(ran.code != 0 && !ran.out.contains("canary"), "{ran:?}");
    let ran = run(&["--write", "out"], "echo frame > out/f1");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(std::fs::read_to_string(scene.join("out/f1")).unwrap(), "frame\n");
    let owner = |path: &Path| std::fs::metadata(path).unwrap().uid();
    assert_eq!(owner(&scene.join("out/f1")), owner(&scene), "what was lent is given back");

    let policy = place.path().join("show.toml");
    let text = "version = 1\nrequire = ['netns', 'landlock>=3']\n[limits]\nwall_s = 1\n\
                [[map]]\nsource = '/mnt/out'\nhost = 'scene/out'\naccess = 'rw'\n[outputs]\naccept = ['*.exr']\n";
    std::fs::write(&policy, text).unwrap();
    let flags = ["--policy", policy.to_str().unwrap()];
    let script = "ls /mnt/out; cd /mnt/out; echo a > a.exr; echo b > b.png; ln -s / c.exr";
    let ran = run(&flags, script);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert_eq!(crate::harness::names_in(&scene.join("out")), ["a.exr", "f1"]);
    let ran = run(&flags, "sleep 30");
    assert_eq!(ran.code, 137, "{ran:?}");
    assert!(ran.err.contains("ran longer than its 1 s"), "{ran:?}");
    std::fs::write(&policy, "version = 1\nrequire = ['services']\n").unwrap();
    let ran = run(&flags, "sleep 30");
    assert!(ran.code == 2 && ran.err.contains("services"), "{ran:?}");
}
