"""What a person may ask for: recipes, pipelines, layouts, models. No torch.

`section`, `task_schema`, `model_schema`, `domain_schema`, `merge_schema`, `mixture_schema`,
`questions_schema`, `pipeline_schema`, `storage_schema` and `schema`: names, types and ranges.
`catalogue`: what the project ships, and where it is. `recipes`: YAML and overrides become a recipe.
`bases`: recipes that are made for the bases of a table. `pipelines`: a pipeline becomes the recipes
of its stages. `layouts`: DeepSpeed's settings.
`model_source`: what a reference to a model stands for. `hub`: which files of a model are on this
machine. `training_checks`: the conditions that a training recipe must meet to run.
"""
