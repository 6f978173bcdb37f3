"""Tries meshes, remat policies and microbatches of a run, and ranks those that fit."""

import dataclasses
from collections.abc import Iterator

from xl_flax.errors import UserError
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.planning.plan import Plan, make_plan
from xl_flax.planning.tables import mesh
from xl_flax.planning.topologies import Machine
from xl_flax.training.config import TrainConfig

REMAT = ("none", "dots", "full")


def search(config: TrainConfig, machine: Machine, tokens: float | None) -> list[Plan]:
    """Plans that fit, the fastest by its estimate first.

    The batch stays as it is. For each mesh and remat policy the fewest microbatches that fit are
    taken, powers of two; with more a step is no faster.

    Args:
      config: the run.
      machine: which it runs on.
      tokens: that the run reads; None: those of its steps.
    """
    found = []
    for own in _meshes(config.mesh, len(machine.devices) // machine.slices, machine.slices):
        for remat in REMAT:
            encoder = dataclasses.replace(config.encoder, remat=remat)
            changed = dataclasses.replace(config, mesh=own, encoder=encoder)
            if plan := _fewest_microbatches(changed, machine, tokens):
                found.append(plan)
    return sorted(found, key=lambda plan: plan["seconds"]["step"])


def _meshes(config: MeshConfig, per_slice: int, slices: int) -> Iterator[MeshConfig]:
    """Data parallel, the same with the optimizer divided, fsdp over all devices or fewer."""
    dcn = (slices, 1, 1)
    for optimizer in ((), ("data",)):
        yield dataclasses.replace(config, ici=(-1, 1, 1), dcn=dcn, optimizer=optimizer)
    fsdp = per_slice
    while fsdp >= min(8, per_slice) and fsdp > 1:
        sizes = (per_slice // fsdp, fsdp, 1)
        yield dataclasses.replace(config, ici=sizes, dcn=dcn, optimizer=())
        fsdp = fsdp // 4 if fsdp % 4 == 0 else 1


def _fewest_microbatches(
    config: TrainConfig, machine: Machine, tokens: float | None
) -> Plan | None:
    count = 1
    most = min(o.batch_at(o.row_after(0, config.steps - 1)) for o in config.objectives)
    while count <= max(1, most // len(machine.devices)):
        try:
            plan = make_plan(dataclasses.replace(config, accumulate=count), machine, tokens)
        except UserError as error:
            if count == 1:
                print(f"left out: {error}", flush=True)
            return None
        said = "fits" if plan["fits"] else plan["why"]
        print(f"{mesh(plan)}; remat {plan['remat']!r}, {count} microbatch(es): {said}", flush=True)
        if plan["fits"]:
            return plan
        if (
            sum(plan["memory"].values()) > machine.chip.memory
            and "temporaries" not in plan["memory"]
        ):
            return None
        count *= 2
    return None
