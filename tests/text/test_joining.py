"""Small files share parts and shards, and nobody can tell by the documents."""

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text.making import lines_of, shard
from toolkit.base.errors import BadInput
from toolkit.cluster.crew import InProcess
from toolkit.text.assembly import finish, written
from toolkit.text.joining import Break, JoinedRows, Row, grouped
from toolkit.text.manifest import write_manifest
from toolkit.text.readers import Columns
from toolkit.text.records import Article
from toolkit.text.repair import repair
from toolkit.text.sharding import Work, make_parts
from toolkit.text.shards import ShardRules, open_shards
from toolkit.text.sources import Input, find_inputs
from toolkit.text.verify import verify

FIVE_ROWS = ShardRules(rows_per_shard=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 tiny files of two kinds; some rows are bad, repeat an id or a text; one file is cut."""
    inside = tmp_path / "in"
    inside.mkdir()
    for number in range(40):
        if number % 2:
            text = f"Some words of file {number}.\nThe same words.\n"
            (inside / f"{number:02}.txt").write_text(text)
        else:
            texts = [f"Text {row} of file {number}." for row in range(number % 5)]
            lines = [json.dumps({"text": text}) for text in texts] + ["{broken"] * (number % 3)
            lines += [json.dumps({"text": f"Named {number}.", "id": f"n{number // 4}"})]
            (inside / f"{number:02}.jsonl").write_text("\n".join(lines) + "\n")
    noise = (os.urandom(40).hex(" ", 4) for _ in range(99))
    packed = gzip.compress(
        lines_of([Article(f"z{n}", "", "", t) for n, t in enumerate(noise)]).encode()
    )
    (inside / "30.jsonl.gz").write_bytes(packed[:-2000])
    return inside


def separate(folder: Path, output: Path, **settings: Any) -> Path:
    """Shards as they were made before files were joined."""
    inputs = find_inputs([folder])
    work = Work(output=output, inputs=inputs, groups=(1,) * len(inputs), **settings)
    make_parts(work, executor=InProcess(), width=1)
    finish(work, max_bad_fraction=0.5)
    manifest = json.loads((output / "manifest.json").read_text())
    del manifest["groups"], manifest["manifest_sha256"]
    write_manifest(output, manifest)
    return output


def records(directory: Path) -> list[dict[str, str]]:
    return open_shards(directory).records(0, 10**6)


def test_joined_files_have_few_shards_and_the_same_documents(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rules": FIVE_ROWS, "deduplicate": "exact"}
    apart = separate(folder, tmp_path / "apart", **settings)
    output = shard(folder, output=tmp_path / "out", max_bad_fraction=0.5, **settings)
    summary = json.loads((output / "summary.json").read_text())
    # Of tiny files at most 20 (four shards of five) go together.
    assert json.loads((output / "manifest.json").read_text())["groups"] == [20, 20, 1]
    assert summary["shards"] <= summary["rows"] / 5 + 3
    found = records(output)
    assert found == records(apart)
    ids = [record["id"] for record in found]
    assert len(set(ids)) == len(ids)
    assert {"01.txt:0", "39.txt:0", "38.jsonl:2"} <= set(ids)
    for name in ("quarantine.jsonl", "duplicates.parquet"):
        assert (output / name).read_bytes() == (apart / name).read_bytes()
    told = json.loads((apart / "summary.json").read_text())
    assert told["shards"] > 36
    assert {**told, "shards": summary["shards"]} == summary
    bad = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert {"damaged file", "duplicate id", "not valid JSON"} == {row["reason"] for row in bad}
    assert {
        "file": "38.jsonl",
        "place": "line 4",
        "reason": "not valid JSON",
        "note": "{broken",
    } in bad
    assert list(summary["damaged_files"]) == ["30.jsonl.gz"]


def test_a_byte_order_mark_is_taken_off_every_file(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(f"\ufeffSome words of {name}.\n".encode())
    output = shard(tmp_path, output=tmp_path / "out")
    assert [record["text"][0] for record in records(output)] == ["S"] * 3


def test_a_limit_is_of_each_file(folder: Path, tmp_path: Path) -> None:
    (folder / "30.jsonl.gz").unlink()
    output = shard(folder, output=tmp_path / "out", rules=FIVE_ROWS, limit=1, max_bad_fraction=0.5)
    assert json.loads((output / "summary.json").read_text())["rows"] == 40


def test_joined_shards_are_made_again_from_their_files(folder: Path, tmp_path: Path) -> None:
    output = shard(
        folder, output=tmp_path / "out", rules=FIVE_ROWS, deduplicate="exact", max_bad_fraction=0.5
    )
    whole = {path.name: path.read_bytes() for path in output.glob("*.parquet")}
    for number, path in enumerate(sorted(output.glob("shard-*.parquet"))):
        if number % 3 == 0:
            path.unlink()
    assert repair(output, inputs=find_inputs([folder])) == []
    assert {path.name: path.read_bytes() for path in output.glob("*.parquet")} == whole
    (output / "shard-00000.parquet").unlink()
    (folder / "39.txt").write_text("Of another group.\n")
    assert repair(output, inputs=find_inputs([folder])) == []
    (output / "shard-00000.parquet").unlink()
    (folder / "09.txt").write_text("Of this one.\n")
    with pytest.raises(BadInput, match=r"09.txt: is not the file that the shards were made of"):
        repair(output, inputs=find_inputs([folder]))
    (folder / "09.txt").unlink()
    with pytest.raises(BadInput, match=r"the shards were made of .*; give the same inputs"):
        repair(output, inputs=find_inputs([folder]))


def test_shards_from_before_files_were_joined_open_and_are_known_and_mended(
    folder: Path, tmp_path: Path
) -> None:
    output = separate(folder, tmp_path / "out", rules=FIVE_ROWS)
    wanted = records(output)
    assert verify(output) == []
    assert written(Work(output=output, inputs=find_inputs([folder]), rules=FIVE_ROWS))
    place = output / "shard-00007.parquet"
    whole = place.read_bytes()
    place.unlink()
    assert repair(output, inputs=find_inputs([folder])) == []
    assert place.read_bytes() == whole
    assert records(output) == wanted


def test_parts_from_before_files_were_joined_are_not_taken(folder: Path, tmp_path: Path) -> None:
    inputs = find_inputs([folder])
    joined = Work(output=tmp_path / "out", inputs=inputs)
    assert joined.parts != Work(output=tmp_path / "out", inputs=inputs, groups=(1,) * 41).parts


# --- the rule ---


def sized(folder: Path, *names_and_sizes: tuple[str, int]) -> tuple[Input, ...]:
    for name, size in names_and_sizes:
        with (folder / name).open("wb") as handle:
            handle.truncate(size)
    return find_inputs([folder / name for name, _ in names_and_sizes])


def test_a_group_holds_no_more_than_a_shard_may(tmp_path: Path) -> None:
    inputs = sized(
        tmp_path,
        *(("a.txt", 600), ("b.txt", 400), ("c.txt", 1)),
        *(("d.txt", 5000), ("e.txt", 1)),  # larger than a shard: alone
        *(("f.jsonl.gz", 200), ("g.parquet", 40), ("h.txt", 1)),  # four times as much, unpacked
    )
    rules = ShardRules(rows_per_shard=1000, bytes_per_shard=1000)
    assert grouped(inputs, rules=rules) == (2, 1, 1, 4)
    few_rows = ShardRules(rows_per_shard=1, bytes_per_shard=1000)
    assert grouped(inputs[4:5] + inputs[7:8] * 9, rules=few_rows) == (4, 4, 2)


def test_a_data_set_is_alone_and_an_absent_file_is_as_small_as_any(tmp_path: Path) -> None:
    a_set = Input("s", "some/set", "dataset", split="train")
    absent = Input("x.txt", str(tmp_path / "x.txt"), "text")
    assert grouped([absent, a_set, absent, absent, a_set], rules=FIVE_ROWS) == (1, 1, 2, 1)
    assert grouped([], rules=FIVE_ROWS) == ()


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 3000), max_size=40), rows=st.integers(1, 50))
def test_groups_are_whole_and_not_many(
    sizes: list[int], rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    rules = ShardRules(rows_per_shard=rows, bytes_per_shard=1000)
    inputs = sized(folder, *((f"{n}.txt", size) for n, size in enumerate(sizes))) if sizes else ()
    counts = grouped(inputs, rules=rules)
    assert sum(counts) == len(sizes) and all(counts)
    ends = [sum(counts[:number]) for number in range(1, len(counts) + 1)]
    for count, end in zip(counts, ends, strict=True):
        assert count == 1 or sum(sizes[end - count : end]) <= 1000
    # Two groups side by side hold more than a shard, or the files for four.
    weights = [max(size, 1000 // (4 * rows)) for size in sizes]
    for before, (count, end) in zip(
        [0, *ends], zip(counts[1:], ends[1:], strict=True), strict=False
    ):
        assert sum(weights[before : end - count]) + weights[end - count] > 1000


# --- reading on ---


def seen(items: Iterable[Row | Break]) -> list[tuple[int, int, bytes | str]]:
    return [
        (item.file, item.number, item.raw if isinstance(item, Row) else item.why) for item in items
    ]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ranges_read_by_anybody_are_the_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every row and every break is in one range, whoever reads it, after whatever else."""
    folder = tmp_path_factory.mktemp("ranges")
    paths = []
    kinds = data.draw(
        st.lists(st.sampled_from(["text", "cut", "empty", "absent"]), min_size=1, max_size=5)
    )
    for number, kind in enumerate(kinds):
        rows = data.draw(st.integers(0, 6))
        path = folder / f"{number}.txt{'.gz' if kind == 'cut' else ''}"
        text = "".join(f"row {row} of {number}\n" for row in range(rows)).encode()
        if kind != "absent":
            path.write_bytes({"text": text, "cut": gzip.compress(text)[:-4]}.get(kind, b""))
        paths.append(path)
    inputs = dict(enumerate(Input(path.name, str(path), "text") for path in paths))
    limit = data.draw(st.none() | st.integers(1, 5))

    def reader() -> JoinedRows:
        return JoinedRows(inputs, columns=Columns(), limit=limit)

    whole = seen(reader().take(0, 10**6))
    size = data.draw(st.integers(1, 7))
    units = range(1 + 6 * len(kinds) // size)
    readers = [reader() for _ in range(3)]
    found = {
        unit: seen(readers[data.draw(st.integers(0, 2))].take(unit * size, (unit + 1) * size))
        for unit in data.draw(st.permutations(units))
    }
    if len(kinds) == 1:  # whoever seeks behind the damage of the only file meets it too
        ends = (
            unit for unit in units if sum(isinstance(it[2], bytes) for it in found[unit]) < size
        )
        found = {unit: found[unit] for unit in range(next(ends) + 1)}
    assert [item for unit in sorted(found) for item in found[unit]] == whole
