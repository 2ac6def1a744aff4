"""How far a run has come, by the names of its checkpoints alone; without torch, for login nodes.

Knows where checkpoints lie. Refuses to know what is in them.
"""

from pathlib import Path

from toolkit.base.errors import BadInput
from toolkit.base.files import newest_committed
from toolkit.base.layout import CHECKPOINT_DIR, STEP_PREFIX


def newest(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; None before its first."""
    return newest_committed(run_dir / CHECKPOINT_DIR, STEP_PREFIX)


def newest_step(run_dir: Path) -> int:
    """The step of the newest whole checkpoint; 0 before the first."""
    folder = newest(run_dir)
    return step_of(folder) if folder else 0


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its folder's name."""
    return int(path.name.removeprefix(STEP_PREFIX))


def check_steps(run_dir: Path, *, steps: int) -> int:
    """The step that a run has reached; `BadInput` if that is beyond `steps`, its new target."""
    done = newest_step(run_dir)
    if done > steps:
        raise BadInput(
            f"run_dir={run_dir} has step {done} already, and train.steps={steps}; "
            f"give at least {done}, or another run_dir"
        )
    return done
