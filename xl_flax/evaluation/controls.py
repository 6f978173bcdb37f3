"""Controls: what a number must be seen beside, measured once and kept.

A model that was never trained, and sentences as bags of pieces, find translations, too: by names,
numerals and lengths. An evaluation says which controls it has (`Evaluation.untrained`,
`Evaluation.baselines`). They do not depend on a checkpoint but on the data, the vocabulary and the
model's shape, so their results lie in CACHE_DIR/controls/results.jsonl and are measured again only
when one of these is another. From there they are copied beside the results of every checkpoint.
"""

import collections
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xl_flax.checkpoints.description import RUNTIME_FIELDS, Description
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.base import Baseline, Evaluation, Subject
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import UNTRAINED, Result, Source
from xl_flax.models.heads import full_settings
from xl_flax.text_table import wrapped

SEEDS = (0, 1, 2)
# Those of `RUNTIME_FIELDS` that parameters begin with.
_STARTS = {"init_std", "scale_residual_init"}


class Measured(NamedTuple):
    """The results of one control, as `results.write` takes them."""

    source: Source
    results: list[Result]


class _Control(NamedTuple):
    evaluation: Evaluation
    source: Source
    signatures: tuple[str, ...]
    what: Description | Baseline  # of an untrained model its description

    @property
    def key(self) -> "_Key":
        return self.source.id, self.signatures


_Key = tuple[str, tuple[str, ...]]


def kept_path(cache: Cache) -> str:
    """The file in which the results of controls are kept."""
    return str(Path(cache.directory) / "controls" / results_lib.FILE)


def measure(
    evaluations: Sequence[Evaluation], description: Description, context: Context, kept: str
) -> list[list[Measured]]:
    """The controls of each evaluation: those that are kept, and those measured now.

    Args:
      evaluations: of one model.
      description: its.
      context: with all that the evaluations read.
      kept: a results file, see `kept_path`; it is not written here.
    """
    planned = [_planned(evaluation, description, context) for evaluation in evaluations]
    # What one process has measured, the others have, too, whatever they read afterwards.
    known: dict[_Key, list[Result]] = context.once("controls", dict)
    # Centred or not, lexical baselines are the same.
    lacking = {c.key: c for own in planned for c in own if c.key not in known}
    rows = results_lib.read(kept) if lacking else []
    for key, control in [*lacking.items()]:
        own = [row for row in rows if results_lib.same(row, control.source)]
        if results_lib.done(own, control.source).issuperset(control.signatures):
            known[key] = results_lib.from_rows(own, control.signatures)
            del lacking[key]
    if lacking:
        names = ", ".join(dict.fromkeys(c.source.checkpoint for c in lacking.values()))
        print(wrapped(f"Controls ({names}) are measured once and kept in {kept}"))
    known |= _untrained([c for c in lacking.values() if isinstance(c.what, Description)], context)
    for key, control in lacking.items():
        if isinstance(control.what, Baseline):
            known[key] = control.what.measure()
    return [[Measured(control.source, known[control.key]) for control in own] for own in planned]


def sourced(results: Iterable[Result]) -> list[Measured]:
    """Results of controls that an evaluation has given with its own, each known by how it was made.

    Args:
      results: with a `Result.model`.
    """
    own: dict[tuple[str, str], list[Result]] = collections.defaultdict(list)
    for result in results:
        own[result.model, result.signature].append(result)
    return [
        Measured(Source(model, 0, id=_digest(sign)), given) for (model, sign), given in own.items()
    ]


def add(path: str, measured: Iterable[Measured]) -> None:
    """Writes the results that a file lacks, or holds with other values."""
    rows = results_lib.read(path)
    for source, results in measured:
        own = [row for row in rows if results_lib.same(row, source)]
        held = results_lib.from_rows(own, {result.signature for result in results})
        if not {*results} <= {*held}:
            results_lib.write(path, source, results)


def shape(description: Description) -> str:
    """A digest of all that the parameters follow from before training, but for the seed."""
    encoder = {
        name: value
        for name, value in description.encoder.to_dict().items()
        if name in _STARTS or name not in RUNTIME_FIELDS
    }
    heads = {name: full_settings(name, own) for name, own in description.heads.items()}
    languages = description.all_languages if description.encoder.languages else None
    return _digest([encoder, heads, languages, description.vocabulary])


def _planned(evaluation: Evaluation, description: Description, context: Context) -> list[_Control]:
    controls = []

    def identity(what: str, specs: Iterable[DatasetSpec]) -> str:
        manifests = [m for spec in {*specs} for m in context.caches[spec].manifests.values()]
        return _digest([what, sorted(manifest.mark for manifest in manifests)])

    model = evaluation.untrained(description)
    if model is not None:
        digest = shape(model)
        source = Source(UNTRAINED, 0, id=identity(digest, evaluation.datasets))
        signs = tuple(_signature(s, digest) for s in evaluation.signatures(model, context))
        controls.append(_Control(evaluation, source, signs, model))
    for baseline in evaluation.baselines(description, context):
        vocabulary = context.vocabulary.fingerprint
        source = Source(baseline.name, 0, id=identity(vocabulary, baseline.datasets))
        controls.append(_Control(evaluation, source, tuple(baseline.signatures), baseline))
    return controls


def _untrained(lacking: Sequence[_Control], context: Context) -> dict[_Key, list[Result]]:
    """Means over seeds, by key; of one model at a time all that is evaluated."""
    by_shape = collections.defaultdict(list)
    for control in lacking:
        by_shape[shape(control.what)].append(control)
    measured = {}
    for digest, controls in by_shape.items():
        runs = collections.defaultdict(list)
        for subject in Subject.untrained(controls[0].what, SEEDS, context.partitioning):
            for control in controls:
                runs[control.key].append(control.evaluation(subject, context))
        for key, results in runs.items():
            measured[key] = [_mean(own, digest) for own in zip(*results, strict=True)]
    return measured


def _mean(results: Sequence[Result], digest: str) -> Result:
    values = tuple(result.value for result in results)
    return dataclasses.replace(
        results[0],
        value=statistics.fmean(values),
        signature=_signature(results[0].signature, digest),
        model=UNTRAINED,
        seeds=values,
        interval=None,  # of one start, and not of the mean
    )


def _signature(sign: str, digest: str) -> str:
    return results_lib.of_model(sign, f"{UNTRAINED}*{len(SEEDS)}#{digest}")


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
