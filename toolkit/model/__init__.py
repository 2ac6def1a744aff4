"""Tensors in one process. No ranks.

Loading: `tokenizer`, `backbone`, `declared` (what a folder says about its vectors), `adapters`,
`gguf` (turns files of llama.cpp into folders). Attention: `attention` over packed rows,
`bidirectional` with its proof. Vectors and losses: `pooling`, `losses`. Weights on disk:
`tensor_file`, `weights`, `llm2vec_format`. On a CPU: `memory`, `onednn`, `dropout`,
`side_by_side`. On a GPU: `norms`.
"""
