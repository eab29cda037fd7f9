//! What `meshfarm sandbox run` shows the command of this machine: flags and policy file to one policy of the jail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use meshfarm_sandbox::{self as sandbox, Access, Level, Mount, Outputs, Spec, WindowsRule};

use crate::api::Problem;
use crate::cli::{IsolationLevel, JailFlags, SandboxRun};
use crate::job_bundle::NamedPath;
use crate::sys;

use super::super::Failure;
use super::program;

/// What starts the command in its folder. The jail itself begins in `/session`, and starts one program of the host.
const SHELL: &str = "/bin/sh";

/// Goes to the folder, and becomes the command.
const START: &str = "cd -- \"$1\" || exit 126; shift; exec \"$@\"";

/// Folders that every jail shows anyway.
const SHOWN: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Folders that belong to the jail itself: what lies there on this machine cannot be shown as a whole.
const CLOSED: [&str; 6] = ["etc", "proc", "sys", "dev", "run", "session"];

/// What of this process's surroundings counts.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Room<'a> {
    /// The current folder.
    pub(in super::super) here: &'a Path,
    /// The variable PATH.
    pub(in super::super) path: &'a str,
    /// The person's home folder.
    pub(in super::super) home: Option<&'a Path>,
    /// An empty folder of our own that goes when the command has ended.
    pub(in super::super) temp: &'a Path,
}

/// A writable folder of the jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Where the command sees it.
    pub(super) at: PathBuf,
    /// The person's folder.
    pub(super) folder: PathBuf,
}

/// Everything about a run before it starts.
#[derive(Debug)]
pub(in super::super) struct Plan {
    /// The policy of the jail.
    pub(in super::super) spec: Spec,
    /// What the policy file asks beyond that.
    pub(super) policy: Option<sandbox::Ready>,
    /// Writable folders of the person.
    pub(super) targets: Vec<Target>,
    /// Worth knowing before the start.
    pub(in super::super) notes: Vec<String>,
}

impl Plan {
    /// How much is passed on of what the command prints.
    pub(super) fn log(&self) -> sandbox::LogLimits {
        self.policy.as_ref().map_or_else(sandbox::LogLimits::default, |policy| policy.log)
    }

    /// Which outputs are taken, when they are taken at all: otherwise the command writes into the folders themselves.
    pub(super) fn outputs(&self) -> Option<Outputs> {
        let asked = self.policy.as_ref().and_then(|policy| policy.outputs.clone());
        // A disk of the jail's own holds a copy of the folders.
        asked.or_else(|| (self.spec.floor >= Level::S3).then(|| Outputs::all(&self.spec.limits)))
    }
}

/// Make the policy of a command's jail.
pub(super) fn make(
    flags: &SandboxRun,
    policy: Option<sandbox::Ready>,
    room: &Room<'_>,
) -> Result<Plan, Failure> {
    let (mut spec, begin, notes) = shown(&flags.jail, policy.as_ref(), room)?;
    spec.program = SHELL.into();
    let command = command(&mut spec, flags, room)?;
    let mut start = START.to_owned();
    if let Some(policy) = &policy {
        program::hold(&mut spec, &policy.started, &command, |name| look_up(name, room))?;
        if policy.started.handshake {
            start.insert_str(0, program::HANDSHAKE);
        }
    }
    let words = [start, "sh".to_owned(), begin, command];
    spec.args = std::iter::once("-c".to_owned()).chain(words).collect();
    spec.args.extend(flags.command[1..].iter().cloned());
    finish(Plan { spec, policy, targets: Vec::new(), notes }, room)
}

/// Make the policy of a jail for one session of `runner`, which also sees what the job names and this machine has.
pub(in super::super) fn for_session(
    flags: &JailFlags,
    policy: Option<sandbox::Ready>,
    room: &Room<'_>,
    (runner, template, named): (&Path, &Path, &[NamedPath]),
) -> Result<Plan, Failure> {
    let (mut spec, _, _) = shown(flags, policy.as_ref(), room)?;
    spec.program = runner.to_owned();
    if let Some(policy) = &policy {
        program::hold_runner(&mut spec, policy)?;
    }
    let mut notes = Vec::new();
    if let Some(beside) = template.parent() {
        // What the job needs may lie beside its template. Where that cannot be shown, it is read by us alone.
        let folder = NamedPath { path: beside.to_owned(), ..NamedPath::default() };
        drop(show_named(&mut spec, &folder));
    }
    for named in named {
        if let Err(failure) = show_named(&mut spec, named) {
            notes.push(format!("{}: {}", named.parameter, failure.text()));
        }
    }
    crate::session::prefer_software(&mut spec);
    finish(Plan { spec, policy, targets: Vec::new(), notes }, room)
}

/// Show what the value of a parameter names. What is not there and only read is the job's affair.
fn show_named(spec: &mut Spec, named: &NamedPath) -> Result<(), Failure> {
    // In the jail's own /tmp only folders can be shown, and only a folder can take a file.
    let folder = named.is_file && (named.writes || named.path.starts_with("/tmp"));
    let at = named.path.parent().filter(|_| folder).unwrap_or(&named.path);
    if named.writes {
        fs::create_dir_all(at)?;
    }
    let Ok(host) = at.canonicalize() else {
        return Ok(());
    };
    if !named.writes && sys::is_root() && fs::metadata(&host)?.permissions().mode() & 0o4 == 0 {
        let text = "only its owner may read it, and as root a job has a user of its own";
        return Err(Problem::bad_input(format!("{}: {text}", at.display())).into());
    }
    let access = if named.writes { Access::Write } else { Access::Read };
    if !named.writes && (is_shown(at, spec) || spec.mount_of(at).is_some()) {
        return Ok(());
    }
    let before = spec.clone();
    let shown = show(spec, "its value", (&host, at), access);
    if shown.is_err() {
        *spec = before;
    }
    shown
}

/// What the flags and the policy show, where a command begins, and what is worth knowing.
fn shown(
    flags: &JailFlags,
    policy: Option<&sandbox::Ready>,
    room: &Room<'_>,
) -> Result<(Spec, String, Vec<String>), Failure> {
    let mut spec = policy.map_or_else(|| Spec::new(SHELL, "/"), |policy| policy.spec.clone());
    spec.work = room.temp.join("session");
    spec.base = Some(room.temp.join("jail"));
    for folder in [&spec.work, &room.temp.join("jail")] {
        crate::session::private_folder(folder)?;
    }
    match flags.level {
        Some(IsolationLevel::S2) => spec.floor = Level::S2,
        Some(IsolationLevel::S3) => spec.floor = Level::S3,
        None => {}
    }
    let mut notes = Vec::new();
    let begin = show_here(&mut spec, room, &mut notes)?;
    for path in &flags.read {
        let host = found("--read", room.here, path)?;
        if !is_shown(&host, &spec) {
            show(&mut spec, "--read", (&host, &host), Access::Read)?;
        }
    }
    for path in &flags.write {
        fs::create_dir_all(room.here.join(path))?;
        let host = found("--write", room.here, path)?;
        show(&mut spec, "--write", (&host, &host), Access::Write)?;
    }
    for (n, (source, path)) in (1..).zip(&flags.windows) {
        let host = found("--windows", room.here, path)?;
        let at = PathBuf::from(format!("/mnt/drive-{n}"));
        spec.mounts.push(mount((&host, &at), Access::Read));
        spec.windows.push(WindowsRule { source: source.clone(), at, case_insensitive: true });
    }
    for path in &flags.software {
        spec.software.push(found("--software", room.here, path)?);
    }
    Ok((spec, begin, notes))
}

/// The plan with its writable folders, when the jail would take it.
fn finish(mut plan: Plan, room: &Room<'_>) -> Result<Plan, Failure> {
    let targets = plan.spec.mounts.iter().filter(|mount| mount.access == Access::Write);
    plan.targets =
        targets.map(|mount| Target { at: mount.at.clone(), folder: mount.host.clone() }).collect();
    stage(&mut plan, room)?;
    let checked = plan.spec.check().map_err(|error| Problem::bad_input(error.to_string()));
    checked.map(|()| plan).map_err(Failure::from)
}

/// Where only what is accepted shall be taken, the command writes into empty folders of ours.
fn stage(plan: &mut Plan, room: &Room<'_>) -> Result<(), Failure> {
    if plan.policy.as_ref().is_none_or(|policy| policy.outputs.is_none()) {
        return Ok(());
    }
    let writable = plan.spec.mounts.iter_mut().filter(|mount| mount.access == Access::Write);
    for (n, mount) in writable.enumerate() {
        mount.host = room.temp.join(format!("out-{n}"));
        crate::session::private_folder(&mount.host)?;
    }
    Ok(())
}

/// Show the current folder, read-only. Returns where the command begins.
fn show_here(spec: &mut Spec, room: &Room<'_>, notes: &mut Vec<String>) -> Result<String, Failure> {
    let here = room.here;
    // A policy may show something else of the same name.
    if is_shown(here, spec) || spec.mount_of(here).is_some() {
        return text(here);
    }
    let mut trial = spec.clone();
    trial.mounts.push(mount((here, here), Access::Read));
    if trial.check().is_err() {
        notes.push(format!("{} cannot be shown: the command begins in /session", here.display()));
        return Ok(sandbox::WORK_AT.to_owned());
    }
    if room.home.is_some_and(|home| home.starts_with(here)) {
        notes.push(format!(
            "the command can read all of {}: start it in the scene's folder to show it less",
            here.display()
        ));
    }
    *spec = trial;
    text(here)
}

/// The command's own path, which is made to be visible.
fn command(spec: &mut Spec, flags: &SandboxRun, room: &Room<'_>) -> Result<String, Failure> {
    let name = &flags.command[0];
    let path = look_up(name, room)?;
    if may_run(&path, spec) {
        return text(&path);
    }
    let path = path.canonicalize()?;
    if may_run(&path, spec) {
        return text(&path);
    }
    let mut parts = path.iter().skip(1);
    if let (Some(first), Some(package)) = (parts.next(), parts.next())
        && first == "opt"
        && parts.next().is_some()
    {
        // A program there comes with a folder of its own that holds what it needs.
        spec.software.push(Path::new("/opt").join(package));
    } else {
        // The file alone: what lies beside it may be a whole home. But in the jail's own /tmp only folders can be shown.
        let folder = path.parent().filter(|_| path.starts_with("/tmp"));
        let shown = folder.unwrap_or(&path);
        show(spec, "the program", (shown, shown), Access::Read)?;
        spec.mounts
            .iter_mut()
            .filter(|mount| mount.at == shown)
            .for_each(|mount| mount.exec = true);
    }
    text(&path)
}

fn look_up(name: &str, room: &Room<'_>) -> Result<PathBuf, Failure> {
    let runs = |path: &Path| {
        let about = fs::metadata(path);
        about.is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        let path = std::path::absolute(room.here.join(name))?;
        if runs(&path) {
            return Ok(path);
        }
        let problem = Problem::bad_input(format!("{} is no program", path.display()));
        return Err(problem.with_help("a file that may be executed is wanted").into());
    }
    let folders = room.path.split(':').filter(|folder| folder.starts_with('/'));
    let found = folders.map(|folder| Path::new(folder).join(name)).find(|path| runs(path));
    Ok(found.ok_or_else(|| {
        Problem::bad_input(format!("there is no program {name} in the folders of PATH"))
            .with_help("name its path: meshfarm sandbox run -- ./PROGRAM")
    })?)
}

/// Whether every jail shows this path, or the policy does.
fn is_shown(path: &Path, spec: &Spec) -> bool {
    let first = path.iter().nth(1);
    first.is_some_and(|first| SHOWN.iter().any(|shown| first == *shown))
        || spec.software.iter().any(|software| path.starts_with(software))
        || spec.mounts.iter().any(|mount| path.starts_with(&mount.at) && mount.at == mount.host)
}

fn may_run(path: &Path, spec: &Spec) -> bool {
    is_shown(path, spec) && spec.mount_of(path).is_none_or(|mount| mount.exec)
}

fn show(
    spec: &mut Spec,
    flag: &str,
    (host, at): (&Path, &Path),
    access: Access,
) -> Result<(), Failure> {
    // The current folder, say, which is shown already.
    match spec.mounts.iter_mut().find(|mount| mount.at == at) {
        Some(shown) if access == Access::Read && shown.host == host => {}
        Some(shown) => (shown.host, shown.access) = (host.to_owned(), access),
        None => spec.mounts.push(mount((host, at), access)),
    }
    let closed = at.iter().nth(1).is_none_or(|first| CLOSED.iter().any(|c| first == *c));
    match spec.check() {
        Ok(()) if !closed => Ok(()),
        _ => {
            let problem =
                Problem::bad_input(format!("{flag} {}: a jail has its own there", at.display()));
            let help =
                "choose another folder, or a [[map]] of a policy file that shows it elsewhere";
            Err(problem.with_help(help).into())
        }
    }
}

fn mount((host, at): (&Path, &Path), access: Access) -> Mount {
    Mount { host: host.to_owned(), at: at.to_owned(), access, exec: false }
}

/// A path of this machine without links.
fn found(flag: &str, here: &Path, path: &Path) -> Result<PathBuf, Failure> {
    let path = here.join(path);
    let found = path.canonicalize();
    Ok(found.map_err(|error| Problem::bad_input(format!("{flag} {}: {error}", path.display())))?)
}

fn text(path: &Path) -> Result<String, Failure> {
    let bad = || Problem::bad_input(format!("{}: the name is not UTF-8", path.display()));
    Ok(path.to_str().map(str::to_owned).ok_or_else(bad)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(command: &[&str]) -> SandboxRun {
        SandboxRun {
            jail: JailFlags::default(),
            report: false,
            command: command.iter().map(ToString::to_string).collect(),
        }
    }

    fn plan(flags: &SandboxRun, here: &Path) -> Result<Plan, String> {
        let temp = here.join("temp");
        let room = Room { here, path: "relative:/nowhere:/usr/bin:/bin", home: None, temp: &temp };
        make(flags, None, &room).map_err(|failure| failure.text())
    }

    fn shown(plan: &Plan) -> Vec<(String, bool, bool)> {
        let mounts = plan.spec.mounts.iter();
        mounts.map(|m| (m.at.display().to_string(), m.access == Access::Write, m.exec)).collect()
    }

    #[test]
    fn the_current_folder_is_shown_and_the_command_begins_in_it() {
        let room = tempfile::tempdir().unwrap();
        let here = room.path().canonicalize().unwrap();
        let mut flags = flags(&["env", "a b", "c"]);
        flags.jail.write = vec!["frames".into()];
        flags.jail.windows = vec![(r"S:\show".into(), here.clone())];
        let plan = plan(&flags, &here).unwrap();
        let own = here.display().to_string();
        let all = [(own.clone(), false, false), (format!("{own}/frames"), true, false)];
        assert_eq!(shown(&plan)[..2], all);
        assert!(here.join("frames").is_dir());
        assert_eq!(plan.spec.args[2..], ["sh", &own, "/usr/bin/env", "a b", "c"]);
        assert_eq!(plan.spec.windows[0].source, r"S:\show");
        assert_eq!(plan.targets, [Target { at: here.join("frames"), folder: here.join("frames") }]);
    }

    #[test]
    fn a_program_of_ones_own_is_shown_alone_and_one_of_no_name_is_said() {
        // Not in /tmp, where only folders can be shown.
        let beside = std::env::current_exe().unwrap();
        let room = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
        let here = room.path().canonicalize().unwrap();
        fs::write(here.join("tool"), "#!/bin/sh\n").unwrap();
        assert!(plan(&flags(&["./tool"]), &here).unwrap_err().contains("is no program"));
        fs::set_permissions(here.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let plan_of = plan(&flags(&["./tool"]), &here).unwrap();
        let tool = here.join("tool").display().to_string();
        assert_eq!(shown(&plan_of)[1], (tool, false, true));
        let error = plan(&flags(&["no-such-program"]), &here).unwrap_err();
        assert!(error.contains("no-such-program"), "{error}");
        let mut closed = flags(&["true"]);
        closed.jail.read = vec!["/etc".into()];
        let error = plan(&closed, &here).unwrap_err();
        assert!(error.contains("--read /etc"), "{error}");
        let mut whole = flags(&["true"]);
        whole.jail.write = vec![".".into()];
        let own = here.display().to_string();
        assert_eq!(shown(&plan(&whole, &here).unwrap()), [(own, true, false)]);
        closed.jail.read = vec!["/usr/share".into()];
        assert_eq!(shown(&plan(&closed, &here).unwrap()).len(), 1);
    }

    #[test]
    fn a_program_in_the_folder_for_temporary_files_is_shown_with_its_folder() {
        let room = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        fs::write(room.path().join("tool"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(room.path().join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let plan = plan(&flags(&["./tool"]), room.path()).unwrap();
        assert_eq!(shown(&plan), [(room.path().display().to_string(), false, true)]);
    }

    #[test]
    fn a_folder_that_is_the_systems_is_not_shown_and_the_command_begins_elsewhere() {
        let room = tempfile::tempdir().unwrap();
        let temp = room.path();
        let at = |here: &str| {
            let here = Path::new(here);
            let room = Room { here, path: "/usr/bin", home: Some(Path::new("/srv/ada")), temp };
            make(&flags(&["env"]), None, &room).map_err(|failure| failure.text()).unwrap()
        };
        assert_eq!(at("/usr/share").spec.args[3], "/usr/share");
        let plan = at("/etc");
        assert_eq!((plan.spec.args[3].as_str(), plan.notes.len()), ("/session", 1));
        let plan = at("/srv/ada");
        assert!(plan.notes[0].contains("all of /srv/ada"), "{:?}", plan.notes);
        assert!(at("/srv/ada/show").notes.is_empty());
    }

    #[test]
    fn a_session_sees_what_its_job_names_and_writes_only_where_it_says() {
        let room = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let here = room.path().canonicalize().unwrap();
        let open = |path: &Path| {
            fs::create_dir_all(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        for folder in ["", "tex", "templates"] {
            open(&here.join(folder));
        }
        let named = |path: &Path, is_file, writes| NamedPath {
            path: path.to_owned(),
            parameter: "Asset".to_owned(),
            is_file,
            writes,
        };
        let paths = [
            named(&here.join("tex/wood.png"), true, false),
            named(&here.join("out/frames"), false, true),
            named(&here.join("gone"), false, false),
            named(Path::new("/etc"), false, true),
        ];
        let flags = JailFlags { software: vec!["/opt".into()], ..JailFlags::default() };
        let elsewhere = Path::new("/usr/share");
        let temp = here.join("temp");
        let room = Room { here: elsewhere, path: "", home: None, temp: &temp };
        let template = here.join("templates/t.yaml");
        let inside = (Path::new("/usr/bin/env"), template.as_path(), &paths[..]);
        let plan = for_session(&flags, None, &room, inside);
        let plan = plan.map_err(|failure| failure.text()).unwrap();
        let at = |name: &str| here.join(name).display().to_string();
        let wanted = [(at("templates"), false), (at("tex"), false), (at("out/frames"), true)];
        let shown: Vec<_> = shown(&plan).into_iter().map(|(at, writes, _)| (at, writes)).collect();
        assert_eq!(shown, wanted);
        assert!(plan.notes.len() == 1 && plan.notes[0].starts_with("Asset: "), "{:?}", plan.notes);
        assert!(plan.spec.env["PATH"].starts_with("/opt:/opt/bin:/usr"), "{:?}", plan.spec.env);
        assert!(here.join("out/frames").is_dir() && !here.join("gone").exists());
    }
}
