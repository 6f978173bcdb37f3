"""Plans: what fits, what is sent, how long a step takes at best."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib import util

import jax
import pytest

from xl_flax import cli
from xl_flax import plan as plan_command
from xl_flax.errors import UserError
from xl_flax.parallel.chips import CHIPS, chip_of
from xl_flax.parallel.mesh import MeshConfig
from xl_flax.planning import plan as plan_lib
from xl_flax.planning import search as search_lib
from xl_flax.planning import tables, topologies
from xl_flax.planning.plan import make_plan
from xl_flax.planning.program import Collective
from xl_flax.planning.roofline import estimate
from xl_flax.planning.tables import plan_table, ranking
from xl_flax.planning.topologies import Machine
from xl_flax.training.config import TrainConfig

V5E = next(chip for chip in CHIPS if chip.name == "v5e")
EIGHT = Machine(jax.devices(), V5E)
NAMED = ["MODEL_DIR = '/m'", "CACHE_DIR = '/c'", "VOCABULARY = '/v'"]


@pytest.fixture
def config():
    cli.load_gin(["gin/runs/quickstart.gin"], NAMED)
    return dataclasses.replace(TrainConfig(), held_out=[], best=None)


def test_a_plan(config):
    plan = make_plan(config, EIGHT, tokens=1e9)
    assert plan["fits"] and plan["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert plan["memory"]["parameters"] == 4 * plan["parameters"]
    assert plan["memory"]["optimizer"] == pytest.approx(8 * plan["parameters"], rel=0.01)
    (objective,) = config.objectives
    assert plan["tokens_per_step"] == objective.batch_size * objective.rows.length
    (sent,) = [c for c in plan["collectives"] if c["bytes"] > plan["parameters"]]
    assert sent["kind"] == "all-reduce" and not sent["in_a_loop"] and sent["group"] == 8
    assert sent["bytes"] == pytest.approx(4 * plan["parameters"], rel=0.02)
    seconds = plan["seconds"]
    assert seconds["arithmetic"] == plan["flops_per_step"] / 8 / 197e12
    assert seconds["memory"] == plan["traffic"] / 819e9
    assert seconds["step"] > max(seconds["arithmetic"], seconds["memory"]) + seconds["ici"] * 0.99
    assert plan["days"] == pytest.approx(1e9 / plan["tokens_per_second"] / 86400)
    text = plan_table(json.loads(json.dumps(plan)))
    assert "does not fit" not in text and all(len(line) <= 80 for line in text.splitlines())


def test_gpus_by_formula(config):
    h100 = next(chip for chip in CHIPS if chip.name == "h100")
    plan = make_plan(config, Machine(jax.devices(), h100))
    seconds = plan["seconds"]
    assert plan["fits"] and plan["kind"] == "NVIDIA H100" and plan["cpus_stand_in"]
    assert seconds["arithmetic"] == plan["flops_per_step"] / 8 / 989e12
    assert seconds["memory"] is None and seconds["step"] == seconds["arithmetic"] + seconds["ici"]
    (sent,) = [c for c in plan["collectives"] if c["bytes"] > plan["parameters"]]
    assert seconds["ici"] == pytest.approx(2 * sent["bytes"] * 7 / 8 / 450e9, rel=0.05)
    text = plan_table(json.loads(json.dumps(plan)))
    assert "compiled for CPUs, which stand in" in text and "not known" in text
    small = dataclasses.replace(h100, memory=2**20)
    plan = make_plan(config, Machine(jax.devices(), small))
    assert not plan["fits"] and "0.0 GiB of memory, as compiled for CPUs" in plan_table(plan)


def test_the_optimizer_divided_takes_an_eighth(config):
    whole = make_plan(config, EIGHT)
    mesh = MeshConfig(optimizer=("data",))
    divided = make_plan(dataclasses.replace(config, mesh=mesh), EIGHT)
    assert divided["memory"]["optimizer"] < whole["memory"]["optimizer"] / 7


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Used 25.07G of 15.75G hbm.", "it needs 25.07G of 15.75G of memory"),
        (
            "memory required for HLO temporaries (16.2G) exceeds available HBM (15.75G).",
            "its temporaries need 16.2G of 15.75G of memory",
        ),
        ("Ran out.", "it needs too much memory"),
    ],
)
def test_what_does_not_fit_says_by_how_much(config, monkeypatch, said, why):
    def compile_(self, *args, **kwargs):
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    plan = make_plan(config, EIGHT)
    assert not plan["fits"] and plan["why"] == why
    assert f"does not fit: {why}. Try" in plan_table(plan)


def test_a_batch_that_does_not_go_with_the_devices(config):
    with pytest.raises(UserError, match="batch_size=32 cannot be divided into 16 microbatch"):
        make_plan(dataclasses.replace(config, accumulate=16), EIGHT)


def test_lower_bounds_by_hand():
    reduce = Collective("all-reduce", 800_000_000, 256, (), "")
    row = Collective("all-gather", 1_000_000, 16, (10,), "")
    step = estimate(V5E, 256, 1, 256 * 197e12, 819e9, [reduce, row])
    assert (step.arithmetic, step.memory, step.dcn) == (1.0, 1.0, 0.0)
    # All links: twice the bytes at 200 GB/s. A group of 16: those of one of two dimensions.
    links = 2 * 0.8 * 255 / 256 / 200 + 10 * 0.001 * 15 / 16 / 100
    assert step.ici == pytest.approx(links)
    assert step.apart == pytest.approx(1 + links) and step.together == 1.0


def test_between_slices_each_device_sends_its_share():
    inside = Collective("all-reduce", 800_000_000, 256, (), "")
    between = Collective("all-reduce", 3_125_000, None, (), "", True)
    step = estimate(V5E, 512, 2, 0.0, 0.0, [inside, between])
    assert step.ici == pytest.approx(2 * 0.8 * 255 / 256 / 200)
    assert step.dcn == pytest.approx(2 * 0.003125 / 2 / 3.125)
    v4 = next(chip for chip in CHIPS if chip.name == "v4")
    assert estimate(v4, 512, 2, 0.0, 0.0, [inside, between]).dcn is None


def test_the_search_takes_the_fewest_microbatches_that_fit(config, monkeypatch, capsys):
    """8 rows fit without remat and 16 with "full", with the optimizer divided twice as many."""

    def planned(config, machine, tokens):
        rows = {"none": 8, "dots": 8, "full": 16}[config.encoder.remat]
        fits = 32 / config.accumulate <= rows * (2 if config.mesh.optimizer else 1)
        cost = {"none": 1.0, "dots": 1.1, "full": 1.3}[config.encoder.remat]
        return {
            "fits": fits, "why": "it needs too much memory", "mesh": {"data": 8},
            "optimizer_divided_over": config.mesh.optimizer, "remat": config.encoder.remat,
            "microbatches": config.accumulate, "memory": {"parameters": 2**30}, "mfu": 0.5,
            "seconds": {"step": cost * (1 + config.accumulate / 100)}, "days": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(search_lib, "make_plan", planned)
    found = search_lib.search(config, EIGHT, None)
    best = found[0]
    assert (best["remat"], best["microbatches"]) == ("none", 2) and best["optimizer_divided_over"]
    assert next(p["microbatches"] for p in found if not p["optimizer_divided_over"]) == 4
    steps = [plan["seconds"]["step"] for plan in found]
    assert steps == sorted(steps)
    assert "remat 'full', 1 microbatch(es): it needs too much memory" in capsys.readouterr().out
    assert ranking(found).splitlines()[2].startswith("data 8, optimizer over data")


def test_the_search_ends_where_nothing_fits(config, monkeypatch):
    plan = {
        "fits": False, "why": "it needs too much memory", "mesh": {}, "remat": "none",
        "optimizer_divided_over": (), "memory": {"parameters": 2**30},
    }  # fmt: skip
    asked = []

    def planned(config, *args):
        asked.append(config.accumulate)
        return plan

    monkeypatch.setattr(search_lib, "make_plan", planned)
    assert search_lib.search(config, EIGHT, None) == []
    assert max(asked) == config.objectives[0].batch_size // 8  # a row on each device
    asked.clear()
    plan["memory"]["parameters"] = 2**40  # no microbatch makes that smaller
    assert search_lib.search(config, EIGHT, None) == [] and set(asked) == {1}


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", r"has the name of a device \(v4, v5e, v5p, v6e, tpu7x, h100-pcie,"),
        ("v5e", "the shape of a TPU slice in chips, .* as in v5e:16x16"),
        ("v5e:4x", "the shape of a TPU slice"),
        ("v5e:2x2x2", "slices of v5e have 2 dimensions"),
        ("h100:8x2", "GPUs are those of one host, as in h100:8"),
    ],
)
def test_a_topology_that_does_not_exist_is_refused(topology, message):
    with pytest.raises(UserError, match=message):
        topologies.machine(topology)


def test_the_command_needs_neither_folders_nor_a_vocabulary(monkeypatch):
    monkeypatch.setattr(topologies, "machine", lambda topology, slices: EIGHT)
    monkeypatch.setattr(plan_lib, "make_plan", lambda *args: {"fits": False})
    monkeypatch.setattr(tables, "plan_table", str)
    assert plan_command.main(["--gin_file=gin/runs/mlm_xlmr_base.gin", "--topology=v5e:2x4"]) == 1
    assert TrainConfig().model_dir == "none"


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e \.\[plan\]"):
        topologies.machine("v5e:2x2")


def test_chips_are_known_by_how_jax_calls_them():
    kind = lambda name: type("Device", (), {"device_kind": name})()  # noqa: E731
    for name, chip in (
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
    ):
        assert chip_of(kind(name)).name == chip
    assert chip_of(kind("cpu")) is None


def command(*flags):
    argv = [sys.executable, "-m", "xl_flax.plan", "--gin_file=gin/runs/quickstart.gin"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([cli.ROOT, *sys.path])}
    return subprocess.run(
        [*argv, *flags], check=False, env=environment, capture_output=True, text=True, cwd=cli.ROOT
    )


def test_the_command_for_gpus():
    done = command("--topology=h100:4")
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(done.stdout.splitlines()[-1])
    assert (plan["devices"], plan["kind"], plan["traffic"]) == (4, "NVIDIA H100", None)


def test_the_command_for_tpus():
    pytest.importorskip("libtpu", reason="libtpu compiles for TPUs")
    done = command("--topology=v5e:2x2", "--num_slices=2", "--gin.MeshConfig.dcn=(-1, 1, 1)")
    assert done.returncode == 0, done.stderr[-2000:]
    plan = json.loads(done.stdout.splitlines()[-1])
    assert (plan["devices"], plan["slices"], plan["kind"]) == (8, 2, "TPU v5 lite")
    between = [c for c in plan["collectives"] if c["between_slices"]]
    # A quarter of 4 bytes for each parameter, and what small arrays are padded to.
    assert 1 <= sum(c["bytes"] for c in between) / plan["parameters"] < 4
    assert plan["seconds"]["dcn"] > 0 and "sending between slices" in done.stdout
    done = command("--topology=v5e:3x3")
    assert done.returncode == 1 and "knows no --topology=v5e:3x3" in done.stderr
    done = command("--topology=v5e:2x2", "--gin.BATCH_SIZE=100000", "--gin.LENGTH=512")
    assert done.returncode == 1 and "does not fit: it" in done.stdout
