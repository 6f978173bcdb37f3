"""Trains SentencePiece on weighted lines of text and measures the result; no TensorFlow."""

import dataclasses
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from xl_flax.data.unknown import warn_unknown
from xl_flax.data.vocabulary import (
    SPECIAL_PIECES,
    WORD_START,
    Vocabulary,
    VocabularyConfig,
    is_unspaced,
)
from xl_flax.errors import UserError
from xl_flax.text_table import count, legend, table, wrapped

# A unigram model is pruned from this many candidates down to the size asked for. SentencePiece's
# own 1,000,000 took 1.5 times as long for 16,000 pieces, with no better fertility.
SEEDS_PER_PIECE = 10
MIN_SEEDS, MAX_SEEDS = 100_000, 1_000_000
THREADS = 16  # fixed: partial sums are rounded per thread
LOG_FROM_LINES = 300_000  # from here SentencePiece's own log shows the progress
_BYTE = re.compile("<0x..>")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The text of one language."""

    language: str
    examples: int  # in the whole split
    lines: list[str]  # that were drawn from it
    weight: float  # how often each line counts, on average

    @property
    def characters(self) -> int:
        """In all lines."""
        return sum(map(len, self.lines))

    def weighted_lines(self) -> Iterator[str]:
        """Yields "line TAB weight", the weights being whole numbers with the mean asked for."""
        for i, line in enumerate(self.lines):
            weight = math.floor((i + 1) * self.weight) - math.floor(i * self.weight)
            yield f"{line}\t{weight}"


def train_model(corpora: Sequence[Corpus], config: VocabularyConfig) -> bytes:
    """Trains SentencePiece on weighted lines.

    Returns:
      The serialised model, with exactly `config.size` pieces and the special ones in their places.

    Raises:
      UserError: the size is too large or too small for the text.
    """
    # XLM-R has <mask> last; SentencePiece places special pieces first, so it is added afterwards.
    added = 1 if config.style == "xlmr" else 0
    try:
        trained = _train(corpora, config, config.size - added)
    except (RuntimeError, OSError) as error:
        raise _explain(error, config, added) from error
    model = model_pb2.ModelProto.FromString(trained)
    if added:
        control = model_pb2.ModelProto.SentencePiece.CONTROL
        model.pieces.add(piece="<mask>", score=0.0, type=control)
        model.trainer_spec.vocab_size = config.size
    return model.SerializeToString(deterministic=True)


def _train(corpora: Sequence[Corpus], config: VocabularyConfig, size: int) -> bytes:
    buffer = io.BytesIO()
    large = sum(len(corpus.lines) for corpus in corpora) >= LOG_FROM_LINES
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for c in corpora for line in c.weighted_lines()),
        input_format="tsv",  # a line, a tab, its weight
        model_writer=buffer,
        vocab_size=size,
        model_type=config.model_type,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
        normalization_rule_name=config.normalization,
        seed_sentencepiece_size=min(MAX_SEEDS, max(MIN_SEEDS, SEEDS_PER_PIECE * size)),
        max_sentence_length=2**20,  # bytes; whoever reads the text cuts it, nothing is dropped
        num_threads=THREADS,
        minloglevel=0 if large else 2,
        **_special_arguments(config.style),
    )
    return buffer.getvalue()


def _special_arguments(style: str) -> dict[str, Any]:
    bert = style == "bert"
    order = ("pad", "unk", "cls", "sep") if bert else ("cls", "pad", "sep", "unk")
    theirs = {"cls": "bos", "sep": "eos", "pad": "pad", "unk": "unk"}
    arguments: dict[str, Any] = {}
    for i, special in enumerate(order):
        arguments[f"{theirs[special]}_id"] = i
        arguments[f"{theirs[special]}_piece"] = SPECIAL_PIECES[special][bert]
    if bert:
        arguments["control_symbols"] = [SPECIAL_PIECES["mask"][bert]]  # takes the next id, 4
    return arguments


def _explain(error: Exception, config: VocabularyConfig, added: int) -> UserError:
    text = " ".join(str(error).split())
    name = f"VocabularyConfig.size = {config.size}"
    if match := re.search(r"set it to a value <= (\d+)", text):
        return UserError(
            f"{name} is too large for the text of {config.mixture!r}, which gives at most "
            f"{int(match[1]) + added} pieces: ask for that or fewer, or add text"
        )
    if match := re.search(r"smaller than required_chars\. (\d+) vs (\d+)", text):
        return UserError(
            f"{name} is too small for the text of {config.mixture!r}: its characters and the "
            f"special pieces alone are {int(match[2]) + added}; ask for more, or lower "
            f"VocabularyConfig.character_coverage ({config.character_coverage})"
        )
    return UserError(f"SentencePiece cannot train a vocabulary with {name}: {text}")


def measure(vocabulary: Vocabulary, lines: Sequence[str]) -> dict[str, float | str]:
    """How well a vocabulary fits the text of a language.

    Returns:
      unit: "word", or "character" where spaces do not set words apart; fertility: pieces per unit;
      unknown: share of the pieces that are unknown; single: share of the pieces that are a single
      character or byte.
    """
    text = " ".join(lines)
    letters = [c for c in text if c.isalpha()]
    by_character = sum(map(is_unspaced, letters)) > len(letters) / 2
    units = sum(not c.isspace() for c in text) if by_character else len(text.split())
    ids = [i for line in lines for i in vocabulary.encode(line)]
    pieces = [vocabulary.piece(i) for i in ids if i != vocabulary.special.unk]
    single = sum(len(p.lstrip(WORD_START)) <= 1 or bool(_BYTE.fullmatch(p)) for p in pieces)
    return {
        "unit": "character" if by_character else "word",
        "fertility": round(len(ids) / max(units, 1), 4),
        "unknown": round(1 - len(pieces) / max(len(ids), 1), 6),
        "single": round(single / max(len(ids), 1), 4),
    }


MEANINGS = {
    "lines": "read for the training",
    "share": "of the weighted text",
    "pieces": "per word, or per character where no spaces are written (fertility)",
    "unknown": "share of the pieces that stand for text outside the vocabulary",
    "single": "share of the pieces that are one character or byte",
    "on": "split that pieces, unknown and single were counted on",
}


def format_table(languages: dict[str, dict[str, Any]]) -> str:
    """What `measure` found, and each language's share of the weighted text, for people."""
    header = "language examples lines share pieces per unknown single on"
    rows = [header.split()]
    for language, r in languages.items():
        shares = [f"{r['unknown']:.2%}", f"{r['single']:.1%}"]
        counts = [count(r["examples"]), count(r["lines"]), f"{r['share']:.1%}"]
        rows.append([language, *counts, f"{r['fertility']:.2f}", r["unit"], *shares, r["measured"]])
    warning = warn_unknown({language: r["unknown"] for language, r in languages.items()})
    lines = [table(rows, left={0, 5, 8}, shorten=0), legend(MEANINGS)]
    return "\n".join(lines + ([wrapped(warning)] if warning else []))
