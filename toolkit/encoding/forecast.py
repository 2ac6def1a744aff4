"""What an embedding will need: tokens, hours, disk, memory, cost. A sample of the corpus is
tokenised as the encoder does it; the rest is arithmetic on shapes. No weights are read.

Knows rows of tokens and bytes per row. Refuses to know how fast a GPU is (`runs.estimate`). Shapes:
N rows of the corpus.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from toolkit.base.errors import BadInput
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.encoding.chunks import chunks_of, rules_of
from toolkit.encoding.formats import row_bytes
from toolkit.encoding.index import FLAT, HNSW, IVF, PQ, parameters_of
from toolkit.encoding.output import KEY, facts_schema
from toolkit.encoding.reuse import store_of_old
from toolkit.encoding.rows import RowMaker
from toolkit.encoding.units import CHARS_PER_ROW, CHARS_PER_TOKEN, ChunkRules
from toolkit.model.adapters import chain_of
from toolkit.model.declared import vector_rules
from toolkit.model.vector_rules import VectorRules
from toolkit.runs.estimate import Cluster, forward_flops
from toolkit.runs.shapes import Shape, shape_of
from toolkit.settings.model_source import ModelSource, is_adapter
from toolkit.settings.schema import EmbedRecipe, EncoderSettings, VectorFormat
from toolkit.text.duplicates import KEY_BYTES
from toolkit.text.shards import ShardSet, open_shards
from toolkit.text.tokens import TextTokenizer

SAMPLE_ROWS = 1000
NUM_STRATA = 25
MOST_CHARS_PER_TOKEN = 8
# The peak of a GPU in a type, as a part of that in bf16, by data sheets.
PEAKS = {"fp32": 1 / 15, "bf16": 1.0, "fp8": 2.0}


@dataclasses.dataclass(frozen=True)
class Total:
    """A sum over all rows of the corpus, and its standard error."""

    value: float
    error: float


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What an embedding needs. `texts` and `rows` (of the output: chunks, if texts are cut into
    them), `tokens` that the model reads, `squares` (the sum of the squared lengths of the rows that
    it reads: attention's share), `cut` (texts that lose their end), `width` of the vectors, and the
    bytes of ids per row."""

    texts: int
    sampled: int
    rows: Total
    tokens: Total
    squares: Total
    cut: Total
    width: int
    id_bytes: float
    shape: Shape

    @property
    def flops(self) -> float:
        """FLOPs of all forward passes. A row of T tokens attends to T tokens at each place."""
        attended = self.squares.value / max(self.tokens.value, 1)
        return self.tokens.value * forward_flops(self.shape, attended=attended)

    def tokens_per_s(self, cluster: Cluster, *, dtype: str) -> float:
        """Tokens per second of one device at the cluster's efficiency; `dtype`: of `PEAKS`."""
        return (
            PEAKS[dtype]
            * cluster.gpu.peak
            * cluster.efficiency
            * self.tokens.value
            / max(self.flops, 1)
        )

    def disk(self) -> dict[VectorFormat, float]:
        """Bytes of the vectors in each format, and their ids."""
        return {
            form: self.rows.value * (row_bytes(form, width=self.width) + self.id_bytes)
            for form in get_args(VectorFormat)
        }

    def indexes(self) -> dict[str, float]:
        """Bytes of memory of each kind of faiss index, as `index.parameters_of` builds it."""
        rows, numbers = round(self.rows.value), 4 * self.width
        lists = parameters_of(IVF, num_rows=rows, width=self.width)["lists"]
        links = parameters_of(HNSW, num_rows=rows, width=self.width)["links"]
        pq_of = parameters_of(PQ, num_rows=rows, width=self.width)
        codes = math.ceil(pq_of["parts"] * pq_of["bits"] / 8)
        return {
            FLAT: rows * numbers,
            IVF: rows * (numbers + 8) + lists * numbers,  # with the number of each vector
            # Two thirds of the links are on the lowest level, which has twice as many.
            HNSW: rows * (numbers + 4 * (2 * links + links / (links - 1)) + 8),
            PQ: rows * codes + 2 ** pq_of["bits"] * numbers,
        }


def forecast(recipe: EmbedRecipe, *, sample_rows: int = SAMPLE_ROWS) -> Forecast:
    """The forecast of a recipe. Raises `BadInput` for a corpus, a model or settings that
    toolkit.encode would refuse too."""
    chunks = rules_of(recipe)
    if recipe.reuse is not None:
        store_of_old(recipe.reuse, output_dir=Path(recipe.output_dir))
    shards = open_shards(Path(recipe.corpus.input), verify=False)
    if not len(shards):
        raise BadInput(f"{recipe.corpus.input}: has no texts")
    source, tokenizer, rules = _described(recipe.encoder, dims=recipe.dims)
    shape = shape_of(source.name)
    most = recipe.encoder.max_tokens
    made = text_tokenizer(tokenizer, max_tokens=most, lower_case=rules.lower_case)
    text_format, prompt = recipe.encoder.text_format, recipe.encoder.prompt
    whole = rules.width(shape.hidden)
    width = recipe.dims or rules.dims or whole
    if width > whole:
        raise BadInput(f"dims={width}: the vectors of {recipe.encoder.model} have {whole} numbers")
    maker = RowMaker(made, rules=rules, text_format=text_format, prompt=prompt)
    if chunks:
        maker.check_chunks(chunks)
    # What is cut off is no work; texts of equal work are of about equal length.
    most_chars = None if chunks else MOST_CHARS_PER_TOKEN * most
    strata = strata_of(np.clip(shards.num_chars, 0, most_chars), sample_rows=sample_rows)
    drawn = [number for stratum in strata for number in stratum.drawn]
    texts = [shards.text(row) for row in drawn]
    found = _lengths(texts, maker=maker, tokenizer=made, chunks=chunks)
    lengths = dict(zip(drawn, found, strict=True))

    def total(of: Callable[[Lengths], float]) -> Total:
        return total_of(strata, {row: of(one) for row, one in lengths.items()})

    return Forecast(
        texts=len(shards),
        sampled=len(drawn),
        rows=total(lambda one: len(one.written)),
        tokens=total(lambda one: sum(one.read)),
        squares=total(lambda one: sum(length**2 for length in one.read)),
        # Those that fill the limit: some of them have just so many tokens. A text that is read
        # twice may leave one token free.
        cut=total(lambda one: float(not chunks and one.read[0] >= most - rules.echo)),
        width=width,
        id_bytes=_id_bytes(
            shards, {row: one.written for row, one in lengths.items()}, chunks=chunks
        ),
        shape=shape,
    )


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The tokens of a text's rows: of those that are written, and of those that the model reads."""

    written: Sequence[int]
    read: Sequence[int]


def _lengths(
    texts: Sequence[str], *, maker: RowMaker, tokenizer: TextTokenizer, chunks: ChunkRules | None
) -> list[Lengths]:
    """The tokens of the rows of each text."""
    if not chunks:
        return [Lengths([len(row_T)], [len(row_T)]) for row_T in maker.rows(texts).rows]
    written: list[list[int]] = [[] for _ in texts]
    read: list[list[int]] = written
    if chunks.is_late:
        cut, windows = maker.late_chunks(texts, chunks=chunks)
        read = [[] for _ in texts]
        for window in windows:
            first, _ = window.chunks[0]
            read[cut[first].text].append(len(window.ids))
    else:
        cut = chunks_of(texts, tokenizer=tokenizer, rules=chunks)
    for chunk in cut:
        written[chunk.text].append(len(chunk.ids_C))
    return [Lengths(*both) for both in zip(written, read, strict=True)]


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Rows of about equal length: how many there are, and the rows that were drawn of them."""

    size: int
    drawn: Sequence[int]


def strata_of(num_chars_N: NDArray[np.int64], *, sample_rows: int) -> list[Stratum]:
    """Rows sorted by their characters, in strata of about equal characters in sum, and as many rows
    drawn from each: so the few long texts count as much as the many short ones. The same corpus
    gives the same sample (Cochran, Sampling Techniques, 1977, chapter 5)."""
    order_N = np.argsort(num_chars_N, kind="stable")
    done_N = np.cumsum(num_chars_N[order_N] + CHARS_PER_ROW)
    inner = np.searchsorted(done_N, done_N[-1] * np.arange(1, NUM_STRATA) / NUM_STRATA)
    draw = np.random.default_rng(0)
    strata = []
    for rows in np.split(order_N, np.unique(inner)):
        if len(rows):
            number = min(len(rows), max(2, sample_rows // NUM_STRATA))
            drawn = draw.choice(rows, size=number, replace=False)
            strata.append(Stratum(len(rows), sorted(drawn.tolist())))
    return strata


def total_of(strata: Sequence[Stratum], values: Mapping[int, float]) -> Total:
    """The sum over all rows, estimated from the drawn ones, with its standard error."""
    value, variance = 0.0, 0.0
    for stratum in strata:
        found = np.array([values[row] for row in stratum.drawn])
        value += stratum.size * found.mean()
        if len(found) > 1:
            left = 1 - len(found) / stratum.size  # nothing is uncertain about a stratum read whole
            variance += stratum.size**2 * left * found.var(ddof=1) / len(found)
    return Total(float(value), float(variance**0.5))


def _described(
    settings: EncoderSettings, *, dims: int | None
) -> tuple[ModelSource, ModelSource, VectorRules]:
    """The base, whose config.json gives the shape; where the tokenizer is; the rules of vectors."""
    folder = Path(settings.model)
    if (folder / "config.json").is_file() and not is_adapter(folder) and not settings.adapters:
        source = ModelSource.of_folder(folder)  # which needs no weights
        return (
            source,
            source,
            vector_rules([folder], tokenizer=source, settings=settings, dims=dims),
        )
    chain = chain_of(settings.model, adapters=settings.adapters)
    return chain.base, chain.tokenizer, chain.rules(settings, dims=dims)


def _id_bytes(
    shards: ShardSet, lengths: Mapping[int, Sequence[int]], *, chunks: ChunkRules | None
) -> float:
    """Bytes per row of ids.parquet, from one with the sampled texts. What tokens stand for in
    characters is only as random as here."""
    columns = facts_schema({"chunks": chunks.facts()} if chunks else {})
    keys = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for row, found in sorted(lengths.items()):
        known = shards.record(row)
        text = {"id": known["id"], "title": known.get("title"), "key": keys.bytes(KEY_BYTES)}
        ends = (CHARS_PER_TOKEN * np.cumsum(found)).tolist()
        for number, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
            place = {"row": row, "chunk": number, "begin": begin, "end": end}
            records.append({**text, **place, "window": 0, "empty": False})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, columns.append(KEY)), sink, compression="zstd")
    return float(sink.tell()) / max(1, len(records))
