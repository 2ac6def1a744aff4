"""Every kind of file gives the same documents, from any row on, and says what is wrong with it."""

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.base.errors import BadInput
from toolkit.text import readers
from toolkit.text.readers import Columns, Source
from toolkit.text.records import Article, Damaged, Rejected
from toolkit.text.sources import Input, find_inputs, kind_of, num_rows, open_source

ROWS = [{"text": f"Text number {n}.", "id": f"id{n}", "title": f"T{n}", "n": n} for n in range(25)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TXT = "".join(row["text"] + "\n" for row in ROWS).encode()  # type: ignore[operator]


def zst(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "x.jsonl": lambda path: path.write_bytes(JSONL),
    "x.jsonl.gz": lambda path: path.write_bytes(gzip.compress(JSONL)),
    "x.jsonl.zst": lambda path: path.write_bytes(zst(JSONL)),
    "x.ndjson.bz2": lambda path: path.write_bytes(bz2.compress(JSONL)),
    "x.txt": lambda path: path.write_bytes(TXT),
    "x.txt.zst": lambda path: path.write_bytes(zst(TXT)),
    "x.parquet": write_parquet,
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "splits": lambda path: datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS)}
    ).save_to_disk(path),
}


def opened(path: Path, **columns: str) -> Source:
    (given,) = find_inputs([path])
    return open_source(given, columns=Columns(**columns))


def documents(source: Source, start: int = 0) -> list[Article | Rejected]:
    return [source.document(row, number=n) for n, row in enumerate(source.rows(start), start)]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_documents_from_any_row(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    source = opened(tmp_path / name)
    whole = documents(source)
    if "txt" in name:
        expected = [Article(f"{name}:{n}", "", "", str(row["text"])) for n, row in enumerate(ROWS)]
    else:
        expected = [Article(f"id{n}", f"T{n}", "", str(row["text"])) for n, row in enumerate(ROWS)]
    assert whole == expected
    for start in (1, 3, 4, 5, 24, 25, 99):
        assert documents(source, start) == expected[start:]
    assert sum(source.num_bytes(row) for row in source.rows(0)) > 300


def test_any_text_column_will_do(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.parquet", "saved"):
        WRITERS[name](tmp_path / name)
        first = documents(opened(tmp_path / name, text="title", id="text", url="id"))[0]
        assert first == Article("Text number 0.", "T0", "id0", "T0")
        with pytest.raises(BadInput, match=r"has no column 'body', only id, n, text, title; name"):
            opened(tmp_path / name, text="body")


def test_rows_without_an_id_get_their_place_in_the_file(tmp_path: Path) -> None:
    """Where others have one, and where the column is not there at all."""
    (tmp_path / "some.jsonl").write_text(
        '{"text": "one", "id": 7}\n{"text": "two"}\n{"text": "three", "id": null}\n'
    )
    (tmp_path / "none.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    found = [document.id for document in documents(opened(tmp_path / "some.jsonl"))]
    assert found == ["7", "some.jsonl:1", "some.jsonl:2"]
    found = [document.id for document in documents(opened(tmp_path / "none.jsonl"))]
    assert found == ["none.jsonl:0", "none.jsonl:1"]


@pytest.mark.parametrize("blank", ['""', '"  "', "null", "NaN"])
def test_an_id_that_names_nothing_is_none(blank: str, tmp_path: Path) -> None:
    """Two rows would otherwise have the same one, and the second be lost."""
    (tmp_path / "x.jsonl").write_text(f'{{"text": "one", "id": {blank}}}\n{{"text": "b", "id": 0}}')
    one, two = documents(opened(tmp_path / "x.jsonl"))
    assert isinstance(one, Article) and isinstance(two, Article)
    assert (one.id, one.lacks_id) == ("x.jsonl:0", True)
    assert (two.id, two.lacks_id) == ("0", False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'["a list"]', "not a JSON object"),
        (b'{"text": "a", "text": "b"}', "a name twice in a JSON object"),
        (b'{"id": 6}', "no text"),
        (b'{"text": null}', "no text"),
        (b'{"text": 7}', "text is not a string"),
        (b'{"text": ""}', "empty"),
        (b'{"text": " \\n\\t "}', "empty"),
        (b'{"text": "\xff\xfe"}', "not valid UTF-8"),
        (b'{"text": "\\ud800"}', "not valid UTF-8"),
        (b'{"text": "a\\u0000b"}', "NUL character"),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b"\n" + b'{"text": "good"}')
    first, bad, last = documents(opened(path))
    assert isinstance(first, Article) and isinstance(last, Article)
    assert bad == Rejected(reason, is_bad=True)


def test_a_huge_line_is_rejected_without_holding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_TEXT_BYTES", 2**20)
    path = tmp_path / "x.txt"
    path.write_bytes(b"before\n" + b"x y " * 2**20 + b"\nafter\n" + b"z" * 2**20 + b"\n")
    longest = max(len(row) for row in opened(path).rows(0))
    assert longest <= 2**20 + 2
    before, huge, after, limit = documents(opened(path))
    assert huge == Rejected("longer than 1 MiB", is_bad=True)
    assert isinstance(before, Article) and isinstance(after, Article) and isinstance(limit, Article)
    table = pa.table({"text": ["y" * (2**20 + 1)]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert documents(opened(tmp_path / "x.parquet")) == [Rejected("longer than 1 MiB", is_bad=True)]


def test_blank_lines_part_documents_and_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n   \n")
    one, blank, two, spaces = documents(opened(tmp_path / "x.txt"))
    assert [one, two] == [Article("x.txt:0", "", "", "one"), Article("x.txt:2", "", "", "two")]
    assert blank == spaces == Rejected("blank line", is_bad=False)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty.jsonl": (b"", "is empty"),
    "cut.jsonl.gz": (gzip.compress(JSONL * 50)[:-30], "ends too early"),
    "cut.jsonl.bz2": (bz2.compress(JSONL * 50)[:-30], "ends too early"),
    "cut.jsonl.zst": (zst(JSONL * 50)[:-30], "ends too early; copy or"),
    "plain.jsonl.gz": (JSONL, "is damaged or of another kind"),
    "utf16.txt": ("words".encode("utf-16"), "is UTF-16; convert it first: iconv"),
    "cut.parquet": (b"PAR1" + b"x" * 99, "is damaged or of another kind"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_says_what_is_wrong(tmp_path: Path, name: str) -> None:
    content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Damaged) as caught:
        documents(opened(tmp_path / name))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_parquet_page_that_is_damaged_ends_the_file_there(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [{"text": f"{n} " * 50} for n in range(4000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000, compression="none")
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = opened(path)
    seen = []
    with pytest.raises(Damaged, match="is damaged"):
        seen.extend(source.rows(0))
    assert len(seen) == 2000


@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_changed_bit_of_a_parquet_file_is_found_where_it_has_checksums(
    tmp_path: Path, has_checksums: bool
) -> None:
    """In the pages: the description at its end has none in any file. Whatever is damaged, nothing
    but `Damaged` is raised."""
    path = tmp_path / "x.parquet"
    rows = pa.Table.from_pylist([{"text": f"{n} {n * 7919 % 10007:x}"} for n in range(90)])
    pq.write_table(rows, path, row_group_size=30, write_page_checksum=has_checksums)
    whole, truth = path.read_bytes(), documents(opened(path))
    end_of_pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(4, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = documents(opened(path))
        except (Damaged, BadInput):
            continue
        if has_checksums and place < end_of_pages:
            assert found == truth


def test_an_absent_file_or_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="no such file"):
        opened(tmp_path / "x.jsonl")
    absent = Input(name="a/b", path=str(tmp_path / "a"), kind="dataset")
    with pytest.raises(BadInput, match=r"data set '.*/a': "):
        open_source(absent, columns=Columns())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("enwiki-latest-pages-articles1.xml-p1p41242.bz2", "dump"),
        ("enwiki-latest-pages-articles.xml.bz2", "dump"),
        ("a.XML.GZ", "dump"),
        ("a.jsonl.zst", "json"),
        ("a.txt.gz", "text"),
        ("a.parquet", "parquet"),
    ],
)
def test_kinds_by_name(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


@pytest.mark.parametrize("name", ["picture.png", "a.tar.zst", "jsonl", "x.csv"])
def test_a_name_that_says_nothing_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"unknown kind of file; give one of \.xml, \.jsonl"):
        kind_of(Path(name))


def test_folders_are_all_their_files_by_names_below_what_they_share(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.txt", "a.parquet", "b/readme.md", ".hidden/x.txt", "_x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "w-multistream-index.txt.bz2").write_text("x")
    WRITERS["saved"](tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    found = find_inputs([tmp_path / "b", tmp_path / "a.parquet", tmp_path / "saved"])
    assert [(given.name, given.kind) for given in found] == [
        ("b/1.txt", "text"),
        ("b/2.jsonl", "json"),
        ("a.parquet", "parquet"),
        ("saved", "dataset"),
    ]
    assert [given.name for given in find_inputs([tmp_path / "b" / "1.txt"])] == ["1.txt"]
    with pytest.raises(BadInput, match="holds no file that can be read"):
        find_inputs([tmp_path / "empty"])
    with pytest.raises(BadInput, match="named twice"):
        find_inputs([tmp_path / "b", tmp_path / "b" / "1.txt"])


def test_a_folder_may_be_named_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden is what is hidden in it, not what lies on the way to it."""
    inside = tmp_path / ".project" / "data"
    for name in ("a.txt", "sub/b.txt", ".hidden/c.txt", "sub/.d.txt"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_text("words\n")
    (inside.parent / "work").mkdir()
    monkeypatch.chdir(inside.parent / "work")
    for given in ("../data", "../data/", str(inside), "./../data/../data"):
        assert [found.name for found in find_inputs([Path(given)])] == ["a.txt", "sub/b.txt"]
    monkeypatch.chdir(inside)
    assert [found.name for found in find_inputs([Path(".")])] == ["a.txt", "sub/b.txt"]


def test_a_file_has_one_name_however_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data/a.txt", "here/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("words\n")
    monkeypatch.chdir(tmp_path / "here")
    for paths in (["../data", "."], ["../data/a.txt", "b.txt"], [tmp_path / "data", "../here"]):
        names = [given.name for given in find_inputs([Path(path) for path in paths])]
        assert names == ["data/a.txt", "here/b.txt"]
    with pytest.raises(BadInput, match="named twice"):
        find_inputs([Path("../data"), tmp_path / "data" / "a.txt"])


def test_the_number_of_rows_is_known_where_it_costs_nothing(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.jsonl"):
        WRITERS[name](tmp_path / name)
    (tmp_path / "bad.parquet").write_bytes(b"x")
    counts = {path.name: num_rows(find_inputs([path])[0]) for path in sorted(tmp_path.iterdir())}
    assert counts == {"bad.parquet": None, "x.jsonl": None, "x.parquet": 25}
