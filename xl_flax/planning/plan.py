"""The plan of a run: its step, compiled for devices that are not there, and what that says."""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from xl_flax.objectives.base import Objective
from xl_flax.parallel.chips import Chip
from xl_flax.parallel.mesh import make_partitioning
from xl_flax.planning.products import product_flops
from xl_flax.planning.program import Collective, collectives
from xl_flax.planning.roofline import estimate
from xl_flax.planning.topologies import Machine
from xl_flax.planning.traffic import memory_traffic
from xl_flax.training.config import TrainConfig
from xl_flax.training.program import (
    Program,
    assumed_streams,
    check_program,
    lower_without_data,
    make_program,
    parts_of,
)
from xl_flax.training.speed import flops_per_token

Plan = dict[str, Any]

# What libtpu says of a program as a whole, and of one whose temporaries alone are too large.
_SIZE = r"([\d.]+[KMG])"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm|\({_SIZE}\) exceeds available HBM \({_SIZE}\)")
_DAY = 24 * 60 * 60


def make_plan(config: TrainConfig, machine: Machine, tokens: float | None = None) -> Plan:
    """Compiles a run's step and says what it needs and how long it takes at best.

    Where CPUs stand in for GPUs, what is sent is the program's for as many devices; its temporaries
    are a CPU's, which fuses less, and what it moves is not known.

    Args:
      config: the run. Its last step is planned, where batch sizes or masking rates have phases.
      machine: which it runs on.
      tokens: that the run reads; None: those of its steps.

    Returns:
      What JSON can hold; sizes in bytes, per device unless the name says otherwise, and times in
      seconds. "fits" says whether the step fits, "why" why not; then there is no estimate.

    Raises:
      UserError: the run does not go with the devices.
    """
    chip, devices = machine.chip, machine.devices
    partitioning = make_partitioning(config.mesh, devices)
    check_program(config, partitioning)
    streams = assumed_streams(config)
    program = make_program(config, streams, partitioning)
    per_step, whole, flops = _work(config, program)
    plan = {
        "devices": len(devices),
        "kind": chip.kinds[0],
        "cpus_stand_in": machine.stands_in,
        "slices": machine.slices,
        "mesh": dict(partitioning.mesh.shape),
        "optimizer_divided_over": list(config.mesh.optimizer),
        "remat": config.encoder.remat,
        "microbatches": config.accumulate,
        "assumed": {name: stream.description() for name, stream in streams.items()},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.abstract.shapes)),
        "tokens_per_step": per_step,
        "flops_per_step": flops,
    }
    began = time.perf_counter()
    lowered = lower_without_data(program, config, config.steps - 1)
    state = {"parameters": program.layout.params, "optimizer": program.layout.optimizer}
    state["objectives"] = program.layout.objectives
    memory = {name: _on_each(layout) for name, layout in state.items()}
    try:
        compiled, text = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return plan | {"memory": memory, "fits": False, "why": _too_much(str(error))}
    plan["compile_seconds"] = time.perf_counter() - began
    analysis = compiled.memory_analysis()
    memory["rows and buffers"] = analysis.argument_size_in_bytes - sum(memory.values())
    memory["temporaries"] = analysis.temp_size_in_bytes
    unknown = _loop_turns(config, program)
    sent = collectives(text, unknown)
    plan |= {
        "memory": memory,
        "product_flops": product_flops(text, unknown),
        "traffic": None if machine.stands_in else memory_traffic(text, unknown),
        "collectives": _summary(sent),
        "fits": sum(memory.values()) <= chip.memory,
    }
    if not plan["fits"]:
        needs = f"{sum(memory.values()) / 2**30:.1f} of {chip.memory / 2**30:.1f} GiB"
        return plan | {"why": f"it needs {needs} of memory, as compiled for CPUs"}
    return plan | _estimate(plan, chip, sent, tokens or whole)


def _too_much(error: str) -> str:
    if (found := _USED.search(error)) is None:
        return "it needs too much memory"
    whole, there, temporaries, available = found.groups()
    if whole:
        return f"it needs {whole} of {there} of memory"
    return f"its temporaries need {temporaries} of {available} of memory"


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The program and its text, as XLA writes it while it compiles.

    Not `as_text`: libtpu 0.0.52 compiles programs for v5p and v6e that it cannot read again
    ("async-update instruction should have 1 operands").
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        (path,) = Path(folder).glob("*after_optimizations.txt")
        return compiled, path.read_text(encoding="utf-8")


def _estimate(plan: Plan, chip: Chip, sent: Sequence[Collective], tokens: float) -> dict[str, Any]:
    devices, flops, per_step = plan["devices"], plan["flops_per_step"], plan["tokens_per_step"]
    step = estimate(chip, devices, plan["slices"], flops, plan["traffic"], sent)
    seconds = step.apart
    return {
        "memory_of_device": chip.memory,
        "seconds": dataclasses.asdict(step) | {"step": seconds, "if_hidden": step.together},
        "mfu": flops / (seconds * devices * chip.flops),
        "tokens_per_second": per_step / seconds,
        "tokens": tokens,
        "days": tokens / per_step * seconds / _DAY,
        "device_hours": tokens / per_step * seconds * devices / 3600,
    }


def _rows(objective: Objective, config: TrainConfig, program: Program, row: int) -> int:
    """Rows of the batch that begins at this row, or example, of an objective's stream."""
    multiple = parts_of(objective, config) * program.partitioning.batch_shards
    shapes = program.streams[objective.name].shapes(objective.batch_at(row), multiple)
    return shapes["tokens"].shape[0]


def _work(config: TrainConfig, program: Program) -> tuple[int, float, float]:
    """Tokens of the last step and of the whole run, padding included, and that step's FLOPs."""
    tokens, whole, flops = 0, 0.0, 0.0
    for objective in program.objectives:
        stream, row = program.streams[objective.name], objective.row_after(0, config.steps - 1)
        rows, phase = _rows(objective, config, program, row), objective.phase_at(row)
        own = rows * stream.length
        parts = flops_per_token(config.encoder, objective, stream, config.accumulate, phase)
        tokens, flops = tokens + own, flops + own * sum(parts.values())
        whole += own / objective.batch_at(row) * objective.row_after(0, config.steps)
    return tokens, whole, flops


def _loop_turns(config: TrainConfig, program: Program) -> float:
    """Turns of loops of which the program does not say how often they turn: the most of any."""
    partitioning, turns = program.partitioning, []
    shape = config.encoder.vocab_size, config.encoder.width
    vocabulary, _ = partitioning.sharding(("vocab", None), shape).shard_shape(shape)
    for objective in program.objectives:
        row = objective.row_after(0, config.steps - 1)
        shards = parts_of(objective, config) * partitioning.batch_shards
        rows = max(1, _rows(objective, config, program, row) // shards)
        turns.append(objective.loop_turns(rows, objective.rows.length, vocabulary))
    return max(turns)


def _on_each(layout: Any) -> int:
    """Bytes of a device's share of some arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(layout)
    )


def _summary(sent: Sequence[Collective]) -> list[dict[str, Any]]:
    """Collectives by kind, group and whether they stand in a loop, the largest first."""
    sums: dict[tuple, list[int]] = {}
    for c in sent:
        own = sums.setdefault((c.kind, c.group, bool(c.loops), c.between_slices), [0, 0])
        own[0] += 1
        own[1] += c.bytes * c.turns
    return [
        {
            "kind": kind,
            "group": group,
            "in_a_loop": loop,
            "between_slices": between,
            "count": count,
            "bytes": size,
        }
        for (kind, group, loop, between), (count, size) in sorted(
            sums.items(), key=lambda s: -s[1][1]
        )
    ]
