import concurrent.futures
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from xl_flax.errors import UserError
from xl_flax.evaluation import results
from xl_flax.evaluation.base import Evaluation
from xl_flax.evaluation.results import Result, Source, signature


def result(value, sign="s", languages=("deu",), metric="loss", **more):
    return Result("masked_lm", "m/test", languages, metric, value, 10, sign, **more)


def test_results_are_appended_and_replaced_by_checkpoint_and_signature(tmp_path):
    path = str(tmp_path / "r.jsonl")
    first, second = Source("checkpoints/5", 5, id="a"), Source("checkpoints/10", 10, id="b")
    results.write(path, first, [result(1.0), result(2.0, "other")])
    results.write(path, second, [result(3.0)])
    results.write(path, first, [result(4.0)])
    rows = results.read(path)
    assert [(r.step, r.signature, r.value) for r in rows] == [
        (5, "other", 2.0), (10, "s", 3.0), (5, "s", 4.0),
    ]  # fmt: skip
    assert results.done(rows, first) == {"s", "other"}
    assert results.done(rows, second) == {"s"}
    assert not results.done(rows, Source("checkpoints/10", 10, id="of another training"))


def test_what_shares_only_the_step_is_not_replaced(tmp_path):
    path = str(tmp_path / "r.jsonl")
    results.write(path, Source("checkpoints/0", 0, id="a"), [result(1.0)])
    results.write(path, Source("untrained", 0, id="b"), [result(2.0)])
    results.write(path, Source("untrained", 0, id="of other text"), [result(3.0)])
    assert [r.value for r in results.read(path)] == [1.0, 3.0]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = str(tmp_path / "results.jsonl")

    def add(number):
        results.write(path, Source("checkpoints/1", 1), [result(0.5, f"s{number}")])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(32)))
    assert {row.signature for row in results.read(path)} == {f"s{i}" for i in range(32)}


def test_results_come_back_as_they_were(tmp_path):
    path, given = str(tmp_path / "r.jsonl"), [result(1.5, layer=3, pooling="mean"), result(2.5)]
    results.write(path, Source("checkpoints/5", 5, id="a"), given)
    assert results.from_rows(results.read(path), {"s"}) == given


def test_numpy_scalars_are_written_as_numbers(tmp_path):
    path = str(tmp_path / "r.jsonl")
    given = [dataclasses.replace(result(np.float32(0.5)), n=np.int64(7))]
    results.write(path, Source("checkpoints/5", 5, id="a"), given)
    assert vars(results.read(path)[0]).items() >= {"value": 0.5, "n": 7}.items()
    assert type(Evaluation().scalars(given)["eval/m/loss/deu"]) is float


@pytest.fixture
def written(tmp_path):
    """A file of two measurements, the first of them of two lines."""
    path = tmp_path / "r.jsonl"
    given = [result(1.5), result(2.5, languages=("eng",)), result(3.5, "t")]
    results.write(str(path), Source("checkpoints/5", 5, id="a"), given)
    return path


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda lines: [lines[0].replace(b"1.5", b"1.6"), *lines[1:]], "line 1: is not what was"),
        (lambda lines: [lines[0].replace(b'"crc"', b'"crd"'), *lines[1:]], "line 1: is not what"),
        (lambda lines: [lines[0], b'{"val\n', *lines[1:]], "line 2: .*delete this line"),
        (lambda lines: [lines[0], b"[1, 2]\n", *lines[1:]], "line 2: no JSON object"),
        (lambda lines: [b"\xff\xfe\n", *lines], "line 1: .*utf-8.*delete this line"),
        (lambda lines: [*lines, b'{"task": "x"}\n'], "line 4: .*Field required; delete this line"),
        (lambda lines: [b'{"step": []}\n'], "line 1: .*; delete this line"),
        (
            lambda lines: [b'{"step": [], "version": "9"}\n'],
            "line 1: .*it was written by version 9; this one is .*; delete this line",
        ),
    ],
)
def test_a_damaged_line_is_named(written, damage, message):
    written.write_bytes(b"".join(damage(written.read_bytes().splitlines(keepends=True))))
    for call in (results.read, lambda path: results.write(path, Source("x", 6), [result(1.0)])):
        with pytest.raises(UserError, match=f"r.jsonl, {message}"):
            call(str(written))


@pytest.mark.parametrize("cut", [1, 200])
def test_a_measurement_of_which_lines_are_missing_is_left_out_and_said(written, cut, capsys):
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([lines[2], lines[0], lines[1][:-cut]]))
    if cut == 1:  # only the newline is gone
        assert len(results.read(str(written))) == 3
        return
    assert [r.value for r in results.read(str(written))] == [3.5]
    assert "lines are missing, left out is step 5, s" in capsys.readouterr().err
    assert not results.done(results.read(str(written)), Source("", 5, id="a")) & {"s"}
    results.write(str(written), Source("checkpoints/5", 5, id="a"), [result(9.0)])
    assert [r.value for r in results.read(str(written))] == [3.5, 9.0]


def test_lines_that_stand_there_twice_count_once(written):
    before = results.read(str(written))
    written.write_bytes(2 * written.read_bytes())
    assert results.read(str(written)) == before


def test_lines_of_an_older_version_are_read(written):
    line = dataclasses.asdict(result(1.0)) | {"checkpoint": "/run/5", "step": 5, "saved": 17}
    written.write_text(json.dumps(line) + "\n")
    (row,) = results.read(str(written))
    assert (row.value, row.id, row.lines) == (1.0, None, None)
    assert not results.done([row], Source("checkpoints/5", 5, id="a"))


def test_what_is_no_file_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "fifo", "is no regular file")):
        with pytest.raises(UserError, match=message):
            results.read(str(path))
    assert results.read(str(tmp_path / "none")) == []


def test_a_copied_folder_is_the_same_and_another_training_is_not(tmp_path):
    def save(run, content):
        folder = tmp_path / run / "checkpoints" / "5"
        (folder / "params").mkdir(parents=True)
        (folder / "params" / "array").write_bytes(content)
        return str(folder)

    first, other = save("a", b"1"), save("b", b"2")
    source = results.checkpoint_source(first, 5)
    assert source.checkpoint == os.path.join("checkpoints", "5")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert results.checkpoint_source(str(tmp_path / "copy" / "checkpoints" / "5"), 5) == source
    assert results.checkpoint_source(other, 5) != source
    # What a checkpoint says of its files says the same.
    sums = {"params/array": "83dcefb7", "model/model.json": "0"}
    (tmp_path / "a" / "checkpoints" / "5" / "checksums.json").write_text(json.dumps(sums))
    assert results.checkpoint_source(first, 5) == source


def test_a_signature_says_how(monkeypatch):
    monkeypatch.setattr(results.xl_flax, "__version__", "9")
    sign = signature("retrieval", layer=8, k=4)
    assert sign == "retrieval|layer:8|k:4|version:9"
    assert results.of_model(sign, "tf-idf#v") == "retrieval|layer:8|k:4|model:tf-idf#v|version:9"
