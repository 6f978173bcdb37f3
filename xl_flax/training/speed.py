"""How fast a run is: tokens and FLOPs per second, MFU, time waited for input."""

import contextlib
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence

import jax

from xl_flax.data.assumed import AssumedStream
from xl_flax.data.stream import Stream
from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import describe
from xl_flax.objectives.base import Objective
from xl_flax.parallel.chips import chip_of
from xl_flax.text_table import wrapped
from xl_flax.training.feeds import Feed


def flops_per_token(
    encoder: EncoderConfig,
    objective: Objective,
    stream: Stream | AssumedStream,
    accumulate: int,
    phase: Hashable,
) -> dict[str, float]:
    """FLOPs per token of a row that an objective's loss needs in a phase, by part."""
    two_passes = objective.compares_rows and accumulate * objective.microbatches > 1
    return objective.at_phase(phase).flops(encoder, stream, two_passes)


class Speed:
    """Clock-derived values of a window: tokens and FLOPs per second, time waited for input."""

    def __init__(self, encoder: EncoderConfig, feeds: Mapping[str, Feed], accumulate: int) -> None:
        self._encoder, self._feeds, self._accumulate = encoder, feeds, accumulate
        self._known: dict[tuple[str, Hashable], dict[str, float]] = {}  # by objective and phase
        chip = chip_of(jax.devices()[0])
        self._peak = chip.flops if chip else None
        self._start: float | None = None
        self._steps, self._tokens, self._flops = 0, 0, 0.0
        self._waited = 0.0
        self.seconds_per_step = 0.0

    def formula(self, frozen: bool) -> str:
        """How FLOPs are counted at present, and the device's peak, as lines of text.

        Args:
          frozen: whether some parameters are not trained.
        """
        lines = [
            f"{name}: {describe(self._parts(name, feed.phase()))} FLOPs per token"
            for name, feed in self._feeds.items()
        ]
        if frozen:
            lines.append("FLOPs of frozen parameters count as if they were trained")
        peak = f"{self._peak / 1e12:,.0f} TFLOP/s in bf16" if self._peak else "not known, so no MFU"
        lines.append(f"peak speed of {jax.devices()[0].device_kind}: {peak}")
        return "\n".join(map(wrapped, lines))

    def _parts(self, name: str, phase: Hashable) -> dict[str, float]:
        """FLOPs per token of an objective in a phase."""
        if (name, phase) not in self._known:
            feed = self._feeds[name]
            self._known[name, phase] = flops_per_token(
                self._encoder, feed.objective, feed.stream, self._accumulate, phase
            )
        return self._known[name, phase]

    def waited(self, seconds: float) -> None:
        """Adds time that the step waited for its batch."""
        self._waited += seconds

    def stepped(self, phases: Sequence[Hashable]) -> None:
        """Counts the step of the batches given last, in which the objectives had these phases."""
        # The first step compiles: the clock starts after it.
        if self._start is None:
            self._start, self._waited = time.perf_counter(), 0.0
            return
        self._steps += 1
        for (name, feed), phase in zip(self._feeds.items(), phases, strict=True):
            tokens = feed.size * feed.stream.length
            self._tokens += tokens
            self._flops += tokens * sum(self._parts(name, phase).values())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens meanwhile does not count."""
        before = time.perf_counter()
        yield
        if self._start is not None:
            self._start += time.perf_counter() - before

    def values(self) -> dict[str, float]:
        """Values since the last call."""
        now = time.perf_counter()
        elapsed = max(now - (self._start or now), 1e-9)
        tokens, flops = self._tokens, self._flops
        steps, waited = self._steps, self._waited
        self._start, self._steps, self._waited = now, 0, 0.0
        self._tokens, self._flops = 0, 0.0
        self.seconds_per_step = elapsed / max(steps, 1)
        values = {
            "tokens_per_second": tokens / elapsed,
            "tokens_per_second_per_device": tokens / elapsed / jax.device_count(),
            "model_tflops_per_second": flops / elapsed / 1e12,
            "seconds_per_step": self.seconds_per_step,
            "input_wait": waited / elapsed,
        }
        if self._peak:
            values["mfu"] = (
                values["model_tflops_per_second"] * 1e12 / (self._peak * jax.device_count())
            )
        return values
