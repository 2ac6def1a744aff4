"""Documents as tokens on disk, and the blocks that they are packed into.

Knows the files: one safetensors of flat token ids per text shard, one of packed blocks beside it
for each block length. Refuses to know models, ranks, and in which order blocks are read.

Layout, all of it made from the text shards and safe to delete:
    SHARDS/.cache/tokens-<digest>/
        tokens-00000.safetensors        ids, document_offsets, cuts, cut_offsets
        blocks-512-00000.safetensors    starts, lengths, block_offsets
A .json beside each file says what it holds; a manifest is written when all of them are there.
"""

import functools
import hashlib
import itertools
import json
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save

from toolkit.files import BadInput, read_json, write_atomic, write_json
from toolkit.text.manifest import MANIFEST
from toolkit.text.packing import pack_documents
from toolkit.text.shards import CACHE
from toolkit.text.tokens import TextTokenizer

FORMAT = "toolkit-tokens/3"  # raise it when the same shards and tokenizer give other files
BATCH_ROWS = 256

Ids = NDArray[np.int64]
Entry = dict[str, Any]


@dataclass(frozen=True)
class TokenFiles:
    """The token files of one shard directory, one tokenizer and one block length, made or not."""

    shards: Path
    tokenizer: TextTokenizer
    block_tokens: int

    @property
    def wrap(self) -> int:
        """How many tokens stand around each document: a begin token, usually."""
        return len(self.tokenizer.prefix_ids) + len(self.tokenizer.suffix_ids)

    @functools.cached_property
    def directory(self) -> Path:
        """Named after all that decides its content, so that a stale one is never taken."""
        sources = [entry["sha256"] for entry in self.sources]
        identity = json.dumps([FORMAT, self.tokenizer.digest, sources])
        name = f"tokens-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        beside = self.shards / CACHE / name
        if beside.is_dir() or os.access(self.shards, os.W_OK):
            return beside
        # Where the Arrow copy of read-only shards goes too.
        default = os.environ.get("HF_DATASETS_CACHE") or "~/.cache/huggingface/datasets"
        return Path(default).expanduser() / name

    @functools.cached_property
    def sources(self) -> list[Entry]:
        """The text shards, as their manifest names them."""
        entries: list[Entry] = read_json(self.shards / MANIFEST)["shards"]
        return entries

    def is_complete(self) -> bool:
        """Whether everything has been made."""
        return (self.directory / self.manifest).is_file()

    @property
    def manifest(self) -> str:
        """The file that lists all others; it is written last."""
        return f"blocks-{self.block_tokens}.json"


def make_token_files(
    files: TokenFiles, *, part: int, parts: int, on_shard: Callable[[int], None] = lambda _: None
) -> None:
    """Tokenise and pack the shards part, part + parts, ...; what is there already is kept.

    Any number of processes may do so at once, on the same part too: equal input gives equal bytes
    and each file appears whole. `on_shard` gets the tokens of each shard. Raises `BadInput` when
    the directory cannot be written.
    """
    directory, sources = files.directory, files.sources
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(part, len(sources), parts):
            tokens = directory / f"tokens-{number:05d}.safetensors"
            if not _is_made(tokens):
                text = files.shards / sources[number]["file"]
                _write_tokens(tokens, text=text, tokenizer=files.tokenizer)
            blocks = directory / f"blocks-{files.block_tokens}-{number:05d}.safetensors"
            if not _is_made(blocks):
                _write_blocks(blocks, tokens=tokens, files=files)
            on_shard(int(read_json(_note(tokens))["ids"]))
    except OSError as error:
        raise BadInput(
            f"{directory}: cannot hold the tokens of {files.shards} ({error.strerror}); make room "
            "there, or copy the shards to where this user may write"
        ) from error


def finish_token_files(files: TokenFiles) -> bool:
    """Write the manifest when all files are there; returns whether they are."""
    directory = files.directory
    listed: dict[str, list[Entry]] = {"tokens": [], f"blocks-{files.block_tokens}": []}
    for kind, entries in listed.items():
        for number in range(len(files.sources)):
            path = directory / f"{kind}-{number:05d}.safetensors"
            if not _is_made(path):
                return False
            entries.append({"file": path.name, **read_json(_note(path))})
    tokens, blocks = listed.values()
    num_blocks = sum(entry["blocks"] for entry in blocks)
    num_tokens = sum(entry["ids"] for entry in tokens)
    content = {
        "format": FORMAT,
        "tokenizer_sha256": files.tokenizer.digest,
        "documents": sum(entry["documents"] for entry in tokens),
        "tokens": num_tokens,
        "cut_documents": sum(entry["cut_documents"] for entry in blocks),
        "blocks": num_blocks,
        # Begin tokens count as filled: they are trained through like all others.
        "efficiency": round(
            (num_tokens + sum(entry["pieces"] for entry in blocks) * files.wrap)
            / (num_blocks * files.block_tokens or 1),
            6,
        ),
        "token_files": tokens,
        "block_files": blocks,
    }
    write_json(directory / files.manifest, content)
    return True


class TokenSet:
    """The tokens of all shards, memory-mapped: a file is opened, and its digest checked, when it
    is first read. `manifest` is what `finish_token_files` wrote.
    """

    def __init__(self, files: TokenFiles) -> None:
        self._directory = files.directory
        self._sources = files.sources
        self.manifest: Entry = read_json(self._directory / files.manifest)
        self._prefix = np.array(files.tokenizer.prefix_ids, dtype=np.int64)
        self._suffix = np.array(files.tokenizer.suffix_ids, dtype=np.int64)
        self._block_tokens = files.block_tokens
        self._opened: dict[str, dict[str, NDArray[Any]]] = {}
        self._ends = _ends(self.manifest["block_files"], key="blocks")
        lengths = [
            {"blocks": -(-(entry["ids"] + entry["documents"] * files.wrap) // self._block_tokens)}
            for entry in self.manifest["token_files"]
        ]
        self._crossing_ends = _ends(lengths, key="blocks")

    @property
    def summary(self) -> str:
        """What there is, in one line for people."""
        told = self.manifest
        return (
            f"{told['tokens']:,} tokens of {told['documents']:,} documents "
            f"({told['cut_documents']:,} of them cut) in {told['blocks']:,} blocks of "
            f"{self._block_tokens}, {told['efficiency']:.2%} full"
        )

    @property
    def num_blocks(self) -> int:
        """How many blocks of documents with their boundaries there are."""
        return int(self._ends[-1])

    @property
    def num_crossing_blocks(self) -> int:
        """How many blocks there are when documents run on from one block into the next."""
        return int(self._crossing_ends[-1])

    def block(self, index: int) -> list[Ids]:
        """The documents, or pieces of them, of a block, each with its special tokens."""
        shard, inside = _place(self._ends, index)
        tokens = self._arrays("token_files", shard)
        blocks = self._arrays("block_files", shard)
        first, last = blocks["block_offsets"][inside : inside + 2].tolist()
        spans = zip(
            blocks["starts"][first:last].tolist(),
            blocks["lengths"][first:last].tolist(),
            strict=True,
        )
        return [self._wrapped(tokens["ids"][start : start + length]) for start, length in spans]

    def crossing_block(self, index: int) -> list[Ids]:
        """The block of the reference (run_mntp.py): `block_tokens` of a shard's documents in a row.

        Documents follow one another without a boundary and are cut wherever a block ends. The
        last block of a shard is shorter, where the reference drops it.
        """
        shard, inside = _place(self._crossing_ends, index)
        arrays = self._arrays("token_files", shard)
        offsets = arrays["document_offsets"]
        ends = self._wrapped_ends(offsets)
        start = inside * self._block_tokens
        found: list[Ids] = []
        row = int(np.searchsorted(ends, start, side="right"))
        skip = start - (int(ends[row - 1]) if row else 0)
        wanted = self._block_tokens
        while wanted > 0 and row < len(ends):
            document = self._wrapped(arrays["ids"][offsets[row] : offsets[row + 1]])
            piece = document[skip : skip + wanted]
            found.append(piece)
            wanted -= len(piece)
            row, skip = row + 1, 0
        return [np.concatenate(found)]

    def rows_of_block(self, index: int, *, crossing: bool) -> tuple[str, list[int]]:
        """The text shard of a block, and which rows of it the block holds something of."""
        shard, inside = _place(self._crossing_ends if crossing else self._ends, index)
        offsets = self._arrays("token_files", shard)["document_offsets"]
        if crossing:
            ends = self._wrapped_ends(offsets)
            start = inside * self._block_tokens
            first, last = np.searchsorted(ends, [start, start + self._block_tokens - 1], "right")
            rows = list(range(int(first), min(int(last) + 1, len(ends))))
        else:
            blocks = self._arrays("block_files", shard)
            pieces = slice(*blocks["block_offsets"][inside : inside + 2].tolist())
            found = np.searchsorted(offsets, blocks["starts"][pieces], side="right") - 1
            rows = sorted(set(found.tolist()))
        return str(self._sources[shard]["file"]), rows

    def document(self, shard: int, row: int) -> NDArray[Any]:
        """The own tokens of a document: a view of the file, not a copy."""
        arrays = self._arrays("token_files", shard)
        first, last = arrays["document_offsets"][row : row + 2].tolist()
        return arrays["ids"][first:last]

    def _wrapped_ends(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where documents end when each has its special tokens."""
        wrap = len(self._prefix) + len(self._suffix)
        ends: NDArray[np.int64] = offsets[1:] + np.arange(1, len(offsets)) * wrap
        return ends

    def _wrapped(self, ids: NDArray[Any]) -> Ids:
        return np.concatenate([self._prefix, ids.astype(np.int64), self._suffix])

    def _arrays(self, kind: str, shard: int) -> dict[str, NDArray[Any]]:
        entry = self.manifest[kind][shard]
        if entry["file"] not in self._opened:
            path = self._directory / entry["file"]
            self._opened[entry["file"]] = map_arrays(path, sha256=entry["sha256"])
        return self._opened[entry["file"]]


def open_tokens(files: TokenFiles) -> TokenSet:
    """Open what `make_token_files` and `finish_token_files` made; `BadInput` when it is not."""
    if not files.is_complete():
        raise BadInput(
            f"{files.shards}: is not tokenised to its end for this model and "
            f"{files.block_tokens} tokens; run: python data_scripts/tokenize_shards.py --shards "
            f"{files.shards} --max-tokens {files.block_tokens} --model MODEL"
        )
    return TokenSet(files)


def map_arrays(path: Path, *, sha256: str) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file as views of its memory map; `BadInput` when it changed."""
    try:
        with path.open("rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); delete {path.parent}") from error
    if hashlib.sha256(mapped).hexdigest() != sha256:
        raise BadInput(f"{path}: is damaged (its SHA-256 differs); delete {path.parent}")
    # https://huggingface.co/docs/safetensors: 8 bytes with the header's size, the header, the data.
    size = int.from_bytes(mapped[:8], "little")
    header = json.loads(mapped[8 : 8 + size])
    arrays = {}
    for name, about in header.items():
        if name != "__metadata__":
            dtype = np.dtype(
                {"U16": "<u2", "U32": "<u4", "I32": "<i4", "I64": "<i8"}[about["dtype"]]
            )
            begin, end = about["data_offsets"]
            arrays[name] = np.frombuffer(
                mapped, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=8 + size + begin
            )
    return arrays


def _write_tokens(path: Path, *, text: Path, tokenizer: TextTokenizer) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    ids: list[NDArray[Any]] = [np.array([], dtype=dtype)]
    cuts: list[NDArray[Any]] = [np.array([], dtype=np.int64)]
    for texts, marks in _documents(text):
        for own, places in tokenizer.tokenize(texts, marks=marks):
            ids.append(own.astype(dtype))
            cuts.append(places)
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.concatenate(ids),
        "document_offsets": np.cumsum([0, *map(len, ids[1:])], dtype=np.int64),
        "cut_offsets": np.cumsum([0, *map(len, cuts[1:])], dtype=np.int64),
        "cuts": np.concatenate(cuts),
    }
    _write(path, arrays, told={"ids": len(arrays["ids"]), "documents": len(ids) - 1})


def _documents(path: Path) -> Iterator[tuple[list[str], list[Ids]]]:
    """The texts of a shard and the characters where their sentences start, some rows at a time."""
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=["text", "sentence_starts"]):
        marks = [np.array(row, dtype=np.int64) for row in batch["sentence_starts"].to_pylist()]
        yield batch["text"].to_pylist(), marks


def _write_blocks(path: Path, *, tokens: Path, files: TokenFiles) -> None:
    arrays = map_arrays(tokens, sha256=read_json(_note(tokens))["sha256"])
    bounds = arrays["cut_offsets"].tolist()
    cuts = [arrays["cuts"][a:b] for a, b in itertools.pairwise(bounds)]
    offsets = arrays["document_offsets"]
    packing = pack_documents(offsets, cuts=cuts, room=files.block_tokens, wrap=files.wrap)
    owners = np.searchsorted(offsets, packing.starts, side="right")
    packed: dict[str, NDArray[Any]] = {
        "starts": packing.starts,
        "lengths": packing.lengths.astype(np.int32),
        "block_offsets": packing.block_offsets,
    }
    told = {
        "blocks": len(packing.block_offsets) - 1,
        "pieces": len(packing.starts),
        "cut_documents": int((np.bincount(owners) > 1).sum()),
    }
    _write(path, packed, told=told)


def _write(path: Path, arrays: dict[str, NDArray[Any]], *, told: Entry) -> None:
    data = save(arrays)
    write_atomic(path, data)
    note: Entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(_note(path), note | told)


def _is_made(path: Path) -> bool:
    note = _note(path)
    return note.is_file() and path.is_file() and path.stat().st_size == read_json(note)["bytes"]


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def _ends(entries: list[Entry], *, key: str) -> NDArray[np.int64]:
    return np.cumsum([entry[key] for entry in entries], dtype=np.int64)


def _place(ends: NDArray[np.int64], index: int) -> tuple[int, int]:
    shard = int(np.searchsorted(ends, index, side="right"))
    return shard, index - (int(ends[shard - 1]) if shard else 0)
