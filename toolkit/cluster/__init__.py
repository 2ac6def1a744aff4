"""SLURM, MPI, signals, and who is alive. No torch.

Jobs: `site` (what a site wants of every job), `submit`, `queue` (what SLURM says of jobs),
`topology` (the rank of a process), `preempt` (signals, requeues), `exclusion` (nodes that failed).
Watching ranks: `watchdog` beside each rank, `monitor` as its process, `heartbeats` for people.
Sharing work: `leases` on a file system, `dealing` and `mpi` over MPI, `crew` for processes.
"""
