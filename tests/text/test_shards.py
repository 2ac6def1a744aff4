"""Shards are equal for equal input, found when damaged, and read at random."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.text.making import shard_articles
from toolkit.base.errors import BadInput
from toolkit.base.layout import COMMIT_MARKER
from toolkit.base.sealed import content_digest
from toolkit.text.records import Article
from toolkit.text.sentences import split_sentences
from toolkit.text.shards import ShardRules, ShardSet, open_shards

ARTICLES = [
    Article(
        id=str(number),
        title=f"Title {number} é",
        url=f"https://x/{number}",
        text="\n".join(f"Sentence {k} of the article {number} é🎉." for k in range(number % 4))
        or "x",
    )
    for number in range(10)
]


def written(directory: Path) -> Path:
    return shard_articles(ARTICLES, output=directory, rows_per_shard=4)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return open_shards(written(tmp_path / "shards"))


def test_rows_come_back_in_order(shards: ShardSet) -> None:
    assert len(shards) == shards.num_rows == 10
    assert [shards.text(row) for row in range(10)] == [article.text for article in ARTICLES]
    assert shards.record(9) == {
        "id": "9",
        "title": "Title 9 é",
        "url": "https://x/9",
        "text": ARTICLES[9].text,
    }
    assert shards.records(3, 99) == [shards.record(row) for row in range(3, 10)]
    assert shards.records(5, 5) == []


def test_lengths_and_sentences_belong_to_their_rows(shards: ShardSet) -> None:
    assert shards.num_chars.dtype == np.int64 and shards.num_sentences.dtype == np.int32
    assert shards.num_chars.tolist() == [len(article.text) for article in ARTICLES]
    for row, article in enumerate(ARTICLES):
        found = [shards.sentence(row, k) for k in range(shards.num_sentences[row])]
        assert found == split_sentences(article.text)
    with pytest.raises(IndexError):
        shards.sentence(0, 0)


def test_it_travels_to_loader_processes(shards: ShardSet) -> None:
    assert pickle.loads(pickle.dumps(shards)).text(7) == ARTICLES[7].text


def test_a_shard_is_also_bounded_in_bytes(tmp_path: Path) -> None:
    rules = ShardRules(bytes_per_shard=100)
    directory = shard_articles(ARTICLES, output=tmp_path / "shards", rules=rules)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert len(manifest["shards"]) > 3
    assert open_shards(directory).text(9) == ARTICLES[9].text


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    assert open_shards(one).digest == open_shards(two).digest


def test_a_directory_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="not ours to replace"):
        written(tmp_path)
    with pytest.raises(BadInput, match="not ours to replace"):
        written(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_shards_without_a_marker_are_neither_read_nor_replaced(tmp_path: Path) -> None:
    directory = written(tmp_path / "shards")
    (directory / COMMIT_MARKER).unlink()
    with pytest.raises(BadInput, match="was not written to its end; make it with: python"):
        open_shards(directory)
    with pytest.raises(BadInput, match="not ours to replace"):
        written(directory)


@pytest.mark.parametrize("name", ["shard-00000.parquet", "shard-00002.parquet"])
def test_one_flipped_byte_is_found_by_name(tmp_path: Path, name: str) -> None:
    directory = written(tmp_path / "shards")
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 3] ^= 1
    (directory / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name}: is damaged \(its SHA-256 differs\)"):
        open_shards(directory)


def test_a_short_or_missing_shard_is_found_without_hashing(tmp_path: Path) -> None:
    directory = written(tmp_path / "shards")
    shard = directory / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"shard-00001.parquet: is damaged \(\d+ bytes, not \d+\)"):
        open_shards(directory, verify=False)
    shard.unlink()
    with pytest.raises(BadInput, match=r"shard-00001.parquet: is missing"):
        open_shards(directory, verify=False)


def test_unverified_damage_is_still_one_line(tmp_path: Path) -> None:
    directory = written(tmp_path / "shards")
    shard = directory / "shard-00001.parquet"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(BadInput, match="a shard is not readable Parquet"):
        open_shards(directory, verify=False)


def test_one_flipped_byte_in_the_manifest_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "shards") / "manifest.json"
    content = path.read_bytes()
    undetected = []
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        try:
            open_shards(path.parent)
        except BadInput:
            continue
        undetected.append(position)
    # White space may differ: the content is the same.
    assert all(content[position : position + 1].isspace() for position in undetected)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/shard-00000.parquet", "..", ""])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "shards") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][1]["file"] = name
    manifest["manifest_sha256"] = content_digest(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="not a shard in this directory"):
        open_shards(path.parent)


@pytest.mark.parametrize("content", ["[]", "{}", "not json", '{"format": "other/1"}'])
def test_another_manifest_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path / "shards") / "manifest.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"manifest.json: is not"):
        open_shards(path.parent)


def test_an_empty_or_absent_directory_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no shards; make it with: python data_scripts/shard_w"):
        open_shards(tmp_path)
    with pytest.raises(BadInput, match="no such directory; make it with: python data_scripts"):
        open_shards(tmp_path / "absent")


def test_reading_and_writing_never_import_torch(tmp_path: Path) -> None:
    directory = written(tmp_path / "shards")
    program = (
        "import sys, pathlib; from toolkit.text.shards import open_shards\n"
        "import toolkit.text.assembly, toolkit.text.dump\n"
        f"open_shards(pathlib.Path({str(directory)!r})).sentence(1, 0)\n"
        "sys.exit('torch' in sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", program], env=environ).returncode == 0
