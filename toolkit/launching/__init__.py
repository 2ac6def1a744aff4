"""From a recipe to jobs that run. Nothing imports torch until a job begins.

`stages`: what each stage asks for, and whether it could run. `inputs`: what a stage reads. `jobs`:
what runs inside an allocation. `follow`: watching a launched run to its end.
"""
