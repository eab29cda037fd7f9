//! The launcher with the layers left out that its arguments name: for the controls of the attacks alone.

use std::{env, process::ExitCode};

use meshfarm_sandbox::launcher::{Without, run_without};

fn main() -> ExitCode {
    let mut without = Without::default();
    for layer in env::args().skip(1) {
        match layer.as_str() {
            "namespaces" => without.namespaces = true,
            "landlock" => without.landlock = true,
            "seccomp" => without.seccomp = true,
            "mount-restrictions" => without.mount_restrictions = true,
            "net-namespace" => without.net_namespace = true,
            "ipc-namespace" => without.ipc_namespace = true,
            "hidden-processes" => without.hidden_processes = true,
            "limits" => without.limits = true,
            "closed-descriptors" => without.closed_descriptors = true,
            "no-capabilities" => without.capabilities = true,
            "unreadable-first-process" => without.unreadable_first_process = true,
            // The node leaves this one out, not the launcher.
            "collector" => {}
            other => {
                eprintln!("no jail can be built without {other}");
                return ExitCode::FAILURE;
            }
        }
    }
    run_without(without)
}
