#!/usr/bin/env bash
# Measures the built programs: every room, or those rooms and parts that are named (node, demo, content, content.cold, sim, ...).
# MESHFARM_PROGRAMS names a folder of programs to measure; without it they are built first.
# MESHFARM_BENCH_SCALE is a factor for the sizes of content, such as 0.1 for a quick try.
# content.memory runs only when it is named: MESHFARM_BENCH_MEMORY_GIB (20) are on the disk four times for it.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
# shellcheck source=tests/env.sh
. tests/env.sh

# The other programs that content is compared with. What cannot be had is missing from the results, with the reason.
need_peers() {
    need_packages rsync openssh-client syncthing iproute2 util-linux
    # On a machine with a service manager the package would open port 22 to the world: whoever wants the row installs it.
    if [ ! -x /usr/sbin/sshd ] && [ ! -d /run/systemd/system ]; then
        need_packages openssh-server
    fi
    local peers="${XDG_CACHE_HOME:-$HOME/.cache}/meshfarm/peers"
    if [ -z "${MESHFARM_SENDME:-}" ] && [ ! -x "$peers/bin/sendme" ]; then
        printf 'compiling sendme, once for all: some minutes\n' >&2
        CARGO_TARGET_DIR="$peers/target" cargo install --quiet --locked sendme --version 0.37.1 --root "$peers" ||
            printf 'sendme cannot be compiled: it will be missing from the results\n' >&2
        rm -rf "$peers/target"
    fi
}

# The other programs that dispatch is compared with.
need_farms() {
    # On a machine with a service manager the packages would start daemons for good: whoever wants the rows installs them.
    if [ ! -d /run/systemd/system ]; then
        need_packages slurm-wlm munge
    fi
    local folder="${XDG_CACHE_HOME:-$HOME/.cache}/meshfarm/peers/hyperqueue"
    if [ -z "${MESHFARM_HYPERQUEUE:-}" ]; then
        # crates.io has no HyperQueue; PyPI has it whole, server and worker, as a Python module.
        [ -x "$folder/bin/python" ] || { python3 -m venv "$folder" && "$folder/bin/pip" install --quiet hyperqueue==0.27.0; } ||
            printf 'hyperqueue cannot be installed: it will be missing from the results\n' >&2
        export MESHFARM_HYPERQUEUE="$folder/bin/python"
    fi
}

need_build_packages
case " ${*:-content} " in
*' content'*) need_peers ;;
esac
case " ${*:-farm.beside} " in
*' farm '* | *' farm.beside'*) need_farms ;;
esac
case " ${*:-sandbox} " in
*' sandbox'*) need_packages bubblewrap proot povray ;;
esac
if [ -z "${MESHFARM_PROGRAMS:-}" ]; then
    need_packages povray povray-examples
    build_programs
    export MESHFARM_PROGRAMS="$MESHFARM_BIN"
fi
exec cargo bench --profile release --locked --quiet --package meshfarm-tests --bench rooms -- "$@"
