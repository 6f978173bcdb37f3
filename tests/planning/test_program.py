"""What the compiled step sends and holds: read from programs for this CPU, and for TPUs."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import steps
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xl_flax.data.stream import Rows
from xl_flax.models.config import EncoderConfig
from xl_flax.objectives.mlm import MaskedLM
from xl_flax.parallel.mesh import MeshConfig, make_partitioning
from xl_flax.planning.program import KINDS, Collective, collectives
from xl_flax.training.optimizer import OptimizerConfig

VOCAB, LENGTH, ROWS = 2048, 32, 8  # rows on a device
CONFIG = EncoderConfig(
    vocab_size=VOCAB, num_layers=2, width=128, num_heads=2, mlp_width=256, max_positions=LENGTH,
    embedding_dropout=0.1, mlp_out_dropout=0.1,
)  # fmt: skip
VOCABULARY = types.SimpleNamespace(
    special=types.SimpleNamespace(mask=4, sep=3, pad=0),
    special_mask=lambda: np.arange(VOCAB) < 5,
)
STREAM = types.SimpleNamespace(
    num_texts=1, examples_per_row=None, tasks=("t",), languages=("a", "b"), features={}
)


def program(ici, divided, devices, length=LENGTH):
    """The text of the compiled MLM step, and the bytes of a gradient."""
    partitioning = make_partitioning(MeshConfig(ici=ici, optimizer=divided), devices)
    batch = len(devices) * ROWS
    # A few slots at a time: the loss is a loop.
    objective = MaskedLM(rows=Rows("t", length), batch_size=batch, logits_mib=0.1)
    optimizer = OptimizerConfig(schedule="constant")
    config = dataclasses.replace(CONFIG, max_positions=length)
    step = steps.TrainingStep(config, objective, VOCABULARY, STREAM, optimizer, partitioning)
    rows = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    shapes = dict.fromkeys(("tokens", "segment_ids", "positions"), rows)
    shapes["languages"] = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
    shapes["row_id"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
    gradient = sum(4 * leaf.size for leaf in jax.tree.leaves(step.layout.params))
    return step.lower(shapes).compile().as_text(), gradient


def sent(text, gradient):
    """Bytes of the program's collectives by kind, in gradients; nothing is sent in a loop."""
    found = collectives(text)
    assert not [c for c in found if c.loops]
    sums = dict.fromkeys(KINDS, 0)
    for c in found:
        sums[c.kind] += c.bytes / gradient
    return {kind: round(share, 2) for kind, share in sums.items() if share > 0.02}


def test_gradients_are_added_up_once():
    assert sent(*program((8, 1, 1), (), jax.devices())) == {"all-reduce": 1}


def test_where_the_optimizer_is_divided_each_device_gets_a_part_of_the_sum():
    program_and_size = program((8, 1, 1), ("data",), jax.devices())
    assert sent(*program_and_size) == {"reduce-scatter": 1, "all-gather": 1}


def tpu_program(topology, ici, divided, length=LENGTH):
    """The same of TPUs that are not there; in a process of its own, as libtpu ends a process that
    has flags for CPUs."""
    pytest.importorskip("libtpu", reason="libtpu compiles for TPUs")
    path = [str(Path(__file__).parents[2]), str(Path(steps.__file__).parent), *sys.path]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, __file__, topology, json.dumps([ici, divided, length])]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_gradients_are_added_up_once_on_tpus():
    assert sent(*tpu_program("v5e:2x2", (4, 1, 1), ())) == {"all-reduce": 1}


def test_the_optimizer_may_be_divided_on_tpus():
    found = sent(*tpu_program("v5e:2x2", (4, 1, 1), ("data",)))
    # What is small may be added up whole.
    assert found["reduce-scatter"] > 0.5 and found["all-gather"] == 1
    assert found["reduce-scatter"] + found.get("all-reduce", 0) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("ici", [(4, 1, 1), (1, 2, 2)])
def test_attention_holds_no_scores_on_tpus(ici):
    """Where each device has whole parameters, and where the compiler divides what is computed."""
    text, _ = tpu_program("v5e:2x2", ici, (), 512)
    kernels = re.findall(r"%(splash_\w+?)_segmented\w*[.\d]* = .*tpu_custom_call", text)
    assert sorted(kernels) == ["splash_mha_dkv", "splash_mha_fwd"]  # of the scanned layer
    assert not re.search(r"\w+\[[\d,]*512,512\]", text)


# ---- Reading programs


def compiled(function, *shapes, mesh):
    """Text of a program of arrays whose first axis lies on all devices."""
    sharding = NamedSharding(mesh, PartitionSpec("d"))
    args = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for s in shapes]
    return jax.jit(function).lower(*args).compile().as_text()


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()), ("d",))


def each(function, mesh, *out):
    specs = {"in_specs": PartitionSpec("d"), "out_specs": PartitionSpec(*out)}
    return jax.shard_map(function, mesh=mesh, **specs, check_vma=False)


def test_kinds_and_sizes(mesh):
    def function(x):
        whole = jax.lax.all_gather(x, "d", tiled=True)
        parts = jax.lax.psum_scatter(jnp.sin(whole), "d", tiled=True)
        moved = jax.lax.ppermute(parts, "d", [(i, (i + 1) % 8) for i in range(8)])
        return jax.lax.psum(moved, "d")

    found = collectives(compiled(each(function, mesh), (64, 16), mesh=mesh))
    sizes = {c.kind: (c.bytes, c.loops) for c in found}
    assert len(found) == 4 and sizes == {
        "all-gather": (64 * 16 * 4, ()),
        "reduce-scatter": (64 * 16 * 4, ()),
        "collective-permute": (8 * 16 * 4, ()),
        "all-reduce": (8 * 16 * 4, ()),
    }
    assert {c.group for c in found if c.kind != "collective-permute"} == {8}
    assert all("shard_map" in c.source for c in found)


def test_loops_and_branches(mesh):
    def function(x):
        inner = lambda _, x: x + jax.lax.psum(x, "d")  # noqa: E731
        outer = lambda x, _: (jax.lax.fori_loop(0, 5, inner, x), None)  # noqa: E731
        x, _ = jax.lax.scan(outer, x, length=3)
        return jax.lax.cond(x[0, 0] > 0, lambda x: jax.lax.pmax(x, "d"), jnp.sin, x)

    found = collectives(compiled(each(function, mesh, "d"), (8, 4), mesh=mesh))
    assert sorted(((c.kind, c.loops, c.turns) for c in found), key=str) == [
        ("all-reduce", (), 1),
        ("all-reduce", (3, 5), 15),
    ]


def test_a_loop_of_unknown_length(mesh):
    def function(x):
        return jax.lax.while_loop(
            lambda x: x[0, 0] < 5, lambda x: x + jax.lax.psum(jnp.abs(x), "d"), x
        )

    (found,) = collectives(compiled(each(function, mesh, "d"), (8, 4), mesh=mesh))
    assert found.loops == (None,) and found.turns == 1


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("HloModule jit_f")


def test_the_condition_of_a_loop_is_in_the_loop(mesh):
    def function(x):
        return jax.lax.while_loop(lambda x: jax.lax.psum(x[0, 0], "d") < 5, lambda x: x + 1, x)

    found = collectives(compiled(each(function, mesh, "d"), (8, 4), mesh=mesh))
    assert found and all(c.loops == (None,) for c in found)


def test_between_slices():
    text = """HloModule jit_f

ENTRY %main.1 (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %t = token[] after-all()
  %s = (f32[4,8]{1,0}, u32[], token[]) send(%p, %t), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %d = token[] send-done(%s), channel_id=2, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %r = f32[4,8]{1,0} copy(%p)
}
"""  # noqa: E501
    assert collectives(text) == [Collective("all-reduce", 128, None, (), "", True)]


def test_what_starts_and_ends_apart():
    text = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main.1 (p: bf16[4,8]) -> f32[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %g = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p), replica_groups={{0,1,2,3}}
  %h = bf16[16,8]{1,0} all-gather-done(%g)
  %q = (bf16[16,8], bf16[16,8], u32[], u32[]) collective-permute-start(%h), channel_id=1
  %j = bf16[16,8]{1,0} collective-permute-done(%q)
  %c = f32[16,8]{1,0} convert(%j)
  %r = f32[16,8]{1,0} all-reduce-start(%c), replica_groups=[2,2]<=[4], to_apply=%add
  %d = f32[16,8]{1,0} all-reduce-done(%r), metadata={op_name="jit(f)/psum"}
  ROOT %m = f32[16,8]{1,0} all-reduce(%d), replica_groups=mesh['a'=2,'b'=4,'c'=3] {'a','c'}
}
"""
    assert collectives(text) == [
        Collective("all-gather", 256, 4, (), ""),
        Collective("collective-permute", 256, None, (), ""),
        Collective("all-reduce", 512, 2, (), ""),
        Collective("all-reduce", 512, 6, (), ""),
    ]


if __name__ == "__main__":
    from jax.experimental import topologies

    topology, settings = sys.argv[1:]
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    ici, divided, length = json.loads(settings)
    print(json.dumps(program(ici, divided, described.devices, length)))
