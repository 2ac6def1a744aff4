"""What became of the rows of a source, and how it is said."""

import gzip
import json
from pathlib import Path

import pytest

from tests.text.making import shard
from toolkit.text.shards import open_shards
from toolkit.text.tally import Tally, in_words, tally_fault


def test_a_limit_and_a_damaged_file_are_said(tmp_path: Path) -> None:
    """Both leave rows in the source that nobody has counted."""
    folder = tmp_path / "in"
    folder.mkdir()
    lines = "".join(json.dumps({"id": n, "text": f"Text {n}."}) + "\n" for n in range(9))
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:20])
    shard(folder, output=tmp_path / "out", limit=4, max_bad_fraction=0.5)
    tally = open_shards(tmp_path / "out").tally
    assert tally is not None
    assert tally["damaged_files"] == 1 and tally["limit"] == 4
    assert in_words(tally, kept="4 kept") == (
        "4 rows in the source (at most 4 of each input) = 4 kept, and unknown rows behind the "
        "damage in 1 file"
    )


TALLY: Tally = {
    "rows": 9,
    "documents": 5,
    "dropped": {"redirect": 2},
    "quarantined": {"empty": 1, "duplicate id": 1},
    "damaged_files": 0,
}


@pytest.mark.parametrize(
    ("key", "number", "said"),
    [
        ("rows", 9, ""),
        ("rows", 10, "10 rows are not 5 kept + 2 left out + 2 in quarantine"),
        ("documents", 6, "there are 5 documents, and 6 rows were kept"),
    ],
)
def test_every_row_is_counted_once(key: str, number: int, said: str) -> None:
    tally: Tally = {**TALLY, key: number}  # type: ignore[misc]
    assert tally_fault(tally, documents=5) == said
