"""The table of `xl_flax.evaluation.representation`."""

from collections.abc import Sequence

from xl_flax.evaluation.report import UNKNOWN, once, unknown_legend, unknown_share, unknown_shares
from xl_flax.evaluation.report_layers import MEANINGS, by_layer, controls_of, is_pair, overall
from xl_flax.evaluation.results import MACRO, Result
from xl_flax.text_table import legend, table, wrapped

SHUFFLED = "shuffled: the sentences of one language in random order, what chance gives"


def similarity(results: Sequence[Result]) -> str:
    """CKA by layer, the mean over all pairs, with its controls; then of each language."""
    data = once(r.data for r in results if is_pair(r))
    name = data[0] if len(data) == 1 else f"{len(data)} mixtures"
    # No layer is -1: none is chosen, and none gets a star.
    unstarred = dict.fromkeys((r.model for r in results if r.layer is not None), -1)
    columns = {"CKA": (results, "cka"), "shuffled": (results, "cka_shuffled")}
    meanings = {name: MEANINGS[name] for name in controls_of(results)}
    parts = [
        f"Similarity of representations, {name}\n"
        "Linear CKA · 100, mean over all pairs, by layer (0 = embeddings); 100: one shape\n"
        + by_layer(columns, unstarred),
        *(_languages(results, one) for one in data),
        "\n".join(
            [
                *([legend(meanings)] if meanings else []),
                wrapped(SHUFFLED),
                *unknown_legend(results),
                *once(r.signature for r in overall(results)),
            ]
        ),
    ]
    return "\n\n".join(parts)


def _languages(results: Sequence[Result], data: str) -> str:
    """Each language with the others, layers across."""
    own = [r for r in results if (r.data, r.metric, r.model) == (data, "cka", None)]
    values = {
        (r.languages[0], r.layer): r.value
        for r in own
        if len(r.languages) == 2 and r.languages[1] == MACRO
    }
    layers = sorted({r.layer for r in own if r.layer is not None})
    unknown = unknown_shares(own)
    rows = [("language", *map(str, layers), UNKNOWN)]
    for language in sorted({language for language, _ in values}):
        cells = (f"{100 * values[language, layer]:.1f}" for layer in layers)
        rows.append((language, *cells, unknown_share(unknown.get(language))))
    title = f"{data}, CKA · 100 with the other languages (means), by layer"
    return f"{title}\n{table(rows, in_blocks=True)}"
