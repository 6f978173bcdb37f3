"""Vocabularies, without TensorFlow: SentencePiece models, and tokenizer.json files."""

import dataclasses
import functools
import hashlib
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Protocol

import gin
import numpy as np
import sentencepiece
from annotated_types import Ge, Interval, Lt

from xl_flax import settings
from xl_flax.data.remote_vocabulary import fetch_vocabulary
from xl_flax.errors import MissingError, UserError
from xl_flax.files import remote
from xl_flax.files.read import check_regular, read_bytes

VOCABULARY_FILE, TOKENIZER_FILE = (
    "vocabulary.model",
    "tokenizer.json",
)  # of a checkpoint: one or the other

# The names that XLM-R-style and BERT-style models give to the same five pieces.
SPECIAL_PIECES = {
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("<s>", "[CLS]"),
    "sep": ("</s>", "[SEP]"),
    "mask": ("<mask>", "[MASK]"),
}
# Other tokenizers' names beside these: Gemma's (mmBERT), Llama 3's (EuroBERT), XLM's.
MORE_SPECIAL_PIECES = {
    "pad": ("<|pad|>", "<|end_of_text|>"),
    "cls": ("<bos>", "<|begin_of_text|>"),
    "sep": ("<eos>", "<|end_of_text|>"),
    "mask": ("<|mask|>", "<special1>"),
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


class Vocabulary(Protocol):
    """Text to ids and back; what the rest of the house knows of a vocabulary.

    Attributes:
      path: the file.
      size: the number of pieces, specials included.
      special: the ids of the special pieces.
      fingerprint: sha256 (hex) of the file's bytes.
      content: the file's bytes.
    """

    file_name: str  # of a checkpoint's copy
    path: str
    size: int
    special: SpecialIds
    fingerprint: str
    content: bytes

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no special pieces are added."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and the characters [begin, end) of it that each one stands for.

        The spaces before a piece may be among its characters. Of several pieces that one character
        became, all but one may have none.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; control pieces, as `<s>` or `<pad>`, leave no trace."""

    def piece(self, i: int) -> str:
        """The piece with id `i`, with "▁" where a word starts."""

    def special_mask(self) -> np.ndarray:
        """bool[size]: ids that are neither masked nor used as random replacements."""

    def word_starts(self) -> np.ndarray:
        """bool[size]: pieces that begin a word.

        These are the pieces that start with "▁" or with a character (no combining mark) of a
        script written without spaces, where every piece counts as a word.
        """


class SentencePieceVocabulary:
    """A SentencePiece model."""

    file_name = VOCABULARY_FILE

    def __init__(self, path: str, model: bytes):
        self.path, self.content = path, model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        try:
            if not model:  # which SentencePiece would take for "no model yet"
                raise RuntimeError("empty")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{path} is not a SentencePiece model: train it anew") from error
        self.size = self._processor.get_piece_size()
        self.special = find_special(path, self._id)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no special pieces are added."""
        return self._processor.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and their characters; see `Vocabulary.encode_with_offsets`."""
        encoding = self._processor.encode(text, return_type="offset_mapping")
        return encoding["ids"], encoding["offsets"]

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
        """bool[size]: pieces that begin a word; see `Vocabulary.word_starts`."""
        return word_starts(map(self.piece, range(self.size))) & ~self.special_mask()

    def _id(self, piece: str) -> int | None:
        i = self._processor.piece_to_id(piece)
        return i if self.piece(i) == piece else None


class TokenizerVocabulary:
    """A `tokenizer.json`, as Hugging Face's tokenizers write it: WordPiece, BPE, unigram."""

    file_name = TOKENIZER_FILE

    def __init__(self, path: str, model: bytes):
        import tokenizers  # most runs need none

        self.path, self.content = path, model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(model)
            self._whole = json.loads(model)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            around = self._tokenizer.encode("").ids
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # where the library panics, that is no Exception
            raise UserError(f"{path} is not a tokenizer.json: {error}") from error
        # Ids may have gaps, and the largest may belong to an added token.
        self._pieces = {i: p for p, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        self._added = self._tokenizer.get_added_tokens_decoder()
        self.size = max(self._pieces, default=-1) + 1
        # What it puts around a text says more than names: Gemma's pieces (mmBERT) have a <s>, too,
        # which is HTML's.
        known = dict(zip(("cls", "sep"), around, strict=True)) if len(around) == 2 else {}
        if _has(self._whole, "type", "ByteLevel") or _has(self._whole, "byte_fallback", True):
            known["unk"] = None  # every text has pieces
        self.special = find_special(path, self._tokenizer.token_to_id, known)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; no special pieces are added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and their characters; see `Vocabulary.encode_with_offsets`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special pieces leave no trace."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, i: int) -> str:
        """The piece with id `i`, with "▁" where a word starts; "" for a gap."""
        piece = self._pieces.get(int(i), "")
        if int(i) in self._added:
            return piece
        if self._subwords == "##":
            return piece.removeprefix("##") if piece.startswith("##") else WORD_START + piece
        if self._subwords != "Ġ":
            return piece
        text = self._tokenizer.decode([int(i)], skip_special_tokens=False)
        if "\ufffd" in text:  # a part of a character
            return piece.replace("Ġ", WORD_START, 1)
        return WORD_START + text[1:] if text.startswith(" ") else text

    def special_mask(self) -> np.ndarray:
        """bool[size]: ids that are neither masked nor used as random replacements."""
        mask = np.array([i not in self._pieces for i in range(self.size)])
        mask[list(dataclasses.asdict(self.special).values())] = True
        mask[[i for i, token in self._added.items() if token.special]] = True
        return mask

    def word_starts(self) -> np.ndarray:
        """bool[size]: pieces that begin a word; see `Vocabulary.word_starts`."""
        return word_starts(map(self.piece, range(self.size))) & ~self.special_mask()

    @functools.cached_property
    def _subwords(self) -> str:
        """What marks pieces inside a word ("##"), or at its start ("Ġ"); else ""."""
        if self._whole["model"].get("type") == "WordPiece":
            return "##"
        return "Ġ" if _has(self._whole, "type", "ByteLevel") else ""


def _has(node: Any, key: str, value: Any) -> bool:
    """Whether a JSON tree, apart from its vocabulary, has this key with this value."""
    if isinstance(node, dict):
        rest = (v for k, v in node.items() if k not in ("vocab", "merges", "added_tokens"))
        return node.get(key) == value or any(_has(child, key, value) for child in rest)
    return isinstance(node, list) and any(_has(child, key, value) for child in node)


def word_starts(pieces: Iterable[str]) -> np.ndarray:
    """bool[pieces]: starts with "▁", or with a character of a script without spaces."""
    return np.array([_starts_word(piece) for piece in pieces], bool)


def _starts_word(piece: str) -> bool:
    first = piece[:1]
    return first == WORD_START or (bool(first) and is_unspaced(first) and not _is_mark(first))


def find_special(
    path: str, id_of: Callable[[str], int | None], known: Mapping[str, int | None] | None = None
) -> SpecialIds:
    """The ids of the special pieces, by the names that models give them.

    Args:
      path: of the vocabulary, for the error.
      id_of: the id of a piece, or None.
      known: ids that are found otherwise, by kind; None where a vocabulary may do without, and the
        id of padding then stands for it.

    Raises:
      UserError: there is none of some kind.
    """
    ids, missing, known = {}, [], known or {}
    for name, pieces in SPECIAL_PIECES.items():
        pieces += MORE_SPECIAL_PIECES.get(name, ())
        named = [i for i in (known.get(name), *map(id_of, pieces)) if i is not None]
        if named:
            ids[name] = named[0]
        elif name in known and "pad" in ids:
            ids[name] = ids["pad"]
        else:
            missing.append(" or ".join(pieces))
    if missing:
        raise UserError(
            f"the vocabulary {path} has no piece {', '.join(missing)}; "
            "train one that does with python -m xl_flax.vocab"
        )
    return SpecialIds(**ids)


def read_vocabulary(path: str, model: bytes) -> Vocabulary:
    """A vocabulary from the bytes of its file: a SentencePiece model, or JSON.

    Raises:
      UserError: it is neither, or lacks a special piece.
    """
    is_json = model.lstrip()[:1] in (b"{", b"[") or path.endswith(".json")
    kind = TokenizerVocabulary if is_json else SentencePieceVocabulary
    return kind(path, model)


def load_vocabulary(path: str) -> Vocabulary:
    """Reads a SentencePiece model file or a `tokenizer.json`.

    Raises:
      UserError: the file is missing, is neither of them or lacks a special piece.
    """
    if not os.path.exists(path):
        raise MissingError(
            f"the vocabulary {remote.shown(path)} does not exist; train it with "
            "python -m xl_flax.vocab and the same Gin file, or set VOCABULARY to the path of an "
            "existing one"
        )
    check_regular(path, "a vocabulary is a SentencePiece model or a tokenizer.json")
    stat = os.stat(path)
    return _load(path, stat.st_mtime_ns, stat.st_size)


@gin.configurable
def run_vocabulary(path: settings.Folder = gin.REQUIRED) -> Vocabulary:
    """The vocabulary of this run."""
    settings.check("run_vocabulary.path", path, settings.Folder)
    path = remote.staged(path)
    fetch_vocabulary(path)
    return load_vocabulary(path)


@functools.lru_cache(maxsize=4)
def _load(path: str, mtime_ns: int, size: int) -> Vocabulary:
    """Reads a file once per version of it."""
    del mtime_ns, size
    return read_vocabulary(path, read_bytes(path))


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VocabularyConfig(settings.Settings):
    """What `python -m xl_flax.vocab` trains.

    It stands here, not in the command, so that every command can read a Gin file that sets it.
    """

    # The seqio mixture or task whose text is used; phases stand for all the mixtures they name.
    mixture: settings.MixtureName = gin.REQUIRED
    path: settings.Folder = gin.REQUIRED  # the model file to write
    # Number of pieces, the special ones included.
    size: Annotated[int, Ge(6), Lt(settings.LIMIT)] = gin.REQUIRED
    style: Literal["xlmr", "bert"] = "xlmr"  # names and ids of the special pieces
    split: settings.Name = "train"
    # Languages are sampled in proportion to examples**exponent, in lines of text, as XLM samples
    # sentences (Lample and Conneau 2019, section 3.1): one with longer lines has more characters.
    # XLM-R took 0.3 (Conneau et al. 2020, section 3.1), multilingual BERT 0.7.
    exponent: settings.Share = 0.3
    max_sentences: settings.Count = 1_000_000  # most lines of text that SentencePiece sees
    model_type: Literal["unigram", "bpe"] = "unigram"
    # Share of the text's characters that get a piece. On the twelve Bibles 0.9995 left 1.8 % of the
    # Chinese pieces unknown, 0.9999 0.3 %.
    character_coverage: Annotated[float, Interval(ge=0.9, le=1)] = 0.9999
    byte_fallback: bool = False  # spell unknown characters as bytes; takes 256 pieces
    # With "_cf" also in lower case.
    normalization: Literal["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"] = "nmt_nfkc"
    seed: settings.Natural = 0

    def __post_init__(self):
        super().__post_init__()
        self.stage("path")


def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script that puts no spaces between words."""
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")
