"""Every name that a run, an encoding or an evaluation has on disk, with its writer and its readers.

RUN is the directory of a training run or of a pipeline (`run_dir`), ENC that of an encoding, OUT
that of an evaluation and DOCS that of a domain's documents (`output_dir`). Knows names. Refuses to
know what is in the files.
"""

# Marks a directory as complete; `base.files` writes it last. Every reader of a checkpoint, an
# encoder or shards looks for it first.
COMMIT_MARKER = "COMMITTED"

# --- RUN, ENC and OUT ---

# Written by `launch` with every job that it submits; read by `status`, `report` and `verify`.
LAUNCHED_FILE = "launched.json"
# Written by `prefetch`, with the digests of what it fetched; for people.
PREFETCHED_FILE = "prefetched.json"
# SLURM's scripts and the output of jobs, written by `launch`; `status` shows their last error.
LOG_DIR = "logs"
# The page and its pictures, written by `report`; for people.
REPORT_DIR, PAGE_FILE = "report", "index.html"

# --- RUN ---

# The recipe: written by `training.starts`, for a pipeline by `launch`; read by whoever is given a
# run directory.
CONFIG_FILE = "config.yaml"
# Who loads the model, while it is loaded: written and removed by `training.starts`; read by
# `runs.standing`.
STARTING_FILE = "starting.json"
# A line per start, written by `training.starts`; read by it, by `runs.standing` and `report`.
STARTS_FILE = "starts.jsonl"
# A line per logged step, written by `training.metrics`; read by `runs.standing` and `report`.
METRICS_FILE = "metrics.jsonl"
# The samples of skipped steps, written by `training.metrics`; for people.
SKIPPED_FILE = "skipped.jsonl"
# When each node was last heard, written by `cluster.heartbeats`; read by `runs.standing`.
HEARTBEATS_FILE = "heartbeats.json"
# Written by `training.views`; read by TensorBoard.
TENSORBOARD_DIR = "tensorboard"
# RUN/checkpoints/step-00001000/: written by `training.saver`; read by `training.checkpoint`, and
# their names by `training.steps`.
CHECKPOINT_DIR, STEP_PREFIX = "checkpoints", "step-"
# In a checkpoint: trainable weights, AdamW's moments, and last the digests of all of these files.
WEIGHT_DIR, MOMENT_DIR, STATE_FILE = "weights", "optimizer", "state.json"
# The model folder that a finished run leaves, written by `training.export`; read by whoever is
# given the run as a model.
ENCODER_DIR = "encoder"
# In an encoder: what it was made from, with the digests of its files; and the model card.
ORIGIN_FILE, CARD_FILE = "origin.json", "README.md"

# What was merged, in the output directory of a merge: written last by `training.merges`; read by
# `runs.standing` and `verify`.
MERGED_FILE = "merged.json"

# --- ENC ---

# What the encoding is and where its units begin: written once by `encoding.units`, which reads it
# before any worker embeds; read by `runs.standing`, and by `export` to recognise an encoding.
PLAN_FILE = "plan.json"
# ENC/units/00017.*: written by `encoding.output`; read by `encoding.store`.
UNIT_DIR = "units"
# The digests of all units, written last by `encoding.output`; read by `encoding.store`. A directory
# of shards has one too, by `text.manifest`.
MANIFEST_FILE = "manifest.json"
# Who works on what, in ENC and OUT, written by `cluster.leases`; read by it and `runs.standing`.
LEASE_DIR = "leases"
# Indexes: approximate ones, written and read by `encoding.index`, and that of words, by
# `encoding.word_index`.
INDEX_DIR = "index"
WORD_INDEX_FILE = "words.safetensors"
# What was taken over from an older encoding, written by `encoding.reuse`; read by `runs.standing`.
REUSE_FILE = "reuse.json"

# --- Shards ---

# DIR.inputs/, beside a directory of shards: copies of inputs that were given by address, with where
# each came from; written and read by `text.remote`. While files are copied there are leases in it.
COPIES_SUFFIX = ".inputs"

# --- OUT ---

# OUT/parts/ENCODER/TASK.json: written by `evaluation.parts`; read by it, `report` and `verify`.
PART_DIR = "parts"
# OUT/corpora/DIGEST/: an encoding of the texts of tasks, made by `evaluation.corpora`; read by it
# and `verify`; and until all are embedded these texts, read by workers without a task on them.
CORPUS_DIR, TEXTS_FILE = "corpora", "texts.parquet"
# All scores, written last by `evaluation.program`; read by `runs.standing`, `report`, `verify` and
# `export --scores`.
SCORES_FILE = "scores.json"
# The encoder that was chosen among merges, with the scores of all of them: written by
# `evaluation.forgetting`; read by `report`, and by whoever is given OUT as a model.
CHOSEN_FILE = "chosen.json"
# Our scores beside published ones, written by `evaluation.program`; for people.
REPRODUCTION_FILE = "reproduction.md"
# MTEB's own results, written and read by `evaluation.mteb_tasks`.
MTEB_DIR = "mteb"
# OUT/words/ENCODER/TASK/: the trained linear layer of a word task, written by
# `evaluation.linear_probe`.
WORD_DIR, PROBE_WEIGHTS_FILE, PROBE_FILE = "words", "probe.safetensors", "probe.json"

# --- DOCS, the output_dir of a stage that collects the documents of a domain ---

# DOCS/source/: shards of the documents; DOCS/corpus/: of their passages, all that is searched;
# DOCS/train/: of the passages for training. DOCS/split.parquet: the part of each passage. Written
# by `domain.collection`; the stages after it are given their paths.
SOURCE_DIR, SEARCHED_DIR, TRAIN_DIR, SPLIT_FILE = "source", "corpus", "train", "split.parquet"
# What the three are made from, while they are made.
PASSAGES_FILE, TRAIN_PASSAGES_FILE = "passages.parquet", "train_passages.parquet"
# The counts, written last by `domain.collection`; read by `report`.
DOCUMENTS_FILE = "documents.json"
# --- OUT of `questions`, which has a plan, units, leases and a manifest as ENC has ---

# What a user trains on, mines and evaluates with: a directory of pairs; queries and judgements as
# in BEIR. Written last but the manifest by `domain.finishing`; read by training and evaluation.
PAIR_DIR, QUERIES_FILE, JUDGEMENTS_FILE = "pairs", "queries.jsonl", "judgements.tsv"
# The questions that were left out, each with the reason, written with these; for people.
DROPPED_FILE = "dropped.jsonl"
