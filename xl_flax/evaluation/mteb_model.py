"""A checkpoint as a model of mteb (Muennighoff et al. 2023), whose tasks it then runs.

    import mteb
    from xl_flax.evaluation.mteb_model import MtebModel

    model = MtebModel("runs/bible", layer=3)
    mteb.evaluate(model, mteb.get_tasks(tasks=["Tatoeba"]))

Needs the extra `mteb`. Tasks fetch their text from the Hugging Face Hub, unless they are your own.
"""

import os
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from xl_flax.checkpoints.load import load_parts, one_checkpoint, vocabulary_path
from xl_flax.data.vocabulary import load_vocabulary
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.embed import embed, make_pool
from xl_flax.evaluation.sentences import SentenceEvaluation
from xl_flax.ops.languages import language_rows
from xl_flax.ops.pooling import Pooling
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.parallel.rules import Partitioning


class MtebModel(AbsEncoder):
    """Gives mteb the vectors of sentences, as `SentenceRetrieval` takes them."""

    def __init__(
        self,
        checkpoint: str,
        layer: int = -1,
        pooling: Pooling = "mean",
        head: str | None = None,
        length: int = 128,
        language: str | None = None,
        partitioning: Partitioning | None = None,
    ):
        """Loads a checkpoint.

        Args:
          checkpoint: a run's folder, its `checkpoints/`, or one checkpoint; ":best" behind a run is
            its best one.
          layer: 0 = embeddings, -1 = the last one.
          pooling: how token vectors become one.
          head: a sentence head of the model, with its own layer and pooling.
          length: longest input in tokens; longer ones are cut.
          language: of all sentences, for a model with a table of languages.
          partitioning: where the parameters go; by default all devices along the data axis.

        Raises:
          UserError: no such checkpoint, layer or head.
        """
        path = one_checkpoint(checkpoint)
        self._devices = partitioning or make_partitioning(MeshConfig())
        graph, self._params, description = load_parts(path, self._devices)
        how = SentenceEvaluation(
            mixture="mteb", layers=[layer], pooling=pooling, head=head, length=length
        )
        encoding = how.encoding(description)
        self._pool = make_pool(graph, encoding, self._devices)
        self._vocabulary = load_vocabulary(vocabulary_path(path))
        self._length = min(length, description.encoder.max_positions)
        self._language = language_rows([language or ""], description.all_languages)[0]
        run = os.path.basename(results_lib.run_folder(path))
        named = f"layer{encoding.layers[0]}-{encoding.pooling}" + (f"-{head}" if head else "")
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"xl-flax/{run}-{named}",
                "revision": results_lib.checkpoint_source(path, description.step).id,
                "max_tokens": self._length,
                "embed_dim": description.encoder.width if head is None else None,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """Embeds sentences.

        Args:
          inputs: batches with a list "text" each, as mteb's tasks give them.

        Returns:
          float32[sentences, D].
        """
        texts = [text for batch in inputs for text in batch["text"]]
        sentences = [np.array(self._vocabulary.encode(text), np.int32) for text in texts]
        (vectors,) = embed(
            self._pool,
            self._params,
            sentences,
            self._vocabulary.special,
            self._length,
            self._devices,
            languages=np.full(len(texts), self._language),
        )
        return vectors
