"""Packed files: all of the content, or its beginning and an error, whatever was damaged."""

import bz2
import gzip
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.damage import PACKS, damages, streams, zstd
from tests.text.making import shard
from tests.text.test_dump import a_dump, a_page
from toolkit.base.errors import BadInput
from toolkit.settings.task_schema import WordTask
from toolkit.text import packed
from toolkit.text.packed import open_packed
from toolkit.text.pair_formats import read_pairs
from toolkit.text.readers import Columns
from toolkit.text.records import Article, Damaged
from toolkit.text.sources import find_inputs, open_source

WORDS = [f"word{(n * 7919) % 10007:x} of {n}" for n in range(400)]
CONTENT = "\n".join(WORDS).encode()


def unpacked(path: Path) -> tuple[bytes, str]:
    """What a file gives, and then what is wrong with it."""
    found = b""
    try:
        with open_packed(path) as handle:
            while piece := handle.read1():  # type: ignore[attr-defined]
                found += piece
    except Damaged as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("suffix", PACKS)
def test_streams_of_every_kind_are_read_to_their_end_under_any_name(
    tmp_path: Path, suffix: str, count: int
) -> None:
    for name in ("x" + suffix, "x.txt", "x"):
        (tmp_path / name).write_bytes(b"".join(streams(CONTENT, suffix=suffix, count=count)))
        assert unpacked(tmp_path / name) == (CONTENT, "")


def test_frames_of_zstd_that_hold_nothing_are_passed(tmp_path: Path) -> None:
    empty = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    path = tmp_path / "x"
    path.write_bytes(empty + zstd(b"one") + empty + zstd(b"two") + empty)
    assert unpacked(path) == (b"onetwo", "")


@pytest.mark.parametrize("suffix", PACKS)
def test_a_name_that_says_packed_must_be_true(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(CONTENT)
    with pytest.raises(Damaged, match=f"does not begin as {suffix} files do"):
        open_packed(path)


@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize("content", [b"\0" * 3_000_000, b"", b"x"])
def test_content_that_packs_well_is_whole(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(PACKS[suffix](content) * 3)
    assert unpacked(path) == (content * 3, "")
    path.write_bytes(PACKS[suffix](content) * 3 + PACKS[suffix](content)[:-1])
    found, problem = unpacked(path)
    assert problem == "ends too early; copy or download it again"
    wanted = {".gz": [3], ".bz2": [3, 4], ".zst": [0]}[suffix]  # its block may be whole already
    assert found in [content * times for times in wanted]


def test_blocks_of_bzip2_are_held_until_their_checksum_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stream of many blocks those before the damaged one come out, and nothing of that one;
    also when so much is held that the oldest is given out early."""
    monkeypatch.setattr(packed, "_MAX_BLOCK_BYTES", 120_000)
    content = b"".join(b"%d %x\n" % (n, n * n * 7919) for n in range(60_000))
    whole = bz2.compress(content, compresslevel=1)  # blocks of 100 kB
    path = tmp_path / "x.bz2"
    for eighth in range(1, 8):
        changed = bytearray(whole)
        changed[len(whole) * eighth // 8] ^= 16
        path.write_bytes(changed)
        found, problem = unpacked(path)
        assert problem and content.startswith(found)
        assert len(content) * eighth // 8 - 300_000 < len(found) < len(content) * eighth // 8 + 1
    path.write_bytes(bz2.compress(bytes(2_000_000), compresslevel=1) * 2)
    assert unpacked(path) == (bytes(4_000_000), "")


def test_whoever_reads_on_after_damage_meets_it_again(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(CONTENT)[:-1])
    handle = open_packed(path)
    for _ in range(3):
        with pytest.raises(Damaged, match="ends too early"):
            handle.read()


# --- every reader of packed files ---


def rows_of_source(path: Path) -> list[str]:
    rows: list[str] = []
    (given_,) = find_inputs([path])
    try:
        source = open_source(given_, columns=Columns())
        for number, row in enumerate(source.rows(0)):
            document = source.document(row, number=number)
            rows.append(document.text if isinstance(document, Article) else repr(document))
    except Damaged:
        rows.append("damaged")
    return rows


def rows_of_pairs(path: Path) -> list[str]:
    rows: list[str] = []
    left_out = Counter[str]()

    def on_bad(*told: str) -> None:
        rows.append(repr(told))

    try:
        for pair in read_pairs(path, max_negatives=1, on_bad=on_bad, left_out=left_out):
            rows.append(pair.query)
        rows += left_out.elements()
    except BadInput:
        rows.append("damaged")
    return rows


def rows_of_words(path: Path) -> list[str]:
    from toolkit.evaluation.words import read_word_data

    try:
        data = read_word_data(WordTask(train=str(path), test=str(path), column=2))
    except BadInput:
        return ["damaged"]
    return [" ".join(row) for row in data.train.sentences]


READERS: dict[str, tuple[bytes, Callable[[Path], list[str]]]] = {
    ".jsonl": (
        "".join(json.dumps({"text": text}) + "\n" for text in WORDS).encode(),
        rows_of_source,
    ),
    ".txt": (CONTENT, rows_of_source),
    ".xml": (
        a_dump(*(a_page(f"T{n}", text, number=n) for n, text in enumerate(WORDS))),
        rows_of_source,
    ),
    ".pairs.jsonl": (
        "".join(json.dumps({"query": text, "answer": "x"}) + "\n" for text in WORDS).encode(),
        rows_of_pairs,
    ),
    ".conll": (
        "".join(
            f"{text.split()[0]} {'AB'[n % 2]}\nof C\n\n" for n, text in enumerate(WORDS)
        ).encode(),
        rows_of_words,
    ),
}
COMBINATIONS = [*itertools.product(READERS, PACKS, [1, 4])]


@pytest.mark.parametrize(("kind", "suffix", "count"), COMBINATIONS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_reader_loses_or_alters_a_row_in_silence(
    kind: str, suffix: str, count: int, data: Any
) -> None:
    """Whatever bit is wrong and whatever is missing: all rows, or the first ones and an error. Only
    a file that ends with a whole stream looks whole."""
    content, rows_of = READERS[kind]
    parts = streams(content, suffix=suffix, count=count)
    changed = data.draw(damages(parts)).done_to(b"".join(parts))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{kind}{suffix}"
        path.write_bytes(b"".join(parts))
        whole = rows_of(path)
        assert len(whole) == len(WORDS)
        path.write_bytes(changed)
        found = rows_of(path)
    if found != whole and found[-1] == "damaged":
        assert found[:-1] == whole[: len(found) - 1]
    elif found != whole:
        ends = [b"".join(parts[:number]) for number in range(1, count)]
        assert changed in ends


def test_streams_behind_a_damaged_head_are_not_dropped_in_silence(tmp_path: Path) -> None:
    """Four streams, a bit in the third head: Python's own bz2 gives the first two, and no error."""
    lines = [json.dumps({"text": f"text {n}"}) + "\n" for n in range(1000)]
    parts = [bz2.compress("".join(lines[n : n + 250]).encode()) for n in range(0, 1000, 250)]
    third = bytearray(parts[2])
    third[1] ^= 1
    path = tmp_path / "x.jsonl.bz2"
    path.write_bytes(parts[0] + parts[1] + bytes(third) + parts[3])
    rows = rows_of_source(path)
    assert len(rows) == 501 and rows[-1] == "damaged"


def test_a_packed_file_with_a_damaged_stream_fails_or_is_listed(tmp_path: Path) -> None:
    """What the shards lack is in the quarantine and the summary, under any compression."""
    (tmp_path / "in").mkdir()
    for suffix in PACKS:
        lines = [
            json.dumps({"text": f"text {n} in {suffix}", "id": f"{suffix}{n}"}) for n in range(90)
        ]
        parts = [PACKS[suffix]("\n".join([*lines[n : n + 30], ""]).encode()) for n in (0, 30, 60)]
        third = bytearray(parts[2])
        third[1] ^= 1
        (tmp_path / "in" / f"x.jsonl{suffix}").write_bytes(parts[0] + parts[1] + bytes(third))
    with pytest.raises(BadInput, match="3 of 3 inputs are damaged"):
        shard(tmp_path / "in", output=tmp_path / "out", max_bad_fraction=0.9)
    output = shard(tmp_path / "in", output=tmp_path / "out", max_bad_fraction=1.0)
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["rows"], summary["documents"]) == (120, 120)  # of zstd nothing
    assert [*summary["damaged_files"]] == ["x.jsonl.bz2", "x.jsonl.gz", "x.jsonl.zst"]
    listed = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert [row["place"] for row in listed] == ["line 61", "line 61", "line 1"]
