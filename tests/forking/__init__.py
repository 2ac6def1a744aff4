"""Python processes that start by a fork of one that has imported everything.

A fresh interpreter spends 5 to 12 s of processor time on importing torch, transformers and
deepspeed, and the tests start hundreds. `shim.py` stands in for the interpreter: it asks
`server.py`, which forks a child with the command, the environment, the directory and the open files
of the shim. `start` begins a server. A start that a fork could not equal becomes a real one.
"""
