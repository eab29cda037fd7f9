"""Runs conformance files of Open Job Description and judges what comes of them; tests/conformance.sh starts it."""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

# Longer than any job here runs, on a machine that is busy with others.
PATIENCE_S = 300
KINDS = ["job_templates", "env_templates", "jobs"]
SHOWN_LINES = 12
EXIT_CODE = re.compile(r"exited with code:\s*(-?\d+)")


def run(words, **options):
    """Exit code and everything that a command has printed."""
    try:
        ran = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             timeout=PATIENCE_S, **options)
    except subprocess.TimeoutExpired:
        return None, f"did not end within {PATIENCE_S} s"
    return ran.returncode, ran.stdout.decode("utf-8", "replace")


def tail(text):
    return "\n".join("      | " + line for line in text.strip().splitlines()[-SHOWN_LINES:])


def judge_template(meshfarm, path):
    """Why a template test failed; none when it passed."""
    code, said = run([meshfarm, "openjd", "check", str(path)])
    wanted = ".invalid." not in path.name
    if code not in (0, 1) or "panicked" in said:
        return f"`openjd check` ended with {code}\n{tail(said)}"
    if (code == 0) == wanted:
        return None
    return ("refused, and is right" if wanted else "accepted, and is wrong") + f"\n{tail(said)}"


def write(folder, name, value):
    path = pathlib.Path(folder) / name
    # JSON is YAML: it is read the same in whatever way the file is opened.
    path.write_text(json.dumps(value, default=str), encoding="utf-8")
    return path


def command(meshfarm, home, way, test, folder):
    words = [meshfarm, "--home", str(home), "openjd", "run", str(write(folder, "template.yaml", test["template"]))]
    if "parameters" in test:
        words += ["-p", f"file://{write(folder, 'values.yaml', test['parameters'])}"]
    for n, environment in enumerate(test.get("environments", [])):
        words += ["--env", str(write(folder, f"environment{n}.yaml", environment))]
    if "pathMapping" in test:
        rules = {"version": "pathmapping-1.0", "path_mapping_rules": test["pathMapping"]}
        words += ["--path-mapping-rules", f"file://{write(folder, 'rules.json', rules)}"]
    return words + (["--mesh", "--where", "remote"] if way == "mesh" else [])


def judge_output(expected, code, said):
    failure = expected.get("taskFailure")
    if failure is not None:
        if code == 0:
            return "succeeded, and a task should have failed"
        wanted = (failure or {}).get("exitCode")
        codes = [int(found) for found in EXIT_CODE.findall(said) if int(found) != 0]
        if wanted is not None and codes[:1] != [wanted]:
            return f"the exit code {wanted} should have been said first, and said were {codes}"
    for line in expected.get("output", []) + expected.get("output_posix", []):
        choices = line["anyOf"] if isinstance(line, dict) else [line]
        if not any(str(choice) in said for choice in choices):
            return f"this is missing: {' or '.join(map(repr, choices))}"
    for line in expected.get("forbidden", []) + expected.get("forbidden_posix", []):
        if str(line) in said:
            return f"this should not be there: {line!r}"
    return None


def judge_job(meshfarm, home, way, path):
    """Why a job test failed; none when it passed, "skip" when it is for another system."""
    test = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "posix" not in test.get("runOn", ["posix"]):
        return "skip"
    with tempfile.TemporaryDirectory() as folder:
        code, said = run(command(meshfarm, home, way, test, folder))
    if code not in (0, 1) or "panicked" in said:
        reason = f"`openjd run` ended with {code}"
    elif ".invalid." in path.name:
        reason = "succeeded, and is wrong" if code == 0 else None
    else:
        reason = judge_output(test.get("expected", {}), code, said)
    return reason and f"{reason}\n{tail(said)}"


def files(top, kind):
    folders = [pathlib.Path(at) for at, _, _ in os.walk(top) if pathlib.Path(at).name == kind]
    endings = ["*.test.yaml"] if kind == "jobs" else ["*.yaml", "*.json"]
    return sorted(path for folder in folders for ending in endings for path in folder.glob(ending))


def main():
    meshfarm, work, top, only, *ways = sys.argv[1:]
    top, home = pathlib.Path(top).resolve(), pathlib.Path(work) / "oslo"
    failed = ran = 0
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        for kind in KINDS:
            found = [path for path in files(top, kind) if only in str(path.relative_to(top))]
            # A check has no use for a mesh.
            for way in ways if kind == "jobs" else [None]:
                if kind == "jobs":
                    reasons = list(pool.map(lambda path: judge_job(meshfarm, home, way, path), found))
                else:
                    reasons = list(pool.map(lambda path: judge_template(meshfarm, path), found))
                skipped = reasons.count("skip")
                wrong = [(path, reason) for path, reason in zip(found, reasons) if reason not in (None, "skip")]
                ran, failed = ran + len(found) - skipped, failed + len(wrong)
                for path, reason in wrong:
                    print(f"FAILED {path.relative_to(top)}" + (f" ({way})" if way else "") + f": {reason}")
                if found:
                    name = kind + (f" ({way})" if way else "")
                    others = f", {skipped} for other systems" if skipped else ""
                    print(f"{name}: {len(found) - skipped - len(wrong)} of {len(found) - skipped} passed{others}", flush=True)
    if ran == 0:
        sys.exit(f"error: there are no conformance files in {top}" + (f" with {only!r} in their path" if only else ""))
    sys.exit(1 if failed else 0)


main()
