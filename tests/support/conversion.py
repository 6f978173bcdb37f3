"""What tests of conversion share: the command, and comparing and refusing what it makes."""

import os

import pytest

from xl_flax import convert
from xl_flax.converters import tensors
from xl_flax.errors import UserError


def run(source, target, *flags):
    convert.main([f"--source={source}", f"--target={target}", *flags])
    return str(target)


def weights(folder):
    return {name: tensor.read() for name, tensor in tensors.open_folder(str(folder)).items()}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key].dtype, a[key].shape) == (b[key].dtype, b[key].shape), key
        assert a[key].tobytes() == b[key].tobytes(), key


def refused(source, tmp_path, match, *flags):
    with pytest.raises(UserError, match=match):
        run(source, tmp_path / "target", *flags)
    assert not (tmp_path / "target").exists()
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]
