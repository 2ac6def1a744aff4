"""Bytes, documents, tokens, shards and pairs. No torch.

Reading: `folders`, `sources` (which reader a file needs), `remote` (copies what is elsewhere),
`readers`, `packed`, `delimited`, `dump`, `whole_files`, `records`, `joining`. Cleaning: `wikitext`,
`markup_cost`, `sentences`, `passages`, `filters`, `unspaced`, `duplicates`. Shards: `sharding`
makes parts, `assembly` joins them to shards; `shards`, `manifest`, `tally`, `copies`, `changes`,
`verify`, `repair`. Tokens: `tokens`, `token_files`, `token_shards`, `packing`, `masking`. Samples:
`order`, `stream`, `mixture`, `held_out`. Pairs: `pair_formats`, `pairs`, `pair_stream`. Search:
`bm25`, `fusion`.
"""
