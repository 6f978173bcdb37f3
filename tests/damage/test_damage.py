"""A sample of the draws in `draws.py`, which can be made by hand in any number."""

import draws
import pytest

SECONDS = 15  # for drawing, beside some 15 for making the house
FIRST = 100_000  # other draws than those made by hand


@pytest.mark.slow
def test_damage_is_mended_or_named(tmp_path):
    made = list(draws.run_draws(range(FIRST, FIRST + 60), str(tmp_path), 1, SECONDS))
    assert len(made) >= 5
    wrong = [draw for draw in made if draw["wrong"]]
    assert not wrong, "\n".join(
        "{draw} {target}: {damage}, {command}: {wrong}".format(**d) for d in wrong
    )
