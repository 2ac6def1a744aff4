"""What every other package builds on. It imports none of them.

`errors`: the exceptions that end a run with one line. `files`: atomic writes, committed
directories, digests. `needs`: packages that may be missing. `layout`: every name that a run has on
disk. `sealed`: documents that hold their own digest. `documents` and `tensor_header`: strict
reading of JSON documents and of safetensors headers. `console`: everything that is printed.
`shown`: how text from outside is made harmless.
"""
