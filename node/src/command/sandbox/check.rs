//! `meshfarm sandbox check`: every known attack on this machine's own sandbox, and what held.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use meshfarm_attacks::{Linkage, Options, Outcome, Programs, Surroundings, attacks, run};
use meshfarm_sandbox::{self as sandbox, Level};

use crate::api::Problem;
use crate::cli::{IsolationLevel, SandboxCheck};
use crate::print::pages::{self, Attacked};

use super::super::{Desk, Done, Failure};

/// So many attacks run at once: they wait for the kernel more than they compute.
const AT_ONCE: u32 = 4;

/// The program that attacks. Overridden by `MESHFARM_ATTACKER`.
const ATTACKER: &str = "meshfarm-attacker";

pub(super) fn check(desk: &Desk, flags: SandboxCheck) -> Done {
    let installed =
        sandbox::find_programs().map_err(|error| Problem::refused(error.to_string()))?;
    let programs = Programs {
        launcher: installed.launcher,
        attacker: attacker()?,
        static_attacker: None,
        weakened: None,
        preload: installed.preload,
    };
    let every = flags.all || flags.only.is_some();
    let yards = tempfile::Builder::new().prefix("meshfarm-check-").tempdir()?;
    // The attacked tenant is another user.
    fs::set_permissions(yards.path(), fs::Permissions::from_mode(0o755))?;
    let options = Options {
        floor: match flags.level {
            Some(IsolationLevel::S3) => Level::S3,
            Some(IsolationLevel::S2) | None => Level::S2,
        },
        only: flags.only,
        linkage: Linkage::Dynamic,
        surroundings: Surroundings::Jail,
        at_once: AT_ONCE,
        folder: yards.path().to_owned(),
    };
    let chosen = |name: &str| options.only.as_ref().is_none_or(|part| name.contains(part));
    let n = attacks().iter().filter(|attack| chosen(attack.name)).count();
    if n == 0 {
        let only = options.only.unwrap_or_default();
        return Err(
            Problem::bad_input(format!("--only {only}: no attack has that in its name")).into()
        );
    }
    let bar = bar(desk, n);
    let verdicts = run(&programs, &options, |verdict| {
        bar.set_message(verdict.attack.name);
        bar.inc(1);
    });
    bar.finish_and_clear();
    let told: Vec<_> = verdicts.iter().map(Attacked::from).collect();
    desk.show(&pages::attacked(&told, every))?;
    let broke = verdicts.iter().any(|verdict| matches!(verdict.outcome, Outcome::Broke(_)));
    if broke { Err(Failure::Said) } else { Ok(()) }
}

fn bar(desk: &Desk, n: usize) -> ProgressBar {
    if desk.quiet || desk.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(n as u64);
    let style = ProgressStyle::with_template("attacking {bar:36.cyan/dim} {pos} of {len} {msg}");
    bar.set_style(style.unwrap_or_else(|_odd| ProgressStyle::default_bar()));
    bar
}

fn attacker() -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os("MESHFARM_ATTACKER") {
        return Ok(path.into());
    }
    let beside = std::env::current_exe()?.canonicalize()?.with_file_name(ATTACKER);
    if beside.is_file() {
        return Ok(beside);
    }
    let text = format!("{} is not there", beside.display());
    let help = "put meshfarm-attacker beside meshfarm (tests/build.sh builds it), or name it in MESHFARM_ATTACKER";
    Err(Problem::refused(text).with_help(help).into())
}
