"""Data sets that TensorFlow Datasets has prepared on this machine.

TFDS finds them in TFDS_DATA_DIR; nothing is downloaded unasked, since some take tens of gigabytes.
"""

import os
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from xl_flax.errors import UserError


class PreparedTfds(seqio.TfdsDataSource):
    """A prepared data set; it says how to get it where TFDS has not prepared it."""

    def __init__(
        self,
        name: str,
        splits: Mapping[str, str] | Sequence[str] | None = None,
        data_dir: str | None = None,
    ):
        """The source.

        Args:
          name: "name/config:version" or "name:version", as TFDS has it.
          splits: as for `seqio.TfdsDataSource`.
          data_dir: where TFDS has prepared it; TFDS_DATA_DIR by default.
        """
        super().__init__(name, tfds_data_dir=data_dir, splits=splits, read_only=True)

    def get_dataset(self, split: str = "train", shuffle: bool = False, **kwargs) -> tf.data.Dataset:
        """The examples, as TFDS has them."""
        self._check()
        return super().get_dataset(split, shuffle, **kwargs)

    def num_input_examples(self, split: str) -> int:
        """The number of examples."""
        self._check()
        return super().num_input_examples(split)

    def list_shards(self, split: str) -> Sequence[str]:
        """The TFRecord files."""
        self._check()
        return super().list_shards(split)

    def missing_files(self, split: str) -> list[str]:
        """The folder of the prepared data set, where it is not there."""
        del split
        root = self.tfds_dataset.data_dir or os.environ.get(
            "TFDS_DATA_DIR", "~/tensorflow_datasets"
        )
        folder = os.path.join(os.path.expanduser(root), *self.tfds_dataset.name.split(":"))
        return [] if tf.io.gfile.isdir(folder) else [folder]

    def _check(self) -> None:
        # TFDS itself would ask Google Cloud Storage first, which hangs where there is no network.
        for folder in self.missing_files(""):
            name = self.tfds_dataset.name.split(":")[0]
            raise UserError(
                f"TFDS has not prepared {name} in {folder}: set TFDS_DATA_DIR to where it is, or "
                f'fetch it with python -c "import tensorflow_datasets as tfds; '
                f"tfds.load('{name}', try_gcs=True)\""
            )
