"""Parts: whoever makes them, in whatever order, killed or not, the output has the same bytes, and
every row of the input is in one count."""

import bz2
import contextlib
import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import contents
from tests.text.making import lines_of, shard
from tests.text.test_dump import a_dump, a_page, multistream
from toolkit.base.errors import BadInput
from toolkit.cluster.crew import InProcess, local_crew
from toolkit.text import assembly
from toolkit.text.assembly import Unfinished, finish, written
from toolkit.text.filters import Filters
from toolkit.text.manifest import write_manifest
from toolkit.text.records import Article
from toolkit.text.sharding import Part, PartMaker, Work, all_parts, load_part, make_parts
from toolkit.text.shards import ShardRules, open_shards
from toolkit.text.sources import Input, find_inputs

FOUR_ROWS = ShardRules(rows_per_shard=4)


def article(number: int, *, text: str = "") -> Article:
    return Article(f"id{number}", f"T{number}", "", text or f"The text of article {number}.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Inputs of every kind of size: an exact multiple of a part, one row, several parts, none."""
    inside = tmp_path / "in"
    inside.mkdir()
    for name, numbers in (("a", range(8)), ("b", range(8, 9)), ("c", range(9, 30))):
        (inside / f"{name}.jsonl").write_text(lines_of([article(n) for n in numbers]))
    (inside / "d.jsonl").write_text("\n\n")
    (inside / "e.xml").write_bytes(
        a_dump(*(a_page(f"P{n}", f"Prose {n}.", number=n) for n in range(30, 41)))
    )
    return inside


def work_on(folder: Path, output: Path, **settings: Any) -> Work:
    return Work(output=output, inputs=find_inputs([folder]), **{"rules": FOUR_ROWS, **settings})


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> dict[str, bytes]:
    return contents(shard(folder, output=tmp_path / "whole", rules=FOUR_ROWS))


def test_documents_are_in_the_order_of_the_inputs(folder: Path, tmp_path: Path) -> None:
    rows = open_shards(shard(folder, output=tmp_path / "out", rules=FOUR_ROWS))
    ids = [record["id"] for record in rows.records(0, 99)]
    assert ids == [f"id{n}" for n in range(30)] + [str(n) for n in range(30, 41)]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [tuple(shard["part"]) for shard in manifest["shards"]] == [
        (0, unit, 0) for unit in range(11)
    ]
    assert manifest["groups"] == [5]
    assert manifest["summary"] == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert manifest["summary"]["rows"] == 43
    assert manifest["summary"]["dropped"] == {"blank line": 2}
    assert [source["name"] for source in manifest["sources"]] == [
        f"{name}.jsonl" for name in "abcd"
    ] + ["e.xml"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_processes_give_the_same_bytes(
    num_workers: int, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    work = work_on(folder, tmp_path / "out")
    seen = []
    with local_crew(num_workers) as executor:
        make_parts(work, executor=executor, width=num_workers, on_part=seen.append)
    assert sum(part.rows for part in seen) == 43
    finish(work, max_bad_fraction=0.0)
    assert contents(work.output) == whole


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_shares_and_restarts_give_the_same_bytes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any number of tasks, any of them killed after or inside any part."""
    tmp_path = tmp_path_factory.mktemp("shares")
    inside = tmp_path / "in"
    inside.mkdir()
    sizes = data.draw(st.lists(st.integers(0, 13), min_size=1, max_size=4))
    first = 0
    for number, size in enumerate(sizes):
        text = lines_of([article(n) for n in range(first, first + size)])
        (inside / f"{number}.jsonl").write_text(text or "\n")
        first += size
    if not first:
        return
    # A shard of 400 bytes joins no file that is larger: up to four groups.
    rules = ShardRules(rows_per_shard=4, bytes_per_shard=data.draw(st.sampled_from([400, 2**20])))
    wanted = contents(shard(inside, output=tmp_path / "whole", rules=rules))
    work = work_on(inside, tmp_path / "out", rules=rules)
    count = data.draw(st.integers(1, 5))
    shares = data.draw(st.permutations(range(count)))
    for index in shares:
        stop_after = data.draw(st.none() | st.integers(0, 3))
        with_kill(work, index=index, count=count, stop_after=stop_after)
        if stop_after is not None and work.parts.is_dir():
            # A kill inside a part: some of its files are there, its marker is not.
            for marker in sorted(work.parts.glob("*.json"))[:: data.draw(st.integers(1, 5))]:
                marker.unlink()
                for path in work.parts.glob(f"{marker.stem}*"):
                    if data.draw(st.booleans()):
                        path.unlink()
            if all_parts(work) is None:
                with pytest.raises(Unfinished):
                    finish(work, max_bad_fraction=0.0)
    for index in range(count):
        with_kill(work, index=index, count=count, stop_after=None)
    finish(work, max_bad_fraction=0.0)
    assert contents(work.output) == wanted


class Killed(Exception):
    """As good as a SIGKILL between two parts."""


def with_kill(work: Work, *, index: int, count: int, stop_after: int | None) -> None:
    left = [stop_after]

    def on_part(_: object) -> None:
        if left[0] is not None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1

    with contextlib.suppress(Killed):
        make_parts(work, executor=InProcess(), width=1, share=(index, count), on_part=on_part)


def test_every_share_has_work_and_reads_each_file_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Path.open

    def counting(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(self.name)
        return real(self, *args, **kwargs)

    work = work_on(folder, tmp_path / "out")
    assert work.files == (range(5),)
    maker = PartMaker(work)
    monkeypatch.setattr(Path, "open", counting)
    for unit in range(11):
        maker.make(group=0, unit=unit)
    for name in ("a.jsonl", "c.jsonl", "d.jsonl"):
        # Once for the rows, twice to look at its beginning; each time also to see how it is packed.
        assert opened.count(name) <= 6


def test_a_part_that_is_there_is_not_made_again(folder: Path, tmp_path: Path) -> None:
    work = work_on(folder, tmp_path / "out")
    make_parts(work, executor=InProcess(), width=1)
    before = {path.name: path.stat().st_mtime_ns for path in work.parts.iterdir()}
    make_parts(work, executor=InProcess(), width=1)
    assert before == {path.name: path.stat().st_mtime_ns for path in work.parts.iterdir()}
    torn = work.parts / "g00000-u00003-0.parquet"
    torn.write_bytes(b"half")
    assert load_part(work, group=0, unit=3) is None
    make_parts(work, executor=InProcess(), width=1)
    changed = {
        path.name for path in work.parts.iterdir() if path.stat().st_mtime_ns != before[path.name]
    }
    assert {name.removeprefix("g00000-u00003") for name in changed} == {
        *("-0.parquet", ".json", ".keys.parquet")
    }


def test_other_settings_and_changed_inputs_have_other_parts(folder: Path, tmp_path: Path) -> None:
    work = work_on(folder, tmp_path / "out")
    places = {
        work.parts,
        work_on(folder, tmp_path / "out", filters=Filters(min_chars=3)).parts,
        work_on(folder, tmp_path / "out", deduplicate="exact").parts,
        work_on(folder, tmp_path / "out", limit=3).parts,
        work_on(folder, tmp_path / "out", rules=ShardRules(rows_per_shard=5)).parts,
    }
    os.utime(folder / "a.jsonl", ns=(1, 1))
    places.add(work_on(folder, tmp_path / "out").parts)
    assert len(places) == 6


def test_what_is_written_is_recognised(folder: Path, tmp_path: Path) -> None:
    output = shard(folder, output=tmp_path / "out", rules=FOUR_ROWS)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)  # content counts, not place and time
    assert written(work_on(moved, output))
    with pytest.raises(BadInput, match="made with other input or settings"):
        written(work_on(folder, output, rules=ShardRules(rows_per_shard=5)))
    (moved / "a.jsonl").write_text(lines_of([article(99)]))
    with pytest.raises(BadInput, match=r"holds shards of a.jsonl, b.jsonl, c.jsonl made with"):
        written(work_on(moved, output))


def saved_dataset(path: Path, *, of: str) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    rows = [asdict(article(n, text=f"Number {n} of {of}.")) for n in range(12)]
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def test_a_saved_data_set_is_told_by_its_content(tmp_path: Path) -> None:
    """Not by its folder: another one may be there by the next time."""
    place = saved_dataset(tmp_path / "ds", of="A")
    output = shard(place, output=tmp_path / "out", rules=FOUR_ROWS)
    first = work_on(place, output)
    assert written(first)
    moved = tmp_path / "elsewhere" / "ds"
    shutil.copytree(place, moved)  # content counts, not place and time
    (moved / "cache-0123.arrow").write_bytes(b"of the library's own")
    assert written(work_on(moved, output))
    part = PartMaker(begun := work_on(place, tmp_path / "other")).make(group=0, unit=0)
    assert part.rows == 4
    saved_dataset(place, of="B")
    with pytest.raises(BadInput, match=r"holds shards of ds made with other input"):
        written(work_on(place, output))
    assert work_on(place, tmp_path / "other").parts != begun.parts
    with pytest.raises(BadInput, match=r"ds: has changed while it was read"):
        PartMaker(begun).make(group=0, unit=1)


def in_place(path: Path, content: str) -> None:
    path.write_text(content)


def replaced(path: Path, content: str) -> None:
    path.with_suffix(".new").write_text(content)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("change", [in_place, replaced])
@pytest.mark.parametrize("moment", ["between parts", "after the last", "while it is committed"])
def test_an_input_that_changes_meanwhile_is_told_and_nothing_is_committed(
    moment: str,
    change: Callable[[Path, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(lines_of([article(n, text=f"Number {n} of A.") for n in range(12)]))
    other = lines_of([article(n, text=f"Number {n} of theirs.") for n in range(12)])
    work = work_on(path, tmp_path / "out")
    seen: list[int] = []

    def on_part(part: Part) -> None:
        seen.append(part.unit)
        if moment == "between parts" and len(seen) == 1:
            change(path, other)

    real = assembly.identity

    def identity(given: Input) -> dict[str, Any]:
        told = real(given)
        if moment == "while it is committed":
            change(path, other)
        return told

    monkeypatch.setattr(assembly, "identity", identity)

    def whole_run() -> None:
        make_parts(work, executor=InProcess(), width=1, on_part=on_part)
        if moment == "after the last":
            change(path, other)
        finish(work, max_bad_fraction=0.0)

    with pytest.raises(BadInput, match=r"/in.jsonl: has changed while it was read"):
        whole_run()
    assert not work.output.exists() and not work.parts.exists()
    monkeypatch.undo()
    assert shard(path, output=work.output, rules=FOUR_ROWS)


def shards_of_both(one: Path, other: Path, *, folder: Path, rules: ShardRules) -> dict[str, bytes]:
    """The shards of a dump by one process and of another by two, which are the same."""
    left = shard(one, output=folder / "left", rules=rules)
    work = work_on(other, folder / "right", rules=rules)
    with local_crew(2) as executor:
        make_parts(work, executor=executor, width=2)
    finish(work, max_bad_fraction=0.0)
    first, second = (
        {name: data for name, data in contents(path).items() if name.startswith("shard")}
        for path in (left, work.output)
    )
    assert first == second
    return first


def test_a_multistream_dump_equals_the_same_dump_in_one_stream(tmp_path: Path) -> None:
    """The row numbers of parts are pages, wherever streams end."""
    pages = [
        a_page(f"P{n}", f"Prose {n}." if n % 3 else "#REDIRECT [[X]]", number=n) for n in range(50)
    ]
    path = multistream(tmp_path, pages=pages, size=7)
    one = tmp_path / "one" / path.name.replace("multistream", "")
    one.parent.mkdir()
    one.write_bytes(bz2.compress(a_dump(*pages)))
    rules = ShardRules(rows_per_shard=9)
    assert len(shards_of_both(one, path, folder=tmp_path, rules=rules)) == 6


def test_the_real_dump_as_a_multistream_equals_itself(real_data: Path, tmp_path: Path) -> None:
    """Its first 75 pages, 25 a stream, read from the places that the index names."""
    (path,) = (real_data / "mediawiki_dump").glob("enwiki-latest-*.bz2")
    xml = bz2.decompress(path.read_bytes())
    first = xml.index(b"<page>")
    pages = [page + b"</page>\n" for page in xml[first:].split(b"</page>\n")[:-1]]
    assert len(pages) == 206
    pages = pages[:75]
    one = tmp_path / "one" / path.name
    one.parent.mkdir()
    one.write_bytes(bz2.compress(xml[:first] + b"".join(pages) + b"</mediawiki>\n"))
    data, lines = bz2.compress(xml[:first]), []
    for start in range(0, len(pages), 25):
        for page in pages[start : start + 25]:
            title = page.partition(b"<title>")[2].partition(b"</title>")[0].decode()
            number = page.partition(b"<id>")[2].partition(b"</id>")[0].decode()
            lines.append(f"{len(data)}:{number}:{title}\n")
        data += bz2.compress(b"".join(pages[start : start + 25]))
    again = tmp_path / "multi" / "enwiki-multistream.xml.bz2"
    again.parent.mkdir()
    again.write_bytes(data + bz2.compress(b"</mediawiki>\n"))
    index = bz2.compress("".join(lines).encode())
    again.with_name("enwiki-multistream-index.txt.bz2").write_bytes(index)
    rules = ShardRules(rows_per_shard=10)
    assert len(shards_of_both(one, again, folder=tmp_path, rules=rules)) == 5


# --- what is bad, and what is left out ---

BAD_LINES = [
    (b"{broken", "not valid JSON"),
    (b'{"id": "x1"}', "no text"),
    (b'{"text": 3}', "text is not a string"),
    (b'{"text": "  "}', "empty"),
    (b'{"text": "a\\u0000"}', "NUL character"),
    (b'{"text": "\xff"}', "not valid UTF-8"),
    (b'{"text": "' + b"x" * 9999 + b'"}', "no spaces"),
    (b'{"text": "' + b"a word " * (5 * 2**20) + b'"}', "longer than 32 MiB"),
    (b'{"text": "again", "id": "id1"}', "duplicate id"),
]


def test_every_bad_row_is_in_the_quarantine_and_nothing_else_is_lost(tmp_path: Path) -> None:
    good = lines_of([article(n) for n in range(12)]).encode()
    lines = good.splitlines()
    for number, (line, _) in enumerate(BAD_LINES):
        lines.insert(2 * number + 3, line)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (tmp_path / "in" / "y.jsonl").write_bytes(
        lines_of([article(n) for n in range(20, 30)]).encode()
    )
    output = shard(tmp_path / "in", output=tmp_path / "out", rules=FOUR_ROWS, max_bad_fraction=0.5)
    found = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["file"], row["place"], row["reason"]) for row in found] == [
        ("x.jsonl", f"line {2 * number + 4}", reason)
        for number, (_, reason) in enumerate(BAD_LINES)
    ]
    assert found[0]["note"] == "{broken"
    assert found[-1]["note"] == "first in x.jsonl, line 2"
    rows = open_shards(output)
    assert [record["id"] for record in rows.records(0, 99)] == [
        f"id{n}" for n in [*range(12), *range(20, 30)]
    ]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["rows"] == 31 == summary["documents"] + sum(summary["quarantined"].values())
    assert summary["quarantined"] == {reason: 1 for _, reason in BAD_LINES}
    # Shards with a duplicate are written again without it; the others are the parts themselves.
    assert rows.num_rows == sum(
        pq.ParquetFile(path).metadata.num_rows for path in output.glob("shard-*.parquet")
    )
    repeats = pq.read_table(output / "duplicates.parquet").to_pylist()
    assert repeats == [
        {"file": "x.jsonl", "row": 19, "reason": "duplicate id", "of_file": "x.jsonl", "of_row": 1}
    ]


def test_too_much_that_is_bad_fails_with_the_worst_and_goes_on_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good = lines_of([article(n) for n in range(90)])
    path.write_text(good + "{\n" * 6 + '{"text": ""}\n' * 3 + '{"a": 1}\n')
    with pytest.raises(BadInput) as caught:
        shard(path, output=tmp_path / "out", max_bad_fraction=0.09)
    assert str(caught.value).startswith(
        "10 of 100 rows are bad, more than --max-bad-fraction 0.09: 6 not valid JSON, 3 empty, "
        "1 no text; they are listed in "
    )
    listed = Path(str(caught.value).rpartition(" ")[2])
    assert listed.read_text().count("\n") == 10
    assert not (tmp_path / "out").exists()
    before = {p.name: p.stat().st_mtime_ns for p in listed.parent.glob("g*")}
    shard(path, output=tmp_path / "out", max_bad_fraction=0.1)
    assert before and not listed.parent.exists()
    assert (tmp_path / "out" / "quarantine.jsonl").read_text().count("\n") == 10


def test_one_damaged_file_of_many_costs_its_rest_only(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    for number in range(4):
        pages = (
            a_page(f"P{n}", f"Prose {n}.", number=n) for n in range(10 * number, 10 * number + 10)
        )
        (inside / f"{number}.xml").write_bytes(a_dump(*pages))
    cut = (inside / "1.xml").read_bytes()
    (inside / "1.xml").write_bytes(cut[: cut.index(b"<title>P17")])
    (inside / "2.xml").write_bytes(b"")
    with pytest.raises(
        BadInput,
        match=r"2 of 4 inputs are damaged, more than --max-bad-fraction 0.4: .*1.xml: ends too",
    ):
        shard(inside, output=tmp_path / "out", rules=FOUR_ROWS, max_bad_fraction=0.4)
    output = shard(inside, output=tmp_path / "out", rules=FOUR_ROWS, max_bad_fraction=0.5)
    assert open_shards(output).num_rows == 27
    summary = json.loads((output / "summary.json").read_text())
    assert summary["damaged_files"] == {
        "1.xml": "ends too early; copy or download it again",
        "2.xml": "is empty",
    }
    assert summary["rows"] == 27
    found = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["file"], row["place"], row["note"]) for row in found] == [
        ("1.xml", "page 8", "ends too early; copy or download it again"),
        ("2.xml", "page 1", "is empty"),
    ]


def cut_files(folder: Path) -> dict[str, str]:
    """Files of every kind that end too early, and what is said of each."""
    lines = lines_of([article(n, text=os.urandom(40).hex(" ", 4)) for n in range(99)]).encode()
    for name, pack in (("a.jsonl.gz", gzip.compress), ("b.jsonl.bz2", bz2.compress)):
        (folder / name).write_bytes(pack(lines)[:-40])
    pages = a_dump(*(a_page(f"P{n}", f"Prose {n}.", number=n) for n in range(100, 120)))
    (folder / "c.xml.bz2").write_bytes(bz2.compress(pages)[:-20])
    rows = pa.Table.from_pylist([{"text": "words here", "id": "d"}])
    pq.write_table(rows, folder / "d.parquet")
    whole = (folder / "d.parquet").read_bytes()
    (folder / "d.parquet").write_bytes(whole[:-9])
    return {
        "a.jsonl.gz": "ends too early; copy or download it again",
        "b.jsonl.bz2": "ends too early; copy or download it again",
        "c.xml.bz2": "ends too early; copy or download it again",
        "d.parquet": "is damaged or of another kind (",
    }


def test_files_that_are_cut_short_are_in_the_quarantine_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    said = cut_files(inside)
    (inside / "e.jsonl").write_text(lines_of([article(n) for n in range(200, 210)]))
    output = shard(inside, output=tmp_path / "out", rules=FOUR_ROWS, max_bad_fraction=0.8)
    found = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert [row["file"] for row in found] == list(said)
    assert all(row["reason"] == "damaged file" for row in found)
    assert all(row["note"].startswith(said[row["file"]]) for row in found)
    ids = [record["id"] for record in open_shards(output).records(0, 999)]
    assert ids[-10:] == [f"id{n}" for n in range(200, 210)]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["rows"] == summary["documents"] == len(ids)


@pytest.mark.parametrize(
    ("deduplicate", "kept"),
    [
        ("none", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("exact", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("normalized", [0, 1, 3, 4, 6, 7, 8, 9]),
        ("near", [0, 1, 4, 6, 7, 8, 9]),
    ],
)
def test_repeated_texts_are_left_out_when_asked(
    deduplicate: str, kept: list[int], tmp_path: Path
) -> None:
    long = " ".join(f"word{n}" for n in range(500))
    texts = [long, "Another text.", long.upper(), long + " more", "A third.", "another  text."]
    texts += ["In C++", "In C#", "t = -5", "t = 5", "In C#"]
    path = tmp_path / "x.jsonl"
    path.write_text(lines_of([article(n, text=text) for n, text in enumerate(texts)]))
    output = shard(
        path, output=tmp_path / "out", rules=ShardRules(rows_per_shard=2), deduplicate=deduplicate
    )
    assert [record["id"] for record in open_shards(output).records(0, len(kept))] == [
        f"id{n}" for n in kept
    ]
    summary = json.loads((output / "summary.json").read_text())
    wanted = {
        "none": {},
        "exact": {"duplicate text": 1},
        "normalized": {
            "duplicate text": 1,
            "duplicate text but for case, white space or composition": 2,
        },
        "near": {"duplicate text": 1, "near duplicate": 3},
    }
    assert summary["dropped"] == wanted[deduplicate]
    assert sum(summary["dropped"].values()) == len(texts) - len(kept)
    if deduplicate != "none":
        table = pq.read_table(output / "duplicates.parquet").to_pylist()
        assert Counter(row["reason"] for row in table) == wanted[deduplicate]
        assert {row["row"] for row in table} == set(range(len(texts))) - set(kept)
        assert [row["of_row"] for row in table if row["row"] == 10] == [7]


def test_shards_of_the_older_meaning_of_exact_open_and_are_not_taken_for_new_ones(
    tmp_path: Path,
) -> None:
    """Until KEYS were counted, "exact" folded punctuation, and settings did not say so."""
    path = tmp_path / "x.jsonl"
    path.write_text(lines_of([article(0, text="In C++"), article(1, text="In C#")]))
    output = shard(path, output=tmp_path / "out", deduplicate="exact")
    manifest = json.loads((output / "manifest.json").read_text())
    del manifest["settings"]["keys"], manifest["manifest_sha256"]
    write_manifest(output, manifest)
    assert open_shards(output).num_rows == 2
    with pytest.raises(
        BadInput, match=r"holds shards of x\.jsonl made with other input or settings"
    ):
        shard(path, output=output, deduplicate="exact")


def test_filters_are_named_and_counted(tmp_path: Path) -> None:
    texts = ["short", "A text that is long enough.", "Ein Text, der lang genug ist."]
    path = tmp_path / "x.jsonl"
    path.write_text(lines_of([article(n, text=text) for n, text in enumerate(texts)]))
    filters = Filters(min_chars=10, languages=("en",))
    output = shard(path, output=tmp_path / "out", filters=filters)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["dropped"] == {"not in en": 1, "shorter than 10 characters": 1}
    assert [record["id"] for record in open_shards(output).records(0, 9)] == ["id1"]


@pytest.mark.parametrize("limit", [1, 4, 5, 8, 99])
def test_a_limit_counts_rows_of_each_input(limit: int, folder: Path, tmp_path: Path) -> None:
    output = shard(folder, output=tmp_path / "out", rules=FOUR_ROWS, limit=limit)
    rows = json.loads((output / "summary.json").read_text())["rows"]
    assert rows == sum(min(limit, size) for size in (8, 1, 21, 2, 11))


def test_no_document_at_all_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_bytes(a_dump(a_page("A", "#REDIRECT [[B]]")))
    with pytest.raises(BadInput, match=r"x.xml: no document to keep \(skipped: 1 redirect\)"):
        shard(tmp_path / "x.xml", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.xml"]


def test_two_workers_may_finish_at_once(
    folder: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one comes while the first one commits, and its parts are removed under it."""
    work = work_on(folder, tmp_path / "out")
    make_parts(work, executor=InProcess(), width=1)
    real = assembly._seal
    calls: list[int] = []

    def sealing(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 1:  # the other worker commits now
            moved = tmp_path / "kept"
            shutil.copytree(work.parts, moved)
            finish(work, max_bad_fraction=0.0)
        real(*args, **kwargs)

    monkeypatch.setattr(assembly, "_seal", sealing)
    finish(work, max_bad_fraction=0.0)
    assert len(calls) == 2
    assert contents(work.output) == whole


@pytest.mark.parametrize("moment", ["_place_shards", "_seal"])
def test_of_two_workers_with_other_inputs_that_arrive_together_one_is_told(
    moment: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal settings, equal names, other rows: the other one commits before we do. Its parts are
    elsewhere, ours go when it has committed."""
    ours, moved = work_on(folder, tmp_path / "out"), tmp_path / "elsewhere" / "in"
    shutil.copytree(folder, moved)
    (moved / "a.jsonl").write_text(lines_of([article(n) for n in range(100, 108)]))
    theirs = work_on(moved, tmp_path / "out")
    for work in (ours, theirs):
        make_parts(work, executor=InProcess(), width=1)
    real = getattr(assembly, moment)

    def after_the_other(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(assembly, moment, real)
        with ThreadPoolExecutor(1) as other:
            other.submit(finish, theirs, max_bad_fraction=0.0).result()
        return real(*args, **kwargs)

    monkeypatch.setattr(assembly, moment, after_the_other)
    with pytest.raises(BadInput, match=r"/out: .*(with other content|made with other input)"):
        finish(ours, max_bad_fraction=0.0)
    assert written(theirs)


def test_a_full_disk_is_an_error_and_leaves_no_output(
    folder: Path, tmp_path: Path, small_disk: Path
) -> None:
    big = tmp_path / "big.jsonl"
    texts = (os.urandom(3000).hex(" ", 4) for _ in range(400))
    big.write_text(lines_of([article(n, text=text) for n, text in enumerate(texts)]))
    rules = ShardRules(rows_per_shard=100)
    with pytest.raises(OSError, match="No space left"):
        shard(big, output=small_disk / "out", rules=rules)
    assert not (small_disk / "out").exists()
    work = work_on(big, small_disk / "out", rules=rules)
    assert all_parts(work) is None
    assert not list(work.parts.glob("*.tmp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    import subprocess

    from tests.conftest import need

    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, check=False)
    need(done.returncode == 0, "cannot mount a tmpfs: not root")
    yield place
    subprocess.run(["umount", str(place)], check=True)
