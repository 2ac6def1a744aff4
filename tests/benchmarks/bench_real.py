"""SmolLM2-135M through the whole recipe, three times, on real tasks; and how much MNTP it needs.

    make benchmark-real
    python -m tests.benchmarks.bench_real --seeds 1 --only states
    python -m tests.benchmarks.bench_real --show        only tables and figures, from what is scored

States: causal; causal, with each text read twice (echo; only on STS-B); bidirectional, untrained;
after MNTP; after MNTP and SimCSE; after MNTP and supervised training; after all three; after all
three with a static table as the teacher of the last; and with that encoder beside the table as its
teachers. A run is known by the digest of what decides it (settings, seed, texts, base, and the runs
before it). What is scored is in tests/benchmarks/real/scores, under that digest, and is not run
again; weights are kept in .cache/study. So the study can be stopped at any time, and the same
command goes on.
"""

import argparse
import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import REAL_DATA, ROOT
from tests.benchmarks.real.inputs import prepare
from tests.benchmarks.real.report import write_report
from tests.benchmarks.real.scoring import TASKS
from tests.benchmarks.real.teacher import TABLE_SHA256, fetched, teach
from toolkit.base.console import say
from toolkit.base.files import is_committed, write_json
from toolkit.base.layout import ENCODER_DIR, MANIFEST_FILE
from toolkit.settings.recipes import load_recipe

BASE = ROOT / ".cache" / "smollm2-135m"
KEPT = ROOT / ".cache" / "study"
SCORES = ROOT / "tests" / "benchmarks" / "real" / "scores"
SOME = ("STS-B dev", "STS-B", "EWT")  # of the runs that ask how much MNTP
CAUSAL, ECHO = "causal", "causal, echo"
UNTRAINED = (CAUSAL, ECHO, "bidirectional")
TAUGHT, TAUGHT_TWICE = "taught", "taught twice"
# Chosen on the dev part of STS-B, and on the dev queries of the demo.
TEACHING = (
    ("supervised.teacher.scale", "10.0"),
    ("supervised.teacher.weight", "0.7"),
    ("train.steps", "160"),
    ("train.horizon_steps", "160"),
    ("model.dtype", "bf16"),
)
TEACHING_TWICE = (
    ("data.max_tokens", "80"),
    ("supervised.teacher.scale", "10.0"),
    ("supervised.teacher.weight", "0.8"),
    ("train.steps", "288"),
    ("train.horizon_steps", "288"),
    ("model.dtype", "bf16"),
)
GRID = {  # rates and scales, chosen on the dev part of STS-B after seed 1
    "mntp": [{"train.lr": "2e-4"}, {"train.lr": "1e-3"}],
    "simcse": [{"train.lr": "1e-4"}, {"train.lr": "1e-3"}, {"simcse.scale": "10.0"}],
    "supervised": [
        {"train.lr": "1e-4"},
        {"train.lr": "1e-3"},
        {"supervised.scale": "10.0"},
        {"supervised.scale": "50.0"},
    ],
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of one of the recipes, upon the run `after`, or upon the base itself; `kind`
    is one of `UNTRAINED` for the base as it is, "taught" for supervised training with the static
    table as its teacher, and "taught twice" with the encoder of the run `teacher` too."""

    state: str
    kind: str
    seed: int = 0
    settings: tuple[tuple[str, str], ...] = ()
    after: "Run | None" = None
    tasks: tuple[str, ...] = tuple(TASKS)
    teacher: "Run | None" = None

    @property
    def trains(self) -> bool:
        """Whether it is a training run."""
        return self.kind not in UNTRAINED

    @property
    def has_table(self) -> bool:
        """Whether the static table is its teacher."""
        return self.kind in (TAUGHT, TAUGHT_TWICE)

    @property
    def recipe(self) -> str:
        """The recipe whose settings it changes."""
        return f"{'supervised' if self.has_table else self.kind}_smollm2_135m"

    def facts(self, inputs: dict[str, str]) -> dict[str, Any]:
        """All that decides the encoder; `inputs` are the digests of what each kind trains on."""
        before = self.after.digest(inputs) if self.after else None
        teacher = {"teacher": self.teacher.digest(inputs)} if self.teacher else {}
        # Without defaults, so that a new key of the toolkit leaves the digests of old runs alone.
        recipe = (
            load_recipe(self.recipe).model_dump_json(exclude_defaults=True) if self.trains else ""
        )
        return {
            "kind": self.kind,
            "recipe": _sha(recipe.encode())[:16],
            "seed": self.seed,
            "settings": dict(self.settings),
            "after": before,
            "inputs": inputs[self.kind] if self.trains else None,
            **teacher,
        }

    def digest(self, inputs: dict[str, str]) -> str:
        """The name of its score and of its run directory."""
        return _sha(json.dumps(self.facts(inputs), sort_keys=True).encode())[:16]


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def states(seeds: Sequence[int]) -> Iterator[Run]:
    """The states of the paper; those that are not trained come last."""
    for seed in seeds:
        mntp = Run("MNTP", "mntp", seed)
        simcse = Run("MNTP + SimCSE", "simcse", seed, after=mntp)
        yield from (mntp, simcse)
        yield Run("MNTP + SimCSE + supervised", "supervised", seed, after=simcse)
        taught = Run("MNTP + SimCSE + supervised, taught", TAUGHT, seed, TEACHING, after=simcse)
        yield taught
        yield Run(
            *("MNTP + SimCSE + supervised, taught twice", TAUGHT_TWICE, seed, TEACHING_TWICE),
            after=simcse,
            teacher=taught,
        )
        yield Run("MNTP + supervised", "supervised", seed, after=mntp)
    yield Run(CAUSAL, CAUSAL)
    yield Run(ECHO, ECHO, tasks=("STS-B dev", "STS-B"))
    yield Run("bidirectional", "bidirectional")


def grid(seed: int) -> Iterator[Run]:
    """Other rates and scales, one at a time."""
    mntp = Run("MNTP", "mntp", seed)
    for kind, choices in GRID.items():
        for choice in choices:
            after = None if kind == "mntp" else mntp
            told = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in choice.items())
            tasks = ("STS-B dev", "EWT") if kind == "mntp" else ("STS-B dev",)
            yield Run(f"{kind}, {told}", kind, seed, tuple(choice.items()), after, tasks)


def amounts(seed: int) -> Iterator[Run]:
    """How much MNTP: by steps of LoRA and of all weights, with SimCSE upon them; by the share of
    hidden tokens."""
    full = (("model.lora", "null"), ("train.lr", "1e-4"))
    for name, settings, steps in (("LoRA", (), (50, 100, 400)), ("all weights", full, (100, 400))):
        for number in steps:
            # The schedule is that of the longest run: fewer steps are a part of it.
            given = (*settings, ("train.horizon_steps", "400"), ("train.steps", str(number)))
            mntp = Run(f"MNTP, {name}, {number} steps", "mntp", seed, given, None, SOME)
            yield mntp
            if number >= 100:
                yield Run(f"{mntp.state}, SimCSE", "simcse", seed, (), mntp, SOME)
    yield Run("SimCSE alone", "simcse", seed, (), None, SOME)
    for share in ("0.5", "0.8"):
        yield Run(
            f"MNTP, {share} hidden", "mntp", seed, (("mntp.mask_probability", share),), None, SOME
        )


def encoder_of(run: Run, *, made: dict[str, Path], inputs: dict[str, str]) -> Path:
    """The encoder of a run; it and those before it are trained unless they are there."""
    if not run.trains:
        return BASE
    base = encoder_of(run.after, made=made, inputs=inputs) if run.after else BASE
    digest = run.digest(inputs)
    folder = KEPT / "runs" / digest
    encoder = folder / ENCODER_DIR
    if not is_committed(encoder):
        say(f"study: {run.state}, seed {run.seed} ({digest})")
        settings = {"model.base": str(base), **dict(run.settings), "run_dir": str(folder)}
        settings |= {"data.train": str(made[run.kind]), "train.seed": str(run.seed)}
        if run.has_table:
            teacher = teacher_of(run, made=made, inputs=inputs)
            settings["supervised.teacher.embeddings"] = str(teacher)
        command = [sys.executable, "-m", "toolkit.train", run.recipe]
        command += [f"{key}={value}" for key, value in settings.items()]
        subprocess.run(command, cwd=ROOT, check=True)
    return encoder


def teacher_of(run: Run, *, made: dict[str, Path], inputs: dict[str, str]) -> Path:
    """The teacher's vectors of all texts that a run reads; its seed decides which these are."""
    beside = encoder_of(run.teacher, made=made, inputs=inputs) if run.teacher else None
    folder = KEPT / "inputs" / f"teacher-{'both-' if beside else ''}{run.seed}"
    if not (folder / MANIFEST_FILE).exists():
        with tempfile.TemporaryDirectory() as name:
            texts = Path(name) / "texts.jsonl"
            script = [sys.executable, "data_scripts/list_texts.py", run.recipe]
            script += [
                f"data.train={made[run.kind]}",
                f"train.seed={run.seed}",
                "--output",
                str(texts),
            ]
            settings = [one for one in run.settings if one[0].startswith(("train.", "data."))]
            script += [f"{key}={value}" for key, value in settings]
            subprocess.run(script, cwd=ROOT, check=True)
            teach(texts, out=folder, table=fetched(), data=REAL_DATA, encoder=beside)
    return folder


def do(run: Run, *, made: dict[str, Path], inputs: dict[str, str], real_data: Path) -> None:
    """Train and score a run, and the run before it, unless they are."""
    digest = run.digest(inputs)
    out = SCORES / f"{digest}.json"
    known = json.loads(out.read_text()) if out.exists() else {}
    if all(task in known.get("tasks", {}) for task in run.tasks):
        return
    model = encoder_of(run, made=made, inputs=inputs)
    scratch = KEPT / "scores" / f"{digest}.json"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text(json.dumps(known.get("tasks", {})))
    command = [sys.executable, "-m", "tests.benchmarks.real.scoring", str(model), str(scratch)]
    command += ["--data", str(real_data), *(["--causal"] if run.kind in (CAUSAL, ECHO) else [])]
    command += ["--echo"] if run.kind == ECHO else []
    subprocess.run([*command, "--tasks", *run.tasks], cwd=ROOT, check=True)
    about = {"state": run.state, **run.facts(inputs)}
    SCORES.mkdir(parents=True, exist_ok=True)
    write_json(out, {**about, "tasks": json.loads(scratch.read_text())})


def inputs_digests(made: dict[str, Path]) -> dict[str, str]:
    """For each kind of run the digest of what it trains on and of the base."""
    base = (BASE / "gguf.json").read_bytes()
    teacher = dict.fromkeys((TAUGHT, TAUGHT_TWICE), TABLE_SHA256.encode())
    return {
        kind: _sha((folder / MANIFEST_FILE).read_bytes() + base + teacher.get(kind, b""))[:16]
        for kind, folder in made.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the tables and figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=REAL_DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", choices=("states", "grid", "amounts"), action="append")
    parser.add_argument("--show", action="store_true", help="run nothing")
    given = parser.parse_args(argv)
    if not given.show:
        made = prepare(given.data, output=KEPT / "inputs")
        digests = inputs_digests(made)
        parts = {
            "states": lambda: states(given.seeds),
            "grid": lambda: grid(given.seeds[0]),
            "amounts": lambda: amounts(given.seeds[0]),
        }
        for part in given.only or parts:
            runs = list(parts[part]())
            for run in runs if part == "states" else ():
                # First all encoders: to score one takes as long.
                encoder_of(run, made=made, inputs=digests)
            for run in runs:
                do(run, made=made, inputs=digests, real_data=given.data)
    write_report(SCORES, data=given.data)


if __name__ == "__main__":
    main()
