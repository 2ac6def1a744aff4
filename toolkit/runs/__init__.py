"""What is known of runs from the outside: from their files, SLURM and arithmetic. No torch.

`launched`: what was launched, and as which jobs. `records`: the metrics and the starts of a run.
`standing`: how far each stage has come. `table`: standings as a table. `shapes`: the sizes of a
decoder. `estimate`: the memory, time and network that a run will need.
"""
