"""Long documents in chunks: their tokens, their vectors, their places, and the search in them."""

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers

from tests.conftest import contents
from tests.encoding.conftest import embed
from tests.encoding.making import output_of, write_chunks
from tests.encoding.test_encode import array_task
from tests.text.making import shard_articles
from tests.text.tokenizers_at_hand import TRAINED, as_ours
from toolkit import search
from toolkit.base.errors import BadInput
from toolkit.batching.tokenizer import text_tokenizer
from toolkit.encoding.chunks import chunks_of, rules_of
from toolkit.encoding.encoder import Encoder
from toolkit.encoding.formats import unit_length
from toolkit.encoding.index import KINDS, Index, build_index
from toolkit.encoding.parquet import write_parquet
from toolkit.encoding.search import nearest
from toolkit.encoding.store import VectorStore
from toolkit.encoding.units import ChunkRules, bounds, units
from toolkit.settings.model_source import resolve_model
from toolkit.settings.recipes import load_recipe
from toolkit.settings.schema import EmbedRecipe
from toolkit.text import tokens as tokenizing
from toolkit.text.records import Article
from toolkit.text.tokens import TextTokenizer

SIZE, OVERLAP = 16, 4
TRAINED_ONCE = {name: TRAINED[name]() for name in ("shipped", "word_piece")}
CHUNKS = (f"corpus.chunk_tokens={SIZE}", f"corpus.chunk_overlap={OVERLAP}")
# Two long texts of each language, that begin alike.
CHINESE = "运河把两条河流连接起来，船只可以从北方航行到南方。" * 6
JAPANESE = "運河は二つの川をつなぎ、船は北から南へ進むことができる。" * 6
TEXTS = (
    "A short text.",
    "The canal joins two rivers, and boats go from the north to the south. " * 9,
    "",
    CHINESE + "春天的花园里开满了红色的玫瑰。" * 6,
    CHINESE + "火车在夜里穿过寒冷的山谷。" * 6,
    JAPANESE + "春の庭には赤いバラが咲いている。" * 6,
    JAPANESE + "列車は夜に寒い谷を通り抜ける。" * 6,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> TextTokenizer:
    return text_tokenizer(resolve_model(str(tiny_model)), max_tokens=SIZE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts above as shards, each three times; the empty one has a blank sort of letter, since
    shards have no empty texts."""
    articles = [
        Article(id=f"{copy}-{n}", title=f"T{n}", url="", text=text or "\u2800")
        for copy in range(3)
        for n, text in enumerate(TEXTS)
    ]
    return shard_articles(articles, output=tmp_path_factory.mktemp("chunks") / "shards")


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, corpus: Path) -> tuple[str, ...]:
    return (f"encoder.model={tiny_model}", f"corpus.input={corpus}", *CHUNKS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, inputs: tuple[str, ...]) -> Path:
    output = tmp_path_factory.mktemp("chunks") / "encoding"
    embed(output, *inputs)
    return output


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.sampled_from(TEXTS) | st.text(max_size=200), max_size=5),
    size=st.integers(8, 40),
    data=st.data(),
)
def test_chunks_hold_every_token_and_share_what_they_should(
    texts: list[str], size: int, data: st.DataObject, tokenizer: TextTokenizer
) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    chunks = chunks_of(texts, tokenizer=tokenizer, rules=ChunkRules(size, overlap))
    whole = tokenizer.tokenize(texts, marks=[np.zeros(0, dtype=np.int64) for _ in texts])
    begin, end = len(tokenizer.prefix_ids), len(tokenizer.suffix_ids)
    for number, text in enumerate(texts):
        mine = [chunk for chunk in chunks if chunk.text == number]
        assert [chunk.number for chunk in mine] == list(range(len(mine)))
        own = [chunk.ids_C[begin : len(chunk.ids_C) - end] for chunk in mine]
        assert all(chunk.ids_C[:begin].tolist() == [*tokenizer.prefix_ids] for chunk in mine)
        assert all(len(chunk.ids_C) == size for chunk in mine[:-1])
        assert len(mine[-1].ids_C) <= size
        assert len(mine) == 1 or len(own[-1]) > overlap
        joined = np.concatenate([own[0], *(ids[overlap:] for ids in own[1:])])
        np.testing.assert_array_equal(joined, whole[number][0])
        for before, after in itertools.pairwise(mine):
            assert before.begin <= after.begin <= before.end <= after.end <= len(text) or (
                # Without overlap a blank between two may be of neither.
                overlap == 0 and not text[before.end : after.begin].strip()
            )


NORMALIZERS = {
    "none": normalizers.Sequence([]),
    "NFC": normalizers.NFC(),
    "NFKC": normalizers.NFKC(),
    "NFD": normalizers.NFD(),
    "lower case": normalizers.Lowercase(),
    "no accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "no accents, NFC after": normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFC()]
    ),
    "blanks folded": normalizers.Replace(Regex(r"\s+"), " "),
    "BERT": normalizers.BertNormalizer(),
}
# Letters with marks of their own, two characters that compose, one that becomes several, Hangul in
# pieces, marks without a letter, marks in another order than the canonical one.
MARKED = ["a", "é", "e\u0301", "\u0301", "ﬁ", "İ", "ß", "\u1112\u1161\u11ab", "a\u0323\u0301"]
MARKED += [
    "a\u0301\u0323",
    "½",
    " ",
    "  ",
    "\n",
    "\u00a0",
    "word",
    "\u200b",
    "\u00ad",
    "漢",
    "👩‍👩‍👧",
]


@functools.cache
def normalising(kind: str, name: str, *, max_tokens: int) -> TextTokenizer:
    inner = TRAINED_ONCE[kind]
    inner.normalizer = NORMALIZERS[name]
    return as_ours(inner, max_tokens=max_tokens)  # a copy


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("kind", ["shipped", "word_piece"])
@settings(deadline=None, max_examples=25)
@given(
    text=st.lists(st.sampled_from(MARKED), max_size=60).map("".join) | st.text(max_size=100),
    size=st.integers(4, 12),
    data=st.data(),
)
def test_chunks_cover_every_character_whatever_the_normaliser_makes_of_it(
    name: str, kind: str, text: str, size: int, data: st.DataObject
) -> None:
    tokenizer = normalising(kind, name, max_tokens=size)
    overlap = data.draw(st.integers(0, (size - tokenizer.num_added) // 2))
    chunks = chunks_of([text], tokenizer=tokenizer, rules=ChunkRules(size, overlap))
    ends = [0, *(chunk.end for chunk in chunks)]
    begins = [*(chunk.begin for chunk in chunks), len(text)]
    for end, begin in zip(ends, begins, strict=True):
        assert not text[end:begin].strip()
    assert all(chunk.begin <= chunk.end <= len(text) for chunk in chunks)
    assert sorted(begins) == begins and sorted(ends) == ends


def test_a_mark_that_is_composed_stays_with_its_letter() -> None:
    inner = TRAINED["shipped"]()
    inner.normalizer = normalizers.NFC()
    tokenizer = as_ours(inner, max_tokens=8)
    text = "cafe\u0301 " * 20
    chunks = chunks_of([text], tokenizer=tokenizer, rules=ChunkRules(8, 0))
    shown = [text[chunk.begin : chunk.end] for chunk in chunks]
    assert len(shown) > 3
    assert not any(piece.startswith("\u0301") for piece in shown)
    assert "".join("".join(shown).split()) == text.replace(" ", "")


def test_a_text_that_fits_is_one_chunk_of_what_it_is_encoded_as(tokenizer: TextTokenizer) -> None:
    with_end = as_ours(TRAINED["word_piece"](), max_tokens=SIZE)
    assert with_end.suffix_ids
    for ours, text in itertools.product((tokenizer, with_end), ("A short text.", "北京", "", "x")):
        (chunk,) = chunks_of([text], tokenizer=ours, rules=ChunkRules(SIZE, OVERLAP))
        np.testing.assert_array_equal(chunk.ids_C, ours.encode([text])[0])
        assert (chunk.begin, chunk.end) == (0, len(text))


def test_places_of_a_text_that_is_tokenised_in_parts(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token stands at the same letters, whatever the parts, which end at blanks."""
    text = TEXTS[1]
    (whole,) = tokenizer.places([text])
    monkeypatch.setattr(tokenizing, "PART_CHARS", 50)
    some = tokenizer.places(["", text, text])
    assert len(some[0].ids_T) == 0
    for one in some[1:]:
        spoken = [text[b:e].strip() for b, e in zip(one.begin_T, one.end_T, strict=True)]
        assert "".join(spoken) == "".join(text.split())
        assert len(one.ids_T) >= len(whole.ids_T)


def test_a_vector_of_a_chunk_is_that_of_its_tokens_alone(
    made: Path, tiny_model: Path, corpus: Path
) -> None:
    store = VectorStore(made, verify=True)
    encoder = Encoder.from_pretrained(str(tiny_model), max_tokens=SIZE)
    texts = [text or "\u2800" for text in TEXTS] * 3
    rules = ChunkRules(SIZE, OVERLAP)
    chunks = chunks_of(texts, tokenizer=encoder.tokenizer, rules=rules)
    facts = store.facts(slice(None)).to_pylist()
    assert [(f["row"], f["chunk"], f["begin"], f["end"]) for f in facts] == [
        (chunk.text, chunk.number, chunk.begin, chunk.end) for chunk in chunks
    ]
    assert {fact["id"] for fact in facts if fact["row"] == 8} == {"1-1"}
    assert store.num_rows == len(chunks) > 5 * len(texts)
    assert store.manifest["rows"] == len(texts)
    for row in range(0, len(chunks), 7):
        alone = encoder.embed(encoder.prepare_rows([chunks[row].ids_C]))
        np.testing.assert_allclose(store.read([row]), alone, atol=1e-5)
    short = [row for row, fact in enumerate(facts) if fact["row"] == 0]
    np.testing.assert_allclose(store.read(short), encoder.encode(texts[:1]), atol=1e-5)


def test_long_chinese_and_japanese_texts_keep_different_vectors(
    made: Path, tiny_model: Path
) -> None:
    """Where they begin alike, the same vector; where they differ, another. Cut at a limit too."""
    store = VectorStore(made)
    facts = store.facts(slice(None)).to_pylist()
    for one, other in ((3, 4), (5, 6)):
        rows = [[n for n, f in enumerate(facts) if f["row"] == text] for text in (one, other)]
        vectors = [unit_length(store.read(some)) for some in rows]
        assert (vectors[0][0] * vectors[1][0]).sum() == pytest.approx(1, abs=1e-5)
        cosines = vectors[0][-3:] @ vectors[1][-3:].T
        assert cosines.max() < 0.999
    encoder = Encoder.from_pretrained(str(tiny_model), max_tokens=2048)
    cut = unit_length(encoder.encode(list(TEXTS[3:])))
    assert (cut @ cut.T - 2 * np.eye(4)).max() < 0.9999


@pytest.mark.parametrize("task", [0, 2])
def test_whoever_works_the_files_are_the_same(
    task: int, made: Path, tmp_path: Path, inputs: tuple[str, ...]
) -> None:
    embed(tmp_path / "out", *inputs, environ=array_task(task, count=3))
    assert contents(tmp_path / "out") == contents(made)
    for path in (tmp_path / "out" / "units").glob("00001.*"):
        path.unlink()
    embed(tmp_path / "out", *inputs, "schedule=alone")
    assert contents(tmp_path / "out") == contents(made)


def test_progress_counts_texts(
    made: Path, tmp_path: Path, inputs: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    embed(tmp_path / "out", *inputs)
    printed = capsys.readouterr().out
    assert "embed: 21/21 rows" in printed
    assert f"embed: {VectorStore(made).num_rows} rows, " in printed, "those of the output"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["corpus.chunk_tokens=17"],
            "chunk_tokens=17: the encoder takes at most encoder.max_tokens=16",
        ),
        (["corpus.chunk_overlap=2"], "chunk_overlap=2: needs corpus.chunk_tokens"),
        (["corpus.chunk_tokens=8", "corpus.chunk_overlap=5"], "at most half of chunk_tokens=8"),
        (["corpus.chunk_tokens=7"], "corpus.chunk_tokens"),
        (
            ["corpus.chunk_tokens=8", 'encoder.text_format="<{text}>"'],
            r"chunks have no encoder\.text_format",
        ),
    ],
)
def test_what_cannot_be_is_named(overrides: list[str], message: str) -> None:
    def read() -> None:
        recipe = load_recipe("tiny_embed", overrides=["encoder.max_tokens=16", *overrides])
        assert isinstance(recipe, EmbedRecipe)
        rules_of(recipe)

    with pytest.raises(BadInput, match=message):
        read()


def test_other_chunks_are_another_encoding(made: Path, inputs: tuple[str, ...]) -> None:
    before = contents(made)
    for other in ("corpus.chunk_overlap=3", "corpus.chunk_tokens=12"):
        with pytest.raises(BadInput, match="holds an encoding of another chunks; choose"):
            embed(made, *inputs, other)
    with pytest.raises(BadInput, match="holds an encoding of another chunks; choose"):
        embed(made, *inputs[:2])
    assert contents(made) == before


@given(
    chars=st.lists(st.integers(0, 100_000), max_size=100),
    unit_rows=st.integers(1, 60),
    tokens=st.integers(8, 64),
    overlap=st.integers(0, 4),
)
def test_units_of_long_texts_have_about_so_many_chunks(
    chars: list[int], unit_rows: int, tokens: int, overlap: int
) -> None:
    """Every row once, and no unit much longer than the mean, but for its longest text."""
    rules = ChunkRules(tokens, overlap)
    found = bounds(np.array(chars), unit_rows=unit_rows, max_tokens=64, chunks=rules)
    made = units(found)
    assert [row for unit in made for row in range(unit.start, unit.stop)] == list(range(len(chars)))
    rows = [max(1, -(-n // (4 * (tokens - overlap)))) for n in chars]
    for unit in made:
        some = rows[unit.start : unit.stop]
        assert sum(some) - max(some) <= 4 * unit_rows


@pytest.mark.parametrize("find", ["exact", *KINDS])
def test_a_search_gives_documents_by_their_best_chunk(find: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 30, size=60).tolist()
    owner_N = np.repeat(np.arange(60), counts)
    # Chunks of a text are near one another: the nearest rows are of few texts.
    vectors = rng.standard_normal((60, 8))[owner_N] + 0.2 * rng.standard_normal((sum(counts), 8))
    chunks = {"tokens": 8, "overlap": 1}
    output = output_of(tmp_path / "enc", rows=60, unit_rows=7, chunks=chunks)
    write_chunks(output, vectors.astype(np.float32), counts=counts)
    store = VectorStore(tmp_path / "enc", verify=True)
    queries = rng.standard_normal((5, 8)).astype(np.float32)
    way = None
    if find != "exact":
        build_index(store, kind=find)
        way = Index(store, kind=find).nearest_rows
    hits = nearest(store, queries_QD=queries, top=10, find=way)
    cosine_QN = unit_length(queries) @ unit_length(store.vectors()).T
    firsts = np.cumsum([0, *counts])
    right = 0
    for found, cosine_N in zip(hits, cosine_QN, strict=True):
        best = [cosine_N[owner_N == n].max() for n in range(60)]
        wanted = np.argsort(-np.array(best), kind="stable")[:10].tolist()
        right += len({hit.row for hit in found} & set(wanted))
        assert len({hit.row for hit in found}) == len(found) == 10
        for hit in found:
            assert hit.score == pytest.approx(best[hit.row], abs=1e-6)
            assert hit.chunk is not None
            assert cosine_N[firsts[hit.row] + hit.chunk] == pytest.approx(hit.score, abs=1e-6)
            assert (hit.begin, hit.end) == (5 * hit.chunk, 5 * hit.chunk + 7)
        if find == "exact":
            assert [hit.row for hit in found] == wanted
    assert right >= 47
    every = nearest(store, queries_QD=queries, top=10, find=way, every_chunk=True)
    assert any(len({hit.row for hit in found}) < 10 for found in every)


def test_the_door_shows_the_chunk(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = VectorStore(made)
    fact = store.facts([9]).to_pylist()[0]
    text = TEXTS[fact["row"]][fact["begin"] : fact["end"]]
    assert search.main([str(made), text, "--top", "3", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert len({hit["row"] for hit in hits}) == 3
    assert set(hits[0]) == {"id", "title", "score", "row", "chunk", "begin", "end", "snippet"}
    for hit in hits:
        shown = " ".join((TEXTS[hit["row"] % 7])[hit["begin"] : hit["end"]].split())
        assert hit["snippet"] == shown
    assert search.main([str(made), text, "--top", "6", "--json", "--every-chunk"]) == 0
    every = json.loads(capsys.readouterr().out)["hits"]
    assert len({hit["row"] for hit in every}) < 6


def test_an_export_has_the_places(made: Path, tmp_path: Path) -> None:
    store = VectorStore(made)
    assert write_parquet(made, out=tmp_path / "all.parquet") == store.num_rows
    found = pq.read_table(tmp_path / "all.parquet")
    names = ["id", "title", "empty", "row", "chunk", "begin", "end", "vector"]
    assert found.column_names == names
    assert found.equals(store.table(slice(None)))
