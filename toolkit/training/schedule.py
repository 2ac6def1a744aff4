"""The learning rate as a pure function of the step, so that a restart needs no scheduler state."""

from toolkit.schema import Train


def learning_rate(train: Train, *, step: int) -> float:
    """The rate of `step` (from 0): linear warm-up, then linear to zero at `horizon_steps`."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    left = train.horizon_steps - step
    return train.lr * max(0.0, left / max(1, train.horizon_steps - train.warmup_steps))
