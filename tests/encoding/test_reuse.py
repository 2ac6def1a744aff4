"""What an older encoding has is not embedded again; the bytes are those of a run from scratch."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import contents
from tests.encoding.company import company_changes_bits
from tests.encoding.conftest import embed, flip_a_byte
from tests.encoding.making import output_of, write_all
from tests.text.making import shard_articles
from toolkit import encode, status, verify
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.encoding.reuse import OldVectors
from toolkit.encoding.store import VectorStore
from toolkit.text.duplicates import key_of
from toolkit.text.records import Article
from toolkit.text.shards import open_shards

RECORD = "reuse.json"
MODES = {
    "plain": (),
    "int8": ("vectors=int8", "normalize=true"),
    "normalized": ("normalize=true", "dims=100"),
    "bf16": ("vectors=bf16",),
    "binary": ("vectors=binary",),
    "chunks": ("corpus.chunk_tokens=12", "corpus.chunk_overlap=3", "vectors=int8"),
}


def article(name: str, text: str) -> Article:
    return Article(id=name, title=f"About {name}", url="", text=text)


@pytest.fixture(scope="module")
def corpora(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Real texts, and the same in another order with some changed, added, and gone; and one that
    has another id now. One stands there twice."""
    folder = tmp_path_factory.mktemp("corpora")
    opened = open_shards(shards)
    texts = [opened.text(row) for row in range(80)]
    old = [article(f"a{number}", text) for number, text in enumerate(texts[:60])]
    old.append(article("twin", texts[7]))
    new = [one for one in old if one.id not in ("a3", "a41")]
    new = [article(one.id, one.text + " More.") if one.id == "a20" else one for one in new]
    new = [article("renamed", one.text) if one.id == "a30" else one for one in new]
    new += [article(f"b{number}", text) for number, text in enumerate(texts[60:64])]
    random.Random(1).shuffle(new)
    return (
        shard_articles(old, output=folder / "old" / "shards"),
        shard_articles(new, output=folder / "new" / "shards"),
    )


def encoded(out: Path, *, corpus: Path, model: Path, settings: tuple[str, ...] = ()) -> Path:
    embed(out, f"encoder.model={model}", f"corpus.input={corpus}", "corpus.unit_rows=9", *settings)
    return out


def without_record(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name != RECORD}


def require_same(out: Path, scratch: Path, *, old: Path, model: Path) -> None:
    """Equal bytes; where other company changes bits, equal ids, vectors within rounding, and what
    was reused as it was."""
    if without_record(out) == contents(scratch):
        return
    assert company_changes_bits(model)
    found, wanted, before = (VectorStore(one) for one in (out, scratch, old))
    assert found.ids() == wanted.ids()
    known: dict[bytes, int] = {}
    for row, key in enumerate(keys_of(before)):
        known.setdefault(key, row)  # of two equal texts the first one is reused
    for row, key in enumerate(keys_of(found)):
        if key in known and not found.has_chunks:
            np.testing.assert_array_equal(found.read([row]), before.read([known[key]]))
    if found.form != "binary":  # a sign may turn
        step = 0.02 if found.form == "int8" else 1e-2
        np.testing.assert_allclose(found.vectors(), wanted.vectors(), atol=step)


def keys_of(store: VectorStore) -> list[bytes]:
    return [key for unit in store.units for key in store.unit_keys(unit) or ()]


@pytest.mark.parametrize("mode", MODES)
def test_the_bytes_are_those_of_a_run_from_scratch(
    mode: str,
    corpora: tuple[Path, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = MODES[mode]
    before, now = corpora
    old = encoded(tmp_path / "old", corpus=before, model=tiny_model, settings=settings)
    scratch = encoded(tmp_path / "scratch", corpus=now, model=tiny_model, settings=settings)
    untouched = contents(old)
    capsys.readouterr()
    reused = (*settings, f"reuse={old}")
    out = encoded(tmp_path / "out", corpus=now, model=tiny_model, settings=reused)
    said = capsys.readouterr().out
    assert "embed: 58 texts reused; " in said
    assert "58 texts reused of" in said and ", 4 new, 1 changed, 3 gone" in said
    require_same(out, scratch, old=old, model=tiny_model)
    assert contents(old) == untouched
    record = read_json(out / RECORD)
    counts = {name: record[name] for name in ("reused", "new", "changed", "gone")}
    # The one with another id is one that is gone, and was reused.
    assert counts == {"reused": 58, "new": 4, "changed": 1, "gone": 3}
    assert status.main([str(out)]) == 0
    assert "58 texts reused" in " ".join(capsys.readouterr().out.split())


def test_a_chain_of_encodings_loses_nothing(
    corpora: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """What was taken over is there for the next one, too."""
    before, now = corpora
    settings = MODES["int8"]
    first = encoded(tmp_path / "1", corpus=before, model=tiny_model, settings=settings)
    second = encoded(
        tmp_path / "2", corpus=now, model=tiny_model, settings=(*settings, f"reuse={first}")
    )
    third = encoded(
        tmp_path / "3", corpus=before, model=tiny_model, settings=(*settings, f"reuse={second}")
    )
    require_same(third, first, old=second, model=tiny_model)
    assert read_json(third / RECORD)["reused"] == 58


def test_other_settings_reuse_nothing_and_say_so(
    corpora: tuple[Path, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, now = corpora
    old = encoded(tmp_path / "old", corpus=before, model=tiny_model)
    other = ("encoder.max_tokens=12", "dims=8")
    scratch = encoded(tmp_path / "scratch", corpus=now, model=tiny_model, settings=other)
    capsys.readouterr()
    out = encoded(tmp_path / "out", corpus=now, model=tiny_model, settings=(*other, f"reuse={old}"))
    said = capsys.readouterr().out
    assert f"reuse={old}: it is of another encoder and output; all texts are embedded" in said
    assert "texts reused; " not in said
    assert without_record(out) == contents(scratch)
    record = read_json(out / RECORD)
    assert (record["reused"], record["new"], record["changed"]) == (0, 5, 58)


def test_what_was_embedded_before_is_not_called_reused(
    corpora: tuple[Path, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, now = corpora
    old = encoded(tmp_path / "old", corpus=before, model=tiny_model)
    out = encoded(tmp_path / "out", corpus=now, model=tiny_model)
    capsys.readouterr()
    encoded(out, corpus=now, model=tiny_model, settings=(f"reuse={old}",))
    said = capsys.readouterr().out
    assert f"reuse={old}: units were made before it was named" in said
    assert "texts reused" not in said and not (out / RECORD).exists()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda record: {**record, "reused": 99}, "was changed since it was written"),
        (lambda record: {"encoding": record["encoding"]}, "digest"),
    ],
)
def test_a_record_that_was_changed_is_noticed(
    harm: Callable[[dict[str, Any]], dict[str, Any]],
    message: str,
    corpora: tuple[Path, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, now = corpora
    old = encoded(tmp_path / "old", corpus=before, model=tiny_model)
    out = encoded(tmp_path / "out", corpus=now, model=tiny_model, settings=(f"reuse={old}",))
    assert verify.main([str(out)]) == 0
    write_json(out / RECORD, harm(read_json(out / RECORD)))
    capsys.readouterr()
    assert verify.main([str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(out / RECORD) in line and message in line


def test_what_cannot_be_reused_is_refused(
    corpora: tuple[Path, Path],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, now = corpora
    old = encoded(tmp_path / "old", corpus=before, model=tiny_model)
    out = tmp_path / "out"
    given = ["tiny_embed", f"encoder.model={tiny_model}", f"corpus.input={now}"]
    given += ["encoder.max_tokens=16", "corpus.unit_rows=9", f"output_dir={out}"]
    half = tmp_path / "half"
    shutil.copytree(old, half)
    (half / "manifest.json").unlink()
    for name, message in (
        (half, f"{half}: is not finished"),
        (tmp_path, f"{tmp_path}: is not an encoding"),
        (out, "is the output_dir itself"),
    ):
        assert encode.main([*given, f"reuse={name}"]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    # Damage in a unit ends the job with the file's name, and what is whole by then stays.
    flip_a_byte(old / "units" / "00003.safetensors")
    assert encode.main([*given, f"reuse={old}"]) == 2
    said = capsys.readouterr().err
    assert f"{old}/units/00003.safetensors: is missing or damaged" in said
    assert not (out / "manifest.json").exists()
    assert encode.main(given) == 0  # goes on from scratch
    assert len(VectorStore(out, verify=True).ids()) == 63


def test_units_of_an_older_toolkit_have_no_keys(tmp_path: Path) -> None:
    output = output_of(tmp_path / "old", rows=4, unit_rows=2)
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    write_all(output, vectors)
    facts = VectorStore(tmp_path / "old").manifest
    old = OldVectors(VectorStore(tmp_path / "old"), facts=facts)
    assert "older toolkit" in old.why_none
    assert old.find([key_of("a")]).tolist() == [-1]


def test_a_text_is_found_by_its_whole_key(tmp_path: Path) -> None:
    """Of two keys with the same first half, the second of which is another text's."""
    output = output_of(tmp_path / "old", rows=3, unit_rows=2)
    half = bytes(8)
    keys = [half + b"12345678", key_of("b"), key_of("c")]
    vectors = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
    for unit in output.units:
        records = [
            {"id": str(n), "title": "", "key": keys[n]} for n in range(unit.start, unit.stop)
        ]
        output.write(unit, vectors[unit.start : unit.stop], records)
    assert output.write_manifest() == []
    store = VectorStore(tmp_path / "old")
    assert store.table([0]).column_names == ["id", "title", "empty", "vector"]
    old = OldVectors(VectorStore(tmp_path / "old"), facts=store.manifest)
    wanted = [key_of("c"), half + b"87654321", keys[0], key_of("d"), key_of("b")]
    assert old.find(wanted).tolist() == [2, -1, 0, -1, 1]
    kept = old.kept([5, 2], [2, 0])
    np.testing.assert_array_equal(kept.vectors_MD, vectors[[2, 0]])


def test_an_empty_corpus_has_nothing_to_reuse(tmp_path: Path) -> None:
    output = output_of(tmp_path / "old", rows=0, unit_rows=2)
    assert output.write_manifest() == []
    old = OldVectors(VectorStore(tmp_path / "old"), facts=VectorStore(tmp_path / "old").manifest)
    assert old.find([key_of("a")]).tolist() == [-1]


def test_a_reuse_of_itself_is_no_reuse(tmp_path: Path) -> None:
    from toolkit.encoding.reuse import open_old

    with pytest.raises(BadInput, match="is the output_dir itself"):
        open_old(str(tmp_path / "a" / ".." / "b"), output_dir=tmp_path / "b", facts={})
