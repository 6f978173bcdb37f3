"""Data for runs of several processes: a vocabulary, a cache and a Gin file, made once."""

import house
import processes
import pytest


@pytest.fixture(autouse=True)
def nothing_left():
    """What a test that failed has started ends with it."""
    yield
    processes.end_all()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with all that the run `run.gin` reads; each test has a MODEL_DIR of its own."""
    return house.made_in(tmp_path_factory.mktemp("processes"))
