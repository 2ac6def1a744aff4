"""Mined negatives are those of a plain search over the whole matrix, and never an answer."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_scripts import mine_negatives
from tests.conftest import run
from tests.encoding.conftest import embed
from toolkit.base.sealed import SELF_DIGEST, content_digest
from toolkit.domain.mining import hint_of
from toolkit.encoding.encoder import encoder_of
from toolkit.encoding.formats import unit_length
from toolkit.encoding.negatives import TOO_NEAR
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import facts_digest
from toolkit.text.pairs import PairSet, open_pairs, text_hash
from toolkit.text.shards import ShardSet, open_shards

Script = Callable[..., str]
NUM, DEPTH, SKIP, RATIO = 3, 40, 2, 0.97
INSTRUCTION = "Find the article"


@pytest.fixture(scope="module")
def corpus(shards: Path) -> ShardSet:
    return open_shards(shards)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, corpus: ShardSet) -> Path:
    """Pairs of a first sentence and the article, some sentences with two answers; in two data sets,
    one of them with an instruction."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"query": corpus.sentence(row, 0), "positive": corpus.text(row)} for row in range(0, 60, 2)
    ]
    rows += [{**row, "positive": corpus.text(61)} for row in rows[:5]]
    for name in ("plain", "asked"):
        path = folder / "in" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "i.yaml").write_text(f"asked: {INSTRUCTION}\n")
    script = [sys.executable, "data_scripts/prepare_pairs.py", "--input", str(folder / "in")]
    run([*script, "--instructions", str(folder / "i.yaml"), "--output", str(folder / "pairs")])
    return folder / "pairs"


def mine(*arguments: object, code: int = 0) -> str:
    return run([sys.executable, "data_scripts/mine_negatives.py", *map(str, arguments)], code=code)


def expected(pairs: PairSet, *, whole: Path, corpus: ShardSet) -> list[tuple[str, ...]]:
    """One pair after another, with the whole corpus in memory."""
    store = VectorStore(whole)
    encoder = encoder_of(store)
    rows_ND = unit_length(store.vectors())
    texts = [corpus.text(row) for row in range(len(corpus))]
    found = []
    for number, task in enumerate(pairs.tasks):
        listed = [pairs.pair(number, row) for row in range(int(pairs.num_rows[number]))]
        for pair in listed:
            prefix = f"{INSTRUCTION}; " if task.name == "asked" else ""
            query = unit_length(encoder.encode([pair.query], prompt=prefix))[0]
            limit = RATIO * float(query @ unit_length(encoder.encode([pair.positive]))[0])
            answers = {text_hash(p.positive) for p in listed if p.query == pair.query}
            chosen: list[str] = []
            score_N = rows_ND @ query
            for row in np.argsort(-score_N, kind="stable")[SKIP:DEPTH]:
                wanted = score_N[row] <= limit and text_hash(texts[row]) not in answers
                if wanted and len(chosen) < NUM:
                    chosen.append(texts[row])
            found.append(tuple(chosen))
    return found


@pytest.mark.parametrize("batch", [7, 4096])
def test_negatives_are_those_of_a_plain_search(
    batch: int, made: Path, whole: Path, corpus: ShardSet, tmp_path: Path
) -> None:
    rules = ["--negatives", NUM, "--depth", DEPTH, "--skip", SKIP, "--max-ratio", RATIO]
    places = ["--pairs", made, "--embeddings", whole, "--output", tmp_path / "hard"]
    printed = mine(*places, *rules, "--batch", batch)
    pairs, hard = open_pairs(made), open_pairs(tmp_path / "hard")
    found = [
        hard.pair(number, row) for number in range(2) for row in range(int(hard.num_rows[number]))
    ]
    assert [pair.negatives for pair in found] == expected(pairs, whole=whole, corpus=corpus)
    counts = Counter(len(pair.negatives) for pair in found)
    assert counts[NUM] > 40, counts
    assert hard.tasks[1].max_negatives == NUM
    assert [task.query_instruction for task in hard.tasks] == [INSTRUCTION, ""]
    assert "left out: nearer than the limit" in printed and "70 pairs" in printed
    # The queries with two answers have neither among their negatives.
    for pair in found:
        answers = {p.positive_hash for p in found if p.query_hash == pair.query_hash}
        assert not answers & set(pair.negative_hashes)


def test_a_second_answer_is_no_negative_however_near_it_is(
    made: Path, whole: Path, tmp_path: Path
) -> None:
    """What was the hardest negative of each query becomes its second answer."""
    rules = ["--negatives", NUM, "--depth", DEPTH, "--embeddings", whole]
    mine("--pairs", made, *rules, "--output", tmp_path / "first")
    first = open_pairs(tmp_path / "first")
    listed = [first.pair(1, row) for row in range(int(first.num_rows[1]))]
    nearest = {pair.query: pair.negatives[0] for pair in reversed(listed) if pair.negatives}
    assert len(nearest) > 20
    answers = [(p.query, p.positive) for p in listed] + list(nearest.items())
    lines = [json.dumps({"query": query, "positive": text}) for query, text in answers]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    script = [
        sys.executable,
        "data_scripts/prepare_pairs.py",
        "--input",
        str(tmp_path / "two.jsonl"),
    ]
    run([*script, "--output", str(tmp_path / "two")])
    mine("--pairs", tmp_path / "two", *rules, "--output", tmp_path / "second")
    second = open_pairs(tmp_path / "second")
    found = [second.pair(0, row) for row in range(int(second.num_rows[0]))]
    assert len(found) == len(answers)
    for pair in found:
        assert nearest.get(pair.query) not in pair.negatives


def of_facts(manifest: dict[str, Any], **facts: object) -> dict[str, Any]:
    """The manifest of an encoding with these facts instead, all digests right."""
    changed = {**manifest, **facts}
    changed["digest"] = digest = facts_digest(changed)
    changed["units"] = {n: {**m, "encoding": digest} for n, m in manifest["units"].items()}
    return {**changed, SELF_DIGEST: content_digest(changed)}


def test_bad_input_is_one_line(
    made: Path, whole: Path, shards: Path, tiny_model: Path, tmp_path: Path
) -> None:
    places = ["--pairs", made, "--embeddings", whole, "--output", tmp_path / "hard"]
    for arguments, message in (
        (["--negatives", 0], "--negatives 0: give a number from 1"),
        (["--skip", 100], "--skip 100: leaves nothing of --depth 100"),
        (["--max-ratio", 0], "--max-ratio 0.0: give a number above 0"),
        (["--pairs", shards], "is not"),
        (["--embeddings", tmp_path], "is not an encoding"),
        (["--corpus", made], str(made)),
        (["--output", made], "is there already"),
    ):
        printed = mine(*places, *arguments, code=2)
        assert "error: " in printed and "Traceback" not in printed, printed
        assert message in printed, printed
    assert not (tmp_path / "hard").exists()
    other = tmp_path / "other"
    embed(other, f"encoder.model={tiny_model}", f"corpus.input={shards}")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(of_facts(manifest, corpus="0" * 64)))
    assert "not of this corpus" in mine(*places, "--embeddings", other, code=2)
    chunks = {"tokens": 8, "overlap": 0}
    (other / "manifest.json").write_text(json.dumps(of_facts(manifest, chunks=chunks)))
    assert "encode without corpus.chunk_tokens" in mine(*places, "--embeddings", other, code=2)


@pytest.mark.parametrize(("ratio", "hinted"), [(0.5, True), (2.0, False)])
def test_candidates_that_are_too_near_are_a_hint(
    ratio: float,
    hinted: bool,
    made: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ["--pairs", made, "--embeddings", whole, "--output", tmp_path / "hard"]
    rules = ["--depth", 10, "--negatives", 9, "--max-ratio", ratio]
    assert mine_negatives.main([*map(str, [*places, *rules])]) == 0
    captured = capsys.readouterr()
    hint = "candidates are too near to the query: give a larger --max-ratio (1 leaves out only"
    assert (hint in captured.err) == hinted, captured.err
    too_near = {TOO_NEAR: 9}
    assert "larger --max-ratio" in hint_of(too_near, num_found=1, by_options=True)
    of_recipe = hint_of(too_near, num_found=1, by_options=False)
    assert "larger max_ratio" in of_recipe and "larger depth" in of_recipe and "--" not in of_recipe
