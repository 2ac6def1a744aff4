"""Encoding workers that are killed at any moment, and go on as any number of others, lose nothing
and double nothing: rows and order exact, every file that of a run without a break, nothing left."""

import contextlib
import dataclasses
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.benchmarks.real_texts import read_sentences
from tests.conftest import ROOT, contents, need
from tests.encoding.company import company_changes_bits
from tests.faults.encoders import Nursery, nursery
from tests.faults.killer import build
from tests.mpi import mpi_command
from tests.text.making import shard_articles
from toolkit.base.files import read_json
from toolkit.cluster.preempt import INTERRUPTED
from toolkit.encoding.store import VectorStore
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

KILLED = -9
NUM_UNITS = 43  # 170 articles, 4 a unit
WAYS = ("alone", "claim", "mpi")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The arguments of the encoding program but for its output, and the output without a break."""

    arguments: list[str]
    shards: Path
    whole: dict[str, bytes]
    may_differ: bool = False  # in bits, where other company changes them

    def on(self, output: Path, *, way: str) -> list[str]:
        """The command line."""
        return [*self.arguments, f"output_dir={output}", f"schedule={way}"]

    def faults(self, output: Path) -> list[str]:
        """What is wrong with a finished encoding."""
        there, found = contents(output), []
        there.pop("reuse.json", None)
        differing = [n for n in {**there, **self.whole} if there.get(n) != self.whole.get(n)]
        if differing and not self.may_differ:
            found.append(f"{len(differing)} files differ: {sorted(differing)[:4]}")
        corpus = open_shards(self.shards)
        wanted = [record["id"] for record in corpus.records(0, corpus.num_rows)]
        # A document's chunks stand together, under its id.
        ids = VectorStore(output, verify=True).ids()
        if [name for name, _ in itertools.groupby(ids)] != wanted:
            found.append("rows are lost, doubled or in another order")
        return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    need(compiler is not None, "no C compiler (cc) for the shim that kills")
    assert compiler
    return build(tmp_path_factory.mktemp("shim"), compiler=compiler)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[Nursery]:
    log = tmp_path_factory.mktemp("workers") / "log"
    with nursery(log, library=library) as found:
        yield found


@pytest.fixture(scope="module")
def corpus(
    tmp_path_factory: pytest.TempPathFactory, workers: Nursery, shards: Path, tiny_model: Path
) -> Corpus:
    arguments = ["tiny_embed", f"encoder.model={tiny_model}", f"corpus.input={shards}"]
    arguments += ["encoder.max_tokens=256", "corpus.unit_rows=4", "lease_s=5"]
    output = tmp_path_factory.mktemp("whole") / "out"
    made = encoded(Corpus(arguments, shards, {}), workers=workers, output=output)
    assert len(made.whole) == 3 * NUM_UNITS + 2
    return made


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory, workers: Nursery, corpus: Corpus) -> Corpus:
    """The same in chunks of 64 tokens, of which neighbours share 8."""
    arguments = [*corpus.arguments, "corpus.chunk_tokens=64", "corpus.chunk_overlap=8"]
    arguments += ["corpus.unit_rows=20"]
    output = tmp_path_factory.mktemp("chunks") / "out"
    return encoded(Corpus(arguments, corpus.shards, {}), workers=workers, output=output)


@pytest.fixture(scope="module")
def half_reused(
    tmp_path_factory: pytest.TempPathFactory, workers: Nursery, corpus: Corpus, tiny_model: Path
) -> Corpus:
    """The same beside an older encoding of half of the texts, in another order, under other ids."""
    folder = tmp_path_factory.mktemp("older")
    opened = open_shards(corpus.shards)
    rows = random.Random(3).sample(range(opened.num_rows), opened.num_rows // 2)
    articles = [Article(f"old{row}", "", url="", text=opened.text(row)) for row in rows]
    older = shard_articles(articles, output=folder / "shards")
    arguments = [*corpus.arguments, f"corpus.input={older}", f"output_dir={folder / 'out'}"]
    assert workers.wait(workers.start([*arguments, "schedule=alone"])) == 0, said(workers)
    reusing = [*corpus.arguments, f"reuse={folder / 'out'}"]
    may_differ = company_changes_bits(tiny_model)
    return dataclasses.replace(corpus, arguments=reusing, may_differ=may_differ)


@pytest.fixture(scope="module")
def delta(
    tmp_path_factory: pytest.TempPathFactory, workers: Nursery, real_data: Path, tiny_model: Path
) -> Corpus:
    """5,000 real sentences, of which 50 were changed, 50 taken out and 50 put in, in another order:
    from scratch, and the arguments that reuse the encoding of before."""
    folder = tmp_path_factory.mktemp("delta")
    texts = read_sentences(real_data)
    before = [Article(f"s{n}", "", url="", text=text) for n, text in enumerate(texts[:5000])]
    rng = random.Random(4)
    picked = rng.sample(range(5000), 100)
    changed, gone = set(picked[:50]), set(picked[50:])
    now = [
        dataclasses.replace(one, text=f"{one.text} Once more.") if n in changed else one
        for n, one in enumerate(before)
        if n not in gone
    ]
    now += [Article(f"new{n}", "", url="", text=text) for n, text in enumerate(texts[5000:5050])]
    rng.shuffle(now)
    arguments = ["tiny_embed", f"encoder.model={tiny_model}", "encoder.max_tokens=256"]
    arguments += ["corpus.unit_rows=50", "lease_s=5"]
    older = shard_articles(before, output=folder / "before" / "shards")
    old = [*arguments, f"corpus.input={older}", f"output_dir={folder / 'old'}"]
    assert workers.wait(workers.start([*old, "schedule=alone"])) == 0, said(workers)
    shards = shard_articles(now, output=folder / "now" / "shards")
    scratch = Corpus([*arguments, f"corpus.input={shards}"], shards, {})
    made = encoded(scratch, workers=workers, output=folder / "scratch")
    reusing = [*scratch.arguments, f"reuse={folder / 'old'}"]
    may_differ = company_changes_bits(tiny_model)
    return dataclasses.replace(made, arguments=reusing, may_differ=may_differ)


def encoded(corpus: Corpus, *, workers: Nursery, output: Path) -> Corpus:
    """With its output, of one worker without a break."""
    assert workers.wait(workers.start(corpus.on(output, way="alone"))) == 0, said(workers)
    whole = contents(output)
    num_units, rest = divmod(len(whole) - 2, 3)
    assert not rest and num_units >= 40
    return dataclasses.replace(corpus, whole=whole)


def said(workers: Nursery) -> str:
    return workers.log.read_text(errors="replace")[-3000:]


def num_files(output: Path) -> int:
    return len(os.listdir(output / "units")) if (output / "units").is_dir() else 0


class Campaign:
    """Kills upon kills on one output directory, which begins anew whenever it is whole."""

    def __init__(self, corpus: Corpus, *, workers: Nursery, output: Path, seed: int) -> None:
        self.corpus, self.workers, self.output = corpus, workers, output
        self.rng = random.Random(seed)
        self.num_kills = self.num_wholes = 0

    def wait_for_work(self) -> None:
        """Until something was written, and then a moment of any length."""
        before, deadline = num_files(self.output), time.monotonic() + 30
        while num_files(self.output) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(self.rng.uniform(0, 0.4))

    def kill_alone(self) -> None:
        """One worker, killed."""
        self.kill_of(["alone"])

    def kill_claims(self) -> None:
        """Three that claim; one is killed, one comes, another is killed, and so on."""
        self.kill_of(["claim"] * 3)

    def kill_of(self, ways: list[str]) -> None:
        """Kill each of these workers, at random; in between another may come."""
        crew = [self.start(way) for way in ways]
        while crew:
            self.wait_for_work()
            victim = crew.pop(self.rng.randrange(len(crew)))
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.num_kills += self.workers.wait(victim) == KILLED
            if len(ways) > 1 and self.rng.random() < 0.3:
                crew.append(self.start(ways[0]))
        self.look()

    def kill_mpi(self, ranks: int = 3) -> None:
        """One of the ranks: the launcher ends the others."""
        line = [sys.executable, "-m", "toolkit.encode", *self.corpus.on(self.output, way="mpi")]
        marked = ["bash", "-c", f'echo $$ >> {self.output}.pids; exec "$@"', "-", *line]
        pids = Path(f"{self.output}.pids")
        pids.unlink(missing_ok=True)
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.workers.log.open("a") as log:
            job = subprocess.Popen(
                mpi_command([marked] * ranks), cwd=ROOT, env=environ, stdout=log, stderr=log
            )
        self.wait_for_work()
        victim = self.rng.choice(pids.read_text().split())
        with contextlib.suppress(ProcessLookupError):  # it is at its end
            os.kill(int(victim), signal.SIGKILL)
        self.num_kills += job.wait(timeout=60) != 0
        self.look()

    def start(self, way: str) -> int:
        return self.workers.start(self.corpus.on(self.output, way=way))

    def look(self) -> None:
        """A run that reached its end in between is judged, and its output removed."""
        if (self.output / "manifest.json").exists():
            self.finish()
            shutil.rmtree(self.output)

    def finish(self) -> None:
        """By another number of workers, to the end."""
        count = self.rng.randrange(1, 4)
        way = "claim" if count > 1 else self.rng.choice(["alone", "claim"])
        crew = [self.start(way) for _ in range(count)]
        assert [self.workers.wait(pid) for pid in crew] == [0] * count, said(self.workers)
        assert self.corpus.faults(self.output) == []
        self.num_wholes += 1


@pytest.fixture
def campaign(corpus: Corpus, workers: Nursery, tmp_path: Path) -> Callable[[int], Campaign]:
    def start(seed: int) -> Campaign:
        return Campaign(corpus, workers=workers, output=tmp_path / "out", seed=seed)

    return start


def test_workers_killed_at_random_lose_nothing(campaign: Callable[[int], Campaign]) -> None:
    """A short one: alone, three that claim, two MPI ranks; then other numbers of workers."""
    made = campaign(1)
    made.kill_alone()
    made.kill_claims()
    made.kill_mpi(ranks=2)
    made.finish()
    assert made.num_kills >= 4


@pytest.mark.parametrize("way", ["alone", "claim"])
def test_a_worker_told_to_go_ends_at_a_unit_and_gives_back_the_rest(
    way: str, campaign: Callable[[int], Campaign]
) -> None:
    made = campaign(0)
    worker = made.start(way)
    made.wait_for_work()
    os.kill(worker, signal.SIGUSR2)
    assert made.workers.wait(worker) == INTERRUPTED
    assert not (made.output / "leases").exists()
    names = sorted(path.name for path in (made.output / "units").iterdir())
    markers = [name for name in names if name.endswith(".json")]
    assert len(names) == 3 * len(markers)  # no unit is half there
    assert 0 < len(markers) < NUM_UNITS
    assert f"told to stop; {NUM_UNITS - len(markers)} units are left" in said(made.workers)
    made.finish()


def test_a_worker_that_reuses_vectors_loses_nothing_when_it_is_killed(
    half_reused: Corpus, workers: Nursery, tmp_path: Path
) -> None:
    """A short one: killed once, and taken up by others, perhaps after another such kill."""
    made = Campaign(half_reused, workers=workers, output=tmp_path / "out", seed=5)
    made.kill_claims()
    made.finish()
    assert made.num_kills


@pytest.mark.slow
def test_thirty_kills_of_workers_that_reuse_vectors(
    half_reused: Corpus, workers: Nursery, tmp_path: Path
) -> None:
    made = Campaign(half_reused, workers=workers, output=tmp_path / "out", seed=6)
    while made.num_kills < 30:
        made.rng.choice([made.kill_alone, made.kill_claims, made.kill_mpi])()
    made.finish()
    print(f"{made.num_kills} kills, {made.num_wholes} times whole")


@pytest.mark.slow
def test_thirty_kills_of_workers_that_embed_what_changed_in_5000_rows(
    delta: Corpus, workers: Nursery, tmp_path: Path
) -> None:
    made = Campaign(delta, workers=workers, output=tmp_path / "out", seed=7)
    while made.num_kills < 30:
        made.rng.choice([made.kill_alone, made.kill_claims, made.kill_mpi])()
    made.finish()
    record = read_json(made.output / "reuse.json")
    counts = {name: record[name] for name in ("reused", "new", "changed", "gone")}
    assert counts == {"reused": 4900, "new": 50, "changed": 50, "gone": 50}
    print(f"{made.num_kills} kills, {made.num_wholes} times whole")


@pytest.mark.slow
@pytest.mark.parametrize("in_chunks", [False, True])
def test_fifty_kills_at_random_lose_nothing(
    in_chunks: bool, corpus: Corpus, chunked: Corpus, workers: Nursery, tmp_path: Path
) -> None:
    given = chunked if in_chunks else corpus
    made = Campaign(given, workers=workers, output=tmp_path / "out", seed=int(in_chunks))
    while made.num_kills < 50:
        made.rng.choice([made.kill_alone, made.kill_claims, made.kill_claims, made.kill_mpi])()
    made.finish()
    print(f"{made.num_kills} kills, {made.num_wholes} times whole")


def calls_of(corpus: Corpus, *, workers: Nursery, output: Path, way: str) -> list[str]:
    """The file-system calls under the output of one worker that does two units and the end."""
    shutil.rmtree(output, ignore_errors=True)
    prepare(corpus, output)
    pid = workers.start(corpus.on(output, way=way), call=0, watched=output)
    assert workers.wait(pid) == 0, said(workers)
    return workers.calls()


def prepare(corpus: Corpus, output: Path) -> None:
    """An encoding of which two units and the manifest are missing."""
    shutil.rmtree(output, ignore_errors=True)
    for name, content in corpus.whole.items():
        if name != "manifest.json" and not name.startswith(("units/00007", "units/00030")):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(content)


def kill_at(call: int, *, corpus: Corpus, workers: Nursery, output: Path, way: str) -> list[str]:
    """What is wrong after a kill before this call, and another worker's end of it."""
    prepare(corpus, output)
    pid = workers.start(corpus.on(output, way=way), call=call, watched=output)
    if workers.wait(pid) != KILLED:
        return [f"call {call}: was not killed"]
    where = f"killed before call {workers.calls()[-1]}"
    if workers.wait(workers.start(corpus.on(output, way="claim"))):
        return [f"{where}: the next worker failed: {said(workers)}"]
    return [f"{where}: {fault}" for fault in corpus.faults(output)]


def check_calls(
    corpus: Corpus, *, workers: Nursery, output: Path, way: str, most: int | None
) -> None:
    calls = calls_of(corpus, workers=workers, output=output, way=way)
    # Threads make the order vary a little from run to run: the last ones may not be reached.
    names = [line.split(" ", 2)[1] for line in calls]
    points = [n for n, name in enumerate(names[:-3], 1) if name not in ("read", "write", "open")]
    if most is not None:
        points = sorted(random.Random(0).sample(points, most))
    print(f"{len(calls)} calls, killed before {len(points)}")
    faults = [
        fault
        for call in points
        for fault in kill_at(call, corpus=corpus, workers=workers, output=output, way=way)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("way", ["alone", "claim"])
def test_a_worker_killed_before_a_few_file_system_calls_leaves_no_trace(
    way: str, corpus: Corpus, workers: Nursery, tmp_path: Path
) -> None:
    check_calls(corpus, workers=workers, output=tmp_path / "out", way=way, most=3)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["alone", "claim"])
def test_a_worker_killed_before_any_file_system_call_leaves_no_trace(
    way: str, corpus: Corpus, workers: Nursery, tmp_path: Path
) -> None:
    check_calls(corpus, workers=workers, output=tmp_path / "out", way=way, most=None)
