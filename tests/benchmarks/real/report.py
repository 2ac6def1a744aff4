"""Tables and figures of the study, from its committed scores alone (and the grades of STS-B)."""

import base64
import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from tests.benchmarks.real.scoring import BITS
from toolkit.evaluation.sts import read_pairs

DRAWS = 2000
STEP_COUNTS = (50, 100, 400)
# The columns: task, score, and what a reader calls it.
COLUMNS = (
    ("STS-B", "Spearman", "STS-B"),
    ("banking77", "accuracy", "banking77"),
    ("clustering", "V-measure", "clustering"),
    ("Cranfield", "nDCG@10", "Cranfield nDCG@10"),
    ("Cranfield", "R@100", "Cranfield R@100"),
    ("BoolQ", "nDCG@10", "BoolQ nDCG@10"),
    ("EWT", "accuracy", "EWT"),
    ("EWT", "accuracy, shifted", "EWT, shifted"),
)
SUPERVISED = "MNTP + SimCSE + supervised"
TAUGHT, TAUGHT_TWICE = f"{SUPERVISED}, taught", f"{SUPERVISED}, taught twice"
STATES = (
    *("causal", "causal, echo", "bidirectional", "MNTP", "MNTP + SimCSE", "MNTP + supervised"),
    *(SUPERVISED, TAUGHT, TAUGHT_TWICE),
)
PEERS = ("BM25", "TF-IDF", "WordLlama")
# The paper's pattern: the second is better than the first, on which task.
STEPS = (
    ("causal", "causal, echo", "STS-B", "Spearman"),
    ("causal", "MNTP + SimCSE", "STS-B", "Spearman"),
    ("causal", "MNTP", "STS-B", "Spearman"),
    ("MNTP", "MNTP + SimCSE", "STS-B", "Spearman"),
    ("MNTP + SimCSE", SUPERVISED, "STS-B", "Spearman"),
    (SUPERVISED, TAUGHT, "STS-B", "Spearman"),
    (SUPERVISED, TAUGHT, "Cranfield", "nDCG@10"),
    (TAUGHT, TAUGHT_TWICE, "STS-B", "Spearman"),
    (TAUGHT, TAUGHT_TWICE, "Cranfield", "nDCG@10"),
    (TAUGHT, TAUGHT_TWICE, "banking77", "accuracy"),
    ("MNTP", "MNTP + SimCSE", "Cranfield", "nDCG@10"),
    ("MNTP", "MNTP + SimCSE", "banking77", "accuracy"),
    ("causal", "MNTP", "EWT", "accuracy"),
    ("causal", "MNTP", "EWT", "accuracy, shifted"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """A scored run."""

    state: str
    seed: int
    tasks: Mapping[str, Any]

    def score(self, task: str, name: str) -> float | None:
        """A score, if the run was scored on the task."""
        one = self.tasks.get(task)
        return None if one is None else float(one["scores"][name])

    def items(self, task: str, name: str) -> NDArray[np.float64]:
        """The items behind a score: numbers, or ones and zeros. There may be padding at the end."""
        items = self.tasks[task]["items"]
        found: str = items["cosine"] if task.startswith("STS-B") else items[name]
        if found.startswith(BITS):
            packed = base64.b64decode(found.removeprefix(BITS))
            return np.unpackbits(np.frombuffer(packed, dtype=np.uint8)).astype(np.float64)
        return np.array([float(number) for number in found.split()])


def read_results(folder: Path) -> list[Result]:
    """All scored runs, in a fixed order."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = [Result(row["state"], row["seed"], row["tasks"]) for row in rows]
    return sorted(found, key=lambda result: (result.state, result.seed))


def write_report(folder: Path, *, data: Path) -> None:
    """Print the tables, and write them beside the scores."""
    results = read_results(folder)
    tables = [
        state_table(results),
        interval_table(results, data=data),
        pattern_table(results, data=data),
        other_table(results),
    ]
    text = "\n\n".join(filter(None, tables))
    print(text)
    (folder.parent / "TABLES.md").write_text(text + "\n")
    draw_amounts(results, folder.parent / "how-much-mntp.svg")


def state_table(results: Sequence[Result]) -> str:
    """Mean and deviation over seeds of each state on each task."""
    heads = [head for _, _, head in COLUMNS]
    lines = [f"| state | seeds | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for state in (*PEERS, *STATES):
        rows = [result for result in results if result.state == state]
        cells = [_spread([row.score(task, name) for row in rows]) for task, name, _ in COLUMNS]
        if rows:
            lines.append(f"| {state} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval_table(results: Sequence[Result], *, data: Path) -> str:
    """95 % intervals of the scores over draws of test items, each mean over the seeds."""
    columns = [column for column in COLUMNS if column[0] != "clustering"]  # it has no items
    heads = [head for _, _, head in columns]
    lines = [f"| 95 % interval | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    grades_P = read_pairs(data / "stsbenchmark_en" / "stsb-en-test.csv").grades_P
    for state in (*PEERS, *STATES):
        cells = []
        for task, name, _ in columns:
            rows = [row for row in results if row.state == state and task in row.tasks]
            if rows:
                some = [row.items(task, name) for row in rows]
                grades = grades_P if task == "STS-B" else None
                low, high = bootstrap(some, grades_P=grades)[1:]
                cells.append(f"{low:.3f} to {high:.3f}")
            else:
                cells.append("")
        if any(cells):
            lines.append(f"| {state} | {' | '.join(cells)} |")
    return "\n".join(lines)


def other_table(results: Sequence[Result]) -> str:
    """The runs that ask for rates, scales and the amount of MNTP."""
    heads = (("STS-B dev", "Spearman"), ("STS-B", "Spearman"), ("EWT", "accuracy"))
    lines = ["| run | STS-B dev | STS-B test | EWT |", "|---|---|---|---|"]
    for result in results:
        if result.state not in (*PEERS, *STATES):
            cells = [_spread([result.score(*head)]) for head in heads]
            lines.append(f"| {result.state} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def pattern_table(results: Sequence[Result], *, data: Path) -> str:
    """Of each step of the pattern: the mean difference over seeds, and its 95 % interval."""
    lines = ["| from | to | score | difference | 95 % interval |", "|---|---|---|---|---|"]
    grades_P = read_pairs(data / "stsbenchmark_en" / "stsb-en-test.csv").grades_P
    for first, second, task, name in STEPS:
        pairs = list(_pairs(results, first, second, task=task))
        if pairs:
            grades = grades_P if task == "STS-B" else None
            mean, low, high = paired_bootstrap(
                [(a.items(task, name), b.items(task, name)) for a, b in pairs], grades_P=grades
            )
            cells = f"{mean:+.3f} | {low:+.3f} to {high:+.3f}"
            lines.append(f"| {first} | {second} | {task}, {name} | {cells} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def paired_bootstrap(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    grades_P: NDArray[np.float64] | None = None,
) -> tuple[float, float, float]:
    """The difference of the second over the first, mean over pairs of runs, and its 95 % interval
    over draws of test items (Efron and Tibshirani 1993). See `bootstrap`."""
    firsts, seconds = zip(*pairs, strict=True)
    return bootstrap(seconds, less=firsts, grades_P=grades_P)


def bootstrap(
    runs: Sequence[NDArray[np.float64]],
    *,
    less: Sequence[NDArray[np.float64]] = (),
    grades_P: NDArray[np.float64] | None = None,
) -> tuple[float, float, float]:
    """The score of these items, mean over runs, less that of the runs `less`, and its 95 % interval
    over draws of test items. Items are averaged or, with grades, ranked and correlated with them
    (Spearman)."""
    random = np.random.default_rng(0)
    number = len(runs[0])

    def value(items_N: NDArray[np.float64], chosen_N: NDArray[np.int64]) -> float:
        if grades_P is None:
            return float(items_N[chosen_N].mean())
        ranks = rankdata(items_N[chosen_N]), rankdata(grades_P[chosen_N])
        return float(np.corrcoef(*ranks)[0, 1])

    def score(chosen_N: NDArray[np.int64]) -> float:
        whole = statistics.mean(value(items_N, chosen_N) for items_N in runs)
        return whole - (
            statistics.mean(value(items_N, chosen_N) for items_N in less) if less else 0
        )

    drawn = [score(random.integers(0, number, number)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return score(np.arange(number)), float(low), float(high)


def draw_amounts(results: Sequence[Result], path: Path) -> None:
    """Draw STS-B and EWT over the steps of MNTP; nothing while no such run is scored. Zero steps
    are the untrained bidirectional model, and SimCSE without MNTP."""
    start = {"": "bidirectional", ", SimCSE": "SimCSE alone"}
    figure = Figure(figsize=(9, 3.4))
    drawn = False
    for axes, (task, name) in zip(
        figure.subplots(1, 2), (("STS-B", "Spearman"), ("EWT", "accuracy")), strict=True
    ):
        for kind in ("LoRA", "all weights"):
            for after, first in start.items():
                points = {0: first} | {n: f"MNTP, {kind}, {n} steps{after}" for n in STEP_COUNTS}
                known = {result.state: result.score(task, name) for result in results}
                values = {n: known[state] for n, state in points.items() if known.get(state)}
                if len(values) > 1:
                    drawn = True
                    label = f"MNTP ({kind}){after.replace(',', ' +')}"
                    axes.plot(list(values), list(values.values()), "o-", label=label)
        axes.set_xlabel("steps of MNTP (2,048 tokens each)")
        axes.set_ylabel(f"{task}, {name}")
        axes.grid(alpha=0.3)
    if drawn:
        figure.axes[0].legend(fontsize=7)
        figure.tight_layout()
        # No date and no random ids: the same scores make the same file.
        with matplotlib.rc_context({"svg.hashsalt": "real"}):
            figure.savefig(path, metadata={"Date": None})


def _pairs(
    results: Sequence[Result], first: str, second: str, *, task: str
) -> Iterator[tuple[Result, Result]]:
    """Runs of two states by seed; a state without training goes with every seed."""
    for later in (row for row in results if row.state == second and task in row.tasks):
        for earlier in (row for row in results if row.state == first and task in row.tasks):
            if earlier.seed in (0, later.seed):
                yield earlier, later


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{statistics.mean(known):.3f} ± {statistics.stdev(known):.3f}"
