"""The shipped tiny model over several seeds, at every state that a recipe can give it, on every
local task.

    make benchmark-quality
    python -m tests.benchmarks.bench_quality --seeds 1 2 3 --batches 64 --runs DIR --plot DIR

The states: base (causal), bidirectional (untrained), after MNTP; after MNTP and SimCSE at global
batches of 64, 256 and 1,024, each over the same number of sentences at the same learning rate;
after MNTP and one pass over the SNLI triplets (dev and test part). Training text: the passages of
BoolQ and the sentences of WikiSplit, all Wikipedia. Everything else is that of quickstart_mntp,
quickstart_simcse and tiny_supervised, but that every schedule reaches zero at twice its steps.
A run directory that is there is continued, and what is scored is not scored again, so the study can
be stopped at any time.

The tasks: STS-B (test part), banking77 as classification (eight texts an intent, ten draws) and as
clustering (test part), Cranfield, parts of speech of UD English EWT.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import yaml
from matplotlib.figure import Figure

from tests.benchmarks.harness import REAL_DATA, ROOT, machine, make_shards
from toolkit.base.files import is_committed
from toolkit.base.shown import in_picture

SENTENCES = 10_240  # seen by each SimCSE run
TRIPLETS = 5_824  # a pass over SNLI in batches of 64, but for the last
MICRO_ROWS = 64
BASE = ROOT / "toolkit" / "quickstart" / "tiny-mistral"
Scores = Mapping[str, Sequence[float]]  # of each state, a score a seed
# The scores that a table and a plot show, of those that evaluation gives.
SHOWN = {
    "STS-B Spearman": "STS-B, Spearman",
    "banking77 accuracy": "banking77, accuracy",
    "intents V-measure": "banking77, V-measure",
    "Cranfield nDCG@10": "Cranfield, nDCG@10",
    "Cranfield R@100": "Cranfield, R@100",
    "EWT accuracy": "EWT parts of speech, accuracy",
    "EWT accuracy, shifted": "EWT, one token earlier",
}


def door(name: str, *arguments: str) -> None:
    """Run one of the toolkit's doors to its end."""
    subprocess.run([sys.executable, "-m", f"toolkit.{name}", *arguments], cwd=ROOT, check=True)


def texts(data: Path) -> Iterator[str]:
    """Documents of real Wikipedia text."""
    for line in (data / "boolq_passages" / "boolq.jsonl").open(encoding="utf-8"):
        yield json.loads(line)["query"].removeprefix("Passage: ").split("\nQuestion: ")[0]
    for part in ("tune", "validation", "test"):
        for line in (data / "wikisplit" / f"{part}.tsv").open(encoding="utf-8"):
            yield line.split("\t")[0]


def prepare(data: Path, runs: Path) -> None:
    """Shards of the texts, pairs of SNLI; what is there is kept."""
    source = runs / "texts.jsonl"
    runs.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(data)))
    make_shards(source, output=runs / "shards")
    if not (runs / "pairs").exists():
        python = [sys.executable, "data_scripts/prepare_pairs.py"]
        python += ["--input", str(data / "snli_devtest"), "--output", str(runs / "pairs")]
        subprocess.run(python, cwd=ROOT, check=True)
    if not (runs / "cranfield" / "shards").exists():
        folder, output = data / "cranfield", runs / "cranfield"
        python = [sys.executable, "data_scripts/prepare_trec.py", "--queries-in-order"]
        python += ["--documents", str(folder / "cran.all.1400.xml"), "--output", str(output)]
        python += ["--queries", str(folder / "cran.qry.xml")]
        python += ["--judgements", str(folder / "cranqrel.trec.txt")]
        subprocess.run(python, cwd=ROOT, check=True)
        make_shards(output / "documents.jsonl", output=output / "shards")


def train(runs: Path, *, seed: int, batches: Sequence[int], steps_scale: float) -> dict[str, Path]:
    """Train all states of a seed; returns the encoder of each."""
    folder = runs / f"seed{seed}"

    def stage(kind: str, name: str, *overrides: str, steps: int, rows: int) -> Path:
        run_dir, steps = folder / name, max(1, round(steps * steps_scale))
        given = [f"run_dir={run_dir}", f"train.seed={seed}", f"train.steps={steps}"]
        given += [f"train.horizon_steps={2 * steps}", f"train.save_every_steps={steps}"]
        given += [f"train.global_batch_rows={rows}", f"train.micro_batch_rows={MICRO_ROWS}"]
        if not is_committed(run_dir / "encoder"):
            door("train", kind, *given, *overrides)
        return run_dir / "encoder"

    shards = f"data.train={runs / 'shards'}"
    # As many rows a step as the recipe has.
    mntp = stage("quickstart_mntp", "mntp", f"model.base={BASE}", shards, steps=60, rows=16)
    found = {"after MNTP": mntp}
    for rows in batches:
        found[f"SimCSE, batch {rows:,}"] = stage(
            *("quickstart_simcse", f"simcse{rows}", f"model.base={mntp}", shards),
            steps=SENTENCES // rows,
            rows=rows,
        )
    found["supervised, SNLI"] = stage(
        *("tiny_supervised", "supervised", f"model.base={mntp}", f"data.train={runs / 'pairs'}"),
        steps=TRIPLETS // MICRO_ROWS,
        rows=MICRO_ROWS,
    )
    return found


def evaluate(data: Path, runs: Path, *, trained: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """The scores of every encoder on every task."""
    common = {"max_tokens": 256, "batch_tokens": 4096}
    banking, treebank, cranfield = data / "banking77", data / "ud_english_ewt", runs / "cranfield"
    recipe = {
        "kind": "evaluate",
        "output_dir": str(runs / "scores"),
        "encoders": {
            "base, causal": {"model": str(BASE), "causal": True, **common},
            "bidirectional": {"model": str(BASE), **common},
            **{name: {"model": str(path), **common} for name, path in trained.items()},
        },
        "sts": {"STS-B": str(data / "stsbenchmark_en" / "stsb-en-test.csv")},
        "retrieval": {
            "Cranfield": {
                "corpus": str(cranfield / "shards"),
                "queries": str(cranfield / "queries.jsonl"),
                "judgements": str(cranfield / "judgements.tsv"),
            }
        },
        "classification": {
            "banking77": {"train": str(banking / "train.csv"), "test": str(banking / "test.csv")}
        },
        "clustering": {"intents": str(banking / "test.csv")},
        "words": {
            "EWT": {
                "train": str(next(treebank.glob("*train.conllu*"))),
                "test": str(next(treebank.glob("*test.conllu*"))),
            }
        },
    }
    (runs / "evaluate.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    door("evaluate", str(runs / "evaluate.yaml"))
    found: dict[str, dict[str, float]] = json.loads((runs / "scores" / "scores.json").read_text())
    return found


def table(scores: Scores) -> str:
    """Markdown: mean, standard deviation and range over the seeds."""
    lines = ["| state | mean | standard deviation | lowest to highest |", "|---|---|---|---|"]
    for name, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        lines.append(
            f"| {name} | {statistics.mean(values):.3f} | {spread:.3f} | "
            f"{min(values):.3f} to {max(values):.3f} |"
        )
    return "\n".join(lines)


def plot(scores: Scores, path: Path, *, told: str) -> None:
    """A dot a seed, a bar at the mean."""
    names = list(scores)
    figure = Figure(figsize=(7.5, 0.45 * len(names) + 1.2))
    axes = figure.subplots()
    for place, name in enumerate(names):
        values = list(scores[name])
        axes.plot(values, [place] * len(values), "o", color="#1f5f8b", alpha=0.6)
        axes.plot([statistics.mean(values)] * 2, [place - 0.3, place + 0.3], color="#d1495b", lw=2)
    axes.set_yticks(range(len(names)), [in_picture(name, chars=80) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(f"{in_picture(told)} (dot: a seed; bar: mean)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no random ids: the same scores make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "sts"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score, print the tables and draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024], help="of SimCSE")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--plot", type=Path, help="a folder to draw an .svg a score into")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="of all runs, for a try")
    arguments = parser.parse_args(argv)
    data, runs = arguments.data.absolute(), arguments.runs.absolute()
    prepare(data, runs)
    trained: dict[str, Path] = {}
    seeds: dict[str, list[str]] = {name: [name] for name in ("base, causal", "bidirectional")}
    for seed in arguments.seeds:
        scale, batches = arguments.steps_scale, arguments.batches
        for name, path in train(runs, seed=seed, batches=batches, steps_scale=scale).items():
            trained[f"{name}, seed {seed}"] = path
            seeds.setdefault(name, []).append(f"{name}, seed {seed}")
    found = evaluate(data, runs, trained=trained)
    print(f"seeds {arguments.seeds}; {machine()}")
    for score, told in SHOWN.items():
        scores = {state: [found[name][score] for name in names] for state, names in seeds.items()}
        print(f"\n{told}\n\n{table(scores)}")
        if arguments.plot:
            name = re.sub(r"[^a-z0-9]+", "-", told.lower()).strip("-")
            plot(scores, arguments.plot / f"{name}.svg", told=told)


if __name__ == "__main__":
    main()
