"""Packed rows as bytes, and the ArrayRecord files that hold them.

A record, little-endian: uint16 number of segments s, uint16 number of pieces p, uint16[s] lengths
of the segments, uint32[p, 4] pieces (segment, example, index, count), then the token ids of all
segments back to back, uint16 where the vocabulary fits and uint32 where it does not. Files are not
compressed: a row is read by itself, and token ids hardly shrink.
"""

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from xl_flax.data.packing import Piece, Segment
from xl_flax.errors import UserError

MAX_LENGTH = 2**16 - 1  # lengths of segments are stored as uint16
SHARD_BYTES = 2**28
REBUILD = (
    "run `python -m xl_flax.cache` with the Gin flags of your run: it rebuilds what is damaged"
)
# For damage that a look at the sizes of files does not show.
OVERWRITE = (
    "run `python -m xl_flax.cache --overwrite` with the Gin flags of your run; --tasks=NAME "
    "rebuilds that task only"
)


def ids_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that holds every token id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def encode_row(row: Sequence[Segment], dtype: np.dtype) -> bytes:
    """One packed row as the bytes of a record."""
    pieces = [(i, *s.piece) for i, s in enumerate(row) if s.piece]
    lengths = np.array([len(s.ids) for s in row], "<u2")
    ids = np.concatenate([s.ids for s in row]).astype(dtype)
    return b"".join(
        [
            struct.pack("<HH", len(row), len(pieces)),
            lengths.tobytes(),
            np.array(pieces, "<u4").tobytes(),
            ids.tobytes(),
        ]
    )


def _split(record: bytes, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A record's lengths uint16[s], pieces uint32[p, 4] and ids [n], without a copy."""
    count, cut = struct.unpack_from("<HH", record)
    lengths = np.frombuffer(record, "<u2", count, 4)
    pieces = np.frombuffer(record, "<u4", 4 * cut, 4 + 2 * count).reshape(cut, 4)
    return lengths, pieces, np.frombuffer(record, dtype, -1, 4 + 2 * count + 16 * cut)


def decode_row(record: bytes, dtype: np.dtype) -> list[Segment]:
    """The segments of one record; undoes `encode_row`."""
    lengths, pieces, ids = _split(record, dtype)
    places = {int(p[0]): Piece(*map(int, p[1:])) for p in pieces}
    parts = np.split(ids, np.cumsum(lengths[:-1], dtype=np.int64))
    return [Segment(part, places.get(i)) for i, part in enumerate(parts)]


def decode_rows(
    records: Sequence[bytes], length: int, dtype: np.dtype, pad_id: int
) -> dict[str, np.ndarray]:
    """Many records as one batch.

    Returns:
      tokens int32[n, length], `pad_id` behind the last segment; segment_ids int32[n, length],
      1, 2, ... by segment and 0 for padding; positions int32[n, length], from 0 in each segment.
    """
    shape = (len(records), length)
    batch = {
        "tokens": np.full(shape, pad_id, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
    if not records:
        return batch
    # One pass over the rows for the bytes, and then every row's segments at once.
    counts, used, lengths = [], [], []
    for row, record in zip(batch["tokens"], records, strict=True):
        row_lengths, _, ids = _split(record, dtype)
        row[: len(ids)] = ids
        counts.append(len(row_lengths))
        used.append(len(ids))
        lengths.append(row_lengths)
    lengths = np.concatenate(lengths).astype(np.int32)
    counts, used = np.array(counts), np.array(used)
    number = np.arange(1, len(lengths) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    filled = np.arange(length) < used[:, None]
    batch["segment_ids"][filled] = np.repeat(number, lengths)
    begin = np.cumsum(lengths) - lengths
    batch["positions"][filled] = np.arange(used.sum()) - np.repeat(begin, lengths)
    return batch


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file of a cached split."""

    name: str
    rows: int
    bytes: int


def write_shards(folder: Path, records: Iterator[bytes]) -> list[Shard]:
    """Writes records to `rows-00000-of-0000N.arrayrecord`; a new file every 256 MiB."""
    counts = []
    writer = None
    for record in records:
        if writer is None:
            path = folder / f"rows-{len(counts):05d}"
            writer, size = ArrayRecordWriter(str(path), "group_size:1,uncompressed"), 0
            counts.append(0)
        writer.write(record)
        counts[-1] += 1
        size += len(record)
        if size >= SHARD_BYTES:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    shards = []
    for i, rows in enumerate(counts):
        path = folder / f"rows-{i:05d}-of-{len(counts):05d}.arrayrecord"
        (folder / f"rows-{i:05d}").rename(path)
        shards.append(Shard(path.name, rows, path.stat().st_size))
    return shards


def check_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Compares the files with what was written; opens none of them.

    Raises:
      UserError: a file is missing or has another size.
    """
    for shard in shards:
        path = folder / shard.name
        if not path.exists():
            raise UserError(f"cache file {path} is missing: {REBUILD}")
        size = path.stat().st_size
        if size != shard.bytes:
            raise UserError(
                f"cache file {path} has {size:,} bytes instead of {shard.bytes:,}: {REBUILD}"
            )


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """What ArrayRecordDataSource needs to know in order not to open a file before it is read."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RowSource:
    """Random access to the records of one cached split, each with a tag (its languages' ids).

    Files are opened when they are first read. Bytes are checked against the hashes that
    ArrayRecord stores, so a damaged row is an error and never a wrong row.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], tag: Any = 0):
        self._tag = tag
        self._folder, self._shards = folder, shards
        self._source = grain.sources.ArrayRecordDataSource(
            [_Instruction(str(folder / s.name), 0, s.rows, s.rows) for s in shards]
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Any, bytes]:
        try:
            return self._tag, self._source[index]
        except (RuntimeError, IndexError) as error:
            ends = np.cumsum([s.rows for s in self._shards])
            path = self._folder / self._shards[int(np.searchsorted(ends, index, "right"))].name
            raise UserError(f"cache file {path}: cannot read row {index}: {OVERWRITE}") from error
