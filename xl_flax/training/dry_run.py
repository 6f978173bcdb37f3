"""What a run would be: its step is compiled, and none is run."""

import jax

from xl_flax.parallel import params as params_lib
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.text_table import wrapped
from xl_flax.training.config import TrainConfig
from xl_flax.training.program import (
    assumed_streams,
    check_program,
    lower_without_data,
    make_program,
)
from xl_flax.training.setup import Setup


def compile_with_data(setup: Setup) -> str:
    """Compiles the step for the first batch, and says how much memory it takes."""
    batches = {name: feed.first_batch() for name, feed in setup.feeds.items()}
    arguments = setup.program.layout, batches, setup.buffers, setup.key, setup.phases()
    return _compiled(setup.program.step.lower(*arguments))


def compile_without_data(config: TrainConfig, missing: str) -> str:
    """The same for assumed data.

    Args:
      config: the run.
      missing: what is not there yet, a sentence.
    """
    partitioning = make_partitioning(config.mesh)
    check_program(config, partitioning)
    streams = assumed_streams(config)
    program = make_program(config, streams, partitioning)
    assumed = "; ".join(f"{name}: {stream.description()}" for name, stream in streams.items())
    lines = [wrapped(f"{missing}. Assumed meanwhile: {assumed}"), ""]
    lines += [params_lib.summary(*program.parameters)]
    return "\n".join([*lines, _compiled(lower_without_data(program, config))])


def _compiled(lowered: jax.stages.Lowered) -> str:
    memory = lowered.compile().memory_analysis()
    return wrapped(
        f"dry run: the step compiles; per device {_mib(memory.argument_size_in_bytes)} of "
        f"arguments and {_mib(memory.temp_size_in_bytes)} of temporaries. No step was run"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
