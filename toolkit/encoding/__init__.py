"""Embedding a corpus, and searching in it.

`program` composes. Work: `units`, `schedule`, `sharing`, `progress`. From texts to vectors: `rows`,
`batches`, `encoder`, `chunks`, `late_chunks`, `preparing`, `pipe`, `pipeline`. On disk: `formats`,
`sums`, `output` (writes), `agreement`, `completeness`, `store` (reads), `reuse` (of an older
encoding), `recorded` (by which encoder), `parquet`, `lance_dataset`. Search: `search`, `index`,
`word_index`, `snippets`, `negatives`. Before anything runs: `forecast`. Beside other engines:
`engines`, `engine_worker`.
"""
