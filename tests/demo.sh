#!/usr/bin/env bash
# Three sites on this machine render an animation together: oslo, which has no renderer and no slots,
# sends every frame to lyon and kyoto. See --help.
set -euo pipefail

usage() {
    cat <<'END'
Renders an animation on a mesh of three sites on this machine, each a process with a home, a key and
sockets of its own: oslo submits and has no slots, lyon and kyoto render.

  ./tests/demo.sh               an animation of POV-Ray's packaged examples
  ./tests/demo.sh --blender     a scene that Blender makes, with a texture as a support file

  --frames N      render the first N frames only
  --out DIR       where the frames and the contact sheet go [default: a new folder in /tmp]
  --keep          keep the three homes and logs
  --no-floor      do not render the same frames again without the mesh. The comparison doubles the time,
                  and its two figures (lower bound, ratio) are null without it.
  --no-build      use the programs that were built last
  --json-last-line  print nothing on standard output but the last line
  -h, --help      this text

The last line is a JSON object: frames_folder, contact_sheet, frames_per_site, makespan_s,
lower_bound_s, ratio, bytes_moved.
END
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
# shellcheck source=tests/env.sh
. "$here/env.sh"

renderer=povray keep='' floor=yes build=yes n_frames='' out='' terse=''
while [ $# -gt 0 ]; do
    case "$1" in
        --blender) renderer=blender ;;
        --keep) keep=yes ;;
        --no-floor) floor='' ;;
        --no-build) build='' ;;
        --json | --json-last-line) terse=yes ;;
        --frames) n_frames="${2:-}"; shift ;;
        --frames=*) n_frames="${1#*=}" ;;
        --out) out="${2:-}"; shift ;;
        --out=*) out="${1#*=}" ;;
        -h | --help) usage; exit 0 ;;
        *) printf 'error: unknown argument %s\n' "$1" >&2; usage >&2; exit 2 ;;
    esac
    shift || { usage >&2; exit 2; }
done
if [ -n "$n_frames" ] && ! [[ "$n_frames" =~ ^[1-9][0-9]{0,3}$ ]]; then
    printf 'error: --frames %s: a number from 1 to 9999 is wanted\n' "$n_frames" >&2
    exit 2
fi

# The last line keeps the real standard output; everything else may be silenced.
exec 3>&1
[ -z "$terse" ] || exec 1>&2
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '\n%s\n' "$*"; }

# ---- the end, however it comes: every process that was started here is ended by its number ----

pids=() running=() work=''
finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    local pid
    for pid in "${running[@]}" "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${running[@]}" "${pids[@]}"; do
        # A node ends within seconds; one that does not is not asked again.
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [ -n "$work" ]; then
        if [ "$status" != 0 ]; then
            local log
            for log in "$work"/*.log; do
                [ -s "$log" ] && printf -- '--- end of %s\n' "$log" >&2 && tail -n 15 "$log" >&2
            done
        fi
        if [ -n "$keep" ]; then
            printf 'kept: %s\n' "$work" >&2
        else
            rm -rf -- "$work"
        fi
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Waits until a command succeeds: SECONDS WHAT COMMAND...
wait_until() {
    local end=$((SECONDS + $1)) what="$2"
    shift 2
    until "$@" >/dev/null 2>&1; do
        local pid
        for pid in "${pids[@]}"; do
            kill -0 "$pid" 2>/dev/null || fail "a node ended while waiting for $what"
        done
        [ "$SECONDS" -lt "$end" ] || fail "waited too long for $what"
        sleep 0.1
    done
}

# ---- what is needed ----

need_build_packages
packages=()
if [ "$renderer" = povray ]; then
    command -v povray >/dev/null || packages+=(povray)
    [ -d /usr/share/povray-3.7/include ] || packages+=(povray-includes)
    dpkg-query -W -f '${Status}' povray-examples 2>/dev/null | grep -q ' installed' || packages+=(povray-examples)
else
    command -v blender >/dev/null || packages+=(blender)
fi
command -v python3 >/dev/null || packages+=(python3)
[ "${#packages[@]}" = 0 ] || install_packages "${packages[@]}"

if [ -n "$build" ]; then
    build_programs
else
    export MESHFARM_BIN="$CARGO_TARGET_DIR/release"
fi
meshfarm="$MESHFARM_BIN/meshfarm"
[ -x "$meshfarm" ] || fail "$meshfarm is missing" 'run without --no-build'

# The path of a Unix socket has at most 107 bytes, so the homes lie near the root.
work="$(mktemp -d /tmp/mf.XXXXXX)"
[ -n "$out" ] || out="$(mktemp -d /tmp/meshfarm-frames.XXXXXX)"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
frames="$out/frames"
mkdir -p "$frames"

# ---- the artist's folder ----

artist="$work/artist" support=()
mkdir -p "$artist"
if [ "$renderer" = povray ]; then
    examples=''
    for folder in /usr/share/doc/povray/examples /usr/share/doc/povray-examples/examples; do
        [ -d "$folder/animations/camera2" ] && examples="$folder/animations/camera2"
    done
    if [ -z "$examples" ]; then
        # Slim images leave everything beneath /usr/share/doc out when they install; the package has it.
        say 'fetching the example scenes (this system leaves out the documentation of packages)'
        (cd "$work" && { apt-get -qq download povray-examples 2>/dev/null ||
            { as_root apt-get -qq update && apt-get -qq download povray-examples; }; } >&2 &&
            dpkg-deb -x povray-examples_*.deb examples) ||
            fail 'the package povray-examples cannot be fetched' 'check the network and /etc/apt/sources.list'
        examples="$(dirname "$(find "$work/examples" -name 'camera2.ini*' -print -quit)")"
    fi
    cp "$examples"/camera2.* "$artist/"
    find "$artist" -name '*.gz' -exec gunzip {} +
    scene="$artist/camera2.ini" first=1 last="${n_frames:-30}" resolution=800x600
    [ "$last" -le 30 ] || last=30
else
    say 'making a scene with Blender'
    blender --background --factory-startup -noaudio --python-exit-code 1 \
        --python "$here/demo_scene.py" -- "$artist" "${n_frames:-16}" >"$work/scene.log" 2>&1 ||
        fail 'Blender could not make the scene'
    scene="$artist/turntable.blend" first=1 last="${n_frames:-16}" resolution=400x300
    support=(--input "$artist/textures")
fi

# ---- three sites ----

cores="$(nproc)"
slots=$((cores / 2 > 0 ? cores / 2 : 1))
at() { local site="$1"; shift; "$meshfarm" --home "$work/$site" "$@"; }

say "three sites: oslo (no slots), lyon and kyoto ($slots slots each)"
loopback=(--listen /ip4/127.0.0.1/tcp/0 --listen /ip4/127.0.0.1/udp/0/quic-v1 --no-mdns)
at oslo init --name oslo --slots 0 --no-lend --where remote "${loopback[@]}"
at lyon init --name lyon --lend "$slots" --where local "${loopback[@]}"
at kyoto init --name kyoto --lend "$slots" --where local "${loopback[@]}"

# A site without renderers has none in its path.
bare_path="$work/bare"
mkdir -p "$bare_path"
for tool in sh env cat; do ln -s "$(command -v "$tool")" "$bare_path/$tool"; done
PATH="$bare_path" "$meshfarm" --home "$work/oslo" node --log-format json >"$work/oslo.ready" 2>"$work/oslo.log" &
pids+=($!)
for site in lyon kyoto; do
    "$meshfarm" --home "$work/$site" node --log-format json >"$work/$site.ready" 2>"$work/$site.log" &
    pids+=($!)
done
for site in oslo lyon kyoto; do
    wait_until 30 "$site to be ready" test -s "$work/$site.ready"
    python3 - "$work/$site.ready" <<'END'
import json, sys
ready = json.loads(open(sys.argv[1]).readline())
print(f"{ready['name']}: process {ready['pid']}, {', '.join(ready['listen'])}")
END
done

say 'one mesh'
at oslo mesh create demo
ticket="$(at oslo --quiet invite --uses 2 --expires 1h)"
for site in lyon kyoto; do printf '%s\n' "$ticket" | at "$site" --quiet join - >/dev/null; done
lends() {
    at oslo --json sites | python3 -c '
import json, sys
up = [s for s in json.load(sys.stdin) if s["connected"] and (s["profile"] or {}).get("lending")]
sys.exit(len(up) != 2)'
}
wait_until 60 'lyon and kyoto to say what they offer' lends
at oslo sites

# ---- the job ----

say "rendering frames $first to $last of $(basename "$scene") at $resolution"
status=0
# In the background, because bash looks at signals while it waits and not while it runs a command.
at oslo submit "$scene" --frames "$first-$last" --resolution "$resolution" --output "$frames" \
    "${support[@]}" --where remote --watch &
running=($!)
wait "${running[0]}" || status=$?
running=()
job="$(at oslo --quiet jobs | head -n 1)"
[ -n "$job" ] || fail 'the job was not taken'
if [ "$status" != 0 ]; then
    at oslo job "$job" || true
    at oslo logs "$job" | tail -n 20 || true
    fail 'the job did not end well' 'look into the logs: --keep keeps them'
fi
summary="$(at oslo --json watch "$job" | tail -n 1)"

say 'the frames'
sheet="$out/contact_sheet.png"
at oslo job "$job" --sheet "$sheet"
printf 'frames in %s\n' "$frames"

# ---- the lower bound: the same frames, the same threads, as many at once as there are slots, no mesh ----

lower_bound=null
native_frame() {
    local frame="$1"
    if [ "$renderer" = povray ]; then
        cd "$artist" && exec povray "$scene" "+I${scene%.ini}.pov" "+L$artist" "+O$work/native/camera2.png" +FN -D -P -GA \
            +WT1 "+W${resolution%x*}" "+H${resolution#*x}" "+SF$frame" "+EF$frame" >/dev/null 2>&1
    else
        exec blender --background --factory-startup -noaudio --threads 1 "$scene" \
            --python-expr "import bpy; r = bpy.context.scene.render; r.resolution_x, r.resolution_y, r.resolution_percentage = ${resolution/x/, }, 100" \
            --render-output "$work/native/frame_####" --render-format PNG --render-frame "$frame" >/dev/null 2>&1
    fi
}
if [ -n "$floor" ]; then
    say "the same frames without the mesh, $((2 * slots)) at once"
    mkdir -p "$work/native"
    begin="${EPOCHREALTIME/[.,]/}"
    for frame in $(seq "$first" "$last"); do
        if [ "${#running[@]}" -ge $((2 * slots)) ]; then
            # Any of them: as a slot does, the next frame starts when one is free.
            wait -n -p ended "${running[@]}" || fail 'a frame without the mesh failed'
            for i in "${!running[@]}"; do [ "${running[$i]}" = "$ended" ] && unset "running[$i]"; done
        fi
        native_frame "$frame" &
        running+=($!)
    done
    for pid in "${running[@]}"; do wait "$pid" || fail 'a frame without the mesh failed'; done
    running=()
    lower_bound=$((${EPOCHREALTIME/[.,]/} - begin))
fi

# ---- the end ----

say 'in short'
SUMMARY="$summary" python3 - "$frames" "$sheet" "$lower_bound" <<'END' >"$work/last"
import json, os, sys
out, sheet, bound = sys.argv[1:]
summary = json.loads(os.environ["SUMMARY"])
makespan = summary["makespan_ms"] / 1000
bound = None if bound == "null" else int(bound) / 1e6
moved = (summary["bytes_sent"] or 0) + (summary["bytes_received"] or 0)
last = {
    "frames_folder": out,
    "contact_sheet": sheet,
    "frames_per_site": {share["site"]: len(share["tasks"]) for share in summary["sites"]},
    "makespan_s": round(makespan, 2),
    "lower_bound_s": bound and round(bound, 2),
    "ratio": bound and round(makespan / bound, 3),
    "bytes_moved": moved,
}
said = ", ".join(f"{site} {n}" for site, n in last["frames_per_site"].items())
print(f"frames rendered: {said}; {moved / 1e6:.1f} MB moved", file=sys.stderr)
if bound:
    print(f"{makespan:.1f} s on the mesh, {bound:.1f} s without: overhead {100 * (makespan / bound - 1):.1f} %",
          file=sys.stderr)
print(json.dumps(last))
END
cat "$work/last" >&3
