# Everything sets itself up: a fresh clone needs Python 3.11 and this file.
PYTHON ?= python3
VENV := .venv
# torch first and by itself: name another build here (TORCH="torch --index-url ...") for your GPUs.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install wheels quickstart smollm2 demo test test-times test-slow test-llm2vec test-smollm2 faults benchmark-data benchmark-training benchmark-checkpoint benchmark-merge certify-gpu benchmark-quality benchmark-real benchmark-encode benchmark-scheduling lint clean test-mutants

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 22

install: $(VENV)/.installed  ## make the virtual environment

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The versions are those of this environment. Packages without a wheel are built here.
WHEELS ?= wheels
wheels: install  ## all packages as files in wheels/, to install where no index can be reached
	mkdir -p $(WHEELS)
	$(BIN)/python -m pip freeze --exclude-editable > $(WHEELS)/versions.txt
	$(BIN)/python -m pip wheel --quiet --wheel-dir $(WHEELS) '$(TORCH)'
	$(BIN)/python -m pip wheel --quiet --wheel-dir $(WHEELS) --find-links $(WHEELS) --constraint $(WHEELS)/versions.txt .

quickstart: install  ## the whole pipeline on what the project ships, with a table of scores
	$(BIN)/python -m toolkit.quickstart
	@echo; echo "Beside it a real encoder (make demo), where its model can be fetched:"
	@$(BIN)/python -m toolkit.quickstart.demo --beside runs/quickstart/embeddings || true

smollm2: install  ## a real model of 135 M parameters in .cache/smollm2-135m (93 MB to fetch)
	$(BIN)/python -m toolkit.quickstart.smollm2

demo: smollm2  ## a real encoder: the shipped adapters on that model, and searches with it (two minutes)
	$(BIN)/python -m toolkit.quickstart.demo

# Most tests fork their Python processes from one that has imported the libraries (tests/forking);
# TOOLKIT_TEST_REAL_STARTS=1 starts each anew.
# A test that hangs fails after ten minutes and says where; one that Python cannot interrupt ends
# its worker, with the stacks of all threads.
LIMITS := --timeout 600 -o faulthandler_timeout=660 -o faulthandler_exit_on_timeout=true
test: install  ## all tests (a real SLURM among them where it is installed)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(LIMITS) --durations 10

test-times: install  ## all tests, and the table of their processor time in tests/README.md anew
	TOOLKIT_TEST_TIMES=write $(MAKE) test

test-slow: install  ## the tests that take minutes each, with their full bars
	$(BIN)/python -m pytest -m slow

# Before and after whoever changes tests: what was caught must be caught. JOBS=2 takes half the time.
JOBS := 1
test-mutants: install  ## 200 faults planted one at a time, each to be noticed by its tests (an hour)
	$(BIN)/python -m tests.mutants --jobs $(JOBS) --write

# Kills at file-system calls and in every stage of a pipeline, ranks in trouble, flipped bytes,
# pieces of runs, a real SLURM.
FAULTS := tests/faults tests/cluster/test_watchdog.py tests/test_verify.py tests/slurm/test_life.py \
  tests/training/test_resume.py tests/training/test_saver.py tests/domain/test_adapt.py \
  tests/slurm/test_adapt_jobs.py
faults: install  ## all that can go wrong, done to real runs, with a table of what was said (two hours)
	$(BIN)/python -m pytest -m 'slow or not slow' -rP $(FAULTS)

# What others need beside their requirements: a torch and torchvision that fit each other.
PEER_TORCH ?= torch torchvision
PEERS := .venv-peers/bin/python
$(PEERS): tests/benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS) -m pip install --quiet --upgrade pip
	$(PEERS) -m pip install --quiet $(PEER_TORCH) -r $<
	touch $@

benchmark-data: install $(PEERS)  ## cleaning and reading beside datasets, datatrove, mosaicml-streaming (half an hour)
	$(BIN)/python -m tests.benchmarks.bench_cleaning --peers $(PEERS)
	$(BIN)/python -m tests.benchmarks.bench_loader --peers $(PEERS)

LLM2VEC := $(CURDIR)/.venv-llm2vec/bin/python
$(LLM2VEC): tests/benchmarks/peers/training_requirements.txt
	$(PYTHON) -m venv .venv-llm2vec
	$(LLM2VEC) -m pip install --quiet --upgrade pip
	$(LLM2VEC) -m pip install --quiet '$(TORCH)'
	$(LLM2VEC) -m pip install --quiet -r $<
	touch $@

test-llm2vec: install $(LLM2VEC)  ## vectors, logits and loss beside llm2vec itself
	TOOLKIT_LLM2VEC_PYTHON=$(LLM2VEC) $(BIN)/python -m pytest -m slow tests/test_llm2vec.py tests/test_export_llm2vec.py

LLAMA_CPP := $(CURDIR)/.venv-llama-cpp/bin/python
$(LLAMA_CPP):
	$(PYTHON) -m venv .venv-llama-cpp
	CMAKE_ARGS='-DLLAVA_BUILD=OFF' $(LLAMA_CPP) -m pip install --quiet numpy llama-cpp-python
	touch $@

test-smollm2: install $(LLAMA_CPP)  ## the converted real model beside llama.cpp (which is compiled first)
	TOOLKIT_LLAMA_CPP_PYTHON=$(LLAMA_CPP) $(BIN)/python -m pytest -m slow tests/test_smollm2.py tests/test_adapters_shipped.py

benchmark-training: install $(LLM2VEC)  ## steps beside llm2vec and sentence-transformers (an hour)
	$(BIN)/python -m tests.benchmarks.bench_training --peers $(LLM2VEC)

benchmark-checkpoint: install  ## a save beside DeepSpeed's own: seconds, waiting, memory (ten minutes)
	$(BIN)/python -m tests.benchmarks.bench_checkpoint

benchmark-merge: install  ## the peak memory of a merge, up to 8 GB of weights (40 GB on the disk, ten minutes)
	$(BIN)/python -m tests.benchmarks.bench_merge

certify-gpu: install  ## all that is claimed of a GPU, on one of them, in nine minutes (DRY=1: on a CPU, tiny)
	mkdir -p runs
	$(BIN)/python -m tests.benchmarks.certify --out runs/certify.json $(if $(DRY),--dry)

benchmark-quality: install  ## every state on every local task over three seeds, tables and plots (three hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.bench_quality --plot tests/benchmarks/quality

benchmark-real: install smollm2  ## the real model through the whole recipe on real tasks; goes on where it was (a night)
	$(BIN)/python -m tests.benchmarks.bench_real

benchmark-encode: install $(LLM2VEC)  ## texts a second beside sentence-transformers and llm2vec; two workers; a million rows (three hours)
	$(BIN)/python -m tests.benchmarks.bench_encode --runs 5 --peers $(LLM2VEC)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.bench_encode --runs 3 --peers $(LLM2VEC)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.bench_floor
	$(BIN)/python -m tests.benchmarks.bench_workers
	$(BIN)/python -m tests.benchmarks.bench_rows

benchmark-scheduling: install  ## 100 M rows' plan, a unit's cost, a thousand simulated workers (ten minutes)
	$(BIN)/python -m tests.benchmarks.bench_scheduling
	$(BIN)/python -m tests.benchmarks.simulate_dealing --plot tests/benchmarks/dealing.svg

lint: install  ## format, style, types, layers
	$(BIN)/ruff format --check toolkit tests data_scripts
	$(BIN)/ruff check toolkit tests data_scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove the environment, caches and the quickstart's run
	rm -rf $(VENV) .venv-peers .venv-llm2vec runs/quickstart build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
