import numpy as np
import pytest

from xl_flax.data.framing import Part, Piece
from xl_flax.data.records import (
    RowSource,
    check_shards,
    decode_row,
    decode_rows,
    encode_row,
    ids_dtype,
    write_shards,
)
from xl_flax.errors import UserError

MARK = 2**32 - 5  # and the rows' checksums begin anew at 0
ROW = [
    Part((np.array([0, 7, 8, 2]),), 4),
    Part((np.array([0, 9, 2]),), 3, Piece(example=70_000, index=3, count=5)),
]


@pytest.mark.parametrize("vocab_size", [1000, 65_536, 65_537, 250_002])
def test_a_row_survives_the_round_trip(vocab_size):
    dtype = ids_dtype(vocab_size)
    row = [*ROW, Part((np.array([0, vocab_size - 1, 2]),), 3)]
    back = decode_row(encode_row(row, dtype), dtype)
    assert [p.segments[0].tolist() for p in back] == [p.segments[0].tolist() for p in row]
    assert [p.piece for p in back] == [None, ROW[1].piece, None]


def test_decoded_rows_mark_segments_and_positions():
    dtype = ids_dtype(100)
    batch = decode_rows([encode_row(ROW, dtype), encode_row(ROW[1:], dtype)], 8, dtype, pad_id=1)
    assert batch["tokens"].tolist() == [[0, 7, 8, 2, 0, 9, 2, 1], [0, 9, 2, 1, 1, 1, 1, 1]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert all(array.dtype == np.int32 for array in batch.values())


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setattr("xl_flax.data.records.SHARD_BYTES", 1000)
    records = (encode_row([Part((np.full(100, i),), 100)], ids_dtype(100)) for i in range(10))
    return tmp_path, write_shards(tmp_path, records, MARK)


def test_shards_are_read_as_one(shards):
    folder, written = shards
    assert [s.rows for s in written] == [5, 5]
    assert written[0].name == "rows-00000-of-00002.arrayrecord"
    source = RowSource(folder, written, MARK, tag=3)
    assert len(source) == 10
    tags, records = zip(*(source[i] for i in range(10)), strict=True)
    assert set(tags) == {3}
    assert [int(decode_row(r, ids_dtype(100))[0].segments[0][0]) for r in records] == list(
        range(10)
    )


def test_missing_and_truncated_files_are_named(shards):
    folder, written = shards
    path = folder / written[1].name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"rows-00001-of-00002.*bytes instead of.*xl_flax.cache"):
        check_shards(folder, written)
    path.unlink()
    with pytest.raises(UserError, match=r"rows-00001-of-00002.arrayrecord is missing"):
        check_shards(folder, written)


def test_flipped_bits_are_an_error_and_never_a_wrong_row(shards):
    folder, written = shards
    path = folder / written[1].name
    data = bytearray(path.read_bytes())
    at = data.index(np.full(100, 7, "<u2").tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    check_shards(folder, written)  # the size is the same
    source = RowSource(folder, written, MARK)
    source[6]
    with pytest.raises(UserError, match=r"rows-00001-of-00002.arrayrecord: row 7 cannot be read"):
        source[7]


def test_rows_of_another_place_or_split_are_an_error(shards, tmp_path):
    folder, written = shards
    with pytest.raises(UserError, match="row 3 is not what was written: run `python -m xl_flax"):
        RowSource(folder, written, MARK + 1)[3]
    paths = [folder / shard.name for shard in written]
    paths[0].rename(tmp_path / "first")
    paths[1].rename(paths[0])
    (tmp_path / "first").rename(paths[1])
    check_shards(folder, written)  # both have the same size
    source = RowSource(folder, written, MARK)
    for index in range(10):
        with pytest.raises(UserError, match=f"row {index} is not what was written"):
            source[index]
