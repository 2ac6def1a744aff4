"""One evaluation task by one worker, and by two that share its corpus: Cranfield, 1,398 documents.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_corpora --runs 5

The shipped tiny model in fp32, one thread a worker, in turn. Counted is the time from when the last
worker has imported its libraries to when the last has all scores: tasks are read, the model is
loaded and the queries are embedded in it. The scores must be equal. `--short` takes 256 documents,
of 32 tokens each.

The second ratio is that of processor time, a worker's mean over that of the one: all that two do
twice, without waiting. The clock's ratio means something only where two cores are free.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import bench_cranfield
from tests.benchmarks.bench_encode import MODEL
from tests.benchmarks.harness import ROOT, machine, options
from tests.forking.start import environ_of_starts, forked_python
from tests.text.making import shard_articles
from toolkit.base.files import read_json

# A worker that imports all it will need, and then waits until it is told to begin.
WORKER = """
import os, sys, time
from toolkit import evaluate
import toolkit.encoding.encoder, toolkit.encoding.pipeline
from toolkit.settings.recipes import load_recipe
print("ready", flush=True)
sys.stdin.readline()
began = time.process_time()
evaluate.run(load_recipe(sys.argv[1], overrides=sys.argv[2:]), environ=os.environ)
print("processor", time.process_time() - began)
"""


def make_recipe(folder: Path, *, data: Path, short: bool) -> Path:
    """Shards, queries, judgements and a recipe of one task."""
    documents = bench_cranfield.documents(data / "cranfield")[: 256 if short else None]
    shard_articles(documents, output=folder / "shards", max_bad_fraction=0.01)
    known = {document.id for document in documents}
    queries = bench_cranfield.queries(data / "cranfield")
    lines = [json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(queries, 1)]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    judged = [
        f"{query}\t{document}\t{grade}\n"
        for query, graded in bench_cranfield.judgements(data / "cranfield").items()
        for document, grade in graded.items()
        if document in known
    ]
    (folder / "judgements.tsv").write_text("".join(judged))
    recipe = {
        "kind": "evaluate",
        "output_dir": str(folder / "out"),
        "encoders": {"tiny": {"model": str(MODEL), "max_tokens": 32 if short else 512}},
        "retrieval": {
            "cranfield": {
                "corpus": str(folder / "shards"),
                "queries": str(folder / "queries.jsonl"),
                "judgements": str(folder / "judgements.tsv"),
            }
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def evaluate(recipe: Path, *, output: Path, workers: int, python: str) -> tuple[float, float, str]:
    """Seconds from when all workers are ready until the last ends, the mean seconds of a worker's
    processor, and the scores."""
    command = [python, "-c", WORKER, str(recipe), f"output_dir={output}"]
    environ = {**environ_of_starts(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(workers)
    ]
    for process in started:
        assert process.stdout and process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = []
    for process in started:
        assert process.stdout
        said.append(process.stdout.read())  # until it has no more to say, before it unloads torch
    seconds = time.perf_counter() - began
    assert all(process.wait() == 0 for process in started), said
    lines = [line for text in said for line in text.splitlines()]
    shares = [line.partition(": embedded ")[2] for line in lines if ": embedded " in line]
    cpu_s = statistics.mean(float(line.split()[1]) for line in lines if line[:9] == "processor")
    print(f"{workers} worker(s): {seconds:.2f} s, {cpu_s:.2f} s of processor each; {shares}")
    return seconds, cpu_s, json.dumps(read_json(output / "scores.json"), sort_keys=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the task, run both ways in turn, print the ratio."""
    parser = options(__doc__)
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args(argv)
    # Imports are not counted, so that short runs may begin with them done.
    python = forked_python() if arguments.short else sys.executable
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_recipe(folder, data=arguments.data, short=arguments.short)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        processor: dict[int, list[float]] = {1: [], 2: []}
        scores = set()
        for number in range(arguments.runs):
            for workers in seconds:
                output = folder / f"out-{number}-{workers}"
                took_s, cpu_s, found = evaluate(
                    recipe, output=output, workers=workers, python=python
                )
                seconds[workers].append(took_s)
                processor[workers].append(cpu_s)
                scores.add(found)
        assert len(scores) == 1, scores
    ratio, cpu_ratio = (
        statistics.median(two / one for one, two in zip(*times.values(), strict=True))
        for times in (seconds, processor)
    )
    print(f"{machine()}; median of {arguments.runs}: {statistics.median(seconds[1]):.1f} s by one")
    print(f"two workers take {ratio:.3f} of the time of one, {cpu_ratio:.3f} of its processor each")


if __name__ == "__main__":
    main()
