//! What a task's programs looked for and did not find, from the notes of the preload library.
//!
//! The notes are the tenant's own file: they are read within bounds and believed for nothing but the log.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use meshfarm_protocol::job::PathFormat;
use meshfarm_protocol::session::{OutputPath, PathRule};

/// The file of notes in the session's folder.
const NOTES: &str = ".meshfarm-paths";

/// As much as the library writes at most, in bytes.
const MAX_NOTES: u64 = 1 << 20;

/// More paths than this are only counted.
const MAX_TOLD: usize = 200;

/// The beginning of a program that lists its parts, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// Endings of what Python looks for beside every module, and makes itself where it can.
const NEVER_MISSED: [&str; 2] = [".pyc", "/__pycache__"];

/// A path that only the preload library understands.
const LOADED: &str = r"\\?\meshfarm\loaded";

/// Makes sure that Windows paths are understood where a job has some.
///
/// # Errors
/// When the preload library is not in force: every Windows path would be a strange name in the current folder.
pub(crate) fn check_windows_paths(rules: &[PathRule]) -> anyhow::Result<()> {
    let needed = rules.iter().any(|rule| rule.format == PathFormat::Windows);
    if needed && let Err(error) = File::open(LOADED) {
        anyhow::bail!(
            "the job has Windows paths and this site cannot map them ({error}): \
             install libmeshfarm_preload.so beside meshfarm"
        );
    }
    Ok(())
}

/// A line for the log when Windows paths are lost on this program: it has no loader that would load the library.
pub(crate) fn static_program(rules: &[PathRule], command: &str) -> Option<String> {
    if !rules.iter().any(|rule| rule.format == PathFormat::Windows) {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|folder| folder.join(command));
    let named = command.contains('/').then(|| PathBuf::from(command));
    let program = named.or_else(|| places.into_iter().find(|place| place.is_file()))?;
    let mut head = Vec::new();
    File::open(program).ok()?.take(MAX_HEAD).read_to_end(&mut head).ok()?;
    let text = "is linked statically: it does not find the job's Windows paths";
    (has_loader(&head) == Some(false)).then(|| format!("meshfarm: {command} {text}"))
}

/// Whether a 64-bit ELF program of this byte order asks for a loader; none when it is no such program.
fn has_loader(head: &[u8]) -> Option<bool> {
    const INTERPRETER: u32 = 3;
    let short = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let start = u64::from_le_bytes(head.get(32..40)?.try_into().ok()?);
    let start = usize::try_from(start).ok()?;
    let (size, count) = (usize::from(short(54)?), usize::from(short(56)?));
    for n in 0..count {
        let at = start.checked_add(n * size)?;
        let kind = head.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)?;
        if kind == INTERPRETER {
            return Some(true);
        }
    }
    Some(false)
}

/// The notes of one session.
#[derive(Debug)]
pub(crate) struct Notes(PathBuf);

impl Notes {
    /// The notes of the session in this folder.
    pub(crate) fn of(session_dir: &str) -> Self {
        Self(Path::new(session_dir).join(NOTES))
    }

    /// Log lines about what was missing since the last call, given what the task left.
    pub(crate) fn missing(&self, outputs: &[OutputPath]) -> Vec<String> {
        let Ok(notes) = self.take() else {
            return Vec::new();
        };
        let notes = String::from_utf8_lossy(&notes);
        let missing = missing_of(&notes, outputs);
        let mut lines: Vec<String> = missing
            .iter()
            .take(MAX_TOLD)
            .map(|path| format!("meshfarm: not found: {path}"))
            .collect();
        if missing.len() > MAX_TOLD {
            lines.push(format!("meshfarm: not found: and {} more", missing.len() - MAX_TOLD));
        }
        lines
    }

    /// Reads the notes and begins new ones.
    fn take(&self) -> io::Result<Vec<u8>> {
        // A pipe in its place would have no end, and a link another file's text.
        let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits()).open(&self.0)?;
        let mut notes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(MAX_NOTES).read_to_end(&mut notes)?;
        }
        fs::remove_file(&self.0)?;
        Ok(notes)
    }
}

/// What was missing and not found afterwards under the same file name, each once, in order.
///
/// Renderers probe their own folders one after the other, and look whether an output is there before they
/// write it.
fn missing_of<'n>(notes: &'n str, outputs: &[OutputPath]) -> Vec<&'n str> {
    let mut found: HashSet<String> = outputs.iter().map(|output| name_of(&output.path)).collect();
    let mut told = HashSet::new();
    let mut missing = Vec::new();
    for line in notes.lines().rev() {
        match line.split_once(' ') {
            Some(("opened" | "made", path)) => {
                found.insert(name_of(path));
            }
            Some(("missing", path))
                if !NEVER_MISSED.iter().any(|ending| path.ends_with(ending))
                    && !found.contains(&name_of(path))
                    && told.insert(path) =>
            {
                missing.push(path);
            }
            _ => {}
        }
    }
    missing.reverse();
    missing
}

/// A path's last part, in lower case: Windows spellings of one name differ in that.
fn name_of(path: &str) -> String {
    let mut parts = path.rsplit(['/', '\\']).filter(|part| !part.is_empty());
    parts.next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(path: &str) -> OutputPath {
        OutputPath { root: "r1".into(), path: path.into() }
    }

    #[test]
    fn what_is_found_later_or_left_by_the_task_is_not_missing() {
        let notes = "loaded 3\nmissing /show/inc/colors.inc\nopened /usr/inc/colors.inc\n\
            missing C:\\\\show\\\\tex\\\\wood.png\nmissing /show/out/f1.png\nmissing /show/out/sub\n\
            made /show/out/sub\nmissing /show/__pycache__/tool.cpython-311.pyc\nopened /show/a.inc\nmissing /other/a.inc\nmissing /other/a.inc\nmissing\nrubbish";
        let missing = missing_of(notes, &[output("deep/F1.png")]);
        assert_eq!(missing, [r"C:\\show\\tex\\wood.png", "/other/a.inc"]);
    }

    #[test]
    fn many_missing_files_are_counted_and_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::of(folder.path().to_str().unwrap());
        assert!(notes.missing(&[]).is_empty());
        let text: String = (0..250).map(|n| format!("missing /show/{n}.png\n")).collect();
        fs::write(folder.path().join(NOTES), text).unwrap();
        let lines = notes.missing(&[]);
        assert_eq!((lines.len(), lines[0].as_str()), (201, "meshfarm: not found: /show/0.png"));
        assert_eq!(lines[200], "meshfarm: not found: and 50 more");
        assert!(notes.missing(&[]).is_empty());
    }

    #[test]
    fn whatever_a_job_puts_in_the_place_of_the_notes_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join(NOTES);
        let notes = Notes::of(folder.path().to_str().unwrap());
        std::os::unix::fs::symlink("/etc/passwd", &at).unwrap();
        assert!(notes.missing(&[]).is_empty());
        fs::remove_file(&at).unwrap();
        nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(notes.missing(&[]).is_empty());
        fs::write(&at, b"missing \xff\xfe\nmissing ".repeat(200_000)).unwrap();
        assert!(notes.missing(&[]).len() <= MAX_TOLD + 1);
        fs::create_dir(&at).unwrap();
        assert!(notes.missing(&[]).is_empty());
    }

    #[test]
    fn programs_without_a_loader_are_told_from_others() {
        let rule = |format| [PathRule { format, source: "C:/a".into(), destination: "/b".into() }];
        for dynamic in ["sh", "/bin/sh", "no-such-program", "/etc/passwd"] {
            assert_eq!(static_program(&rule(PathFormat::Windows), dynamic), None, "{dynamic}");
        }
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("static");
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(120, 0);
        bytes[32] = 64;
        (bytes[54], bytes[56], bytes[64]) = (56, 1, 1);
        fs::write(&program, &bytes).unwrap();
        let program = program.to_str().unwrap();
        let line = static_program(&rule(PathFormat::Windows), program).unwrap();
        assert!(line.contains("linked statically"), "{line}");
        assert_eq!(static_program(&rule(PathFormat::Posix), program), None);
        bytes[64] = 3;
        fs::write(program, &bytes).unwrap();
        assert_eq!(static_program(&rule(PathFormat::Windows), program), None);
        for end in 0..bytes.len() {
            has_loader(&bytes[..end]);
        }
    }

    #[test]
    fn windows_rules_without_the_library_are_refused() {
        let rule =
            |format| PathRule { format, source: "C:/show".into(), destination: "/mnt/r1".into() };
        check_windows_paths(&[rule(PathFormat::Posix)]).unwrap();
        let error = check_windows_paths(&[rule(PathFormat::Windows)]).unwrap_err().to_string();
        assert!(error.contains("libmeshfarm_preload.so"), "{error}");
    }
}
