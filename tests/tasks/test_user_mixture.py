"""What the README promises: a mixture of your own languages in ten lines of your own module."""

import importlib

import seqio

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
