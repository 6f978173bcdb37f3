"""SentencePiece vocabularies, without TensorFlow."""

import dataclasses
import functools
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence

import gin
import numpy as np
import sentencepiece

from xl_flax.errors import UserError

# The names that XLM-R-style and BERT-style models give to the same five pieces.
SPECIAL_PIECES = {
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("<s>", "[CLS]"),
    "sep": ("</s>", "[SEP]"),
    "mask": ("<mask>", "[MASK]"),
}
WORD_START = "▁"

# Unicode blocks of the scripts that put no spaces between words.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x323AF),  # Han, extensions B to H
)


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The ids of the pieces that every model needs."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


class Vocabulary:
    """A SentencePiece model: text to ids and back.

    Attributes:
      path: the model file.
      size: the number of pieces, specials included.
      special: the ids of the special pieces.
      fingerprint: sha256 (hex) of the model file's bytes.
    """

    def __init__(self, path: str, model: bytes):
        self.path = path
        self.fingerprint = hashlib.sha256(model).hexdigest()
        try:
            if not model:  # which SentencePiece would take for "no model yet"
                raise RuntimeError("empty")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{path} is not a SentencePiece model: train it anew") from error
        self.size = self._processor.get_piece_size()
        self.special = self._find_special()

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no special pieces are added."""
        return self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; control pieces, as `<s>` or `<pad>`, leave no trace."""
        return self._processor.decode([int(i) for i in ids])

    def piece(self, i: int) -> str:
        """The piece with id `i`, with "▁" where a word starts."""
        return self._processor.id_to_piece(int(i))

    def special_mask(self) -> np.ndarray:
        """bool[size]: ids that are neither masked nor used as random replacements."""
        sp = self._processor
        mask = [sp.is_control(i) or sp.is_unused(i) or sp.is_unknown(i) for i in range(self.size)]
        mask = np.array(mask, bool)
        mask[list(dataclasses.asdict(self.special).values())] = True
        return mask

    def word_starts(self) -> np.ndarray:
        """bool[size]: pieces that begin a word.

        These are the pieces that start with "▁" or with a character (no combining mark) of a
        script written without spaces, where every piece counts as a word.
        """
        first = (self.piece(i)[0] for i in range(self.size))
        starts = [c == WORD_START or (is_unspaced(c) and not _is_mark(c)) for c in first]
        return np.array(starts, bool) & ~self.special_mask()

    def _find_special(self) -> SpecialIds:
        ids, missing = {}, []
        for name, pieces in SPECIAL_PIECES.items():
            found = [i for i in map(self._processor.piece_to_id, pieces) if self.piece(i) in pieces]
            if found:
                ids[name] = found[0]
            else:
                missing.append(" or ".join(pieces))
        if missing:
            raise UserError(
                f"the vocabulary {self.path} has no piece {', '.join(missing)}; "
                "train one that does with python -m xl_flax.vocab"
            )
        return SpecialIds(**ids)


def load_vocabulary(path: str) -> Vocabulary:
    """Reads a SentencePiece model file.

    Raises:
      UserError: the file is missing, is not a SentencePiece model or lacks a special piece.
    """
    try:
        stat = os.stat(path)
        return _load(path, stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError as error:
        raise UserError(
            f"the vocabulary {path} does not exist; train it with python -m xl_flax.vocab and the "
            "same Gin file, or set VOCABULARY to the path of an existing one"
        ) from error
    except OSError as error:
        raise UserError(f"the vocabulary {path} cannot be read: {error.strerror}") from error


@gin.configurable
def run_vocabulary(path: str = gin.REQUIRED) -> Vocabulary:
    """The vocabulary of this run."""
    return load_vocabulary(path)


@functools.lru_cache(maxsize=4)
def _load(path: str, mtime_ns: int, size: int) -> Vocabulary:
    """Reads a file once per version of it."""
    del mtime_ns, size
    with open(path, "rb") as file:
        return Vocabulary(path, file.read())


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """What `python -m xl_flax.vocab` trains.

    It stands here, not in the command, so that every command can read a Gin file that sets it.
    """

    mixture: str = gin.REQUIRED  # the seqio mixture or task whose text is used
    path: str = gin.REQUIRED  # the model file to write
    size: int = gin.REQUIRED  # number of pieces, the special ones included
    style: str = "xlmr"  # "xlmr" or "bert": names and ids of the special pieces
    split: str = "train"
    # Languages are sampled in proportion to examples**exponent; XLM-R took 0.3 (Conneau et al.
    # 2020, section 3.1), multilingual BERT 0.7.
    exponent: float = 0.3
    max_sentences: int = 1_000_000  # most lines of text that SentencePiece sees
    model_type: str = "unigram"  # or "bpe"
    # Share of the text's characters that get a piece. On the twelve Bibles 0.9995 left 1.8 % of the
    # Chinese pieces unknown, 0.9999 0.3 %.
    character_coverage: float = 0.9999
    byte_fallback: bool = False  # spell unknown characters as bytes; takes 256 pieces
    normalization: str = "nmt_nfkc"  # or "nmt_nfkc_cf" (lower case), "nfkc", "identity"
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.mixture, str):
            raise UserError(
                f"VocabularyConfig.mixture = {self.mixture}: name one mixture or task; phases are "
                "for training"
            )
        _check_choice("style", self.style, ("xlmr", "bert"))
        _check_choice("model_type", self.model_type, ("unigram", "bpe"))
        names = ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity")
        _check_choice("normalization", self.normalization, names)
        if self.size < 6 or self.max_sentences < 1:
            raise UserError("VocabularyConfig.size must be > 5 and max_sentences > 0")
        if not 0 <= self.exponent <= 1:
            raise UserError(f"VocabularyConfig.exponent must lie in [0, 1], not {self.exponent}")
        if not 0.9 <= self.character_coverage <= 1:
            raise UserError(
                "VocabularyConfig.character_coverage must lie in [0.9, 1], "
                f"not {self.character_coverage}"
            )


def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script that puts no spaces between words."""
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise UserError(f"VocabularyConfig.{name} must be one of {known}, not {value!r}")
