#!/bin/bash
# Turn Wikipedia dumps, or any files of documents, into shards, without GPUs.
# Site settings are in slurm/env.sh.
# Usage, from the top folder:   sbatch slurm/shard_wikipedia.sh ARGUMENTS...
#   more nodes:                 sbatch --array=0-7 slurm/shard_wikipedia.sh ARGUMENTS...
#   the arguments are those of: python data_scripts/shard_wikipedia.py --help
# One processor cleans 1 to 2 MB of a dump per second. The number of processors does not change the
# shards.
#SBATCH --job-name=shard
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem-per-cpu=4G
#SBATCH --time=2-00:00:00
# A task that was killed or preempted continues with the parts that exist.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"
# shellcheck source=slurm/env.sh
source "${TOOLKIT_ENV_SH:-slurm/env.sh}"

exec srun --kill-on-bad-exit=1 python data_scripts/shard_wikipedia.py \
  --workers "${SLURM_CPUS_PER_TASK:-1}" "$@"
