"""What is compiled for these tests runs a few times only."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def quickly(compile_quickly):
    """Most of what is compiled runs a few times only."""
