# ---- documents ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-documents
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/documents/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/documents/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/documents

# ---- encyclopedia ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of documents>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-encyclopedia
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/encyclopedia/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/encyclopedia/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/encyclopedia

# ---- questions ----
#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of encyclopedia>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-questions
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/questions/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/questions/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/questions

# ---- questions_dev ----
#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of questions>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-questions_dev
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/questions_dev/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/questions_dev/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/questions_dev

# ---- questions_test ----
#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of questions_dev>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-questions_test
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/questions_test/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/questions_test/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/questions_test

# ---- supervised ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of questions_test>'
#SBATCH --gpus-per-node=4
#SBATCH --job-name=domain-supervised
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/supervised/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/supervised/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/supervised

# ---- merge ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of supervised>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-merge
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/merge/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/merge/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/merge

# ---- choose ----
#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of merge>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-choose
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/choose/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/choose/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/choose

# ---- evaluate ----
#!/bin/bash

# Parameters
#SBATCH --array=0-7%8
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of choose>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-evaluate
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/evaluate/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/evaluate/%A_%a_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/evaluate

# ---- report ----
#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=4
#SBATCH --dependency='afterok:<id of evaluate>'
#SBATCH --gpus-per-node=1
#SBATCH --job-name=domain-report
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem-per-gpu=32G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/HERE/runs/domain/logs/report/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
source '/ROOT/slurm/env.sh'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /HERE/runs/domain/logs/report/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 /PYTHON -u -m submitit.core._submit /HERE/runs/domain/logs/report

