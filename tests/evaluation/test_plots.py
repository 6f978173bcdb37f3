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
    lines = [{"step": s, "mlm/loss/deu": 5 - s, "mlm/loss/eng": 5.0} for s in (1, 2)]
    write(tmp_path, [*lines, {"step": 2, "phases": {"mlm/mixture": "even"}}])
    plots.main([str(tmp_path), "--out", str(tmp_path / "c.png")])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "c.png") in capsys.readouterr().out


@pytest.mark.parametrize(
    "lines, message",
    [(None, "give the folder of a run"), ([{"step": 1, "loss": 2.0}], "no values per")],
)
def test_nothing_to_draw_is_an_error(tmp_path, lines, message):
    if lines:
        write(tmp_path, lines)
    with pytest.raises(UserError, match=message):
        plots.read_curves(str(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": "1"}', "line 2: no metrics of a step"),
        ("[1]", "line 2: no JSON object"),
        ('{"step": 2, "mlm/loss/deu": "low"}', "line 2: 'mlm/loss/deu' is no number"),
        ('{"step": 2, "phases": 3}', "line 2: 'phases' is no object"),
        (b"\xff\xfe\xfa", "line 2: "),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = write(tmp_path, [{"step": 1, "mlm/loss/deu": 1.0}])
    with open(path, "ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(UserError, match=message):
        plots.read_curves(path) and plots.read_phases(path)


def test_phases_are_drawn_in_the_panels_that_they_concern(tmp_path):
    path = write(tmp_path, [{"step": 6, "phases": {"mlm/mixture": "b", "mlm/phase": 0.3}}])
    phases = plots.read_phases(path)
    assert phases == {6: {"mlm/mixture": "b", "mlm/phase": 0.3}}
    assert plots._of_panel(phases, "mlm/loss") == {6: {"mixture": "b", "phase": 0.3}}
    assert plots._of_panel(phases, "eval/m/loss") == phases
    assert plots._of_panel(phases, "tlm/loss") == {}
