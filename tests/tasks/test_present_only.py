"""Mixtures of all languages of a corpus, of which a folder holds a part."""

import pytest
import seqio

from tasks import (
    languages,
    masakhaner,
    ntrex,
    panx,
    sib200,
    tatoeba,
    text,
    udpos,
    uner,
    xcopa,
    xnli,
)
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import read_mixture
from xl_flax.data.prepare import DatasetSpec, prepare
from xl_flax.data.seqio_tasks import missing_files, split_tasks
from xl_flax.errors import UserError

LINES = "Abe.\tBe.\tneutral\nBa.\tAb.\tentailment\n"


def write(folder, *codes, split="test", lines=LINES):
    (folder / "xnli").mkdir(exist_ok=True)
    for code in codes:
        (folder / f"xnli/{split}-{code}.tsv").write_text(lines)


def names(mixture, split):
    return [task.name for task in split_tasks(seqio.MixtureRegistry.get(mixture), split)]


def test_a_mixture_leaves_out_languages_without_files(run_cache, data_dir, vocabulary, capsys):
    write(data_dir, "de", "en")
    dataset = "xnli:test:64"
    cached = next(iter(run_cache(["tasks.xnli"], dataset).values()))
    assert sorted(cached.manifests) == ["xnli_deu", "xnli_eng"]
    said = " ".join(capsys.readouterr().err.split())
    assert "xnli (test): 2 of 15 tasks have files; without xnli_ara, xnli_bul," in said
    assert f"and 5 more (as {data_dir / 'xnli/test-ar.tsv'})" in said

    # A new file is noticed where nothing imports the task; then all is well again.
    write(data_dir, "sw")
    spec = DatasetSpec("xnli", "test", Layout(64))
    cache = Cache(str(data_dir / "cache"), ["tasks.xnli"], on_missing="stop")
    with pytest.raises(UserError, match="the files of task xnli_swa are there now"):
        prepare([spec], cache, vocabulary)
    run_cache(["tasks.xnli"], dataset)
    mixture = read_mixture(cache, "xnli", "test")
    assert sorted(mixture.rates) == ["xnli_deu", "xnli_eng", "xnli_swa"]
    assert len(mixture.missing) == 12


def test_splits_are_looked_at_one_by_one(data_dir):
    write(data_dir, "en", split="train")
    write(data_dir, "de", "en")
    assert names("xnli", "train") == ["xnli_eng"]
    assert names("xnli", "test") == ["xnli_deu", "xnli_eng"]


def test_a_mixture_without_any_files_says_what_is_expected(data_dir, monkeypatch):
    where = r"xnli/test-ar\.tsv.* and 12 other files; one of its 15 tasks"
    with pytest.raises(UserError, match=f"has no task with files for the split 'test'.*{where}"):
        names("xnli", "test")
    monkeypatch.delenv("XL_FLAX_DATA_DIR")
    with pytest.raises(UserError, match="XL_FLAX_DATA_DIR is not set"):
        names("xnli", "test")


def test_a_task_by_its_name_needs_its_file(data_dir, registry):
    write(data_dir, "en")
    with pytest.raises(UserError, match=r"xnli/test-de\.tsv is missing"):
        seqio.TaskRegistry.get("xnli_deu").num_input_examples("test")
    strict = text.add_language_mixture("strict", ["xnli_deu", "xnli_eng"], exponent=0)
    assert missing_files(strict, "test") == {} and len(split_tasks(strict, "test")) == 2


def test_what_is_excluded_may_be_there_in_part(run_cache, data_dir, capsys):
    write(data_dir, "en", split="train", lines="Abe.\tBe.\tneutral\nCede.\tDebe.\tneutral\n")
    write(data_dir, "de")
    run_cache(["tasks.xnli"], "xnli_eng:train:64", exclude=["xnli"])
    assert "excluded 1" in capsys.readouterr().out


def test_translations_are_compared_with_a_pivot_that_is_there(data_dir):
    (data_dir / "ntrex").mkdir()
    for code, lines in (("ref.deu", "a\nb\n"), ("ref.por-BR", "a\n")):
        (data_dir / f"ntrex/newstest2019-{code}.txt").write_text(lines)
    assert names("ntrex", "test") == ["ntrex_deu", "ntrex_por_BR"]
    counts = [seqio.TaskRegistry.get(n).num_input_examples("test") for n in names("ntrex", "test")]
    assert counts == [2, 1]
    (data_dir / "ntrex/newstest2019-src.eng.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="por-BR.txt has 1 examples, but .*src.eng.txt has 2"):
        seqio.TaskRegistry.get("ntrex_por_BR").num_input_examples("test")


def test_corpora_may_lie_in_groups(data_dir):
    (data_dir / "noncommercial").mkdir()
    write(data_dir / "noncommercial", "de")
    assert names("xnli", "test") == ["xnli_deu"]
    write(data_dir, "de")
    (found,) = seqio.TaskRegistry.get("xnli_deu").source.files("test")
    assert found == str(data_dir / "xnli/test-de.tsv")


@pytest.mark.parametrize(
    ("code", "language"),
    [("de", "deu"), ("zh", "zho"), ("cmn", "zho"), ("zho-CN", "zho"), ("arb_Arab", "ara"),
     ("swh_Latn", "swa"), ("no_bokmaal", "nor"), ("pes", "fas"), ("bbj", "bbj"), ("fil", "tgl")],
)  # fmt: skip
def test_a_language_has_one_name_in_all_corpora(code, language):
    assert languages.iso639(code) == language


def test_varieties_stay_apart():
    assert languages.name("zho_Hans", ["zho_Hant"]) == "zho"
    assert languages.name("zho_Hant", ["zho_Hant"]) == "zho_Hant"
    assert languages.name("por-BR", ["por-BR"]) == "por_BR"


def test_corpora_list_what_is_published():
    sizes = {"ntrex": 130, "sib200": 205, "xnli": 15, "pawsx": 7, "xcopa": 12, "panx": 48,
             "panx_xtreme": 40, "udpos": 38, "udpos_xtreme": 33, "masakhaner": 20}  # fmt: skip
    import tasks.pawsx

    for name, size in sizes.items():
        tasks = seqio.MixtureRegistry.get(name).tasks
        spoken = {step.keywords.get("language") or step.keywords["languages"]
                  for task in tasks for step in task.preprocessors
                  if getattr(step, "keywords", {}).keys() & {"language", "languages"}}  # fmt: skip
        assert len(tasks) == len(spoken) == size, name
    assert len(tatoeba.CODES.split()) == len(set(tatoeba.CODES.split())) == 112
    assert len(uner.TASKS) == 18
    assert ntrex.FILES["zho_TW"].endswith("ref.zho-TW.txt") and "eng" in sib200.CODES.split()[0]
    assert [t.name for t in xcopa.TASKS if "train" in t.splits] == ["xcopa_eng"]
    assert udpos.splits("yo") == {"test": "test"} and udpos.splits("kk").keys() == {"train", "test"}
    assert masakhaner.TASKS[0].output_features["label"].labels[-1] == "I-DATE"
    assert panx.LABELS[0] == "O" and xnli.LABELS[0] == "entailment"
