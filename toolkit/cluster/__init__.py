"""SLURM, MPI, signals, and which ranks are alive. No torch.

Jobs: `site` (the options that a site requires), `submit`, `queue` (what SLURM says about jobs),
`topology` (the rank of a process), `preempt` (signals, requeues), `exclusion` (nodes that failed).
Watching ranks: `watchdog` in each rank's process, `monitor` as the process beside it, `heartbeats`
for people. Sharing work: `leases` on a file system, `dealing` and `mpi` over MPI, `crew` for
processes.
"""
