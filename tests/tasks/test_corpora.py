"""The corpora that the project names: their formats, splits and errors, on files made here.

Where XL_FLAX_DATA_DIR holds the real ones, their counts are checked too.
"""

import os
from pathlib import Path

import pytest
import seqio

from tasks import bible, local, mixtures, ntrex, sib200, tatoeba
from xl_flax.data.mixtures import TOKENS_EXPONENT
from xl_flax.data.seqio_tasks import split_tasks
from xl_flax.errors import UserError

REAL = Path(os.environ.get("XL_FLAX_DATA_DIR", "/nonexistent"))
needs_real = pytest.mark.skipif(not (REAL / "bible").is_dir(), reason="needs XL_FLAX_DATA_DIR")


def texts(task: str, split: str) -> list[str]:
    dataset = seqio.TaskRegistry.get(task).source.get_dataset(split=split)
    return [example["text"].decode() for example in dataset.as_numpy_iterator()]


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


def test_the_same_verses_are_held_out_in_every_language(data_dir):
    verses = [f"MAT.{c}.{v}" for c in range(1, 29) for v in range(1, 31)]
    write(data_dir / "bible/eng.tsv", "".join(f"{v}\tE {v}\n" for v in verses))
    write(data_dir / "bible/spa.tsv", "".join(f"{v}\tS {v}\n" for v in verses[100:]))
    split = {s: {t[2:] for t in texts("bible_eng", s)} for s in bible.SPLITS}
    assert set.union(*split.values()) == set(verses) and sum(map(len, split.values())) == 840
    assert 0.01 < len(split["validation"]) / 840 < 0.04 and 0.01 < len(split["test"]) / 840 < 0.04
    for name, held in split.items():
        assert {t[2:] for t in texts("bible_spa", name)} == held & set(verses[100:])


def test_no_training_verse_repeats_a_held_out_one(data_dir):
    verses = [f"MAT.{c}.{v}" for c in range(1, 29) for v in range(1, 31)]
    by_split = {s: [v for v in verses if bible.verse_split(v) == s] for s in bible.SPLITS}
    said = {name: f"E {name}" for name in verses}
    copies, kept = by_split["train"][:3], by_split["train"][3:]
    said[copies[0]], said[copies[1]] = (said[by_split[s][0]] for s in bible.SPLITS[1:])
    said[by_split["test"][1]], said[copies[2]] = "And he said: Amen.", " “and he said,  Amen!”"
    said[kept[1]] = said[kept[0]]  # repetitions within the training text stay
    write(data_dir / "bible/eng.tsv", "".join(f"{n}\t{t}\n" for n, t in said.items()))
    assert texts("bible_eng", "train") == [said[name] for name in kept]
    for split in ("validation", "test"):
        assert texts("bible_eng", split) == [said[name] for name in by_split[split]]


def test_verses_that_a_translation_lacks_are_left_out(data_dir):
    write(data_dir / "bible/zho.tsv", "GEN.1.1\t起初\nGEN.1.2\ta\nGEN.1.3\t\n")
    verses = [
        v for s in bible.SPLITS for v in bible.read_verses(str(data_dir / "bible/zho.tsv"), s)
    ]
    assert verses == ["起初"]


@pytest.mark.parametrize("line", ["GEN.1.2 no tab", "Genesis 1:2\ttext", ""])
def test_a_bad_verse_is_named_with_its_line(data_dir, line):
    write(data_dir / "bible/eng.tsv", f"GEN.1.1\tIn the beginning\n{line}\n")
    with pytest.raises(UserError, match=r"bible/eng\.tsv, line 2: expected BOOK.chapter.verse"):
        texts("bible_eng", "train")


def test_sib200_reads_quoted_sentences(data_dir):
    rows = 'index_id\tcategory\ttext\n1\tsports\tPlain, "so".\n2\thealth\t"""Ja,"" he said."\n'
    write(data_dir / "sib200/amh_Ethi/dev.tsv", rows)
    assert texts("sib200_amh_Ethi", "validation") == ['Plain, "so".', '"Ja," he said.']


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("id\tcategory\ttext\n", 1),
        ("index_id\tcategory\ttext\n1\tsports\n", 2),
        ("index_id\tcategory\ttext\n1\tsports\tgood\n2\tsports\t \n", 3),
    ],
)
def test_a_bad_row_of_sib200_is_named_with_its_line(data_dir, rows, line):
    write(data_dir / "sib200/amh_Ethi/test.tsv", rows)
    with pytest.raises(UserError, match=rf"amh_Ethi/test\.tsv, line {line}: expected the columns"):
        texts("sib200_amh_Ethi", "test")


def test_ntrex_strips_carriage_returns(data_dir):
    for name in ("src.eng", "ref.deu"):
        write(data_dir / f"ntrex/newstest2019-{name}.txt", f"{name} 1\r\n{name} 2\r\n")
    write(data_dir / "ntrex/newstest2019-ref.zho-CN.txt", "一\r\n二\r\n")
    assert texts("ntrex_deu", "test") == ["ref.deu 1", "ref.deu 2"]
    assert texts("ntrex_zho", "test") == ["一", "二"]


def test_local_text_is_found_by_its_file_names(data_dir):
    for name in ("deu.txt", "bre.train.txt", "bre.test.txt", "bre.txt", "notes.md"):
        write(data_dir / "text" / name, f"from {name}\n")
    assert local.find_languages("text") == {
        "bre": {"test": "text/bre.test.txt", "train": "text/bre.train.txt"},
        "deu": {"train": "text/deu.txt"},
    }
    local.add_folder("test_local", "text")
    assert texts("test_local_bre", "train") == ["from bre.train.txt"]
    tasks = seqio.MixtureRegistry.get("test_local").tasks
    assert [task.name for task in tasks] == ["test_local_bre", "test_local_deu"]


def test_a_local_mixture_without_files_says_where_they_go(data_dir):
    local.add_folder("test_local_empty", "text")
    mixture = seqio.MixtureRegistry.get("test_local_empty")
    for split in ("train", "validation"):
        with pytest.raises(UserError, match=rf"text/<language>\.{split}\.txt is missing"):
            mixture.num_input_examples(split)


def test_mixtures_exist_without_any_data(monkeypatch):
    monkeypatch.delenv("XL_FLAX_DATA_DIR", raising=False)
    for name in ("bible", "sib200", "ntrex", "ntrex_bible", "tatoeba_deu", "bible_whole"):
        task = seqio.MixtureRegistry.get(name).tasks[0]
        with pytest.raises(UserError, match="XL_FLAX_DATA_DIR is not set"):
            task.num_input_examples(task.splits[0])
    assert mixtures.EXPONENTS == (0.7, 0.5, 0.3)
    by_tokens = {n: seqio.MixtureRegistry.get(f"{n}_0.3") for n in ("wikipedia", "bible")}
    assert getattr(by_tokens["wikipedia"], TOKENS_EXPONENT) == 0.3
    assert not hasattr(by_tokens["bible"], TOKENS_EXPONENT)
    assert len(ntrex.FILES) == 130 and len(sib200.CODES.split()) == 205
    assert len(tatoeba.CODES.split()) == 112


@needs_real
def test_the_real_files_have_the_sizes_they_are_known_for(monkeypatch):
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(REAL))

    def counts(mixture: str) -> list[tuple[int, ...]]:
        tasks = split_tasks(seqio.MixtureRegistry.get(mixture), "test")
        return [tuple(t.num_input_examples(s) for s in t.splits) for t in tasks]

    assert counts("ntrex") == [(1997,)] * 26
    assert counts("sib200") == [(701, 99, 204)] * 26
    assert counts("tatoeba_amh") == [(168,)] * 2 and counts("tatoeba_deu") == [(1000,)] * 2
    for language, train in {"eng": 28467, "mlg": 6661, "zho": 28431}.items():
        file = str(REAL / f"bible/{language}.tsv")
        verses = {split: list(bible.read_verses(file, split)) for split in bible.SPLITS}
        held_out = {verse.strip() for split in bible.SPLITS[1:] for verse in verses[split]}
        assert len(verses["train"]) == train and held_out.isdisjoint(verses["train"])
    mixture = seqio.MixtureRegistry.get("bible_0.3")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates["bible_eng"] / rates["bible_spa"] == pytest.approx((28467 / 6675) ** 0.3)
