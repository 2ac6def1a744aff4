"""Every fault is found and named, and what is made again has the bytes that it had."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_scripts import verify_shards
from tests.conftest import contents, run
from tests.text.making import lines_of
from tests.text.test_pairs import made as made_pairs
from toolkit.base.files import sha256_of
from toolkit.base.sealed import content_digest
from toolkit.text.records import Article

Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    texts = [
        f"A sentence about number {n % 17} for the test. Another one is here." for n in range(40)
    ]
    folder = tmp_path / "in"
    folder.mkdir()
    for name, numbers in (("a", range(25)), ("b", range(25, 40))):
        articles = [Article(f"id{n}", f"T{n}", "", texts[n]) for n in numbers]
        (folder / f"{name}.jsonl").write_text(lines_of(articles))
    return folder


@pytest.fixture
def directory(source: Path, tmp_path: Path, tiny_model: Path) -> Path:
    """Shards with duplicates left out, and their tokens."""
    out = tmp_path / "shards"
    command = [sys.executable, "data_scripts/shard_wikipedia.py", "--input", str(source)]
    run([*command, "--output", str(out), "--rows-per-shard", "10", "--deduplicate", "exact"])
    command = [sys.executable, "data_scripts/tokenize_shards.py", "--shards", str(out)]
    run([*command, "--model", str(tiny_model), "--max-tokens", "32"])
    return out


@pytest.fixture
def check(directory: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run the script on the directory: the exit code, and the faults without the folder."""

    def call(*arguments: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = verify_shards.main([str(directory), *map(str, arguments)])
        captured = capsys.readouterr()
        assert captured.err == ""
        *faults, total = captured.out.splitlines()
        assert total.startswith(f"{directory}: {len(faults) or 'no'} fault")
        return code, [line.removeprefix(f"{directory}/") for line in faults]

    return call


def flip(path: Path, *, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1
    path.write_bytes(data)


def test_what_was_just_written_has_no_fault(check: Check) -> None:
    assert check() == (0, [])


def test_one_flipped_byte_anywhere_is_found_and_mended(
    check: Check, directory: Path, source: Path
) -> None:
    whole = contents(directory)
    chance = random.Random(5)
    shards = sorted(directory.glob("shard-*.parquet"))
    assert len(shards) == 2  # the rest repeats what was there
    for path in shards:
        flip(path, place=chance.randrange(10**6))
        code, faults = check()
        assert code == 1
        assert faults == [f"{path.name}: is damaged (its SHA-256 differs)"]
        assert check("--repair") == (1, faults)  # without the source
        assert check("--repair", "--source", source) == (0, [])
        assert contents(directory) == whole


@pytest.mark.parametrize("name", ["shard-00001.parquet", "summary.json", "COMMITTED"])
def test_what_is_missing_is_made_again(
    name: str, check: Check, directory: Path, source: Path
) -> None:
    whole = contents(directory)
    (directory / name).unlink()
    code, faults = check()
    assert code == 1 and len(faults) == 1 and faults[0].startswith(f"{name}: is missing")
    assert check("--repair", "--source", source) == (0, [])
    assert contents(directory) == whole


def test_a_shard_that_comes_out_otherwise_is_not_put_in_place(
    check: Check, directory: Path, source: Path
) -> None:
    """Without the list of duplicates nobody knows which rows the shard is without."""
    shard = directory / "shard-00001.parquet"
    shard.unlink()
    (directory / "duplicates.parquet").unlink()
    code, faults = check("--repair", "--source", source)
    assert code == 1 and f"{shard.name}: is missing" in faults
    assert not shard.exists()


def test_several_faults_are_all_named(check: Check, directory: Path) -> None:
    flip(directory / "shard-00000.parquet", place=99)
    (directory / "shard-00001.parquet").unlink()
    flip(directory / "duplicates.parquet", place=99)
    (directory / "shard-00007.parquet").write_bytes(b"a stray")
    code, faults = check()
    assert code == 1
    assert faults == [
        "shard-00000.parquet: is damaged (its SHA-256 differs)",
        "shard-00001.parquet: is missing",
        "duplicates.parquet: is missing or damaged (its SHA-256 differs)",
        "shard-00007.parquet: is not in the manifest",
    ]


def test_another_source_is_refused(
    check: Check, directory: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "shard-00000.parquet").unlink()
    (source / "a.jsonl").write_text(lines_of([Article("x", "", "", "Other words.")]))
    arguments = [str(directory), "--repair", "--source"]
    assert verify_shards.main([*arguments, str(source)]) == 2
    assert "a.jsonl: is not the file that the shards were made of" in capsys.readouterr().err
    assert verify_shards.main([*arguments, str(source / "b.jsonl")]) == 2
    assert "the shards were made of a.jsonl, b.jsonl; give the same" in capsys.readouterr().err


def test_damaged_tokens_are_found_and_go(check: Check, directory: Path) -> None:
    (tokens,) = directory.glob(".cache/tokens-*/tokens-00001.safetensors")
    flip(tokens, place=-1)
    where = tokens.relative_to(directory)
    assert check() == (1, [f"{where}: is damaged (its SHA-256 differs)"])
    code, faults = check("--repair")
    assert (code, faults) == (1, [f"{where}: is missing"])
    assert not tokens.exists() and not tokens.with_suffix(".json").exists()


def forge(directory: Path, table: pa.Table) -> None:
    """Put a table in the place of the first shard, with digests that agree."""
    path = directory / "shard-00000.parquet"
    pq.write_table(table, path)
    manifest = json.loads((directory / "manifest.json").read_text())
    entry = manifest["shards"][0]
    entry |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest["manifest_sha256"] = content_digest(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.slice(1), "has 9 rows, not 10"),
        (lambda t: t.drop_columns(["url"]), "has columns id, title, text"),
        (
            lambda t: t.set_column(4, "num_chars", pa.array([5] * len(t), pa.int32())),
            "has a text of another length than num_chars says",
        ),
        (
            lambda t: t.set_column(6, "sentence_ends", pa.array([[1]] * len(t), t.schema[6].type)),
            "has rows with more sentence starts than ends",
        ),
        (
            lambda t: t.set_column(
                6, "sentence_ends", pa.array([[9, 999]] * len(t), t.schema[6].type)
            ),
            "has sentences that overlap or lie outside",
        ),
        (
            lambda t: t.set_column(
                6,
                "sentence_ends",
                pa.array([[n, n] for n in t["num_chars"].to_pylist()], t.schema[6].type),
            ),
            "has sentences that overlap or lie outside",
        ),
        (lambda t: t.set_column(0, "id", pa.array(["x"] * len(t))), "repeats an id of its own"),
        (lambda t: t.set_column(0, "id", pa.array([f"id{n}" for n in range(10, 20)])), "ok"),
    ],
)
def test_what_digests_cannot_see_is_cross_checked(
    change: Callable[[pa.Table], pa.Table], problem: str, check: Check, directory: Path
) -> None:
    forge(directory, change(pq.read_table(directory / "shard-00000.parquet")))
    code, faults = check()
    assert code == 1
    if problem == "ok":  # then the ids of the next shard repeat these
        assert faults == ["shard-00001.parquet: repeats the id 'id10'"]
    else:
        assert faults[0].startswith(f"shard-00000.parquet: {problem}")


def test_pairs_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = made_pairs(tmp_path / "pairs")
    assert verify_shards.main([str(pairs)]) == 0
    flip(pairs / "pairs-00001-00000.parquet", place=77)
    (pairs / "pairs-00000-00000.parquet").unlink()
    assert verify_shards.main([str(pairs)]) == 1
    printed = capsys.readouterr().out
    assert "pairs-00001-00000.parquet: is damaged" in printed
    assert "pairs-00000-00000.parquet: is missing" in printed
    assert "2 faults" in printed


def test_what_cannot_be_checked_is_one_line(
    tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_shards.main([str(tmp_path)]) == 2
    assert "is no directory of shards or pairs" in capsys.readouterr().err
    flip(directory / "manifest.json", place=(directory / "manifest.json").read_text().index("rows"))
    assert verify_shards.main([str(directory)]) == 2
    assert "manifest.json: is damaged (its digest differs)" in capsys.readouterr().err
