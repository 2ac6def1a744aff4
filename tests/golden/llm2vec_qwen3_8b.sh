# ---- mntp ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=4
#SBATCH --job-name=llm2vec_qwen3_8b-mntp
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/llm2vec_qwen3_8b/logs/mntp/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/llm2vec_qwen3_8b/logs/mntp/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/llm2vec_qwen3_8b/logs/mntp

# ---- simcse ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of mntp>'
#SBATCH --gpus-per-node=4
#SBATCH --job-name=llm2vec_qwen3_8b-simcse
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/llm2vec_qwen3_8b/logs/simcse/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/llm2vec_qwen3_8b/logs/simcse/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/llm2vec_qwen3_8b/logs/simcse

# ---- embed ----
#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of simcse>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=llm2vec_qwen3_8b-embed
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/llm2vec_qwen3_8b/logs/embed/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/llm2vec_qwen3_8b/logs/embed/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/llm2vec_qwen3_8b/logs/embed

