"""A folder of documents becomes a corpus, a part to train on, and parts to test on."""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import run
from toolkit.base.errors import BadInput
from toolkit.domain import collection
from toolkit.domain.collection import split, without_blanks
from toolkit.settings.domain_schema import DocumentsRecipe
from toolkit.text.shards import open_shards

FIELDS = (
    "wing flow shock layer heat plate jet nozzle panel buckling load shell creep flutter",
    "clause court tenant lease notice breach damages appeal statute duty remedy title",
)
WORDS = [field.split() for field in FIELDS]


def prose(number: int, *, num_words: int = 60) -> str:
    drawn = random.Random(number)
    words = [drawn.choice(WORDS[number % 2]) + str(drawn.randrange(50)) for _ in range(num_words)]
    return " ".join(words).capitalize() + "."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 files: one repeats the first, another one nearly does, and one is long."""
    inside = tmp_path / "papers"
    inside.mkdir()
    for number in range(58):
        (inside / f"paper {number:02}.txt").write_text(prose(number))
    (inside / "same.txt").write_text(prose(0))
    (inside / "nearly.txt").write_text(prose(1, num_words=60).replace(".", " indeed."))
    long = "\n\n".join(prose(number, num_words=50) for number in range(100, 120))
    (inside / "paper 57.txt").write_text(long)
    return inside


def made(folder: Path, out: Path, **settings: Any) -> DocumentsRecipe:
    recipe = DocumentsRecipe(
        kind="documents", source=str(folder), output_dir=str(out), test_documents=8, **settings
    )
    collection.run(recipe)
    return recipe


def records(shards: Path) -> dict[str, dict[str, str]]:
    whole = open_shards(shards)
    return {record["id"]: record for record in whole.records(0, len(whole))}


def test_nothing_of_a_test_document_is_in_the_part_to_train_on(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made(folder, out, passage_chars=1000)
    corpus, train = records(out / "corpus"), records(out / "train")
    table = pq.read_table(out / "split.parquet").to_pylist()
    part_of = {row["id"]: row["part"] for row in table}
    document_of = {row["id"]: row["document"] for row in table}
    assert set(part_of) == set(corpus)
    assert {name for name, part in part_of.items() if part == "train"} == set(train)
    assert all(train[name] == corpus[name] for name in train)
    # A fifth at most for each part, and all passages of a document in the same one.
    sizes = {
        part: len({document_of[name] for name in part_of if part_of[name] == part})
        for part in ("train", "dev", "test")
    }
    assert sizes == {"train": 58 - 11 - 8, "dev": 11, "test": 8}
    for document in set(document_of.values()):
        assert len({part_of[name] for name in corpus if document_of[name] == document}) == 1
    # The long one became passages; of near and exact repetitions one is left.
    long = [name for name in corpus if document_of[name] == "paper%2057.txt"]
    assert len(long) > 5
    assert all(len(corpus[name]["text"]) <= 1000 for name in long)
    joined = " ".join(corpus[f"paper%2057.txt#{number}"]["text"] for number in range(len(long)))
    assert joined.split() == (folder / "paper 57.txt").read_text().split()
    assert len({"paper%2000.txt", "same.txt"} & set(corpus)) == 1
    assert len({"paper%2001.txt", "nearly.txt"} & set(corpus)) == 1
    counts = json.loads((out / "documents.json").read_text())
    assert counts["documents"] == 58
    assert sum(part["passages"] for part in counts["parts"].values()) == len(corpus)


def test_the_split_depends_on_documents_and_seed_alone() -> None:
    names = [f"d{number}" for number in range(100)]
    parts = split(names, num_dev=10, num_test=90, seed=1)
    assert [list(parts.values()).count(part) for part in ("dev", "test", "train")] == [10, 20, 70]
    shuffled = random.Random(1).sample(names, 100)
    assert split(shuffled, num_dev=10, num_test=90, seed=1) == parts
    assert split(names, num_dev=10, num_test=90, seed=2) != parts


def test_a_restart_makes_what_is_missing_and_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    recipe = made(folder, one)
    (one / "documents.json").unlink()  # killed before the end
    (one / "split.parquet").unlink()
    collection.run(recipe)
    made(folder, other)
    for name in ("split.parquet", "documents.json", "corpus/shard-00000.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    with pytest.raises(BadInput, match=r"holds documents of another seed \(1\)"):
        made(folder, one, seed=2)


def launch(folder: Path, out: Path, *settings: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "toolkit.launch", "domain_documents", "--cluster", "local"]
    command += ["--gpus-per-node", "0", f"source={folder}", f"output_dir={out}", *settings]
    return run(command, code=code)


def test_it_runs_as_a_job_and_status_says_that_it_is_done(folder: Path, tmp_path: Path) -> None:
    said = launch(folder, tmp_path / "out", "test_documents=8")
    assert "58 documents: 39 for train" in said
    assert ", 11 for dev" in said
    table = run([sys.executable, "-m", "toolkit.status", str(tmp_path / "out")])
    assert "done" in table


@pytest.mark.parametrize("number", [1, 10])
def test_too_few_documents_are_refused_with_what_is_missing(tmp_path: Path, number: int) -> None:
    inside = tmp_path / "papers"
    inside.mkdir()
    for one in range(number):
        (inside / f"{one}.txt").write_text(prose(one) * (1000 if number == 1 else 1))
    said = launch(inside, tmp_path / "out", code=2)
    assert f"{number} documents after duplicates were left out" in said
    assert "at least 50 are needed" in said
    assert not (tmp_path / "out" / "documents.json").exists()


def test_a_folder_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path) -> None:
    said = launch(tmp_path / "nowhere", tmp_path / "out", code=2)
    assert "nowhere: no such file or folder" in said
    assert not (tmp_path / "out").exists()


def test_ids_have_no_white_space_and_stay_different() -> None:
    names = ["a b", "a%20b", "a\tb", "a\u00a0b", "a_b"]
    made = [without_blanks(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(len(name.split()) == 1 for name in made)


def test_a_folder_that_changed_is_refused_and_what_was_removed_is_made_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    recipe = made(folder, out)
    shard = (out / "corpus" / "shard-00000.parquet").read_bytes()
    shutil.rmtree(out / "corpus")
    collection.run(recipe)
    assert (out / "corpus" / "shard-00000.parquet").read_bytes() == shard
    capsys.readouterr()
    collection.run(recipe)
    assert "already there; nothing to do" in capsys.readouterr().out
    (folder / "new.txt").write_text(prose(999))
    with pytest.raises(BadInput, match="made with other input"):
        collection.run(recipe)


def test_too_few_documents_become_enough(tmp_path: Path) -> None:
    folder, out = tmp_path / "papers", tmp_path / "out"
    folder.mkdir()
    for number in range(60):
        if number == 40:
            with pytest.raises(BadInput, match="at least 50 are needed"):
                made(folder, out)
        (folder / f"{number}.txt").write_text(prose(number))
    made(folder, out)
    assert len(records(out / "corpus")) == 60


def test_what_is_not_read_is_told_and_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.pdf", "b.pdf", "c.docx", ".hidden.txt"):
        (folder / name).write_bytes(b"%PDF")
    (folder / "state.json").write_text("{}")  # makes no data set of Hugging Face
    made(folder, tmp_path / "out")
    told = f"{folder}: not read: .pdf 2, .docx 1, .json 1, hidden 1 (a.pdf, b.pdf, c.docx, ...)"
    assert told in capsys.readouterr().out.splitlines()
    content = json.loads((tmp_path / "out" / "documents.json").read_text())
    assert content["not_read"] == {".pdf": 2, ".docx": 1, ".json": 1, "hidden": 1}
    assert content["documents"] == 58


def test_another_file_changes_no_name_and_few_parts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    folder = folder.rename(tmp_path / "all" / "papers")
    made(tmp_path / "all", tmp_path / "before")
    (tmp_path / "all" / "new.txt").write_text(prose(999))
    made(tmp_path / "all", tmp_path / "after")
    before, after = records(tmp_path / "before" / "corpus"), records(tmp_path / "after" / "corpus")
    assert set(after) == {*before, "new.txt"}
    parts = [
        {
            row["id"]: row["part"]
            for row in pq.read_table(tmp_path / out / "split.parquet").to_pylist()
        }
        for out in ("before", "after")
    ]
    assert (
        sum(parts[0][name] != parts[1][name] for name in before) <= 2
    )  # beside the new one's place


@pytest.mark.parametrize("place", ["", "out", "sub/out"])
def test_an_output_in_the_folder_of_documents_is_refused(folder: Path, place: str) -> None:
    before = sorted(folder.rglob("*"))
    said = launch(folder, folder / place, code=2)
    assert f"lies in {folder}, which is read" in said
    said = run(
        [sys.executable, "-m", "toolkit.launch", "tiny_adapt_domain", "--cluster", "local"]
        + [f"data.source={folder}", f"run_dir={folder / place / 'run'}"],
        code=2,
    )
    assert f"lies in {folder}, which is read" in said
    with pytest.raises(BadInput, match="give another directory"):
        made(folder, folder / place)
    assert sorted(folder.rglob("*")) == before


def test_too_many_bad_rows_are_refused_by_the_key_of_the_recipe(tmp_path: Path) -> None:
    rows = [json.dumps({"id": f"d{n}", "text": prose(n)}) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, *["no JSON"] * 9]))
    with pytest.raises(BadInput, match=r"9 of 69 rows are bad, more than max_bad_fraction 0\.05"):
        made(tmp_path / "rows.jsonl", tmp_path / "out")
