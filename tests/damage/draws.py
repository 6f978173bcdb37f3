"""Damages a finished run and its cache at random, and runs the command that it concerns.

    python tests/damage/draws.py --draws=1000 --folder=/tmp/damage

Every draw damages one file or folder of a fresh copy and runs train, evaluate or convert in a warm
process. Wanted is the result of the undamaged house, or one line that names what is damaged; never
a traceback, a wrong figure without a word, or the loss of another checkpoint. Draws are numbered:
`draws.jsonl` in the folder has one line each, and the same command goes on where it was.
`--only=17,123` repeats single ones and shows what the command said.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [ROOT, HERE, os.path.join(ROOT, "tests", "support")]

import house  # noqa: E402
from damage import FILE_KINDS, FOLDER_KINDS, damage  # noqa: E402

CLOCK = re.compile("time|.*per_second.*|seconds_per_step|input_wait|mfu|goodput")
SECONDS = 180  # after which a command counts as hung


class Worker:
    """A warm process that runs commands; started again if it dies or hangs."""

    def __init__(self, folder: str, compiled: str):
        """Prepares one.

        Args:
          folder: of its own, for the copy that it works on.
          compiled: for compiled programs, shared with the others.
        """
        self.folder = folder
        self._compiled = compiled
        self._process = None

    def run(
        self, module: str, arguments: Sequence[str], place: str, must: bool = False
    ) -> dict[str, Any]:
        """Runs one command in a folder; returns its exit code and what it printed.

        Raises:
          RuntimeError: it `must` succeed, and does not.
        """
        if self._process is None:
            self._start()
        request = {"module": module, "arguments": arguments, "folder": place}
        timer = threading.Timer(SECONDS, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        timer.cancel()
        if answer:
            answer = json.loads(answer)
        else:
            code, self._process = self._process.wait(), None
            answer = {"code": code, "out": "", "err": f"Traceback: it died or hung ({code})"}
        if must and answer["code"]:
            raise RuntimeError(f"{module} {arguments}:\n{answer['out']}{answer['err']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    def _start(self) -> None:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": self._compiled,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": ROOT,
        }
        self._process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "worker.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip


def make_house(folder: str, worker: Worker) -> dict[str, Any]:
    """Makes the finished run in `folder`/whole.

    Returns:
      What each command gives on it undamaged, as `figures` says.
    """
    whole, place = os.path.join(folder, "whole"), os.path.join(worker.folder, "house")
    for old in (whole, place):
        shutil.rmtree(old, ignore_errors=True)
    os.makedirs(place)
    before = os.getcwd()
    os.chdir(place)
    house.make_data()
    os.chdir(before)
    for module, arguments in house.MAKE:
        worker.run(module, arguments, place, must=True)
    os.rename(place, whole)
    wanted = {}
    for command, (module, arguments) in house.COMMANDS.items():
        shutil.copytree(whole, place)
        worker.run(module, arguments, place, must=True)
        wanted[command] = figures(command, place)
        shutil.rmtree(place)
    return wanted


def figures(command: str, place: str) -> dict[str, Any]:
    """What a command left behind, as values to compare."""
    if command == "train":
        rows = _rows(os.path.join(place, "run", "metrics.jsonl"))
        last = [r for r in rows if r.get("step") == house.STEPS + 2]
        return {
            key: [row.get(key) for row in last if key in row]
            for key in sorted({k for row in last for k in row if not CLOCK.fullmatch(k)})
        }
    if command == "convert":
        folder = os.path.join(place, "exported")
        values = {name: _hash(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
        with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
            values["README.md"] = file.read().splitlines()
        return values
    keys = ("task", "metric", "languages", "layer", "step", "similarity")
    return {
        "|".join(str(row.get(key)) for key in keys): row.get("value")
        for row in _rows(os.path.join(place, "run", "results.jsonl"))
    }


def draw(number: int, worker: Worker, folder: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Makes one draw; "wrong" in the result says what is not as it should be, "" if nothing."""
    rng = random.Random(number)
    whole, place = os.path.join(folder, "whole"), os.path.join(worker.folder, "house")
    said = None
    while said is None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, place)
        target, commands = choose(place, rng)
        kinds = FOLDER_KINDS if os.path.isdir(os.path.join(place, target)) else FILE_KINDS
        kind = rng.choice(kinds)
        said = damage(kind, os.path.join(place, target), rng)
    command = rng.choice(commands)
    before = checkpoints(place)
    answer = worker.run(*house.COMMANDS[command], place)
    wrong = judge(command, target, said, place, answer, before, wanted[command])
    return {
        "draw": number, "target": target, "damage": said, "command": command,
        "code": answer["code"], "wrong": wrong,
        "said": [line for line in answer["err"].splitlines() if line.strip()][-6:],
    }  # fmt: skip


def choose(place: str, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """A file or folder to damage, and the commands that it concerns."""
    everything = sorted(
        os.path.relpath(os.path.join(where, name), place)
        for where, folders, files in os.walk(place)
        for name in folders + files
    )
    groups = collections.defaultdict(list)
    for path in everything:
        for pattern, commands in CONCERNS.items():
            if re.fullmatch(pattern, path):
                groups[pattern, commands].append(path)
                break
    (_, commands), paths = rng.choice(sorted(groups.items()))
    return rng.choice(paths), commands


READERS = ("train", "evaluate", "convert")
CONCERNS = {  # the first that matches
    r"run/checkpoints/\d+": READERS,
    r"run/checkpoints/\d+/params(/.*)?": READERS,
    r"run/checkpoints/\d+/model(/.*)?": READERS,
    r"run/checkpoints/\d+/.*": ("train", "train", "evaluate"),
    r"run/checkpoints/best.json": ("best", "train"),
    r"run/checkpoints": ("train",),
    r"run/results.jsonl": ("evaluate", "convert", "best"),
    r"run/metrics.jsonl": ("train",),
    r"run/[^/]+": ("train", "convert"),
    r"run/.*": ("train",),
    r"cache/.*/train(/.*)?": ("train",),
    r"cache/.*": ("train", "evaluate"),
    r"vocabulary.model": ("train", "evaluate"),
}


def judge(
    command: str,
    target: str,
    said: str,
    place: str,
    answer: Mapping[str, Any],
    before: Mapping[str, str],
    wanted: Mapping[str, Any],
) -> str:
    """What is wrong with how a command took the damage; "" if nothing."""
    text = answer["out"] + answer["err"]
    targets = [target]
    if said.startswith("swap with "):
        targets.append(os.path.join(os.path.dirname(target), said.removeprefix("swap with ")))
    if "Traceback" in text or re.search(r'^ *File "', text, re.MULTILINE):
        return "traceback"
    if lost := [step for step, content in before.items() if content not in _kept(place)]:
        hurt = re.match(r"run/checkpoints/(\d+)", target)
        if not hurt or set(lost) - {hurt[1]} or command != "train":
            return f"checkpoints lost: {', '.join(lost)}"
        return f"damaged checkpoint deleted: {', '.join(lost)}"
    named = any(names(each, text) for each in targets)
    if answer["code"] == 0:
        now = figures(command, place)
        if command == "train" and not any(now.values()):
            return "done, but nothing trained"
        differing = differences(command, now, wanted)
        if differing and not named:
            return f"silently different: {', '.join(sorted(map(str, differing))[:4])}"
        return ""
    if answer["code"] != 1:
        return f"exit code {answer['code']}"
    errors = [line for line in answer["err"].splitlines() if line.startswith("error: ")]
    if len(errors) != 1:
        return f"{len(errors)} errors"
    named = any(names(each, errors[0]) for each in targets)
    return "" if named else "the error does not name what is damaged"


def differences(command: str, now: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The values that differ; figures that are missing are no wrong figures."""
    if command == "evaluate":  # of the newest checkpoint that is there, whose step is in the key
        return [key for key in {*now} & {*wanted} if now[key] != wanted[key]]
    differing = [key for key in {*now, *wanted} if now.get(key) != wanted.get(key)]
    if "README.md" in differing and set(now.get("README.md", "")) <= set(wanted["README.md"]):
        differing.remove("README.md")  # a model card with fewer lines
    return differing


def names(target: str, text: str) -> bool:
    """Whether a text names a file, or a folder around it that is not the whole house."""
    parts = target.split("/")
    if parts[0] == "cache":  # by the name of the task, or of the mixture
        name = "all" if parts[1] == "mixtures" else parts[1]
        if re.search(rf"\b{re.escape(name)}\b", text):
            return True
    if target == "run/checkpoints" and "finished checkpoint" in text:
        return True
    known = ["/".join(parts[:i]) for i in range(2, len(parts) + 1)] if len(parts) > 1 else parts
    known = [path for path in known if path not in ("run/checkpoints", "run/metrics")]
    return any(path in text for path in known) or target in text


def checkpoints(place: str) -> dict[str, str]:
    """The content of each checkpoint folder, as a hash."""
    folder = os.path.join(place, "run", "checkpoints")
    if not os.path.isdir(folder):
        return {}
    return {n: _hash(os.path.join(folder, n)) for n in os.listdir(folder) if n != "best.json"}


def _kept(place: str) -> set[str]:
    """Hashes of all folders that may be a checkpoint, where it was or put aside."""
    folders = [os.path.join(place, "run", name) for name in ("checkpoints", "set_aside")]
    return {
        _hash(os.path.join(folder, name))
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
    }


def _hash(path: str) -> str:
    value = hashlib.sha256()
    files = [path] if os.path.isfile(path) else []
    for where, folders, names in os.walk(path):
        folders.sort()
        files += [os.path.join(where, name) for name in sorted(names)]
    for file in files:
        value.update(os.path.relpath(file, path).encode())
        with open(file, "rb") as content:
            value.update(content.read())
    return value.hexdigest()


def _rows(path: str) -> list[dict[str, Any]]:
    """Lines that are objects."""
    rows = []
    if os.path.isfile(path):
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                rows += [row] if isinstance(row, dict) else []
    return rows


def run_draws(numbers: Iterable[int], folder: str, processes: int = 2) -> Iterator[dict[str, Any]]:
    """Makes the house and draws in warm processes; yields the draws as they end.

    Args:
      numbers: of the draws: the same number is the same damage.
      folder: to work in.
      processes: how many work at the same time.
    """
    compiled = os.path.join(folder, "compiled")
    workers = [Worker(os.path.join(folder, str(i)), compiled) for i in range(processes)]
    try:
        wanted = make_house(folder, workers[0])
        idle = queue.SimpleQueue()
        for worker in workers:
            idle.put(worker)

        def one(number: int) -> dict[str, Any]:
            worker = idle.get()
            try:
                return draw(number, worker, folder, wanted)
            finally:
                idle.put(worker)

        with concurrent.futures.ThreadPoolExecutor(processes) as pool:
            futures = [pool.submit(one, number) for number in numbers]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
    finally:
        for worker in workers:
            worker.close()


def main(argv: Sequence[str]) -> None:
    """Draws by hand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000, help="how many in all")
    parser.add_argument("--folder", required=True, help="to work in")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="numbers of draws to repeat, as in 17,123")
    args = parser.parse_args(argv)
    folder = os.path.abspath(args.folder)
    os.makedirs(folder, exist_ok=True)
    if args.only:
        for result in run_draws(map(int, args.only.split(",")), folder, 1):
            print(json.dumps(result, indent=1))
        return
    log = os.path.join(folder, "draws.jsonl")
    done = {row["draw"]: row for row in _rows(log)}
    missing = [number for number in range(args.draws) if number not in done]
    with open(log, "a") as file:
        for result in run_draws(missing, folder, args.processes):
            done[result["draw"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            if result["wrong"]:
                print("{draw} {target}: {damage}, {command}: {wrong}".format(**result), flush=True)
            elif len(done) % 50 == 0:
                print(f"{len(done)} of {args.draws} draws", flush=True)
    codes = collections.Counter((row["command"], row["code"]) for row in done.values())
    for (command, code), count in sorted(codes.items(), key=str):
        print(f"{command:>9}  exit {code}  {count:5}")
    print(f"{sum(bool(r['wrong']) for r in done.values())} of {len(done)} draws went wrong")


if __name__ == "__main__":
    main(sys.argv[1:])
