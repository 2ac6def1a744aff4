"""Ranks. No maths. The only package that names torch.distributed or DeepSpeed.

`comm`: process groups and collectives. `zero`: the engine, which is DeepSpeed's. `agreement`: an
error of any rank is raised on every rank.
"""
