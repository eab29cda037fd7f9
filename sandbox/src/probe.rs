//! What this machine can do for isolation, found by doing it: a jail is started, the strongest first, and its report read.

use std::{fs, path::Path};

use crate::{
    Level, Limits, Mechanism, Report, SandboxError, Spec, Step,
    jail::{find_launcher, launch},
    landlock, sys,
};

/// Start a jail around `true` at level S3, and where the machine refuses that at S2, then at S1, and report what held;
/// where none stands, say which step was refused and what would help.
///
/// Takes as long as a few starts, one of them with a disk of its own. Below S2 this machine cannot run other people's jobs.
#[must_use]
pub fn probe() -> Report {
    match find_launcher() {
        Ok(launcher) => probe_with(&launcher),
        Err(error) => refused(vec![Mechanism::missing(
            "launcher",
            error.to_string(),
            "install meshfarm-sandbox beside meshfarm",
        )]),
    }
}

/// As [`probe`], with this launcher program.
#[must_use]
pub fn probe_with(launcher: &Path) -> Report {
    let work = std::env::temp_dir().join(format!(".meshfarm-probe-{}", std::process::id()));
    let made = fs::create_dir(&work);
    let mut spec = Spec::new("/usr/bin/true", &work);
    spec.floor = Level::S3;
    // Small, so that it is made in a moment.
    spec.limits = Limits { disk_bytes: 16 << 20, disk_files: 100, ..Limits::default() };
    let mut report = try_spec(launcher, &spec);
    if let Err(Refused { step: Some(Step::Cgroup | Step::Volume | Step::Level), why }) = &report {
        spec.floor = Level::S2;
        report = try_spec(launcher, &spec).map(|weaker| with_reason(weaker, why));
    }
    if let Err(Refused { step: Some(_), why }) = &report {
        // Where there are no namespaces, the site's own jobs may still be held by what else there is.
        spec.floor = Level::S1;
        spec.preload = crate::jail::find_preload();
        let weaker = try_spec(launcher, &spec);
        report = weaker.map(|weaker| with_cause(weaker, why)).or(report);
    }
    if made.is_ok() {
        // An empty folder of ours; if it stays, it stays empty.
        drop(fs::remove_dir(&work));
    }
    report.unwrap_or_else(|refusal| refused(refusal.why))
}

/// Why no jail stood.
struct Refused {
    step: Option<Step>,
    why: Vec<Mechanism>,
}

impl From<SandboxError> for Refused {
    fn from(error: SandboxError) -> Self {
        let better = advice(error.step);
        let step = Mechanism::missing(&error.step.to_string(), error.to_string(), better);
        Self { step: Some(error.step), why: vec![step] }
    }
}

/// The report of a jail that stood without a disk of its own, with the reason.
fn with_reason(mut report: Report, why: &[Mechanism]) -> Report {
    let quota = report.mechanisms.iter_mut().find(|m| m.name == "quota" && !m.in_force);
    if let (Some(quota), Some(reason)) = (quota, why.first()) {
        quota.evidence = format!("{}; {}", quota.evidence, reason.evidence);
    }
    report
}

/// The report of a job without namespaces, and why there are none.
fn with_cause(mut report: Report, why: &[Mechanism]) -> Report {
    report.mechanisms.extend(why.iter().take(1).cloned());
    report
}

fn try_spec(launcher: &Path, spec: &Spec) -> Result<Report, Refused> {
    let odd = |evidence: String, better| {
        let why = vec![Mechanism::missing("launcher", evidence, better)];
        Refused { step: None, why }
    };
    match launch(launcher, spec) {
        Ok(mut jail) => match jail.wait() {
            Ok(exit) if exit.success() => Ok(jail.report.clone()),
            Ok(exit) => {
                Err(odd(format!("a jailed `true` ended with {exit:?}"), "report this as a fault"))
            }
            Err(error) => Err(odd(error.to_string(), "try again")),
        },
        Err(error) => {
            let mut refusal = Refused::from(error);
            refusal.why.extend([landlock_state(), namespace_state()]);
            Err(refusal)
        }
    }
}

fn refused(mechanisms: Vec<Mechanism>) -> Report {
    Report { level: Level::S0, mechanisms }
}

fn advice(step: Step) -> &'static str {
    match step {
        Step::Namespaces | Step::UserMap => {
            "allow user namespaces: sysctl user.max_user_namespaces above 0, \
             kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0"
        }
        Step::Landlock => "use Linux 6.2 or later with landlock in the lsm= list of the kernel",
        Step::Seccomp => "use a kernel with seccomp filters",
        Step::Mount | Step::PivotRoot | Step::Proc | Step::Source => {
            "use Linux 5.12 or later, outside of a container or in one that may mount"
        }
        Step::Policy
        | Step::Launcher
        | Step::Skeleton
        | Step::Volume
        | Step::Cgroup
        | Step::Table
        | Step::Identity
        | Step::Network
        | Step::Limits
        | Step::Capabilities
        | Step::NoNewPrivs
        | Step::Exec
        | Step::Level => "see the reason",
    }
}

fn landlock_state() -> Mechanism {
    let version = sys::landlock_version();
    let evidence = format!("version {version}, {} needed", landlock::OLDEST);
    if version >= landlock::OLDEST {
        Mechanism { in_force: false, ..Mechanism::held("landlock", evidence) }
    } else {
        Mechanism::missing("landlock", evidence, advice(Step::Landlock))
    }
}

fn namespace_state() -> Mechanism {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let evidence = format!("user.max_user_namespaces is {}", most.trim());
    Mechanism::missing("user namespace", evidence, advice(Step::Namespaces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_launcher_is_told_what_to_install() {
        let report = probe_with(Path::new("/nowhere/meshfarm-sandbox"));
        assert_eq!(report.level, Level::S0);
        assert!(report.mechanisms.iter().all(|m| !m.in_force));
        assert!(report.mechanisms[0].evidence.contains("/nowhere/meshfarm-sandbox"));
    }
}
