"""What libtpu makes of XLM-R's step: figures that a change of the code may not worsen unseen.

Two layers of XLM-R base, 8 rows of 512 tokens a chip, on v5e:2x2; the sizes follow from the model,
the limits of memory and traffic were read with libtpu 0.0.52. Full sizes are in docs/pods.md.
"""

import json
import os
import subprocess
import sys

import pytest

from xl_flax import cli

pytest.importorskip("libtpu", reason="libtpu compiles for TPUs")

LAYER, OTHER = 7_087_872, 193_240_722  # parameters of XLM-R base
ATTENTION = 2 * 12 * 768 * 512  # FLOPs a token, in the kernel
TOKENS = 8 * 512  # of a chip


def planned(mesh, run="mlm_xlmr_base.gin", *others):
    flags = [f"--gin_file=gin/runs/{name}" for name in (run, f"../meshes/{mesh}")]
    flags += ["--gin.EncoderConfig.num_layers=2", "--gin.BATCH_SIZE=32", "--topology=v5e:2x2"]
    flags += others
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([cli.ROOT, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "xl_flax.plan", *flags],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        cwd=cli.ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def sent_by(plan):
    sent = {"all-gather": 0, "sums": 0}
    for c in plan["collectives"]:
        sent["all-gather" if c["kind"] == "all-gather" else "sums"] += c["bytes"]
    return sent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "gathered", "in_a_loop", "temporaries", "traffic"),
    [
        ("data_parallel.gin", 0, 0, 3.1, 18),
        ("zero1.gin", 4 * (2 * LAYER + OTHER), 0, 3.1, 16),
        # Kernels in bfloat16, forward and backward; tables once; gradients of layers in float32.
        ("fsdp.gin", 4 * OTHER + 2 * 2 * 2 * LAYER, 4 * LAYER * 2 + 2 * 2 * 2 * LAYER, 3.1, 16),
    ],
)
def test_a_step_of_xlmr(mesh, gathered, in_a_loop, temporaries, traffic):
    plan = planned(mesh)
    parameters = plan["parameters"]
    assert parameters == 2 * LAYER + OTHER
    sent = sent_by(plan)
    assert sent["sums"] == pytest.approx(4 * parameters, rel=0.02)
    assert sent["all-gather"] == pytest.approx(gathered, rel=0.01)
    looped = sum(c["bytes"] for c in plan["collectives"] if c["in_a_loop"])
    assert looped == pytest.approx(in_a_loop, rel=0.01)
    needed = plan["flops_per_step"] / 4 - TOKENS * 2 * ATTENTION
    assert 1 <= plan["product_flops"] / needed < 1.08
    assert plan["memory"]["temporaries"] / 2**30 < temporaries
    assert plan["traffic"] / 1e9 < traffic


@pytest.mark.slow
def test_two_objectives_send_one_gradient():
    plan = planned("data_parallel.gin", "tlm_xlmr_base.gin", "--gin.TLM_BATCH_SIZE=64")
    assert len(plan["assumed"]) == 2
    assert sent_by(plan)["sums"] == pytest.approx(4 * plan["parameters"], rel=0.02)
