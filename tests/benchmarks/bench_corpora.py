"""One evaluation task by one worker, by two that share its corpus, and two such tasks side by side:
Cranfield, 1,398 documents.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_corpora --runs 5

The shipped tiny model in fp32, one thread a worker, in turn. Counted is the time from when the last
worker has imported its libraries to when the last has all scores: tasks are read, the model is
loaded and the queries are embedded in it. The scores must be equal. `--short` takes 256 documents,
of 32 tokens each.

The second ratio is that of processor time, a worker's mean over that of the one: all that two do
twice, without waiting. The clock's ratio means something only where two cores are free. Two workers
that share nothing, each with a whole task, say what the machine itself takes: half of their ratio
is the least that two workers can come to on one task.
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


def evaluate(recipe: Path, *, outputs: Sequence[Path], python: str) -> tuple[float, float, str]:
    """A worker for each of these outputs: seconds from when all are ready until the last ends, the
    mean seconds of a worker's processor, and the scores."""
    environ = {**environ_of_starts(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [python, "-c", WORKER, str(recipe), f"output_dir={output}"],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for output in outputs
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
    print(f"{len(started)} worker(s): {seconds:.2f} s, {cpu_s:.2f} s of processor each; {shares}")
    (scores,) = {json.dumps(read_json(one / "scores.json"), sort_keys=True) for one in outputs}
    return seconds, cpu_s, scores


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
        ways = {"one": "a", "two": "aa", "apart": "ab"}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        processor: dict[str, list[float]] = {way: [] for way in ways}
        scores = set()
        for number in range(arguments.runs):
            for way, places in ways.items():
                outputs = [folder / f"{number}-{way}-{place}" for place in places]
                took_s, cpu_s, found = evaluate(recipe, outputs=outputs, python=python)
                seconds[way].append(took_s)
                processor[way].append(cpu_s)
                scores.add(found)
        assert len(scores) == 1, scores

    def ratio(times: dict[str, list[float]], way: str) -> float:
        return statistics.median(a / b for a, b in zip(times[way], times["one"], strict=True))

    print(
        f"{machine()}; median of {arguments.runs}: {statistics.median(seconds['one']):.1f} s by one"
    )
    took, cpu = ratio(seconds, "two"), ratio(processor, "two")
    print(f"two workers take {took:.3f} of the time of one, {cpu:.3f} of its processor each")
    floor = ratio(seconds, "apart") / 2
    print(f"two that share nothing take {2 * floor:.3f} of it each: the least is {floor:.3f}")


if __name__ == "__main__":
    main()
