//! What confines this node itself: user namespaces that are restricted, a container, a masked process list.
//! Pure: it looks at the text of files.

use meshfarm_protocol::profile::Level;

use crate::api::Check;

use super::{good, weak};

/// Files whose being there tells of a container, and its kind.
const SIGNS: [(&str, &str); 4] = [
    ("/.dockerenv", "Docker"),
    ("/run/.dockerenv", "Docker"),
    ("/run/.containerenv", "Podman"),
    ("/run/systemd/container", "systemd"),
];

/// Parts of a control group's path that container engines choose.
const GROUPS: [(&str, &str); 6] = [
    ("/docker", "Docker"),
    ("/kubepods", "Kubernetes"),
    ("/libpod", "Podman"),
    ("/lxc", "LXC"),
    ("/machine.slice", "systemd"),
    ("/containerd", "containerd"),
];

/// Files beneath `/proc` that container engines cover.
const COVERED: [&str; 3] = ["/proc/kcore", "/proc/timer_list", "/proc/sys"];

/// The files of a machine, as text; none where there is no such file.
pub(super) type Files<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What confines a node on a machine with these files, where a jail reaches `level`; `root` when the node runs as root.
pub(super) fn confines(files: Files<'_>, level: Level, root: bool) -> Vec<Check> {
    let left = match level {
        Level::S3 | Level::S2 => format!("{level} is reached all the same"),
        Level::S1 | Level::S0 => {
            format!("{level} is left: own jobs only, and lent slots refuse every job of others")
        }
    };
    let mut checks = user_namespaces(files, (level, root), &left);
    if let Some(kind) = container(files) {
        let found = format!("this node runs in a container ({kind}); {left}");
        let help = "run the node on the machine itself, or let the container make jails: for Docker \
                    --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
                    --security-opt systempaths=unconfined --cap-add SYS_ADMIN";
        checks.push(match level {
            Level::S2 | Level::S3 => good("container", found),
            Level::S0 | Level::S1 => weak("container", found, help),
        });
    }
    checks.extend(process_list(files, level));
    checks
}

fn user_namespaces(files: Files<'_>, (level, root): (Level, bool), left: &str) -> Vec<Check> {
    let number = |path: &str| files(path)?.trim().parse::<u64>().ok();
    let named = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    let debian = "/proc/sys/kernel/unprivileged_userns_clone";
    let most = "/proc/sys/user/max_user_namespaces";
    let mut checks = Vec::new();
    let mut restricted = |found: &str, help: &str| {
        let text = format!("{found}; {left}");
        checks.push(match level {
            Level::S2 | Level::S3 => good("user namespaces", text),
            Level::S0 | Level::S1 => weak("user namespaces", text, help),
        });
    };
    // Neither of the first two stops root.
    if number(named) == Some(1) && !root {
        restricted(
            "restricted by AppArmor (kernel.apparmor_restrict_unprivileged_userns is 1)",
            "give meshfarm-sandbox a profile with `userns,` in /etc/apparmor.d, or \
             sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run the node as root",
        );
    }
    if number(debian) == Some(0) && !root {
        restricted(
            "kept from ordinary users (kernel.unprivileged_userns_clone is 0)",
            "sysctl kernel.unprivileged_userns_clone=1, or run the node as root",
        );
    }
    if number(most) == Some(0) {
        restricted(
            "forbidden (user.max_user_namespaces is 0)",
            "sysctl user.max_user_namespaces=15000; as root a node does without them",
        );
    }
    if files("/proc/self/ns/user").is_none() && number(most).is_none() {
        restricted("not built into this kernel", "use a kernel with CONFIG_USER_NS");
    }
    checks
}

fn container(files: Files<'_>) -> Option<String> {
    let sign = SIGNS.iter().find(|(path, _)| files(path).is_some());
    if let Some((path, kind)) = sign {
        let said = files(path).unwrap_or_default();
        let said = said.lines().next().unwrap_or_default().trim();
        // systemd writes the engine's name into its file.
        let kind = if *kind == "systemd" && !said.is_empty() { said } else { kind };
        return Some(format!("{kind}: {path}"));
    }
    let groups = files("/proc/1/cgroup").unwrap_or_default();
    let found = groups.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        GROUPS.iter().find(|(part, _)| path.starts_with(part)).map(|(_, kind)| (*kind, path))
    });
    found.map(|(kind, path)| format!("{kind}: control group {path}"))
}

/// Whether parts of the process list are covered: then the kernel gives a jail none of its own.
fn process_list(files: Files<'_>, level: Level) -> Option<Check> {
    let mounts = files("/proc/self/mountinfo").unwrap_or_default();
    let over = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let covered: Vec<_> = over.filter(|at| COVERED.contains(at)).collect();
    if covered.is_empty() {
        return None;
    }
    let found = format!(
        "covered in part ({}): the kernel gives jails no process list of their own",
        covered.join(" ")
    );
    let cost = match level {
        Level::S2 | Level::S3 => "jails do without /proc, which some renderers need",
        Level::S0 | Level::S1 => "no jail stands",
    };
    let help = "run the node outside of the container, or uncover /proc: for Docker \
                --security-opt systempaths=unconfined";
    Some(weak("process list", format!("{found}; {cost}"), help))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::CheckState;

    fn look(files: &[(&str, &str)], level: Level, root: bool) -> Vec<Check> {
        let mut all = BTreeMap::from([("/proc/self/ns/user", "")]);
        all.extend(files.iter().copied());
        confines(&|path| all.get(path).map(ToString::to_string), level, root)
    }

    fn told(checks: &[Check]) -> Vec<(&str, CheckState)> {
        checks.iter().map(|check| (check.name.as_str(), check.state)).collect()
    }

    #[test]
    fn an_open_machine_has_nothing_said_of_it() {
        let open = [
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0\n"),
            ("/proc/sys/kernel/unprivileged_userns_clone", "1\n"),
            ("/proc/sys/user/max_user_namespaces", "95921\n"),
            ("/proc/1/cgroup", "0::/init.scope\n"),
            ("/proc/self/mountinfo", "22 1 0:21 / /proc rw - proc proc rw\n"),
        ];
        assert_eq!(look(&open, Level::S3, false), Vec::new());
    }

    #[test]
    fn restricted_user_namespaces_are_named_with_their_setting_and_the_way_out() {
        for (path, value, word) in [
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", "/etc/apparmor.d"),
            ("/proc/sys/kernel/unprivileged_userns_clone", "0\n", "userns_clone=1"),
            ("/proc/sys/user/max_user_namespaces", "0\n", "max_user_namespaces=15000"),
        ] {
            let checks = look(&[(path, value)], Level::S0, false);
            assert_eq!(told(&checks), [("user namespaces", CheckState::Weak)], "{path}");
            assert!(checks[0].found.contains("S0 is left: own jobs only"), "{}", checks[0].found);
            assert!(checks[0].help.as_deref().unwrap().contains(word), "{:?}", checks[0].help);
        }
        let ubuntu = [("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")];
        assert!(look(&ubuntu, Level::S2, true).is_empty(), "root is not restricted");
        assert_eq!(told(&look(&ubuntu, Level::S2, false))[0].1, CheckState::Good);
    }

    #[test]
    fn a_container_is_known_by_its_files_or_its_control_group() {
        for (path, text, word) in [
            ("/.dockerenv", "", "Docker"),
            ("/run/.dockerenv", "", "Docker"),
            ("/run/systemd/container", "lxc\n", "lxc"),
            ("/proc/1/cgroup", "12:cpu:/docker/3fa8\n0::/\n", "Docker"),
            ("/proc/1/cgroup", "0::/kubepods/besteffort/pod1\n", "Kubernetes"),
        ] {
            let checks = look(&[(path, text)], Level::S0, true);
            assert_eq!(told(&checks), [("container", CheckState::Weak)], "{path}");
            assert!(checks[0].found.contains(word), "{}", checks[0].found);
            assert!(checks[0].help.as_deref().unwrap().contains("systempaths"));
        }
        let checks = look(&[("/.dockerenv", "")], Level::S2, true);
        assert_eq!(checks[0].state, CheckState::Good);
    }

    #[test]
    fn a_covered_process_list_is_told_with_what_it_costs() {
        let mounts = "30 22 0:21 / /proc rw - proc proc rw\n31 30 0:5 /null /proc/kcore rw - tmpfs tmpfs rw\n";
        let checks = look(&[("/proc/self/mountinfo", mounts)], Level::S2, true);
        assert_eq!(told(&checks), [("process list", CheckState::Weak)]);
        assert!(
            checks[0].found.contains("/proc/kcore") && checks[0].found.contains("without /proc")
        );
    }
}
