"""Transfer as an evaluation: fine-tunes from a checkpoint, with several seeds, and tests that."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import gin

from xl_flax import cli
from xl_flax.checkpoints.description import Description
from xl_flax.checkpoints.load import vocabulary_path
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import DatasetSpec
from xl_flax.data.vocabulary import Vocabulary, load_vocabulary
from xl_flax.errors import UserError, message
from xl_flax.evaluation import results as results_lib
from xl_flax.evaluation import targets
from xl_flax.evaluation.base import Evaluation, Subject
from xl_flax.evaluation.config import EvaluateConfig
from xl_flax.evaluation.context import Context
from xl_flax.evaluation.results import UNTRAINED, Result, Row, signature
from xl_flax.evaluation.sweep import Sweep, alone_in
from xl_flax.files.read import read_text
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.settings import LocalPath, Name, Seeds
from xl_flax.training.config import TrainConfig
from xl_flax.training.loop import train

LOG = "log.txt"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class FineTuned(Evaluation):
    """What a checkpoint gives when it is fine-tuned as a Gin file says, the mean over seeds.

    Beside it an encoder of the same shape that was never trained is fine-tuned in the same way,
    once for all checkpoints of that shape.

    The runs are kept, so that they go on where they were killed, and their own results, with those
    of controls and each seed's, stand in their folders: FOLDER/transfer/NAME-DIGEST/SEED.
    """

    run: Name = gin.REQUIRED  # a Gin file that includes gin/finetune.gin
    folder: LocalPath = gin.REQUIRED  # holds the runs, and their caches
    seeds: Seeds = (0, 1, 2)
    settings: Sequence[Name] = ()  # bindings of Gin, as in ['STEPS=200']
    from_scratch: bool = True  # fine-tune untrained encoders, too

    @property
    def datasets(self) -> list[DatasetSpec]:
        """None: the runs read their own."""
        return []

    @property
    def parts(self) -> list[Evaluation]:
        """The checkpoint, then its control, which may fail or be there without it."""
        if not self.from_scratch:
            return [self]
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return [self, _FromScratch(**own)]

    @property
    def title(self) -> str:
        """The Gin file's name."""
        return f"{type(self).__name__} as {self._name}"

    def signatures(self, description: Description, context: Context) -> list[str]:
        """One, of all results.

        Raises:
          UserError: there is no such file; or a run asks, which must not train another one.
        """
        if context.training:
            self.fail("a run that trains cannot fine-tune beside; name it for xl_flax.evaluate")
        return [self._signature()]

    def __call__(self, subject: Subject, context: Context) -> list[Result]:
        """The results of the runs, each the mean over seeds, and those of their controls."""
        (sign,) = self.signatures(subject.description, context)
        if subject.checkpoint is None:
            self.fail("only a checkpoint can be fine-tuned")
        of_seeds = self._run(subject, f"{subject.key}{sign}")
        results = _over_seeds(of_seeds, signature=sign)
        for row in of_seeds[0].values():
            if row.model is not None:  # it needs no model, and so no seeds
                results.append(_result(row, signature=results_lib.of_model(sign, row.model)))
        return results

    @property
    def _name(self) -> str:
        return os.path.splitext(os.path.basename(self.run))[0]

    def _signature(self) -> str:
        path = self.run if os.path.exists(self.run) else os.path.join(cli.ROOT, self.run)
        text = read_text(path, "FineTuned.run names a Gin file")
        what = "\n".join([text, *self.settings])
        digest = hashlib.sha256(what.encode()).hexdigest()[:6]
        seeds = ",".join(map(str, self.seeds))
        return signature("transfer", recipe=f"{self._name}#{digest}", seeds=seeds)

    def _run(self, subject: Subject, about: str, *more: str) -> list[dict[tuple, Row]]:
        """As `_trained`, in the folder of what the runs are about; one command at a time."""
        digest = hashlib.sha256(about.encode()).hexdigest()[:8]
        place = os.path.join(self.folder, "transfer", f"{self._name}-{digest}")
        os.makedirs(place, exist_ok=True)
        with (
            alone_in(place, f"waiting for another process that fine-tunes in {place}"),
            open(os.path.join(place, LOG), "a") as log,
            contextlib.redirect_stdout(log),
        ):
            return self._trained(subject, place, more)

    def _trained(self, subject: Subject, place: str, more: Sequence[str]) -> list[dict[tuple, Row]]:
        """Trains and evaluates; of each seed its results by what they are about."""
        cache = Cache(self.folder, ()).of_vocabulary(subject.description.vocabulary)
        flags = {
            "CHECKPOINT": subject.checkpoint,
            "MODEL_DIR": place,
            "CACHE_DIR": cache.directory,
            "SEEDS": list(self.seeds),
        }
        bindings = [f"{name} = {value!r}" for name, value in flags.items()]
        bindings = [*self.settings, *bindings, *more]
        cli.load_gin([self.run], bindings)
        pairs = (binding.partition("=")[::2] for binding in bindings)
        gin_flags = [f"--gin.{name.strip()}={value.strip()}" for name, value in pairs]
        gin_flags.insert(0, f"--gin_file={self.run}")
        config, evaluation = TrainConfig(), EvaluateConfig()
        with _own_signals():
            for run in config.runs:
                if not train(run, gin_flags=gin_flags):
                    raise KeyboardInterrupt
        which = "latest" if config.best is None else "best"
        found = []
        for folder in evaluation.model_dirs:
            (path,) = targets.choose_checkpoints(folder, which)
            target = targets.read(path, folder)
            devices = make_partitioning(evaluation.mesh)
            inner = Sweep(evaluation, devices, _own_vocabulary, gin_flags, strict=True)
            inner.run([target], lambda *_: None)
            rows = results_lib.read(os.path.join(folder, results_lib.FILE))
            own = [r for r in rows if r.model is not None or results_lib.same(r, target.source)]
            found.append({(r.model, r.data, r.languages, r.metric, r.layer): r for r in own})
        return found


@dataclasses.dataclass(frozen=True)
class _FromScratch(FineTuned):
    """The control: an encoder of a checkpoint's shape that was never trained, fine-tuned alike."""

    @property
    def parts(self) -> list[Evaluation]:
        return [self]

    def signatures(self, description: Description, context: Context) -> list[str]:
        (sign,) = super().signatures(description, context)
        # All of the encoder: a run takes its dropout and dtype, too, where it sets none.
        what = json.dumps([description.encoder.to_dict(), description.vocabulary], sort_keys=True)
        shape = hashlib.sha256(what.encode()).hexdigest()[:12]
        return [results_lib.of_model(sign, f"{UNTRAINED}#{shape}")]

    def __call__(self, subject: Subject, context: Context) -> list[Result]:
        (sign,) = self.signatures(subject.description, context)

        def run() -> list[dict[tuple, Row]] | UserError:
            try:
                return self._run(subject, sign, "TrainConfig.init_from = None")
            except UserError as error:
                return UserError(f"the untrained encoder, a control: {message(error)}")

        of_seeds = context.once(sign, run)  # also a failure, for the other checkpoints
        if isinstance(of_seeds, UserError):
            raise of_seeds
        return _over_seeds(of_seeds, signature=sign, model=UNTRAINED)


def _over_seeds(of_seeds: Sequence[dict[tuple, Row]], **about: Any) -> list[Result]:
    """Means of the models' results that all seeds have."""
    means = []
    for key, first in of_seeds[0].items():
        values = tuple(own[key].value for own in of_seeds if key in own)
        if first.model is None and len(values) == len(of_seeds):
            seeds = values if len(values) > 1 else None
            changed = {"value": statistics.fmean(values), "seeds": seeds, "interval": None}
            means.append(_result(first, **changed, **about))
    return means


def _result(row: Row, **changed: Any) -> Result:
    names = [field.name for field in dataclasses.fields(Result)]
    return dataclasses.replace(Result(**{name: getattr(row, name) for name in names}), **changed)


def _own_vocabulary(target: targets.Target) -> Vocabulary:
    return load_vocabulary(vocabulary_path(target.checkpoint))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """What a run does when the machine asks to stop ends with the run."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
