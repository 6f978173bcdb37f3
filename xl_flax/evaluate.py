"""Evaluates checkpoints:  python -m xl_flax.evaluate --gin_file=gin/runs/quickstart.gin

Runs the evaluations that Gin names (`EvaluateConfig.evaluations`, see `xl_flax.evaluation` and
`gin/eval/`) on the newest checkpoint of MODEL_DIR, which is a run's folder, its `checkpoints/` or
one checkpoint; or a list of these. `--checkpoint` takes others of each, or all of them. Prints
tables and adds every number to `results.jsonl` in the run's folder, with the signature that says
how it was measured; numbers that are there already are shown, not computed again, unless
`--overwrite` is given. Tables too long for a console are written to `tables/STEP.txt` there.

`--checkpoints=PATTERN` is a sweep: over all runs, checkpoints and folders of Hugging Face that
match, whatever their vocabularies and shapes, and prints a line for each cell, which is a
checkpoint and an evaluation. A killed sweep goes on when it is started again. Several that are
started share the work, also on several machines that have the folders of results in common. What
fails is listed at the end, and the exit code is 1. Models of others are converted once, to
CACHE_DIR/pretrained, where their results lie, unless `--output` names a folder for all results.
`--watch` waits for checkpoints of runs that are still training. `--select` evaluates of each run
only the checkpoint that is best by earlier results on validation text.

Beside results stand controls: an untrained model of the same shape, and baselines that need no
model (`xl_flax.evaluation.controls`). They are measured once and kept in CACHE_DIR/controls;
`--gin.EvaluateConfig.controls=False` leaves them out.

Examples:
  python -m xl_flax.evaluate --gin_file=gin/runs/quickstart.gin --checkpoint=all
  python -m xl_flax.evaluate --gin_file=gin/eval/retrieval.gin \\
    --checkpoints='runs/*/checkpoints/*' --gin.CACHE_DIR=runs/quickstart/cache \\
    --gin.TASK_MODULES="['tasks.synthetic']" \\
    --gin.SentenceRetrieval.mixture=synthetic_core
  python -m xl_flax.evaluate --gin_file=gin/runs/parallel_bible.gin \\
    --checkpoint=best \\
    --gin.MODEL_DIR="['runs/parallel/mlm/0', 'runs/parallel/mlm/1']"
"""

import argparse
import functools
import glob
import os
import time
from collections.abc import Callable, Collection, Sequence

import jax

from xl_flax import cli, settings
from xl_flax.checkpoints import intact
from xl_flax.checkpoints.load import complete_checkpoints, vocabulary_path
from xl_flax.checkpoints.remote import bring
from xl_flax.checkpoints.remote_run import following_results
from xl_flax.converters.pretrained import is_foreign, pretrained
from xl_flax.data.remote_vocabulary import fetch_vocabulary
from xl_flax.data.vocabulary import Vocabulary, load_vocabulary
from xl_flax.errors import UserError
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation import selection, targets
from xl_flax.evaluation.base import Evaluation
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.evaluation.sweep import Cell, Shown, Sweep, results_path
from xl_flax.evaluation.targets import Target, choose_checkpoints
from xl_flax.files import remote
from xl_flax.files.read import LOCAL, is_local
from xl_flax.files.write import write_atomically
from xl_flax.parallel import compiled, distributed
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.settings import Positive, bindings
from xl_flax.text_table import wrapped
from xl_flax.training.tensorboard import write_results

EVERY = "every evaluation"
LINE = 150  # characters of a summary
LOOK = 5.0  # seconds between two looks for new checkpoints


def evaluate(
    config: EvaluateConfig,
    which: str = "latest",
    overwrite: bool = False,
    gin_flags: Sequence[str] = (),
    pattern: str | None = None,
    output: str | None = None,
    watch: float | None = None,
    select: str | None = None,
) -> None:
    """Evaluates checkpoints, shows what comes out and adds to `results.jsonl`.

    Args:
      config: what to do.
      which: the checkpoints, as in `choose_checkpoints`.
      overwrite: compute again what `results.jsonl` holds of the checkpoints, and replace it.
      gin_flags: the Gin flags of this process, for the one that builds caches.
      pattern: of paths, instead of `config.model_dir`: a sweep, of which lines are shown.
      output: the folder of results; None: those of the runs.
      watch: look for new checkpoints until for so many minutes none came; None: do not.
      select: of each run only the checkpoint that its results say is best, as in
        "best:loss:bible/validation"; None: all.

    Raises:
      UserError: anything that the user can mend; also, at the end, of what was not measured.
    """
    if watch is not None and jax.process_count() > 1:
        raise UserError("--watch looks for checkpoints alone: start it in one process")
    if select is not None:
        selection.parse(select)  # refuses a test before anything else is done
        if watch is not None:
            raise UserError("--select chooses among checkpoints that are there: leave out --watch")
    vocabularies: set[str] = set()
    # Read once: an evaluation that fine-tunes has a configuration of its own.
    named = bindings("run_vocabulary", "path").get("path")
    if named is not None:
        named = remote.staged(named)
        fetch_vocabulary(named)
    choose = functools.partial(_vocabulary, vocabularies, named)
    alone = pattern is None
    sweep = Sweep(config, make_partitioning(config.mesh), choose, gin_flags, overwrite, alone)
    show = _tables(config) if alone else _lines(config, sweep)
    seen: dict[str, str] = {}
    last = time.monotonic()
    while True:
        later = watch is not None
        paths = config.model_dirs if alone else _matches(pattern, later)
        checkpoints = [c for path in paths for c in _choose(sweep, path, which, later)]
        new = [checkpoint for checkpoint in dict.fromkeys(checkpoints) if checkpoint not in seen]
        seen |= targets.homes([*seen, *new], output)
        if select:
            fail = lambda run, error: sweep.fail(run, EVERY, error)  # noqa: E731
            new = selection.select(new, seen, select, fail)
        read = [target for c in new for target in _read(sweep, c, seen[c])]
        vocabularies |= {target.description.vocabulary for target in read}
        with following_results({target.home for target in read}):
            sweep.run(read, show)
        _draw({target.home for target in read}, output)
        last = time.monotonic() if new else last
        if watch is None or time.monotonic() - last > 60 * watch:
            break
        time.sleep(LOOK)
    _end(sweep, list(dict.fromkeys(seen.values())))


def _draw(homes: Collection[str], output: str | None) -> None:
    """Shows results in TensorBoard, beside what the run logged; not in a lone checkpoint."""
    for home in homes if jax.process_index() == 0 else ():
        if output or os.path.isdir(os.path.join(home, intact.FOLDER)):
            write_results(home, results_lib.read(os.path.join(home, results_lib.FILE)))


def _matches(pattern: str, later: bool) -> list[str]:
    """The folders that a pattern matches; none is an error, unless they may come later."""
    if not is_local(pattern):
        paths = [*map(remote.staged, remote.folders(pattern))]
    else:
        pattern = os.path.expanduser(pattern)
        paths = sorted(filter(os.path.isdir, glob.glob(pattern, recursive=True)))
    if not paths and not later:
        raise UserError(
            f"--checkpoints={pattern} matches no folder; quote it, so that the shell leaves it as "
            "it is, as in --checkpoints='runs/*/checkpoints/*'"
        )
    return sorted(paths, key=_by_step)


def _by_step(path: str) -> tuple[str, int, str]:
    folder, name = os.path.split(path)
    return folder, int(name) if name.isdecimal() else -1, name


def _choose(sweep: Sweep, path: str, which: str, later: bool) -> list[str]:
    """The checkpoints of a folder; a sweep leaves out folders without any.

    What is called as a checkpoint and is none has failed, unless it may be complete later.
    """
    if sweep.strict:
        bring(path, which)
        return choose_checkpoints(path, which)
    try:
        bring(path, which)
        if is_foreign(path):
            return [pretrained(path, sweep.config.cache.directory)]
        if complete_checkpoints(path):
            return choose_checkpoints(path, which)
        begun = os.path.isdir(os.path.join(path, intact.FOLDER))  # a run, as of SETTING/SEED
        if os.path.basename(path).isdecimal() and not (later or begun):  # called as a checkpoint
            raise UserError(intact.incomplete(path)[0])
    except UserError as error:
        sweep.fail(path, EVERY, error)
    return []


def _read(sweep: Sweep, checkpoint: str, home: str) -> list[Target]:
    try:
        return [targets.read(checkpoint, home)]
    except UserError as error:
        sweep.fail(checkpoint, EVERY, error)
    return []


def _tables(config: EvaluateConfig) -> Callable[[Cell, Shown], None]:
    """Shows the tables of each evaluation, and writes long ones to a file."""
    headed: set[str] = set()
    details: dict[str, list[str]] = {}

    def show(cell: Cell, shown: Shown) -> None:
        target, evaluation = cell.target, config.evaluations[cell.number]
        if jax.process_index():
            return
        if target.checkpoint not in headed:
            headed.add(target.checkpoint)
            print(f"\n{target.checkpoint}: step {target.description.step:,}")
        if not shown.measured:
            print(f"\nFrom {results_path(target)} (--overwrite computes it again):", end="")
        print(f"\n{evaluation.table(shown.results)}", flush=True)
        _write_details(evaluation, cell, shown, details, print)

    return show


def _lines(config: EvaluateConfig, sweep: Sweep) -> Callable[[Cell, Shown], None]:
    """Shows a line for each cell, and how far the sweep is."""
    details: dict[str, list[str]] = {}

    def show(cell: Cell, shown: Shown) -> None:
        target, evaluation = cell.target, config.evaluations[cell.number]
        if jax.process_index():
            return
        test = {*cell.parts[0][1]}  # and not, say, the text by which a layer is chosen
        own = [r for r in shown.results if r.model is None and r.signature in test]
        took = f"{shown.seconds:.1f} s" if shown.measured else "was there"
        print(f"{target.checkpoint}: {evaluation.title} ({took})")
        print(f"  {evaluation.summary(own)[:LINE]}\n  {sweep.progress()}", flush=True)
        _write_details(evaluation, cell, shown, details, lambda _: None)

    return show


def _write_details(
    evaluation: Evaluation,
    cell: Cell,
    shown: Shown,
    details: dict[str, list[str]],
    say: Callable[[str], None],
) -> None:
    """Writes the long tables of a checkpoint, which come cell by cell, to `tables/STEP.txt`."""
    target = cell.target
    own = details.setdefault(target.checkpoint, [])
    own += filter(None, [evaluation.details(shown.results)])
    if own:
        path = os.path.join(target.home, "tables", f"{target.description.step}.txt")
        write_atomically(path, "\n\n\n".join(own) + "\n")
        if shown.last:
            say(f"\nlong tables: {path}")


def _end(sweep: Sweep, homes: Sequence[str]) -> None:
    """Says where the results are, and, as an error, what has none."""
    if jax.process_index() == 0:
        if not sweep.strict:
            print("\n" + "\n".join(filter(None, [sweep.progress(), sweep.compilations()])))
        files = ", ".join(remote.shown(os.path.join(home, results_lib.FILE)) for home in homes)
        if files:
            print(f"\n{wrapped(f'results: {files}')}")
    if sweep.failures:
        raise UserError(sweep.failed())
    if not sweep.done:
        raise UserError("there was nothing to evaluate: no folder has a finished checkpoint")


def _vocabulary(every: Collection[str], path: str | None, target: Target) -> Vocabulary:
    """The vocabulary that Gin names, if all checkpoints have one; else the copy of a checkpoint.

    Raises:
      UserError: it is not that of the checkpoint.
    """
    own = vocabulary_path(target.checkpoint)
    if path is None or len(every) > 1:
        return load_vocabulary(own)
    if not os.path.exists(path):
        raise UserError(
            f"the vocabulary {path} does not exist; {target.checkpoint} has one of its own: "
            f"--gin.run_vocabulary.path={own}"
        )
    vocabulary = load_vocabulary(path)
    if vocabulary.fingerprint != target.description.vocabulary:
        raise UserError(
            f"{target.checkpoint} was trained with another vocabulary than {vocabulary.path}; "
            f"use its own: --gin.run_vocabulary.path={own}"
        )
    return vocabulary


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help='of each run: "latest" (the default), "best", "all", or steps as in 500,1000',
    )
    parser.add_argument(
        "--checkpoints",
        metavar="PATTERN",
        help="a sweep over the folders that match, as in 'runs/*/checkpoints/*', instead of "
        "MODEL_DIR: runs, checkpoints, folders of Hugging Face",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="of results, instead of the folders of the runs"
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=60.0,
        metavar="MINUTES",
        help="look for new checkpoints, until for so many minutes (60) none came",
    )
    parser.add_argument(
        "--select",
        metavar="best:METRIC:DATA",
        help="of each run only the checkpoint that is best by its results on validation text, as "
        "in best:loss:bible/validation",
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
    swept = any(flag.split("=")[0] == "--checkpoints" for flag in argv)
    needless, once = ["MODEL_DIR"] if swept else [], "EvaluateConfig.evaluations"
    with distributed.excused(argv):
        args = cli.parse(argv, __doc__, _flags, needless=needless, once=once)
        if args.output and not is_local(args.output):
            raise UserError(
                f"--output={args.output}: must be {LOCAL}; without --output the results of a "
                "remote run go to its own folder. Several machines may share a local one, whose "
                "file system has locks, and no remote one"
            )
        settings.check("--watch", args.watch, Positive | None)
    compiled.keep()
    with distributed.joined(args):
        remote.own_stages(*distributed.place())
        evaluate(
            EvaluateConfig(),
            args.checkpoint,
            args.overwrite,
            args.gin_flags,
            args.checkpoints,
            args.output,
            args.watch,
            args.select,
        )


if __name__ == "__main__":
    cli.run(main)
