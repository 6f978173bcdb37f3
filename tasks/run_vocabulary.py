"""The vocabulary of the run as a vocabulary of seqio."""

from collections.abc import Sequence

import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from xl_flax.data import long_texts, vocabulary

LONG_BYTES = 2**14  # texts from here are tokenised in Python


class RunVocabulary(seqio.Vocabulary):
    """The vocabulary of the run, `run_vocabulary.path` in Gin, read when it is first used."""

    @property
    def pad_id(self) -> int:
        """The id of `<pad>` or `[PAD]`."""
        return self._vocabulary.special.pad

    @property
    def bos_id(self) -> int:
        """The id of `<s>` or `[CLS]`."""
        return self._vocabulary.special.cls

    @property
    def eos_id(self) -> int:
        """The id of `</s>` or `[SEP]`."""
        return self._vocabulary.special.sep

    @property
    def unk_id(self) -> int:
        """The id of `<unk>` or `[UNK]`."""
        return self._vocabulary.special.unk

    @property
    def _vocabulary(self) -> vocabulary.Vocabulary:
        return vocabulary.run_vocabulary()

    @property
    def _base_vocab_size(self) -> int:
        return self._vocabulary.size

    def _encode(self, s: str) -> list[int]:
        return self._vocabulary.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        if not isinstance(self._vocabulary, vocabulary.SentencePieceVocabulary):
            return self._encode_in_python(s)
        # In TensorFlow's version the time grows with the square of a run of unknown characters.
        is_long = tf.reduce_any(tf.strings.length(s) > LONG_BYTES)
        tokenize = self._tokenizer().tokenize
        return tf.cond(is_long, lambda: self._encode_in_python(s), lambda: tokenize(s))

    def _encode_in_python(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: tf.Tensor) -> tf.Tensor:
            ids = lambda text: long_texts.encode(self._vocabulary, text.decode())  # noqa: E731
            return tf.ensure_shape(tf.numpy_function(ids, [text], tf.int32), [None])

        if s.shape.rank == 0:
            return encode(s)
        return tf.map_fn(encode, s, fn_output_signature=tf.RaggedTensorSpec([None], tf.int32))

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        if isinstance(self._vocabulary, vocabulary.SentencePieceVocabulary):
            return self._tokenizer().detokenize(ids)
        return tf.ensure_shape(tf.numpy_function(self._decode, [ids], tf.string), [])

    def _tokenizer(self) -> tf_text.SentencepieceTokenizer:
        with open(self._vocabulary.path, "rb") as file:
            return tf_text.SentencepieceTokenizer(model=file.read())

    def __eq__(self, other: object) -> bool:
        """All are the one vocabulary of the run: seqio mixes only tasks with equal ones."""
        return isinstance(other, RunVocabulary)

    __hash__ = None
