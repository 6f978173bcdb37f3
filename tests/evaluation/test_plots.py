import json

import pytest

from xl_flax.errors import UserError
from xl_flax.evaluation import plots


def write(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "metrics.jsonl")


def test_curves_are_found_by_language_and_a_step_written_twice_counts_once(tmp_path):
    path = write(
        tmp_path,
        [
            {
                "step": 10,
                "loss": 3.0,
                "mlm/loss": 3.0,
                "mlm/loss/deu": 2.0,
                "mlm/accuracy/deu": 0.1,
            },
            {"step": 20, "mlm/loss/deu": 9.0},
            {"step": 20, "mlm/loss/deu": 1.0, "mlm/loss/eng": 4.0, "eval/m/loss/deu": 5.0},
        ],
    )
    with open(path, "a") as file:
        file.write('{"step": 30, "mlm/lo')  # a run that is still writing
    curves = plots.read_curves(path)
    assert list(curves) == ["eval/m/loss", "mlm/loss", "mlm/accuracy"]
    steps, values = curves["mlm/loss"]["deu"]
    assert steps.tolist() == [10, 20] and values.tolist() == [2.0, 1.0]
    assert list(curves["mlm/loss"]) == ["deu", "eng"]


def test_the_command_writes_a_png(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    write(tmp_path, [{"step": s, "mlm/loss/deu": 5 - s, "mlm/loss/eng": 5.0} for s in (1, 2)])
    plots.main([str(tmp_path), "--out", str(tmp_path / "c.png")])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "c.png") in capsys.readouterr().out


@pytest.mark.parametrize(
    "lines, message", [(None, "give a run's folder"), ([{"step": 1, "loss": 2.0}], "no values per")]
)
def test_nothing_to_draw_is_an_error(tmp_path, lines, message):
    if lines:
        write(tmp_path, lines)
    with pytest.raises(UserError, match=message):
        plots.read_curves(str(tmp_path / "metrics.jsonl"))
