"""Hidden states of the pieces or words of sentences, computed on packed rows.

Shapes: Layers, Batch, Length, n pieces of a sentence, W words, D = width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from flax import nnx

from xl_flax.data.features import Example
from xl_flax.data.prepare import DatasetSpec
from xl_flax.data.vocabulary import SpecialIds
from xl_flax.errors import UserError
from xl_flax.evaluation.ahead import rows_per_batch
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.embed import (
    ROW,
    TOKENS_PER_DEVICE,
    Batch,
    packed_batches,
    run_batches,
    show_progress,
)
from xl_flax.ops.languages import language_rows
from xl_flax.parallel.rules import Partitioning

BATCHES_IN_MEMORY = 16  # sentences are sorted into rows within so many batches

WordState = Literal["mean", "first"]


def mixture_states(
    subject: Subject,
    context: Context,
    spec: DatasetSpec,
    layers: Sequence[int],
    *,
    word_state: WordState | None = None,
    text: int = 0,
    length: int = 128,
) -> Iterator[tuple[str, Example, np.ndarray]]:
    """Iterates over the examples of a mixture with the states of their pieces or words.

    Args:
      subject: whose states.
      context: with the mixture among its caches.
      spec: the mixture; its examples come task by task, as of `Context.examples`.
      layers: 0 = embeddings, i = after layer i, -1 = the last; no deeper layer is run.
      word_state: "mean" or "first": states of words, which the feature "word" of the tasks says
        (`tasks.labelled.add_word_task`). None: of pieces.
      text: which text of an example.
      length: longest input, special tokens included; a longer text is cut.

    Yields:
      The task's name, the example with its features, and float32[Layers, n or W, D] as of
      `token_states`.

    Raises:
      UserError: a task does not say which pieces belong to a word.
    """
    layers = subject.description.encoder.layer_numbers(layers)
    states = context.once(
        ("states", subject.graph, layers),
        lambda: make_states(subject.graph, layers, context.partitioning),
    )
    _, manifests, _ = context.caches[spec]
    for task, manifest in manifests.items():
        if word_state and "word" not in manifest.features:
            raise UserError(
                f"word_state = {word_state!r}: task {task!r} declares no feature 'word'; make it "
                "with tasks.labelled.add_word_task, or ask for the states of pieces (None)"
            )
    for task, examples in context.examples(spec).items():
        language = manifests[task].languages[text]
        rows = language_rows([language], subject.description.all_languages)
        every = token_states(
            states,
            subject.params,
            [example.texts[text] for example in examples],
            context.vocabulary.special,
            length,
            context.partitioning,
            languages=np.repeat(rows, len(examples)),
            words=[e.features["word"][text] for e in examples] if word_state else None,
            word_state=word_state or "mean",
        )
        for example, own in zip(examples, every, strict=True):
            yield task, example, own


def make_states(
    graph: nnx.GraphDef, layers: Sequence[int], partitioning: Partitioning
) -> Callable[..., tuple[jax.Array, ...]]:
    """Builds the jitted `states(params, tokens, segment_ids, positions, languages)`, int32[B, L].

    It returns [B, L, D] for each layer, in the dtype of computation.

    Args:
      graph: of the model; its parameters are an argument, so a sweep compiles once.
      layers: 0 = embeddings, i = after layer i, -1 = the last; no deeper layer is run.
      partitioning: the batch is spread over its data axes.
    """

    def states(params: Any, tokens_BxL, segment_ids_BxL, positions_BxL, languages_BxL):
        with partitioning.activate():
            return nnx.merge(graph, params).encoder(
                tokens_BxL,
                segment_ids=segment_ids_BxL,
                positions=positions_BxL,
                languages=languages_BxL,
                layers=layers,
            )

    return jax.jit(states, out_shardings=partitioning.sharding(()))


def token_states(
    states: Callable[..., tuple[jax.Array, ...]],
    params: Any,
    sentences: Sequence[np.ndarray],
    special: SpecialIds,
    length: int,
    partitioning: Partitioning,
    progress: str | None = None,
    languages: np.ndarray | None = None,
    words: Sequence[np.ndarray] | None = None,
    word_state: WordState = "mean",
) -> Iterator[np.ndarray]:
    """Iterates over the states of each sentence's pieces, or of its words, in the order given.

    Only the sentences of a few batches are in memory at a time.

    Args:
      states: from `make_states`.
      params: of the model.
      sentences: int[n] tokens of each, without special tokens.
      special: ids of the special tokens that are put around a sentence.
      length: longest input, special tokens included; a longer sentence is cut.
      partitioning: that `states` was made with.
      progress: what is being done, for those who wait; None: nothing is shown.
      languages: int32[sentences], rows of the encoder's language table; None: none is added.
      words: int[n] for each sentence, the number of the word that each piece belongs to, negative
        for a piece of no word. None: states of pieces.
      word_state: "mean" of the word's pieces, or the "first" of them.

    Yields:
      float32[Layers, n, D] without special tokens, n at most `length` - 2. With `words`
      float32[Layers, W, D]: the words that have a piece among these n, in order of their numbers.

    Raises:
      UserError: a sentence has not one word number for each piece, or there is no such
        `word_state`.
    """
    if word_state not in get_args(WordState):
        raise UserError(f"word_state = {word_state!r}: choose 'mean' or 'first'")
    for i, sentence in enumerate(sentences if words is not None else ()):
        if len(words[i]) != len(sentence):
            raise UserError(
                f"words: sentence {i} has {len(sentence)} pieces and {len(words[i])} word numbers"
            )
    batches = _batches_in_order(sentences, languages, special, length, partitioning)
    waiting: dict[int, np.ndarray] = {}  # states of sentences behind one that has none yet
    following = 0
    with show_progress(len(sentences), progress) as done:
        for batch, layers in run_batches(states, params, batches, partitioning):
            for member, row, column in zip(batch.members, batch.row, batch.column, strict=True):
                first = column + 1  # behind [CLS]
                pieces = slice(first, first + min(len(sentences[member]), length - 2))
                own = np.stack([state[row, pieces].astype(np.float32) for state in layers])
                if words is not None:
                    own = _by_word(own, words[member][: own.shape[1]], word_state)
                waiting[int(member)] = own
            while following in waiting:
                yield waiting.pop(following)
                following += 1
                done(1)


def _batches_in_order(
    sentences: Sequence[np.ndarray],
    languages: np.ndarray | None,
    special: SpecialIds,
    length: int,
    partitioning: Partitioning,
) -> Iterator[Batch]:
    """Yields batches of a part of the sentences, then of the next: only within one they mix."""
    sizes = np.array([min(len(s), length - 2) + 2 for s in sentences], int)
    budget = BATCHES_IN_MEMORY * ROW * rows_per_batch(ROW, TOKENS_PER_DEVICE, partitioning)
    part = np.cumsum(sizes) // budget
    for members in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(part)) + 1):
        if len(members):
            chosen = [sentences[i] for i in members]
            own = None if languages is None else languages[members]
            for batch in packed_batches(chosen, own, special, length, partitioning):
                yield batch._replace(members=members[batch.members])


def _by_word(states_LxNxD: np.ndarray, words_N: np.ndarray, word_state: WordState) -> np.ndarray:
    """The words' states, float32[Layers, W, D], from those of their pieces."""
    words_N = np.asarray(words_N)
    numbers_W, first_W = np.unique(words_N, return_index=True)
    first_W, numbers_W = first_W[numbers_W >= 0], numbers_W[numbers_W >= 0]
    if word_state == "first":
        return states_LxNxD[:, first_W]
    share_WxN = (numbers_W[:, None] == words_N).astype(np.float32)
    return (share_WxN / share_WxN.sum(axis=1, keepdims=True)) @ states_LxNxD
