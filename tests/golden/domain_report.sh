# ---- report ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=1
#SBATCH --job-name=report-report
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/report/logs/report/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/report/logs/report/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/report/logs/report

