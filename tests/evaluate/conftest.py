"""A run, a cache, the command that evaluates the one on the other, and what it writes."""

import json
import os

import gin
import pytest
from small_evaluations import WORDS, make_cache, make_run, train_vocabulary

from xl_flax import evaluate


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="session")
def vocabulary(folder):
    return train_vocabulary(folder / "vocabulary.model", WORDS)


@pytest.fixture(scope="session")
def cache(folder, vocabulary):
    return make_cache(str(folder / "cache"), vocabulary)


@pytest.fixture(scope="session")
def model_dir(folder, vocabulary):
    best = {"metric": "eval/m/loss", "mode": "min", "step": 5, "value": 0.5, "waited": 1}
    return make_run(str(folder / "run"), vocabulary, best=best)


@pytest.fixture(scope="session")
def other_run(folder, vocabulary):
    """Of the same shape with other parameters."""
    return make_run(str(folder / "other"), vocabulary, seed=100)


@pytest.fixture
def command(model_dir, cache):
    """Runs the command; without `fresh` it finds what earlier tests left in results.jsonl."""

    def run(*flags, path=model_dir, fresh=True):
        paths = [path] if isinstance(path, str) else path
        for file in (os.path.join(folder, "results.jsonl") for folder in {model_dir, *paths}):
            if fresh and os.path.exists(file):
                os.remove(file)
        own = any(flag.startswith("--gin_file=") for flag in flags)
        evaluate.main(
            [
                f"--gin.MODEL_DIR={path}",
                f"--gin.CACHE_DIR={cache.directory}",
                "--gin.TASK_MODULES=['none']",
                "--gin.Cache.on_missing='stop'",
                *([] if own else ["--gin_file=gin/eval/both.gin"]),
                "--gin.MaskedAccuracy.mixture=all",
                "--gin.MaskedAccuracy.length=16",
                "--gin.SentenceRetrieval.mixture=all",
                "--gin.SentenceRetrieval.length=16",
                "--gin.EvaluateConfig.controls=False",
                *flags,
            ]
        )

    yield run
    gin.clear_config()


@pytest.fixture
def rows(model_dir):
    def read(run=model_dir, **wanted):
        with open(os.path.join(run, "results.jsonl")) as file:
            lines = [json.loads(line) for line in file]
        return [r for r in lines if all(r[k] == v for k, v in wanted.items())]

    return read
