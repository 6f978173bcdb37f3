"""Results written by hand, for tests of reports."""

import os

from xl_flax.evaluation import results
from xl_flax.evaluation.results import Result, Source


def pairs(run, values, step=10, center="none", metric="p@1", data="ntrex/test", layer=3, **more):
    """Results of retrieval in one layer: {(query, searched) or a language: value}."""
    of, model, seeds = (more.pop(k, None) for k in ("of", "model", "seeds"))
    task = more.pop("task", "retrieval")
    sign = results.signature(task, data=data, layer=layer, center=center, **more)
    if layer is None:
        sign = results.signature(task, data=data, **more)
    about = {"similarity": "cosine", "layer": layer}
    if model:
        sign, step, about = results.of_model(sign, model), 0, about | {"model": model}
        about["seeds"] = seeds
    path = os.path.join(run, results.FILE)
    source = Source(model or f"checkpoints/{step}", step, id=of or f"{run}{step}")
    named = [((k,) if isinstance(k, str) else k, v) for k, v in values.items()]
    given = [Result(task, data, k, metric, v, 100, sign, **about) for k, v in named]
    there = [row for row in results.read(path) if results.same(row, source)]
    before = [r for r in results.from_rows(there, {sign}) if r.metric != metric]
    results.write(path, source, [*before, *given])
    return str(run)


SIGN = "tagging|data:pos/test|trained:{}/train|chosen:{}|version:0.3.0"


def labelled(run, trained, values, text="pos_eng", chosen="last", control=None, **more):
    """Results of a labelled test by language; `control` is what "majority" has in English."""
    unknown, step = more.get("unknown", {}), more.get("step", 10)
    sign, path = SIGN.format(text, chosen), os.path.join(run, results.FILE)
    found = [
        Result(
            "tagging", "pos/test", (language,), "f1", value, 5, sign,
            trained=language in trained, interval=(0.0, 1.0),
            unknown=(unknown.get(language, 0.01),),
        )
        for language, value in values.items()
    ]  # fmt: skip
    results.write(path, Source(f"checkpoints/{step}", step, id=f"x{step}"), found)
    if control is not None:
        sign = results.of_model(SIGN.format(text, "-"), "majority")
        about = {"interval": (0.0, 1.0), "model": "majority", "trained": True}
        own = Result("tagging", "pos/test", ("eng",), "f1", control, 5, sign, **about)
        results.write(path, Source("majority", 0, id=text), [own])
    return str(run)
