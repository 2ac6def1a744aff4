"""What every other package stands upon. It imports none of them.

`errors`: what ends a run in one line. `files`: writing files whole, committed directories, digests.
`layout`: every name that a run has on disk. `sealed`: documents that hold their own digest.
`documents` and `tensor_header`: strict reading of JSON documents and of safetensors headers.
`console`: everything that is printed. `shown`: how the text of others is made harmless.
"""
