import json
import re
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xl_flax.converters import tensors as lib
from xl_flax.errors import UserError

safetensors = pytest.importorskip("safetensors.numpy")

DTYPES = [np.float32, np.float16, np.int64, np.uint8]
ARRAYS = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.sampled_from(DTYPES).flatmap(
        lambda t: hnp.arrays(t, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    min_size=1,
    max_size=6,
)


def as_tensors(arrays):
    return {k: lib.Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in arrays.items()}


def write(folder, arrays, shard_bytes=1 << 30):
    folder.mkdir(exist_ok=True)
    lib.write_folder(str(folder), as_tensors(arrays), shard_bytes, lambda _: None)
    return folder


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape)
        assert a[key].tobytes() == b[key].tobytes()


@settings(max_examples=50, deadline=None)
@given(arrays=ARRAYS, shard_bytes=st.sampled_from([1, 40, 1 << 30]))
def test_what_is_written_is_what_the_library_reads_and_the_other_way_round(
    tmp_path_factory, arrays, shard_bytes
):
    folder = write(tmp_path_factory.mktemp("t"), arrays, shard_bytes)
    theirs = {}
    for file in folder.glob("*.safetensors"):
        theirs |= safetensors.load_file(file)
    same(theirs, arrays)
    same({k: t.read() for k, t in lib.open_folder(str(folder)).items()}, arrays)
    safetensors.save_file(arrays, folder / "theirs")
    same({k: t.read() for k, t in lib.open_file(str(folder / "theirs")).items()}, arrays)


def test_bfloat16_keeps_its_bits(tmp_path):
    arrays = {"x": np.arange(7).astype(ml_dtypes.bfloat16)}
    folder = write(tmp_path / "a", arrays)
    same({k: t.read() for k, t in lib.open_folder(str(folder)).items()}, arrays)


@pytest.fixture
def file(tmp_path):
    arrays = {"a": np.ones((3, 4), np.float32), "b": np.arange(5, dtype=np.float32)}
    return write(tmp_path / "model", arrays) / lib.FILE


def header_of(content):
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("kept", [0, 4, 30, 200, -1])
def test_a_file_that_was_cut_off_is_named(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match="model.safetensors is damaged: .*fetch it again"):
        lib.open_folder(str(file.parent))


def test_bytes_that_no_tensor_owns_are_refused(file):
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(UserError, match=r"it has \d+ bytes, and its header describes \d+"):
        lib.open_folder(str(file.parent))


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"shape": [3, 5]}, "a has 48 bytes, and its shape"),
        ({"shape": [-3, -4]}, "a has 48 bytes, and its shape"),
        ({"data_offsets": [4, 52]}, "does not start where the tensor before it ends"),
        ({"dtype": "F7"}, "its header cannot be read"),
        ({"shape": "ab"}, "its header cannot be read"),
        ({"shape": [3.0, 4.0]}, "its header cannot be read"),
        ({"data_offsets": [0]}, "its header cannot be read"),
    ],
)
def test_a_header_that_lies_is_refused(file, entry, message):
    header, data = header_of(file.read_bytes())
    header["a"] |= entry
    file.write_bytes(with_header(header, data))
    with pytest.raises(UserError, match=message):
        lib.open_folder(str(file.parent))


def test_an_index_may_name_files_beside_it_only(file):
    file.unlink()
    for name in ("../elsewhere.safetensors", "..", "", 3, ["a"]):
        index = {"weight_map": {"a": name}}
        (file.parent / lib.INDEX).write_text(json.dumps(index))
        with pytest.raises(UserError, match=f"names {re.escape(repr(name))}, which is no file"):
            lib.open_folder(str(file.parent))


def test_a_shard_or_a_tensor_that_is_missing_is_named(tmp_path):
    arrays = {name: np.ones(10, np.float32) for name in "abc"}
    folder = write(tmp_path / "model", arrays, shard_bytes=40)
    shard = folder / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors is missing"):
        lib.open_folder(str(folder))
    header, data = header_of(content)
    shard.write_bytes(with_header({"d": header["b"]}, data))
    with pytest.raises(UserError, match="names tensors that no file holds: b"):
        lib.open_folder(str(folder))


def test_an_empty_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match="has no model.safetensors, .* or pytorch_model.bin"):
        lib.open_folder(str(tmp_path))


def test_pickled_weights_are_read_and_nothing_is_executed(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    torch.save(weights, tmp_path / lib.PICKLED)
    found = {k: t.read() for k, t in lib.open_folder(str(tmp_path)).items()}
    expected = {"a": weights["a"].numpy(), "b": np.ones(4, ml_dtypes.bfloat16)}
    same(found, expected)

    torch.save(weights, tmp_path / lib.PICKLED, _use_new_zipfile_serialization=False)
    same({k: t.read() for k, t in lib.open_folder(str(tmp_path)).items()}, expected)

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    for content in (b"", b"\x80\x02.", (tmp_path / lib.PICKLED).read_bytes()[:100]):
        (tmp_path / lib.PICKLED).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as weights only"):
            lib.open_folder(str(tmp_path))
    for odd in ({3: torch.ones(2)}, {"a": torch.ones(2).to_sparse()}):
        torch.save(odd, tmp_path / lib.PICKLED)
        with pytest.raises(UserError, match="not tensors by name|is no plain tensor"):
            lib.open_folder(str(tmp_path))
    torch.save({"a": Evil()}, tmp_path / lib.PICKLED)
    with pytest.raises(UserError, match="cannot be read as weights only"):
        lib.open_folder(str(tmp_path))
