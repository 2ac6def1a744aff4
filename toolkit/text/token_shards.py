"""Documents as tokens on disk, and the blocks that they are packed into.

Knows the files: for each text shard one safetensors file of flat token ids and, for each block
length, one of packed blocks. Refuses to know models, ranks, and the order in which blocks are read.

Layout; all of it is made from the text shards and can be deleted at any time:
    SHARDS/.cache/tokens-<digest>/
        tokens-00000.safetensors        ids, document_offsets, cuts, cut_offsets
        blocks-512-00000.safetensors    starts, lengths, block_offsets
        blocks-512-without-256-42-00000.safetensors    the same without the 256 documents that
                                                       seed 42 holds out
Beside each file a .json (its note) says what it holds; a manifest is written when all files exist.
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.base.files import write_json
from toolkit.base.sealed import sealed
from toolkit.text.copies import CACHE
from toolkit.text.held_out import NOTHING, HeldOut
from toolkit.text.packing import pack_documents
from toolkit.text.shards import checked_manifest
from toolkit.text.token_files import (
    BLOCK_ARRAYS,
    TOKEN_ARRAYS,
    Entry,
    counts_of,
    is_made,
    listed_in,
    made_again,
    map_arrays,
    note_of,
    write_arrays,
)
from toolkit.text.tokens import TextTokenizer

FORMAT = "toolkit-tokens/3"  # raise it when the same shards and tokenizer would give other files
BATCH_ROWS = 256

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class TokenFiles:
    """The token files for one shard directory, tokenizer and block length, without the documents
    that are held out. The files need not exist yet."""

    shards: Path
    tokenizer: TextTokenizer
    block_tokens: int
    held_out: HeldOut = NOTHING

    @property
    def wrap(self) -> int:
        """The number of tokens put around each document: usually one, a begin token."""
        return len(self.tokenizer.prefix_ids) + len(self.tokenizer.suffix_ids)

    @functools.cached_property
    def directory(self) -> Path:
        """The directory of the files. Its name is a digest of everything that decides its content,
        so that stale files are never used."""
        sources = [entry["sha256"] for entry in self.sources]
        identity = json.dumps([FORMAT, self.tokenizer.digest, sources])
        name = f"tokens-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        beside = self.shards / CACHE / name
        if beside.is_dir() or os.access(self.shards, os.W_OK):
            return beside
        # The cache in which `datasets` also puts the Arrow copy of read-only shards.
        default = os.environ.get("HF_DATASETS_CACHE") or "~/.cache/huggingface/datasets"
        return Path(default).expanduser() / name

    @functools.cached_property
    def sources(self) -> list[Entry]:
        """The entries of the text shards in their manifest."""
        manifest = checked_manifest(self.shards, verify=False)
        entries: list[Entry] = manifest["shards"]
        return entries

    def is_complete(self) -> bool:
        """Whether all files, and the manifest, have been made."""
        return (self.directory / self.manifest).is_file()

    @property
    def manifest(self) -> str:
        """The name of the file that lists all others; it is written last."""
        return f"{self.blocks}.json"

    @property
    def blocks(self) -> str:
        """What the names of the files of blocks begin with."""
        name = f"blocks-{self.block_tokens}"
        if self.held_out.documents:
            name += f"-without-{self.held_out.documents}-{self.held_out.seed}"
        return name

    @functools.cached_property
    def held_out_rows(self) -> list[Ids]:
        """The rows of each shard that are held out. Raises `BadInput` if no row would be left to
        train on."""
        ends = _ends(self.sources, key="rows")
        rows = self.held_out.rows(int(ends[-1]) if len(ends) else 0)
        starts = np.concatenate([[0], ends[:-1]])
        parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
        return [part - start for part, start in zip(parts, starts.tolist(), strict=True)]


def make_token_files(
    files: TokenFiles, *, part: int, parts: int, on_shard: Callable[[int], None] = lambda _: None
) -> None:
    """Tokenise and pack the shards part, part + parts, ...; files that exist are kept.

    Any number of processes may do this at once, even for the same part: equal input gives equal
    bytes, and each file appears whole. `on_shard` gets the number of tokens of each shard. Raises
    `BadInput` when the directory cannot be written.
    """
    directory, sources = files.directory, files.sources
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(part, len(sources), parts):
            tokens = directory / f"tokens-{number:05d}.safetensors"
            if not is_made(tokens):
                text = files.shards / sources[number]["file"]
                _write_tokens(tokens, text=text, tokenizer=files.tokenizer)
            blocks = directory / f"{files.blocks}-{number:05d}.safetensors"
            if not is_made(blocks):
                held_out = files.held_out_rows[number]
                _write_blocks(blocks, tokens=tokens, files=files, held_out=held_out)
            on_shard(int(note_of(tokens)["ids"]))
    except OSError as error:
        raise BadInput(
            f"{directory}: cannot hold the tokens of {files.shards} ({error.strerror}); make room "
            "there, or copy the shards to where this user may write"
        ) from error


def finish_token_files(files: TokenFiles) -> bool:
    """Write the manifest if all files exist; returns whether they do."""
    directory = files.directory
    listed: dict[str, list[Entry]] = {"tokens": [], files.blocks: []}
    for kind, entries in listed.items():
        for number in range(len(files.sources)):
            path = directory / f"{kind}-{number:05d}.safetensors"
            if not is_made(path):
                return False
            entries.append({"file": path.name, **note_of(path)})
    tokens, blocks = listed.values()
    num_blocks = sum(entry["blocks"] for entry in blocks)
    num_tokens = sum(entry["ids"] for entry in blocks)
    content = {
        "format": FORMAT,
        "tokenizer_sha256": files.tokenizer.digest,
        "documents": sum(entry["documents"] for entry in tokens),
        "held_out_documents": files.held_out.documents,
        "tokens": num_tokens,
        "cut_documents": sum(entry["cut_documents"] for entry in blocks),
        "blocks": num_blocks,
        # Begin tokens count as filled: they take part in training like all other tokens.
        "efficiency": round(
            (num_tokens + sum(entry["pieces"] for entry in blocks) * files.wrap)
            / (num_blocks * files.block_tokens or 1),
            6,
        ),
        "token_files": tokens,
        "block_files": blocks,
    }
    write_json(directory / files.manifest, sealed(content))
    return True


class TokenSet:
    """The tokens of all shards, memory-mapped. A file is opened, and compared with its digest, when
    it is first read. `manifest` is what `finish_token_files` wrote.
    """

    def __init__(self, files: TokenFiles) -> None:
        self._directory = files.directory
        self._sources, self._held_out_rows = files.sources, files.held_out_rows
        self.manifest = listed_in(self._directory / files.manifest, num_shards=len(self._sources))
        self._prefix = np.array(files.tokenizer.prefix_ids, dtype=np.int64)
        self._suffix = np.array(files.tokenizer.suffix_ids, dtype=np.int64)
        self.block_tokens, self.wrap = files.block_tokens, files.wrap
        for entry in self.manifest["token_files"]:
            where = str(self._directory / entry["file"])
            files.tokenizer.check_largest(entry["max_id"], where=where)
        self._opened: dict[str, dict[str, NDArray[Any]]] = {}
        self._ends = _ends(self.manifest["block_files"], key="blocks")
        # Crossing blocks are not stored: their bounds follow from the tokens of a shard alone. The
        # double minus rounds up, because the last block of a shard may be short.
        lengths = [
            {"blocks": -(-(entry["ids"] + entry["documents"] * files.wrap) // self.block_tokens)}
            for entry in self.manifest["block_files"]
        ]
        self._crossing_ends = _ends(lengths, key="blocks")

    @property
    def summary(self) -> str:
        """What the files hold, in one line for people."""
        manifest = self.manifest
        held_out = manifest["held_out_documents"]
        return (
            f"{manifest['tokens']:,} tokens of {manifest['documents'] - held_out:,} documents "
            f"({manifest['cut_documents']:,} of them cut) in {manifest['blocks']:,} blocks of "
            f"{self.block_tokens}, {manifest['efficiency']:.2%} full"
        ) + (f"; {held_out:,} documents are held out" if held_out else "")

    @property
    def num_blocks(self) -> int:
        """The number of blocks of documents with their boundaries."""
        return int(self._ends[-1])

    @property
    def num_crossing_blocks(self) -> int:
        """The number of blocks if documents run on from one block into the next."""
        return int(self._crossing_ends[-1])

    def block(self, index: int) -> list[Ids]:
        """The documents, or pieces of documents, in a block, each with its special tokens."""
        shard, inside = _place(self._ends, index)
        tokens = self._arrays("token_files", shard)
        blocks = self._arrays("block_files", shard)
        first, last = blocks["block_offsets"][inside : inside + 2].tolist()
        spans = zip(
            blocks["starts"][first:last].tolist(),
            blocks["lengths"][first:last].tolist(),
            strict=True,
        )
        return [self.wrapped(tokens["ids"][start : start + length]) for start, length in spans]

    def crossing_block(self, index: int) -> list[Ids]:
        """A block as the reference (run_mntp.py) makes it: the next `block_tokens` tokens of a
        shard.

        Documents follow one another without a boundary, and are cut wherever a block ends. The last
        block of a shard may be shorter; the reference drops it.
        """
        shard, inside = _place(self._crossing_ends, index)
        rows, ends = self._run(shard)
        start = inside * self.block_tokens
        pieces: list[Ids] = []
        # The first document that reaches into the block, and how many of its tokens come before it.
        place = int(np.searchsorted(ends, start, side="right"))
        skip = start - (int(ends[place - 1]) if place else 0)
        wanted = self.block_tokens
        for row in rows[place:]:
            piece = self.wrapped(self.document(shard, row))[skip : skip + wanted]
            pieces.append(piece)
            wanted, skip = wanted - len(piece), 0
            if not wanted:
                break
        return [np.concatenate(pieces)]

    def rows_of_block(self, index: int, *, crossing: bool) -> tuple[str, list[int]]:
        """The text shard of a block, and the rows of it whose documents are (partly) in the
        block."""
        shard, inside = _place(self._crossing_ends if crossing else self._ends, index)
        if crossing:
            run, ends = self._run(shard)
            start = inside * self.block_tokens
            first, last = np.searchsorted(ends, [start, start + self.block_tokens - 1], "right")
            rows = run[first : last + 1].tolist()
        else:
            offsets = self._arrays("token_files", shard)["document_offsets"]
            blocks = self._arrays("block_files", shard)
            pieces = slice(*blocks["block_offsets"][inside : inside + 2].tolist())
            numbers = np.searchsorted(offsets, blocks["starts"][pieces], side="right") - 1
            rows = sorted(set(numbers.tolist()))
        return self.shard_name(shard), rows

    def shard_name(self, shard: int) -> str:
        """The file name of a text shard."""
        return str(self._sources[shard]["file"])

    def held_out(self) -> Iterator[tuple[int, int]]:
        """The shard and the row of each document that is held out."""
        for shard, rows in enumerate(self._held_out_rows):
            yield from ((shard, row) for row in rows.tolist())

    def document(self, shard: int, row: int) -> NDArray[Any]:
        """The tokens of a document without special tokens: a view of the file, not a copy."""
        arrays = self._arrays("token_files", shard)
        first, last = arrays["document_offsets"][row : row + 2].tolist()
        return arrays["ids"][first:last]

    def cuts(self, shard: int, row: int) -> NDArray[Any]:
        """The places (in tokens) of a document at which its sentences start."""
        arrays = self._arrays("token_files", shard)
        first, last = arrays["cut_offsets"][row : row + 2].tolist()
        return arrays["cuts"][first:last]

    def wrapped(self, ids: NDArray[Any]) -> Ids:
        """The tokens of a document with special tokens around them."""
        return np.concatenate([self._prefix, ids.astype(np.int64), self._suffix])

    def _run(self, shard: int) -> tuple[Ids, Ids]:
        """The rows of a shard that are trained on, and where each ends in the run of tokens that
        crossing blocks are cut from."""
        lengths = np.diff(self._arrays("token_files", shard)["document_offsets"])
        rows = np.delete(np.arange(len(lengths)), self._held_out_rows[shard])
        return rows, np.cumsum(lengths[rows] + self.wrap)

    def _arrays(self, kind: str, shard: int) -> dict[str, NDArray[Any]]:
        entry = self.manifest[kind][shard]
        if entry["file"] not in self._opened:
            path = self._directory / entry["file"]
            names = TOKEN_ARRAYS if kind == "token_files" else BLOCK_ARRAYS
            arrays = map_arrays(path, sha256=entry["sha256"], names=names)
            if any(entry[key] != value for key, value in counts_of(arrays).items()):
                raise BadInput(
                    f"{path}: is not what the manifest says; {made_again(self._directory)}"
                )
            self._opened[entry["file"]] = arrays
        return self._opened[entry["file"]]


def open_tokens(files: TokenFiles) -> TokenSet:
    """Open the token files; `BadInput` if `finish_token_files` has not completed them."""
    if not files.is_complete():
        raise BadInput(
            f"{files.shards}: is not tokenised to its end for this model and "
            f"{files.block_tokens} tokens; run: python data_scripts/tokenize_shards.py --shards "
            f"{files.shards} --max-tokens {files.block_tokens} --model MODEL"
        )
    return TokenSet(files)


def _write_tokens(path: Path, *, text: Path, tokenizer: TextTokenizer) -> None:
    # Two bytes per token, if all ids fit: half the disk space and half the reading.
    dtype = np.uint16 if tokenizer.num_ids <= 2**16 else np.uint32
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
    write_arrays(path, arrays)


def _documents(path: Path) -> Iterator[tuple[list[str], list[Ids]]]:
    """The texts of a shard and the characters at which their sentences start, in batches of
    rows."""
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=["text", "sentence_starts"]):
        marks = [np.array(row, dtype=np.int64) for row in batch["sentence_starts"].to_pylist()]
        yield batch["text"].to_pylist(), marks


def _write_blocks(path: Path, *, tokens: Path, files: TokenFiles, held_out: Ids) -> None:
    arrays = map_arrays(tokens, sha256=note_of(tokens)["sha256"])
    bounds = arrays["cut_offsets"].tolist()
    cuts = [arrays["cuts"][a:b] for a, b in itertools.pairwise(bounds)]
    offsets = arrays["document_offsets"]
    packing = pack_documents(
        offsets, cuts=cuts, room=files.block_tokens, wrap=files.wrap, without=held_out
    )
    owners = np.searchsorted(offsets, packing.starts, side="right")
    packed: dict[str, NDArray[Any]] = {
        "starts": packing.starts,
        "lengths": packing.lengths.astype(np.int32),
        "block_offsets": packing.block_offsets,
    }
    counts = {
        "documents": len(cuts) - len(held_out),
        "cut_documents": int((np.bincount(owners) > 1).sum()),
    }
    write_arrays(path, packed, counts=counts)


def _ends(entries: list[Entry], *, key: str) -> NDArray[np.int64]:
    return np.cumsum([entry[key] for entry in entries], dtype=np.int64)


def _place(ends: NDArray[np.int64], index: int) -> tuple[int, int]:
    shard = int(np.searchsorted(ends, index, side="right"))
    return shard, index - (int(ends[shard - 1]) if shard else 0)
