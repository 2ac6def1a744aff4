# Site settings for the jobs in slurm/: the only file to change for another cluster.
# The scripts source it on the first compute node; srun passes the environment on to every task.
# To use a copy elsewhere: TOOLKIT_ENV_SH=~/my_site.sh sbatch slurm/...
# shellcheck shell=bash

# --- Python ------------------------------------------------------------------------------------
# TOOLKIT_VENV, or .venv in the folder that you submit from, or the python that is already active.
# Alternatives, to replace these lines:
#   module purge && module load cuda/13.0 python/3.11
#     (torch brings its own CUDA libraries, see Requirements in toolkit/README.md; DeepSpeed only
#     compiles with the module's, which must be of the same major version)
#   set +u; source ~/miniforge3/etc/profile.d/conda.sh; conda activate toolkit; set -u
#     (conda's scripts read unset variables, which `set -u` makes an error)
#   a container: an executable file bin/python with the lines
#       #!/bin/sh
#       exec apptainer exec --nv --bind "${PWD}" toolkit.sif python "$@"
#     and here: export PATH="${PWD}/bin:${PATH}"
#     With pyxis, srun takes the image; change that line in a copy of the script that you submit:
#       exec srun --container-image=toolkit.sqsh --container-mounts="${PWD}:${PWD}" ...
toolkit_venv="${TOOLKIT_VENV:-${PWD}/.venv}"
if [[ -f "${toolkit_venv}/bin/activate" ]]; then
  # shellcheck disable=SC1091
  source "${toolkit_venv}/bin/activate"
elif [[ -n "${TOOLKIT_VENV:-}" ]]; then
  echo "slurm/env.sh: TOOLKIT_VENV=${TOOLKIT_VENV} is not a virtual environment" >&2
  exit 2
fi
# Run the checkout that was submitted, also for data_scripts/*.py.
export PYTHONPATH="${PWD}${PYTHONPATH:+:${PYTHONPATH}}"
# Without this the last lines of a killed task are lost in its buffer.
export PYTHONUNBUFFERED=1

# --- Processors --------------------------------------------------------------------------------
# If it is unset, every rank starts as many threads as the node has cores, and 8 ranks slow each
# other down.
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# Since SLURM 22.05 srun does not inherit --cpus-per-task from sbatch: without this line each task
# is bound to one core, and loading data is many times slower for no visible reason.
if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then
  export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK}"
fi

# --- Memory of GPUs ----------------------------------------------------------------------------
# Micro-batches differ in size. Torch keeps what they free in segments of fixed sizes, and what no
# segment can hold any more is out of memory, although there is room; these segments can grow.
if [[ -z "${PYTORCH_ALLOC_CONF:-}${PYTORCH_CUDA_ALLOC_CONF:-}" ]]; then
  export PYTORCH_ALLOC_CONF=expandable_segments:True
fi

# --- Network -----------------------------------------------------------------------------------
# On most clusters compute nodes have no internet, and a library that contacts the hub waits for its
# time-out on every rank. Fetch models on the login node first; HF_HUB_OFFLINE=0 overrides this.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
# If ranks do not find each other, the nodes may have several networks. Name the one to use (see
# `ip -br addr` on a compute node); gloo carries the collectives of CPUs.
# export NCCL_SOCKET_IFNAME=ib0
# export GLOO_SOCKET_IFNAME=ib0
# If NCCL is slow between nodes: choose the InfiniBand adapters (`ibstat`), and see what NCCL chose.
# export NCCL_IB_HCA=mlx5
# export NCCL_DEBUG=INFO
# If nodes have no InfiniBand and NCCL stops while it looks for it:
# export NCCL_IB_DISABLE=1
# If a run hangs: record the last collectives, which are written out at the time-out.
# export TORCH_NCCL_TRACE_BUFFER_SIZE=2000

# --- Caches of compiled code -------------------------------------------------------------------
# They are on the node, not in the home folder: over NFS, ranks that compile at the same time get
# stale file handles, and one of them dies. They are per user, because the folder of another user
# cannot be written to; and per job, because a rank that is killed while it compiles leaves a lock
# file, for which the next job would wait.
toolkit_cache="${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/toolkit-${UID}/${SLURM_JOB_ID:-0}"
export TORCH_EXTENSIONS_DIR="${toolkit_cache}/torch_extensions"
export TRITON_CACHE_DIR="${toolkit_cache}/triton"
