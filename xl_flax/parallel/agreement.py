"""What all processes of a run must have alike, and what differs: settings, code, data."""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from xl_flax.files.checksums import sha256

Facts = dict[str, str]  # by name, as a person would read them

LIBRARIES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
# What the compiler reads: with other flags it makes other programs, which wait for one another.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")
OWN_FLAGS = {"process_id", "join_seconds", "gin_file", "gin_search_paths", "gin_flags"}
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHOWN, WIDTH = 5, 120  # differences; characters of a value


def command_facts(args: argparse.Namespace) -> Facts:
    """What a command does and with which code, before it has looked at any data.

    Args:
      args: its flags. Those that a process may have of its own are left out; what the Gin files
        and flags set is taken from Gin.
    """
    facts = {f"--{k}": str(v) for k, v in vars(args).items() if k not in OWN_FLAGS}
    facts |= _settings(gin.config_str())
    for name in VARIABLES:
        facts[name] = os.environ.get(name, "not set")
    facts["Python"] = platform.python_version()
    for name in LIBRARIES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts | _code()


def _settings(text: str) -> Facts:
    """Each binding of a Gin configuration, as in {"TrainConfig.steps": "6"}."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    _, *parts = re.split(r"^([\w./]+) = ", text, flags=re.MULTILINE)
    return {n: " ".join(v.split()) for n, v in zip(parts[::2], parts[1::2], strict=True)}


def _code() -> Facts:
    """The checksum of each of the package's files."""
    paths = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(PACKAGE)
        for name in names
        if name.endswith(".py")
    ]
    return {os.path.relpath(path, os.path.dirname(PACKAGE)): sha256(path)[:12] for path in paths}


def digest(facts: Mapping[str, Any]) -> str:
    """A short name of facts: they are exchanged only where it differs."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def differences(facts: Sequence[Facts]) -> list[str]:
    """What differs, as "STEPS is 6 on process 0, 8 on process 1"; facts by process."""
    lines = []
    for name in dict.fromkeys(name for each in facts for name in each):
        values: dict[str, list[int]] = {}
        for process, each in enumerate(facts):
            values.setdefault(each.get(name, "missing"), []).append(process)
        if len(values) > 1:
            said = [f"{_cut(value, values)} on {named(who)}" for value, who in values.items()]
            lines.append(f"{name} is {', '.join(said)}")
    more = len(lines) - SHOWN
    return lines[:SHOWN] + ([f"and {more} more differ"] if more > 0 else [])


def _cut(value: str, others: Mapping[str, Any]) -> str:
    """A long value from a little before where the values part."""
    if len(value) <= WIDTH:
        return value
    columns = enumerate(zip(*others, strict=False))
    parting = next((place for place, letters in columns if len({*letters}) > 1), 0)
    start = max(parting - WIDTH // 4, 0)
    end = start + WIDTH
    return "…" * (start > 0) + value[start:end] + "…" * (end < len(value))


def named(processes: Sequence[int]) -> str:
    """Processes in words, as "processes 1 and 2"."""
    if len(processes) == 1:
        return f"process {processes[0]}"
    *firsts, last = [str(process) for process in processes[:8]]
    more = len(processes) - 8
    return f"processes {', '.join(firsts)} and {f'{last}, {more} more' if more > 0 else last}"
