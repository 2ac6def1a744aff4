"""Collections in TREC's format, tidy and not, as files that evaluation reads."""

import json
from pathlib import Path

import pytest

from data_scripts import prepare_trec
from tests.evaluation.real_sets import read_cranfield
from toolkit.evaluation.retrieval import read_judged

DOCUMENTS = """<DOC>
<DOCNO> FT-1 </DOCNO>
<HEADLINE>Wings &amp; things</HEADLINE>
<TEXT>
A wing
lifts.
</TEXT>
</DOC>
<doc><docno>2</docno><text></text></doc>
"""
TOPICS = """<top>
<num> Number: 301
<title> lift of wings
<desc> Description:
What lifts?
</top>
<top><num> 7</num><title>drag</title></top>
"""


def prepared(folder: Path, *options: str, **files: str) -> int:
    given = {"documents": DOCUMENTS, "queries": TOPICS, "judgements": "301 0 FT-1 1\n7 0 2 -1\n"}
    arguments = ["--output", str(folder / "out"), *options]
    for name, content in {**given, **files}.items():
        (folder / name).write_text(content)
        arguments += [f"--{name}", str(folder / name)]
    return prepare_trec.main(arguments)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_fields_that_are_closed_and_fields_that_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepared(tmp_path) == 0
    told = capsys.readouterr()
    assert "1 documents (1 without text left out), 2 queries" in told.out
    assert told.err == ""
    out = tmp_path / "out"
    text = "A wing lifts."
    assert lines(out / "documents.jsonl") == [
        {"id": "FT-1", "title": "Wings & things", "text": text}
    ]
    judged = read_judged(out / "queries.jsonl", judgements=out / "judgements.tsv")
    assert judged.queries == {"301": "lift of wings", "7": "drag"}
    assert judged.grades == {"301": {"FT-1": 1}, "7": {"2": 0}}


def test_no_text_is_lost_at_a_tag_within_a_field(tmp_path: Path) -> None:
    """As in TREC's disks: paragraphs in a text and in a headline, attributes, a lonely <."""
    assert (
        prepared(
            tmp_path,
            documents="<DOC><DOCNO> LA-1 </DOCNO><HEADLINE><P>Wings</P></HEADLINE>"
            '<TEXT type="a"><P>One <i>two</i> three.</P><P>4 < 5</P></TEXT></DOC>',
            judgements="301 0 LA-1 1\n",
        )
        == 0
    )
    assert lines(tmp_path / "out" / "documents.jsonl") == [
        {"id": "LA-1", "title": "Wings", "text": "One two three. 4 < 5"}
    ]


def test_judgements_that_number_queries_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judgements = "1 0 FT-1 1\n2 0 FT-1 1\n7 0 FT-1 1\n"
    assert prepared(tmp_path, judgements=judgements) == 0
    told = capsys.readouterr()
    assert "1 of 3 judgements are of these queries" in told.out
    assert "--queries-in-order" in told.err
    assert prepared(tmp_path, "--queries-in-order", judgements="1 0 FT-1 1\n2 0 FT-1 1\n") == 0
    assert capsys.readouterr().err == ""
    assert [row["_id"] for row in lines(tmp_path / "out" / "queries.jsonl")] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("documents", "nothing", r"no <doc> ... </doc> in it"),
        ("documents", "<doc><text>a</text></doc>", r"document 1 has no <docno>"),
        ("documents", "<doc><docno>1</docno></doc>", r"no document has a <text> or <body>"),
        (
            "documents",
            f"<doc><docno>1</docno><text>&#{'0' * 5000}65;</text></doc>",
            r"<text> of <doc> 1: a character is written as &# and thousands of digits",
        ),
        ("queries", "<top><num>1</num></top>", r"topic 1 lacks <num> or <title>"),
        ("queries", "<top><num>1<title>a</top>" * 2, r"two topics have the number 1"),
        ("judgements", "1 0 a 1\n1 a 1\n", r"line 2: is not like: query 0 document grade"),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepared(tmp_path, **{name: content}) == 2
    assert f"error: {tmp_path / name}" in (told := capsys.readouterr().err)
    assert message in told
    assert not (tmp_path / "out").exists()


def test_two_collections_do_not_mix_in_one_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one comes when we have written the first of the three files."""
    write, codes = prepare_trec._write_lines, list[int]()

    def before_the_other(path: Path, rows: list[dict[str, str]]) -> None:
        write(path, rows)
        if path.name == "documents.jsonl":
            (tmp_path / "theirs").mkdir()
            documents = str(tmp_path / "theirs" / "documents")
            Path(documents).write_text(DOCUMENTS.replace("FT-1", "FT-2"))
            given = ["--queries", str(tmp_path / "queries"), "--documents", documents]
            given += ["--judgements", str(tmp_path / "judgements")]
            codes.append(prepare_trec.main([*given, "--output", str(tmp_path / "out")]))

    monkeypatch.setattr(prepare_trec, "_write_lines", before_the_other)
    assert prepared(tmp_path) == 0
    assert codes == [2]
    assert "out: somebody else is writing there; choose another" in capsys.readouterr().err
    assert lines(tmp_path / "out" / "documents.jsonl")[0]["id"] == "FT-1"
    names = ["documents.jsonl", "judgements.tsv", "queries.jsonl"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_cranfield_is_read_as_another_reader_does(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside another reading of the same files; its trap is told when it is walked into."""
    folder = real_data / "cranfield"
    arguments = ["--documents", str(folder / "cran.all.1400.xml"), "--output", str(tmp_path)]
    arguments += ["--queries", str(folder / "cran.qry.xml")]
    arguments += ["--judgements", str(folder / "cranqrel.trec.txt")]
    assert prepare_trec.main(arguments) == 0
    assert "1,226 of 1,837 judgements" in (told := capsys.readouterr()).out
    assert "--queries-in-order" in told.err
    assert prepare_trec.main([*arguments, "--queries-in-order"]) == 0
    assert "1,398 documents (2 without text left out), 225 queries" in capsys.readouterr().out
    documents, queries, grades = read_cranfield(real_data)
    assert {row["id"]: row["text"] for row in lines(tmp_path / "documents.jsonl")} == documents
    judged = read_judged(tmp_path / "queries.jsonl", judgements=tmp_path / "judgements.tsv")
    assert judged.queries == queries
    assert judged.grades == grades


def test_a_document_that_is_not_closed_does_not_swallow_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is one at the end of half a file lost: both are refused."""
    for documents in (DOCUMENTS.replace("</DOC>", ""), f"{DOCUMENTS}<doc><docno>3</docno><text>x"):
        assert prepared(tmp_path, documents=documents) == 2
        assert "documents: " in (told := capsys.readouterr().err) and "that are closed by" in told
