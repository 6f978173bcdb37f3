"""The vocabulary command: what it samples, writes, refuses to overwrite and reports."""

import json
import os
import subprocess
import sys

import gin
import pytest

from xl_flax import cli, vocab
from xl_flax.data.vocabulary import VocabularyConfig, load_vocabulary
from xl_flax.data.vocabulary_command import report_path
from xl_flax.errors import UserError

MODULE = """
import tensorflow as tf
from tasks import text

def upper(dataset):
    return dataset.map(lambda e: {"text": tf.strings.upper(e["text"])})

for _language in ("big", "tiny"):
    _files = {s: f"{_language}.{s}.txt" for s in ("train", "validation")}
    text.add_text_task(f"voc_{_language}", _language, text.TextFiles(_files))
text.add_language_mixture("voc", ["voc_big", "voc_tiny"])
text.add_text_task("voc_upper", "big", text.TextFiles("big.train.txt"), preprocessors=[upper])
def documents(path, split):
    with open(path) as file:
        yield from file.read().split("\\n\\n")

text.add_text_task("voc_documents", "big", text.TextFiles("documents.txt", documents))
text.add_text_task("voc_empty", "big", text.TextFiles("empty.txt"))
"""
SIZES = {"big": 800, "tiny": 50}


def line(language: str, i: int) -> str:
    stems = {"big": "kato domo rivo suno filo", "tiny": "bau zxy qwu"}[language].split()
    endings = [f"{a}{b}" for a in "aeiou" for b in "lmnprstk"]
    return " ".join(stems[(i + k) % len(stems)] + endings[(i * 7 + k * 3) % 40] for k in range(6))


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """A module of tasks and its text; importable for as long as the tests of this file run."""
    folder = tmp_path_factory.mktemp("vocab")
    (folder / "vocab_test_tasks.py").write_text(MODULE)
    for language, size in SIZES.items():
        lines = "".join(line(language, i) + "\n" for i in range(size + 20)).splitlines(True)
        (folder / f"{language}.train.txt").write_text("".join(lines[:size]))
        (folder / f"{language}.validation.txt").write_text("".join(lines[size:]))
    documents = ["\n".join(line("big", i) for i in range(n, n + 50)) for n in range(0, 500, 50)]
    (folder / "documents.txt").write_text("\n\n".join(documents) + "\n\n" + "word " * 3000)
    (folder / "empty.txt").write_text("\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def run(module, tmp_path, monkeypatch):
    """Runs the command in this process; gives the path of the model."""
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(module))

    def command(*flags: str, **settings):
        settings = {"mixture": "voc", "path": str(tmp_path / "new/v.model"), "size": 120} | settings
        (tmp_path / "run.gin").write_text(
            "Cache.task_modules = ['vocab_test_tasks']\n"
            + "".join(f"VocabularyConfig.{k} = {v!r}\n" for k, v in settings.items())
        )
        vocab.main([f"--gin_file={tmp_path / 'run.gin'}", *flags])
        return settings["path"]

    yield command
    gin.clear_config()


def report(path: str) -> dict:
    with open(report_path(path), encoding="utf-8") as file:
        return json.load(file)


def test_it_writes_a_model_and_a_report(run, capsys):
    path = run()
    vocabulary = load_vocabulary(path)
    assert vocabulary.size == 120 and vocabulary.special.mask == 119
    found = report(path)
    assert found["fingerprint"] == vocabulary.fingerprint
    tiny = found["languages"]["tiny"]
    held_out = [line("tiny", i) for i in range(50, 70)]
    pieces = sum(len(vocabulary.encode(text)) for text in held_out)
    assert tiny["measured"] == "validation" and tiny["examples"] == tiny["lines"] == 50
    assert tiny["fertility"] == pytest.approx(pieces / (20 * 6), abs=1e-4)
    printed = capsys.readouterr().out
    assert "tiny" in printed and f"wrote {path}" in printed
    assert sorted(os.listdir(os.path.dirname(path))) == ["v.model", "v.report.json"]


def test_another_process_writes_the_same_bytes(run, tmp_path):
    path = run()
    other = str(tmp_path / "other.model")
    subprocess.run(
        [
            *(sys.executable, "-m", "xl_flax.vocab", f"--gin_file={tmp_path / 'run.gin'}"),
            f"--gin.VocabularyConfig.path={other}",
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path]), "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    with open(path, "rb") as ours, open(other, "rb") as theirs:
        assert ours.read() == theirs.read()


def test_the_same_again_does_nothing(run, capsys):
    path = run()
    written = os.stat(path).st_mtime_ns
    run()
    assert "nothing to do" in capsys.readouterr().out
    assert os.stat(path).st_mtime_ns == written


def test_another_model_is_not_overwritten_unasked(run):
    path = run()
    before = load_vocabulary(path).fingerprint
    with pytest.raises(UserError, match=r"size was 120, now 100.*--overwrite"):
        run(size=100)
    assert load_vocabulary(path).fingerprint == before
    run("--overwrite", size=100)
    assert load_vocabulary(path).size == 100


def test_a_model_of_somebody_else_is_not_overwritten(run, tmp_path):
    path = run()
    os.remove(report_path(path))
    with pytest.raises(UserError, match="was not made by this command.*--overwrite"):
        run()


def test_a_changed_text_is_noticed(run, module):
    run()
    text = (module / "tiny.train.txt").read_text()
    (module / "tiny.train.txt").write_text(text + "one more line\n")
    try:
        with pytest.raises(UserError, match="the text is another"):
            run()
    finally:
        (module / "tiny.train.txt").write_text(text)


@pytest.mark.parametrize("exponent", [1.0, 0.3, 0.0])
def test_languages_weigh_by_size_to_the_exponent(run, exponent):
    shares = {k: v["share"] for k, v in report(run(exponent=exponent))["languages"].items()}
    assert shares["big"] / shares["tiny"] == pytest.approx((800 / 50) ** exponent, rel=0.01)


def test_no_more_lines_are_drawn_than_asked_for(run):
    found = report(run(max_sentences=200, exponent=0.5, size=100))["languages"]
    assert found["big"]["lines"] == 160 and found["tiny"]["lines"] == 40


def test_preprocessors_have_their_say(run):
    vocabulary = load_vocabulary(run(mixture="voc_upper", size=80))
    assert vocabulary.special.unk in vocabulary.encode("kato")
    assert vocabulary.special.unk not in vocabulary.encode("KATO")


def test_phases_stand_for_the_text_of_all_their_mixtures(run):
    path = run(mixture=[(0, "voc_big"), (1000, "voc"), (2000, "voc_tiny")])
    assert report(path)["languages"] == report(run(path=f"{path}.alone"))["languages"]
    run(mixture=[(0, "voc_big"), (1000, "voc"), (2000, "voc_tiny")])  # is current


def test_documents_are_read_line_by_line_and_long_lines_cut(run):
    found = report(run(mixture="voc_documents", size=80))["languages"]["big"]
    assert found["examples"] == 11
    assert found["lines"] == 500 + 4  # 15,000 characters make four lines


def test_bert_style(run):
    vocabulary = load_vocabulary(run(style="bert"))
    assert [vocabulary.piece(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": "vox"}, "no task or mixture is called 'vox'.*voc"),
        ({"mixture": "voc_empty"}, r"empty\.txt: no examples"),
        ({"size": 100000}, "too large for the text of 'voc', which gives at most"),
        ({"split": "test"}, "has no split 'test'"),
        ({"style": "t5"}, "style = 't5': must be 'xlmr' or 'bert'"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(run, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run(**settings)
    assert not (tmp_path / "new/v.model").exists()


def test_training_can_read_its_settings_without_tensorflow():
    code = "import sys; from xl_flax import cli; cli.load_gin([], ['VocabularyConfig.size = 9']); "
    code += "sys.exit(bool({'tensorflow', 'seqio'} & set(sys.modules)))"
    assert "xl_flax.data.vocabulary" in cli.CONFIGURABLES
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert VocabularyConfig(mixture="m", path="p", size=9).style == "xlmr"
