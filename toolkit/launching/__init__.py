"""From a recipe to jobs that run. No torch, until a job begins.

`stages`: what each stage asks for, and whether it could run. `jobs`: what runs inside an
allocation. `follow`: a launched run, followed to its end.
"""
