"""Your own parallel text, without a line of code: files in $XL_FLAX_DATA_DIR/parallel.

`deu-eng.tsv`, a column per language, or `deu-eng.deu` and `deu-eng.eng`, line i translating line i,
become the task `local_deu_eng`, and the mixture `local_parallel` takes all pairs, by size. Beside
them, or instead of them, there may be splits: `deu-eng.validation.tsv`, `deu-eng.test.deu`, and so
on; what names no split is "train". Names with more languages, `deu-eng-fra.tsv`, become multi-way
tasks outside the mixture. For anything else write a module of your own (tasks/parallel.py shows
how).
"""

import os
import re

from tasks import parallel, text
from tasks.local import SPLITS
from xl_flax.errors import UserError

FOLDER = "parallel"


def find_files(folder: str) -> dict[tuple[str, ...], dict[str, list[str]]]:
    """Languages -> split -> files, for a folder under XL_FLAX_DATA_DIR.

    Raises:
      UserError: a split is there both as a TSV and as a file per language.
    """
    files_of: dict[tuple[str, ...], dict[str, list[str]]] = {}
    absolute = os.path.join(os.environ.get(text.DATA_DIR, ""), folder)
    names = sorted(os.listdir(absolute)) if os.path.isdir(absolute) else []
    for name in names:
        match = re.fullmatch(rf"((\w+(?:-\w+)+)(?:\.({'|'.join(SPLITS)}))?)\.(\w+)", name)
        languages = tuple(match[2].split("-")) if match else ()
        if not match or match[4] not in (*languages, "tsv"):
            continue
        # One file of a pair suffices here: that the other is missing is said when they are read.
        ends = ("tsv",) if match[4] == "tsv" else languages
        files = [f"{folder}/{match[1]}.{end}" for end in ends]
        splits = files_of.setdefault(languages, {})
        if splits.setdefault(match[3] or "train", files) != files:
            raise UserError(
                f"{absolute}: the split {match[3] or 'train'!r} of {match[2]} is there twice, "
                f"{splits[match[3] or 'train'][0]} and {files[0]}: remove one"
            )
    return files_of


def add_folder(name: str, folder: str) -> None:
    """Registers the files of a folder: tasks `{name}_{a}_{b}` and the mixture `{name}_parallel`."""
    files = find_files(folder)
    if not any(len(languages) == 2 for languages in files):
        # With no file yet there is still a task, so that using it says where files are expected.
        files["first", "second"] = {"train": [f"{folder}/<first>-<second>.tsv"]}
    for languages, paths in files.items():
        source = parallel.ParallelFiles(paths)
        parallel.add_parallel_task("_".join((name, *languages)), languages, source)
    pairs = ["_".join((name, *languages)) for languages in files if len(languages) == 2]
    text.add_language_mixture(f"{name}_parallel", pairs)


add_folder("local", FOLDER)
