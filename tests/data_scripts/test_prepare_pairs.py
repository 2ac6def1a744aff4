"""The command line: instructions by name, data sets side by side, one line for what is wrong."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_scripts import prepare_pairs
from tests.forking.start import forked_python
from toolkit.text.pairs import Pair, open_pairs

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"query": "q", "positive": "p", "negative": "n"}


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [forked_python(), str(ROOT / "data_scripts" / "prepare_pairs.py"), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_folder_is_data_sets_with_the_instructions_of_e5(tmp_path: Path) -> None:
    write(tmp_path / "echo" / "nq.jsonl", GOOD, {**GOOD, "query": "q2"})
    write(tmp_path / "echo" / "quora_duplicates_split2.jsonl", GOOD)
    write(tmp_path / "echo" / "ours.jsonl", GOOD)
    (tmp_path / "echo" / "README.md").write_text("x")
    done = run(*("--input", "echo", "--instructions", "e5", "--output", "pairs"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "           2 pairs  nq: Given a question, retrieve Wikipedia passages that answer the "
        "question\n"
        "           1 pairs  ours: no instruction\n"
        "           1 pairs  quora_duplicates_split2: Find questions that have the same meaning as "
        "the input question (both sides)\n"
        "pairs: 4 pairs of 3 data sets\n"
    )
    nq, ours, quora = open_pairs(tmp_path / "pairs").tasks
    assert nq.query_instruction.startswith("Given a question") and not nq.document_instruction
    assert not ours.query_instruction
    assert quora.query_instruction == quora.document_instruction != ""


def test_instructions_of_ones_own(tmp_path: Path) -> None:
    inputs = [write(tmp_path / f"{name}.jsonl", GOOD) for name in ("a_split1", "b", "c")]
    sides = {"a": "Ask", "b": {"query": "Q", "document": "D"}, "c": {"both": "B"}}
    (tmp_path / "i.yaml").write_text(yaml.safe_dump(sides))
    done = run(*("--input", *inputs, "--instructions", "i.yaml", "--output", "pairs"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tasks = open_pairs(tmp_path / "pairs").tasks
    found = [(task.name, task.query_instruction, task.document_instruction) for task in tasks]
    assert found == [("a_split1", "Ask", ""), ("b", "Q", "D"), ("c", "B", "B")]


def test_bad_rows_are_listed_until_they_are_too_many(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", *[GOOD] * 98, {"query": "q"}, ["list"])
    failed = run("--input", path, "--output", "pairs", cwd=tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {path}: 2 of 100 rows are bad, more than --max-bad-")
    assert '"place": "line 99", "reason": "no positive"' in failed.stderr
    assert not (tmp_path / "pairs").exists()
    done = run(*("--input", path, "--output", "pairs", "--max-bad-fraction", "0.02"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 bad rows, listed in pairs/quarantine.jsonl" in done.stdout
    assert (tmp_path / "pairs" / "quarantine.jsonl").read_text().count("\n") == 2


def test_the_fraction_of_bad_rows_is_of_rows_however_many_pairs_they_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [{"query": f"q{n}", "positive": [f"p{m}" for m in range(100)]} for n in range(5)]
    empty = [{"query": f"q{n}", "positive": []} for n in range(4)]
    path = write(tmp_path / "many.jsonl", *many, *empty)
    path.write_text(path.read_text() + "\n")
    assert prepare_pairs.main(["--input", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "many.jsonl: 4 of 10 rows are bad" in capsys.readouterr().err
    labels = ["entailment", "neutral", "contradiction"]
    rows = [
        {"premise": f"P{n // 3}", "hypothesis": f"h{n}", "label": labels[n % 3]} for n in range(99)
    ]
    path = write(tmp_path / "few.jsonl", *rows, {**rows[0], "label": "maybe"})
    assert prepare_pairs.main(["--input", str(path), "--output", str(tmp_path / "out")]) == 0


def test_rows_that_give_no_pair_are_counted_by_reason(tmp_path: Path) -> None:
    labels = ["entailment", "contradiction", "neutral", "-", "-", "maybe"]
    rows = [
        {"premise": "P", "hypothesis": f"h{n}", "label": label} for n, label in enumerate(labels)
    ]
    path = write(tmp_path / "nli.jsonl", *rows)
    failed = run("--input", path, "--output", "pairs", cwd=tmp_path)
    assert failed.returncode == 2
    assert "unknown label 'maybe'" in failed.stderr
    done = run("--input", path, "--output", "pairs", "--max-bad-fraction", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "           2 rows left out: no gold label\n" in done.stdout
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    (entry,) = manifest["sets"]
    assert entry["left_out"] == {"neutral": 1, "no gold label": 2}
    assert entry["quarantined"] == {"unknown label 'maybe'": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--input", "picture.png"], "picture.png: unknown kind of file; give .jsonl"),
        (["--input", "empty"], "empty: holds none of .jsonl"),
        (["--input", "a.jsonl", "b/a.jsonl"], "two data sets are called 'a': rename a file"),
        (["--input", "a.jsonl", "--instructions", "none.yaml"], "none.yaml: cannot be read"),
        (["--input", "a.jsonl", "--instructions", "list.yaml"], "wanted lines like name"),
        (["--input", "a.jsonl", "--instructions", "odd.yaml"], "a: side: 'x'; wanted a text"),
        (["--input", "a.jsonl", "--max-negatives", "-1"], "--max-negatives -1: give a number"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    write(tmp_path / "b" / "a.jsonl", GOOD)
    (tmp_path / "empty").mkdir()
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "list.yaml").write_text("[a]")
    (tmp_path / "odd.yaml").write_text("a: {side: x}")
    done = run(*arguments, "--output", "pairs", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "pairs").exists()


def test_an_input_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.jsonl", GOOD, {**GOOD, "query": "q2"})
    read_pairs = prepare_pairs.read_pairs

    def read_and_grow(file: Path, **options: Any) -> Iterator[Pair]:
        for pair in read_pairs(file, **options):
            with path.open("a") as handle:
                handle.write("\n")
            yield pair

    monkeypatch.setattr(prepare_pairs, "read_pairs", read_and_grow)
    code = prepare_pairs.main(["--input", str(path), "--output", str(tmp_path / "pairs")])
    assert code == 2 and "x.jsonl: has changed while it was read" in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()
