"""How a run uses its device: the memory it took, and the fraction of a GPU's peak it reaches.

MFU: model FLOPs of the real tokens, divided by seconds and the dense bf16 peak of all GPUs. HFU
also counts FLOPs that are computed again (checkpointed layers, GradCache's first pass). The count
is that of `estimate.flops` without attention's own products, since documents differ in length: both
are lower bounds. Neither is given on a CPU, in fp32, or for a GPU that is not in the table.
"""

import resource

import torch

from toolkit.base.errors import BadInput
from toolkit.runs.estimate import GIB, flops, peak_of
from toolkit.runs.shapes import Shape, shape_of
from toolkit.settings.schema import MntpRecipe, TrainingRecipe
from toolkit.training.loop import Step


class Utilisation:
    """The utilisation of a run on `world_size` devices like `device`."""

    def __init__(self, recipe: TrainingRecipe, *, world_size: int, device: torch.device) -> None:
        self._recipe, self._device, self._world_size = recipe, device, world_size
        self._shape: Shape | None = None
        self._peak: float | None = None
        if device.type == "cuda" and recipe.model.dtype == "bf16":
            self._peak = peak_of(torch.cuda.get_device_name(device))
        if self._peak:
            try:
                self._shape = shape_of(recipe.model.base)
            except BadInput:  # its config.json does not say enough; it trains nevertheless
                self._peak = None

    def figures(self, step: Step) -> dict[str, float]:
        """memory_gib, the most that this rank has held so far (by CUDA's allocator, or by the whole
        process on a CPU); and the fractions mfu and hfu where they can be told."""
        if self._device.type == "cuda":
            held = torch.cuda.max_memory_allocated(self._device)
        else:
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"memory_gib": held / GIB, **self._rates(step)}

    def _rates(self, step: Step) -> dict[str, float]:
        if self._peak is None or self._shape is None:
            return {}
        cached = not isinstance(self._recipe, MntpRecipe) and step.micro_batches > 1
        counts = flops(self._shape, self._recipe, attended=0.0, cached=cached)
        speed = step.tokens / step.seconds / (self._peak * self._world_size)
        return dict(zip(("mfu", "hfu"), (count * speed for count in counts), strict=True))
