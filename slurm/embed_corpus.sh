#!/bin/bash
# Embed a corpus: an array of one-GPU tasks that share the work. This file has resources only:
# hyper-parameters are in the recipe, site settings in slurm/env.sh.
# Usage, from the top folder:   sbatch slurm/embed_corpus.sh [key.path=value ...]
#   more tasks:                 sbatch --array=0-31 slurm/embed_corpus.sh
#   another recipe:             RECIPE=my_recipe.yaml sbatch slurm/embed_corpus.sh
#SBATCH --job-name=embed
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=12:00:00
# Two minutes before the time limit (and at a preemption, if the site sends it) Python gets USR2: it
# finishes a unit, and requeues the job.
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"
# shellcheck source=slurm/env.sh
source "${TOOLKIT_ENV_SH:-slurm/env.sh}"

# Invalid input is refused here, before a rank starts.
python -m toolkit.ready "${RECIPE:-embed_corpus}" "$@"
exec srun --kill-on-bad-exit=1 python -m toolkit.encode "${RECIPE:-embed_corpus}" "$@"
