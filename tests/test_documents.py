"""What the documents print works: commands, flags, settings, mixtures, links.

A piece of shell is run by bash with every program replaced by one that writes down its arguments,
so that arrays, loops and the scripts in launch/ count as they do for a reader. What was written
down is then parsed by the command itself, Gin files and all.
"""

import argparse
import ast
import dataclasses
import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import gin
import pytest
import yaml
from small_evaluations import WORDS, make_run, train_vocabulary

import xl_flax
from xl_flax import cli
from xl_flax.data.manifest import Cache
from xl_flax.data.required import required
from xl_flax.data.seqio_tasks import find, import_tasks
from xl_flax.data.vocabulary import VocabularyConfig
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.training.config import TrainConfig

ROOT = Path(cli.ROOT)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GIN_FILES = sorted((ROOT / "gin").rglob("*.gin"))
COMMANDS = [
    ROOT / "xl_flax" / f"{name}.py"
    for name in ("train", "evaluate", "report", "cache", "vocab", "plan")
]
COMMANDS += [ROOT / "xl_flax/convert.py"]
CONFIGS = {
    "xl_flax.train": TrainConfig,
    "xl_flax.evaluate": EvaluateConfig,
    "xl_flax.plan": TrainConfig,
    "xl_flax.cache": Cache,
    "xl_flax.vocab": VocabularyConfig,
}
SCRIPTS = ("tests/benchmarks/", "tests/damage/")
PROGRAMS = {"awk", "git", "head", "pip", "ruff"}  # of others, as documents use them
MODEL = "include 'gin/models/bert_tiny.gin'\nVOCABULARY = 'v'\nVOCAB_SIZE = 100"
# What commands write and later ones read, or what stands for a reader's own file.
WRITTEN = {
    "runs/xlmr/model.gin": MODEL,
    "runs/minilm/model.gin": MODEL,
    "RUN.gin": "include 'gin/runs/quickstart.gin'",
}
# Checkpoints that commands begin with; "…" is what a reader fills in.
CHECKPOINTS = ("…", "runs/quickstart", "runs/bible", "runs/transfer/panx/pretrained/0")
# Their examples are run by tests/test_architecture.py, and by tests/launch against stand-ins.
OTHERS = {"architecture.md", "launching.md", "host.sh", "tpu_vm.sh", "gke.sh", "slurm.sh", "gpu.sh"}
RECORDER = """
command_not_found_handle() { printf '%s\\0' "$#" "$@" >>"$RECORD"; }
source() { :; }  # launch/environment.sh installs what commands need
export -f command_not_found_handle source
set -u
"""


# ---- Extraction


def markdown(path):
    """(line, shell) of the blocks of a page, and of the commands within its sentences."""
    text = path.read_text(encoding="utf-8")
    for block in re.finditer(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, block.start()) + 2, block[1]
    prose = re.sub(r"^```.*?^```", lambda b: "\n" * b[0].count("\n"), text, flags=re.M | re.S)
    for span in re.finditer(r"`((?:\w+=\S+\s+)*(?:python|bash)\s[^`]+)`", prose):
        yield prose.count("\n", 0, span.start()) + 1, " ".join(span[1].split())


def comments(path):
    """(line, shell) of the indented lines at the head of a Gin file or a script."""
    head = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))[0].splitlines()
    shell = [line[1:] for line in head if line.startswith("#   ")]
    if any(re.match(r" *(\w+=\S+ )*(python|bash) ", line) for line in shell):
        yield 1, "\n".join(shell)


def docstring(path):
    """(line, shell) of the examples of a command."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    yield from ((1, line) for line in re.findall(r":  (python -m .*)", text))
    for block in re.findall(r"Examples:\n((?:  .*\n?)+)", text):
        yield 1, block


def pieces():
    """Every piece of shell that is printed, by where it stands."""
    readers = [(path, markdown) for path in PAGES]
    readers += [(path, comments) for path in [*GIN_FILES, *sorted((ROOT / "launch").glob("*.sh"))]]
    readers += [(path, docstring) for path in COMMANDS]
    for path, read in readers:
        if path.name in OTHERS:
            continue
        for line, shell in read(path):
            yield pytest.param(shell, id=f"{path.relative_to(ROOT)}:{line}")


# ---- The commands


class Parsed(Exception):
    """A command has read its flags; nothing of it is to be run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The reader's folder: scripts, what earlier commands wrote, and no program but bash."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    for program in ("bash", "dirname", "mkdir"):
        (folder / "bin" / program).symlink_to(shutil.which(program))
    for name in ("launch", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for name, text in WRITTEN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    vocabulary = train_vocabulary(folder / "v", WORDS)
    run = make_run(str(folder / "run"), vocabulary, max_positions=512)
    for name in CHECKPOINTS:
        shutil.copytree(run, folder / name)
    for task in ("sib200", "ud_pos", "panx", "snli", "ud_trees", "questions"):
        for setting in ("pretrained", "untrained", "translated"):
            for runs in ("runs/transfer", "runs/transfer_english"):
                (folder / runs / task / setting / "0").mkdir(parents=True, exist_ok=True)
    for setting in ("mlm", "tlm", "contrastive", "all", "dual"):
        for seed in "012":
            (folder / "runs/parallel" / setting / seed).mkdir(parents=True, exist_ok=True)
    return folder


def recorded(shell, folder):
    """The commands that a piece of shell starts, each as a list of words."""
    record = folder / "record"
    record.write_bytes(b"")
    environment = {"PATH": str(folder / "bin"), "RECORD": str(record), "XL_FLAX_DATA_DIR": "…"}
    run = subprocess.run(
        ["bash", "-c", RECORDER + shell],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0 and not run.stderr, run.stderr
    words = record.read_text(encoding="utf-8").split("\0")
    while len(words) > 1:
        count = int(words.pop(0))
        yield words[:count]
        words = words[count:]


@pytest.fixture
def flags_only(monkeypatch):
    """Commands stop when they have read their flags; holds the parser that read the last ones."""
    parse, parse_args = cli.parse, argparse.ArgumentParser.parse_args

    def stop(read):
        def wrapped(*args, **kwargs):
            read(*args, **kwargs)
            raise Parsed

        return wrapped

    # A process of several that ends before it joins them waits to tell them why.
    monkeypatch.setenv("XL_FLAX_JOIN_SECONDS", "0.1")
    monkeypatch.setattr(cli, "parse", stop(parse))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop(parse_args))
    yield
    gin.clear_config()


def parse(words):
    """Lets a command read its flags and Gin files, and builds what these configure."""
    match words:
        case ["python", "-m", "pytest", *flags]:
            assert all(os.path.exists(word) for word in flags if word.endswith(".py"))
        case ["python", "-m", name]:  # a command's name in a sentence
            assert importlib.import_module(name).main
        case ["python", "-m", name, *flags]:
            with pytest.raises(Parsed):
                importlib.import_module(name).main(flags)
            if any(flag.startswith("--gin_file") for flag in flags):
                CONFIGS[name]()
                modules = Cache(directory=os.curdir).task_modules
                import_tasks([module for module in modules if module.startswith("tasks.")])
                for spec in required() if "my_languages" not in modules else ():
                    find(spec.mixture, modules)
        case ["python", script, *flags]:
            assert script.startswith(SCRIPTS) and os.path.exists(script)
            with pytest.raises(Parsed):
                importlib.import_module(Path(script).stem).main(flags)
        case [program, *_]:
            assert program in PROGRAMS


# ---- The tests


@pytest.mark.parametrize("shell", pieces())
def test_a_printed_command_is_understood(shell, folder, flags_only, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for words in recorded(shell, folder):
        try:
            parse(words)
        except SystemExit:
            pytest.fail(f"{' '.join(words)}\n{capsys.readouterr().err}")


def prose(path):
    """A page without its blocks; of a Gin file, the comments at its head."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".gin":
        return re.match(r"(?:#.*\n)*", text)[0]
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_flags_that_are_named_exist(flags_only, monkeypatch):
    parsers, init = [], argparse.ArgumentParser.__init__

    def keep(self, *args, **kwargs):
        init(self, *args, **kwargs)
        parsers.append(self)

    monkeypatch.setattr(argparse.ArgumentParser, "__init__", keep)
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in COMMANDS]
    modules += [p.stem for folder in SCRIPTS for p in (ROOT / folder).glob("[!t]*.py")]
    for module in map(importlib.import_module, modules):
        if hasattr(module, "main"):
            with pytest.raises((Parsed, SystemExit)):
                module.main(["--help"])
    options = {option for parser in parsers for option in parser._option_string_actions}
    for path in (ROOT / "launch").glob("*.sh"):  # tests/launch compares it with what they take
        head = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))[0]
        options |= set(re.findall(r"--[a-z]\w*", head))
    for path in [*PAGES, *GIN_FILES]:
        named = set(re.findall(r"(?<![\w-])--[a-z]\w*", prose(path)))
        assert named <= options | {"--gin"}, path


def test_settings_that_are_named_exist():
    modules = map(importlib.import_module, cli.CONFIGURABLES)
    known = {name: value for module in modules for name, value in vars(module).items()}
    for path in [*PAGES, *GIN_FILES]:
        text = path.read_text(encoding="utf-8")
        for name, field in re.findall(r"\b([A-Z][A-Za-z]+)\.([a-z]\w*)\b", text):
            if dataclasses.is_dataclass(kind := known.get(name)):
                there = field in kind.__dataclass_fields__ or hasattr(kind, field)
                assert there, f"{path}: {name}.{field}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, target
    for name in re.findall(r"`((?:gin|docs|tests|launch|xl_flax|tasks)/[\w/]*(?:\.\w+)?)`", text):
        assert (ROOT / name).exists(), name


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == xl_flax.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)


def test_every_part_of_a_signature_is_explained():
    table = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| .*? \|", table, re.MULTILINE))))
    pages = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    signatures = re.findall(r"(?:masked_lm|retrieval|mining)\|[^\s`…]+\|version:[\d.]+", pages)
    named = {part.split(":")[0] for line in signatures for part in line.split("|")[1:]}
    assert len(signatures) > 3 and named <= explained
