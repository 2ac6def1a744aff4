"""The Arrow copy of shards and pairs: what is read of it is what the shards hold, by default."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.text.making import shard_articles
from toolkit.base.errors import BadInput
from toolkit.text.pairs import Pair, PairTask, open_pairs, write_pairs
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

ROWS = 1200  # `datasets` writes batches of 1,000
DAMAGED = r"\.arrow: is damaged .*; delete .*: it is made again"
RECORD = "toolkit-digests.json"


def texts(number: int) -> str:
    return f"This is the text with the number {number:05d}. It ends here."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    articles = [Article(id=str(n), title="", url="", text=texts(n)) for n in range(ROWS)]
    return shard_articles(articles, output=tmp_path_factory.mktemp("copies") / "s")


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """With a copy, which is elsewhere than that of the others: `datasets` knows them by path."""
    place = tmp_path / "s"
    place.mkdir()
    for path in made.iterdir():
        if path.is_file():
            (place / path.name).write_bytes(path.read_bytes())
    open_shards(place)
    return place


def arrow(directory: Path) -> Path:
    (path,) = (directory / ".cache").rglob("*.arrow")
    return path


def alter(directory: Path, *, old: str, new: str) -> None:
    """As somebody would who wants it to go unseen: same size, same time."""
    path = arrow(directory)
    data, times = path.read_bytes(), path.stat()
    assert data.count(old.encode()) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old.encode(), new.encode()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


READERS: dict[str, Callable[[Any], object]] = {
    "text": lambda shards: shards.text(7),
    "record": lambda shards: shards.record(7),
    "records": lambda shards: shards.records(0, 10),
    "records to the end": lambda shards: shards.records(0, 10 * ROWS),
    "sentence": lambda shards: shards.sentence(7, 0),
    "in a loader process": lambda shards: pickle.loads(pickle.dumps(shards)).text(7),
}


@pytest.mark.parametrize("reader", READERS)
def test_an_altered_copy_is_refused_when_it_is_read(reader: str, shards: Path) -> None:
    alter(shards, old="number 00007", new="number 66666")
    found = open_shards(shards, verify=False)
    assert found.text(ROWS - 1) == texts(ROWS - 1)  # of another batch
    with pytest.raises(BadInput, match=DAMAGED):
        READERS[reader](found)
    with pytest.raises(BadInput, match=DAMAGED):
        open_shards(shards)


def test_a_copy_without_a_record_is_compared_with_the_shards(shards: Path) -> None:
    """One of an older toolkit, say."""
    record = arrow(shards).parent / RECORD
    before = record.read_bytes()
    for harm in (
        record.unlink,
        lambda: record.write_bytes(before.replace(b'"end": ', b'"end": 1')),
    ):
        harm()
        assert open_shards(shards, verify=False).text(7) == texts(7)
        assert record.read_bytes() == before
    record.unlink()
    alter(shards, old="number 00007", new="number 66666")
    with pytest.raises(BadInput, match=r"its rows are not those of the shards\); delete"):
        open_shards(shards, verify=False)
    assert not record.exists()


def test_what_the_error_advises_helps(shards: Path) -> None:
    alter(shards, old="number 00007", new="number 66666")
    with pytest.raises(BadInput) as told:
        open_shards(shards)
    folder = Path(str(told.value).partition("; delete ")[2].partition(": it is")[0])
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert open_shards(shards).text(7) == texts(7)


def test_a_copy_of_damaged_shards_is_not_made(made: Path, tmp_path: Path) -> None:
    """Also by who leaves the SHA-256 of the shards to another rank."""
    for path in made.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "shard-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match="shard"):
        open_shards(tmp_path, verify=False).text(7)


@pytest.mark.parametrize("place", ["text", "lengths"])
def test_any_altered_byte_is_found(place: str, shards: Path) -> None:
    path = arrow(shards)
    data = path.read_bytes()
    at = data.index(texts(3).encode()) if place == "text" else len(data) // 3
    for n in range(20):
        path.write_bytes(data[: at + n] + bytes([data[at + n] ^ 4]) + data[at + n + 1 :])
        with pytest.raises(BadInput, match=r"\.cache.*is damaged"):
            open_shards(shards)


def test_an_altered_copy_of_pairs_is_refused_when_it_is_read(tmp_path: Path) -> None:
    pairs = [Pair(f"query {n:05d}", f"positive {n:05d}", (f"no {n:05d}",)) for n in range(ROWS)]
    folder = tmp_path / "pairs"
    write_pairs([(PairTask("x"), iter(pairs))], output=folder, sources=[], quarantine=[])
    assert open_pairs(folder).pair(0, 7).positive == "positive 00007"
    alter(folder, old="positive 00007", new="positive 66666")
    found = open_pairs(folder, verify=False)
    assert found.pair(0, ROWS - 1).query == f"query {ROWS - 1:05d}"
    with pytest.raises(BadInput, match=DAMAGED):
        found.pair(0, 7)
    with pytest.raises(BadInput, match=DAMAGED):
        open_pairs(folder)
