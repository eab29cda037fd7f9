//! What a policy asks of the program that is started: which one it is, what its file holds, and that it hears of windows paths.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use meshfarm_sandbox::{self as sandbox, Pinned, Spec, Started};

use crate::api::Problem;

use super::super::Failure;

/// In front of what the shell of the jail does: the library for windows paths answers for a path that nothing else
/// knows, or nothing starts.
pub(super) const HANDSHAKE: &str = r"[ -e '\\?\meshfarm\loaded' ] || {
    echo 'meshfarm: preload.require_handshake: the library for windows paths is not in force' >&2; exit 126; }; ";

/// The beginning of a program that lists its parts, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// Scripts that name a script as their interpreter that names another one, and so on: the kernel follows five.
const MAX_SCRIPTS: usize = 5;

/// Hold the command at this path to what is asked of it. `look_up` finds a program by its name.
pub(super) fn hold(
    spec: &mut Spec,
    asked: &Started,
    command: &str,
    look_up: impl Fn(&str) -> Result<PathBuf, Failure>,
) -> Result<(), Failure> {
    let path = Path::new(command);
    if let Some(program) = &asked.program {
        let only = look_up(&program.to_string_lossy())?;
        // Links to the same file are as good as the name in the policy.
        if path.canonicalize()? != only.canonicalize()? {
            let text = format!("{command}: the policy starts nothing but {}", only.display());
            return Err(refused(&text, "exec.program names the only command that may be started"));
        }
    }
    if let Some(sha256) = &asked.sha256 {
        spec.pinned.push(Pinned { path: path.to_owned(), sha256: sha256.clone() });
    }
    if asked.handshake { check_loader(path) } else { Ok(()) }
}

/// Hold the session runner to what is asked of what is started.
pub(super) fn hold_runner(spec: &mut Spec, policy: &sandbox::Ready) -> Result<(), Failure> {
    let name = spec.program.file_name().unwrap_or_default().to_owned();
    let is_runner = |program: &PathBuf| *program == spec.program || program.as_os_str() == name;
    if policy.started.program.as_ref().is_some_and(|program| !is_runner(program)) {
        let text = format!("exec.program: a job is started by {}", name.display());
        return Err(refused(&text, "what the job starts itself is its template's to say"));
    }
    for (key, given) in [
        ("limits.log_bytes", policy.log.bytes.is_some()),
        ("limits.log_rate", policy.log.bytes_per_second.is_some()),
        ("preload.require_handshake", policy.started.handshake),
    ] {
        if given {
            let text = format!("{key}: only meshfarm sandbox run holds a command to it");
            return Err(refused(&text, "leave it out of the policy of a job"));
        }
    }
    if let Some(sha256) = &policy.started.sha256 {
        let path = Path::new(sandbox::OWN_AT).join(&name);
        spec.pinned.push(Pinned { path, sha256: sha256.clone() });
    }
    Ok(())
}

/// Refuse a policy that wants to hear of a library which is not installed.
pub(super) fn check_library(policy: Option<&sandbox::Ready>, spec: &Spec) -> Result<(), Failure> {
    if policy.is_some_and(|policy| policy.started.handshake) && spec.preload.is_none() {
        let text = "preload.require_handshake: the library for windows paths is not installed";
        return Err(refused(text, "put libmeshfarm_preload.so beside meshfarm"));
    }
    Ok(())
}

/// Refuse a program that no loader starts: nothing would load the library into it.
fn check_loader(command: &Path) -> Result<(), Failure> {
    let mut path = command.to_owned();
    for _ in 0..MAX_SCRIPTS {
        let mut head = Vec::new();
        File::open(&path)?.take(MAX_HEAD).read_to_end(&mut head)?;
        let Some(line) = head.strip_prefix(b"#!") else {
            if has_loader(&head) == Some(true) {
                return Ok(());
            }
            break;
        };
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        path = line.split_whitespace().next().unwrap_or_default().into();
    }
    let text = format!(
        "preload.require_handshake: no loader starts {}, so it would not find windows paths",
        path.display()
    );
    Err(refused(&text, "use a program that is linked dynamically, or leave the key out"))
}

/// Whether a 64-bit ELF program of this byte order asks for a loader; none when it is no such program.
fn has_loader(head: &[u8]) -> Option<bool> {
    const INTERPRETER: u32 = 3;
    let bytes = |at: usize, n: usize| head.get(at..at.checked_add(n)?);
    let short = |at| Some(u16::from_le_bytes(bytes(at, 2)?.try_into().ok()?));
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let start = u64::from_le_bytes(bytes(32, 8)?.try_into().ok()?);
    let start = usize::try_from(start).ok()?;
    let (size, count) = (usize::from(short(54)?), usize::from(short(56)?));
    let mut kinds = (0..count).filter_map(|n| {
        let kind = bytes(start.checked_add(n * size)?, 4)?;
        Some(u32::from_le_bytes(kind.try_into().ok()?))
    });
    Some(kinds.any(|kind| kind == INTERPRETER))
}

fn refused(text: &str, help: &str) -> Failure {
    Problem::refused(text).with_help(help).into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_program_without_a_loader_is_told_from_one_with() {
        let room = tempfile::tempdir().unwrap();
        let script = |name: &str, interpreter: &Path| {
            let path = room.path().join(name);
            fs::write(&path, format!("#! {} -x\necho\n", interpreter.display())).unwrap();
            path
        };
        assert!(check_loader(Path::new("/bin/sh")).is_ok());
        let one = script("one", Path::new("/bin/sh"));
        assert!(check_loader(&one).is_ok());
        assert!(check_loader(&script("two", &one)).is_ok());
        let mut fixed = fs::read("/bin/sh").unwrap();
        let (start, size) = (usize::from(fixed[32]), usize::from(fixed[54]));
        for n in 0..usize::from(fixed[56]) {
            let kind = &mut fixed[start + n * size];
            *kind = if *kind == 3 { 0 } else { *kind };
        }
        let alone = room.path().join("alone");
        fs::write(&alone, &fixed).unwrap();
        let round = room.path().join("round");
        for refused in [script("three", &alone), alone, script("round", &round)] {
            let text = check_loader(&refused).unwrap_err().text();
            assert!(text.contains("require_handshake"), "{text}");
        }
        for broken in [&fixed[..40], b"\x7fELF\x02\x01", b""] {
            assert_ne!(has_loader(broken), Some(true));
        }
    }
}
