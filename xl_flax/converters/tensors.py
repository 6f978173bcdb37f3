"""safetensors files, tensor by tensor, so that no more than one of them is in memory.

The format (https://huggingface.co/docs/safetensors): the length of the header, uint64; the header,
JSON: name -> dtype, shape, data_offsets; the data, little-endian. Sharded models have an index that
names the file of each tensor.
"""

import dataclasses
import json
import math
import operator
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from xl_flax.converters.folders import MEND
from xl_flax.errors import UserError
from xl_flax.files.read import check_regular, map_array, read_json, read_part
from xl_flax.files.write import write_atomically, write_parts

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LARGEST_HEADER = 100 << 20  # bytes, as the library has it
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a folder: known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def open_folder(folder: str) -> dict[str, Tensor]:
    """The tensors of a model's folder, by name.

    Reads `model.safetensors`, or the shards of its index, or else PyTorch's `pytorch_model.bin`,
    weights only.

    Raises:
      UserError: there is no such file, or one is damaged.
    """
    for name, read in ((FILE, open_file), (PICKLED, _open_pickled)):
        if os.path.exists(path := os.path.join(folder, name)):
            return read(path)
    for name, read in ((INDEX, open_file), (PICKLED_INDEX, _open_pickled)):
        if os.path.exists(path := os.path.join(folder, name)):
            return _open_shards(path, read)
    raise UserError(f"{folder} has no {FILE}, {INDEX} or {PICKLED}: is it a model's folder?")


def open_file(path: str) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
      UserError: the file is no safetensors file, or cut off, or its header lies.
    """

    def fail(reason: str):
        raise UserError(f"{path} is damaged: {reason}; {MEND}")

    start = read_part(path, 0, 8, MEND)
    size = os.path.getsize(path)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > min(size - 8, LARGEST_HEADER):
        fail("it ends inside its header")
    try:
        header = json.loads(read_part(path, 8, length))
        header.pop("__metadata__", None)
        entries = {
            name: (
                DTYPES[entry["dtype"]],
                tuple(map(operator.index, entry["shape"])),
                tuple(map(operator.index, entry["data_offsets"])),
            )
            for name, entry in header.items()
        }
        if any(len(offsets) != 2 for _, _, offsets in entries.values()):
            raise ValueError("data_offsets are not two numbers")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fail(f"its header cannot be read ({type(error).__name__}: {error})")
    begin, at = 8 + length, 0
    for name, (dtype, shape, (first, last)) in sorted(entries.items(), key=lambda e: e[1][2]):
        if min(shape, default=0) < 0 or last - first != math.prod(shape) * dtype.itemsize:
            fail(f"{name} has {last - first:,} bytes, and its shape {shape} of {dtype} others")
        if first != at:
            fail(f"{name} does not start where the tensor before it ends")
        at = last
    if begin + at != size:
        fail(f"it has {size:,} bytes, and its header describes {begin + at:,}")

    def tensor(dtype: np.dtype, shape: tuple[int, ...], offsets: tuple[int, int]) -> Tensor:
        def read() -> np.ndarray:
            if offsets[0] == offsets[1]:  # nothing to map
                return np.empty(shape, dtype)
            # Mapped: what is copied elsewhere anyway is not copied here first.
            return np.asarray(map_array(path, dtype, begin + offsets[0], shape))

        return Tensor(shape, dtype, read)

    return {name: tensor(*entry) for name, entry in entries.items()}


def write_folder(
    folder: str, tensors: Mapping[str, Tensor], shard_bytes: int, progress: Callable[[int], Any]
) -> None:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` and their index.

    Args:
      folder: where to.
      tensors: by name; each is read when its turn comes.
      shard_bytes: of one file; a larger tensor has a file of its own.
      progress: called with the bytes of each tensor that was written.
    """
    shards: list[dict[str, Tensor]] = [{}]
    held = 0  # bytes of the last shard
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    if len(shards) == 1:
        return _write_file(os.path.join(folder, FILE), shards[0], progress)
    where = {}
    for i, shard in enumerate(shards, 1):
        file = FILE.replace(".", f"-{i:05}-of-{len(shards):05}.", 1)
        _write_file(os.path.join(folder, file), shard, progress)
        where |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    write_atomically(os.path.join(folder, INDEX), json.dumps(index, indent=1))
    return None


def _write_file(path: str, tensors: Mapping[str, Tensor], progress: Callable[[int], Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # what Transformers looks for
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (at, at + tensor.nbytes),
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data is aligned

    def parts() -> Iterator[bytes | memoryview]:
        yield struct.pack("<Q", len(text)) + text
        for tensor in tensors.values():
            yield np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data
            progress(tensor.nbytes)

    write_parts(path, parts())


def _open_shards(index: str, read: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    where = read_json(index, MEND).get("weight_map")
    if not isinstance(where, dict):
        raise UserError(f"{index} is damaged: it has no weight_map; {MEND}")
    folder, tensors = os.path.dirname(index), {}
    # A name is data from elsewhere: it must not lead out of the folder.
    for name in where.values():
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise UserError(f"{index} names {name!r}, which is no file beside it")
    for name in dict.fromkeys(where.values()):
        if not os.path.exists(path := os.path.join(folder, name)):
            raise UserError(f"{path} is missing, and {index} names it: fetch it")
        tensors |= read(path)
    if missing := sorted(set(where) - set(tensors)):
        raise UserError(f"{index} names tensors that no file holds: {', '.join(missing[:5])}")
    return tensors


def _open_pickled(path: str) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch file, which needs PyTorch (pip install torch); a folder with "
            f"{FILE} needs nothing"
        ) from None
    import zipfile

    check_regular(path, MEND)
    try:
        # Only tensors: what a pickle would execute is refused.
        mapped = zipfile.is_zipfile(path)  # before PyTorch 1.6 files could not be
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damage takes many forms; PyTorch's advice would execute it
        raise UserError(
            f"{path} cannot be read as weights only ({type(error).__name__}): it is damaged, or "
            "asks to execute something, which is not done; fetch it again, or save it as "
            "safetensors where you trust it"
        ) from error

    def tensor(value: Any) -> Tensor:
        dtype = np.dtype(str(value.dtype).removeprefix("torch."))  # ml_dtypes knows bfloat16

        def read() -> np.ndarray:
            bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
            raw = value.contiguous().view(bits[dtype.itemsize]).numpy()
            return raw.view(dtype).copy()

        return Tensor(tuple(value.shape), dtype, read)

    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"{path} holds a {type(weights).__name__}, not tensors by name")
    named = {name: v for name, v in weights.items() if isinstance(v, torch.Tensor)}
    for name, v in named.items():
        kind = str(v.dtype).removeprefix("torch.")
        if v.layout != torch.strided or v.device.type != "cpu" or kind not in map(str, NAMES):
            raise UserError(f"{path}: {name} is no plain tensor ({kind}, {v.layout}, {v.device})")
    return {name: tensor(v) for name, v in named.items()}
