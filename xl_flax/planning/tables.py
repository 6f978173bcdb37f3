"""Plans for the console."""

from collections.abc import Sequence

from xl_flax.planning.plan import Plan
from xl_flax.text_table import count, table, wrapped

_GIB = 2**30


def plan_table(plan: Plan) -> str:
    """A plan as text of 80 columns."""
    parts = [_head(plan), _memory(plan)]
    if not plan["fits"]:
        said = (
            f"does not fit: {plan['why']}. Try TrainConfig.accumulate, remat, a mesh, or --search"
        )
        return "\n\n".join([*parts, wrapped(said)])
    return "\n\n".join([*parts, _sent(plan), _times(plan)])


def ranking(plans: Sequence[Plan]) -> str:
    """Plans of one run in the order in which they are given."""
    rows = [("mesh", "remat", "microbatches", "GiB", "step, ms", "MFU", "days")]
    for plan in plans:
        rows.append(
            (
                mesh(plan),
                plan["remat"],
                str(plan["microbatches"]),
                f"{_total(plan) / _GIB:.1f}",
                f"{1e3 * plan['seconds']['step']:.1f}",
                f"{100 * plan['mfu']:.0f} %",
                f"{plan['days']:.1f}",
            )
        )
    return table(rows, left=(0, 1))


def mesh(plan: Plan) -> str:
    """The mesh of a plan, as "data 16 × fsdp 16, optimizer over data"."""
    sizes = " × ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1)
    divided = "+".join(plan["optimizer_divided_over"])
    return (sizes or "one device") + (f", optimizer over {divided}" if divided else "")


def _head(plan: Plan) -> str:
    slices = f" in {plan['slices']} slices" if plan["slices"] > 1 else ""
    assumed = "; ".join(f"{name}: {what}" for name, what in plan["assumed"].items())
    return "\n".join(
        wrapped(line)
        for line in (
            f"{plan['devices']} × {plan['kind']}{slices}; mesh {mesh(plan)}; remat "
            f"{plan['remat']!r}, {plan['microbatches']} microbatch(es)",
            f"{count(plan['parameters'])} parameters, {plan['tokens_per_step']:,} tokens a step",
            f"assumed of the text: {assumed}",
            *(["compiled for CPUs, which stand in"] if plan["cpus_stand_in"] else []),
        )
    )


def _total(plan: Plan) -> int:
    return sum(plan["memory"].values())


def _memory(plan: Plan) -> str:
    rows = [("memory of a device", "GiB")]
    rows += [(name, f"{size / _GIB:.2f}") for name, size in plan["memory"].items() if size]
    if plan["fits"]:
        left = plan["memory_of_device"] - _total(plan)
        rows += [("in all", f"{_total(plan) / _GIB:.2f}"), ("left", f"{left / _GIB:.2f}")]
    return table(rows)


def _sent(plan: Plan) -> str:
    rows = [("what is sent", "devices", "in a loop", "times", "MB")]
    for c in plan["collectives"]:
        if c["bytes"] >= 1e5:
            loop = "yes" if c["in_a_loop"] else "no"
            group = "slices" if c["between_slices"] else str(c["group"] or "")
            rows.append((c["kind"], group, loop, str(c["count"]), f"{c['bytes'] / 1e6:,.1f}"))
    return table(rows) if len(rows) > 1 else "nothing is sent"


def _times(plan: Plan) -> str:
    seconds = plan["seconds"]
    if plan["traffic"] is None:
        memory = ("memory", "not known")
    else:
        moved = f"memory: {plan['traffic'] / 1e9:,.1f} GB to and from memory"
        memory = (moved, f"{1e3 * seconds['memory']:.1f}")
    needed = f"{plan['flops_per_step'] / plan['devices'] / 1e12:,.2f} TFLOP by formula"
    dcn = "not known" if seconds["dcn"] is None else f"{1e3 * seconds['dcn']:.1f}"
    rows = [("a step takes at least, on each device", "ms")]
    rows.append((f"arithmetic: {needed}", f"{1e3 * seconds['arithmetic']:.1f}"))
    rows.append(memory)
    rows.append(("sending inside a slice", f"{1e3 * seconds['ici']:.1f}"))
    if plan["slices"] > 1:
        rows.append(("sending between slices", dcn))
    rows.append(("the longer of the first two, and sending", f"{1e3 * seconds['step']:.1f}"))
    rows.append(("if all is sent meanwhile", f"{1e3 * seconds['if_hidden']:.1f}"))
    speed = (
        f"MFU {100 * plan['mfu']:.0f} %, {plan['tokens_per_second']:,.0f} tokens/s: "
        f"{count(int(plan['tokens']))} tokens in {plan['days']:.1f} days, "
        f"{plan['device_hours']:,.0f} device hours"
    )
    products = f"{plan['product_flops'] / 1e12:,.2f} TFLOP"
    products = (
        f"the program's matrix products, on each device, without those in kernels: {products}"
    )
    return "\n".join((table(rows), wrapped(products), wrapped(speed)))
