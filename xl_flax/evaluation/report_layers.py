"""Which layer is shown, and the table of all layers.

It is chosen for the untrained model by the rule that chooses the checkpoint's: by the mean over all
pairs of other text if there is some, else of the test.
"""

from collections.abc import Iterable, Mapping, Sequence

from xl_flax.evaluation.results import MACRO, UNTRAINED, Result
from xl_flax.text_table import table, wrapped

Layers = Mapping[str | None, int]  # by `Result.model`, of those that have layers

MEANINGS = {
    UNTRAINED: "this model before training, mean (± standard deviation) of random starts",
    "tf-idf": "no model, the pieces that sentences have in common",
    "length": "no model, how many pieces sentences have",
    "pieces": "no model, the pieces that words have in common",
    "diagonal": "no model, how far through their sentences words are",
}
ON_THE_TEST = "* best on this very test, shown below: choose a layer on other text to quote it"


def best_layers(results: Iterable[Result], metric: str, similarity: str | None = None) -> Layers:
    """The best layer of each model that has layers, by its mean over all pairs."""
    best: dict[str | None, Result] = {}
    for r in sorted((r for r in overall(results) if r.layer is not None), key=lambda r: r.layer):
        same = (r.metric, r.similarity) == (metric, similarity)
        if same and (r.model not in best or r.value > best[r.model].value):
            best[r.model] = r
    return {model: r.layer for model, r in best.items()}


def by_layer(columns: dict[str, tuple[Sequence[Result], str]], best: Layers) -> str:
    """Means over all pairs: layers down with the untrained model's beside, baselines below.

    Args:
      columns: heading -> results and the metric that is shown of them.
      best: the layers that get a star.
    """
    means = {
        (heading, r.model, r.layer): r
        for heading, (results, metric) in columns.items()
        for r in overall(results)
        if r.metric == metric
    }
    models = [None, *([UNTRAINED] if UNTRAINED in best else [])]
    names = [name for heading in columns for name in (heading, UNTRAINED)[: len(models)]]
    rows = [("layer", *names)]

    def cell(model: str | None, layer: int | None, heading: str) -> str:
        r = means.get((heading, model, layer))
        if r is None:
            return "-  " if layer is not None else ""
        value = f"{100 * r.value:.1f}" + (f" ± {100 * r.spread:.1f}" if r.seeds else "")
        return value + (" *" if layer is not None and layer == best[model] else "  ")

    for layer in sorted({layer for _, model, layer in means if model is None}):
        rows.append((str(layer), *(cell(m, layer, name) for name in columns for m in models)))
    for model in controls_of(means.values()):
        if model != UNTRAINED:
            empty = ("",) * (len(models) - 1)
            cells = ((cell(model, None, name), *empty) for name in columns)
            rows.append((model, *(c for own in cells for c in own)))
    return table(rows, in_blocks=True)


def star(
    choice: Iterable[Result], best: Layers, similarities: Sequence[str], metric: str = "p@1"
) -> tuple[str, str]:
    """What the star means, and the signature by which the checkpoint's layer was chosen, or ""."""
    shown = (None, metric, similarities[0], best[None])
    for r in overall(choice):
        if (r.model, r.metric, r.similarity, r.layer) == shown:
            by = f" by {r.similarity}" if len(similarities) > 1 else ""
            text = f"* best{by} on {r.data}, shown below; choice: {metric.upper()} there, all pairs"
            return wrapped(text), r.signature
    return ON_THE_TEST, ""


def overall(results: Iterable[Result]) -> list[Result]:
    """The means over all pairs of all mixtures, of each metric."""
    means = [r for r in results if r.languages == (MACRO,)]
    single = {r.data for r in results if is_pair(r)}
    over_all = [r for r in means if r.data not in single]
    return over_all or means


def controls_of(results: Iterable[Result]) -> list[str]:
    """Those that are there, in their usual order."""
    there = {r.model for r in results}
    return [name for name in MEANINGS if name in there]


def percent(value: float | None) -> str:
    """As a cell of a table."""
    return "-" if value is None else f"{100 * value:.1f}"


def percent_interval(interval: tuple[float, float] | None) -> str:
    """As a cell of a table; of what has none, empty."""
    return "" if interval is None else "-".join(f"{100 * end:.1f}" for end in interval)


def is_pair(result: Result) -> bool:
    """Whether it is of two languages, and no mean."""
    return len(result.languages) == 2 and MACRO not in result.languages
