"""Files that somebody has made to hurt: every reader refuses them with a `BadInput`, or reads what
is there. Never another exception."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save
from tokenizers import Tokenizer

from tests.encoding.making import output_of, write_all
from tests.text.making import shard_articles
from toolkit import verify
from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, read_json_lines, sha256_of, write_json
from toolkit.base.sealed import SELF_DIGEST, content_digest
from toolkit.base.tensor_header import BITS, read_header
from toolkit.encoding.index import Index, build_index
from toolkit.encoding.output import Output
from toolkit.encoding.store import VectorStore
from toolkit.model.backbone import weight_files
from toolkit.model.tensor_file import StoredTensors
from toolkit.settings.model_source import resolve_model
from toolkit.text.pairs import Pair, PairTask, open_pairs, write_pairs
from toolkit.text.records import Article
from toolkit.text.shards import checked_manifest
from toolkit.text.token_files import map_arrays
from toolkit.text.token_shards import (
    TokenFiles,
    finish_token_files,
    make_token_files,
    open_tokens,
)
from toolkit.text.tokens import TextTokenizer

VECTORS = np.arange(1, 25, dtype=np.float32).reshape(6, 4)
DEEP = "[" * 100_000
NUMBERS = st.sampled_from([-1, -16, 0, 1, 4, 16, 48, 96, 2**31, 2**63, 10**30, 1.5, 1e300, True])
JUNK = st.one_of(
    NUMBERS,
    st.sampled_from([None, "", "F32", "../../etc/passwd", "\ud800", [], {}, [[]], {"a": None}]),
    st.lists(NUMBERS, max_size=3),
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([*BITS, "F33", "U8"]), JUNK),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), JUNK),
        "data_offsets": st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), JUNK),
        "more": JUNK,
    },
)
NAMES = st.sampled_from(["vectors", "scales", "crc32", "ids", "__metadata__", "", "\ud800"])
HEADERS = st.one_of(
    st.dictionaries(NAMES, st.one_of(ENTRY, JUNK), max_size=4).map(json.dumps),
    JUNK.map(json.dumps),
    st.sampled_from(["", "{", DEEP, '{"a":' * 50_000, "[" + "9" * 5000 + "]", '{"a":1,"a":2}']),
)


def file_of(header: str | bytes, *, data: bytes, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


@contextlib.contextmanager
def only_bad_input() -> Iterator[None]:
    """What follows may be refused, in a line that a terminal can print."""
    try:
        yield
    except BadInput as error:
        said = str(error)
        said.encode()
        assert "\n" not in said, said


def resealed(path: Path, content: Any) -> None:
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key != SELF_DIGEST}
        with contextlib.suppress(ValueError, RecursionError):
            content = {**kept, SELF_DIGEST: content_digest(kept)}
    path.write_text(json.dumps(content), encoding="utf-8", errors="surrogatepass")


def read_as_unit(path: Path) -> None:
    """As the vectors of a unit of an older toolkit, which has only the digest of the file."""
    folder = path.parent / "enc"
    manifest = read_json(folder / "manifest.json")
    shutil.copy(path, folder / "units" / "00000.safetensors")
    marker = manifest["units"]["00000"]
    marker.pop("blocks", None)
    marker["sha256"]["00000.safetensors"] = sha256_of(path)
    resealed(folder / "manifest.json", manifest)
    VectorStore(folder).read([0, 5])


def read_as_weights(path: Path) -> None:
    stored = StoredTensors([path])
    for name in stored:
        assert stored[name].shape == torch.Size(stored.shape(name))


HEADER_READERS: dict[str, Callable[[Path], object]] = {
    "header": read_header,
    "unit": read_as_unit,
    "weights": read_as_weights,
    "tokens": lambda path: map_arrays(path, sha256=sha256_of(path)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    write_all(output_of(folder / "enc", rows=6, unit_rows=6), VECTORS)
    return folder / "t.safetensors"


@pytest.mark.parametrize("reader", HEADER_READERS)
@settings(deadline=None, max_examples=150)
@given(header=HEADERS, data=st.sampled_from([b"", bytes(16), VECTORS.tobytes()]))
@example(header=DEEP, data=b"")
@example(header=json.dumps({"vectors": []}), data=bytes(96))
@example(header='{"vectors":{"dtype":"F32","shape":[6,4],"data_offsets":[-16,80]}}', data=bytes(96))
@example(header='{"vectors":{"dtype":"F32","shape":[0],"data_offsets":[-16,0]}}', data=b"")
@example(header='{"vectors":{"dtype":[],"shape":[6,4],"data_offsets":[0,96]}}', data=bytes(96))
def test_a_hostile_header_is_refused_by_every_reader(
    reader: str, header: str, data: bytes, place: Path
) -> None:
    place.write_bytes(file_of(header, data=data))
    with only_bad_input():
        HEADER_READERS[reader](place)


@pytest.mark.parametrize("reader", HEADER_READERS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8,
        file_of("{}", data=b"", size=2**63),
        file_of("{}", data=b"", size=3),
        file_of(b"\xff\xfe{}", data=b""),
        file_of("{}".encode("utf-16"), data=b""),
    ],
)
def test_what_is_no_file_at_all_is_refused(reader: str, content: bytes, place: Path) -> None:
    place.write_bytes(content)
    with pytest.raises(BadInput):
        HEADER_READERS[reader](place)


def places_of(*entries: tuple[str, list[int], list[int]]) -> str:
    return json.dumps(
        {
            f"t{n}": {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            for n, (dtype, shape, offsets) in enumerate(entries)
        }
    )


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (places_of(("F32", [2], [0, 8]), ("F32", [2], [4, 12])), "does not begin where"),
        (places_of(("F32", [2], [0, 8]), ("F32", [1], [12, 16])), "does not begin where"),
        (places_of(("F32", [2], [4, 12])), "does not begin where"),
        (places_of(("F32", [3], [0, 12])), "its tensors end at"),
        (places_of(("F32", [5], [0, 20])), "its tensors end at"),
        (places_of(("F32", [4], [0, 15])), "another number of bytes than its shape needs"),
        (places_of(("F32", [2], [8, 0])), "invalid data_offsets"),
        (places_of(("F32", [0, 2**62, 2**62], [0, 0])), "too large"),
        (places_of(("F32", [1] * 65, [0, 4])), "an invalid shape"),
        (places_of(("F33", [4], [0, 16])), "unknown dtype"),
    ],
)
def test_tensors_lie_in_a_row_and_fill_the_file(header: str, why: str, place: Path) -> None:
    place.write_bytes(file_of(header, data=bytes(16)))
    with pytest.raises(BadInput, match=f"t.safetensors: is not a whole safetensors file.*{why}"):
        read_header(place)


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([np.float32, np.int8, np.uint16, np.int64]),
)
def test_what_the_package_writes_is_read_as_the_package_reads_it(
    shapes: list[list[int]], dtype: Any, place: Path
) -> None:
    place.write_bytes(save({f"t{n}": np.ones(shape, dtype) for n, shape in enumerate(shapes)}))
    found = read_header(place)
    with safe_open(place, framework="np") as theirs:
        assert {n: list(p.shape) for n, p in found.items()} == {
            name: theirs.get_slice(name).get_shape()
            for name in theirs.keys()  # noqa: SIM118
        }
    data = place.read_bytes()
    assert all(data[p.begin : p.end] == np.ones(p.shape, dtype).tobytes() for p in found.values())


# Documents: each is valid but for one thing, and its own digest is right.

Open = Callable[[Path], object]


def open_encoding(folder: Path) -> None:
    store = VectorStore(folder)
    store.read([0])
    store.facts([0])
    store.vectors()


def finish_encoding(folder: Path) -> None:
    other = output_of(folder.parent / "other", rows=6, unit_rows=2)
    output = Output(folder, other.digest, other.units)
    output.damaged(output.units)
    output.is_in_manifest(["00001"])
    output.write_manifest()


def tokens_of(folder: Path) -> TokenFiles:
    inner = Tokenizer.from_file(str(folder.parent / "tokenizer.json"))
    tokenizer = TextTokenizer(inner, special_ids=[1, 2, 3], pad_id=3, max_tokens=32)
    return TokenFiles(shards=folder, tokenizer=tokenizer, block_tokens=32)


def open_token_set(folder: Path) -> None:
    found = open_tokens(tokens_of(folder))
    if found.num_blocks:
        found.block(0)
    if found.num_crossing_blocks:
        found.crossing_block(0)


def make_token_set(folder: Path) -> None:
    make_token_files(tokens_of(folder), part=0, parts=1)
    finish_token_files(tokens_of(folder))


def open_pair_set(folder: Path) -> None:
    if len((found := open_pairs(folder)).tasks):
        found.pair(0, 0)


DOCUMENTS: dict[str, tuple[str, str, Open]] = {
    "manifest of vectors": ("enc", "manifest.json", open_encoding),
    "marker": ("enc", "units/00001.json", finish_encoding),
    "marker, when all is compared": (
        "enc",
        "units/00001.json",
        lambda folder: VectorStore(folder, verify=True),
    ),
    "plan": ("enc", "plan.json", lambda folder: VectorStore(folder, verify=True)),
    "index": ("enc", "index/flat.json", lambda f: Index(VectorStore(f), kind="flat")),
    "index that is gone on with": (
        "enc",
        "index/flat.json",
        lambda folder: build_index(VectorStore(folder), kind="flat"),
    ),
    "manifest of shards": ("s", "manifest.json", lambda f: checked_manifest(f, verify=True)),
    "manifest of shards, by its door": ("s", "manifest.json", lambda f: verify.main([str(f)])),
    "manifest of tokens": ("s", "blocks-32.json", open_token_set),
    "note of tokens": ("s", "tokens-00000.json", make_token_set),
    "note of blocks": ("s", "blocks-32-00000.json", make_token_set),
    "manifest of pairs": ("pairs", "manifest.json", open_pair_set),
    "merges": ("merges", "merged.json", lambda folder: verify.main([str(folder)])),
    "choice": ("scores", "chosen.json", lambda folder: resolve_model(str(folder))),
    "index of weights": ("model", "model.safetensors.index.json", weight_files),
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    write_all(output_of(folder / "enc", rows=6, unit_rows=2), VECTORS)
    pytest.importorskip("faiss")
    build_index(VectorStore(folder / "enc"), kind="flat")
    shutil.copy(tiny_model / "tokenizer.json", folder)
    articles = [Article(id=str(n), title="", url="", text="Some words. " * n) for n in range(1, 9)]
    shard_articles(articles, output=folder / "s")
    make_token_set(folder / "s")
    pairs = [Pair("a", "b", ("c",)), Pair("d", "e")]
    write_pairs([(PairTask("x"), iter(pairs))], output=folder / "pairs", sources=[], quarantine=[])
    (folder / "merges").mkdir()
    write_json(folder / "merges" / "merged.json", {"merges": {"0.5": [0.5, 0.5]}})
    (folder / "scores").mkdir()
    write_json(folder / "scores" / "chosen.json", {"model": "owner/name", "encoder": "a"})
    (folder / "model").mkdir()
    told = {"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}
    write_json(folder / "model" / "model.safetensors.index.json", told)
    return folder


def harmed(content: Any, data: st.DataObject) -> Any:
    """With another value, or none, at one place, however deep."""
    if isinstance(content, dict | list) and content and data.draw(st.booleans(), "deeper"):
        keys = sorted(content) if isinstance(content, dict) else range(len(content))
        key = data.draw(st.sampled_from(keys), "key")
        copy = content.copy()
        if data.draw(st.integers(0, 5), "gone") == 0:
            del copy[key]
        else:
            copy[key] = harmed(content[key], data)
        return copy
    return data.draw(JUNK, "junk")


@pytest.mark.parametrize("kind", DOCUMENTS)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_hostile_document_is_refused_or_does_no_harm(
    kind: str, data: st.DataObject, things: Path
) -> None:
    name, file, open_ = DOCUMENTS[kind]
    (path,) = (things / name).glob(file if "/" in file else f"**/{file}")
    before = {p: p.read_bytes() for p in (things / name).rglob("*.json")}
    try:
        resealed(path, harmed(json.loads(before[path]), data))
        with only_bad_input():
            open_(things / name)
    finally:
        for one, content in before.items():
            one.write_bytes(content)


@pytest.mark.parametrize("wrong", [-1, "x", [1], {"limit": "x"}, {"limit": -1}])
def test_settings_of_shards_that_say_nothing_valid_are_refused(wrong: object, things: Path) -> None:
    path = things / "s" / "manifest.json"
    before = path.read_bytes()
    try:
        resealed(path, {**json.loads(before), "settings": wrong})
        with pytest.raises(BadInput, match="settings"):
            checked_manifest(things / "s", verify=False)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("kind", DOCUMENTS)
@pytest.mark.parametrize("text", [DEEP, "", "null", "[]", "17", "{}", "9" * 5000, '"\\ud800"'])
def test_what_is_no_such_document_is_refused(kind: str, text: str, things: Path) -> None:
    name, file, open_ = DOCUMENTS[kind]
    (path,) = (things / name).glob(file if "/" in file else f"**/{file}")
    before = {p: p.read_bytes() for p in (things / name).rglob("*.json")}
    path.write_text(text)
    try:
        with only_bad_input():
            open_(things / name)
    finally:
        for one, content in before.items():
            one.write_bytes(content)


def test_lines_that_are_no_objects_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n17\n' + DEEP.encode() + b'\n\xff\n{"step": 2}\n{"st')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
