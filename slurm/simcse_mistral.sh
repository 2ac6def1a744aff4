#!/bin/bash
# Unsupervised SimCSE, starting from the encoder that MNTP trained.
# This file has resources only: hyper-parameters are in the recipe, site settings in slurm/env.sh.
# Usage, from the top folder:   sbatch slurm/simcse_mistral.sh [key.path=value ...]
#   another size:               sbatch --nodes=2 --time=4:00:00 slurm/simcse_mistral.sh
#   another recipe:             RECIPE=my_recipe.yaml sbatch slurm/simcse_mistral.sh
#SBATCH --job-name=simcse
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-gpu=48G
#SBATCH --time=04:00:00
# Two minutes before the time limit (and at a preemption, if the site sends it) each rank gets USR2:
# the job saves and is requeued.
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"
# shellcheck source=slurm/env.sh
source "${TOOLKIT_ENV_SH:-slurm/env.sh}"

# Invalid input is refused here, by one process, before ranks start.
python -m toolkit.ready "${RECIPE:-simcse_mistral_7b}" "$@"
# exec, and no launcher in between, so that signals reach Python. If one rank dies, srun ends all.
exec srun --kill-on-bad-exit=1 python -m toolkit.train "${RECIPE:-simcse_mistral_7b}" "$@"
