"""All that is claimed of a GPU, measured on one in nine minutes (`make certify-gpu`).

`__main__` runs each part in a process of its own and writes what it found after each; `parts` names
them; `kernels`, `large`, `contrastive` and `doors` are what they do. `machine` is the only module
that calls CUDA, and stands in for it on a CPU (DRY=1), where times mean nothing and results do.
`table` turns what was found into Markdown, beside the bars.
"""
