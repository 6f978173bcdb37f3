"""The state of a run before its first step: fresh, from another checkpoint, or resumed."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xl_flax.checkpoints.description import Description, trained_on
from xl_flax.checkpoints.load import (
    read_description,
    replace_params,
    vocabulary_path,
)
from xl_flax.checkpoints.manager import (
    PROGRESS_FORMAT,
    CheckpointManager,
    Progress,
    read_progress,
)
from xl_flax.data.stream import Stream
from xl_flax.errors import UserError
from xl_flax.models.heads import TOKEN_TABLES, UNLABELLED
from xl_flax.objectives.base import Objective
from xl_flax.parallel import params as params_lib
from xl_flax.parallel.params import Abstract
from xl_flax.parallel.rules import Partitioning
from xl_flax.training.config import InitFrom
from xl_flax.training.going_on import another_run
from xl_flax.training.step import TrainState

LANGUAGE_TABLE = "encoder/embeddings/languages"


def fresh(
    params: Any,
    optimizer: optax.GradientTransformation,
    layout: TrainState,
    objectives: Sequence[Objective] = (),
    streams: Mapping[str, Stream] = MappingProxyType({}),
) -> TrainState:
    """The state of step 0; its arrays are made in the layout they are to have."""
    shardings = jax.tree.map(lambda s: s.sharding, (layout.optimizer, layout.objectives))
    make = lambda p: (optimizer.init(p), _init_objectives(p, objectives, streams))  # noqa: E731
    opt_state, states = jax.jit(make, out_shardings=shardings)(params)
    return TrainState(
        params,
        opt_state,
        states,
        updates=_zero(layout.updates),
        skipped=_zero(layout.skipped),
        bad_streak=_zero(layout.bad_streak),
    )


def _zero(like: jax.ShapeDtypeStruct) -> jax.Array:
    """A count in a buffer of its own: the step donates it."""
    return jax.device_put(jnp.zeros((), jnp.int32), like.sharding)


def _init_objectives(
    params: Any, objectives: Sequence[Objective], streams: Mapping[str, Stream]
) -> dict[str, Any]:
    """The states of the objectives that have one, by name."""
    states = {o.name: o.init_state(params, streams[o.name]) for o in objectives}
    return {name: state for name, state in states.items() if state is not None}


def layout(
    abstract: Abstract,
    optimizer: optax.GradientTransformation,
    partitioning: Partitioning,
    objectives: Sequence[Objective] = (),
    streams: Mapping[str, Stream] = MappingProxyType({}),
) -> TrainState:
    """Shapes, dtypes and shardings of the whole state.

    The optimizer's moments lie as `Partitioning.optimizer_sharding` says, the objectives' states as
    their `state_axes` say, everything else on each device.

    Raises:
      UserError: the axes of an objective's state do not fit it.
    """
    params = abstract.layout(partitioning)
    whole = partitioning.sharding(())
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    like = dict(params_lib.flat(abstract.shapes))
    moments = dict(params_lib.flat(abstract.optimizer_shardings(partitioning)))

    def moment(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        # The path of a moment ends with that of its parameter.
        parts = path.split("/")
        names = ("/".join(parts[i:]) for i in range(len(parts)))
        same = (moments[n] for n in names if n in like and like[n].shape == leaf.shape)
        sharding = next(same, whole)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    opt_state = jax.eval_shape(optimizer.init, params)
    leaves = [moment(path, leaf) for path, leaf in params_lib.flat(opt_state)]
    opt_state = jax.tree.unflatten(jax.tree.structure(opt_state), leaves)

    shapes = jax.eval_shape(lambda params: _init_objectives(params, objectives, streams), params)
    every = jax.tree.leaves(abstract.axes, is_leaf=lambda x: isinstance(x, tuple))
    known = {None, *(name for name, _ in partitioning.rules), *(n for axes in every for n in axes)}
    states = {
        o.name: _lay_out(o, shapes[o.name], o.state_axes(abstract.axes), partitioning, known)
        for o in objectives
        if o.name in shapes
    }
    return TrainState(params, opt_state, states, updates=scalar, skipped=scalar, bad_streak=scalar)


def _lay_out(
    objective: Objective,
    shapes: Any,
    axes: Any,
    partitioning: Partitioning,
    known: Collection[str | None],
) -> Any:
    """Shapes with the shardings that an objective declares for its state; `known` axis names."""
    is_axes = lambda x: isinstance(x, tuple) and all(isinstance(a, str | None) for a in x)  # noqa: E731
    named = dict(params_lib.flat(axes, is_leaf=is_axes))

    def lay_out(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        if len(named.get(path) or ()) != leaf.ndim:
            raise UserError(
                f"objective {objective.name!r}: {type(objective).__name__}.state_axes gives no "
                f"axis names for {path!r} of shape {leaf.shape}: it must return the state's tree "
                "with one name or None per axis at each leaf"
            )
        if unknown := set(named[path]) - set(known):
            raise UserError(
                f"objective {objective.name!r}: {type(objective).__name__}.state_axes names "
                f"{sorted(unknown)[0]!r} for {path!r}, which is no logical axis; there are "
                f"{', '.join(sorted(name for name in known if name))}"
            )
        sharding = partitioning.sharding(named[path], leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    leaves = [lay_out(path, leaf) for path, leaf in params_lib.flat(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def progress_there(
    checkpoint: str | None,
    model_dir: str,
    description: Description,
    seed: int,
    frozen: Sequence[str] = (),
) -> Progress | None:
    """Where the run in this folder is, of which `checkpoint` is the newest; None without one.

    Raises:
      UserError: the folder belongs to another model, vocabulary, objectives or seed, or to a
        version of this project with other random keys.
    """
    if checkpoint is None:
        return None
    progress = read_progress(checkpoint)
    if progress.format != PROGRESS_FORMAT:
        raise UserError(
            f"{model_dir} holds a run of another version of XL-Flax, whose random keys and states "
            "of objectives were others: finish it with that version, or begin a new run from its "
            f"weights (another MODEL_DIR, and InitFrom.checkpoint={model_dir!r})"
        )
    lines = read_description(checkpoint).differences(description)
    if progress.seed != seed:
        lines.append(f"TrainConfig.seed was {progress.seed} and is now {seed}")
    if changed := sorted(set(progress.frozen) ^ set(frozen)):
        lines.append(
            f"OptimizerConfig.rate_factors: {', '.join(changed[:3])} "
            f"{'was' if changed[0] in progress.frozen else 'is now'} frozen, which changes the "
            "optimizer's state; to go on from the weights, begin a run with InitFrom"
        )
    if lines:
        raise another_run(model_dir, lines)
    if progress.rows.keys() != description.objectives.keys():
        raise UserError(
            f"{checkpoint}/model/progress.json is damaged: it has rows of "
            f"{', '.join(progress.rows) or 'nothing'}, and the objectives are "
            f"{', '.join(description.objectives)}"
        )
    return progress


def resume(manager: CheckpointManager, step: int, layout: TrainState) -> TrainState:
    """Reads a checkpoint's arrays into `layout`, whatever mesh they were saved on."""
    params, rest = manager.restore(step, layout.params, pack(layout))
    # Older versions also saved inside a streak of skipped steps.
    return TrainState(params, **rest | {"bad_streak": _zero(layout.bad_streak)})


def pack(state: TrainState) -> dict[str, Any]:
    """What is saved beside the parameters."""
    return {
        "optimizer": state.optimizer,
        "objectives": state.objectives,
        "updates": state.updates,
        "skipped": state.skipped,
        "bad_streak": state.bad_streak,
    }


def init_from(
    params: Any, config: InitFrom, description: Description
) -> tuple[Any, str, Description]:
    """Fresh parameters, some of them taken from another checkpoint.

    Returns:
      The parameters, which of them were taken in words, and the description with what they were
      trained on before.

    Raises:
      UserError: nothing matches, shapes differ, a token table is for another vocabulary, or a
        language table for other languages.
    """
    params, taken, checkpoint = replace_params(
        params, config.checkpoint, config.include, config.exclude, config.stack
    )
    tables = [name for name in taken if name in TOKEN_TABLES]
    source = read_description(checkpoint)
    if tables and source.vocabulary != description.vocabulary:
        raise UserError(
            f"InitFrom: {', '.join(tables)} of {checkpoint} belong to another vocabulary; exclude "
            f"them, or use its own: --gin.VOCABULARY={vocabulary_path(checkpoint)}"
        )
    before = source.all_languages
    if LANGUAGE_TABLE in taken and before != description.all_languages:
        raise UserError(
            f"InitFrom: the rows of {LANGUAGE_TABLE} of {checkpoint} are {', '.join(before)}, and "
            f"the objectives read {', '.join(description.all_languages)}; exclude the table, or "
            "train on those"
        )
    total = len(jax.tree.leaves(params))
    said = f"took {len(taken)} of {total} parameter arrays from {checkpoint}"
    depth, own = source.encoder.num_layers, description.encoder.num_layers
    if config.stack and depth != own:
        said += f", whose {depth} layers are repeated to make {own}"
    if left := sorted(source.heads.keys() - description.heads.keys()):
        said += f"; its heads {', '.join(left)} are left behind: no objective here has them"
    heads = {
        name: _head_history(name, source)
        for name in source.objectives.keys() & description.heads.keys()
        if any(path.startswith(f"heads/{name}/") for path in taken)
    }
    encoder = _encoder_history(source) if any(p.startswith("encoder/") for p in taken) else {}
    return params, said, dataclasses.replace(description, heads_from=heads, encoder_from=encoder)


def with_history(description: Description, source: Description) -> Description:
    """The description of a run that goes on, with what its start was trained on."""
    return dataclasses.replace(
        description, heads_from=source.heads_from, encoder_from=source.encoder_from
    )


def _head_history(name: str, source: Description) -> dict[str, Any]:
    """What a head was trained on, as `Description.heads_from` says it."""
    languages, trained = set(source.languages.get(name, ())), trained_on(name, source)
    if earlier := source.heads_from.get(name) or source.encoder_from:
        languages |= set(earlier["languages"])
        trained = f"{earlier['trained']}>{trained}"
    return {"trained": trained, "languages": sorted(languages)}


def _encoder_history(source: Description) -> dict[str, Any]:
    """What labels an encoder was trained with, as `Description.encoder_from` says it."""
    labelled = [
        name
        for name in sorted(source.objectives.keys() & source.heads.keys())
        if source.heads[name].get("kind", name) not in UNLABELLED
    ]
    own = [_head_history(name, source) for name in labelled]
    if not own:
        return dict(source.encoder_from)
    return {
        "trained": "+".join(history["trained"] for history in own),
        "languages": sorted({language for history in own for language in history["languages"]}),
    }
