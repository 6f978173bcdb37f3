"""Files that are there whole or not at all."""

import pytest

from xl_flax.files.write import write_atomically


def test_what_cannot_be_written_is_named_and_left(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError) as error:
        write_atomically(tmp_path / "a", "x")
    assert error.value.filename == str(tmp_path / "a") and error.value.filename2 is None
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    write_atomically(tmp_path / "b" / "c", "x")
    assert (tmp_path / "b" / "c").read_text() == "x"
