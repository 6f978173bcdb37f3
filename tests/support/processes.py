"""Real processes over loopback, as `launch/local_processes.sh` starts them."""

import collections
import os
import re
import signal
import subprocess
import sys
import time

from xl_flax import cli

SCRIPT = os.path.join(cli.ROOT, "launch", "local_processes.sh")
STARTED = []
# Runs a command; the process whose number is FIRST runs it with other flags, and perhaps elsewhere.
OTHERWISE = """
number="${@: -1}"
if [ "$number" = "--process_id=$FIRST" ]; then cd "${ELSEWHERE:-.}"; set -- "$@" $OTHER; fi
exec "$@"
"""


def start(folder, count, *command, **environment):
    """Starts a command as so many processes of one device each, in a folder."""
    process = subprocess.Popen(
        ["bash", SCRIPT, str(count), *command],
        cwd=folder, env=environment_in(folder) | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    STARTED.append(process)
    return process


def environment_in(folder):
    """Variables of a process of one device that runs in a folder."""
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": f"{folder}:{cli.ROOT}"}


def end_all():
    """Ends what a test that failed has left."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def python(module, *flags):
    """The command that runs a module of the package."""
    return (sys.executable, "-m", f"xl_flax.{module}", *flags)


def quick(module, *flags):
    """As `python`, for processes that are named after seconds when nothing is heard of them."""
    program = (
        "from xl_flax.parallel import peers; peers.BEAT, peers.BEATS = 0.5, 8\n"
        f"from xl_flax import cli, {module}; cli.run({module}.main)"
    )
    return (sys.executable, "-c", program, *flags)


def asked(process, pattern, victim, what):
    """Sends a signal to one of the processes when one of them says this; the time it is then."""
    for line in process.stdout:
        if re.search(pattern, line):
            break
    else:
        raise AssertionError(f"no line has {pattern}")
    os.kill(pid_of(process, victim), what)
    return time.monotonic()


def pid_of(process, victim):
    """The process of Python with this number that the script has started."""
    command = ("ps", "-eww", "-o", "pid=,ppid=,args=")
    rows = [line.split(None, 2) for line in subprocess.check_output(command, text=True).split("\n")]
    children = {int(row[0]): (int(row[1]), row[2]) for row in rows if len(row) == 3}
    for pid, (parent, arguments) in children.items():
        shell = children.get(parent, (0, ""))[0]
        if process.pid in (parent, shell) and re.search(f"python.*process_id={victim}$", arguments):
            return pid
    raise AssertionError(f"no process {victim}")


def otherwise(*command):
    """The command with which the process FIRST is another one (see OTHERWISE)."""
    return ("bash", "-c", OTHERWISE, "bash", *command)


def finish(process, seconds=120):
    """Waits for the end: the exit code, and what each process said, by its number."""
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it ends the others
        raise
    lines = collections.defaultdict(list)
    for number, line in re.findall(r"^\[(\d+)\] (.*)$", output, re.MULTILINE):
        lines[int(number)].append(line)
    return process.returncode, {number: "\n".join(said) for number, said in lines.items()}


def errors(said):
    """The errors of one process; it has no traceback."""
    assert "Traceback" not in said and "Check failure" not in said, said
    return [line for line in said.splitlines() if line.startswith("error: ")]
