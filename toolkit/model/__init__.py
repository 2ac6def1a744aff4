"""Tensors in one process. No ranks.

Loading: `tokenizer`, `backbone`, `adapters`, `gguf` (turns files of llama.cpp into folders). What a
folder declares about its vectors: `VectorRules` (in `vector_rules`) is the one description of that,
which `declared` reads from its `modules`. Attention: `attention` over packed rows by
`attention_kernels`, `bidirectional` with its proof. Vectors and losses: `pooling`, `head` (after
it, by the rules), `plain_path` (their proof), `losses`, `distillation`, `cosent`, `storage`.
Weights on disk: `tensor_file`, `weights`, `llm2vec_format`. Models merged into one: `merging`, if
they are `alike`. On a CPU: `memory`, `onednn`, `dropout`, `side_by_side`. On a GPU: `fused`,
`norms`, `fp8`, `copied_out`. The number type of an encoder: `precision`.
"""
