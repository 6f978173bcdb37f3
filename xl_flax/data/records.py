"""Packed rows as bytes, and the ArrayRecord files that hold them.

A record, little-endian: uint16 number of segments s, uint16 number of pieces p, uint16[s] lengths
of the segments, uint32[p, 4] pieces (segment, example, index, count), then the token ids of all
segments back to back, uint16 where the vocabulary fits and uint32 where it does not. Files are not
compressed: a row is read by itself, and token ids hardly shrink.

Where the task declares features, numbers of four bytes follow: of each of the e examples (or pieces
of one) its number in the split int32[e] and which piece it is int32[e], then the features in the
order of their names: "example" [e], "token" one for each token id, "span" [e, 2] as positions in
the row. Last come features that are text: uint32[e] lengths in bytes, and UTF-8.

In a file each record ends in its CRC-32, whose initial value is the mark of its split plus its
index. A row that is damaged, in another place or another split's is thus never read for the right
one, at the cost of 1 µs and without reading files through when they are opened.
"""

import dataclasses
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from xl_flax.data.features import NO_FEATURES, Features, batched
from xl_flax.data.framing import Part, Piece
from xl_flax.errors import UserError
from xl_flax.files.read import check_regular

SHARD_BYTES = 2**28
UNIGRAMS = "unigrams.npz"  # beside them
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


def encode_row(row: Sequence[Part], dtype: np.dtype, specs: Features = NO_FEATURES) -> bytes:
    """One packed row as the bytes of a record."""
    segments = [ids for part in row for ids in part.segments]
    texts = len(row[0].segments)
    # The segment of a piece is that of its example's last text.
    pieces = [((i + 1) * texts - 1, *part.piece) for i, part in enumerate(row) if part.piece]
    lengths = np.array([len(ids) for ids in segments], "<u2")
    ids = np.concatenate(segments).astype(dtype)
    return b"".join(
        [
            struct.pack("<HH", len(segments), len(pieces)),
            lengths.tobytes(),
            np.array(pieces, "<u4").tobytes(),
            ids.tobytes(),
            *(_encode_features(row, specs) if specs else ()),
        ]
    )


def _encode_features(row: Sequence[Part], specs: Features) -> Iterator[bytes]:
    yield np.array([part.number for part in row], "<i4").tobytes()
    yield np.array([part.piece.index if part.piece else 0 for part in row], "<i4").tobytes()
    begins = np.cumsum([0, *(part.size for part in row[:-1])])
    for key, spec in batched(specs):
        values = [part.features[key] for part in row]
        if spec.kind == "span":
            values = [v if v[0] < 0 else v + b for v, b in zip(values, begins, strict=True)]
        values = np.concatenate(values) if spec.kind != "example" else np.array(values)
        yield values.astype(spec.numpy).tobytes()
    for key in _texts(specs):
        texts = [part.features[key].encode() for part in row]
        yield np.array([len(text) for text in texts], "<u4").tobytes()
        yield b"".join(texts)


def _texts(specs: Features) -> list[str]:
    return [key for key, spec in specs.items() if spec.kind == "text"]


def _split(
    record: bytes, dtype: np.dtype, specs: Features
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """A record's lengths uint16[s], pieces uint32[p, 4] and ids [n], not copied, and their end."""
    count, cut = struct.unpack_from("<HH", record)
    lengths = np.frombuffer(record, "<u2", count, 4)
    pieces = np.frombuffer(record, "<u4", 4 * cut, 4 + 2 * count).reshape(cut, 4)
    begin = 4 + 2 * count + 16 * cut
    size = int(lengths.sum(dtype=np.int64)) if specs else -1
    ids = np.frombuffer(record, dtype, size, begin)
    return lengths, pieces, ids, begin + ids.nbytes


def _decode_features(
    record: bytes, at: int, parts: int, tokens: int, specs: Features
) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """Numbers and pieces int32[2, parts], features without text, and where they end."""
    numbers = np.frombuffer(record, "<i4", 2 * parts, at).reshape(2, parts)
    at += numbers.nbytes
    features = {}
    for key, spec in batched(specs):
        count = {"example": parts, "span": 2 * parts, "token": tokens}[spec.kind]
        values = np.frombuffer(record, spec.numpy, count, at)
        features[key] = values.reshape(parts, 2) if spec.kind == "span" else values
        at += values.nbytes
    return numbers, features, at


def decode_row(
    record: bytes, dtype: np.dtype, num_texts: int = 1, specs: Features = NO_FEATURES
) -> list[Part]:
    """The parts of one record; undoes `encode_row`."""
    lengths, pieces, ids, at = _split(record, dtype, specs)
    places = {int(p[0]) // num_texts: Piece(*map(int, p[1:])) for p in pieces}
    ids = np.split(ids, np.cumsum(lengths[:-1], dtype=np.int64))
    sizes = lengths.reshape(-1, num_texts).sum(axis=1, dtype=np.int64).tolist()
    parts = [
        Part(tuple(ids[i * num_texts : (i + 1) * num_texts]), size, places.get(i))
        for i, size in enumerate(sizes)
    ]
    if not specs:
        return parts
    begins = np.cumsum([0, *sizes])
    (numbers, _), arrays, at = _decode_features(record, at, len(parts), sum(sizes), specs)
    features: list[dict[str, Any]] = [{} for _ in parts]
    for key, spec in batched(specs):
        for i, own in enumerate(features):
            if spec.kind == "token":
                own[key] = arrays[key][begins[i] : begins[i + 1]]
            elif spec.kind == "span":
                own[key] = arrays[key][i] - begins[i] * (arrays[key][i] >= 0)
            else:
                own[key] = arrays[key][i]
    for key in _texts(specs):
        lengths = np.frombuffer(record, "<u4", len(parts), at)
        at += lengths.nbytes
        for own, length in zip(features, lengths.tolist(), strict=True):
            own[key] = record[at : at + length].decode()
            at += length
    return [
        part._replace(number=int(number), features=own)
        for part, number, own in zip(parts, numbers, features, strict=True)
    ]


def decode_rows(
    records: Sequence[bytes],
    length: int,
    dtype: np.dtype,
    pad_id: int,
    *,
    num_texts: int = 1,
    examples_per_row: int = 0,
    specs: Features = NO_FEATURES,
) -> dict[str, np.ndarray]:
    """Many records as one batch.

    Returns:
      tokens int32[n, length], `pad_id` behind the last segment; segment_ids int32[n, length],
      1, 2, ... by segment and 0 for padding; positions int32[n, length], from 0 in each segment.
      With features also these, and the example's number and piece int32[n, examples_per_row].
    """
    shape = (len(records), length)
    batch = {
        "tokens": np.full(shape, pad_id, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
    if specs:
        batch |= _empty_features(len(records), length, examples_per_row, specs)
    if not records:
        return batch
    # One pass over the rows for the bytes, and then every row's segments at once.
    counts, used, lengths = [], [], []
    for i, (row, record) in enumerate(zip(batch["tokens"], records, strict=True)):
        row_lengths, _, ids, at = _split(record, dtype, specs)
        row[: len(ids)] = ids
        counts.append(len(row_lengths))
        used.append(len(ids))
        lengths.append(row_lengths)
        if specs:
            parts = len(row_lengths) // num_texts
            numbers, features, _ = _decode_features(record, at, parts, len(ids), specs)
            batch["example"][i, :parts], batch["piece"][i, :parts] = numbers
            for key, values in features.items():
                batch[key][i, : len(values)] = values
    lengths = np.concatenate(lengths).astype(np.int32)
    counts, used = np.array(counts), np.array(used)
    number = np.arange(1, len(lengths) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    filled = np.arange(length) < used[:, None]
    batch["segment_ids"][filled] = np.repeat(number, lengths)
    begin = np.cumsum(lengths) - lengths
    batch["positions"][filled] = np.arange(used.sum()) - np.repeat(begin, lengths)
    return batch


def _empty_features(
    rows: int, length: int, examples_per_row: int, specs: Features
) -> dict[str, np.ndarray]:
    places = (rows, examples_per_row)
    arrays = {name: np.full(places, -1, np.int32) for name in ("example", "piece")}
    for key, spec in batched(specs):
        shape = {"example": places, "span": (*places, 2), "token": (rows, length)}[spec.kind]
        arrays[key] = np.full(shape, spec.nothing, spec.numpy)
    return arrays


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file of a cached split."""

    name: str
    rows: int
    bytes: int


def _checksum(record: bytes, mark: int, index: int) -> bytes:
    return zlib.crc32(record, (mark + index) % 2**32).to_bytes(4, "little")


def write_shards(folder: Path, records: Iterator[bytes], mark: int) -> list[Shard]:
    """Writes records to `rows-00000-of-0000N.arrayrecord`; a new file every 256 MiB.

    Args:
      folder: an empty one.
      records: of the rows of a split.
      mark: of the split, a number below 2^32 that is hardly another's.
    """
    counts = []
    writer = None
    for index, record in enumerate(records):
        if writer is None:
            path = folder / f"rows-{len(counts):05d}"
            writer, size = ArrayRecordWriter(str(path), "group_size:1,uncompressed"), 0
            counts.append(0)
        writer.write(record + _checksum(record, mark, index))
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
        os.rename(folder / f"rows-{i:05d}", path)
        shards.append(Shard(path.name, rows, os.path.getsize(path)))
    return shards


def check_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Compares the files with what was written; opens none of them.

    Raises:
      UserError: a file is missing or has another size.
    """
    for shard in shards:
        path = folder / shard.name
        check_regular(path, REBUILD)
        size = os.path.getsize(path)
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

    Files are opened when they are first read.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], mark: int, tag: Any = 0):
        self._mark, self._tag = mark, tag
        self._folder, self._shards = folder, shards
        self._source = grain.sources.ArrayRecordDataSource(
            [_Instruction(str(folder / s.name), 0, s.rows, s.rows) for s in shards]
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Any, bytes]:
        try:
            stored = self._source[index]
        except (RuntimeError, IndexError) as error:
            raise self._damaged(index, "cannot be read") from error
        record = stored[:-4]
        if stored[-4:] != _checksum(record, self._mark, index):
            raise self._damaged(index, "is not what was written")
        return self._tag, record

    def _damaged(self, index: int, what: str) -> UserError:
        ends = np.cumsum([s.rows for s in self._shards])
        path = self._folder / self._shards[int(np.searchsorted(ends, index, "right"))].name
        return UserError(f"cache file {path}: row {index} {what}: {OVERWRITE}")
