"""A stand-in for gcloud, kubectl, sbatch and their like: one program, and the world it acts on.

`World` writes programs into a folder for PATH. All of them are this file: it writes down how it was
called, fails where a rule says so, and otherwise does to the world, a folder, what the real program
would do. Hosts are folders in which commands are run as ssh would run them, by a shell.
"""

import fcntl
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = (
    "gcloud",
    "kubectl",
    "sbatch",
    "squeue",
    "scancel",
    "scontrol",
    "srun",
    "ssh",
    "scp",
    "sky",
    "ssh-add",
    "ssh-agent",
    "ssh-keygen",
    "python",
)
RESOURCE = "Resource 'projects/p/locations/z/queuedResources/{}'"
NOT_FOUND = f"ERROR: (gcloud.compute.tpus.queued-resources) NOT_FOUND: {RESOURCE} was not found"
TAKEN = f"ERROR: (gcloud.compute.tpus.queued-resources) ALREADY_EXISTS: {RESOURCE} already exists"


# What a shell, ssh and a shell again may take apart.
ODD = [
    "--gin.TrainConfig.objectives=[@MaskedLM(), @Contrastive()]",
    "--gin.TASK_MODULES=['my languages', \"it's\"]",
    "--gin.NAME=a\\b$HOME`id`$(id)*?~#&;|<>(){}! ü",
    "--gin.EMPTY=",
    "two\nlines",
]


class World:
    """The folder in which stand-ins keep what there is; for tests."""

    def __init__(self, folder, python, **start):
        self.folder = Path(folder)
        (self.folder / "bin").mkdir(parents=True)
        for name in PROGRAMS:
            program = self.folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {python} -I -S {__file__} {folder} {name} "$@"\n')
            program.chmod(0o755)
        (self.folder / "host_bin").mkdir()
        for name, does in ("hostname", 'echo "$HOST"'), ("uv", "exit 0"):
            program = self.folder / "host_bin" / name
            program.write_text(f"#!/bin/sh\n{does}\n")
            program.chmod(0o755)
        self.job("exit 0")
        self.write(
            {"calls": [], "words": [], "rules": [], "lives": [["ACTIVE"]], "hosts": 2, **start}
        )

    @property
    def environment(self):
        """Of a shell on the machine from which jobs are started."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        folder = str(self.folder)
        return {"PATH": path, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}

    def read(self):
        return json.loads((self.folder / "world.json").read_text())

    def write(self, world):
        (self.folder / "world.json").write_text(json.dumps(world))

    def fail(self, match, stderr, code=1, times=1, after=None):
        """Lets the next `times` calls that match fail; `after` does its work all the same."""
        world = self.read()
        world["rules"].append(
            {"match": match, "stderr": stderr, "code": code, "times": times, "after": after}
        )
        self.write(world)

    def job(self, script):
        """What a host's job does, in shell."""
        (self.folder / "job").write_text(script + "\n")

    def calls(self, match=""):
        return [call for call in self.read()["calls"] if re.search(match, call)]

    def hosts(self):
        return sorted((self.folder / "hosts").glob("*"))


def errors(run):
    return [line for line in run.stderr.splitlines() if line.startswith("error:")]


def placeless(call):
    """A call without the folder of the code's tar file, which is a new one each time."""
    return re.sub(r"\S+/(\w+\.tar\.gz) ", r"\1 ", call)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Stop(Exception):
    """Ends the program with a message and an exit code."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def flag(words, name, default=None):
    return next((w.split("=", 1)[1] for w in words if w.startswith(f"--{name}=")), default)


def queued_resources(folder, world, words):
    """gcloud compute tpus queued-resources …; returns commands to be run on hosts."""
    if words[0] == "list":
        return []
    verb, name = (
        words[0],
        next(w for w in words[1:] if w[0] != "-" and (words[0] != "scp" or ":" in w)),
    )
    name, there = name.rstrip(":"), world.get("resource")
    if verb == "create":
        if there:
            raise Stop(TAKEN.format(name))
        nodes = int(flag(words, "node-count", "1"))
        world["resource"] = {
            "name": name,
            "type": flag(words, "accelerator-type"),
            "nodes": nodes,
            "states": world["lives"].pop(0) if world["lives"] else ["ACTIVE"],
        }
        shutil.rmtree(folder / "hosts", ignore_errors=True)
        make_hosts(folder, world["hosts"])
        return []
    if not there or there["name"] != name:
        raise Stop(NOT_FOUND.format(name))
    states = there["states"]
    if verb == "describe":
        print(states[0], there["type"], world.get("why", ""))
        if len(states) > 1:
            states.pop(0)
        return []
    if verb == "delete":
        world["resource"] = None
        return []
    if states[0] != "ACTIVE":
        raise Stop(
            f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) the resource is {states[0]}"
        )
    hosts = sorted((folder / "hosts").glob("*"))
    if flag(words, "worker") != "all":
        hosts = hosts[:1]
    if verb == "scp":
        return [(host, f"cp {words[1]} .") for host in hosts]
    return [(host, flag(words, "command")) for host in hosts]


# In place of an environment's python: writes down what it is to run, and does what the test says.
PYTHON = """#!/bin/sh
case "$*" in "-m pip"* | -c*) exit 0 ;; esac
printf '%s\\0' "$@" . >>"$HOME/ran"
exec bash "{folder}/job" "$@"
"""


def make_hosts(folder, number):
    """So many folders, each the home of a machine that has an environment already."""
    for host in range(number):
        python = folder / "hosts" / str(host) / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON.format(folder=folder))
        python.chmod(0o755)


def ran(host):
    """The commands that ran on a host, each as a list of words."""
    commands = [[]]
    for word in (host / "ran").read_text().split("\0")[:-1]:
        commands.append([]) if word == "." else commands[-1].append(word)
    return commands[:-1]


def on_host(folder, host):
    """The environment of a shell on a host."""
    return {
        "HOME": str(host), "HOST": f"host{host.name}", "LANG": "C.UTF-8", "PYTHON": sys.executable,
        "PATH": f"{folder}/host_bin:{os.environ['PATH']}", "XL_FLAX_VENV": str(host / "venv"),
    }  # fmt: skip


def on_hosts(folder, commands):
    """Runs commands as ssh does: in the home folder, by a shell, at once; a bad exit code."""
    running = [
        subprocess.Popen(["bash", "-c", command], cwd=host, env=on_host(folder, host))
        for host, command in commands
    ]
    codes = [process.wait() for process in running]
    return next((code for code in codes if code), 0)


def main(folder, program, *words):
    folder = Path(folder)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        world = json.loads((folder / "world.json").read_text())
        call = " ".join((program, *words))
        world["calls"].append(call)
        world["words"].append((program, *words))
        rule = next((r for r in world["rules"] if r["times"] and re.search(r["match"], call)), None)
        commands, code = [], 0
        try:
            if rule:
                rule["times"] -= 1
            if not rule or rule["after"]:
                commands = WORK[program](folder, world, words)
                if rule and rule["after"] == "gone":
                    world["resource"] = None
                elif rule and rule["after"] != "done":
                    world["resource"]["states"] = rule["after"]
            if rule:
                raise Stop(rule["stderr"], rule["code"])
        except Stop as stop:
            print(stop, file=sys.stderr)
            code = stop.code
        (folder / "world.json").write_text(json.dumps(world))
    sys.exit(code or on_hosts(folder, commands))


def gcloud(folder, world, words):
    if words[0] == "alpha":
        words = words[1:]
    match words[:3]:
        case ["compute", "tpus", "queued-resources"]:
            return queued_resources(folder, world, words[3:])
        case ["compute", "tpus", "tpu-vm"]:
            for node in range(world["resource"]["nodes"]):
                name = f"{world['resource']['name']}-{node}"
                print(f"{name}\tREADY\tHEALTHY\t2026-01-01T00:00:00Z")
        case ["storage", "cp", "--quiet"]:
            world["bucket"] = [*world.get("bucket", []), words[4]]
            assert Path(words[3]).stat().st_size
    return []


def kubectl(folder, world, words):
    words = [word for word in words if not word.startswith(("--namespace=", "--context="))]
    match words[:3]:
        case ["create", "-f", "-"]:
            if world.get("jobset"):
                raise Stop('Error from server (AlreadyExists): jobsets "n" already exists')
            world["jobset"] = {"manifest": sys.stdin.read(), "state": ""}
        case ["get", "jobset", _] if world.get("jobset"):
            mark = re.search(r'made-from: "(\d+)"', world["jobset"]["manifest"])[1]
            print(f"Running{world['jobset']['state']} {mark}")
        case ["get", "jobset", name] if "--ignore-not-found" not in words:
            raise Stop(f'Error from server (NotFound): jobsets "{name}" not found')
        case ["delete", "jobset", _]:
            world["jobset"] = None
        case ["logs", *_]:
            print("step 1")
    return []


def sbatch(folder, world, words):
    world["job"] = {"script": Path(words[-1]).read_text(), "state": "PENDING"}
    print("Submitted batch job 7")
    return []


def squeue(folder, world, words):
    if world.get("job"):
        print(7, world["job"]["state"])
    return []


def scancel(folder, world, words):
    if not flag(words, "signal"):
        world["job"] = None
    return []


def srun(folder, world, words):
    """Runs the command as a host of the job does."""
    command = [*itertools.dropwhile(lambda word: word.startswith("--"), words)]
    if not (folder / "hosts").exists():
        make_hosts(folder, world["hosts"])
    host = folder / "hosts" / "0"
    process = subprocess.run(command, env=os.environ | on_host(folder, host), check=False)
    if process.returncode:
        raise Stop(f"srun: error: exited with {process.returncode}", process.returncode)
    return []


def ssh(folder, world, words):
    if not (folder / "hosts").exists():
        make_hosts(folder, 1)
    return [(folder / "hosts" / "0", words[-1])]


def scp(folder, world, words):
    return ssh(folder, world, [f"cp {words[-2]} ."])


WORK = {name: globals().get(name, lambda *_: []) for name in PROGRAMS}

if __name__ == "__main__":
    main(*sys.argv[1:])
