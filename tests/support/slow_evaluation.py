"""A held-out evaluation that goes on for long, batch after batch."""

import dataclasses

import gin

from xl_flax.evaluation.masked_lm import MaskedAccuracy


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SlowAccuracy(MaskedAccuracy):
    """Masked accuracy over and over, from step 1 on."""

    def __call__(self, subject, context):
        results = super().__call__(subject, context)
        if subject.description.step:
            print("evaluates for long", flush=True)
            for _ in range(100_000):
                super().__call__(subject, context)
        return results
