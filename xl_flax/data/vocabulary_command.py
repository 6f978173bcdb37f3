"""Draws text, trains a vocabulary on it, and measures it: what `python -m xl_flax.vocab` does."""

import dataclasses
import hashlib
import json
import os
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any

from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import mixture_names
from xl_flax.data.seqio_text import Tasks, by_language, file_sizes, read_lines
from xl_flax.data.vocabulary import VocabularyConfig, read_vocabulary
from xl_flax.data.vocabulary_training import Corpus, format_table, measure, train_model
from xl_flax.errors import UserError
from xl_flax.files import read
from xl_flax.files.disk import naming_full_disk
from xl_flax.files.remote import shown
from xl_flax.files.write import write_atomically

MEASURED_LINES = 2000  # lines per language that the report counts


# --- Sampling --------------------------------------------------------------------------------


def draw(tasks: Tasks, config: VocabularyConfig) -> list[Corpus]:
    """Draws lines of each language and weighs them.

    A language's share of `max_sentences`, and then of the weighted text, is in proportion to
    examples**exponent. Small languages are thus weighted up, not repeated, and no line of theirs
    is lost to smoothing.
    """
    sizes = {language: sum(n for _, n in each) for language, each in tasks.items()}
    rates = {language: size**config.exponent for language, size in sizes.items()}
    drawn = {}
    for language, each in tasks.items():
        quota = config.max_sentences * rates[language] / sum(rates.values())
        lines: list[str] = []
        for task, examples in each:
            share = max(1, round(quota * examples / sizes[language]))
            source = read_lines(task, config.split, max(1, examples // share))
            lines += sample(source, share, f"{config.seed} {task.name}")
        if not lines:
            raise UserError(f"{language!r} has no text in the split {config.split!r}")
        drawn[language] = lines
        print(f"read {language}: {sizes[language]:,} examples, {len(lines):,} lines", flush=True)
    lift = {language: rates[language] / len(lines) for language, lines in drawn.items()}
    # At least 1, and no more: SentencePiece takes its time by the weighted length of the text.
    unit = min(lift.values())
    return [Corpus(k, sizes[k], lines, lift[k] / unit) for k, lines in drawn.items()]


def sample(lines: Iterable[str], size: int, seed: str) -> list[str]:
    """At most `size` lines, each with the same chance (reservoir sampling)."""
    generator, kept = random.Random(seed), []
    for i, line in enumerate(lines):
        if i < size:
            kept.append(line)
        elif (place := generator.randrange(i + 1)) < size:
            kept[place] = line
    return kept


def measured_lines(tasks: Sequence[tuple[Any, int]], corpus: Corpus) -> tuple[str, list[str]]:
    """Lines to measure the vocabulary on, held out where the language has a validation split.

    Returns:
      The split's name and the lines.
    """
    held_out = [task for task, _ in tasks if "validation" in task.splits]
    lines = [
        line
        for task in held_out
        for line in sample(read_lines(task, "validation"), MEASURED_LINES, "")
    ]
    return ("validation", lines) if lines else ("train", sample(corpus.lines, MEASURED_LINES, ""))


# --- The command -----------------------------------------------------------------------------


def train_vocabulary(config: VocabularyConfig, *, overwrite: bool = False) -> None:
    """Trains, measures and writes a vocabulary, unless the same one is there.

    Raises:
      UserError: another model is there, the text cannot be read, or the size does not fit it.
    """
    start = time.monotonic()
    names = mixture_names(config.mixture)
    tasks = by_language(names, config.split, Cache(directory=os.curdir).task_modules)
    made_from = {k: v for k, v in dataclasses.asdict(config).items() if k != "path"}
    made_from["mixture"] = "+".join(names)
    made_from["files"] = file_sizes(tasks, config.split)
    if not overwrite and is_current(config.path, made_from):
        print(
            f"{shown(config.path)} is there, made from these settings and this text: nothing to do"
        )
        return
    corpora = draw(tasks, config)
    lines = sum(len(corpus.lines) for corpus in corpora)
    characters = sum(corpus.characters for corpus in corpora)
    print(
        f"training {config.size:,} {config.model_type} pieces on {lines:,} lines, "
        f"{characters:,} characters, {len(corpora)} languages",
        flush=True,
    )
    model = train_model(corpora, config)
    vocabulary = read_vocabulary(config.path, model)
    languages = {}
    total = sum(len(corpus.lines) * corpus.weight for corpus in corpora)
    for corpus in corpora:
        split, held_out = measured_lines(tasks[corpus.language], corpus)
        languages[corpus.language] = {
            "examples": corpus.examples,
            "lines": len(corpus.lines),
            "share": round(len(corpus.lines) * corpus.weight / total, 4),
            "measured": split,
        } | measure(vocabulary, held_out)
    report = {
        "fingerprint": vocabulary.fingerprint,
        "size": vocabulary.size,
        "made_from": made_from,
        "languages": languages,
    }
    # The report first: a model without one would count as somebody else's.
    report_text = json.dumps(report, indent=1, ensure_ascii=False)
    with naming_full_disk(os.path.dirname(config.path) or ".", "the vocabulary", len(model)):
        write_atomically(report_path(config.path), report_text)
        write_atomically(config.path, model)
    print(format_table(languages))
    print(f"wrote {shown(config.path)} in {time.monotonic() - start:.0f} s")


def report_path(path: str) -> str:
    """Where the report of a model file stands."""
    return f"{os.path.splitext(path)[0]}.report.json"


def is_current(path: str, made_from: dict[str, Any]) -> bool:
    """Whether the model is there, made from these settings and files.

    Raises:
      UserError: another one is there.
    """
    if not os.path.exists(path):
        return False
    remedy = "choose another VocabularyConfig.path, or replace it with --overwrite"
    foreign = f"{path} is there and was not made by this command: {remedy}"
    if not os.path.exists(report_path(path)):
        raise UserError(foreign)
    old = read.read_json(report_path(path), foreign)
    now = hashlib.sha256(read.read_bytes(path, remedy)).hexdigest()
    was, fingerprint = old.get("made_from"), old.get("fingerprint")
    if not isinstance(was, dict):
        raise UserError(foreign)
    if now != fingerprint:
        raise UserError(f"{path} has changed since it was made: {remedy}")
    changed = [
        "the text is another" if key == "files" else f"{key} was {was.get(key)!r}, now {value!r}"
        for key, value in made_from.items()
        if was.get(key) != value
    ]
    if changed:
        raise UserError(
            f"{path} is there and was made differently ({'; '.join(changed)}): {remedy}"
        )
    return True
