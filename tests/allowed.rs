//! What a jail lets its program do: the graphics cards that a task holds, the calls of its kind of program, and what a
//! policy file says of the command that it starts.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::harness::{
    A_JOB, Mesh, Ran, Site, alone, borrower, finish, folder, lender, programs, tasks, text,
    wait_until, write,
};
use crate::namespaces::Space;

/// A `/dev` with two graphics cards, which are the null driver's, beside what every program needs.
const TWO_CARDS: &str = "
    at=$(mktemp -d)
    mount -t tmpfs -o mode=755 cards \"$at\"
    for name in null zero full random urandom tty loop-control; do cp -a /dev/$name \"$at\"; done
    for disk in /dev/loop[0-9]*; do cp -a \"$disk\" \"$at\"; done
    mkdir \"$at/shm\"; mount --bind /dev/shm \"$at/shm\"
    for card in nvidiactl nvidia0 nvidia1; do mknod -m 666 \"$at/$card\" c 1 3; done
    mount --move \"$at\" /dev
    rmdir \"$at\"
";

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// A job that holds so many cards and runs a shell command, which finds its folder for outputs in `$1`.
fn submit_on_cards(site: &Site, room: &Path, cards: u32, command: &str) -> (String, PathBuf) {
    let requirement = match cards {
        0 => String::new(),
        n => {
            format!("    hostRequirements: {{amounts: [{{name: amount.worker.gpu, min: {n}}}]}}\n")
        }
    };
    let out = tempfile::tempdir_in(room).unwrap().keep();
    let template = format!(
        "specificationVersion: jobtemplate-2023-09\nname: cards\nparameterDefinitions:\n\
         \x20 - {{name: Out, type: PATH, objectType: DIRECTORY, dataFlow: OUT}}\n\
         steps:\n  - name: Look\n{requirement}    script:\n      actions:\n        onRun:\n\
         \x20         command: sh\n          args: ['-c', '{command}', 'sh', '{{{{Param.Out}}}}']\n"
    );
    let bundle = out.join("bundle");
    fs::create_dir(&bundle).unwrap();
    write(&bundle.join("template.yaml"), template);
    let to = out.join("to");
    let flag = format!("Out={}", to.display());
    (site.submit(&[bundle.to_str().unwrap(), "--retries", "0", "-p", &flag]), to)
}

/// What a task sees of cards.
const LOOK: &str = "cd /dev; for name in nvidia0 nvidia1 nvidiactl; do \
    [ -e $name ] && echo x > $name && echo $name >> $1/seen; done; \
    echo ${CUDA_VISIBLE_DEVICES-none} >> $1/seen; [ -e /sys/devices ] && echo sys >> $1/seen; true";

#[test]
fn a_task_sees_the_cards_that_it_holds_and_others_see_none() {
    if !is_root() {
        // Device files are made by root alone.
        return;
    }
    let room = folder();
    let space = Space::new(&["--mount"]);
    space.shell(&["--mount"], TWO_CARDS);
    let mut plan = alone("oslo", 4);
    plan.within = space.enter(&["--mount"]);
    let mut site = Site::init(room.path(), plan);
    site.start();
    let seen = |(job, out): (String, PathBuf)| {
        let done = site.wait_done(&job);
        assert_eq!(tasks(&done).len(), 1);
        fs::read_to_string(out.join("seen")).unwrap()
    };
    let submit = |cards, command: &str| submit_on_cards(&site, room.path(), cards, command);

    assert_eq!(seen(submit(0, LOOK)), "none\n");
    assert_eq!(seen(submit(1, LOOK)), "nvidia0\nnvidiactl\n0\nsys\n");
    let (holder, _) = submit(1, "echo held; sleep 1000");
    let log = wait_until("a job holds the first card", A_JOB, || {
        let log = site.run(&["logs", &holder]).out;
        log.contains("held").then_some(log)
    });
    assert!(log.contains("graphics cards"), "{log}");
    // The other card, by the number that it has where no other one is seen.
    assert_eq!(seen(submit(1, LOOK)), "nvidia1\nnvidiactl\n0\nsys\n");
    assert_eq!(seen(submit(0, LOOK)), "none\n");
    site.run(&["cancel", &holder]);
    assert_eq!(seen(submit(2, LOOK)), "nvidia0\nnvidia1\nnvidiactl\n0,1\nsys\n");

    space.shell(&["--mount"], "rm /dev/nvidia1");
    let (gone, _) = submit(2, LOOK);
    let ended = site.wait_ended(&gone);
    let reason = text(&tasks(&ended)[0]["reason"]);
    assert!(reason.contains("graphics card 1") && reason.contains("/dev/nvidia1"), "{ended:#}");
}

/// Whether a task may make a socket, in its log.
const SOCKET: &str = "Command=perl -MSocket -e \
    'print socket(my $s, PF_UNIX, SOCK_STREAM, 0) ? \"made\" : \"refused: $!\", \"\\n\"'";

/// The log of a job with one task that asks for a socket.
fn asked_for_socket(site: &Site, room: &Path, mesh_toml: &str) -> String {
    let out = tempfile::tempdir_in(room).unwrap().keep();
    let bundle = out.join("bundle");
    fs::create_dir(&bundle).unwrap();
    let template = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/bundles/command/template.yaml"),
    );
    write(&bundle.join("template.yaml"), template.unwrap());
    write(&bundle.join("mesh.toml"), mesh_toml);
    let to = format!("OutputDir={}", out.join("to").display());
    let flags = [bundle.to_str().unwrap(), "-p", SOCKET, "-p", &to];
    let job = site.submit(&flags);
    site.wait_done(&job);
    wait_until("the log is here", A_JOB, || {
        let log = site.run(&["logs", &job]).out;
        (log.contains("made") || log.contains("refused")).then_some(log)
    })
}

#[test]
fn a_job_names_its_kind_of_program_and_a_lender_lets_no_more_than_its_owner_says() {
    let mut mesh = Mesh::of(vec![borrower("oslo"), lender("lyon", 1)]);
    let room = mesh.new_folder("jobs");
    let log = asked_for_socket(&mesh[0], &room, "");
    assert!(log.contains("S2: for command, ") && log.contains("made"), "{log}");
    let log = asked_for_socket(&mesh[0], &room, "profile = 'povray'\n");
    assert!(log.contains("S2: for povray, ") && log.contains("refused: Operation not"), "{log}");

    mesh[1].stop();
    let config = mesh[1].home.join("meshfarm.toml");
    let settings = fs::read_to_string(&config).unwrap();
    let narrow = settings.replace("profile = \"command\"", "profile = \"povray\"");
    assert_ne!(narrow, settings);
    write(&config, narrow);
    mesh[1].start();
    mesh.wait_known();
    let log = asked_for_socket(&mesh[0], &room, "");
    assert!(log.contains("S2: for povray, ") && log.contains("refused: Operation not"), "{log}");
}

/// Runs a command in a jail by a policy file of these lines.
fn run(room: &Path, policy: &str, command: &[&str]) -> Ran {
    write(&room.join("policy.toml"), format!("version = 1\n{policy}"));
    let mut run = Command::new(programs().join("meshfarm"));
    run.args(["sandbox", "run", "--policy", "policy.toml", "--"]).args(command);
    finish(run.current_dir(room))
}

#[test]
fn only_the_program_of_the_policy_starts_and_only_with_its_contents() {
    let folder = folder();
    let room = folder.path();
    let sum = finish(Command::new("sha256sum").arg("/usr/bin/env")).out;
    let sum = sum.split(' ').next().unwrap();
    let wrong = "0".repeat(64);
    let only = "[exec]\nprogram = 'env'\n";
    assert_eq!(run(room, only, &["env", "true"]).code, 0);
    assert_eq!(run(room, only, &["/usr/bin/env", "true"]).code, 0);
    // Another program; one of the same name; a link of another name to another program.
    run(room, only, &["true"]).refused(2, &["/usr/bin/true", "exec.program"]);
    fs::copy("/usr/bin/true", room.join("env")).unwrap();
    run(room, only, &["./env"]).refused(2, &["exec.program"]);
    fs::remove_file(room.join("env")).unwrap();
    symlink("/usr/bin/true", room.join("env")).unwrap();
    run(room, only, &["./env"]).refused(2, &["exec.program"]);
    let pinned = |sum: &str| format!("[exec]\nsha256 = '{sum}'\n");
    assert_eq!(run(room, &pinned(sum), &["env", "true"]).code, 0);
    run(room, &pinned(&wrong), &["env", "touch", "/tmp/x"]).refused(2, &["sha256", sum]);
    run(room, &pinned(sum), &["true"]).refused(2, &["/usr/bin/true", "sha256"]);
}

#[test]
fn what_is_printed_beyond_the_policy_is_left_out_and_counted() {
    let folder = folder();
    let room = folder.path();
    let flood = ["sh", "-c", "yes 0123456789abcdef | head -n 200000; yes x | head -n 9 >&2"];
    let ran = run(room, "[limits]\nlog_bytes = '64KiB'\n", &flood);
    assert_eq!((ran.code, ran.out.len() <= 64 << 10), (0, true), "{}", ran.out.len());
    assert!(ran.out.len() > 60 << 10 && ran.out.lines().all(|line| line.len() == 16));
    assert!(ran.err.contains("lines were left out") && ran.err.contains("64 KiB in all"));
    // Without an end to its line it is no different.
    let endless = ["sh", "-c", "head -c 3000000 /dev/zero"];
    let ran = run(room, "[limits]\nlog_bytes = '1MiB'\n", &endless);
    assert!(ran.code == 0 && ran.out.len() <= 1 << 20, "{}", ran.out.len());
    let begun = Instant::now();
    let ran = run(room, "[limits]\nlog_rate = '4KiB/s'\n", &flood);
    let most = (16.0 + begun.elapsed().as_secs_f64() + 1.0) * 4096.0;
    #[expect(clippy::cast_precision_loss, reason = "it is a few kilobytes")]
    let printed = ran.out.len() as f64;
    assert!(ran.code == 0 && printed <= most, "{printed} of {most}");
    assert!(ran.err.contains("4 KiB a second"), "{}", ran.err);
    // A rate that nobody exceeds changes nothing.
    let ran = run(room, "[limits]\nlog_rate = '1GiB/s'\n", &flood);
    assert_eq!((ran.out.len(), ran.err.as_str()), (200_000 * 17, "x\nx\nx\nx\nx\nx\nx\nx\nx\n"));
}

#[test]
fn a_program_that_would_not_find_windows_paths_does_not_start_where_that_is_required() {
    let folder = folder();
    let room = folder.path();
    let source = room.join("alone.c");
    write(&source, "int main(void) { return 0; }\n");
    let link = ["-static", "-o", "alone", "alone.c"];
    assert_eq!(finish(Command::new("cc").args(link).current_dir(room)).code, 0);
    let required = "[preload]\nrequire_handshake = true\n";
    assert_eq!(run(room, required, &["true"]).code, 0);
    assert_eq!(run(room, "", &["./alone"]).code, 0);
    run(room, required, &["./alone"]).refused(2, &["require_handshake", "alone"]);
    write(&room.join("script"), format!("#!{}/alone\n", room.display()));
    let executable = Command::new("chmod").args(["755", "script"]).current_dir(room).status();
    assert!(executable.unwrap().success());
    run(room, required, &["./script"]).refused(2, &["require_handshake", "alone"]);
    // An installation without the library.
    let bare = room.join("installed");
    fs::create_dir(&bare).unwrap();
    for name in ["meshfarm", "meshfarm-sandbox", "meshfarm-session"] {
        fs::hard_link(programs().join(name), bare.join(name))
            .or_else(|_other_disk| fs::copy(programs().join(name), bare.join(name)).map(drop))
            .unwrap();
    }
    let mut without = Command::new(bare.join("meshfarm"));
    without.args(["sandbox", "run", "--policy", "policy.toml", "--", "true"]).current_dir(room);
    write(&room.join("policy.toml"), format!("version = 1\n{required}"));
    finish(&mut without).refused(2, &["require_handshake", "libmeshfarm_preload.so"]);
}

#[test]
fn programs_of_the_jobs_own_making_run_only_where_the_policy_lets_them() {
    let folder = folder();
    let room = folder.path();
    write(&room.join("lib.c"), "void made(void) {}\n");
    let library = ["-shared", "-fPIC", "-nostdlib", "-o", "lib.so", "lib.c"];
    assert_eq!(finish(Command::new("cc").args(library).current_dir(room)).code, 0);
    let memory = "import os; f = os.memfd_create('x', 0); os.write(f, open('/bin/true','rb').read()); \
                  os.execv(f'/proc/self/fd/{f}', ['true'])";
    let attempts = [
        ("a copy", "cp /bin/true /session/x && /session/x".to_owned()),
        (
            "a script",
            "printf '#!/bin/sh\\n' > /session/x && chmod 755 /session/x && /session/x".into(),
        ),
        (
            "by the loader",
            "cp /bin/true /session/x && $(ls /lib*/ld-linux-*.so.* | head -n 1) /session/x".into(),
        ),
        (
            "a library",
            format!(
                "cp {}/lib.so /session/x && /usr/bin/python3 -c \"import ctypes; ctypes.CDLL('/session/x')\"",
                room.display()
            ),
        ),
        ("nameless memory", format!("/usr/bin/python3 -c \"{memory}\"")),
    ];
    for (how, script) in &attempts {
        let free = run(room, "", &["sh", "-c", script]);
        assert_eq!(free.code, 0, "the control of {how}: {free:?}");
        let held = run(room, "[exec]\nallow_job_exec = false\n", &["sh", "-c", script]);
        assert_ne!(held.code, 0, "{how}: {held:?}");
        assert!(!held.err.contains("not found"), "{how}: {held:?}");
    }
    // What is installed runs, and reads what it is given.
    let script = "echo 'echo read' > /session/x; sh /session/x";
    let ran = run(room, "[exec]\nallow_job_exec = false\n", &["sh", "-c", script]);
    assert_eq!(ran.out, "read\n", "{ran:?}");
}

/// Stands for Blender: tells a version, and says with which arguments it is called.
const BLENDER: &str = "#!/bin/sh\ncase \"$*\" in\n*--version*) echo 'Blender 9.8.7' ;;\n\
    *) echo \"called with: $*\" ;;\nesac\n";

#[test]
fn a_renderer_in_a_folder_of_the_site_runs_and_a_scenes_own_scripts_only_when_the_job_says_so() {
    let folder = folder();
    let mut site = Site::init(folder.path(), alone("oslo", 1));
    let software = folder.path().join("software");
    fs::create_dir(&software).unwrap();
    write(&software.join("blender"), BLENDER);
    let open = Command::new("chmod").args(["-R", "755"]).arg(&software).status();
    assert!(open.unwrap().success());
    let config = site.home.join("meshfarm.toml");
    let settings = fs::read_to_string(&config).unwrap();
    let named = settings.replace("software = []", &format!("software = [{software:?}]"));
    assert_ne!(named, settings);
    write(&config, named);
    site.start();
    let scene = folder.path().join("shot/scene.blend");
    fs::create_dir(folder.path().join("shot")).unwrap();
    write(&scene, "a scene");
    for (more, argument) in [
        (&[][..], "--disable-autoexec"),
        (&["-p", "SceneScripts=--enable-autoexec"][..], "--enable-autoexec"),
    ] {
        let flags = [scene.to_str().unwrap(), "--frames", "1", "--where", "local"];
        let job = site.submit(&[&flags[..], more].concat());
        site.wait_done(&job);
        let log = wait_until("the log is here", A_JOB, || {
            let log = site.run(&["logs", &job]).out;
            log.contains("called with: ").then_some(log)
        });
        assert!(log.contains("for blender-cpu, "), "{log}");
        let (_, called) = log.split_once("called with: ").unwrap();
        // In front of the scene, or it would come too late.
        let (before, _) = called.split_once("scene.blend").unwrap();
        assert!(before.contains("--factory-startup") && before.contains(argument), "{called}");
        assert_eq!(called.matches("-autoexec").count(), 1, "{called}");
    }
}
