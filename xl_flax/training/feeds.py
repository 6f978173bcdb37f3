"""What belongs to one objective of a run: its rows, its buffers, and how far it has read."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from xl_flax.data.batches import Batch, Prefetcher, Whole, global_batch
from xl_flax.data.stream import Stream
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.objectives.base import Objective
from xl_flax.parallel.rules import Partitioning


class Feed:
    """An objective with the stream that it reads.

    Attributes:
      objective: the objective.
      stream: its rows.
      buffers: its constant arrays, a copy on each device.
      rows: how many it has consumed, which a checkpoint remembers; examples, where batches count
        these.
      size: rows of the batch that it gave last.
    """

    def __init__(
        self,
        objective: Objective,
        stream: Stream,
        vocabulary: Vocabulary,
        languages: Sequence[str],
        partitioning: Partitioning,
        parts: int,
    ):
        """The feed of an objective whose batches are cut into so many parts."""
        objective.check(stream)
        self.objective, self.stream, self.rows, self.size = objective, stream, 0, 0
        buffers = objective.buffers(vocabulary, stream, languages)
        self.buffers = jax.device_put(buffers, partitioning.sharding(()))
        self._sharding = partitioning.sharding(("batch",))
        self._multiple = parts * partitioning.batch_shards
        self._prefetcher: Prefetcher | None = None

    def phase(self) -> Any:
        """The static value of the next batch, as a masking rate."""
        return self.objective.phase_at(self.rows)

    def changes(self) -> dict[str, Any]:
        """What begins with the next batch: "batch_size", "mixture", "phase" or none; its new value.

        A batch has the size and the phase of its first row, but may hold rows of two mixtures.
        """
        size, changes = self.objective.batch_at(self.rows), {}
        before = self._row_before()
        if self.objective.batch_at(before) != size:
            changes["batch_size"] = size
        for first, mixture in self.objective.rows.phases[1:]:
            if self.rows <= first < self.rows + size:
                changes["mixture"] = mixture
        if self.objective.phase_at(before) != self.phase():
            changes["phase"] = self.phase()
        return changes

    def _row_before(self) -> int:
        """The row at which the batch before the next one began; 0 if there was none."""
        begin = 0  # of the first batch of a size
        for (_, size), (end, _) in itertools.pairwise(
            [*self.objective.batch_phases, (self.rows, 0)]
        ):
            begin += max(0, -(-(end - begin) // size)) * size
            if self.rows <= begin:
                break
        return max(self.rows - size, 0)

    def first_batch(self) -> Batch:
        """The batch at which the stream begins, read here and now."""
        return self._read(0)

    def start(self) -> None:
        """Begins to read batches ahead, from `rows` on."""
        self._prefetcher = Prefetcher(self._read, self.rows, self.objective.batch_at)

    def _read(self, row: int) -> Batch:
        size = self.objective.batch_at(row)
        if not self.stream.by_example:
            return global_batch(self.stream, row, size, self._sharding)
        packed = self.stream.packed(row, size, self._multiple)
        return global_batch(Whole(packed), 0, len(packed["tokens"]), self._sharding)

    def next(self) -> tuple[Batch, float]:
        """The next batch, and the seconds spent waiting for it."""
        batch, waited = self._prefetcher.next()
        self.rows += self.objective.batch_at(self.rows)
        self.size = len(batch["tokens"])
        return batch, waited

    def close(self) -> None:
        """Stops reading ahead."""
        if self._prefetcher is not None:
            self._prefetcher.close()


def all_heads(objectives: Sequence[Objective], streams: Mapping[str, Stream]) -> dict[str, Any]:
    """The heads that the objectives train, by name.

    Raises:
      UserError: two objectives want different heads of one name.
    """
    heads: dict[str, Any] = {}
    for objective in objectives:
        for head, settings in objective.heads(streams[objective.name]).items():
            if heads.setdefault(head, settings) != settings:
                raise UserError(
                    f"objective {objective.name!r} and another one want different heads {head!r}"
                )
    return heads
