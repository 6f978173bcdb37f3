"""Benchmarks run as a user runs them, in a tiny size, and end with the JSON that they promise."""

import importlib
import io
import json
import sys

import pytest

TORCH = ("torch", "transformers")
SENTENCES = (*TORCH, "sentence_transformers")


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    """Nothing is downloaded or read."""
    monkeypatch.delenv("XL_FLAX_DATA_DIR", raising=False)


@pytest.fixture
def run(capfd):
    """run(benchmark, packages, *arguments) -> the JSON in the last line of a tiny run."""

    def main(benchmark, packages, *arguments):
        for package in packages:
            pytest.importorskip(package, reason=f"{benchmark}.py compares with {package}")
        importlib.import_module(benchmark).main(["--tiny", *arguments])
        return json.loads(capfd.readouterr().out.splitlines()[-1])

    return main


def check(numbers, keys):
    assert set(numbers) == set(keys)
    assert all(number > 0 for number in numbers.values()), numbers


@pytest.mark.slow
def test_mlm_vs_hf(run):
    result = run("mlm_vs_hf", TORCH)
    assert set(result) == {"d"}
    check(result["d"], ("hf", "expert"))


def test_finetune_vs_hf(run):
    check(run("finetune_vs_hf", TORCH), ("nli", "panx"))


def test_finetune_scores_vs_hf(run):
    result = run("finetune_scores_vs_hf", (*TORCH, "accelerate"), "--tasks", "panx")
    assert set(result) == {"panx"} and set(result["panx"]) == {"xl-flax", "hf", "spread"}
    assert all(0 <= number <= 1 for number in result["panx"].values())


def test_contrastive_vs_st(run):
    check(run("contrastive_vs_st", SENTENCES), ("ratio",))


def test_contrastive_memory(run):
    columns = ("inputs", "one pass", "two passes", "comparison", "plain")
    check(run("contrastive_memory", ()), ("pairs", *columns))


def test_retrieval(run):
    check(run("retrieval", (*SENTENCES, "faiss")), ("ratio",))


@pytest.mark.slow
def test_sweep(run):
    check(run("sweep", (*SENTENCES, "faiss")), ("separate", "transformers"))


def test_convert(run):
    result = run("convert", (*TORCH, "safetensors"))
    assert set(result) == {"tiny"}
    check(result["tiny"], ("to ours", "to theirs", "memory"))


def test_checkpoints(run):
    result = run("checkpoints", ())
    seconds = ("blocks", "on disk", "checksums", "processor", "check", "read")
    assert set(result) == {"after"} and set(result["after"]) == set(seconds)


def test_stream(run):
    languages = (f"tokens_per_s_{n}_languages" for n in (12, 120))
    opening = ("open_120_s", "open_120_mb", "resume_at_row_1e6_s")
    check(run("stream", ()), ("row_length", *languages, *opening))


@pytest.mark.parametrize(
    ("benchmark", "case"), [("mlm_vs_hf", "d"), ("contrastive_vs_st", "pairs")]
)
def test_worker(benchmark, case, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2\n"))
    importlib.import_module(benchmark).main(["--tiny", f"--worker={case}"])
    answers = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [word for word, *_ in answers] == ["seconds", "seconds"]
    assert all(float(wall) > 0 and float(processor) > 0 for _, wall, processor in answers)


WORKER = """
import sys
for line in sys.stdin:
    print("something else")
    print("seconds", {seconds} * int(line), 4.0 * int(line), flush=True)
"""


def test_commits(run, tmp_path):
    for name, seconds in (("before", 2.0), ("after", 3.0)):
        folder = tmp_path / name / "tests/benchmarks"
        folder.mkdir(parents=True)
        (folder / "mlm_vs_hf.py").write_text(WORKER.format(seconds=seconds))
    checkouts = [f"--{name}={tmp_path / name}" for name in ("before", "after")]
    result = run("commits", (), *checkouts, "--cases=a,c", "--steps=2")
    wall = {"before": 2.0, "after": 3.0, "ratio": 1.5, "low": 1.5, "high": 1.5}
    processor = {"before": 4.0, "after": 4.0, "ratio": 1.0, "low": 1.0, "high": 1.0}
    expected = {"wall": wall, "processor": processor}
    assert result == {"a": expected, "c": expected}


def test_commits_says_which_worker_fails(run, tmp_path):
    with pytest.raises(SystemExit, match=r"mlm_vs_hf.py --worker=a"):
        run("commits", (), f"--before={tmp_path}")


def test_failures(run):
    (seconds,) = run("failures", ())["no Gin file"]
    assert 0 <= seconds < 60
