"""The command: its formats, one page that needs nothing else, figures, paired tests."""

import csv
import html.parser
import io
import os
import re

import numpy as np
import pytest
from written import labelled, pairs

from xl_flax import report
from xl_flax.errors import UserError
from xl_flax.evaluation import predictions, results
from xl_flax.evaluation.labelled import Scored
from xl_flax.evaluation.results import MACRO

NAMES = ("deu", "eng", "heb")
HEBREW = "עברית"


def values(rng):
    own = {(a, b): float(rng.uniform()) for a in NAMES for b in NAMES if a != b}
    for name in NAMES:
        own[name, MACRO] = float(np.mean([v for (a, _), v in own.items() if a == name]))
        own[MACRO, name] = float(np.mean([v for (_, b), v in own.items() if b == name]))
    return own | {MACRO: float(np.mean([v for k, v in own.items() if MACRO not in k]))}


@pytest.fixture
def folder(tmp_path):
    """Two settings × three seeds × two steps × two layers, with controls; one name is Hebrew."""
    rng = np.random.default_rng(0)
    for setting in ("mlm", HEBREW):
        for seed in range(3):
            run = f"{tmp_path}/runs/{setting}/{seed}"
            for layer in (1, 2):
                for step in (5, 10):
                    pairs(run, values(rng), layer=layer, step=step)
                    pairs(run, {MACRO: rng.uniform()}, layer=layer, step=step, metric="loss")
                pairs(
                    run, dict.fromkeys(values(rng), 0.2), layer=layer,
                    model="untrained", seeds=(0.1, 0.3),
                )  # fmt: skip
            pairs(run, dict.fromkeys(values(rng), 0.05), layer=None, model="tf-idf")
    return str(tmp_path / "runs")


def rows_of(folder):
    """Of all runs: (setting, seed, row)."""
    for setting in sorted(os.listdir(folder)):
        for seed in sorted(os.listdir(f"{folder}/{setting}")):
            for row in results.read(f"{folder}/{setting}/{seed}/{results.FILE}"):
                yield setting, seed, row


@pytest.mark.parametrize("steps", ["last", "all"])
def test_figures_are_those_that_pandas_finds(folder, tmp_path, steps):
    pd = pytest.importorskip("pandas")
    rows = ["setting", "layer"] + (["step"] if steps == "all" else [])
    flags = [f"--rows={','.join(rows)}", "--columns=data,metric", f"--steps={steps}"]
    report.main([folder, *flags, "--format=csv", f"--out={tmp_path}/out"])
    found = pd.read_csv(f"{tmp_path}/out/report.csv")
    found = found[found.control == 0]
    frame = pd.DataFrame(
        {"setting": setting, "seed": seed} | vars(row) for setting, seed, row in rows_of(folder)
    )
    frame = frame[frame.model.isna() & (frame.languages == (MACRO,))]
    if steps == "last":
        frame = frame[
            frame.step == frame.groupby(["setting", "seed", "data"]).step.transform("max")
        ]
    keys = [*rows, "data", "metric"]
    seeds = frame.groupby([*keys, "seed"]).value.mean()
    expected = seeds.groupby(level=keys).agg(["mean", "std", "count"]).reset_index()
    both = found.merge(expected, on=keys, suffixes=("", "_pandas"))
    assert len(both) == len(found) == len(expected) == 4 * 2 * (2 if steps == "all" else 1)
    np.testing.assert_allclose(both["mean"], both["mean_pandas"], rtol=1e-12)
    np.testing.assert_allclose(both["spread"], both["std"], rtol=1e-12)
    assert (both["seeds"] == both["count"]).all()
    keys.remove("setting")
    best = both.loc[both[both.metric == "p@1"].groupby(keys)["mean"].idxmax()]
    if steps == "last":  # the best of all rows of a column is among the best of each layer
        marked = both[(both.metric == "p@1") & (both.best == 1)]
        assert set(marked.index) <= set(best.index)


def test_languages_are_means_of_both_roles_as_pandas_finds(folder, tmp_path):
    pd = pytest.importorskip("pandas")
    flags = ["--rows=language", "--columns=setting", "--where=metric=p@1", "--layer=2"]
    report.main([folder, *flags, "--format=csv", f"--out={tmp_path}/out"])
    found = pd.read_csv(f"{tmp_path}/out/report.csv").set_index(["language", "setting"])["mean"]
    frame = pd.DataFrame(
        {"setting": setting, "seed": seed, "side": name} | vars(row)
        for setting, seed, row in rows_of(folder)
        if row.model is None and MACRO not in row.languages and row.layer == 2 and row.step == 10
        for name in row.languages
    )
    frame = frame[frame.metric == "p@1"]
    expected = frame.groupby(["side", "setting"]).value.mean()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-12)


def test_the_console_shows_tables_with_controls_and_the_steps(folder, capsys):
    report.main([folder])
    text = capsys.readouterr().out
    assert "## Overview" in text and "## p@1 on ntrex/test by language" in text
    assert re.search(r"^\| ntrex/test, p@1, +\| ?", text, re.M) or "layer 1" in text
    assert "20.0 ± 14.1" in text and "**" in text
    assert text.rstrip().endswith("Of each of 6 runs: step 10.")


def test_formats_say_the_same(folder, tmp_path, capsys):
    flags = ["--rows=setting", "--columns=data", "--where=metric=p@1", "--layer=2"]
    report.main([folder, *flags, "--format=md,csv,latex,html", f"--out={tmp_path}/out"])
    printed = capsys.readouterr().out.split()
    assert [os.path.basename(path) for path in printed] == [
        *("report.md", "report.csv", "report.tex", "report.html")
    ]
    md, text, tex, page = (open(path, encoding="utf-8").read() for path in printed)
    rows = list(csv.DictReader(io.StringIO(text)))
    for row in rows:
        shown = f"{100 * float(row['mean']):.1f}"
        shown += f" ± {100 * float(row['spread']):.1f}" if row["spread"] else ""
        bold = row["best"] == "1"
        assert (f"**{shown}**" if bold else f" {shown} ") in md
        assert (f"\\textbf{{{shown}}}" if bold else shown).replace("±", r"$\pm$") in tex
        assert f">{shown}<" in page
    assert [row["setting"] for row in rows][-2:] == ["untrained", "tf-idf"]
    assert sum(row["best"] == "1" for row in rows) == 1
    assert r"ntrex/test" in tex and "\\toprule" in tex
    assert tex.startswith(r"% Needs \usepackage{booktabs}, and LuaLaTeX or XeLaTeX with fonts of")
    report.main([folder, "--where=setting=mlm", "--format=latex", f"--out={tmp_path}/latin"])
    latin = open(capsys.readouterr().out.strip(), encoding="utf-8").read()
    assert latin.startswith("% Needs \\usepackage{booktabs}.\n\\begin{table}")


class Page(html.parser.HTMLParser):
    """The elements of a page, with what is open where it ends."""

    EMPTY = ("meta", "link", "img", "br", "path", "use", "rect", "image", "line", "circle")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))


def test_the_page_needs_nothing_else_and_keeps_directions(folder, tmp_path):
    flags = ["--figures=layers,similarity,heatmap,curves", "--steps=all", "--layer=2"]
    report.main([folder, *flags, "--format=html", f"--out={tmp_path}/out"])
    text = open(f"{tmp_path}/out/report.html", encoding="utf-8").read()
    page = Page(text)
    assert not page.open
    for tag, attributes in page.seen:  # nothing is fetched
        assert tag not in ("link", "img", "iframe", "object")
        assert not {"src", "srcset", "data", "action"} & attributes.keys()
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.seen
    )
    settings = [tags for tags, data in page.texts if HEBREW in data and "table" in tags]
    assert settings and all(tags[-1] == "bdi" for tags in settings)
    assert sum(tag == "svg" for tag, _ in page.seen) >= 4
    numbers = [a for tag, a in page.seen if tag == "td" and "data-value" in a]
    assert numbers and all(float(a["data-value"]) >= 0 for a in numbers)


def test_figures_are_drawn_or_what_lacks_is_said(folder, tmp_path):
    out = f"{tmp_path}/out"
    flags = ["--steps=all", "--scatter=loss:ntrex/test,p@1:ntrex/test", f"--out={out}"]
    report.main([folder, "--figures=curves,layers,similarity,heatmap,scatter", *flags])
    names = set(os.listdir(out))
    assert {"layers.png", "scatter.png", "curves-mlm.png", f"curves-{HEBREW}.png"} < names
    assert f"similarity-{HEBREW}-ntrex-test.png" in names
    for name in names:
        content = open(f"{out}/{name}", "rb").read()
        assert content.startswith(b"\x89PNG") and len(content) > 3000
    one = pairs(f"{tmp_path}/one", {MACRO: 0.5})
    for figure, message in {
        "layers": "no results are of more than one layer",
        "curves": "no run has results of more than one step",
        "heatmap": "no test has results of more than one language",
        "similarity": "no results are of pairs",
        "scatter": "needs --scatter=X,Y",
    }.items():
        with pytest.raises(UserError, match=message):
            report.main([one, f"--figures={figure}", f"--out={out}"])
    with pytest.raises(UserError, match="no results of f1:ntrex/test; there are p@1:ntrex/test"):
        report.main([one, "--figures=scatter", "--scatter=f1:ntrex/test,p@1:ntrex/test"])
    with pytest.raises(UserError, match="what --figures=scatter draws: add this"):
        report.main([one, "--scatter=p@1:ntrex/test,p@1:ntrex/test"])
    with pytest.raises(UserError, match="several layers: choose one with --layer"):
        report.main([folder, "--figures=heatmap", "--where=metric=p@1", f"--out={out}"])


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws figures of a folder: name -> matplotlib's figure."""

    def draw(folder, *flags):
        made = {}
        monkeypatch.setattr(report, "_write", lambda _, tables, own, *more: made.update(own) or [])
        report.main([str(folder), *flags, f"--out={tmp_path}/out"])
        return {name: own.figure for name, own in made.items()}

    return draw


def test_curves_are_of_the_layer_that_is_asked_for_and_name_a_language_once(folder, drawn):
    for seed in range(3):
        for step in (5, 10):
            labelled(f"{folder}/mlm/{seed}", {"eng"}, {"eng": 0.9, "deu": 0.5}, step=step)
    flags = ["--steps=all", "--figures=curves,layers"]
    figure = drawn(folder, *flags, "--layer=1")["curves-mlm"]
    titles = [axis.get_title("left") for axis in figure.axes]
    assert "ntrex/test, cosine, layer 1" in titles and "pos/test" in titles
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["deu", "eng", "heb"]
    figures = drawn(folder, *flags, "--layer=all")
    titles = [axis.get_title("left") for axis in figures["curves-mlm"].axes]
    assert "ntrex/test, cosine, layer 2" in titles
    (legend,) = figures["layers"].legends  # "step 5" stands on the right of a Hebrew name
    assert f"\u200e{HEBREW}, step 5" in [text.get_text() for text in legend.get_texts()]


def test_a_heat_map_of_one_setting_has_tasks_by_languages(tmp_path, drawn):
    for seed in range(2):
        run = f"{tmp_path}/mlm/{seed}"
        labelled(run, {"eng"}, {"eng": 0.9, "deu": 0.5 + seed / 10, "heb": 0.3})
        values = {("eng", "deu"): 0.1, ("eng", "heb"): 0.2, MACRO: 0.15}
        pairs(run, values, data="ntrex/test", metric="p@1")
    (axis,) = drawn(tmp_path, "--figures=heatmap")["heatmap"].axes
    assert axis.get_title("left") == "mlm (%)"
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ["\u200epos/test, f1", "\u200entrex/test, p@1"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["eng (*)", "deu", "heb"]
    shown = axis.images[0].get_array()
    np.testing.assert_allclose(shown[0], [90, 55, 30])
    np.testing.assert_allclose(shown[1][1:], [10, 20])
    labelled(f"{tmp_path}/tlm/0", {"eng"}, {"eng": 0.9, "deu": 0.5, "heb": 0.3})
    axes = drawn(tmp_path, "--figures=heatmap")["heatmap"].axes
    assert [axis.get_title("left")[:4] for axis in axes] == ["f1 o", "p@1 "]


def test_vectors_made_in_two_ways_are_drawn_apart(folder, tmp_path):
    rng = np.random.default_rng(2)
    for seed in range(3):
        for step in (5, 10):
            for layer in (1, 2):
                run = f"{folder}/mlm/{seed}"
                pairs(run, values(rng), layer=layer, step=step, center="test_mean")
        alike = {(a, b): 0.5 for a in NAMES for b in NAMES if a < b}
        pairs(run, alike, layer=2, step=10, metric="cka", task="representation")
    out = f"{tmp_path}/out"
    scatter = "--scatter=loss:ntrex/test,p@1:ntrex/test"
    report.main(
        [
            folder, "--figures=curves,layers,similarity,heatmap,scatter", "--steps=all",
            "--layer=2", scatter, f"--out={out}", "--format=html",
        ]
    )  # fmt: skip
    names = {"similarity-mlm-ntrex-test.png", "similarity-mlm-ntrex-test-center-test_mean.png"}
    names.add("similarity-mlm-ntrex-test-representation.png")
    assert names | {"heatmap.png", "scatter.png"} < {*os.listdir(out)}
    assert "<bdi>test_mean</bdi>" in open(f"{out}/report.html", encoding="utf-8").read()


def test_rank_correlation_is_scipys():
    from scipy import stats

    from xl_flax.reports.figures import spearman

    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 20), rng.integers(0, 5, 20)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman([1, 1, 1], [1, 2, 3]) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=pdf"], "'pdf': choose of md, csv, latex, html"),
        (["--figures=pie"], "choose of curves, layers"),
        (["--where=metric"], "write it as NAME=VALUE"),
        (["--setting=("], "no regular expression"),
        (["--scatter=loss"], "write METRIC:DATA,METRIC:DATA"),
    ],
)
def test_bad_flags_are_refused(folder, capsys, flags, message):
    with pytest.raises(SystemExit):
        report.main([folder, *flags])
    assert message in capsys.readouterr().err


def test_settings_are_tested_in_pairs_of_examples(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for setting, share in (("good", 0.9), ("bad", 0.5)):
        for seed in range(2):
            run = labelled(f"{tmp_path}/{setting}/{seed}", {"eng"}, {"eng": share, "deu": share})
            (sign,) = {row.signature for row in results.read(f"{run}/{results.FILE}")}
            for language in ("eng", "deu"):
                right = rng.uniform(size=200) < share
                counts = {"f1": np.stack([right, right + 0.0, np.ones(200)], axis=1)}
                predictions.write(
                    run, 10, sign, "pos/test", {language: Scored(counts, ["N"] * 200)}
                )
    report.main([str(tmp_path), "--against=bad"])
    text = capsys.readouterr().out
    assert "f1 on pos/test less that of bad, with p" in text
    assert len(re.findall(r"\| (?:eng \*|deu) +\| +\+2\d\.\d \(p 0\.0001\) \|", text)) == 2
    with pytest.raises(UserError, match="--against=ugly: there is no such setting; bad, good"):
        report.main([str(tmp_path), "--against=ugly"])
    os.remove(f"{tmp_path}/good/0/predictions/10/pos/test-de.counts.json")
    with pytest.raises(UserError, match="is missing, and a paired test needs"):
        report.main([str(tmp_path), "--against=bad"])
