# ---- questions ----
#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=1
#SBATCH --job-name=questions-questions
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/tiny/questions/logs/questions/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/tiny/questions/logs/questions/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/tiny/questions/logs/questions

