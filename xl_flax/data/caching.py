"""What the cache command does: chooses rows, caches them, and prints what is there."""

import argparse
import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

from xl_flax import settings
from xl_flax.data.build import TRAIN
from xl_flax.data.layout import Layout
from xl_flax.data.manifest import Cache
from xl_flax.data.mixtures import write_mixture
from xl_flax.data.prepare import DatasetSpec, locked, prepare
from xl_flax.data.remote import fetch_mixtures, fetch_splits, send
from xl_flax.data.report import print_report, show_rows
from xl_flax.data.required import planned_rows, required
from xl_flax.data.seqio_cache import Excluded, cache_split, resolve_mixture
from xl_flax.data.seqio_tasks import find, import_tasks, say_missing, seqio, split_tasks
from xl_flax.data.vocabulary import run_vocabulary
from xl_flax.errors import UserError


def cache_datasets(args: argparse.Namespace) -> None:
    """Caches what the flags of `python -m xl_flax.cache` ask for."""
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
    for name, split in dict.fromkeys((spec.mixture, spec.split) for spec in specs):
        say_missing(providers[name], split)
    fetch_mixtures(cache.directory, [spec.mixture for spec in specs])
    fetch_splits(cache.directory, work)
    excluded, written = Excluded(cache.filter.exclude, modules, owners, vocabulary), set()

    def build(first: int = 0, every: int = 1) -> None:
        for number, ((_, split, layout), task) in enumerate(work.items()):
            if number % every == first and cache_split(
                *(task, split, layout, cache, vocabulary, owners, excluded),
                overwrite=args.overwrite,
                title=f"{number + 1}/{len(work)} ",
            ):
                written.add((task.name, split, layout))

    if args.share:  # of the processes of a job, of which the first holds the lock
        build(*args.share)
        return
    with locked(cache):
        build()
        for spec in specs:
            mixture = resolve_mixture(*spec, cache, owners)
            write_mixture(cache, spec.split, mixture)
            for task in mixture.rates:  # which may be read by itself, too
                alone = resolve_mixture(task, spec.split, spec.layout, cache, owners)
                write_mixture(cache, spec.split, alone)
        there = dataclasses.replace(cache, on_missing="stop")
        caches, planned = prepare(specs, there, vocabulary), planned_rows()
        for spec in specs:
            new = any((task, *spec[1:]) in written for task in caches[spec].manifests)
            print_report(cache, spec, caches[spec], planned.get(spec), new)
    send(cache.directory)
    if args.show:
        print(show_rows([caches[s] for s in specs if s.split == TRAIN], vocabulary, args.show))


def choose(
    args: argparse.Namespace, modules: Sequence[str], splits: Mapping[str, Collection[str]]
) -> list[DatasetSpec]:
    """The rows that the flags ask for.

    Args:
      args: the command's flags.
      modules: the task modules, for messages.
      splits: of every task.

    Raises:
      UserError: there are none, or a flag has no meaning.
    """
    settings.check("--show", args.show, settings.Natural)
    settings.check("--tasks", args.tasks, settings.Pattern | None)
    specs = list(dict.fromkeys(map(_parsed, args.dataset))) or required()
    if args.tasks:
        layouts = sorted({spec.layout for spec in specs}, key=str)
        names = [name for name in splits if re.fullmatch(args.tasks, name)]
        if not names:
            raise UserError(f"--tasks={args.tasks} matches none of the tasks of {list(modules)}")
        specs = [
            DatasetSpec(name, split, layout)
            for name in sorted(names)
            for split in sorted(splits[name])
            for layout in layouts
        ]
    specs = [spec for spec in specs if not args.split or spec.split in args.split]
    if not specs:
        raise UserError(
            "nothing to cache: the Gin file names no mixture (Rows.mixture, Rows.length), or no "
            "split that --split allows"
        )
    return specs


def _parsed(text: str) -> DatasetSpec:
    mixture, *rest = text.rsplit(":", 2)
    if len(rest) != 2:
        raise UserError(
            f"--dataset={text}: expected MIXTURE:SPLIT:LAYOUT, as in synthetic:train:128"
        )
    return DatasetSpec(mixture, rest[0], Layout.parse(rest[1]))
