"""Compiled programs are kept from one run to the next."""

import os
import subprocess
import sys

from xl_flax import cli
from xl_flax.parallel import compiled

PROGRAM = """
import jax, jax.numpy as jnp
from xl_flax.parallel import compiled
compiled.keep()
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: jnp.sort(x) * 3)(jnp.arange(4.0)))
print(found.count("/jax/compilation_cache/cache_hits"), jax.config.jax_compilation_cache_dir)
"""


def run(home, **more):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(home), "PYTHONPATH": cli.ROOT} | more
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, env=environment, capture_output=True, text=True
    )
    hits, folder = done.stdout.splitlines()[-1].split(" ", 1)
    return int(hits), folder


def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    hits, folder = run(tmp_path)
    assert hits == 0 and folder.startswith(str(tmp_path / "xl_flax" / "compiled-"))
    assert os.listdir(folder)
    assert run(tmp_path)[0] > 0


def test_a_folder_that_is_named_is_kept(tmp_path):
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[1] == f"{tmp_path}/own"
    assert not (tmp_path / "xl_flax").exists()


def test_processors_that_differ_have_folders_of_their_own(monkeypatch):
    here = compiled._processor()
    monkeypatch.setattr(compiled.Path, "read_text", lambda self, encoding: "flags: sse avx999")
    assert compiled._processor() != here
