"""An evaluation that writes down when it begins, for tests of what is measured how often."""

import dataclasses
import os
import time

import gin
import jax
import numpy as np

from xl_flax.data.layout import Layout
from xl_flax.data.prepare import DatasetSpec
from xl_flax.evaluation.base import Evaluation
from xl_flax.evaluation.results import MACRO, Result, signature


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Counted(Evaluation):
    """The mean of the parameters, which takes `seconds`."""

    name: str = "a"
    log: str = ""
    seconds: float = 0.0

    @property
    def datasets(self):
        return [DatasetSpec("all", "test", Layout(16))]

    def signatures(self, description, context):
        return [signature("counted", data="all/test", name=self.name)]

    def __call__(self, subject, context):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {subject.key[0]} {self.name}\n")
        time.sleep(self.seconds)
        sums = [np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(subject.params)]
        (sign,) = self.signatures(subject.description, context)
        return [Result("counted", "all/test", (MACRO,), self.name, float(sum(sums)), 1, sign)]
