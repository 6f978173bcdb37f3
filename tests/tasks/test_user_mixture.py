"""What the README promises: a mixture, or a labelled task, in ten lines of your own module."""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest
import seqio

from xl_flax import cache, cli
from xl_flax.data.build import read_examples
from xl_flax.errors import UserError

MODULE = '''\
"""Three Celtic languages from $XL_FLAX_DATA_DIR/celtic, one file each."""

from tasks import text

LANGUAGES = ("bre", "cym", "gle")
for language in LANGUAGES:
    files = {s: f"celtic/{language}.{s}.txt" for s in ("train", "validation")}
    text.add_text_task(f"celtic_{language}", language, text.TextFiles(files))

text.add_language_mixture("celtic", [f"celtic_{c}" for c in LANGUAGES], exponent=0.5)
'''
SIZES = {"bre": 90, "cym": 360, "gle": 40}


def write_languages(folder, sizes=SIZES) -> None:
    """Writes the files that MODULE reads under XL_FLAX_DATA_DIR = folder."""
    (folder / "celtic").mkdir()
    for language, size in sizes.items():
        for split, number in (("train", size), ("validation", 4)):
            lines = [f"{language} {split} line number {i}\n" for i in range(number)]
            (folder / f"celtic/{language}.{split}.txt").write_text("".join(lines))


def test_ten_lines_make_a_mixture(data_dir, vocabulary, monkeypatch):
    assert len(MODULE.splitlines()) == 10
    write_languages(data_dir)
    (data_dir / "my_languages.py").write_text(MODULE)
    monkeypatch.syspath_prepend(data_dir)
    importlib.import_module("my_languages")

    mixture = seqio.get_mixture_or_task("celtic")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates["celtic_cym"] / rates["celtic_bre"] == 2  # the root of 360 / 90
    examples = [
        example
        for task in mixture.tasks
        for example in task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator()
    ]
    assert len(examples) == 12 and {e["language"] for e in examples} == {b"bre", b"cym", b"gle"}
    expected = vocabulary.encode("gle validation line number 3")
    assert expected in [list(e["tokens"]) for e in examples]


def test_ten_lines_make_a_labelled_task(run_cache, data_dir, vocabulary_path, monkeypatch, capsys):
    readme = Path(cli.ROOT, "README.md").read_text(encoding="utf-8")
    modules = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (module,) = [each for each in modules if "MOODS" in each]
    assert len(module.splitlines()) == 10
    (data_dir / "my_labels.py").write_text(module)
    (data_dir / "mood").mkdir()
    for language, split in itertools.product(("bre", "cym", "gle"), ("train", "test")):
        lines = [f"{language} {split} {i}\t{('bad', 'good')[i % 2]}\n" for i in range(6)]
        (data_dir / f"mood/{language}.{split}.tsv").write_text("".join(lines))
    monkeypatch.syspath_prepend(data_dir)

    (command,) = re.findall(r"python -m xl_flax\.cache (--gin_file=.*?)\n```", readme, re.DOTALL)
    flags = [flag for flag in shlex.split(command) if flag.strip()]
    flags += [f"--gin.Cache.directory={str(data_dir / 'cache')!r}",
              f"--gin.run_vocabulary.path={vocabulary_path!r}"]  # fmt: skip
    cache.main(flags)
    said = capsys.readouterr().out
    assert "label=good" in said and all(f"mood_{language}" in said for language in ("bre", "gle"))

    caches = run_cache(["my_labels"], "mood:test:128")
    ((_, manifests, folders),) = caches.values()
    assert manifests["mood_gle"].features["label"].labels == ("bad", "good")
    found = list(read_examples(folders["mood_gle"], manifests["mood_gle"]))
    assert [example.features["label"] for example in found] == [0, 1] * 3

    (data_dir / "mood/gle.test.tsv").write_text("gle\tgood\ngle\tglad\n")
    with pytest.raises(UserError, match=r"gle\.test\.tsv, line 2: label 'glad' is none of bad, g"):
        run_cache(["my_labels"], "mood:test:128")
