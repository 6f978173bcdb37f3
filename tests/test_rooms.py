"""Imports are as the table of docs/architecture.md has them; files and functions are short."""

import ast
import graphlib
import itertools
import re
from pathlib import Path

from xl_flax import cli

DOC = Path(cli.ROOT, "docs", "architecture.md").read_text(encoding="utf-8")
PACKAGE = Path(cli.ROOT, "xl_flax")


def imports(path):
    """The rooms of the package that a module imports from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("xl_flax."))


def test_imports_run_one_way_as_the_table_says():
    table = DOC[DOC.index("| room |") : DOC.index("## The contracts")]
    lines = [line.split("|")[1:4] for line in table.strip().splitlines()[2:]]
    order = [re.findall(r"`(\w+)`", rooms) for rooms, *_ in lines]
    assert sorted(itertools.chain(*order)) == sorted(
        path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__")
    )
    shared = {*itertools.chain(*order[-3:])}
    for number, (rooms, (_, _, said)) in enumerate(zip(order, lines, strict=True)):
        below = {*itertools.chain(*order[number + 1 :])}
        used = set()
        for room in rooms:
            folder = PACKAGE / room
            paths = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
            for path in paths:
                own = {name for name in imports(path) if name not in (room, "__version__")}
                assert own <= below, f"{path} imports from {own - below}"
                used |= own
        said = said.strip()
        if said != "everything":
            assert used - shared == set(re.findall(r"\w+", said)) - {"nothing"}, rooms


def test_no_modules_import_each_other():
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = {}
    for module, path in modules.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        graph[module] = (named & set(modules)) - {module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


# Functions that are read from top to bottom, as a story.
STORIES = {"_train", "make_train_step"}


def test_files_and_functions_are_short():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name not in STORIES:
                assert node.end_lineno - node.lineno + 1 < 80, f"{path}: {node.name}"
