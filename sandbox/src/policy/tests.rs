//! Policy files that are right, and what is said of those that are not.

use super::*;
use crate::ProcessList;

fn parse(text: &str) -> Result<Policy, String> {
    Policy::parse(Path::new("/p/show.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn every_policy_of_the_collection_is_read_and_names_its_profile() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let policy = Policy::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(serde_json::to_value(policy.profile).unwrap(), name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# ") && text.contains("meshfarm sandbox run"), "{name}");
        // What is commented out in it is right as well.
        let live: String = text.lines().map(|line| format!("{}\n", uncommented(line))).collect();
        parse(&live).unwrap_or_else(|error| panic!("{name} with everything in it: {error}"));
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["blender-cpu", "blender-gpu", "command", "povray", "python"]);
}

/// `#key = value` and `#[table]` without the hash; prose has a blank behind it.
fn uncommented(line: &str) -> &str {
    line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line)
}

#[test]
fn a_policy_becomes_what_the_launcher_takes() {
    let room = tempfile::tempdir().unwrap();
    for name in ["in", "out", "tool"] {
        fs::create_dir(room.path().join(name)).unwrap();
    }
    let file = room.path().join("show.toml");
    let text = r#"
        version = 1
        profile = "blender-gpu"
        level = "S3"
        require = ["netns", "landlock>=3"]
        on_missing = "degrade:S2"
        [[map]]
        id = "show"
        format = "windows"
        source = 'S:\show'
        host = "in"
        [[map]]
        source = "/mnt/out"
        host = "out"
        access = "rw"
        [env]
        OCIO = "/mnt/show/config.ocio"
        [exec]
        software = ["tool"]
        program = "blender"
        sha256 = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD"
        allow_job_exec = false
        [limits]
        mem = "24GiB"
        cpus = 8
        out_bytes = "20 GiB"
        log_bytes = "16MiB"
        log_rate = "256 KiB/s"
        [net]
        allow = [{ name = "rlm", host = "127.0.0.1", port = 5053 }]
        [gpu]
        devices = ["nvidia0"]
        [proc]
        mode = "compat"
        [preload]
        require_handshake = true
        [outputs]
        accept = ["*.exr"]
    "#;
    let ready = Policy::parse(&file, text).unwrap().ready(&file).unwrap();
    let spec = &ready.spec;
    spec.check().unwrap();
    let at: Vec<_> = spec.mounts.iter().map(|m| m.at.to_str().unwrap()).collect();
    assert_eq!(at, ["/mnt/show", "/mnt/out"]);
    assert_eq!(spec.mounts[1].access, Access::Write);
    assert_eq!(
        (spec.windows[0].source.as_str(), spec.windows[0].case_insensitive),
        (r"S:\show", true)
    );
    assert_eq!((spec.profile, spec.floor), (Profile::BlenderGpu, Level::S3));
    assert_eq!(spec.limits.memory_bytes, 24 << 30);
    assert_eq!((spec.limits.processors, spec.limits.disk_bytes), (Some(8000), 20 << 30));
    assert_eq!(spec.devices, [Path::new("/dev/nvidia0")]);
    assert_eq!(spec.services[0].address.to_string(), "127.0.0.1");
    assert_eq!(spec.process_list, ProcessList::Compat);
    assert_eq!(spec.env["CUDA_VISIBLE_DEVICES"], "0");
    assert_eq!(spec.software, [room.path().canonicalize().unwrap().join("tool")]);
    let outputs = ready.outputs.as_ref().unwrap();
    assert!(outputs.accepts(Path::new("a/f.exr")) && !outputs.accepts(Path::new("a/f.png")));
    let bare = crate::Report { level: Level::S2, mechanisms: Vec::new() };
    assert_eq!((ready.unmet(&bare).len(), ready.may_degrade(&bare)), (2, true));
    asked_of_the_program(&ready);
}

fn asked_of_the_program(ready: &Ready) {
    assert!(!ready.spec.job_exec && ready.windows_paths);
    let started = &ready.started;
    assert_eq!(started.program.as_deref(), Some(Path::new("blender")));
    assert!(started.sha256.as_ref().unwrap().starts_with("ba7816bf") && started.handshake);
    assert_eq!((ready.log.bytes, ready.log.bytes_per_second), (Some(16 << 20), Some(256 << 10)));
}

#[test]
fn a_wrong_policy_names_the_file_the_line_or_key_and_what_would_be_right() {
    for (text, words) in [
        ("", ["version", "line 1"]),
        ("version = 2", ["version", "1 is"]),
        ("version = 1\nprofile = 'maya'", ["line 2", "blender-cpu"]),
        ("version = 1\nlevel = 'S1'", ["level", "S2 or S3"]),
        ("version = 1\nfloor = 'S2'", ["line 2", "unknown field"]),
        ("version = 1\nrequire = ['nets']", ["require", "netns"]),
        ("version = 1\non_missing = 'shrug'", ["line 2", "degrade:S2"]),
        ("version = 1\n[limits]\nmem = '24'", ["line 3", "24GiB"]),
        ("version = 1\n[limits]\nmem = 24", ["line 3", "mem"]),
        ("version = 1\n[limits]\ncpus = 0", ["limits.cpus", "1 to 4096"]),
        ("version = 1\n[[map]]\nsource = 'show'", ["map 1 (show): source", "format = \"windows\""]),
        (
            "version = 1\n[[map]]\nformat = 'windows'\nsource = 'S:show'\nhost = '/'",
            ["map 1", "S:\\show"],
        ),
        ("version = 1\n[[map]]\nformat = 'windows'\nsource = 'S:\\show'", ["host", "/srv/show"]),
        ("version = 1\n[[map]]\nsource = '/a'\naccess = 'w'", ["line 4", "rw"]),
        ("version = 1\n[[map]]\nid = 'a/b'\nsource = '/a'", ["id", "letters"]),
        ("version = 1\n[net]\nallow = [{host = 'a'}]", ["line 3", "port"]),
        ("version = 1\n[limits]\nlog_rate = '256KiB'", ["line 3", "256KiB/s"]),
        ("version = 1\n[exec]\nallow_job_exec = true", ["line 3", "session-dir"]),
        ("version = 1\n[exec]\nsha256 = 'abc'", ["exec.sha256", "64"]),
        ("version = 1\n[exec]\nprogram = 'bin/povray'", ["exec.program", "absolute"]),
        (
            "version = 1\n[preload]\nwindows_paths = false\nrequire_handshake = true",
            ["preload.require_handshake", "windows_paths"],
        ),
        ("version = 1\n[outputs]\nmax_depth = 0", ["outputs.max_depth", "1 to 64"]),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with("/p/show.toml: "), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{text:?}: {error}");
    }
}

#[test]
fn a_folder_that_is_not_here_is_named_with_its_map() {
    let file = Path::new("/p/show.toml");
    let text = "version = 1\n[[map]]\nsource = '/mnt/show'\nhost = '/nowhere/show'";
    let error = Policy::parse(file, text).unwrap().ready(file).unwrap_err().to_string();
    let expected = "/p/show.toml: map 1 (/mnt/show): host: /nowhere/show on this machine: ";
    assert!(error.starts_with(expected), "{error}");
}
