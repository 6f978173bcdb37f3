"""What tasks on questions are made of: files as SQuAD's, and answers found in their contexts.

A module of your own needs only this one:

    from tasks import question_files

    questions = question_files.QuestionFiles({"train": "qa/bre.train.json"})
    question_files.add_question_task("qa_bre", ("bre", "bre"), questions)

Batches then hold the feature "answer", the first and the last token of the answer; evaluations also
read "id", "context" and "answers".
"""

import collections
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from tasks import labelled, text
from xl_flax.data import long_texts, spans, vocabulary
from xl_flax.errors import UserError
from xl_flax.files.read import read_json

QUESTION_TOKENS = 64  # of a question at most, as in BERT's and XTREME's code for SQuAD
KEYS = ("question", "context", "id", "answers")  # of what a source yields, all strings


def add_question_task(
    name: str,
    languages: tuple[str, str],
    source: seqio.DataSource,
    *,
    preprocessors: Sequence[Callable[[tf.data.Dataset], tf.data.Dataset]] = (),
) -> seqio.Task:
    """Registers a task on questions that a span of their context answers.

    Args:
      name: the task's name, unique among all tasks.
      languages: of the question and of the context.
      source: yields {"question", "context", "id", "answers": strings}, the last of which is JSON as
        in SQuAD: [{"text": string, "answer_start": number of a character}, ...], -1 for an answer
        that does not stand in the context; `QuestionFiles`, or any seqio source.
      preprocessors: seqio preprocessors that rewrite or drop examples; their results must have what
        a source yields.

    Returns:
      The task, whose examples are {"tokens": ragged int32 [2, None], question and context,
      "language": string [2], "answer": int32 [2], first and last token in the context of the first
      answer that stands there, -1 if none does; "id", "context", "answers": strings}.
    """
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            functools.partial(tokenize_questions, task=name, languages=languages),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={
            "tokens": seqio.Feature(text.RunVocabulary(), add_eos=False, rank=2),
            "answer": labelled.Feature(kind="span", rank=1),
            **{key: labelled.Feature(kind="text", dtype=tf.string) for key in KEYS[1:]},
        },
    )


def tokenize_questions(
    dataset: tf.data.Dataset, task: str, languages: tuple[str, str]
) -> tf.data.Dataset:
    """A preprocessor: question and context as "tokens", and the answer as tokens of the context."""
    labelled.check_keys(dataset, task, KEYS)

    def convert(example):
        strings = [example[key] for key in ("question", "context", "answers")]
        question, context, answer = tf.numpy_function(_tokens, strings, [tf.int32] * 3)
        sizes = [tf.size(question), tf.size(context)]
        return {
            "tokens": tf.RaggedTensor.from_row_lengths(tf.concat([question, context], 0), sizes),
            "language": tf.constant(languages),
            "answer": tf.ensure_shape(answer, [2]),
            **{key: example[key] for key in KEYS[1:]},
        }

    return dataset.map(convert)


def _tokens(
    question: bytes, context: bytes, answers: bytes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vocab = vocabulary.run_vocabulary()
    ids, offsets = _encoded(vocab, context.decode())
    found = [_span(offsets, answer) for answer in json.loads(answers)]
    first = next((span for span in found if span[0] >= 0), (-1, -1))
    short = long_texts.encode(vocab, question.decode())[:QUESTION_TOKENS]
    return short, ids, np.array(first, np.int32)


# Questions on one context follow one another.
_encoded = functools.lru_cache(maxsize=4)(spans.encode)


def _span(offsets: np.ndarray, answer: Mapping[str, Any]) -> tuple[int, int]:
    begin = answer["answer_start"]
    return spans.tokens_of(offsets, begin, begin + len(answer["text"])) if begin >= 0 else (-1, -1)


# --- Files -----------------------------------------------------------------------------------


class QuestionFiles(text.Files):
    """Files as SQuAD v1.1's (Rajpurkar et al. 2016), of which every question has an answer.

    Answers that do not stand where the file says are looked for in the context, and taken from
    where they stand nearest by. In "train", questions of which no answer stands in the context are
    left out. How many of each there were is said when a split is read.
    """

    def __init__(self, paths: Mapping[str, str | Sequence[str]]):
        """The source.

        Args:
          paths: the files of each split. Paths that are not absolute start at XL_FLAX_DATA_DIR,
            which is looked up when the files are read.
        """
        super().__init__(paths, read_questions)

    def get_dataset(self, split: str = "train", **options) -> tf.data.Dataset:
        """A dataset of {"question", "context", "id", "answers": strings}, in the files' order."""
        rows = super().get_dataset(split=split, **options)
        for path in self.files(split):
            if said := _mended(path, os.stat(path).st_mtime_ns, split):
                print(said, file=sys.stderr)
        return rows.map(lambda row: {key: row["text"][i] for i, key in enumerate(KEYS)})


def read_questions(paths: Sequence[str], split: str) -> Iterator[tuple[str, ...]]:
    """Yields question, context, id, and the answers as JSON, each of them where it stands.

    Raises:
      UserError: a file is damaged, has a question without an answer, or only empty answers.
    """
    for path in paths:
        for question, context, name, answers, _ in _read(path, split):
            yield question, context, name, json.dumps(answers, ensure_ascii=False)


@functools.cache
def _mended(path: str, mtime_ns: int, split: str) -> str:
    """What had to be done to the answers of a file, in words; "" for nothing."""
    del mtime_ns
    counts = collections.Counter()
    for *_, state in _read(path, split, everything=True):
        counts.update(state)
    if not counts["elsewhere"] + counts["nowhere"]:
        return ""
    dropped = "left out" if split == "train" else "kept, as they count in scores"
    return (
        f"{path}: {counts['elsewhere']} of {counts['answers']} answers do not stand where the file "
        f"says and were found nearby; {counts['nowhere']} do not stand in their contexts; "
        f"{counts['lost']} questions have no other answer and are {dropped}"
    )


def _read(path: str, split: str, everything: bool = False) -> Iterator[tuple[Any, ...]]:
    """Yields question, context, id, answers, and counts of what happened to the answers."""
    text_seen = False
    for context, asked in _paragraphs(path):
        for question in asked:
            answers, counts = _placed(context, question["answers"])
            text_seen |= any(answer["text"].strip() for answer in answers)
            if everything or split != "train" or not counts["lost"]:
                yield question["question"], context, question["id"], answers, counts
    if not text_seen:
        raise UserError(
            f"{path}: the text of every answer is empty: XTREME's copies of tests withhold them; "
            "take this file from the data set's own authors"
        )


def _placed(
    context: str, answers: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], collections.Counter]:
    """Answers with the place where they stand, -1 for nowhere."""
    placed, counts = [], collections.Counter(answers=len(answers))
    for answer in answers:
        string, said = answer["text"], answer["answer_start"]
        bare = string.strip()
        begin = said + len(string) - len(string.lstrip())
        found = spans.find(context, bare, begin)
        counts["nowhere" if found is None else "there" if found == begin else "elsewhere"] += 1
        placed.append({"text": bare, "answer_start": -1 if found is None else found})
    counts["lost"] = int(counts["nowhere"] == len(answers))
    return placed, counts


def _paragraphs(path: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields each context with its questions, whose keys have been checked.

    Raises:
      UserError: names the article, paragraph or question that is not as SQuAD's.
    """
    as_squad = "expected SQuAD v1.1's layout: data, paragraphs, context, qas"
    for a, article in enumerate(_list(read_json(path, as_squad), "data", f"{path}: the file")):
        where = f"{path}: article {a + 1}"
        for p, paragraph in enumerate(_list(article, "paragraphs", where)):
            here = f"{where}, paragraph {p + 1}"
            context = _value(paragraph, "context", str, here)
            asked = []
            for q, question in enumerate(_list(paragraph, "qas", here)):
                name = f"{here}, question {q + 1}"
                answers = _list(question, "answers", name)
                if not answers:
                    raise UserError(
                        f"{name} has no answers: a span of its context must answer each question, "
                        "as in SQuAD v1.1; leave it out of the file"
                    )
                checked = [
                    {k: _value(answer, k, t, name) for k, t in ANSWER.items()} for answer in answers
                ]
                strings = {key: _value(question, key, str, name) for key in ("question", "id")}
                asked.append(strings | {"answers": checked})
            yield context, asked


ANSWER = {"text": str, "answer_start": int}


def _list(value: Any, key: str, where: str) -> list[Any]:
    return _value(value, key, list, where)


def _value(value: Any, key: str, kind: type, where: str) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        kinds = {str: "a string", int: "a number", list: "a list"}
        raise UserError(f"{where} has no {key!r} that is {kinds[kind]}, as SQuAD v1.1 has")
    return found
