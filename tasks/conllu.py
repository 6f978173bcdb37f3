"""CoNLL-U, the format of Universal Dependencies: sentences as syntactic words.

A line is a word of ten columns set apart by tabs; a blank line ends a sentence; "#" begins a
comment (https://universaldependencies.org/format.html). Ranges as "3-4", the written tokens that
several words share, and empty nodes as "5.1", of enhanced graphs, are skipped: what remains are the
words that have a part of speech and a head.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tasks import text
from xl_flax.errors import UserError

COLUMNS = 10


class Word(NamedTuple):
    """A syntactic word."""

    line: int  # in its file, from 1
    form: str
    upos: str
    head: int | None  # number of its head word from 1, 0 for the root; None where it is "_"
    relation: str  # as it stands there, with its subtype


def read_sentences(path: str) -> Iterator[list[Word]]:
    """Yields the words of each sentence of a file.

    Raises:
      UserError: a line has not ten columns, or words are not numbered 1, 2, …; a column that is
        read is empty, a head is no number, or all words are hidden behind "_"; names file and line.
    """
    sentence: list[Word] = []
    for number, line in text.numbered_lines(path):
        if not line.strip():
            if sentence:
                yield _complete(path, sentence)
            sentence = []
        elif not line.startswith("#"):
            word = _word(path, number, line, len(sentence) + 1)
            sentence += [] if word is None else [word]
    if sentence:
        yield _complete(path, sentence)


def _word(path: str, number: int, line: str, expected: int) -> Word | None:
    """The word of a line; None for a range and an empty node."""
    where, cells = f"{path}, line {number}", line.split("\t")
    if len(cells) != COLUMNS:
        raise UserError(
            f"{where} has {len(cells)} column{'s' if len(cells) > 1 else ''} set apart by tabs: a "
            f"line of CoNLL-U has {COLUMNS}"
        )
    identifier, form, _, upos, _, _, head, relation, _, _ = cells
    if re.fullmatch(r"[0-9]+[-.][0-9]+", identifier):
        return None
    if identifier != str(expected):
        raise UserError(
            f"{where}: the word's number is {identifier!r}, but it is word {expected} of its "
            "sentence; are a word or a blank line missing?"
        )
    for name, cell in (("FORM", form), ("UPOS", upos), ("HEAD", head), ("DEPREL", relation)):
        if not cell.strip():
            raise UserError(f"{where}: the column {name} is empty; write _ where nothing is known")
    if head != "_" and not re.fullmatch(r"[0-9]+", head):
        raise UserError(f"{where}: the head {head!r} is no number of a word, and neither 0 nor _")
    return Word(number, form, upos, None if head == "_" else int(head), relation)


def _complete(path: str, sentence: list[Word]) -> list[Word]:
    if len(sentence) > 1 and all(word.form == "_" for word in sentence):
        raise UserError(
            f"{path}, line {sentence[0].line}: all words are _: this treebank is published without "
            "its text; its README says where to get it and how to merge the two"
        )
    return sentence


def check_tree(path: str, sentence: Sequence[Word]) -> None:
    """Raises a UserError that names file and line unless the heads make a tree with one root."""
    roots = []
    for number, word in enumerate(sentence, 1):
        where = f"{path}, line {word.line}"
        if word.head is None:
            raise UserError(f"{where}: the word {word.form!r} has no head: the tree is incomplete")
        if word.head > len(sentence):
            raise UserError(
                f"{where}: the head {word.head} is out of range: the sentence has {len(sentence)} "
                "words"
            )
        if word.head == number:
            raise UserError(f"{where}: the word {word.form!r} is its own head")
        if word.head == 0:
            roots.append(word)
    if not roots:
        raise UserError(f"{path}, line {sentence[0].line}: the sentence has no root, no head 0")
    if len(roots) > 1:
        raise UserError(
            f"{path}, line {roots[1].line}: a second root ({roots[1].form!r}) beside that of line "
            f"{roots[0].line}: a tree has one"
        )
    reached = {0}  # words from which the root is reached
    for number in range(1, len(sentence) + 1):
        way: dict[int, None] = {}
        while number not in reached:
            if number in way:
                word = sentence[number - 1]
                raise UserError(
                    f"{path}, line {word.line}: the heads of {word.form!r} go round in a cycle and "
                    "never reach the root"
                )
            way[number] = None
            number = sentence[number - 1].head
        reached.update(way)
