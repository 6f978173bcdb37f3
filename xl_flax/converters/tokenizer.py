"""Tokenizer files: what a folder has → our vocabulary, and back to a `tokenizer.json`."""

import dataclasses
import os
from typing import Any

from xl_flax.converters.folders import MEND, optional_json, write_json
from xl_flax.data.vocabulary import TOKENIZER_FILE, VOCABULARY_FILE, Vocabulary, read_vocabulary
from xl_flax.errors import UserError
from xl_flax.files.read import check_regular, read_bytes, read_text
from xl_flax.files.write import write_atomically

SENTENCEPIECE = "sentencepiece.bpe.model"  # XLM-R's, whatever its kind
APART = "\ufdd0"  # no character, so that no text has it
# fairseq put its special pieces before SentencePiece's and shifted all others by one.
FAIRSEQ_PIECES = ("<s>", "<pad>", "</s>", "<unk>")


def read(folder: str) -> Vocabulary:
    """The vocabulary of a model's folder, which encodes a text as the folder's own tokenizer does.

    In this order: our own file, `tokenizer.json`, XLM-R's SentencePiece model with its ids moved,
    BERT's `vocab.txt`, RoBERTa's `vocab.json` and `merges.txt`.

    Raises:
      UserError: there is none of these, or it is damaged or lacks a special piece.
    """
    for name, make in (
        (VOCABULARY_FILE, _as_it_is),
        (TOKENIZER_FILE, _as_it_is),
        (SENTENCEPIECE, _from_fairseq),
        ("vocab.txt", _from_wordpiece),
        ("merges.txt", _from_bytewise),
    ):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            try:
                content = make(path)
            except UserError:
                raise
            except Exception as error:  # the library raises this class itself
                raise UserError(f"{path} makes no tokenizer ({error}); {MEND}") from error
            return read_vocabulary(path, content)
    raise UserError(
        f"{folder} has no {TOKENIZER_FILE}, {SENTENCEPIECE}, vocab.txt or merges.txt: give the "
        "file of its tokenizer with --tokenizer=FILE"
    )


def _as_it_is(path: str) -> bytes:
    content = read_bytes(path, MEND)
    if path.endswith(TOKENIZER_FILE) and content.lstrip()[:1] != b"{":
        raise UserError(f"{path} is no tokenizer.json: it holds no JSON object; {MEND}")
    return content


def _from_fairseq(path: str) -> bytes:
    """The same SentencePiece model with the ids that XLM-R gives to its pieces."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as model_pb2

    try:
        model = model_pb2.ModelProto.FromString(_as_it_is(path))
    except DecodeError as error:
        raise UserError(f"{path} is not a SentencePiece model; {MEND}") from error
    if optional_json(os.path.dirname(path), "config.json").get("model_type") == "camembert":
        raise UserError(
            f"{path} is CamemBERT's, whose ids are moved in another way than XLM-R's: fetch its "
            f"{TOKENIZER_FILE}, or give one with --tokenizer=FILE"
        )
    kinds = model_pb2.ModelProto.SentencePiece
    by_name = {piece.piece: piece for piece in model.pieces}
    if [p.piece for p in model.pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        raise UserError(f"{path} does not begin with <unk>, <s>, </s>, as XLM-R's does")
    rest = list(model.pieces[3:])
    pad = kinds(piece="<pad>", score=0.0, type=kinds.CONTROL)
    mask = kinds(piece="<mask>", score=0.0, type=kinds.CONTROL)
    ordered = [by_name.get(name, pad) for name in FAIRSEQ_PIECES] + rest + [mask]
    del model.pieces[:]
    model.pieces.extend(ordered)
    spec = model.trainer_spec
    spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id = range(4)
    spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


def _from_wordpiece(path: str) -> bytes:
    """BERT's `vocab.txt`; lower case, accents and Chinese as `tokenizer_config.json` says."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    folder = os.path.dirname(path)
    settings = optional_json(folder, "tokenizer_config.json")
    text = read_text(path, MEND).replace("\r\n", "\n")
    pieces = text.removesuffix("\n").split("\n")
    vocab = {piece: i for i, piece in enumerate(pieces)}
    unk = settings.get("unk_token", "[UNK]")
    unk = unk["content"] if isinstance(unk, dict) else unk
    if unk not in vocab:
        raise UserError(f"{path} has no piece {unk!r}, which tokenizer_config.json says is unknown")
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _with_specials(tokenizer, [p for p in pieces if p.startswith("[") and p.isupper()])


def _from_bytewise(path: str) -> bytes:
    """RoBERTa's byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = os.path.dirname(path)
    vocab = os.path.join(folder, "vocab.json")
    if "</w>" in read_text(path, MEND)[:10_000]:
        raise UserError(
            f"{path} is of a tokenizer that splits with Moses' scripts (XLM): convert it to a "
            f"{TOKENIZER_FILE} where that runs, and give it with --tokenizer=FILE"
        )
    check_regular(vocab, MEND)
    tokenizer = Tokenizer(models.BPE.from_file(vocab, path))
    before = optional_json(folder, "tokenizer_config.json").get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=before)
    tokenizer.decoder = decoders.ByteLevel()
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    return _with_specials(tokenizer, [p for p in special if tokenizer.token_to_id(p) is not None])


def _with_specials(tokenizer: Any, pieces: list[str]) -> bytes:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens(
        [AddedToken(p, special=True, normalized=False, lstrip=p == "<mask>") for p in pieces]
    )
    cls, sep = ("[CLS]", "[SEP]") if "[CLS]" in pieces else ("<s>", "</s>")
    tokenizer.post_processor = _template(tokenizer, cls, sep)
    return tokenizer.to_str().encode()


def write(folder: str, vocabulary: Vocabulary, longest: int, inputs: tuple[str, ...]) -> None:
    """Writes `tokenizer.json` and what Transformers reads beside it.

    Args:
      folder: where to.
      vocabulary: a SentencePiece model is translated, and also copied; a tokenizer.json is copied.
      longest: input of the model, in tokens.
      inputs: what the model's `forward` takes.
    """
    source = vocabulary.content
    if vocabulary.file_name == VOCABULARY_FILE:
        write_atomically(os.path.join(folder, VOCABULARY_FILE), source)
        source = from_sentencepiece(source, vocabulary).to_str(pretty=True).encode()
    write_atomically(os.path.join(folder, TOKENIZER_FILE), source)
    pieces = {k: raw_piece(source, i) for k, i in dataclasses.asdict(vocabulary.special).items()}
    names = {f"{kind}_token": piece for kind, piece in pieces.items()}
    names |= {"bos_token": pieces["cls"], "eos_token": pieces["sep"]}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "model_input_names": list(inputs),
        "clean_up_tokenization_spaces": False,
        **names,
    }
    for name, content in (
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", names),
    ):
        write_json(os.path.join(folder, name), content)


def raw_piece(tokenizer_json: bytes, i: int) -> str:
    """The piece with this id, as a `tokenizer.json` spells it."""
    import tokenizers

    return tokenizers.Tokenizer.from_buffer(tokenizer_json).id_to_token(i)


def from_sentencepiece(model: bytes, vocabulary: Vocabulary) -> Any:
    """A `tokenizers.Tokenizer` that gives a text the ids that a SentencePiece model gives it.

    Raises:
      UserError: the model marks the ends of words, or is neither of unigrams nor BPE.
    """
    from sentencepiece import sentencepiece_model_pb2 as model_pb2
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    proto = model_pb2.ModelProto.FromString(model)
    trainer, normal = proto.trainer_spec, proto.normalizer_spec
    if trainer.treat_whitespace_as_suffix or trainer.model_type not in (
        trainer.UNIGRAM,
        trainer.BPE,
    ):
        raise UserError(
            f"{vocabulary.path}: only SentencePiece models of unigrams or BPE, with words marked "
            f"at their start, have a {TOKENIZER_FILE}"
        )
    scores = [(piece.piece, piece.score) for piece in proto.pieces]
    if trainer.model_type == trainer.UNIGRAM:
        core = models.Unigram(scores, vocabulary.special.unk, trainer.byte_fallback)
    else:
        core = models.BPE(
            {piece: i for i, (piece, _) in enumerate(scores)},
            _merges(scores, proto),
            unk_token=scores[vocabulary.special.unk][0],
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    tokenizer = Tokenizer(core)
    steps = []
    if normal.precompiled_charsmap:
        # tokenizers maps a whole grapheme by the first of its prefixes in the map and forgets the
        # rest of it; where that is kept apart, it does what SentencePiece does. Where case is
        # folded, a capital is such a prefix, and its mark joins it in a second turn.
        folds = normal.name.endswith("_cf")
        for before in (r"\p{M}\p{Lu}", r"\p{M}") if folds else (r"\p{M}",):
            steps += [
                normalizers.Replace(Regex(rf"(?<=[{before}])(?=\p{{M}})"), APART),
                normalizers.Precompiled(normal.precompiled_charsmap),
                normalizers.Replace(APART, ""),
            ]
    if normal.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(p), by) for p, by in (("^ +| +$", ""), (" {2,}", " "))]
    if normal.add_dummy_prefix:  # also before a text that begins with "▁", as Metaspace would not
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    scheme = "always" if normal.add_dummy_prefix else "never"
    metaspace = decoders.Metaspace(prepend_scheme=scheme)
    if trainer.byte_fallback:
        metaspace = decoders.Sequence([decoders.ByteFallback(), metaspace])
    tokenizer.decoder = metaspace
    mask = scores[vocabulary.special.mask][0]
    kinds = model_pb2.ModelProto.SentencePiece
    tokenizer.add_special_tokens(
        [
            AddedToken(p.piece, special=True, normalized=False, lstrip=p.piece == mask)
            for p in proto.pieces
            if p.type in (kinds.CONTROL, kinds.UNKNOWN)
        ]
    )
    cls, sep = scores[vocabulary.special.cls][0], scores[vocabulary.special.sep][0]
    tokenizer.post_processor = _template(tokenizer, cls, sep)
    return tokenizer


def _template(tokenizer: Any, cls: str, sep: str) -> Any:
    from tokenizers import processors

    # BERT's pairs have one separator between them and types; RoBERTa's two, and no types.
    pair = f"{cls} $A {sep} $B:1 {sep}:1" if cls == "[CLS]" else f"{cls} $A {sep} {sep} $B {sep}"
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=pair,
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (cls, sep)],
    )


def _merges(scores: list[tuple[str, float]], proto: Any) -> list[tuple[str, str]]:
    """BPE's merges in order: of each piece all cuts into two pieces, best pieces first.

    SentencePiece keeps no merges: a piece's score is minus the step at which it was merged.
    """
    normal = type(proto).SentencePiece.NORMAL
    ids = {p.piece: i for i, p in enumerate(proto.pieces) if p.type == normal}
    merges = []
    for piece, i in ids.items():
        cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        pairs = [(left, right) for left, right in cuts if left in ids and right in ids]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(scores[i][1], pair) for pair in pairs]
    merges.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in merges]
