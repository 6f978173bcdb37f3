"""Evaluations of many checkpoints: every cell once, whoever else works on them, whatever fails.

A cell is a checkpoint and an evaluation. Checkpoints follow one another by vocabulary, whose caches
and gold data are read once, and by shape, whose programs are compiled once. What `results.jsonl`
holds is not measured again. Several processes may share the folders of results: they claim cells by
leases (`xl_flax.files.leases`), and wait at the end for those of others.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax

from xl_flax.checkpoints.description import Description
from xl_flax.data.prepare import Caches
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError, message
from xl_flax.evaluation import controls, predictions
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation.base import Evaluation
from xl_flax.evaluation.caches import prepare_together
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.loading import Loader
from xl_flax.evaluation.results import Result, Row
from xl_flax.evaluation.targets import Target
from xl_flax.files.leases import lease
from xl_flax.files.lock import locked
from xl_flax.parallel import compiled, distributed
from xl_flax.parallel.rules import Partitioning

T, U = TypeVar("T"), TypeVar("U")
CLAIMS = ".claims"  # in the folder of results
CONTROLS = ()  # in place of a checkpoint's step and id
POLL = 1.0  # seconds between two looks at what other processes do


class Cell(NamedTuple):
    """What is measured, kept, claimed and counted as one."""

    target: Target
    number: int  # of the evaluation
    parts: list[tuple[Evaluation, list[str]]]  # with the signatures of their results


class Shown(NamedTuple):
    """What there is to show of a cell."""

    results: list[Result]  # of the checkpoint, then of its controls; none but on process 0
    measured: bool  # now
    seconds: float
    last: bool  # of the cells of its checkpoint, but for those of other processes


class Failure(NamedTuple):
    """Why something has not been measured."""

    checkpoint: str
    what: str  # the evaluation
    reason: str


@dataclasses.dataclass
class Sweep:
    """What is known of a command's evaluations while it goes through checkpoints."""

    config: EvaluateConfig
    partitioning: Partitioning
    # Of a checkpoint; raises UserError where Gin names another one.
    vocabulary: Callable[[Target], Vocabulary]
    gin_flags: Sequence[str] = ()  # of this process, for the one that builds caches
    overwrite: bool = False  # measure again what is there
    strict: bool = False  # stop at the first failure
    failures: list[Failure] = dataclasses.field(default_factory=list)
    done: int = 0  # cells
    left: Sequence[Cell] = ()
    # By shape one of its descriptions, and by checkpoint how many programs were compiled.
    programs: dict[str, tuple[Description, dict[str, int]]] = dataclasses.field(
        default_factory=dict
    )
    seconds: dict[int, list[float]] = dataclasses.field(default_factory=dict)  # by evaluation
    _cells: dict[str, list[Cell]] = dataclasses.field(default_factory=dict)  # by checkpoint
    # By vocabulary, of each evaluation.
    _contexts: dict[str, list[Context | UserError]] = dataclasses.field(default_factory=dict)
    # By file how it looked, and by checkpoint what it held then.
    _rows: dict[str, tuple[tuple | None, dict[tuple, list[Row]]]] = dataclasses.field(
        default_factory=dict
    )
    _fresh: set[tuple[str, str]] = dataclasses.field(default_factory=set)  # checkpoint, signature
    _beside: dict[str, dict[int, list[Result]]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._loader = Loader(self.partitioning)

    def run(self, targets: Sequence[Target], show: Callable[[Cell, Shown], None]) -> None:
        """Evaluates checkpoints; what cannot be measured is among `failures` afterwards.

        Args:
          targets: the checkpoints.
          show: is called with each cell once it has its results.
        """
        for target in targets:
            self._cells[target.checkpoint] = self._plan(target)
        waiting = [cell for t in _in_order(targets) for cell in self._cells[t.checkpoint]]
        while waiting:
            taken = []
            for i, cell in enumerate(waiting):
                self.left = taken + waiting[i + 1 :]
                if not self._finish(cell, waiting[i + 1 :], show):
                    taken.append(cell)
            if len(taken) == len(waiting):
                time.sleep(POLL)
            waiting = taken

    def progress(self) -> str:
        """How far this is, and how long the rest will take if its cells take as long as others."""
        every = [own for seconds in self.seconds.values() for own in seconds]
        counts = f"{self.done:,} cells done, {len(self.failures):,} failed, {len(self.left):,} left"
        if not (self.left and every):
            return counts
        by_number = {number: statistics.fmean(own) for number, own in self.seconds.items()}
        mean = statistics.fmean(every)
        rest = sum(by_number.get(cell.number, mean) for cell in self.left)
        return f"{counts}, about {datetime.timedelta(seconds=round(rest))} to go"

    def compilations(self) -> str:
        """How many programs were compiled for checkpoints of each shape: one line each."""
        lines = []
        for description, counts in self.programs.values():
            first, *others = counts.values()
            encoder = description.encoder
            shape = f"{encoder.num_layers} layers of width {encoder.width}"
            pieces = f"{encoder.vocab_size:,} pieces"
            line = f"{shape}, {pieces}: {first} programs compiled with the first checkpoint"
            more = f" of {len(others) + 1}, {sum(others)} with the others" if others else ""
            lines.append(line + more)
        return "\n".join(lines)

    def failed(self) -> str:
        """What was not measured, by the reason."""
        by_reason: dict[str, dict[str, list[str]]] = {}
        for checkpoint, what, reason in self.failures:
            by_reason.setdefault(reason, {}).setdefault(checkpoint, []).append(what)
        each = []
        for reason, where in by_reason.items():
            cells = "; ".join(f"{c}: {', '.join(own)}" for c, own in where.items())
            each.append(f"{reason} ({cells})")
        if len(self.failures) == 1:
            return each[0]
        return f"{len(self.failures)} cells failed: " + "\n  ".join(each)

    def fail(self, checkpoint: str, what: str, error: Exception) -> None:
        """Notes and says that something cannot be measured, or raises the error."""
        if self.strict:
            raise error
        reason = message(error) if isinstance(error, UserError) else str(error).splitlines()[0]
        again = any(reason == failure.reason for failure in self.failures)
        self.failures.append(Failure(checkpoint, what, reason))
        if jax.process_index() == 0:
            shown = "for the same reason" if again else reason
            print(f"failed: {checkpoint}, {what}: {shown}", file=sys.stderr, flush=True)

    def _plan(self, target: Target) -> list[Cell]:
        cells = []
        for number, evaluation in enumerate(self.config.evaluations):
            try:
                context = self._context(target, number)
                self._lines(target)  # damaged ones are an error before anything is computed
                parts = [(p, p.signatures(target.description, context)) for p in evaluation.parts]
                cells.append(Cell(target, number, parts))
            except UserError as error:
                self.fail(target.checkpoint, evaluation.title, error)
        return cells

    def _context(self, target: Target, number: int) -> Context:
        """That of the target's vocabulary, once the caches of this evaluation are in it."""
        key = target.description.vocabulary
        if key not in self._contexts:
            self._contexts[key] = self._read_caches(target)
        found = self._contexts[key][number]
        if isinstance(found, UserError):
            raise found
        return found

    def _read_caches(self, target: Target) -> list[Context | UserError]:
        """By evaluation the context of a vocabulary, which is one, or what its caches lack."""
        every = [e.every_dataset for e in self.config.evaluations]
        try:
            vocabulary = self.vocabulary(target)
            cache = self.config.cache.of_vocabulary(vocabulary.fingerprint)
            prepare = lambda own: prepare_together(own, cache, vocabulary, self.gin_flags)  # noqa: E731
            try:  # all at once: what is missing is built by one process
                caches = [prepare([spec for own in every for spec in own])]
            except UserError:
                if self.strict or jax.process_count() > 1:
                    raise
                caches = [_or_error(prepare, own) for own in every]
                if all(isinstance(own, UserError) for own in caches):
                    raise  # said once, of all
        except UserError as error:
            return [error] * len(every)
        there = [own for own in caches if not isinstance(own, UserError)]
        merged = Caches({spec: own[spec] for own in there for spec in own})
        context = Context(merged, vocabulary, self.partitioning)
        if len(caches) == 1:
            return [context] * len(every)
        return [own if isinstance(own, UserError) else context for own in caches]

    def _finish(self, cell: Cell, others: Sequence[Cell], show: Callable) -> bool:
        """Measures a cell unless that is done; False while another process holds it."""
        target, evaluation = cell.target, self.config.evaluations[cell.number]
        begin, compilations = time.monotonic(), compiled.counter()
        measured = False
        try:
            beside = self._controls(cell)
            begin = time.monotonic()  # controls are measured once, and say nothing of the rest
            if not self._is_done(cell):
                with _claim(cell) as mine:
                    if not mine:
                        return False
                    if measured := not self._is_done(cell):
                        self._measure(cell, others)
                        self.seconds.setdefault(cell.number, []).append(time.monotonic() - begin)
        except (UserError, jax.errors.JaxRuntimeError) as error:
            self.fail(target.checkpoint, evaluation.title, error)
            return True
        finally:
            if measured:
                shape = controls.shape(target.description)
                _, own = self.programs.setdefault(shape, (target.description, {}))
                own[target.checkpoint] = own.get(target.checkpoint, 0) + compilations()
        self.done += 1
        last = not any(c.target == target for c in others)
        results = [] if jax.process_index() else self._kept(cell)
        show(cell, Shown(results + beside, measured, time.monotonic() - begin, last))
        return True

    def _measure(self, cell: Cell, others: Sequence[Cell]) -> None:
        """Writes the results of those parts that the file lacks."""
        target, context = cell.target, self._context(cell.target, cell.number)
        for part, signatures in cell.parts:
            if self._has(target, set(signatures)):
                continue
            subject = self._loader.get(target.checkpoint)
            following = (c for c in others if c.target != target and not self._is_done(c))
            if (ahead := next(following, None)) is not None:
                self._loader.ahead(ahead.target.checkpoint)
            results = part(subject, context)
            if jax.process_index() == 0:
                path = results_path(target)
                if own := [result for result in results if result.model is None]:
                    results_lib.write(path, target.source, own)
                if beside := controls.sourced(r for r in results if r.model is not None):
                    controls.add(path, beside)
                for sign, (data, scored) in context.predictions.items():
                    predictions.write(target.home, target.description.step, sign, data, scored)
            context.predictions.clear()
            self._fresh |= {(target.checkpoint, sign) for sign in signatures}

    def _controls(self, cell: Cell) -> list[Result]:
        """What the results of a cell are shown beside; also written with them, once."""
        target, context = cell.target, self._context(cell.target, cell.number)
        if not self.config.controls:
            return []
        if target.checkpoint not in self._beside:
            cells = self._cells[target.checkpoint]
            parts = [part for own in cells for part, _ in own.parts]
            kept = controls.kept_path(self.config.cache)
            folder = os.path.dirname(kept)
            with alone_in(
                folder, f"waiting for another process that measures controls in {folder}"
            ):
                found = controls.measure(parts, target.description, context, kept)
                if jax.process_index() == 0:
                    controls.add(kept, itertools.chain.from_iterable(found))
            if jax.process_index() == 0:
                controls.add(results_path(target), itertools.chain.from_iterable(found))
            of_parts = iter(found)
            of_cells = {
                own.number: [r for _ in own.parts for c in next(of_parts) for r in c.results]
                for own in cells
            }
            self._beside = {target.checkpoint: of_cells}  # of one checkpoint at a time
        return self._beside[target.checkpoint][cell.number]

    def _is_done(self, cell: Cell) -> bool:
        return self._has(cell.target, {sign for _, signs in cell.parts for sign in signs})

    def _has(self, target: Target, signatures: set[str]) -> bool:
        """Whether there are all these results, of this command where they are to be replaced."""
        if self.overwrite:
            return {(target.checkpoint, sign) for sign in signatures} <= self._fresh
        there = {row.signature for row in self._lines(target) + self._control_lines(target)}
        return distributed.decide_on_first(signatures <= there)

    def _kept(self, cell: Cell) -> list[Result]:
        """The results of a cell that are in the file, part by part."""
        rows = self._lines(cell.target) + self._control_lines(cell.target)
        return [r for _, signs in cell.parts for r in results_lib.from_rows(rows, signs)]

    def _lines(self, target: Target) -> list[Row]:
        """What the file holds of a target, read again only when it has changed."""
        path = results_path(target)
        state = None
        with contextlib.suppress(FileNotFoundError):
            stat = os.stat(path)
            state = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if path not in self._rows or self._rows[path][0] != state:
            of_sources: dict[tuple, list[Row]] = {}
            for row in results_lib.read(path):
                source = (row.step, row.id) if row.model is None else CONTROLS
                of_sources.setdefault(source, []).append(row)
            self._rows[path] = state, of_sources
        return self._rows[path][1].get((target.source.step, target.source.id), [])

    def _control_lines(self, target: Target) -> list[Row]:
        """What the file holds of controls, whose signatures say what they are of."""
        self._lines(target)
        return self._rows[results_path(target)][1].get(CONTROLS, [])


def results_path(target: Target) -> str:
    """The file of a target's results."""
    return os.path.join(target.home, results_lib.FILE)


def _or_error(function: Callable[[T], U], argument: T) -> U | UserError:
    """What a function returns, or the error that it raises."""
    try:
        return function(argument)
    except UserError as error:
        return error


def _in_order(targets: Sequence[Target]) -> list[Target]:
    """Those of one vocabulary, and of these those of one shape, together; else as they come."""
    ranks: dict[str, int] = {}
    for target in targets:
        for key in (target.description.vocabulary, controls.shape(target.description)):
            ranks.setdefault(key, len(ranks))

    def rank(target: Target) -> tuple[int, int]:
        description = target.description
        return ranks[description.vocabulary], ranks[controls.shape(description)]

    return sorted(targets, key=rank)


@contextlib.contextmanager
def _claim(cell: Cell) -> Iterator[bool]:
    """Whether a cell is this command's until the block ends; all its processes agree."""
    if jax.process_index():
        yield distributed.decide_on_first(False)
        return
    about = [str(cell.target.source), *(sign for _, signs in cell.parts for sign in signs)]
    name = hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
    with lease(os.path.join(cell.target.home, CLAIMS), name) as mine:
        yield distributed.decide_on_first(mine)


@contextlib.contextmanager
def alone_in(folder: str, busy: str) -> Iterator[None]:
    """Keeps other commands out of a folder, as `locked` does; of several processes one waits."""
    if jax.process_index():
        yield
        return
    with locked(folder, busy, wait=True, name=".measuring.lock"):
        yield
