"""Proof that the tests notice faults: each fault of these lists is planted by itself in a copy of
the source, and the tests that should notice must fail.

`catalogue` reads the lists (*.yaml, one for each part of the toolkit), `bench` plants and runs,
`python -m tests.mutants` (or `make test-mutants`) does so for all and writes RESULTS.md. Whoever
changes tests runs it before and after: what was caught before must be caught after.
"""
