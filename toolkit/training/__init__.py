"""A training run, from its recipe to an exported encoder.

Beginning: `entry` (refusals without torch), `program` (composes the run), `admission` and
`preflight` (before the first step), `starts`. Data: `data`. Objectives: `objective` (the protocol),
`objectives` (the list), `mntp`, `simcse`, `supervised`, `graded`, `contrastive`, `teacher`
(distillation), `batch_loss`. Steps: `loop`, `ahead`, `recorder`, `metrics`, `views`, `held_out`,
`probe`, `utilisation`. Checkpoints: `steps`, `checkpoint`, `saver`. Afterwards: `runs`, `export`,
`card`; without training: `merges`.
"""
