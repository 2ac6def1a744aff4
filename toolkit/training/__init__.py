"""The loop, the objectives and the checkpoints of training."""
