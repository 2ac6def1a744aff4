"""The command line: what it prints, its exit codes, and that it leaves nothing half made."""

import bz2
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.text.shards import open_shards

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data_scripts" / "shard_wikipedia.py"
DUMP = """<mediawiki><siteinfo><base>https://x.org/wiki/Main</base></siteinfo>
<page><title>Old</title><ns>0</ns><id>1</id><redirect title="New" />
<revision><id>1</id><text>#REDIRECT [[New]]</text></revision></page>
<page><title>New</title><ns>0</ns><id>2</id>
<revision><id>1</id><text>This is '''one''' sentence of prose.</text></revision></page>
<page><title>Awful</title><ns>0</ns><id>3</id>
<revision><id>1</id><text>{}</text></revision></page>
</mediawiki>""".format("&lt;a " * 2000).encode()


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environ, capture_output=True, text=True, timeout=120
    )


def fails(path: Path, message: str, *arguments: str) -> None:
    """Run on `path`; check the code, the one line, and that nothing was left."""
    output = path.parent / "made" / "shards"
    done = run("--input", path, "--output", output, *arguments, cwd=path.parent)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in done.stderr
    assert not output.exists() and not list(path.parent.glob("made/.*"))


def test_a_dump_becomes_shards_once(tmp_path: Path) -> None:
    (tmp_path / "small.xml.bz2").write_bytes(bz2.compress(DUMP))
    arguments = ("--input", "small.xml.bz2", "--output", "shards")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "1 article kept, 1 redirect dropped, 1 skipped (unreadable markup)\n"
        "shards: 1 shard, 1 sentence\n"
    )
    assert done.stderr == "skipped page 3 (Awful): unreadable markup\n"
    assert open_shards(tmp_path / "shards").record(0) == {
        "id": "2",
        "title": "New",
        "url": "https://x.org/wiki/New",
        "text": "This is one sentence of prose.",
    }
    again = run(*arguments, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (
        0,
        "shards: these shards are already there; nothing to do\n",
    )
    other = run(*arguments, "--rows-per-shard", "5", cwd=tmp_path)
    assert other.returncode == 2 and "made with other input or settings" in other.stderr


def test_json_lines_lose_only_their_bad_lines(tmp_path: Path) -> None:
    good = {"body": "A text with some words in it.", "name": "T", "key": 5}
    lines = [
        json.dumps(good).encode(),
        b"{broken",
        b'["a list"]',
        b'{"key": 6}',
        b'{"body": 7}',
        b'{"body": "\xff\xfe"}',
        b'{"body": "\\ud800"}',
        b'{"body": "a\\u0000b"}',
        b"",
        b'{"body": "line\\u2028separator stays inside"}',
    ]
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    names = ("--text-column", "body", "--id-column", "key", "--title-column", "name")
    done = run("--input", "x.jsonl.gz", "--output", "o", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "2 documents kept, 1 skipped (not valid JSON), 1 skipped (not a J"
    )
    assert "skipped line 2: not valid JSON\n" in done.stderr
    assert "2 skipped (not valid UTF-8), 1 skipped (NUL character), 1 empty document" in done.stdout
    records = open_shards(tmp_path / "o").records(0, 9)
    assert [(record["id"], record["title"]) for record in records] == [("5", "T"), ("9", "")]


def test_text_and_parquet_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("first\n\nthird\n")
    table = pa.table({"text": ["first", None, "third"], "id": [7, 8, None]})
    pq.write_table(table, tmp_path / "x.parquet")
    for name, ids in (("x.txt", ["0", "2"]), ("x.parquet", ["7", "2"])):
        output = tmp_path / f"{name}.shards"
        done = run("--input", name, "--output", output, "--limit", "2", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        records = open_shards(output).records(0, 9)
        assert [record["id"] for record in records] == ids
        assert [record["text"] for record in records] == ["first", "third"]


def _parquet(content: dict[str, list[str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(content), sink)
    return bytes(sink.getvalue())


BAD_FILES = {
    "absent.xml": (None, "no such file"),
    "cut.xml.bz2": (bz2.compress(DUMP)[:-30], "ends too early"),
    "cut.xml.gz": (gzip.compress(DUMP)[:-30], "ends too early"),
    "prose.xml": (b"no dump\n", "is no MediaWiki XML dump"),
    "other.xml": (b"<html/>", "its root is <html>"),
    "empty.xml": (b"", "is empty"),
    "empty.jsonl": (b"", "is empty"),
    "picture.png": (b"\x89PNG", "unknown kind of file; give one of .xml, .xml.bz2"),
    "x.jsonl": (b'{"body": "b", "name": "n"}', "no column 'text', only body, name; name one with"),
    "y.parquet": (_parquet({"body": ["b"]}), "no column 'text', only body; name one with"),
    "cut.parquet": (_parquet({"text": ["b"]})[:-9], "is damaged or of another kind"),
    "cut.jsonl.gz": (gzip.compress(os.urandom(999).hex().encode())[:-30], "ends too early"),
    "plain.jsonl.gz": (b'{"text": "b"}', "is damaged or of another kind"),
    "utf16.txt": ("words in another coding".encode("utf-16"), "no document to keep (skipped: 1"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    fails(tmp_path / name, message)


@pytest.mark.parametrize("option", ["--limit", "--rows-per-shard"])
def test_numbers_begin_at_one(tmp_path: Path, option: str) -> None:
    (tmp_path / "small.xml").write_bytes(DUMP)
    fails(tmp_path / "small.xml", "1", option, "0")


def test_a_terminated_run_leaves_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "endless.xml"
    page = "<page><title>A</title><ns>0</ns><id>2</id><revision><id>1</id><text>b</text></revision>"
    with pipe.open("w") as handle:
        handle.write("<mediawiki>" + f"{page}</page>\n" * 200_000)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = ("--input", pipe, "--output", tmp_path / "made" / "shards")
    process = subprocess.Popen(command(*arguments), env=environ, cwd=tmp_path)
    while not list(tmp_path.glob("made/.shards*")) and process.poll() is None:
        pass
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert list((tmp_path / "made").iterdir()) == []


def test_help_shows_an_example(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0 and "--input enwiki-latest-pages-articles.xml.bz2" in done.stdout


def test_a_real_dump_end_to_end(real_data: Path, tmp_path: Path) -> None:
    (path,) = (real_data / "mediawiki_dump").glob("enwiki-latest-*.bz2")
    done = run("--input", path, "--output", "shards", "--rows-per-shard", "40", cwd=tmp_path)
    assert done.stdout.startswith("106 articles kept, 100 redirects dropped\nshards: 3 shards, 20")
    shards = open_shards(tmp_path / "shards")
    assert shards.record(0)["title"] == "Anarchism"
    assert shards.num_sentences.sum() > 20_000
