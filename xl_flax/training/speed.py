"""How fast a run is: tokens and FLOPs per second, MFU, time waited for input."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import jax

from xl_flax.models.config import EncoderConfig
from xl_flax.models.flops import describe
from xl_flax.training.feeds import Feed
from xl_flax.training.peak import peak_flops


class Speed:
    """Clock-derived values of a window: tokens and FLOPs per second, time waited for input."""

    def __init__(self, encoder: EncoderConfig, feeds: Mapping[str, Feed], accumulate: int) -> None:
        self._tokens = self._flops = 0.0
        self.formula = ""
        for name, feed in feeds.items():
            objective, stream = feed.objective, feed.stream
            tokens = objective.batch_size * stream.length
            two_passes = objective.compares_rows and accumulate * objective.microbatches > 1
            parts = objective.flops(encoder, stream, two_passes)
            self._tokens += tokens
            self._flops += tokens * sum(parts.values())
            self.formula += f"{name}: {describe(parts)} FLOPs per token; "
        self._peak = peak_flops(jax.devices()[0])
        kind = jax.devices()[0].device_kind
        peak = f"{self._peak / 1e12:,.0f} TFLOP/s in bf16" if self._peak else "not known: no MFU"
        self.formula += f"peak of {kind}: {peak}"
        self._start: float | None = None
        self._steps = 0
        self._waited = 0.0
        self.seconds_per_step = 0.0

    def waited(self, seconds: float) -> None:
        """Adds time that the step waited for its batch."""
        self._waited += seconds

    def stepped(self) -> None:
        """Counts a step."""
        # The first step compiles: the clock starts after it.
        if self._start is None:
            self._start, self._waited = time.perf_counter(), 0.0
        else:
            self._steps += 1

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
        steps, waited = self._steps, self._waited
        self._start, self._steps, self._waited = now, 0, 0.0
        self.seconds_per_step = elapsed / max(steps, 1)
        values = {
            "tokens_per_second": steps * self._tokens / elapsed,
            "tokens_per_second_per_device": steps * self._tokens / elapsed / jax.device_count(),
            "model_tflops_per_second": steps * self._flops / elapsed / 1e12,
            "seconds_per_step": self.seconds_per_step,
            "input_wait": waited / elapsed,
        }
        if self._peak:
            values["mfu"] = (
                values["model_tflops_per_second"] * 1e12 / (self._peak * jax.device_count())
            )
        return values
