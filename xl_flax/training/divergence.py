"""What a run says whose loss or gradient is not finite any more, and where it goes on.

Such steps are skipped: they change no parameter. Nothing is saved between the first of them and
the next good one, so a run that is started again does not begin inside of them.
"""

import jax

from xl_flax.checkpoints.manager import CheckpointManager

REMEDY = "Lower OptimizerConfig.learning_rate or lengthen its warm-up, and start again"
OLDER = (
    "if it ends here again, go on from an older checkpoint in another folder (InitFrom.checkpoint)"
)


def diverged(manager: CheckpointManager, step: int, streak: int, first: int) -> str:
    """Prepares a run that stops here for its restart; what to tell its user.

    The checkpoint of the step before the streak, if there is one, holds the parameters that each
    step of the streak read, and none had a finite loss or gradient. It is put aside if this process
    made it; one that was there before may be good, and the settings wrong.

    Args:
      manager: of the run's checkpoints.
      step: the last one.
      streak: steps in a row that were skipped.
      first: the step that this process went on from.
    """
    manager.wait()
    begun = step - streak
    lines = [f"loss or gradient was not finite in {streak:,} steps in a row, up to step {step:,}"]
    if manager.newest == begun and begun > first and jax.process_index() == 0:
        lines.append(
            f"the checkpoint of step {begun:,}, on which they followed, led nowhere and was moved "
            f"to {manager.put_aside(begun)}"
        )
    good = manager.newest
    if good is None:
        lines.append(f"{REMEDY}: no good checkpoint is there, the run begins again at step 0")
    elif good == begun == first:
        lines.append(
            f"none was finite since the checkpoint of step {good:,}, which was left as it is. "
            f"{REMEDY} from there; {OLDER}"
        )
    else:
        lines.append(f"{REMEDY}: the run goes on from its checkpoint of step {good:,}")
    return "; ".join(lines)


def unsaved(manager: CheckpointManager, step: int, streak: int) -> str:
    """What to tell where a run ends inside a streak of so many skipped steps."""
    newest, remedy = manager.newest, f"If that happens again: {REMEDY}"
    again = "no checkpoint is there: the same command begins again at step 0"
    if newest is not None:
        again = f"the same command goes on from the newest checkpoint, of step {newest:,}"
    if newest == step - streak:  # whose parameters may be to blame
        again += ", and no step after it was finite"
        remedy = f"{REMEDY}; {OLDER}"
    return f"step {step:,} is not saved, as its loss or gradient was not finite; {again}. {remedy}"
