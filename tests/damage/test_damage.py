"""A sample of the draws in `draws.py`, which can be made by hand in any number."""

import draws
import pytest

NUMBERS = range(100_000, 100_012)  # other draws than those made by hand


@pytest.mark.slow
def test_damage_is_mended_or_named(tmp_path):
    made = list(draws.run_draws(NUMBERS, str(tmp_path), 1))
    assert len(made) == len(NUMBERS)
    wrong = [draw for draw in made if draw["wrong"]]
    assert not wrong, "\n".join(
        "{draw} {target}: {damage}, {command}: {wrong}".format(**d) for d in wrong
    )
