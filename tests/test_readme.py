"""What the README promises a new user: a mixture of their own languages, in ten lines."""

import os
import re
import subprocess
import sys

import pytest

from xl_flax import cli

LINES = {
    "bre": ["Kentañ tra a raio an nen eo sellout piz", "An heol a bar war an ti bihan"],
    "cym": ["Mae hen wlad fy nhadau yn annwyl i mi", "Y mae'r haul yn tywynnu ar y tŷ bach"],
    "gle": ["Is maith an scéalaí an aimsir", "Tá an ghrian ag taitneamh ar an teach beag"],
}


def blocks(language):
    """The README's code blocks in one language."""
    with open(os.path.join(cli.ROOT, "README.md"), encoding="utf-8") as file:
        return re.findall(rf"^```{language}\n(.*?)^```", file.read(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_a_mixture_of_ones_own_is_ten_lines_and_trains(tmp_path, run_here, monkeypatch):
    module, _ = blocks("python")
    assert len(module.strip().splitlines()) == 10
    (tmp_path / "my_languages.py").write_text(module)
    (tmp_path / "celtic").mkdir()
    for language, lines in LINES.items():
        for split, copies in (("train", 20), ("validation", 3)):
            text = "".join(f"{line} {i}\n" for i in range(copies) for line in lines)
            (tmp_path / "celtic" / f"{language}.{split}.txt").write_text(text, encoding="utf-8")

    (flags,) = re.findall(r"flags=\((.*?)\)\n", "".join(blocks("bash")), re.DOTALL)
    flags = [flag.replace('"', "") for flag in flags.split()]
    flags += ["--gin.VOCAB_SIZE=75", "--gin.STEPS=4", "--gin.TrainConfig.log_every=2",
              "--gin.EncoderConfig.width=32",
              "--gin.OptimizerConfig.warmup_steps=0", f"--gin_search_paths={cli.ROOT}"]  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), cli.ROOT]))
    monkeypatch.syspath_prepend(tmp_path)  # also of what builds the cache
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # The vocabulary's command imports the module, whose tasks would stay in this process.
    vocab = [sys.executable, "-m", "xl_flax.vocab", *flags]
    run = subprocess.run(vocab, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    trained, evaluated = (run_here(name, flags) for name in ("train", "evaluate"))
    assert re.search(r"celtic_gle +40 ", trained)
    assert re.search(r"^step +4/4", trained, re.MULTILINE)
    assert re.search(r"^cym +\d", evaluated, re.MULTILINE)
