"""python -m xl_flax.cache: tokenises and packs what a run reads; the one process with TensorFlow.

Without --tasks it caches all that the run's Gin file names: the mixtures of its phases and of its
evaluations. What is there and fresh is left alone, so an interrupted run of this command goes on
with the first split that is not complete.
"""

import dataclasses
import os
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import logging

from xl_flax import cli
from xl_flax.data.build import TRAIN
from xl_flax.data.cache_flags import add_flags, choose
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import write_mixture
from xl_flax.data.prepare import locked, prepare
from xl_flax.data.report import report, show_rows
from xl_flax.data.required import planned_rows
from xl_flax.data.seqio_cache import Excluded, cache_split, resolve_mixture
from xl_flax.data.seqio_tasks import find, import_tasks, seqio, split_tasks
from xl_flax.data.vocabulary import run_vocabulary


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = cli.parse(argv, __doc__, add_flags)
    logging.set_verbosity(logging.ERROR)
    cache, vocabulary = Cache(), run_vocabulary()
    modules = [*cache.task_modules, *args.module_import]
    owners = import_tasks(modules)
    splits = {name: seqio.TaskRegistry.get(name).splits for name in seqio.TaskRegistry.names()}
    specs = choose(args, modules, splits)
    providers = {spec.mixture: find(spec.mixture, modules) for spec in specs}
    work = {
        (task.name, spec.split, spec.layout): task
        for spec in specs
        for task in split_tasks(providers[spec.mixture], spec.split)
    }
    excluded = Excluded(cache.filter.exclude, modules, owners, vocabulary)
    with locked(cache):
        for number, ((_, split, layout), task) in enumerate(work.items(), 1):
            cache_split(
                *(task, split, layout, cache, vocabulary, owners, excluded),
                overwrite=args.overwrite,
                title=f"{number}/{len(work)} ",
            )
        for spec in specs:
            mixture = resolve_mixture(*spec, cache, owners)
            write_mixture(cache, spec.split, mixture)
            for task in mixture.rates:  # which may be read by itself, too
                alone = resolve_mixture(task, spec.split, spec.layout, cache, owners)
                write_mixture(cache, spec.split, alone)
    there = dataclasses.replace(cache, on_missing="stop")
    caches, planned = prepare(specs, there, vocabulary), planned_rows()
    for spec in specs:
        print(report(spec, caches, planned.get(spec.mixture)))
        if args.show and spec.split == TRAIN:
            print(show_rows(spec, caches, vocabulary, args.show))


if __name__ == "__main__":
    cli.run(main)
