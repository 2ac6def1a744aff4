"""A short version of the benchmarks: they run, and say what they should. No figure is judged."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.benchmarks import (
    bench_corpora,
    bench_cranfield,
    bench_merge,
    bench_quality,
    simulate_dealing,
)
from tests.benchmarks.harness import Contender, Run, compare, run_once, table
from tests.conftest import run
from toolkit.settings.schema import EncoderSettings


def test_a_ratio_is_of_runs_side_by_side() -> None:
    """The machine became three times slower half-way: the ratio does not see it."""
    seconds = {"ours": [1.0, 1.0, 3.0], "theirs": [2.0, 2.0, 6.0]}
    found = {name: [Run(s, s, 1.0, {}) for s in values] for name, values in seconds.items()}
    lines = table(found, figures={"s": lambda one: one.wall_s}).splitlines()
    assert lines[2:] == ["| ours | 1.00 | 1.00 |", "| theirs | 2.00 | 0.50 |"]


def test_contenders_take_turns_and_children_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    burn = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.2: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    code = f"open({str(log)!r}, 'a').write('NAME'); {child}; print('{{\"x\": 3}}')"
    contenders = [
        Contender(name, [sys.executable, "-c", code.replace("NAME", name)]) for name in "ab"
    ]
    found = compare(contenders, runs=2, warmup=1)
    assert log.read_text() == "ababab"
    assert [len(runs) for runs in found.values()] == [2, 2]
    assert all(one.said == {"x": 3} and one.cpu_s >= 0.2 for one in found["a"])


def test_a_contender_that_fails_shows_why() -> None:
    failing = Contender("bad", [sys.executable, "-c", "print('because'); raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match=r"bad failed:\nbecause"):
        run_once(failing)


@pytest.mark.parametrize("name", ["bench_cleaning", "bench_loader"])
def test_the_data_plane(name: str, real_data: Path) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--data", str(real_data)]
    # Of 0.1 MB fewer blocks of 512 tokens are made than a batch has.
    printed = run([*command, "--megabytes", "0.2", "--runs", "1"])
    assert "| ours | " in printed
    assert ("| datasets.map | " in printed) == (name == "bench_cleaning")


def test_encoding_beside_sentence_transformers(real_data: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.bench_encode", "--data", str(real_data)]
    printed = run([*command, "--rows", "20", "--runs", "1", "--only", "short"])
    assert "least cosine: ours, bf16 0.999" in printed and "sentence-transformers 1.0" in printed
    assert "| ours | " in printed
    assert "| sentence-transformers | " in printed


def test_training_steps_say_how_fast_they_were(shards: Path, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.train_steps", "tiny_simcse"]
    printed = run([*command, f"data.train={shards}", f"model.base={tiny_model}", "train.steps=2"])
    told = json.loads(printed.splitlines()[-1])
    assert told["tokens_per_s"] > told["rows_per_s"] > 0
    assert 0 < told["memory_gib"] < 100


def test_scores_over_seeds_become_a_table_and_a_plot(tmp_path: Path) -> None:
    scores = {"base": [0.25, 0.25], "trained": [0.5, 0.3]}
    lines = bench_quality.table(scores).splitlines()
    assert lines[3] == "| trained | 0.400 | 0.141 | 0.300 to 0.500 |"
    for name in ("a.svg", "b.svg"):
        bench_quality.plot(scores, tmp_path / name, told="STS-B")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def bm25(texts: Mapping[str, str], asked: Sequence[str]) -> list[dict[str, float]]:
    """Robertson's formula with k1 = 1.2, b = 0.75, over words as they are."""
    words = {name: Counter(re.findall(r"[a-z0-9]+", text.lower())) for name, text in texts.items()}
    mean = sum(count.total() for count in words.values()) / len(words)
    rows: dict[str, dict[str, int]] = {}
    for name, count in words.items():
        for word, times in count.items():
            rows.setdefault(word, {})[name] = times
    found = []
    for query in asked:
        scores: Counter[str] = Counter()
        for word in re.findall(r"[a-z0-9]+", query.lower()):
            there = rows.get(word, {})
            weight = math.log(1 + (len(words) - len(there) + 0.5) / (len(there) + 0.5))
            for name, times in there.items():
                norm = 1.2 * (0.25 + 0.75 * words[name].total() / mean)
                scores[name] += weight * times * 2.2 / (times + norm)  # type: ignore[assignment]
        found.append({name: float(score) for name, score in scores.most_common(100)})
    return found


def test_cranfield_is_judged_right(real_data: Path) -> None:
    """BM25 comes to what others have found: queries, documents and judgements belong together."""
    folder = real_data / "cranfield"
    documents, asked = bench_cranfield.documents(folder), bench_cranfield.queries(folder)
    assert (len(documents), len(asked)) == (1400, 225)
    scores = bench_cranfield.judged(bm25({d.id: d.text for d in documents}, asked), folder)
    for name, value in bench_cranfield.BM25.items():
        assert scores[name] == pytest.approx(value, abs=0.03), scores


def test_cranfield_is_encoded_and_searched(
    real_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Above chance with 16 tokens of each, but for two that are empty; what the README states is
    of 512."""
    folder = real_data / "cranfield"
    settings = EncoderSettings(model=str(tiny_model), max_tokens=16)
    store = bench_cranfield.encoded(folder, output=tmp_path, encoder=settings)
    assert store.num_rows == 1398
    scores = bench_cranfield.scores_of(store, folder)
    print(scores)
    assert scores["recall_100"] > 100 / 1400 + 0.03, scores
    assert scores["ndcg_cut_10"] > 0.015, scores


def test_two_workers_share_an_evaluation(
    real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_corpora.main(["--data", str(real_data), "--short", "--runs", "1"])
    printed = capsys.readouterr().out
    assert "2 worker(s): " in printed and "['256 of its 256 texts here']" in printed
    assert "of the time of one" in printed and "two that share nothing take" in printed


def test_a_simulated_crew_becomes_a_table_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--workers", "20", "--units", "10", "60", "--seeds", "2"]
    for name in ("a.svg", "b.svg"):
        simulate_dealing.main([*small, "--plot", str(tmp_path / name)])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:4]]
    assert [int(row[0]) for row in rows] == [10, 60]
    assert 1 < float(rows[1][1]) < float(rows[0][1])


def test_what_a_unit_costs() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.bench_scheduling"]
    printed = run([*command, "--rows", "50000", "--units", "12", "--workers", "2"])
    assert "units: 13.00" in printed
    for way in ("claim, 1 worker(s)", "claim, 2 worker(s)", "mpi, 2 worker(s)"):
        assert f"{way}: " in printed


def test_help_says_what_is_compared() -> None:
    for name in ("bench_cleaning", "bench_loader", "bench_training"):
        command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "--peers" in done.stdout


def test_the_memory_of_a_merge_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Ten times the model, in one file: the peak of the same process rises by no more than two or
    three of the largest tensor (8 MB in bf16, 16 in fp32), for adapters and for all weights."""
    places = []
    for megabytes in (16, 160):
        base = tmp_path / str(megabytes)
        bench_merge.make_model(base, megabytes=megabytes, files=1, width=720)
        for make in (bench_merge.make_adapter, bench_merge.make_checkpoint):
            trained = make(
                tmp_path / f"{make.__name__}-{megabytes}", megabytes=megabytes, width=720
            )
            places += [str(base), str(trained), str(tmp_path / "out")]
    command = [sys.executable, "-m", "tests.benchmarks.bench_merge", "--child", *places]
    peaks = json.loads(run(command).splitlines()[-1])["peaks_mib"]
    assert len(peaks) == 4 and peaks[3] - peaks[1] < 50
