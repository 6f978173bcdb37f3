"""The parallel corpora that the project names: joined verses, test sets, your own folder.

Where XL_FLAX_DATA_DIR holds the real ones, their counts are checked too.
"""

import collections
import itertools
import os
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import seqio

from tasks import bible, bible_parallel, local_parallel, ntrex_parallel, tatoeba_parallel
from xl_flax.data.seqio_tasks import split_tasks
from xl_flax.data.stream import Rows
from xl_flax.errors import UserError
from xl_flax.objectives.base import Inputs
from xl_flax.objectives.contrastive import Contrastive

REAL = Path(os.environ.get("XL_FLAX_DATA_DIR", "/nonexistent"))
needs_real = pytest.mark.skipif(not (REAL / "bible").is_dir(), reason="needs XL_FLAX_DATA_DIR")


def texts(task: str, split: str) -> list[tuple[str, ...]]:
    dataset = seqio.TaskRegistry.get(task).source.get_dataset(split=split)
    return [tuple(t.decode() for t in e["text"]) for e in dataset.as_numpy_iterator()]


def mono_texts(task: str, split: str) -> set[str]:
    dataset = seqio.TaskRegistry.get(task).source.get_dataset(split=split)
    return {example["text"].decode() for example in dataset.as_numpy_iterator()}


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


@pytest.fixture
def small_bible(data_dir):
    """900 verses, English without the first 100, Chinese in another order and with gaps."""
    verses = [f"MAT.{c}.{v}" for c in range(1, 31) for v in range(1, 31)]
    write(data_dir / "bible/deu.tsv", "".join(f"{v}\tD {v}\n" for v in verses))
    write(data_dir / "bible/eng.tsv", "".join(f"{v}\tE {v}\r\n" for v in verses[100:]))
    chinese = [f"{v}\t{bible.MISSING if v.endswith('.7') else f'Z {v}'}\n" for v in verses]
    write(data_dir / "bible/zho.tsv", "".join(reversed(chinese)))
    return verses


def test_verses_are_joined_by_name(small_bible):
    for split in bible.SPLITS:
        expected = [v for v in small_bible[100:] if bible.verse_split(v) == split]
        assert texts("bible_deu_eng", split) == [(f"D {v}", f"E {v}") for v in expected]
        expected = [v for v in expected if not v.endswith(".7")]
        assert sorted(texts("bible_eng_zho", split)) == sorted(
            (f"E {v}", f"Z {v}") for v in expected
        )


def test_what_is_held_out_of_one_language_is_held_out_of_its_pairs(small_bible):
    for split in ("validation", "test"):
        held_out = mono_texts("bible_deu", split)
        pairs = {german for german, _ in texts("bible_deu_eng", split)}
        assert pairs and pairs <= held_out
        assert not held_out & {german for german, _ in texts("bible_deu_eng", "train")}


def test_no_pair_of_training_repeats_a_held_out_verse_in_either_language(small_bible, data_dir):
    train = [v for v in small_bible[100:] if bible.verse_split(v) == "train"]
    held_out = next(v for v in small_bible[100:] if bible.verse_split(v) == "test")
    said = {v: f"E {v}" for v in small_bible[100:]} | {train[0]: f"E {held_out}"}
    write(data_dir / "bible/eng.tsv", "".join(f"{v}\t{t}\n" for v, t in said.items()))
    said = {v: f"D {v}" for v in small_bible} | {train[1]: f"D {held_out}"}
    write(data_dir / "bible/deu.tsv", "".join(f"{v}\t{t}\n" for v, t in said.items()))
    assert texts("bible_deu_eng", "train") == [(f"D {v}", f"E {v}") for v in train[2:]]


def test_multi_way_verses_are_those_of_every_language(small_bible, data_dir):
    write(data_dir / "bible/fin.tsv", "".join(f"{v}\tF {v}\n" for v in small_bible[:500]))
    found = [group for split in bible.SPLITS for group in texts("bible_multiway4", split)]
    verses = {v for v in small_bible[100:500] if not v.endswith(".7")}
    assert sorted(found) == sorted((f"D {v}", f"E {v}", f"F {v}", f"Z {v}") for v in verses)


def test_a_changed_bible_is_read_again(small_bible, data_dir):
    before = len(texts("bible_deu_eng", "train"))
    write(data_dir / "bible/eng.tsv", "".join(f"{v}\tE {v}\n" for v in small_bible[:300]))
    os.utime(data_dir / "bible/eng.tsv", (1, 1))
    assert 200 < len(texts("bible_deu_eng", "train")) < 300 < before


def test_a_bad_verse_is_named_in_a_pair_too(small_bible, data_dir):
    write(data_dir / "bible/eng.tsv", "GEN.1.1\tIn the beginning\nGEN.1.2 no tab\n")
    with pytest.raises(UserError, match=r"bible/eng\.tsv, line 2: expected BOOK.chapter.verse"):
        texts("bible_deu_eng", "train")


def test_every_pair_of_languages_is_a_task():
    assert len(bible_parallel.PAIRS) == 66
    assert all(a < b for a, b in bible_parallel.PAIRS.values())
    assert len(seqio.MixtureRegistry.get("bible_pairs").tasks) == 66
    english = seqio.MixtureRegistry.get("bible_english").tasks
    assert len(english) == 11 and all("eng" in task.name for task in english)


def test_test_sets_can_be_trained_on(data_dir):
    write(data_dir / "ntrex/newstest2019-src.eng.txt", "one\r\ntwo\r\n")
    write(data_dir / "ntrex/newstest2019-ref.zho-CN.txt", "一\n二\n")
    assert texts("ntrex_eng_zho", "train") == [("one", "一"), ("two", "二")]
    write(data_dir / "tatoeba/tatoeba.cmn-eng.cmn", "一\n")
    write(data_dir / "tatoeba/tatoeba.cmn-eng.eng", "one\n")
    assert texts("tatoeba_pairs_eng_zho", "train") == [("one", "一")]
    assert len(ntrex_parallel.PAIRS) == 126 and len(tatoeba_parallel.PAIRS) == 112


def test_local_pairs_are_found_by_their_file_names(data_dir):
    folder = data_dir / "parallel"
    write(folder / "deu-eng.tsv", "eins\tone\n")
    write(folder / "deu-eng.test.deu", "zwei\n")
    write(folder / "deu-eng.test.eng", "two\n")
    write(folder / "bre-fra.bre", "unan\n")
    write(folder / "bre-fra.fra", "un\n")
    write(folder / "deu-eng-fra.tsv", "eins\tone\tun\n")
    for name in ("README.md", "deu-eng.ita", "deu-eng.draft.tsv", "deu.tsv"):
        write(folder / name, "no pair")
    local_parallel.add_folder("test_local_pairs", "parallel")
    assert texts("test_local_pairs_deu_eng", "train") == [("eins", "one")]
    assert texts("test_local_pairs_deu_eng", "test") == [("zwei", "two")]
    assert texts("test_local_pairs_bre_fra", "train") == [("unan", "un")]
    assert texts("test_local_pairs_deu_eng_fra", "train") == [("eins", "one", "un")]
    tasks = seqio.MixtureRegistry.get("test_local_pairs_parallel").tasks
    assert {t.name[-7:] for t in tasks} == {"deu_eng", "bre_fra"} and len(tasks) == 2


def test_a_local_pair_in_one_language_only_is_an_error(data_dir):
    write(data_dir / "parallel/deu-eng.eng", "one\n")
    local_parallel.add_folder("test_local_half", "parallel")
    with pytest.raises(UserError, match=r"parallel/deu-eng\.deu is missing"):
        texts("test_local_half_deu_eng", "train")


def test_a_local_pair_in_two_layouts_is_an_error(data_dir):
    write(data_dir / "parallel/deu-eng.eng", "one\n")
    write(data_dir / "parallel/deu-eng.train.tsv", "eins\tone\n")
    with pytest.raises(
        UserError, match=r"'train' of deu-eng is there twice, .*deu-eng\.train\.tsv"
    ):
        local_parallel.find_files("parallel")


def test_a_local_mixture_without_pairs_says_where_they_go(data_dir):
    local_parallel.add_folder("test_local_no_pairs", "parallel")
    with pytest.raises(UserError, match=r"parallel/<first>-<second>\.tsv is missing"):
        seqio.MixtureRegistry.get("test_local_no_pairs_parallel").num_input_examples("train")


@needs_real
def test_the_real_files_have_the_sizes_they_are_known_for(monkeypatch):
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(REAL))

    def counts(task: str) -> tuple[int, ...]:
        task = seqio.TaskRegistry.get(task)
        return tuple(task.num_input_examples(split) for split in task.splits)

    assert counts("bible_deu_eng") == (28430, 619, 587)
    assert counts("bible_fra_spa") == (6672, 135, 139)
    assert counts("bible_multiway") == (6636, 135, 139)
    assert counts("bible_multiway4") == (28347, 618, 585)
    pairs = [counts(name) for name in bible_parallel.PAIRS]
    assert [sum(split) for split in zip(*pairs, strict=True)] == [570_146, 11_817, 11_859]
    pairs = [
        split_tasks(seqio.MixtureRegistry.get(f"{n}_pairs"), "train") for n in ("ntrex", "tatoeba")
    ]
    assert {counts(task.name) for task in pairs[0]} == {(1997,)} and len(pairs[0]) == 25
    assert sum(counts(task.name)[0] for task in pairs[1]) == 31_308 and len(pairs[1]) == 36
    first = next(iter(texts("bible_deu_eng", "train")))
    assert first[0].startswith("Im Anfang") and first[1].startswith("At the first")


@needs_real
def test_no_verse_is_trained_as_its_own_negative(pack_rows):
    """English stands first in some pairs of `bible_english`, in others second.

    Compared place by place, 3 % of the pairs of such a batch had a copy of their own verse among
    their negatives, which costs an anchor the scale times the margin.
    """
    pairs, meanings = [], []
    for names in bible_parallel.PAIRS.values():
        if "eng" in names:
            paths = [str(REAL / f"bible/{name}.tsv") for name in names]
            some = list(bible_parallel.read_verses_together(paths, "train"))
            pairs += some
            meanings += [pair[names.index("eng")] for pair in some]
    draw = np.random.default_rng(0)
    chosen = draw.choice(len(pairs), 2048, replace=False)
    token, meaning = (collections.defaultdict(itertools.count(5).__next__) for _ in range(2))
    batch = pack_rows([[[token[text]] for text in pairs[i]] for i in chosen])
    perfect = draw.normal(size=(2048, 256)).astype(np.float32)
    perfect /= np.linalg.norm(perfect, axis=1, keepdims=True)
    vectors = perfect[[[meaning[meanings[i]]] * 2 for i in chosen]]

    contrast = Contrastive(rows=Rows("bible_english", 64), batch_size=2048, margin=0.3, scale=50.0)
    stream = types.SimpleNamespace(num_texts=2, examples_per_row=1, languages=("a", "b"))
    head = types.SimpleNamespace(log_scale=None)
    model = types.SimpleNamespace(heads={"contrastive": head})
    loss = jax.jit(lambda v: contrast.loss(model, batch, Inputs(None, stream, {}, encoded=v)))
    total, sums, _ = loss(vectors)
    assert sums["count"] == sums["correct"] == 2 * 2048
    assert total < 1
