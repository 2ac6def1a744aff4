"""Scores of encoders, and tables of them.

`program` composes; `parts` and `corpora` share the work. Tasks: `task` (the protocol), `tasks`
(reads those of a recipe), `sts`, `retrieval`, `ranking`, `classes`, `labelled`, `mteb_tasks`. Tasks
on words: `tagging`, `words`, `word_features`, `word_scores`, `linear_probe`. Beside encoders:
`baselines`. Two encoders query by query: `comparing`. A choice among merges: `forgetting`. Shown:
`tables`, `reproduction`.
"""
