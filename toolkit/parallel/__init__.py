"""Ranks. No maths. The only package that names torch.distributed or DeepSpeed.

`comm`: process groups and collectives. `zero`: the engine, which is DeepSpeed's. `agreement`: one
end for all ranks.
"""
