# Site settings for the jobs in slurm/: the only file to change for another cluster.
# The scripts source it on the first compute node; srun hands the environment to every task.
# A copy elsewhere can be named instead: TOOLKIT_ENV_SH=~/my_site.sh sbatch slurm/...
# shellcheck shell=bash

# --- Python ------------------------------------------------------------------------------------
# TOOLKIT_VENV, or .venv in the folder that you submit from, or the python that is already active.
# Alternatives, to put in the place of these lines:
#   module purge && module load cuda/12.4 python/3.11
#   set +u; source ~/miniforge3/etc/profile.d/conda.sh; conda activate toolkit; set -u
#     (conda's scripts read unset variables, which `set -u` makes an error)
#   a container: an executable file bin/python that holds
#       #!/bin/sh
#       exec apptainer exec --nv --bind "${PWD}" toolkit.sif python "$@"
#     and here: export PATH="${PWD}/bin:${PATH}"
#     With pyxis it is srun that knows the image, in a copy of the script that you submit:
#       exec srun --container-image=toolkit.sqsh --container-mounts="${PWD}:${PWD}" ...
toolkit_venv="${TOOLKIT_VENV:-${PWD}/.venv}"
if [[ -f "${toolkit_venv}/bin/activate" ]]; then
  # shellcheck disable=SC1091
  source "${toolkit_venv}/bin/activate"
elif [[ -n "${TOOLKIT_VENV:-}" ]]; then
  echo "slurm/env.sh: TOOLKIT_VENV=${TOOLKIT_VENV} is not a virtual environment" >&2
  exit 2
fi
# The checkout that was submitted is the one that runs, also for data_scripts/*.py.
export PYTHONPATH="${PWD}${PYTHONPATH:+:${PYTHONPATH}}"
# Without it the last lines of a killed task are lost in its buffer.
export PYTHONUNBUFFERED=1

# --- Processors --------------------------------------------------------------------------------
# Unset, every rank starts as many threads as the node has cores, and 8 ranks fight.
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# srun does not inherit --cpus-per-task from sbatch since SLURM 22.05: without this line each
# task is bound to one core, and the data loading is many times slower for no visible reason.
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
  export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK}"
fi

# --- Network -----------------------------------------------------------------------------------
# Compute nodes have no internet on most clusters, and a library that calls home waits for its
# time-out on every rank. Fetch models on the login node first; HF_HUB_OFFLINE=0 to override.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
# When the ranks do not find each other: nodes with several networks. Name the one to use
# (`ip -br addr` on a compute node); gloo carries the CPU collectives.
# export NCCL_SOCKET_IFNAME=ib0
# export GLOO_SOCKET_IFNAME=ib0
# When NCCL is slow between nodes: choose the InfiniBand adapters (`ibstat`), see what NCCL chose.
# export NCCL_IB_HCA=mlx5
# export NCCL_DEBUG=INFO
# When nodes have no InfiniBand and NCCL stops while it looks for one.
# export NCCL_IB_DISABLE=1
# When a run hangs: keep the last collectives, which are written out at the time-out.
# export TORCH_NCCL_TRACE_BUFFER_SIZE=2000

# --- Caches of compiled code -------------------------------------------------------------------
# On the node, not in the home folder: over NFS, ranks that compile at the same time meet stale
# file handles and one of them dies. Of this user: another's folder cannot be written to. Of this
# job: a rank killed while it compiles leaves a lock file, for which the next job would wait.
toolkit_cache="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/toolkit-${UID}/${SLURM_JOB_ID:-0}"
export TORCH_EXTENSIONS_DIR="${toolkit_cache}/torch_extensions"
export TRITON_CACHE_DIR="${toolkit_cache}/triton"
