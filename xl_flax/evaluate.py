"""Evaluates checkpoints:  python -m xl_flax.evaluate --gin_file=gin/runs/quickstart.gin

Runs the evaluations that Gin names (`EvaluateConfig.evaluations`, see `xl_flax.evaluation` and
`gin/eval/`) on the newest checkpoint of MODEL_DIR, which is a run's folder, its `checkpoints/` or
one checkpoint; or a list of these, whose checkpoints must have one vocabulary. `--checkpoint` takes
others of each, or all of them. Prints tables and adds every number to `results.jsonl` in the run's
folder, with the signature that says how it was measured; numbers that are there already are shown,
not computed again, unless `--overwrite` is given. Tables too long for a console are written to
`tables/STEP.txt` there.

Beside them stand controls: an untrained model of the same shape, and baselines that need no model
(`xl_flax.evaluation.controls`). They are measured once and kept in CACHE_DIR/controls;
`--gin.EvaluateConfig.controls=False` leaves them out.

Examples:
  python -m xl_flax.evaluate --gin_file=gin/runs/quickstart.gin --checkpoint=all
  python -m xl_flax.evaluate --gin_file=gin/eval/retrieval.gin \\
    --gin.MODEL_DIR=runs/quickstart --gin.CACHE_DIR=runs/quickstart/cache \\
    --gin.TASK_MODULES="['tasks.synthetic']" \\
    --gin.SentenceRetrieval.mixture=synthetic_core
  python -m xl_flax.evaluate --gin_file=gin/runs/parallel_bible.gin \\
    --checkpoint=best \\
    --gin.MODEL_DIR="['runs/parallel/mlm/0', 'runs/parallel/mlm/1']"
"""

import argparse
import itertools
import os
from collections.abc import Sequence

import jax

from xl_flax import cli
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import (
    best_checkpoint,
    find_checkpoints,
    gone,
    read_description,
    vocabulary_path,
)
from xl_flax.data.vocabulary import Vocabulary, load_vocabulary, run_vocabulary
from xl_flax.errors import UserError
from xl_flax.evaluation import controls, predictions
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.base import Subject
from xl_flax.evaluation.caches import prepare_together
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import Result
from xl_flax.files.write import write_atomically
from xl_flax.parallel import compiled, distributed
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.settings import bindings
from xl_flax.text_table import wrapped


def choose_checkpoints(path: str, which: str) -> list[str]:
    """The checkpoint folders that `--checkpoint` asks for, oldest first.

    Args:
      path: a run's folder, its `checkpoints/`, or one checkpoint.
      which: "latest", "best" (that the run marked by `TrainConfig.best`), "all", or steps as in
        "500,1000".

    Raises:
      UserError: there is no such checkpoint.
    """
    if which == "best":
        return [best_checkpoint(path)]
    checkpoints = find_checkpoints(path)
    if which == "all":
        if deleted := gone(path):
            print(
                wrapped(
                    f"{path}: {len(deleted)} more were saved and deleted while it trained "
                    f"(TrainConfig.keep_last): steps {_listed(deleted)}"
                )
            )
        return checkpoints
    if which == "latest":
        return checkpoints[-1:]
    if len(checkpoints) == 1:  # which may have any name
        names = [str(read_description(checkpoints[0]).step)]
    else:  # others may be damaged
        names = [os.path.basename(checkpoint) for checkpoint in checkpoints]
    by_step = dict(zip(names, checkpoints, strict=True))
    steps = [step.strip() for step in which.split(",")]
    if missing := [step for step in steps if step not in by_step]:
        raise UserError(
            f"--checkpoint={which}: no checkpoint of step {', '.join(missing)} under {path}; "
            f'there are {", ".join(by_step)}; or say "latest", "best" or "all"'
        )
    return [by_step[step] for step in sorted(steps, key=int)]


def _listed(steps: Sequence[int]) -> str:
    shown = [f"{step:,}" for step in steps]
    return ", ".join(shown if len(shown) < 8 else [*shown[:3], "…", *shown[-3:]])


def evaluate(
    config: EvaluateConfig,
    which: str = "latest",
    overwrite: bool = False,
    gin_flags: Sequence[str] = (),
) -> None:
    """Evaluates checkpoints, prints tables and adds to `results.jsonl`.

    Args:
      config: what to do.
      which: the checkpoints, as in `choose_checkpoints`.
      overwrite: compute again what `results.jsonl` holds of the checkpoints, and replace it.
      gin_flags: the Gin flags of this process, for the one that builds caches.

    Raises:
      UserError: anything that the user can mend; see its message.
    """
    main_process = jax.process_index() == 0
    say = print if main_process else lambda *_, **__: None
    checkpoints = [c for path in config.model_dirs for c in choose_checkpoints(path, which)]
    partitioning = make_partitioning(config.mesh)
    vocabulary = _vocabulary(checkpoints)
    specs = [spec for e in config.evaluations for spec in e.every_dataset]
    caches = prepare_together(specs, config.cache, vocabulary, gin_flags)
    context = Context(caches, vocabulary, partitioning)
    for checkpoint in checkpoints:
        description = read_description(checkpoint)
        planned = [
            [(part, part.signatures(description, context)) for part in evaluation.parts]
            for evaluation in config.evaluations
        ]
        folder = results_lib.run_folder(checkpoint)
        source = results_lib.checkpoint_source(checkpoint, description.step)
        path = os.path.join(folder, results_lib.FILE)
        say(f"\n{checkpoint}: step {description.step:,}")
        there = results_lib.read(path)
        beside = _controls(config, description, context, path)
        subject, details = None, []
        done = set() if overwrite else results_lib.done(there, source)
        for evaluation, parts, others in zip(config.evaluations, planned, beside, strict=True):
            results = []
            for part, signatures in parts:
                if set(signatures) <= done:
                    rows = [row for row in there if results_lib.same(row, source)]
                    results += results_lib.from_rows(rows, signatures)
                else:
                    subject = subject or Subject.load(checkpoint, partitioning)
                    measured = part(subject, context)
                    if main_process:
                        results_lib.write(path, source, measured)
                        for sign, (data, scored) in context.predictions.items():
                            predictions.write(folder, description.step, sign, data, scored)
                    context.predictions.clear()
                    results += measured
            results += others
            if done.issuperset(sign for _, signatures in parts for sign in signatures):
                say(f"\nFrom {path} (--overwrite computes it again):", end="")
            say(f"\n{evaluation.table(results)}")
            details += filter(None, [evaluation.details(results)])
        if details and main_process:
            tables = os.path.join(folder, "tables", f"{description.step}.txt")
            write_atomically(tables, "\n\n\n".join(details) + "\n")
            say(f"\nlong tables: {tables}")
    folders = dict.fromkeys(map(results_lib.run_folder, checkpoints))
    files = ", ".join(os.path.join(folder, results_lib.FILE) for folder in folders)
    say(f"\n{wrapped(f'results: {files}')}")


def _controls(
    config: EvaluateConfig, description: Description, context: Context, path: str
) -> list[list[Result]]:
    """What each evaluation's results are shown beside; also written to `path`."""
    if not config.controls:
        return [[] for _ in config.evaluations]
    kept = controls.kept_path(config.cache)
    parts = [part for evaluation in config.evaluations for part in evaluation.parts]
    found = controls.measure(parts, description, context, kept)
    if jax.process_index() == 0:
        for file in (kept, path):
            controls.add(file, itertools.chain.from_iterable(found))
    of_parts = iter(found)
    return [
        [r for _ in evaluation.parts for control in next(of_parts) for r in control.results]
        for evaluation in config.evaluations
    ]


def _vocabulary(checkpoints: Sequence[str]) -> Vocabulary:
    """The vocabulary that Gin names, else the copy that the first checkpoint keeps.

    Raises:
      UserError: it is not that of all checkpoints, which is said before anything is cached.
    """
    fingerprints = [read_description(checkpoint).vocabulary for checkpoint in checkpoints]
    for checkpoint, fingerprint in zip(checkpoints, fingerprints, strict=True):
        if fingerprint != fingerprints[0]:
            raise UserError(
                f"{checkpoints[0]} and {checkpoint} have different vocabularies "
                f"({vocabulary_path(checkpoints[0])} and {vocabulary_path(checkpoint)}): evaluate "
                "them in commands of their own"
            )
    path, own = bindings("run_vocabulary", "path").get("path"), vocabulary_path(checkpoints[0])
    if path is None:
        return load_vocabulary(own)
    if not os.path.exists(path):
        raise UserError(
            f"the vocabulary {path} does not exist; {checkpoints[0]} has one of its own: "
            f"--gin.run_vocabulary.path={own}"
        )
    vocabulary = run_vocabulary()
    if vocabulary.fingerprint != fingerprints[0]:
        raise UserError(
            f"{checkpoints[0]} was trained with another vocabulary than {vocabulary.path}; "
            f"use its own: --gin.run_vocabulary.path={own}"
        )
    return vocabulary


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help='of each MODEL_DIR: "latest" (the default), "best", "all", or steps as in 500,1000',
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="compute again what results.jsonl holds of the checkpoint; "
        "controls are measured again when CACHE_DIR/controls is deleted",
    )
    distributed.add_flags(parser)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    args = cli.parse(argv, __doc__, _flags)
    compiled.keep()
    with distributed.joined(args):
        evaluate(EvaluateConfig(), args.checkpoint, args.overwrite, args.gin_flags)


if __name__ == "__main__":
    cli.run(main)
