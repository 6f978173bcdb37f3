"""Going on with a run: what is set otherwise than before, and what this changes.

Each checkpoint keeps the settings that it was trained with (`settings.json`, a flat object). A run
that goes on prints every difference; what would make another model or another state of it ends in
an error that names the setting.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from xl_flax.checkpoints.load import complete_checkpoints, read_description
from xl_flax.data.fingerprint import describe
from xl_flax.data.stream import Stream
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.files.read import read_json
from xl_flax.parallel import params as params_lib
from xl_flax.training.config import TrainConfig
from xl_flax.training.optimizer import OptimizerConfig, make_schedule

SETTINGS_FILE = "settings.json"

FlatSettings = dict[str, Any]  # by name, as in "OptimizerConfig.learning_rate" or "mlm.batch_size"

SCHEDULE = ("learning_rate", "schedule", "warmup_steps", "decay_steps", "final_scale")
# What shapes the optimizer's state.
OPTIMIZER = ("OptimizerConfig.name", "OptimizerConfig.rate_factors")
SHOWN = 5  # of the entries of one setting that differ, as tasks' rates


def flat_settings(
    config: TrainConfig, streams: Mapping[str, Stream], vocabulary: str
) -> FlatSettings:
    """All settings of a run by name, as JSON can hold them; what is None is left out.

    Args:
      config: the run.
      streams: by the objective's name: rates and sizes of their tasks are settings, too.
      vocabulary: its path.
    """
    settings = {"run_vocabulary.path": vocabulary, "devices": _devices()}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "objectives":
            for objective in value:
                settings |= _flatten(objective, objective.name)
        elif dataclasses.is_dataclass(value):
            settings |= _flatten(value, type(value).__name__)
        elif field.name != "model_dir":
            settings |= _flatten(value, f"TrainConfig.{field.name}")
    for name, stream in streams.items():
        settings |= {f"{name}.{key}": value for key, value in stream.description().items()}
    settings = {k: remote.shown(v) if isinstance(v, str) else v for k, v in settings.items()}
    return json.loads(json.dumps(settings, default=describe))


def to_json(settings: FlatSettings) -> bytes:
    """The text of `settings.json`."""
    return (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode()


def read_settings(checkpoint: str) -> FlatSettings | None:
    """The settings that a checkpoint was trained with; None if an older version saved it.

    Raises:
      UserError: the file is damaged.
    """
    path = os.path.join(checkpoint, "model", SETTINGS_FILE)
    return read_json(path) if os.path.exists(path) else None


def differences(before: FlatSettings, now: FlatSettings) -> list[str]:
    """What differs, a line for each setting."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if was == is_now:
            continue
        if isinstance(was, dict) and isinstance(is_now, dict):
            lines.append(f"{name}: {_entries(was, is_now)}")
        else:
            unread = "; only a new run reads it" if name.startswith("InitFrom.") else ""
            lines.append(f"{name} was {was!r} and is now {is_now!r}{unread}")
    return lines


def check_early(config: TrainConfig, vocabulary: str) -> None:
    """Refuses the folder of another run before anything is cached, by what needs no data.

    Args:
      config: the run.
      vocabulary: its fingerprint.

    Raises:
      UserError: naming the settings that differ.
    """
    checkpoints = complete_checkpoints(config.model_dir)
    if not checkpoints:
        return
    try:
        before = read_description(checkpoints[-1])
    except UserError:  # damaged: what to do is decided when all of it is read
        return
    _check_steps(config, before.step)
    objectives = {objective.name: objective.description() for objective in config.objectives}
    now = dataclasses.replace(
        before, encoder=config.encoder, vocabulary=vocabulary, objectives=objectives
    )
    if lines := before.differences(now):
        raise another_run(config.model_dir, lines)


def another_run(model_dir: str, differences: Sequence[str]) -> UserError:
    """The error of a folder that holds another run."""
    return UserError(
        f"{remote.shown(model_dir)} holds another run: {'; '.join(differences)}. Choose another "
        "MODEL_DIR, or restore these settings"
    )


def _check_steps(config: TrainConfig, step: int) -> None:
    if config.steps < step:
        raise UserError(
            f"TrainConfig.steps = {config.steps:,}, but {config.model_dir} has reached step "
            f"{step:,} already: set more steps, or choose another MODEL_DIR for a shorter run. "
            "Nothing was changed"
        )


def check(
    config: TrainConfig, checkpoint: str, step: int, items: Mapping[str, Any], now: FlatSettings
) -> list[str]:
    """Sees to it that a run can go on, and says what is set otherwise than before.

    Args:
      config: the run as it is.
      checkpoint: from which it goes on.
      step: of the checkpoint.
      items: by name of the checkpoint's item, "params" and "optimizer": trees of arrays without
        values.
      now: the run's settings.

    Returns:
      Lines of text, [] if nothing differs.

    Raises:
      UserError: the run has reached more steps than it is to have, or its state has other arrays;
        naming the settings that differ.
    """
    _check_steps(config, step)
    before = read_settings(checkpoint)
    _check_arrays(checkpoint, items, before, now)
    if before is None:
        return ["an older version saved it without its settings: what differs cannot be said"]
    lines = differences(before, now)
    if step < config.steps and (change := _rate_change(before, config, step)):
        lines.append(change)
    return lines


def _rate_change(before: FlatSettings, config: TrainConfig, step: int) -> str | None:
    """What became of the learning rate after this step; None: its schedule is the same."""
    was = {name: before.get(f"OptimizerConfig.{name}") for name in SCHEDULE}
    try:
        old = make_schedule(OptimizerConfig(**was), before["TrainConfig.steps"])
    except (UserError, KeyError, TypeError):  # settings of a version with other ones
        return None
    new = make_schedule(config.optimizer, config.steps)
    updates = np.unique(np.linspace(step, config.steps - 1, 1000, dtype=int))
    if np.allclose(old(updates), new(updates), rtol=1e-6, atol=0):
        return None
    last, following = float(old(max(step - 1, 0))), float(new(step))
    return (
        f"this draws the learning rate anew: {last:.2e} in step {step:,}, {following:.2e} in step "
        f"{step + 1:,}"
    )


def _check_arrays(
    checkpoint: str, items: Mapping[str, Any], before: FlatSettings | None, now: FlatSettings
) -> None:
    """Sees to it that a checkpoint's arrays are those of the run, before they are read."""
    for item, tree in items.items():
        there = _arrays(os.path.join(checkpoint, item))
        here = {path: _array(leaf) for path, leaf in params_lib.flat(tree)}
        changed = sorted(p for p in there.keys() | here.keys() if there.get(p) != here.get(p))
        if not there or not changed:
            continue
        path = changed[0]
        lines = [] if before is None else _deciding(item, path, before, now)
        raise UserError(
            f"{checkpoint} is of a run with other settings: "
            + "".join(f"{line}; " for line in lines)
            + f"{'with this, ' if lines else ''}the array {path} was "
            f"{there.get(path, 'not there')} and is now {here.get(path, 'not there')}. Restore "
            f"{'these settings' if lines else _culprit(item, path)}, or choose another MODEL_DIR "
            "(InitFrom takes over trained weights)"
        )


def _deciding(item: str, path: str, before: FlatSettings, now: FlatSettings) -> list[str]:
    """The settings that differ and decide the shape of an array."""
    part, _, rest = path.partition("/")
    if item == "params":
        prefixes: Sequence[str] = ("EncoderConfig.",)
    elif part == "objectives":
        prefixes = (f"{rest.partition('/')[0]}.",)
    else:
        prefixes = OPTIMIZER
    names = [name for name in before.keys() | now.keys() if name.startswith(tuple(prefixes))]
    return differences(*({n: s[n] for n in names if n in s} for s in (before, now)))


def _culprit(item: str, path: str) -> str:
    """What decides the shape of an array, where no setting is known to differ."""
    part, _, rest = path.partition("/")
    if item == "params":
        return f"the code of the module that makes {path}"
    if part == "objectives":
        return f"what init_state of objective {rest.partition('/')[0]!r} gives"
    return " and ".join(OPTIMIZER)


def _arrays(folder: str) -> dict[str, str]:
    """The arrays of a checkpoint's item by path, as "float32[3, 4]"; {} if nothing tells."""
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree
    except Exception:  # of any type where a file is damaged: restoring says what is wrong
        return {}
    leaves = params_lib.flat(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {path: _array(leaf) for path, leaf in leaves if getattr(leaf, "shape", None) is not None}


def _array(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def _flatten(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Pairs of a setting's name and value, those of dataclasses in it one by one."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _flatten(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Sequence) and any(map(dataclasses.is_dataclass, value)):
        for number, item in enumerate(value):
            yield from _flatten(item, f"{name}[{number}]")
    elif value is not None:
        yield name, value


def _entries(was: Mapping[str, Any], is_now: Mapping[str, Any]) -> str:
    """The entries that differ, the first few of them."""
    changed = sorted(key for key in was.keys() | is_now.keys() if was.get(key) != is_now.get(key))
    shown = [f"{key} was {was.get(key)} and is now {is_now.get(key)}" for key in changed[:SHOWN]]
    others = len(changed) - len(shown)
    return ", ".join(shown) + (f", and {others} others" if others else "")


def _devices() -> str:
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"
