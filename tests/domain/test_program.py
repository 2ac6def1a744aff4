"""The program of questions: any number of workers, kills and restarts give the same bytes, and
every question is accounted for."""

import collections
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, contents
from tests.domain.conftest import NUM_DOCUMENTS, TIMES, Arguments, ask
from tests.forking.start import environ_of_starts, forked_python
from tests.text.making import shard_articles
from toolkit import verify
from toolkit.domain import finishing
from toolkit.domain import output as writing
from toolkit.domain.decoder import Decoder
from toolkit.evaluation.retrieval import check_corpus, read_judged
from toolkit.launching.jobs import StageJob
from toolkit.runs.standing import standings
from toolkit.settings.recipes import load_recipe
from toolkit.text.pairs import open_pairs
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

NUM_UNITS = 9
Row = dict[str, Any]


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(output: Path) -> list[Row]:
    """All rows of all units, in order."""
    tables = [pq.read_table(path) for path in sorted((output / "units").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def start(output: Path, arguments: Arguments) -> "subprocess.Popen[str]":
    line = [forked_python(), "-m", "toolkit.questions", "write_questions", *arguments]
    return subprocess.Popen(
        [*line, f"output_dir={output}"],
        cwd=ROOT,
        env=environ_of_starts(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_units(output: Path, worker: "subprocess.Popen[str]", *, count: int) -> None:
    while len(list((output / "units").glob("*.json"))) < count:
        assert worker.poll() is None, worker.communicate()[0]
        time.sleep(0.005)


# --- what is written ---


def test_every_question_is_accounted_for(whole: Path, shards: Path, corpus_ids: list[str]) -> None:
    rows, dropped = written(whole), lines(whole / "dropped.jsonl")
    asked = [(row["id"], row["number"]) for row in rows]
    assert asked == list(itertools.product(corpus_ids[:NUM_DOCUMENTS], range(TIMES)))
    kept = {row["_id"]: row["text"] for row in lines(whole / "queries.jsonl")}
    left_out = {f"{row['id']}-q{row['number']}": row["question"] for row in dropped}
    text_of = {f"{row['id']}-q{row['number'] + 1}": row["question"] for row in rows}
    assert {**kept, **left_out} == text_of
    assert len(kept) + len(left_out) == len(text_of)
    counts = json.loads((whole / "manifest.json").read_text())["counts"]
    assert counts["dropped"] == collections.Counter(row["reason"] for row in dropped)
    assert (counts["documents"], counts["without_text"]) == (NUM_DOCUMENTS, 0)
    assert (counts["asked"], counts["kept"]) == (NUM_DOCUMENTS * TIMES, len(kept))
    assert counts["kept"] > 10 and counts["dropped"], "the case tests nothing"


def test_the_pairs_and_the_test_are_read_by_what_uses_them(
    whole: Path, shards: Path, tmp_path: Path
) -> None:
    corpus = open_shards(shards)
    texts = {record["id"]: record["text"] for record in corpus.records(0, corpus.num_rows)}
    judged = read_judged(whole / "queries.jsonl", judgements=whole / "judgements.tsv")
    check_corpus("mine", judged, names=[*texts])
    shutil.copytree(whole / "pairs", tmp_path / "pairs")  # where opening them leaves a cache
    pairs = open_pairs(tmp_path / "pairs")
    assert int(pairs.num_rows[0]) == len(judged.queries)
    for row, (name, question) in enumerate(judged.queries.items()):
        (document,) = judged.grades[name]
        assert name.rpartition("-q")[0] == document
        pair = pairs.pair(0, row)
        assert (pair.query, pair.positive) == (question, texts[document])


def test_several_questions_of_a_document_differ(whole: Path) -> None:
    by_document = itertools.groupby(written(whole), key=lambda row: row["id"])
    several = [{row["question"] for row in rows} for _, rows in by_document]
    assert sum(len(some) == TIMES for some in several) > NUM_DOCUMENTS / 2


def test_a_document_that_is_nothing_but_special_tokens_is_accounted_for(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["Beavers build dams of wood in rivers.", "</s>", "{examples} </s> {passage}"]
    articles = [Article(str(n), f"T{n}", "", text) for n, text in enumerate(texts)]
    shards = shard_articles(articles, output=tmp_path / "shards")
    changes = ["documents=null", "part=null", f"corpus.input={shards}"]
    ask(tmp_path / "out", *arguments, *changes)
    said = capsys.readouterr().out
    assert "3 documents, 0 of them without text; 2 questions each: 6 asked" in said


# --- workers, kills, restarts ---


def test_two_workers_write_the_same_bytes(
    whole: Path, tmp_path: Path, arguments: Arguments
) -> None:
    workers = [start(tmp_path / "out", arguments) for _ in range(2)]
    printed = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    assert contents(tmp_path / "out") == contents(whole)


def test_a_killed_worker_and_those_after_it_write_the_same_bytes(
    whole: Path, tmp_path: Path, arguments: Arguments
) -> None:
    output = tmp_path / "out"
    worker = start(output, arguments)
    wait_for_units(output, worker, count=2)
    worker.kill()
    worker.communicate()
    assert not (output / "manifest.json").exists()
    ask(output, *arguments)
    assert contents(output) == contents(whole)


def test_a_worker_that_is_told_to_stop_leaves_whole_units(
    whole: Path, tmp_path: Path, arguments: Arguments
) -> None:
    output = tmp_path / "out"
    worker = start(output, arguments)
    wait_for_units(output, worker, count=1)
    worker.send_signal(signal.SIGTERM)
    printed = worker.communicate(timeout=60)[0]
    assert worker.returncode == 75, printed
    assert "units are left" in printed
    done = contents(output / "units")
    assert 0 < len(done) < 2 * NUM_UNITS
    there = contents(whole / "units")
    assert all(there[name] == content for name, content in done.items())
    ask(output, *arguments)
    assert contents(output) == contents(whole)


def test_a_worker_that_is_told_to_stop_leaves_its_unit(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next batch: a unit of a large model takes longer than a scheduler waits."""
    asked: list[int] = []
    real = Decoder.continued

    def told(self: Decoder, prompts: list[object], **given: Any) -> Any:
        asked.append(len(prompts))
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, prompts, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "continued", told)
    with pytest.raises(SystemExit) as stopped:
        ask(tmp_path / "out", *arguments, "generator.batch_rows=2")
    assert stopped.value.code == 75
    assert asked == [1], "it wrote the other three documents of its unit, too"
    assert not list((tmp_path / "out").glob("units/*.json"))
    assert not (tmp_path / "out" / "leases").exists()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (writing, "00003.parquet"),
        (writing, "00003.json"),
        (finishing, "queries.jsonl"),
        (finishing, "dropped.jsonl"),
        (writing, "manifest.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_killed_before_any_file_it_goes_on(
    place: Any,
    name: str,
    whole: Path,
    tmp_path: Path,
    arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        for function in ("write_atomic", "write_json"):
            real = getattr(place, function, None)

            def write(path: Path, content: Any, real: Any = real) -> None:
                if path.name == name:
                    raise Killed
                real(path, content)

            if real:
                patch.setattr(place, function, write)
        with pytest.raises(Killed):
            ask(tmp_path / "out", *arguments)
    ask(tmp_path / "out", *arguments)
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.parametrize("harm", ["flipped questions", "no marker", "no questions"])
def test_only_a_damaged_unit_is_made_again(
    harm: str, whole: Path, tmp_path: Path, arguments: Arguments
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    before = {path.name: path.stat().st_mtime_ns for path in (output / "units").iterdir()}
    if harm.startswith("no "):
        ending = {"no marker": "json", "no questions": "parquet"}[harm]
        (output / "units" / f"00002.{ending}").unlink()
    else:
        path = output / "units" / "00002.parquet"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        assert verify.main([str(output)]) == 2
    ask(output, *arguments)
    assert contents(output) == contents(whole)
    after = {path.name: path.stat().st_mtime_ns for path in (output / "units").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {
        "00002.parquet",
        "00002.json",
    }


def test_a_job_of_a_pipeline_writes_the_same_bytes(
    whole: Path, tmp_path: Path, arguments: Arguments
) -> None:
    overrides = [*arguments, f"output_dir={tmp_path / 'out'}"]
    recipe = load_recipe("write_questions", overrides=overrides)
    job = StageJob(recipe.model_dump(mode="json"), name="questions")
    assert job() == "questions"
    assert contents(tmp_path / "out") == contents(whole)


# --- other settings on the same output ---


def test_other_filters_ask_the_model_nothing(
    whole: Path,
    tmp_path: Path,
    arguments: Arguments,
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)

    def never(*given: object, **named: object) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(Decoder, "continued", never)
    changes = ["filters.round_trip_top=null", "instruction=Find the article"]
    changes += ["own_words.sentences=1"]
    ask(output, *arguments, *changes)
    assert contents(output / "units") == contents(whole / "units")
    kept, before = lines(output / "queries.jsonl"), lines(whole / "queries.jsonl")
    assert len(kept) > len(before)
    listed, own = json.loads((output / "pairs" / "manifest.json").read_text())["sets"]
    assert own["name"] == "sentences"
    assert 0 < own["rows"] <= len(open_shards(shards))
    assert listed["query_instruction"] == "Find the article"
    assert verify.main([str(output)]) == 0
    ask(output, *arguments)
    assert contents(output) == contents(whole)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("seed=7", "seed"),
        ("generator.temperature=0.5", "generator"),
        ("part=test", "documents and rows"),
        ("per_document=3", "per_document"),
    ],
)
def test_an_output_of_other_settings_is_refused(
    change: str,
    what: str,
    whole: Path,
    tmp_path: Path,
    arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from toolkit import questions

    output = tmp_path / "out"
    shutil.copytree(whole, output)
    capsys.readouterr()
    assert questions.main(["write_questions", f"output_dir={output}", *arguments, change]) == 2
    said = capsys.readouterr().err
    assert f"output_dir={output} holds questions of another {what}; choose another" in said
    assert contents(output) == contents(whole)


# --- what other commands say of it ---


def test_verify_and_status_know_it(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(whole)]) == 0
    assert "questions kept" in capsys.readouterr().out
    (one,) = standings(whole, now=time.time())
    assert (one.kind, one.state, one.done, one.total) == ("questions", "done", NUM_UNITS, NUM_UNITS)
    for name in ("queries.jsonl", "dropped.jsonl", "manifest.json", "units/00001.json"):
        output = tmp_path / name.replace("/", "-")
        shutil.copytree(whole, output)
        data = bytearray((output / name).read_bytes())
        data[len(data) // 2] ^= 1
        (output / name).write_bytes(bytes(data))
        assert verify.main([str(output)]) == 2, name
