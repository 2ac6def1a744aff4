"""The command line: what it prints, its exit codes, and that it leaves nothing half made."""

import bz2
import dataclasses
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_scripts import shard_wikipedia
from data_scripts.shard_wikipedia import parse_arguments, work_of
from tests.conftest import contents
from tests.forking.start import forked_python
from toolkit.text.filters import Filters
from toolkit.text.shards import ShardRules, open_shards

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


def command(*arguments: str | Path, python: str = sys.executable) -> list[str]:
    return [python, str(SCRIPT), *map(str, arguments)]


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments, python=forked_python()),
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def fails(path: Path, message: str, *arguments: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Run on `path`; check the code, the one line, and that nothing was left."""
    output, handler = path.parent / "made" / "shards", signal.getsignal(signal.SIGTERM)
    code = shard_wikipedia.main(["--input", str(path), "--output", str(output), *arguments])
    signal.signal(signal.SIGTERM, handler)
    assert code == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    last = printed.err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in printed.err
    assert not output.exists() and not list(path.parent.glob("made/.*"))


def test_a_dump_becomes_shards_once(tmp_path: Path) -> None:
    (tmp_path / "small.xml.bz2").write_bytes(bz2.compress(DUMP))
    arguments = ("--input", "small.xml.bz2", "--output", "shards", "--max-bad-fraction", "0.4")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "           3 pages read, 0.0 MB\n"
        "           1 left out: redirect\n"
        "           1 bad: unreadable markup\n"
        "           1 articles kept, 0.0 M characters\n"
        f"what was bad is listed in {tmp_path}/shards/quarantine.jsonl\n"
        f"{tmp_path}/shards: 1 shards, 1 sentences\n"
    )
    assert done.stderr == ""
    assert open_shards(tmp_path / "shards").record(0) == {
        "id": "2",
        "title": "New",
        "url": "https://x.org/wiki/New",
        "text": "This is one sentence of prose.",
    }
    again = run(*arguments, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (
        0,
        f"{tmp_path}/shards: these shards are already there; nothing to do\n",
    )
    other = run(*arguments, "--rows-per-shard", "5", cwd=tmp_path)
    assert other.returncode == 2 and "made with other input or settings" in other.stderr


def test_columns_and_filters_are_chosen_by_options(tmp_path: Path) -> None:
    good = {"body": "A text with some words in it.", "name": "T", "key": 5}
    lines = [good, {**good, "key": 6}, {**good, "body": "short", "key": 7}]
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    names = ("--text-column", "body", "--id-column", "key", "--title-column", "name")
    options = ("--deduplicate", "exact", "--min-chars", "10", "--keep-languages", "en")
    done = run("--input", "x.jsonl.gz", "--output", "o", *names, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 left out: duplicate text\n" in done.stdout
    assert "1 left out: shorter than 10 characters\n" in done.stdout
    records = open_shards(tmp_path / "o").records(0, 9)
    assert [(record["id"], record["title"]) for record in records] == [("5", "T")]


def test_every_option_of_a_filter_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("words\n")
    given = ["--input", str(tmp_path / "x.txt"), "--output", str(tmp_path / "o"), "--quality"]
    given += ["--min-chars", "1", "--max-chars", "9", "--keep-languages", "en", "de"]
    given += ["--deduplicate", "near", "--limit", "3", "--language", "de", "--rows-per-shard", "7"]
    work = work_of(parse_arguments(given))
    assert work.filters == Filters(1, max_chars=9, languages=("en", "de"), quality=True)
    assert work.rules == ShardRules(language="de", rows_per_shard=7)
    assert (work.deduplicate, work.limit) == ("near", 3)


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
    "picture.png": (b"\x89PNG", "unknown kind of file; give one of .xml, .jsonl"),
    "x.jsonl": (b'{"body": "b", "name": "n"}', "no column 'text', only body, name; name one with"),
    "y.parquet": (_parquet({"body": ["b"]}), "no column 'text', only body; name one with"),
    "cut.parquet": (_parquet({"text": ["b"]})[:-9], "is damaged or of another kind"),
    "cut.jsonl.gz": (gzip.compress(os.urandom(999).hex().encode())[:-30], "ends too early"),
    "plain.jsonl.gz": (b'{"text": "b"}', "is damaged or of another kind"),
    "utf16.txt": ("words in another coding".encode("utf-16"), "is UTF-16; convert it first"),
    "blank.txt": (b"\n \n", "no document to keep (skipped: 2 blank line)"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    fails(tmp_path / name, message, capfd=capfd)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--limit", "0", "--limit 0: give a number from 1"),
        ("--workers", "0", "--workers 0: give a number from 1"),
        ("--rows-per-shard", "0", "must be at least 1"),
        ("--min-chars", "-1", "--min-chars -1: give a number from 0"),
        ("--max-bad-fraction", "1.5", "--max-bad-fraction 1.5: from 0 to 1"),
        ("--dataset", "a/b", "give either --input or --dataset"),
    ],
)
def test_numbers_that_cannot_be_meant(
    tmp_path: Path, option: str, value: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.xml").write_bytes(DUMP)
    fails(tmp_path / "small.xml", message, option, value, capfd=capfd)


def many_pages(path: Path, *, count: int, sentences: int = 40) -> None:
    pages = (
        f"<page><title>P{n}</title><ns>0</ns><id>{n}</id><revision><id>1</id>"
        f"<text>{'Some [[prose|words]] of it. ' * sentences}{n}</text></revision></page>\n"
        for n in range(count)
    )
    path.write_bytes(bz2.compress(f"<mediawiki>{''.join(pages)}</mediawiki>".encode()))


@dataclasses.dataclass(frozen=True)
class Source:
    """The arguments that name a dump and the size of its parts, and the shards that one process
    makes of it without a break."""

    arguments: tuple[str, ...]
    whole: dict[str, bytes]
    printed: str


def source_of(path: Path, *, rows: int, folder: Path, limit: int | None = None) -> Source:
    arguments = ("--input", str(path), "--rows-per-shard", str(rows))
    arguments += ("--limit", str(limit)) if limit else ()
    done = run(*arguments, "--output", "whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Source(arguments, contents(folder / "whole"), done.stdout)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """600 short pages in sixty parts."""
    folder = tmp_path_factory.mktemp("pages")
    many_pages(folder / "x.xml.bz2", count=600, sentences=12)
    return source_of(folder / "x.xml.bz2", rows=10, folder=folder)


@pytest.fixture(scope="module")
def real_dump(real_data: Path) -> Path:
    (path,) = (real_data / "mediawiki_dump").glob("enwiki-latest-*.bz2")
    return path


@pytest.fixture(scope="module")
def beginning(real_dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """90 pages of the real dump in 45 parts."""
    return source_of(real_dump, rows=2, limit=90, folder=tmp_path_factory.mktemp("beginning"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_ended_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, number: signal.Signals, pages: Source
) -> None:
    """Twice with one worker and twice with two."""
    ended_at_random(pages, number=number, times=4, tmp_path=tmp_path)


def test_the_real_dump_ended_at_random_moments_gives_the_same_bytes(
    beginning: Source, tmp_path: Path
) -> None:
    """Its beginning: the whole of it below."""
    ended_at_random(beginning, number=signal.SIGKILL, times=4, tmp_path=tmp_path)


@pytest.mark.slow
def test_the_whole_real_dump_ended_twenty_times_gives_the_same_bytes(
    real_dump: Path, tmp_path: Path
) -> None:
    source = source_of(real_dump, rows=3, folder=tmp_path)
    ended_at_random(source, number=signal.SIGKILL, times=20, tmp_path=tmp_path)


def ended_at_random(source: Source, *, number: signal.Signals, times: int, tmp_path: Path) -> None:
    """Ended `times` times, with one and two workers in turn, it gives what one run gives."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = (*source.arguments, "--output")
    chance = random.Random(int(number))
    parts = 0
    for attempt in range(times):
        workers = str(1 + attempt % 2)
        process = subprocess.Popen(
            command(*arguments, "made", "--workers", workers),
            env=environ,
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wanted = parts + chance.randrange(1, 5)
        while process.poll() is None and len(list(tmp_path.glob(".made*/g*.json"))) < wanted:
            time.sleep(chance.random() / 100)
        if process.poll() is not None:
            break
        os.killpg(process.pid, number) if number == signal.SIGKILL else process.terminate()
        process.wait(timeout=60)
        assert not (tmp_path / "made").exists()
        parts = len(list(tmp_path.glob(".made*/g*.json")))
    assert attempt == times - 1 and parts >= times
    done = run(*arguments, "made", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "made") == source.whole
    assert not list(tmp_path.glob(".made*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    many_pages(tmp_path / "x.xml.bz2", count=2000)
    arguments = ("--input", tmp_path / "x.xml.bz2", "--rows-per-shard", "1000", "--output", "made")
    process = subprocess.Popen(
        command(*arguments, "--workers", "2"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        start_new_session=True,
    )
    while not list(tmp_path.glob(".made*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    ended = process.wait(timeout=60)
    assert ended == (128 + number if number == signal.SIGTERM else -number)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)  # anybody left of its group?
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a worker outlived the run")


@pytest.mark.parametrize("ranks", [1, 3])
def test_mpi_gives_the_same_bytes(tmp_path: Path, ranks: int, pages: Source) -> None:
    by_mpi(pages, ranks=ranks, tmp_path=tmp_path)


def by_mpi(source: Source, *, ranks: int, tmp_path: Path) -> None:
    done = run_with_mpi(*source.arguments, "--output", "mpi", ranks=ranks, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("articles kept") == 1
    assert contents(tmp_path / "mpi") == source.whole


def run_with_mpi(*arguments: object, ranks: int, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The script under mpiexec of the environment."""
    mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MPI4PY_MPIABI": "mpich",
        "LD_LIBRARY_PATH": str(Path(sys.executable).parents[1] / "lib"),
    }
    return subprocess.run(
        [*mpiexec, *command(*arguments)],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_shows_an_example(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0 and "--input enwiki-latest-pages-articles.xml.bz2" in done.stdout


def test_a_real_dump_end_to_end(real_dump: Path, beginning: Source, tmp_path: Path) -> None:
    """206 pages by one and by three processes; the first of them by three MPI ranks."""
    source = source_of(real_dump, rows=40, folder=tmp_path)
    done = run(*source.arguments, "--output", "by3", "--workers", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for printed in (source.printed, done.stdout):
        assert "206 pages read" in printed
        assert "100 left out: redirect" in printed
        assert "106 articles kept" in printed
    assert contents(tmp_path / "by3") == source.whole
    by_mpi(beginning, ranks=3, tmp_path=tmp_path)
    shards = open_shards(tmp_path / "by3")
    assert shards.record(0)["title"] == "Anarchism"
    assert shards.num_sentences.sum() > 20_000
    assert len(list((tmp_path / "by3").glob("shard-*"))) == 6
