//! What a session says of its jail to people: what holds it, and which limit ended it.

use meshfarm_protocol::job::JailProfile;
use meshfarm_sandbox::{Limits, Mechanism, Report, Size, Stopped};

/// The first line of a task's log: the level, the kind of program, what is in force, and what is not.
pub(super) fn isolation(report: &Report, profile: JailProfile) -> String {
    let list = |mechanisms: Vec<String>| mechanisms.join(", ");
    let held = report.mechanisms.iter().filter(|m| m.in_force).map(name);
    let missing = report.mechanisms.iter().filter(|m| !m.in_force);
    let missing: Vec<_> = missing.map(|m| format!("{} ({})", m.name, m.evidence)).collect();
    let missing = match missing.as_slice() {
        [] => String::new(),
        _ => format!("; not in force: {}", list(missing)),
    };
    let held = list(held.collect());
    let line = format!("meshfarm: isolation {}: for {profile}, {held}{missing}", report.level);
    line.replace(char::is_control, " ")
}

/// `landlock 7`: its versions differ in what they restrict.
fn name(mechanism: &Mechanism) -> String {
    let version = mechanism.evidence.strip_prefix("version ");
    let version = version.filter(|_| mechanism.name == "landlock");
    let number = version.and_then(|rest| rest.split([',', ' ']).next());
    number.map_or_else(|| mechanism.name.clone(), |number| format!("{} {number}", mechanism.name))
}

/// Why what exceeded a limit has ended.
pub(crate) fn stopped(stopped: Stopped, limits: &Limits) -> String {
    match stopped {
        Stopped::Memory => format!(
            "stopped: it used more memory than the {} that it may use here",
            Size(limits.memory_bytes)
        ),
        Stopped::DiskBytes => format!(
            "stopped: it wrote more than the {} that it may write here",
            Size(limits.disk_bytes)
        ),
        Stopped::DiskFiles => format!(
            "stopped: it made more than the {} files that it may make here",
            limits.disk_files
        ),
        Stopped::Time => match limits.wall_seconds {
            Some(seconds) => format!("stopped: it ran longer than its {seconds} s"),
            None => "stopped: it ran longer than it may".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use meshfarm_sandbox::Level;

    use super::*;

    fn mechanism(name: &str, in_force: bool, evidence: &str) -> Mechanism {
        let (name, evidence) = (name.to_owned(), evidence.to_owned());
        Mechanism { name, asked: true, in_force, evidence, better: None }
    }

    #[test]
    fn the_first_line_of_a_log_says_what_holds_and_what_does_not() {
        let report = Report {
            level: Level::S2,
            mechanisms: vec![
                mechanism("user namespace", true, "user:[4026532000]"),
                mechanism("landlock", true, "version 7, 24 rules, fully enforced"),
                mechanism("cgroup", false, "not\nwritable"),
            ],
        };
        assert_eq!(
            isolation(&report, JailProfile::BlenderCpu),
            "meshfarm: isolation S2: for blender-cpu, user namespace, landlock 7; not in force: cgroup (not writable)"
        );
    }

    #[test]
    fn a_limit_that_ended_a_task_is_named_with_its_number() {
        let limits = Limits { memory_bytes: 8 << 30, disk_files: 10, ..Limits::default() };
        assert!(stopped(Stopped::Memory, &limits).contains("more memory than the 8 GiB"));
        assert!(stopped(Stopped::DiskFiles, &limits).contains("the 10 files"));
    }
}
