//! Programs whose contents the policy names: read in the jail, as the job sees them, before anything of the job runs.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use crate::{SandboxError, Step, report::During, spec::Pinned};

/// Refuse what is not what the policy names.
///
/// # Errors
/// [`Step::Exec`] with the program, and both sums when they differ.
pub(crate) fn check(pinned: &[Pinned]) -> Result<(), SandboxError> {
    pinned.iter().try_for_each(|pinned| {
        let found = sum(&pinned.path).during(Step::Exec, pinned.path.display())?;
        if found == pinned.sha256 {
            return Ok(());
        }
        let text = format!(
            "its sha256 is {found}, and the policy lets {} run: it was changed or is another version",
            pinned.sha256
        );
        Err(io::Error::other(text)).during(Step::Exec, pinned.path.display())
    })
}

/// The SHA-256 sum of a file, as `sha256sum` prints it.
fn sum(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut state = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => state.update(&buffer[..n]),
        }
    }
    Ok(state.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_its_contents() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // The first example of FIPS 180.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        let pinned = [Pinned { path: path.clone(), sha256: sha256.clone() }];
        check(&pinned).unwrap();
        std::fs::write(&path, "abd").unwrap();
        let error = check(&pinned).unwrap_err().to_string();
        assert!(error.contains(&sha256) && error.contains("changed"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(check(&pinned).is_err());
    }
}
