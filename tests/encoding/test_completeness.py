"""Every row of the source has its vector, or is counted as left out or as bad, or the job fails.

The oracle reads source, shards and units with json, bz2, pyarrow and safetensors alone."""

import bz2
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.conftest import QUICKSTART, contents, refused
from tests.encoding.conftest import embed
from tests.encoding.making import output_of, write_all
from tests.text.making import shard
from toolkit import encode, verify
from toolkit.base.errors import RunFailed
from toolkit.base.files import digest_of
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.output import Output
from toolkit.text.shards import ShardSet

BLANK = "\u2800"  # a text, and no token
LINES: list[Any] = [
    {"id": 1, "text": "Beavers build dams."},
    {"text": "No id here."},
    {"id": None, "text": "Nor here."},
    {"id": "  ", "text": "An id of blanks."},
    "",
    "{broken",
    {"id": 2, "text": BLANK},
    {"id": 1, "text": "The id of the first."},
    ["a list"],
    {"id": 3, "text": "Locks lift boats."},
]
ROWS: list[dict[str, Any]] = [
    {"id": 3.0, "text": "Its id is 3.0, and not 3."},
    {"id": 1.5, "text": "Tennis is played with a ball."},
    {"id": float("nan"), "text": "What pandas writes for a missing number."},
    {"id": float("nan"), "text": "And another."},
    {"id": 8.0, "text": None},
    {"id": 1.5, "text": "That id again."},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files: JSON lines, Parquet, and a dump whose ids are numbers too."""
    folder = tmp_path_factory.mktemp("source") / "in"
    folder.mkdir()
    lines = [line if isinstance(line, str) else json.dumps(line) for line in LINES]
    (folder / "a.jsonl.bz2").write_bytes(bz2.compress("\n".join(lines).encode() + b"\n"))
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "b.parquet")
    shutil.copy(QUICKSTART / "encyclopedia.xml.bz2", folder / "c.xml.bz2")
    return folder


@pytest.fixture(scope="module")
def corpus(source: Path) -> Path:
    return shard(source, output=source.parent / "shards", max_bad_fraction=0.2)


@pytest.fixture(scope="module")
def inputs(source: Path, corpus: Path, tiny_model: Path) -> tuple[str, str]:
    """A model whose tokenizer drops `BLANK`, and the corpus."""
    model = source.parent / "model"
    shutil.copytree(tiny_model, model)
    content = json.loads((model / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": BLANK}, "content": ""}
    (model / "tokenizer.json").write_text(json.dumps(content))
    return f"encoder.model={model}", f"corpus.input={corpus}"


@pytest.fixture(scope="module")
def made(source: Path, inputs: tuple[str, str]) -> Path:
    output = source.parent / "encoding"
    embed(output, *inputs)
    return output


def has_id(value: Any) -> bool:
    return value is not None and value == value and str(value).strip() != ""


def counted_source(folder: Path) -> dict[str, Any]:
    """Rows by fate, by reading the files with nothing of ours."""
    counts: Counter[str] = Counter()
    ids: set[str] = set()

    def take(identifier: Any, text: Any) -> None:
        if not isinstance(text, str):
            counts["no text"] += 1
        elif has_id(identifier) and str(identifier) in ids:
            counts["duplicate id"] += 1
        else:
            ids.add(str(identifier)) if has_id(identifier) else counts.update(["without id"])
            counts["kept"] += 1

    lines = bz2.decompress((folder / "a.jsonl.bz2").read_bytes()).decode().split("\n")[:-1]
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            counts["not valid JSON" if line else "blank line"] += 1
            continue
        if isinstance(row, dict):
            take(row.get("id"), row.get("text"))
        else:
            counts["not a JSON object"] += 1
    table = pq.read_table(folder / "b.parquet").to_pylist()
    for row in table:
        take(row["id"], row["text"])
    dump = bz2.decompress((folder / "c.xml.bz2").read_bytes()).decode()
    pages = re.findall(r"<page>.*?</page>", dump, re.DOTALL)
    for page in pages:
        if "<redirect" in page or "#REDIRECT" in page.upper():
            counts["redirect"] += 1
        elif "<ns>0</ns>" not in page:
            counts["not an article"] += 1
        else:
            take(re.search(r"<id>(\d+)</id>", page)[1], "prose")  # type: ignore[index]
    return {"rows": len(lines) + len(table) + len(pages), **counts}


def counted_encoding(folder: Path) -> tuple[int, int]:
    """Vectors that are numbers, and those of them that are zero, in the files of the units."""
    num = empty = 0
    for path in sorted((folder / "units").glob("*.safetensors")):
        vectors = load_file(path)["vectors"]
        ids = pq.read_table(path.with_suffix(".ids.parquet"))["id"].to_pylist()
        assert len(ids) == len(set(ids)) == len(vectors) and np.isfinite(vectors).all()
        num += len(vectors)
        empty += int((vectors == 0).all(axis=1).sum())
    return num, empty


def line_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert verify.main([str(folder)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return line


def number_before(words: str, *, line: str) -> int:
    found = re.search(rf"([\d,]+) {words}", line)
    return int(found[1].replace(",", "")) if found else 0


def number_after(words: str, *, line: str) -> int:
    found = re.search(rf"{words} ([\d,]+)", line)
    return int(found[1].replace(",", "")) if found else 0


def test_the_line_is_what_plain_code_counts(
    source: Path, made: Path, inputs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By `toolkit.verify` and, the same, at the end of every encode."""
    wanted = counted_source(source)
    vectors, empty = counted_encoding(made)
    line = line_of(made, capsys)
    assert number_before("rows in the source", line=line) == wanted.pop("rows")
    assert number_before("with vectors", line=line) == wanted.pop("kept") == vectors
    assert number_before("empty", line=line) == empty == 1
    assert number_before("without an id of their own", line=line) == wanted.pop("without id") == 5
    assert wanted["duplicate id"] == 5 and wanted["redirect"] >= 20
    for reason, count in wanted.items():
        assert number_after(reason, line=line) == count, reason
    bad = ("duplicate id", "not valid JSON", "no text", "not a JSON object")
    assert number_before("in quarantine", line=line) == sum(wanted[reason] for reason in bad)
    left_out = sum(wanted.values()) - sum(wanted[reason] for reason in bad)
    assert number_before("left out", line=line) == left_out
    assert "ids are those of the corpus" in line
    embed(made, *inputs)
    said = capsys.readouterr().out.splitlines()[-1].removeprefix(f"embed: {made}: ")
    assert said and said in line


def test_texts_and_their_chunks_are_told_apart(
    source: Path, inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "enc"
    embed(output, *inputs, "corpus.chunk_tokens=8", "corpus.chunk_overlap=2")
    num = sum(len(load_file(path)["vectors"]) for path in output.rglob("*.safetensors"))
    texts = counted_source(source)["kept"]
    assert num > texts
    line = line_of(output, capsys)
    assert f"{texts:,} with vectors in {num:,} chunks (1 empty, " in line
    assert "ids are those of the corpus" in line


def test_the_digest_is_that_of_the_content(made: Path, tmp_path: Path) -> None:
    """The same wherever the files are, and of the bytes on the disk."""
    manifest = json.loads((made / "manifest.json").read_text())
    files = {
        path.stem: {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(path.parent.glob(f"{path.stem}.*"))
            if file.suffix != ".json"
        }
        for path in (made / "units").glob("*.json")
    }
    wanted = digest_of({"encoding": manifest["digest"], "units": files})[:16]
    shutil.copytree(made, tmp_path / "elsewhere")
    for folder in (made, tmp_path / "elsewhere"):
        output = Output(folder, manifest["digest"], [])
        assert f"sha256 {wanted}" in output.completeness()


def test_a_corpus_that_is_gone_is_said_and_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(output_of(tmp_path / "enc", rows=5, unit_rows=2), np.ones((5, 3), dtype=np.float32))
    line = line_of(tmp_path / "enc", capsys)
    assert "5 with vectors (0 empty), rows of the source not recorded; sha256 " in line
    assert "ids not compared: c is not there any more, or has changed" in line


def test_a_damaged_corpus_is_a_line_with_its_file(
    inputs: tuple[str, str], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(corpus, tmp_path / "shards")
    embed(tmp_path / "enc", inputs[0], f"corpus.input={tmp_path / 'shards'}")
    path = tmp_path / "shards" / "shard-00000.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    assert f"error: {path}: is damaged; delete" in refused(capsys, verify.main, tmp_path / "enc")
    path.unlink()
    assert "ids not compared: " in line_of(tmp_path / "enc", capsys)


def lie(made: Path, **changes: Any) -> None:
    """Change the manifest and the plan as somebody would who also makes their digests right."""
    for name in ("manifest.json", "plan.json"):
        content = json.loads((made / name).read_text())
        content = {key: {**content[key], **changes.get(key, {})} for key in changes} | {
            key: value for key, value in content.items() if key not in changes
        }
        if name == "manifest.json":
            del content["manifest_sha256"]
            content["manifest_sha256"] = digest_of(content)
        else:
            content.pop("counts", None)
        (made / name).write_text(json.dumps(content))


def forget_a_row(made: Path) -> None:
    lie(made, source={"rows": 1000})


def forget_documents(made: Path) -> None:
    source = json.loads((made / "plan.json").read_text())["source"]
    lie(made, source={"rows": source["rows"] + 1, "documents": source["documents"] + 1})


def count_one_more(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    counts = {**manifest.pop("counts"), "empty": 7}
    del manifest["manifest_sha256"]
    manifest["counts"] = counts
    manifest["manifest_sha256"] = digest_of(manifest)
    (made / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (forget_a_row, r"1,000 rows are not \d+ kept \+ \d+ left out \+ 8 in quarantine"),
        (forget_documents, r"there are (\d+) documents, and \d+ rows were kept"),
        (count_one_more, r"manifest.json says .*'empty': 7.*and the units hold .*'empty': 1"),
    ],
)
def test_what_does_not_add_up_fails(
    harm: Callable[[Path], None],
    said: str,
    made: Path,
    tmp_path: Path,
    inputs: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And so does the same encode again, which does not count finished units anew."""
    copied = tmp_path / "enc"
    shutil.copytree(made, copied)
    harm(copied)
    line = refused(capsys, verify.main, copied)
    assert line.startswith(f"error: {copied}: its rows do not add up: ")
    assert re.search(said, line), line
    if harm is count_one_more:
        return
    given = ["encoder.max_tokens=16", f"output_dir={copied}", *inputs]
    assert encode.main(["tiny_embed", *given]) == 2
    assert "its rows do not add up" in capsys.readouterr().err


def test_ids_in_another_order_than_those_of_the_corpus_are_found(
    made: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All digests are right, and no id is there twice: only the corpus can tell."""
    manifest = json.loads((made / "manifest.json").read_text())
    output = output_of(tmp_path / "enc", rows=manifest["rows"], unit_rows=50)
    write_all(output, np.ones((manifest["rows"], 3), dtype=np.float32))
    shards = json.loads((corpus / "manifest.json").read_text())["shards"]
    digest = hashlib.sha256("\n".join(one["sha256"] for one in shards).encode()).hexdigest()
    plan = json.loads((tmp_path / "enc" / "plan.json").read_text())
    facts = {**plan, "corpus": digest}
    facts["digest"] = digest_of({k: v for k, v in facts.items() if not k.endswith(PATHS)})
    facts["corpus_path"] = str(corpus)
    shutil.rmtree(tmp_path / "enc")
    (tmp_path / "enc").mkdir()
    (tmp_path / "enc" / "plan.json").write_text(json.dumps(facts))
    write_all(Output(tmp_path / "enc", facts["digest"], output.units), vectors(manifest["rows"]))
    line = refused(capsys, verify.main, tmp_path / "enc")
    assert "row 0 has the id 'id0', and in the corpus '1'" in line


PATHS = ("digest", "_path", "_paths")


def vectors(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ones((rows, 3), dtype=np.float32)


def test_shards_that_do_not_add_up_are_refused_before_the_work(
    corpus: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(corpus, tmp_path / "shards", ignore=shutil.ignore_patterns(".cache"))
    path = tmp_path / "shards" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["summary"]["rows"] += 1
    del manifest["manifest_sha256"]
    path.write_text(json.dumps({**manifest, "manifest_sha256": digest_of(manifest)}))
    given = [f"corpus.input={tmp_path / 'shards'}", f"encoder.model={tiny_model}"]
    line = refused(capsys, encode.main, "tiny_embed", f"output_dir={tmp_path / 'enc'}", *given)
    assert line.startswith(f"error: {path}: does not add up: ") and " rows are not " in line
    assert not (tmp_path / "enc").exists()


@pytest.mark.parametrize("schedule", ["alone", "claim"])
@pytest.mark.parametrize("lost", [".safetensors", ".ids.parquet"])
def test_a_file_that_is_lost_while_others_are_made_is_made_again(
    lost: str,
    schedule: str,
    made: Path,
    inputs: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a purge of old files: its marker stays."""
    real, times = Output.write, []

    def write(self: Output, unit: Any, *rest: Any) -> None:
        real(self, unit, *rest)
        times.append(unit.name)
        if unit.number == 5 and times.count("00001") == 1:
            (self.directory / "units" / f"00001{lost}").unlink()

    monkeypatch.setattr(Output, "write", write)
    embed(tmp_path / "enc", *inputs, f"schedule={schedule}")
    assert times.count("00001") == 2
    assert contents(tmp_path / "enc") == contents(made)


def test_a_disk_that_loses_what_is_written_fails_the_job(
    inputs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Output.write

    def write(self: Output, unit: Any, *rest: Any) -> None:
        real(self, unit, *rest)
        if unit.number == 2:
            (self.directory / "units" / "00002.safetensors").unlink()

    monkeypatch.setattr(Output, "write", write)
    with pytest.raises(RunFailed, match="what is written there gets lost: after 5 rounds"):
        embed(tmp_path / "enc", *inputs, "schedule=alone")
    assert not (tmp_path / "enc" / "manifest.json").exists()


def halved(real: Callable[..., Any], self: Any, *arguments: Any, **settings: Any) -> Any:
    found = real(self, *arguments, **settings)
    return found[: len(found) // 2]


@pytest.mark.parametrize(("owner", "name"), [(ShardSet, "records"), (Encoder, "embed")])
def test_half_of_the_rows_never_ends_with_code_0(
    owner: type,
    name: str,
    inputs: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever part of ours should lose them."""
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *a, **k: partial(halved, real)(*a, **k))
    with pytest.raises((AssertionError, RunFailed)):
        embed(tmp_path / "enc", *inputs)
    assert not list((tmp_path / "enc").rglob("*.safetensors"))
