# ---- graded ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=4
#SBATCH --job-name=graded-graded
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/tiny/graded/logs/graded/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/tiny/graded/logs/graded/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/tiny/graded/logs/graded

