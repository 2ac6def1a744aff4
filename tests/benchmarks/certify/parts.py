"""The parts by name, each with its seconds on a GPU: after these it is killed."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is imported in the process of a part only
    from tests.benchmarks.certify.machine import Machine, Notes

WHOLE_S = 540.0  # all parts together


@dataclasses.dataclass(frozen=True)
class Part:
    """A function of a module of this package, imported when it is needed: a package that is missing
    is then the part's own failure."""

    module: str
    function: str
    seconds: float

    def run(self, machine: "Machine", notes: "Notes") -> None:
        """Measure."""
        module = importlib.import_module(f"tests.benchmarks.certify.{self.module}")
        found: Callable[[Machine, Notes], None] = getattr(module, self.function)
        found(machine, notes)


# What is certain first: a session may end early.
PARTS = {
    "versions": Part("kernels", "versions", 25),
    "attention": Part("kernels", "packed_attention", 25),
    "bandwidth": Part("kernels", "bandwidth", 20),
    "doors": Part("doors", "tiny", 80),
    "weights": Part("large", "weights", 15),
    "encode": Part("large", "encode", 75),
    "mntp": Part("large", "mntp", 130),
    "gradcache": Part("contrastive", "gradcache", 60),
    "host": Part("doors", "host", 45),
    "wide": Part("doors", "wide", 60),
}
