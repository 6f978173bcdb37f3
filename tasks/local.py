"""Your own text, without a line of code: one file per language in $XL_FLAX_DATA_DIR/text.

`deu.txt` becomes the task `local_deu`, and the mixture `local` takes all of them, by size. One
line is one example. Beside it, or instead of it, there may be `deu.train.txt`,
`deu.validation.txt` and `deu.test.txt`. For anything else write a module of your own (tasks/text.py
shows how).
"""

import os
import re

from tasks import text

FOLDER = "text"
SPLITS = ("train", "validation", "test")


def find_languages(folder: str) -> dict[str, dict[str, str]]:
    """Language -> split -> file, for the files of a folder under XL_FLAX_DATA_DIR."""
    files_of: dict[str, dict[str, str]] = {}
    absolute = os.path.join(os.environ.get(text.DATA_DIR, ""), folder)
    names = sorted(os.listdir(absolute)) if os.path.isdir(absolute) else []
    for name in names:
        match = re.fullmatch(rf"(\w+)(?:\.({'|'.join(SPLITS)}))?\.txt", name)
        if match:
            # <language>.txt sorts after <language>.train.txt, which wins.
            files_of.setdefault(match[1], {}).setdefault(match[2] or "train", f"{folder}/{name}")
    return files_of


def add_folder(name: str, folder: str) -> None:
    """Registers the text files of a folder: tasks `{name}_{language}` and the mixture `name`."""
    languages = find_languages(folder)
    # With no file yet there is still a task, so that using it says where files are expected.
    files = languages or {
        "language": {split: f"{folder}/<language>.{split}.txt" for split in SPLITS}
    }
    for language, paths in files.items():
        text.add_text_task(f"{name}_{language}", language, text.TextFiles(paths))
    text.add_language_mixture(name, [f"{name}_{language}" for language in files])


add_folder("local", FOLDER)
