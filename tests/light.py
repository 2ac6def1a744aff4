"""Settings for tests of what becomes of a run, and not of what it learns.

Under ZeRO-3 a step's time is that of hooks on every module, adapters among them.
"""

# On two matrices of each layer, of different shapes, instead of seven: half the time.
FEW_ADAPTERS = "model.lora.targets=[k_proj, down_proj]"
# And the rows of one rank in one pass.
LIGHT = (FEW_ADAPTERS, "train.micro_batch_rows=8")
