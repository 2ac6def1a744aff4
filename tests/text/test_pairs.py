"""Pairs of every layout, whole directories or none, and batches of one data set each."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.base.errors import BadInput
from toolkit.base.files import sha256_of
from toolkit.text.manifest import write_manifest
from toolkit.text.pair_formats import read_pairs
from toolkit.text.pair_stream import PairStream
from toolkit.text.pairs import Pair, PairTask, open_pairs, text_hash, write_pairs
from toolkit.text.verify import verify

Bad = list[tuple[str, str]]


def read(path: Path, *, max_negatives: int = 7) -> tuple[list[Pair], Bad]:
    pairs, bad, _ = read_and_count(path, max_negatives=max_negatives)
    return pairs, bad


def read_and_count(path: Path, *, max_negatives: int = 7) -> tuple[list[Pair], Bad, dict[str, int]]:
    bad: Bad = []
    left_out: Counter[str] = Counter()
    pairs = read_pairs(
        path,
        max_negatives=max_negatives,
        on_bad=lambda place, reason, note: bad.append((place, reason)),
        left_out=left_out,
    )
    return list(pairs), bad, dict(+left_out)


def as_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


WANTED = [Pair("q1", "p1", ("n1",)), Pair("q2", "p2", ("n2", "n3"))]
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "e5": [
        {"query": "q1", "positive": "p1", "negative": "n1"},
        {"query": "q2", "positive": "p2", "negative": ["n2", "n3"]},
    ],
    "flag": [
        {"query": "q1", "pos": ["p1"], "neg": ["n1"]},
        {"query": "q2", "pos": ["p2"], "neg": ["n2", "n3"]},
    ],
    "sentence_transformers": [
        {"anchor": "q1", "positive": "p1", "negative_1": "n1", "negative_2": None},
        {"anchor": "q2", "positive": "p2", "negative_1": "n2", "negative_2": "n3"},
    ],
    "tevatron": [
        {
            "query": f"q{k}",
            "positive_passages": [{"docid": "1", "title": "", "text": f"p{k}"}],
            "negative_passages": [{"docid": "2", "text": n} for n in negatives],
        }
        for k, negatives in ((1, ["n1"]), (2, ["n2", "n3"]))
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pairs(tmp_path: Path, layout: str) -> None:
    rows = LAYOUTS[layout]
    assert read(as_jsonl(tmp_path / "x.jsonl", rows)) == (WANTED, [])
    assert read(tmp_path / "x.jsonl", max_negatives=1)[0][1].negatives == ("n2",)
    if layout != "e5":  # text and list in one column
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
        assert read(tmp_path / "x.parquet") == (WANTED, [])


def test_several_positives_and_titles_and_repeats(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "pos": ["a", "b"], "neg": ["q", "a", "c", "c"]},
        {"query": "q", "positive_passages": [{"title": "T", "text": "words"}]},
    ]
    assert read(as_jsonl(tmp_path / "x.jsonl", rows[:1]))[0] == [
        Pair("q", "a", ("c",)),
        Pair("q", "b", ("a", "c")),
    ]
    assert read(as_jsonl(tmp_path / "y.jsonl", rows[1:]))[0] == [Pair("q", "T words")]


NLI = [
    ("A man sleeps.", "Somebody rests.", "entailment"),
    ("A man sleeps.", "A man eats.", "neutral"),
    ("A man sleeps.", "A man runs.", "contradiction"),
    ("A man sleeps.", "Nobody rests.", "contradiction"),
    ("A dog barks.", "It makes a noise.", "entailment"),
    ("A cat sits.", "It is a cat.", "-"),
]


def test_rows_of_a_table_are_not_swallowed(tmp_path: Path) -> None:
    """By a quote that nobody closes, or one inside of a text; a row of other columns is bad."""
    path = tmp_path / "x.csv"
    path.write_text('query,answer\na,"b, ""c"""\nd\ne,f,g\nh,i\n')
    pairs, bad = read(path)
    assert [(pair.query, pair.positive) for pair in pairs] == [("a", 'b, "c"'), ("h", "i")]
    assert bad == [
        ("line 3", "fewer fields than the header has"),
        ("line 4", "more fields than the header has"),
    ]
    for row in ('"a,b', '"He" said,b'):
        path.write_text(f"query,answer\n{row}\nc,d\ne,f\n")
        with pytest.raises(BadInput, match=r"x.csv, line \d: its quotes cannot be read"):
            read(path)


def test_nli_gives_triplets_from_any_layout(tmp_path: Path) -> None:
    wanted = [Pair("A man sleeps.", "Somebody rests.", ("A man runs.", "Nobody rests."))]
    names = ("sentence1", "sentence2", "gold_label")
    rows = [dict(zip(names, row, strict=True)) for row in NLI]
    assert read(as_jsonl(tmp_path / "x.jsonl", rows)) == (wanted, [])
    (tmp_path / "x.tsv").write_text(
        "\n".join("\t".join(row) for row in [("premise", "hypothesis", "label"), *NLI])
    )
    assert read(tmp_path / "x.tsv") == (wanted, [])
    numbers = {"entailment": 0, "neutral": 1, "contradiction": 2, "-": -1}
    hub = [{"premise": p, "hypothesis": h, "label": numbers[label]} for p, h, label in NLI]
    assert read(as_jsonl(tmp_path / "hub.jsonl", hub)) == (wanted, [])
    folder = tmp_path / "aligned"
    folder.mkdir()
    for name, column in zip(("s1", "s2", "labels"), zip(*NLI, strict=True), strict=True):
        (folder / f"{name}.dev").write_text("\n".join(column) + "\n")
    assert read(folder) == (wanted, [])
    (folder / "labels.dev").write_text("entailment\n")
    with pytest.raises(BadInput, match="s1, s2 and labels of 'dev' have 6, 6, 1 lines"):
        read(folder)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from("PQR"),
            st.sampled_from("abcd"),
            st.sampled_from(
                ["entailment", 0, "contradiction", 2, 2.0, "neutral", 1, "-", -1]
                + ["Entailment", "", None, 3, True, ["entailment"], "maybe"]
            ),
        ),
        min_size=1,
        max_size=30,
    ),
    max_negatives=st.integers(0, 3),
)
def test_every_row_of_nli_is_in_one_count(
    rows: list[tuple[str, str, Any]], max_negatives: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A pair, a negative, left out for a reason, or bad: nothing vanishes."""
    names = ("premise", "hypothesis", "label")
    path = tmp_path_factory.mktemp("nli") / "x.jsonl"
    as_jsonl(path, [dict(zip(names, row, strict=True)) for row in rows])
    pairs, bad, left_out = read_and_count(path, max_negatives=max_negatives)
    negatives = {(pair.query, text) for pair in pairs for text in pair.negatives}
    assert len(pairs) + len(negatives) + len(bad) + sum(left_out.values()) == len(rows)
    known = ("entailment", "neutral", "contradiction", "-")
    strange = [label for *_, label in rows if label is True or label not in (*known, *range(-1, 3))]
    assert Counter(reason for _, reason in bad) == Counter(
        f"unknown label {str(label)!r}" for label in strange
    )
    assert left_out.get("no gold label", 0) == sum(label in ("-", -1) for *_, label in rows)
    assert all(pair.positive not in pair.negatives for pair in pairs)


VALUES = st.sampled_from(["t", "u", "", " ", None, 7, ["t", "u"], [], [None], {"text": "t"}, "a\0"])


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.none() | st.fixed_dictionaries({"neg": VALUES, "pos": VALUES}), max_size=12)
)
def test_every_row_of_queries_gives_pairs_or_is_told(
    rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The number of the row is its query; None is a blank line."""
    path = tmp_path_factory.mktemp("pairs") / "x.jsonl"
    good = json.dumps({"query": "0", "pos": "p"})
    lines = [json.dumps({"query": str(n), **row}) if row else "" for n, row in enumerate(rows, 1)]
    path.write_text("\n".join([good, *lines, good]))
    pairs, bad, left_out = read_and_count(path)
    used = {pair.query for pair in pairs}
    assert len(used) + len(bad) + sum(left_out.values()) == len(rows) + 1
    assert left_out.get("blank line", 0) == rows.count(None)
    assert not used & {str(int(place.removeprefix("line ")) - 1) for place, _ in bad}


def test_a_quote_in_a_tsv_swallows_no_rows_and_a_tab_too_many_is_told(tmp_path: Path) -> None:
    lines = ["query\tpositive", '"Hello\tp1', "q2\tp2", 'q3"\tp3', "q4\tp4\textra", "q5"]
    (tmp_path / "x.tsv").write_text("\n".join(lines))
    pairs, bad = read(tmp_path / "x.tsv")
    assert pairs == [Pair('"Hello', "p1"), Pair("q2", "p2"), Pair('q3"', "p3")]
    assert bad == [
        ("line 5", "more fields than the header has"),
        ("line 6", "fewer fields than the header has"),
    ]
    (tmp_path / "x.csv").write_text(f"query,positive\nq,{'long ' * 40_000}\n")
    assert len(read(tmp_path / "x.csv")[0][0].positive) == 200_000


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"query": ["q" * 9] * 999, "positive": ["p"] * 999}), path)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\0" * 56
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"x\.parquet: is damaged or of another kind"):
        read(path)


def test_real_nli_is_read_whole(real_data: Path) -> None:
    pairs, bad, left_out = read_and_count(real_data / "snli_devtest")
    assert bad == []
    assert left_out["neutral"] > 6_000
    assert len(pairs) > 5_800
    assert len({pair.query for pair in pairs}) > 5_800
    assert all(pair.negatives and pair.positive not in pair.negatives for pair in pairs)


@pytest.mark.parametrize("between", [",", "\t"])
def test_no_column_of_a_table_hides_another_and_blank_lines_are_counted(
    between: str, tmp_path: Path
) -> None:
    path = tmp_path / ("x.csv" if between == "," else "x.tsv")
    path.write_text("\nquery,positive\n\na,b\n  \nc,d\n\n".replace(",", between))
    assert read_and_count(path) == ([Pair("a", "b"), Pair("c", "d")], [], {"blank line": 4})
    path.write_text("query,positive,positive\na,b,c\n".replace(",", between))
    with pytest.raises(BadInput, match=r"two of its columns are called 'positive': rename one"):
        read(path)


def test_no_value_of_a_json_object_hides_another(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"query": "q", "positive": "p"}\n{"query": "q", "positive": "p", "positive": "r"}\n'
        '{"query": "q", "positive": {"text": "p", "text": "r"}}\n'
    )
    again = "a name twice in a JSON object"
    assert read(path) == ([Pair("q", "p")], [("line 2", again), ("line 3", again)])


def test_bad_rows_are_told_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good = json.dumps({"query": "q", "positive": "p"})
    lines = [
        good,
        "{broken",
        '{"query": "", "positive": "p"}',
        '{"query": "q", "positive": null}',
        '{"query": "q", "positive": 7}',
        '{"query": "q", "positive": "p", "negative": ["n", "a\\u0000"]}',
        '["list"]',
        good,
    ]
    path.write_text("\n".join(lines))
    pairs, bad = read(path)
    assert pairs == [Pair("q", "p")] * 2
    assert bad == [
        ("line 2", "not a JSON object"),
        ("line 3", "empty"),
        ("line 4", "no positive"),
        ("line 5", "text is not a string"),
        ("line 6", "NUL character"),
        ("line 7", "not a JSON object"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no row"),
        (b'{"a": 1, "b": 2}', "its columns are a, b; wanted: one of query, anchor, question"),
        (b'{"query": "q"}', "its columns are query; wanted"),
        (b"\xff\xfe{", "is UTF-16; convert it first"),
    ],
)
def test_files_that_are_no_pairs(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(BadInput, match=f"x.jsonl: {message}"):
        read(tmp_path / "x.jsonl")
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "absent.jsonl")


# --- the directory ---


def made(output: Path, *, sizes: tuple[int, ...] = (7, 3)) -> Path:
    def pairs(number: int, size: int) -> Iterator[Pair]:
        for row in range(size):
            yield Pair(f"query {number} {row}", f"positive {row}", (f"negative {row}",))

    sets = [
        (PairTask(f"set{number}", query_instruction=f"Do {number}"), pairs(number, size))
        for number, size in enumerate(sizes)
    ]
    write_pairs(sets, output=output, sources=[], quarantine=[])
    return output


def test_pairs_come_back_with_hashes_and_tasks(tmp_path: Path) -> None:
    opened = open_pairs(made(tmp_path / "pairs"))
    assert opened.num_rows.tolist() == [7, 3]
    assert [task.name for task in opened.tasks] == ["set0", "set1"]
    found = opened.pair(1, 2)
    assert (found.query, found.positive, found.negatives) == (
        *("query 1 2", "positive 2"),
        ("negative 2",),
    )
    assert found.query_hash == text_hash("query 1 2")
    assert found.positive_hash == opened.pair(0, 2).positive_hash
    assert found.negative_hashes == (text_hash("negative 2"),)


@pytest.mark.parametrize(
    ("one", "other"),
    [("C++", "C#"), ("5", "-5"), ("a < b", "a > b"), ("resume", "re\u0301sume\u0301"), ("a", "A")],
)
def test_only_identical_texts_share_a_hash(one: str, other: str, tmp_path: Path) -> None:
    """A hard negative that differs in a sign is one: it must not be masked as its positive."""
    sets = [(PairTask("one"), [Pair("q", one, (other, one))])]
    write_pairs(sets, output=tmp_path / "pairs", sources=[], quarantine=[])
    found = open_pairs(tmp_path / "pairs").pair(0, 0)
    assert [found.positive_hash == number for number in found.negative_hashes] == [False, True]


def test_pairs_of_format_1_open_without_their_hashes(tmp_path: Path) -> None:
    """Their hashes did not see signs: C++ and C# had one and the same."""
    directory = tmp_path / "pairs"
    pairs = [Pair("Which language?", "C++", ("C#",)), Pair("q", "p")]
    write_pairs([(PairTask("one"), pairs)], output=directory, sources=[], quarantine=[])
    path = directory / "pairs-00000-00000.parquet"
    table = pq.read_table(path)
    for name in ("query_hash", "positive_hash"):
        table = table.append_column(name, pa.array([7, 7], pa.int64()))
    hashes = pa.array([[7], []], pa.list_(pa.int64()))
    pq.write_table(table.append_column("negative_hashes", hashes), path)
    manifest = json.loads((directory / "manifest.json").read_text()) | {"format": "toolkit-pairs/1"}
    (shard,) = manifest["sets"][0]["shards"]
    shard |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    del manifest["manifest_sha256"]
    write_manifest(directory, manifest)
    opened = open_pairs(directory)
    assert [opened.pair(0, row) for row in range(2)] == pairs
    assert opened.pair(0, 0).negative_hashes == (text_hash("C#"),)
    assert verify(directory) == []


def test_equal_input_gives_equal_bytes_and_another_task_another_digest(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one"), made(tmp_path / "two")
    assert all((two / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())
    other = [(PairTask("set0"), [Pair("query 0 0", "positive 0")])]
    write_pairs(other, output=tmp_path / "three", sources=[], quarantine=[])
    digests = {open_pairs(tmp_path / name).digest for name in ("one", "two", "three")}
    assert len(digests) == 2


def test_damage_is_found_by_name(tmp_path: Path) -> None:
    directory = made(tmp_path / "pairs")
    path = directory / "pairs-00001-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"pairs-00001-00000.parquet: is damaged \(its SHA-256"):
        open_pairs(directory)
    path.unlink()
    with pytest.raises(BadInput, match=r"pairs-00001-00000.parquet: is missing"):
        open_pairs(directory, verify=False)
    with pytest.raises(BadInput, match=r"no such directory; make it with: python data_scripts/pre"):
        open_pairs(tmp_path / "absent")


def test_a_set_without_pairs_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="data set 'set1': no pair to train on"):
        made(tmp_path / "pairs", sizes=(3, 0))
    assert list(tmp_path.iterdir()) == []


# --- the order ---


class Sizes:
    """Pairs that are only counted."""

    def __init__(self, sizes: list[int]) -> None:
        self.num_rows = np.array(sizes, dtype=np.int64)
        self.tasks = [PairTask(str(number)) for number in range(len(sizes))]

    def pair(self, number: int, row: int) -> tuple[int, int]:
        assert 0 <= row < self.num_rows[number]
        return number, row


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_batches_are_of_one_set_and_every_pair_comes_before_one_comes_again(
    data: st.DataObject,
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    global_rows = data.draw(st.sampled_from([4, 6, 12]))
    ranks = data.draw(st.sampled_from([1, 2]))
    restart = data.draw(st.integers(0, 30))
    seed = data.draw(st.integers(0, 1000))
    pairs: Any = Sizes(sizes)
    stream = PairStream(pairs, seed=seed)
    seen: dict[int, list[int]] = {number: [] for number in range(len(sizes))}
    round_steps = sum(max(1, size // global_rows) for size in sizes)
    for step in range(2 * round_steps):
        if step == restart:
            stream = PairStream(pairs, seed=seed)
        local = global_rows // ranks
        batch = [
            sample
            for rank in range(ranks)
            for sample in stream.batch(
                step, global_rows=global_rows, start=rank * local, stop=(rank + 1) * local
            )
        ]
        found = [sample.content.pair for sample in batch]
        assert len({number for number, _ in found}) == 1
        assert len({(s.epoch, s.index) for s in batch}) == global_rows
        seen[found[0][0]].extend(row for _, row in found)
    for number, rows in seen.items():
        size = sizes[number]
        assert len(rows) == 2 * global_rows * max(1, size // global_rows)
        for first in range(0, len(rows) - size + 1, size):
            assert sorted(rows[first : first + size]) == list(range(size))


def test_sets_have_batches_in_proportion_and_steps_are_found_at_once() -> None:
    pairs: Any = Sizes([10_000, 2_000, 3])
    stream = PairStream(pairs, seed=1)
    counts = Counter(stream.turn(step, global_rows=100)[0] for step in range(121))
    assert counts == {0: 100, 1: 20, 2: 1}
    assert stream.turn(121 * 10**9, global_rows=100)[1] > 0
    first, second = (
        [stream.turn(step, global_rows=100)[0] for step in range(start, start + 121)]
        for start in (0, 121)
    )
    assert first != second


def test_of_two_writers_that_arrive_together_one_is_told_that_it_has_not_written(
    tmp_path: Path,
) -> None:
    """The other one makes its whole directory while we read our pairs."""

    def write(query: str, *, meanwhile: str = "") -> None:
        def pairs() -> Iterator[Pair]:
            yield Pair(query, "answer")
            if meanwhile:
                thread = threading.Thread(target=write, args=(meanwhile,))
                thread.start()
                thread.join()

        write_pairs([(PairTask("a"), pairs())], output=tmp_path / "p", sources=[], quarantine=[])

    with pytest.raises(BadInput, match="exists already with other content"):
        write("ours", meanwhile="theirs")
    assert open_pairs(tmp_path / "p").pair(0, 0).query == "theirs"
    write("theirs", meanwhile="theirs")  # the same is all one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]
