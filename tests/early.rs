//! Tasks that start while a file that they do not need is still on its way, and tasks that turn out to need it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::harness::{A_JOB, Mesh, SOON, borrower, finish, lender, names_in, signal, tasks};
use crate::harness::{wait_until, write};

/// Bytes of the file that comes late: it takes a second at least, in which the borrower is halted.
const BIG: usize = 256 << 20;

/// Bytes of a file that is worth being known, and of the late one in the first version.
const SMALL: usize = 100_000;

/// A borrower, a lender, and a shot of which the lender has rendered one version.
struct Shot {
    mesh: Mesh,
    needed: PathBuf,
    big: PathBuf,
    out: PathBuf,
}

impl Shot {
    fn rendered_once() -> Self {
        let mesh = Mesh::of(vec![borrower("oslo"), lender("lyon", 1)]);
        let folder = mesh.new_folder("shot");
        let (needed, big) = (folder.join("needed.bin"), folder.join("big.bin"));
        let out = mesh.new_folder("out");
        let shot = Self { mesh, needed, big, out };
        shot.save(1, SMALL);
        let job = shot.submit(&format!("cat {} > first.bin", shot.needed.display()));
        shot.mesh[0].wait_done(&job);
        wait_until("the lender has put the first version away", SOON, || {
            shot.laid("needed.bin").is_none().then_some(())
        });
        shot
    }

    /// Writes a version of both files.
    fn save(&self, version: u64, big: usize) {
        for (path, len) in [(&self.needed, SMALL), (&self.big, big)] {
            let mut bytes = vec![0; len];
            ChaCha8Rng::seed_from_u64(version).fill_bytes(&mut bytes);
            write(path, &bytes);
        }
    }

    fn submit(&self, command: &str) -> String {
        self.mesh[0].submit(&[
            "bundle:command",
            "--frames",
            "1",
            "--input",
            self.needed.to_str().unwrap(),
            "--input",
            self.big.to_str().unwrap(),
            "--output",
            self.out.to_str().unwrap(),
            "-p",
            &format!("Command={command}"),
        ])
    }

    /// Where a file of the job's content lies at the lender now.
    fn laid(&self, name: &str) -> Option<PathBuf> {
        let work = self.mesh[1].home.join("work");
        let contents = names_in(&work).into_iter().filter(|name| name.starts_with("content-"));
        contents.filter_map(|content| find(&work.join(content), name)).next()
    }

    /// Halts the borrower when the lender has what the task is known to need and not yet the rest.
    fn halt_borrower(&self) -> PathBuf {
        let needed = fs::read(&self.needed).unwrap();
        let whole = |name: &str| fs::read(self.laid(name)?).ok().filter(|bytes| !bytes.is_empty());
        let big = wait_until("the lender has what is needed", A_JOB, || {
            let there = whole("job.json").is_some() && whole("needed.bin")? == needed;
            self.laid("big.bin").filter(|_| there)
        });
        signal(self.mesh[0].pid(), libc::SIGSTOP);
        let about = fs::metadata(&big).unwrap();
        assert_eq!((about.len(), about.blocks()), (BIG as u64, 0), "it is only a placeholder");
        big
    }

    /// What the lender has of the logs that are not home.
    fn wait_for_line(&self, line: &str) {
        let logs = self.mesh[1].home.join("logs/sending");
        wait_until(&format!("the lender's log says {line:?}"), SOON, || {
            let mut texts = names_in(&logs).into_iter().map(|name| fs::read(logs.join(name)));
            texts
                .any(|text| String::from_utf8_lossy(&text.unwrap_or_default()).contains(line))
                .then_some(())
        });
    }

    fn resume_borrower(&self, job: &str) {
        signal(self.mesh[0].pid(), libc::SIGCONT);
        let done = self.mesh[0].wait_done(job);
        let failures = tasks(&done)[0]["failures"].as_u64();
        assert_eq!(failures.unwrap_or(0), 0, "{done:#}");
    }
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let mut paths = entries.map(|entry| entry.path());
    paths.find_map(|path| match path.is_dir() {
        true => find(&path, name),
        false => path.ends_with(name).then_some(path),
    })
}

#[test]
fn a_task_runs_while_a_file_that_it_does_not_need_is_still_on_its_way() {
    let shot = Shot::rendered_once();
    shot.save(2, BIG);
    let (needed, big) = (shot.needed.display(), shot.big.display());
    let job = shot.submit(&format!(
        "stat -c '%s %b' {big} > about.txt\ncat {needed} > second.bin\necho the task has run"
    ));

    let late = shot.halt_borrower();
    shot.wait_for_line("the task has run");
    assert_eq!(fs::metadata(late).unwrap().blocks(), 0, "nothing more has come meanwhile");
    shot.resume_borrower(&job);

    assert_eq!(fs::read_to_string(shot.out.join("about.txt")).unwrap(), format!("{BIG} 0\n"));
    assert_eq!(fs::read(shot.out.join("second.bin")).unwrap(), fs::read(&shot.needed).unwrap());
}

#[test]
fn a_task_sees_large_files_whole_that_are_laid_out_while_it_runs() {
    let mesh = Mesh::of(vec![borrower("oslo"), lender("lyon", 1)]);
    let (folder, out) = (mesh.new_folder("shot"), mesh.new_folder("out"));
    let names = ["one.vdb", "two.vdb", "three.vdb", "edited.vdb"];
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for name in names {
        let mut bytes = vec![0; 24 << 20];
        random.fill_bytes(&mut bytes);
        write(&folder.join(name), &bytes);
    }
    for version in 1..=2 {
        let edited = fs::OpenOptions::new().write(true).open(folder.join("edited.vdb")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&edited, &[version; 1000], 9_000_001).unwrap();
        drop(edited);
        let command = format!("cd {} && sha256sum *.vdb > $OLDPWD/sums.txt", folder.display());
        let job = mesh[0].submit(&[
            "bundle:command",
            "--input",
            folder.to_str().unwrap(),
            "--output",
            out.to_str().unwrap(),
            "-p",
            &format!("Command={command}"),
        ]);
        let done = mesh[0].wait_done(&job);
        assert_eq!(tasks(&done)[0]["failures"].as_u64().unwrap_or(0), 0, "{done:#}");
        let sums = Command::new("sh").args(["-c", "sha256sum *.vdb"]).current_dir(&folder).output();
        let (ours, theirs) = (sums.unwrap().stdout, fs::read(out.join("sums.txt")).unwrap());
        assert_eq!(String::from_utf8(theirs), String::from_utf8(ours), "version {version}");
    }
}

#[test]
fn a_task_that_opens_a_file_too_early_is_run_again_and_its_output_is_right() {
    let shot = Shot::rendered_once();
    shot.save(3, BIG);
    let job = shot.submit(&format!("sha256sum < {} > sum.txt", shot.big.display()));

    shot.halt_borrower();
    shot.wait_for_line("a file was opened before it was here");
    assert!(!shot.out.join("sum.txt").exists());
    shot.resume_borrower(&job);

    let sum =
        finish(Command::new("sh").arg("-c").arg(format!("sha256sum < {}", shot.big.display())));
    assert_eq!(fs::read_to_string(shot.out.join("sum.txt")).unwrap(), sum.out);
}
