import json
import os

import pytest

from xl_flax import report
from xl_flax.errors import UserError
from xl_flax.reports import curves


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
    found = curves.of_file(path)
    assert list(found) == ["eval/m/loss", "mlm/loss", "mlm/accuracy"]
    steps, values = found["mlm/loss"]["deu"]
    assert steps.tolist() == [10, 20] and values.tolist() == [2.0, 1.0]
    assert list(found["mlm/loss"]) == ["deu", "eng"]


def test_runs_that_have_no_results_yet_are_drawn_with_bands_over_seeds(tmp_path, capsys):
    for seed in range(2):
        run = tmp_path / "runs" / "mlm" / str(seed)
        run.mkdir(parents=True)
        lines = [{"step": s, "mlm/loss/deu": 5 - s - seed, "mlm/loss/eng": 5.0} for s in (1, 2)]
        write(run, [*lines, {"step": 2, "phases": {"mlm/mixture": "even"}}])
    assert [r.folder[-5:] for r in curves.read([str(tmp_path)])] == ["mlm/0", "mlm/1"]
    report.main([str(tmp_path / "runs"), "--figures=curves", f"--out={tmp_path}/out"])
    assert os.listdir(tmp_path / "out") == ["training-mlm.png"]
    assert (tmp_path / "out/training-mlm.png").read_bytes().startswith(b"\x89PNG")
    assert "training-mlm.png" in capsys.readouterr().out


def test_nothing_to_draw_is_an_error(tmp_path):
    write(tmp_path, [{"step": 1, "loss": 2.0}])
    with pytest.raises(UserError, match="or values by language in its metrics.jsonl"):
        report.main([str(tmp_path), "--figures=curves"])


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
        curves.of_file(path) and curves.phases_of_file(path)


def test_phases_are_drawn_in_the_panels_that_they_concern(tmp_path):
    path = write(tmp_path, [{"step": 6, "phases": {"mlm/mixture": "b", "mlm/phase": 0.3}}])
    phases = curves.phases_of_file(path)
    assert phases == {6: {"mlm/mixture": "b", "mlm/phase": 0.3}}
    assert curves.of_panel(phases, "mlm/loss") == {6: {"mixture": "b", "phase": 0.3}}
    assert curves.of_panel(phases, "eval/m/loss") == phases
    assert curves.of_panel(phases, "tlm/loss") == {}
