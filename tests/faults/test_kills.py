"""A run that is killed before any file-system call goes on from a whole checkpoint, loses one save
interval at most, and ends as if nothing had happened: with the same losses, weights and files."""

import dataclasses
import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.conftest import ROOT
from tests.faults.killer import Call, Run, Trainer, served
from toolkit import verify
from toolkit.base.errors import BadInput
from toolkit.base.layout import HEARTBEATS_FILE
from toolkit.runs.records import read_metrics
from toolkit.training import checkpoint, steps

KILLED = -9
SAVE_EVERY = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is left of a run: its losses by step, the digest of every tensor of its newest
    checkpoint and of its encoder, and the names of all its files, hidden ones too (but of the one
    that only a run has which takes longer than a heartbeat)."""

    losses: dict[int, float]
    tensors: dict[str, str]
    files: list[str]


@dataclasses.dataclass(frozen=True)
class Story:
    """A command on a run directory (None: there is none yet), the calls that its `watched` rank
    makes there, and how it ends without a kill."""

    arguments: list[str]
    before: Path | None
    ranks: int
    watched: int
    calls: list[Call]
    end: Outcome

    def run(self, run_dir: Path, *, call: int | None = None) -> Run:
        """The run itself, killed before this call."""
        return Run(self.arguments, str(run_dir), call, self.ranks, self.watched)


def outcome(run_dir: Path) -> Outcome:
    newest = steps.newest(run_dir)
    assert newest
    tensors = {}
    for path in [*newest.rglob("*.safetensors"), *(run_dir / "encoder").rglob("*.safetensors")]:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                digest = hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest()
                tensors[f"{path.relative_to(run_dir)} {name}"] = digest
    return Outcome(
        losses={int(row["step"]): row["loss"] for row in read_metrics(run_dir)},
        tensors=tensors,
        files=sorted(
            str(path.relative_to(run_dir))
            for path in run_dir.rglob("*")
            if path.name != HEARTBEATS_FILE
        ),
    )


@pytest.fixture(scope="module")
def told(
    runs: Trainer, shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Story]:
    """Stories by name: a run that begins, and one that goes on from step 3, saves step 4, removes
    the checkpoints of 2 and 3, and replaces the encoder; the latter also on two ranks, one of which
    is watched. Alone under ZeRO-1, which makes the same calls as ZeRO-3 in two thirds of the time.
    """
    folder, known = tmp_path_factory.mktemp("stories"), dict[str, Story]()
    common = ["tiny_mntp", f"data.train={shards}", f"model.base={tiny_model}"]
    common += [f"train.save_every_steps={SAVE_EVERY}"]
    alone = ["deepspeed.config=zero1"]

    def told_first(name: str) -> Story:
        steps = 2 if name == "begins" else 4
        before = None if name == "begins" else folder / "before"
        if before and not before.exists():
            prepared = [*common, *alone, "train.steps=3", "train.keep_checkpoints=2"]
            assert runs.train(Run(prepared, str(before))) == 0, runs.printed()
        ranks, watched = {"rank 0 of 2": (2, 0), "rank 1 of 2": (2, 1)}.get(name, (1, 0))
        arguments = [*common, f"train.steps={steps}", "train.keep_checkpoints=1"]
        arguments += alone if ranks == 1 else []
        run_dir = copied(before, to=folder / name)
        run = Run(arguments, str(run_dir), 0, ranks, watched)
        assert runs.train(run) == 0, runs.printed()
        return Story(arguments, before, ranks, watched, runs.calls(), outcome(run_dir))

    def tell(name: str) -> Story:
        if name not in known:
            known[name] = told_first(name)
        return known[name]

    return tell


def copied(before: Path | None, *, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    if before:
        shutil.copytree(before, to)
    return to


def kill_faults(story: Story, *, call: Call, runs: Trainer, run_dir: Path) -> list[str]:
    """What is wrong with a run that was killed before this call, and after the same command has
    been given again."""
    where = f"killed before call {call.number}, {call.name} {call.path.name}"
    copied(story.before, to=run_dir)
    code = runs.train(story.run(run_dir, call=call.number))
    if code != KILLED or len(runs.calls()) != call.number:
        return [f"{where}: ended with {code} after {len(runs.calls())} calls: {runs.printed()}"]
    found = [*lost(story, run_dir=run_dir), *ending_faults(story, runs=runs, run_dir=run_dir)]
    return [f"{where}: {fault}" for fault in found]


def lost(story: Story, *, run_dir: Path) -> list[str]:
    """Whether more was lost than a save interval, or what is there is not whole."""
    faults = []
    done = max((int(row["step"]) for row in read_metrics(run_dir)), default=0)
    newest = steps.newest(run_dir)
    step = int(newest.name.removeprefix("step-")) if newest else 0
    first = 3 if story.before else 0
    if step < max(first, done - SAVE_EVERY):
        faults.append(f"{done} steps were done, and the newest checkpoint is of {step}")
    if newest:
        try:
            checkpoint.check_files(newest)
        except BadInput as error:
            faults.append(str(error))
    return faults


def ending_faults(story: Story, *, runs: Trainer, run_dir: Path) -> list[str]:
    """The same command again: what is different from the run that was not killed."""
    code = runs.train(story.run(run_dir))
    if code:
        return [f"the run that goes on ends with {code}: {runs.printed()[-1000:]}"]
    end, faults = outcome(run_dir), []
    if verify.run(run_dir):
        faults.append("toolkit.verify finds damage")
    for field in ("losses", "tensors"):
        there, wanted = getattr(end, field), getattr(story.end, field)
        differing = [key for key in {**there, **wanted} if there.get(key) != wanted.get(key)]
        if differing:
            faults.append(f"{len(differing)} {field} differ, such as {differing[0]}")
    if litter := set(end.files) - set(story.end.files):
        faults.append(f"is left: {', '.join(sorted(litter)[:3])}")
    if missing := set(story.end.files) - set(end.files):
        faults.append(f"is missing: {', '.join(sorted(missing)[:3])}")
    return faults


def some_of(calls: list[Call], *, number: int) -> list[Call]:
    """One call of every kind, and renames, which are what makes things whole: drawn by a seed."""
    chance = random.Random(number)
    kinds = sorted({call.name for call in calls})
    found = [chance.choice([call for call in calls if call.name == kind]) for kind in kinds]
    renames = [call for call in calls if call.name == "rename" and call not in found]
    return [*found, *chance.sample(renames, number - len(found))]


def most_of(calls: list[Call], *, every: int) -> list[Call]:
    """All calls but reads and writes, and every so many of these."""
    often = [call for call in calls if call.name in ("read", "write")]
    return [*[call for call in calls if call not in often], *often[::every]]


def check(points: list[Call], *, story: Story, runs: Trainer, folder: Path) -> None:
    print(f"{len(story.calls)} calls, killed before {len(points)}")
    assert len({call.number for call in points}) == len(points)
    faults = [
        fault
        for call in points
        for fault in kill_faults(story, call=call, runs=runs, run_dir=folder / "run")
    ]
    assert not faults, "\n".join(faults)


def test_a_run_killed_at_a_dozen_calls_ends_as_if_nothing_had_happened(
    told: Callable[[str], Story], runs: Trainer, tmp_path: Path
) -> None:
    story = told("goes on")
    check(some_of(story.calls, number=12), story=story, runs=runs, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["goes on", "begins"])
def test_a_run_killed_at_any_call_ends_as_if_nothing_had_happened(
    name: str, told: Callable[[str], Story], runs: Trainer, tmp_path: Path
) -> None:
    story = told(name)
    points = most_of(story.calls, every=10)
    assert len(points) >= 200
    check(points, story=story, runs=runs, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_of_which_one_rank_is_killed_ends_as_if_nothing_had_happened(
    rank: int, told: Callable[[str], Story], runs: Trainer, tmp_path: Path
) -> None:
    """While the ranks write a checkpoint together: each its share, then rank 0 the commit."""
    story = told(f"rank {rank} of 2")
    saving = [call for call in story.calls if ".step-00000004.tmp" in call.path.parts]
    assert len(saving) > 20
    points = most_of(saving, every=20)
    check(points[rank::3], story=story, runs=runs, folder=tmp_path)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(
    told: Callable[[str], Story], runs: Trainer, tmp_path: Path
) -> None:
    story, chance = told("goes on"), random.Random(0)
    for _ in range(5):
        run_dir = copied(story.before, to=tmp_path / "run")
        for _ in range(4):
            call = chance.randrange(1, len(story.calls))
            assert runs.train(story.run(run_dir, call=call)) in (0, KILLED)
            assert lost(story, run_dir=run_dir) == []
        assert ending_faults(story, runs=runs, run_dir=run_dir) == []


def test_a_run_that_is_watched_makes_the_calls_that_we_think_of(
    told: Callable[[str], Story],
) -> None:
    """Else the kills above would miss the moments that matter."""
    names = {(call.name, call.path.name) for call in told("goes on").calls}
    for wanted in (
        *[("rename", "state.json"), ("rename", "COMMITTED"), ("rename", "step-00000004")],
        *[("write", "adapter_model.safetensors"), ("fsync", "adapter_model.safetensors")],
        *[("unlink", "state.json"), ("read", "state.json"), ("write", "metrics.jsonl")],
        *[("rename", "config.yaml"), ("rename", "encoder"), ("fsync", "checkpoints")],
    ):
        assert wanted in names


SCRIPT = """
import ctypes, os, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
folder, call, trace = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
shim = ctypes.CDLL(None)
shim.killer_arm(os.fsencode(folder), ctypes.c_long(call), os.fsencode(trace))
(folder / "a").write_text("a")
(folder.parent / "elsewhere").write_text("a")
os.rename(folder / "a", folder / "b")
save_file({"x": np.zeros(3)}, folder / "c")
descriptor = os.open(folder, os.O_RDONLY)
os.unlink("b", dir_fd=descriptor)
os.chdir(folder)
os.mkdir("d")
print(shim.killer_count())
"""


def scripted(library: Path, *, folder: Path, call: int) -> tuple[int, str, list[str]]:
    """The exit code, what was printed, and the calls of a script under the shim."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(call), str(folder) + ".trace"],
        env={**os.environ, "LD_PRELOAD": str(library)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = Path(f"{folder}.trace").read_text().splitlines()
    return done.returncode, done.stdout, [line.split()[1] for line in lines]


def test_the_shim_kills_before_the_call_and_sees_rust_and_relative_paths(
    library: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "watched"
    code, printed, names = scripted(library, folder=folder, call=0)
    assert code == 0
    assert int(printed) == len(names)
    assert names[:3] == ["create", "write", "rename"]
    assert names[-3:] == ["open", "unlink", "mkdir"]
    rust = names[3:-3]
    assert rust[0] == "create" and "write" in rust
    for call, left in ((1, []), (2, ["a"]), (3, ["a"]), (4, ["b"]), (len(names), ["c"])):
        code, _, before = scripted(library, folder=folder, call=call)
        assert (code, len(before)) == (KILLED, call)
        assert sorted(path.name for path in folder.iterdir()) == left


def test_what_was_started_ends_with_a_test_that_fails() -> None:
    with pytest.raises(ZeroDivisionError), served("tests.faults.killer", library=None) as process:
        print(1 / 0)
    assert process.returncode == KILLED
