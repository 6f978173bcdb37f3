"""Controls stay clean: what a run learns without parallel data owes nothing to aligned text.

The tasks of one language of a corpus are read from the same files as its pairs. Here they go
through cache and stream as in a run: a row is of one language, and translations meet in a batch
no more often than in rows put in random order. Real verses where XL_FLAX_DATA_DIR has them.
"""

import itertools
import os
import random
from collections import defaultdict
from pathlib import Path

import gin
import numpy as np
import pytest
import seqio

import tasks.bible_parallel
import tasks.mixtures
import tasks.ntrex_parallel
import tasks.synthetic_parallel  # noqa: F401
from tasks import bible, synthetic
from xl_flax import cache
from xl_flax.data.manifest import Cache
from xl_flax.data.stream import Rows
from xl_flax.data.synthetic.generator import corpus_sentence
from xl_flax.data.synthetic.language import FAMILY

REAL = Path(os.environ.get("XL_FLAX_DATA_DIR", "/nonexistent")) / "bible"
LENGTH = 256
BATCH = 32
MONO = ("bible", "bible_whole", "bible_0.3", "synthetic", "synthetic_core", "ntrex", "ntrex_bible")
PARALLEL = ("bible_pairs", "bible_english", "synthetic_pairs", "ntrex_pairs")


def write_bible(folder: Path, is_real: bool) -> None:
    """1,500 verses in each language of `bible_whole`, in the same order."""
    folder.mkdir()
    for language in bible.WHOLE:
        if is_real:
            with open(REAL / f"{language}.tsv", encoding="utf-8") as file:
                verses = list(itertools.islice(file, 1500))
        else:
            draw = random.Random(language)
            words = ["".join(draw.choices("abdefghiklmnoprstu", k=5)) for _ in range(300)]
            verses = [
                f"GEN.{1 + i // 30}.{1 + i % 30}\t{' '.join(draw.choices(words, k=8 + i % 7))}\n"
                for i in range(1500)
            ]
        (folder / f"{language}.tsv").write_text("".join(verses), encoding="utf-8")


def build(folder: Path, modules: list[str], *datasets: str) -> Cache:
    """Runs the cache command."""
    settings = [f"Cache.directory = {str(folder / 'cache')!r}", f"Cache.task_modules = {modules}"]
    gin_file = folder / "run.gin"
    path = gin.query_parameter("run_vocabulary.path")
    gin_file.write_text("\n".join([*settings, f"run_vocabulary.path = {path!r}"]))
    cache.main([f"--gin_file={gin_file}", *(f"--dataset={name}" for name in datasets)])
    return Cache(str(folder / "cache"), modules, on_missing="stop")


def names_by_tokens(folder: Path, vocabulary) -> dict[str, dict[tuple[int, ...], str]]:
    """Language -> tokens of a verse -> its name; verses that read alike are left out."""
    found = {}
    for language in bible.WHOLE:
        names = defaultdict(set)
        for name, verse in bible.named_verses(str(folder / f"{language}.tsv")):
            names[tuple(vocabulary.encode(verse))].add(name)
        found[language] = {tokens: min(n) for tokens, n in names.items() if len(n) == 1}
    return found


def meetings(rows: list[tuple[str, set[str]]], order) -> int:
    """How often a verse comes up in another language of the same batch."""
    count = 0
    for start in range(0, len(order), BATCH):
        languages = defaultdict(set)
        for i in order[start : start + BATCH]:
            for name in rows[i][1]:
                languages[name].add(rows[i][0])
        count += sum(len(found) - 1 for found in languages.values())
    return count


def shuffled(languages: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of the rows in which languages take turns as they do now."""
    order = np.arange(len(languages))
    for language in np.unique(languages):
        order[languages == language] = rng.permutation(order[languages == language])
    return order


@pytest.mark.parametrize("is_real", [False, True])
def test_translations_meet_in_a_batch_no_more_than_by_chance(data_dir, vocabulary, is_real, opened):
    if is_real and not REAL.is_dir():
        pytest.skip("needs XL_FLAX_DATA_DIR")
    write_bible(data_dir / "bible", is_real)
    made = build(data_dir, ["tasks.bible", "tasks.mixtures"], f"bible_whole:train:{LENGTH}")
    stream = opened(Rows("bible_whole", LENGTH), made, 0, vocabulary)
    count = int(1000 / max(stream.epochs(1000).values()))  # every verse once at most
    batch = stream.rows(range(count))
    assert batch["languages"].shape == (count, 1)

    known = names_by_tokens(data_dir / "bible", vocabulary)
    rows, recognised = [], 0
    for tokens, ids, language in zip(
        batch["tokens"], batch["segment_ids"], batch["languages"][:, 0], strict=True
    ):
        language = stream.languages[language]
        segments = [tuple(tokens[ids == s][1:-1].tolist()) for s in range(1, ids.max() + 1)]
        names = {known[language][s] for s in segments if s in known[language]}
        rows.append((language, names))
        recognised += len(names)
        # The row is of its language alone.
        for other in set(bible.WHOLE) - {language}:
            assert not any(s in known[other] for s in segments if s not in known[language])
    assert recognised > 2000

    rng = np.random.default_rng(0)
    by_chance = [meetings(rows, shuffled(batch["languages"][:, 0], rng)) for _ in range(100)]
    limit = np.mean(by_chance) + 4 * np.std(by_chance)
    assert meetings(rows, range(count)) < limit
    # The measure sees alignment: in the order of the book, translations meet.
    place = {
        f: i for i, f in enumerate(dict.fromkeys(n for _, names in rows for n in sorted(names)))
    }
    in_order = sorted(range(count), key=lambda i: min(map(place.get, rows[i][1]), default=0))
    assert meetings(rows, in_order) > 3 * limit


def test_parallel_tasks_beside_them_leave_the_rows_as_they_are(data_dir, vocabulary, opened):
    write_bible(data_dir / "bible", is_real=False)
    rows = Rows("bible_whole", LENGTH)
    need = f"bible_whole:train:{LENGTH}"
    modules = ["tasks.bible", "tasks.mixtures"]
    before = opened(rows, build(data_dir, modules, need), 0, vocabulary)
    expected = before.rows(range(64))
    modules += ["tasks.bible_parallel"]
    made = build(data_dir, modules, need, f"bible_deu_eng:train:{LENGTH}")
    after = opened(rows, made, 0, vocabulary)
    assert after.tasks == before.tasks == tuple(sorted(f"bible_{lang}" for lang in bible.WHOLE))
    for name, array in after.rows(range(64)).items():
        assert np.array_equal(array, expected[name]), name


def test_no_mixture_of_single_languages_has_a_parallel_task():
    def ranks(mixture: str) -> set[int]:
        found = seqio.MixtureRegistry.get(mixture).tasks
        return {task.output_features["tokens"].rank for task in found}

    assert all(ranks(mixture) == {1} for mixture in MONO)
    assert all(ranks(mixture) == {2} for mixture in PARALLEL)


def test_synthetic_corpora_of_single_languages_share_no_meaning():
    meanings = [
        {corpus_sentence(FAMILY[name], "train", index).meaning for index in range(400)}
        for name in synthetic.CORE
    ]
    assert len(set.union(*meanings)) == sum(map(len, meanings))
