"""Does a converted model compute what its source computes? Both run on random and on real text."""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import load_model, vocabulary_path
from xl_flax.checkpoints.manager import first_line
from xl_flax.converters import config as configs
from xl_flax.converters import sentence_transformers, write
from xl_flax.converters.tensors import open_folder
from xl_flax.converters.tokenizer import SENTENCEPIECE
from xl_flax.data.vocabulary import TOKENIZER_FILE, load_vocabulary
from xl_flax.errors import UserError
from xl_flax.models.heads import MLM_HEAD, Model, mlm_prediction
from xl_flax.ops.pooling import pool
from xl_flax.progress import progress
from xl_flax.text_table import table

# Universal Declaration of Human Rights, beginning of article 1, which is free to use.
TEXTS = {
    "amh": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "ara": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "ben": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "deu": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "ell": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "eng": "All human beings are born free and equal in dignity and rights.",
    "fra": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "hin": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "jpn": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "kor": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "rus": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "tha": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "vie": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "zho": "人人生而自由，在尊严和权利上一律平等。",
}
RANDOM_LENGTHS = (31, 17, 5, 64)
# The head that a class of Transformers has, by what is in its name.
HEAD_CLASSES = {
    "SequenceClassification": "sequence",
    "TokenClassification": "tokens",
    "QuestionAnswering": "question",
    "MultipleChoice": "choice",
    "ForMaskedLM": MLM_HEAD,
    "WithLMHead": MLM_HEAD,
    "ForPreTraining": MLM_HEAD,
}
BATCH = 16  # sentences that both models read at once
LENGTH_MULTIPLE = 32  # of the padded lengths, so that few are compiled
# What Transformers makes a tokenizer of.
TOKENIZERS = (TOKENIZER_FILE, SENTENCEPIECE, "vocab.txt", "merges.txt", "tokenizer.model")
SAME_WEIGHTS, ROUNDED_WEIGHTS = 1e-3, 0.1  # differences that are no error, of the largest value


class Gap(NamedTuple):
    """The largest difference of one kind of output."""

    input: str  # "random" or "text"
    sentences: int
    what: str
    largest: float
    most: float  # that rounding makes


def verify(checkpoint: str, folder: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """Compares one of our checkpoints with a folder of Hugging Face, in float32.

    Args:
      checkpoint: ours.
      folder: theirs.
      texts: what both read, beside random ids.

    Returns:
      A table of the largest absolute differences, for random ids and for text; and those that are
      more than what rounding makes, a line each.

    Raises:
      UserError: PyTorch and Transformers are not there, or they cannot open the folder.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"--verify needs PyTorch and Transformers ({error}): pip install 'xl-flax[hf]'"
        ) from None
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    texts = sorted(texts, key=len)  # those of about the same length are padded together
    model, description, checkpoint = load_model(checkpoint, dtype="float32")
    whole, is_st = folder, sentence_transformers.is_folder(folder)
    folder = sentence_transformers.read(folder)[0] if is_st else folder
    vocabulary = load_vocabulary(vocabulary_path(checkpoint))
    try:
        theirs_ids = None
        if has_tokenizer := any(os.path.exists(os.path.join(folder, name)) for name in TOKENIZERS):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            theirs_ids = [tokenizer(text)["input_ids"] for text in texts]
        names = configs.architecture(transformers.AutoConfig.from_pretrained(folder).to_dict())
        hf = getattr(transformers, names or "AutoModel")
        hf, loading_info = hf.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # whatever Transformers raises
        raise UserError(f"Transformers cannot open {folder}: {first_line(error)}") from error
    special = vocabulary.special
    ids = [[special.cls, *vocabulary.encode(text), special.sep] for text in texts]
    gaps: list[Gap] = []
    if has_tokenizer:
        other = sum(a != b for a, b in zip(ids, theirs_ids, strict=True))
        gaps.append(Gap("text", len(ids), "tokenization: sentences", other, 0))

    rng = np.random.default_rng(0)
    usable = np.flatnonzero(~vocabulary.special_mask()[: description.encoder.vocab_size])
    longest = description.encoder.max_positions
    ids = [_cut(s, longest) for s in ids]
    random = [rng.choice(usable, min(n, longest)).tolist() for n in RANDOM_LENGTHS]
    hf.eval()
    head = next((ours for theirs, ours in HEAD_CLASSES.items() if theirs in names), None)
    # What is not in the folder is random there.
    has_pooler = not any("pooler" in name for name in loading_info["missing_keys"])
    outputs = make_outputs(model, description, {head, "pooler" if has_pooler else None})
    tolerance = _tolerance(checkpoint, description, folder)
    for name, sentences in (("random", random), ("text", ids)):
        largest: dict[str, tuple[float, float]] = {}
        for tokens, real in _batches(sentences, special.pad, longest, name):
            axes = (slice(None), None) if head == "choice" else ...  # [B, choices, L]
            mask = torch.tensor(real.astype(int))[axes]
            with torch.no_grad():
                theirs = _their_outputs(hf(torch.tensor(tokens)[axes], attention_mask=mask))
            for what, values in outputs(tokens, real).items():
                if what in theirs:
                    value = theirs[what].numpy()
                    gap = np.abs(values - value)
                    per_token = gap.shape[:2] == real.shape and what != "pooler_output"
                    both = [x[real] if per_token else x for x in (gap, np.abs(value))]
                    before = largest.get(what, (0.0, 1.0))
                    largest[what] = tuple(np.maximum(before, [x.max() for x in both]))  # or NaN
        for what, (gap, value) in largest.items():
            gaps.append(Gap(name, len(sentences), what, gap, tolerance * value))
    heads = [n for n, s in description.heads.items() if s.get("kind") == "sentence"]
    if is_st and heads:
        gap = _sentences(model, heads[0], ids, special.pad, whole, texts)
        gaps.append(Gap("text", len(ids), f"{heads[0]}: 1 - cosine", gap, tolerance))
    return _report(gaps, None if has_tokenizer else folder)


def _report(gaps: Sequence[Gap], without_tokenizer: str | None) -> tuple[str, list[str]]:
    rows = [("input", "sentences", "what", "difference", "at most")]
    for gap in gaps:
        numbers = [f"{x:.2e}" if isinstance(gap.most, float) else str(x) for x in gap[3:]]
        rows.append((gap.input, f"{gap.sentences:,}", gap.what, *numbers))
    lines = [
        table(rows, left=(0, 2), in_blocks=True),
        "difference: the largest; at most: what rounding makes, by the largest value",
    ]
    if without_tokenizer:
        lines.append(
            f"tokenization is not compared: {without_tokenizer} has none of {', '.join(TOKENIZERS)}"
        )
    wrong = [
        f"{gap.input}, {gap.what} {row[3]}"
        for gap, row in zip(gaps, rows[1:], strict=True)
        if not gap.largest <= gap.most
    ]  # NaN is wrong, too
    return "\n".join(lines), wrong


def _tolerance(checkpoint: str, description: Description, folder: str) -> float:
    """Of differences, relative to the largest value: more where one side was rounded."""
    stored = write.stored_layout(checkpoint, description)
    ours = {str(leaf.dtype) for path, leaf in stored.items() if path.startswith("encoder/")}
    theirs = {str(tensor.dtype) for tensor in open_folder(folder).values()}
    return SAME_WEIGHTS if ours & theirs else ROUNDED_WEIGHTS


def make_outputs(
    model: Model, description: Description, heads: Collection[str | None]
) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """Builds the function that tells what these heads make of padded sentences.

    It takes tokens, int [B, L], and bool [B, L], False where there is padding; and gives "hidden"
    [B, L, D], and by the names of Transformers' outputs "logits", or "start_logits" and
    "end_logits", and "pooler_output".
    """
    graph, params = nnx.split(model)
    kinds = {n: s.get("kind", n) for n, s in description.heads.items() if n in heads}

    @jax.jit
    def run(params: Any, tokens: jax.Array, segments: jax.Array) -> dict[str, jax.Array]:
        merged = nnx.merge(graph, params)
        positions = None
        if merged.encoder.config.position_offset:  # RoBERTas count real tokens only
            positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
        hidden = merged.encoder(tokens, segment_ids=segments, positions=positions)
        values = {"hidden": hidden}
        for name, kind in kinds.items():
            head = merged.heads[name]
            if kind == MLM_HEAD:
                _, table_VxD, bias_V = mlm_prediction(merged)
                values["logits"] = head.features(hidden) @ table_VxD.T + bias_V
            elif kind == "pooler":
                values["pooler_output"] = head(hidden[:, 0])
            elif kind == "classification":
                scores = head(hidden, segments)
                if name == "question":
                    values["start_logits"], values["end_logits"] = scores[..., 0], scores[..., 1]
                else:
                    values["logits"] = scores if head.pooling == "tokens" else scores[:, 0]
        return values

    def outputs(tokens: np.ndarray, real: np.ndarray) -> dict[str, np.ndarray]:
        values = run(params, jnp.asarray(tokens), jnp.asarray(real.astype(np.int32)))
        return {name: np.asarray(value, np.float32) for name, value in values.items()}

    return outputs


def _sentences(
    model: Model, head: str, ids: list[list[int]], pad: int, folder: str, texts: Sequence[str]
) -> float:
    """1 - the smallest cosine of the two embeddings of a sentence."""
    import sentence_transformers as st

    graph, params = nnx.split(model)

    @jax.jit
    def embed(params: Any, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        merged = nnx.merge(graph, params)
        module = merged.heads[head]
        (hidden,) = merged.encoder(tokens, segment_ids=segments, layers=(module.layer,))
        return module(pool(hidden, segments, 1, module.pooling))[:, 0]

    theirs_model = st.SentenceTransformer(folder, device="cpu")
    longest = theirs_model.max_seq_length or model.encoder.config.max_positions
    theirs = theirs_model.encode(list(texts), normalize_embeddings=True)
    batches = _batches([_cut(s, longest) for s in ids], pad, longest, f"text, {head}")
    ours = np.concatenate([embed(params, t, r.astype(np.int32)) for t, r in batches])
    ours = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    cosine = (ours * theirs).sum(axis=1)
    return float(1 - cosine.min())


def _cut(sentence: list[int], longest: int) -> list[int]:
    """Without what is too long; the last token, which ends a sentence, stays."""
    return [*sentence[: min(len(sentence), longest) - 1], sentence[-1]]


def _batches(
    sentences: Sequence[Sequence[int]], pad: int, longest: int, what: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens int[B, L], real bool[B, L]), padded to one of few lengths, as each is compiled."""
    with progress(len(sentences), what, "sentences") as done:
        for start in range(0, len(sentences), BATCH):
            batch = sentences[start : start + BATCH]
            width = min(-(-max(map(len, batch)) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, longest)
            tokens = np.array([[*s, *[pad] * (width - len(s))] for s in batch])
            yield tokens, np.arange(width) < np.array([len(s) for s in batch])[:, None]
            done(len(batch))


def _their_outputs(out: Any) -> dict[str, Any]:
    names = {"last_hidden_state": "hidden"}
    return {names.get(k, k): v for k, v in out.items() if hasattr(v, "numpy")}
