"""Words and tags of every format, how spans are marked, and files that cannot be used."""

import gzip
import re
from pathlib import Path

import pytest

from toolkit.base.errors import BadInput
from toolkit.evaluation.words import Tagged, WordData, read_word_data, scheme_of
from toolkit.settings.task_schema import WordTask

# As in CoNLL-2003, whose spans begin with I (IOB1).
CONLL = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O
. . O O

# # I-NP O
1 CD I-NP O
\u2028 : O O

"""
CONLLU = """# sent_id = 1
# text = I don't.
1\tI\tI\tPRON\tPRP\t_\t3\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t0\troot\t_\t_
3\tn't\tnot\tPART\tRB\t_\t2\tadvmod\t_\tSpaceAfter=No
3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t0:root\t_
4\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_

# sent_id = 2
1\t10\u00a0000 km\tkm\tNOUN\tNN\t_\t0\troot\t_\t_
2\t?\t?\tPUNCT\t.\t_\t1\tpunct\t_\t_
"""


def parts_of(folder: Path, name: str, content: str | bytes, **settings: object) -> WordData:
    """Both parts of a task from the same file."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_word_data(
        WordTask.model_validate({"train": str(path), "test": str(path), **settings})
    )


@pytest.mark.parametrize(
    ("column", "tags"),
    [
        ("pos", [["NNP", "VBZ", "JJ", "NN", "."], ["#", "CD", ":"]]),
        (3, [["I-NP", "I-VP", "I-NP", "I-NP", "O"], ["I-NP", "I-NP", "O"]]),
        ("ner", [["I-ORG", "O", "I-MISC", "O", "O"], ["O", "O", "O"]]),
    ],
)
def test_columns_by_name_and_number(
    column: str | int, tags: list[list[str]], tmp_path: Path
) -> None:
    """No document start is a word, # begins no comment, and a line separator is a word."""
    part = parts_of(tmp_path, "eng.txt", CONLL, column=column).train
    assert part.sentences == [
        ["EU", "rejects", "German", "call", "."],
        ["#", "1", "\u2028"],
    ]
    assert part.tags == tags


def test_other_spellings_of_column_files(tmp_path: Path) -> None:
    """Tabs keep blanks in a word; blanks in a row part once; Windows line ends; a byte order mark;
    words in another column; a name that says nothing; gzip."""
    tabs = "New York\tB\r\nis\tO\r\n \r\n\r\nbig\tO\r\n"
    assert parts_of(tmp_path, "a.conll", "\ufeff" + tabs, column=2).train.sentences == [
        ["New York", "is"],
        ["big"],
    ]
    found = parts_of(tmp_path, "b.conll", "1  Bonn   B-LOC \n2 lies O\n", column=3, word_column=2)
    assert (found.train.sentences, found.train.tags) == ([["Bonn", "lies"]], [["B-LOC", "O"]])
    found = parts_of(tmp_path, "eng.testa", CONLL, format="conll", column="pos")
    assert found.train.tags[1] == ["#", "CD", ":"]
    packed = gzip.compress(CONLL.encode())
    assert parts_of(tmp_path, "eng.conll.gz", packed, column="pos").train == Tagged(
        str(tmp_path / "eng.conll.gz"), found.train.sentences, found.train.tags
    )


@pytest.mark.parametrize("column", [None, "upos", 4])
def test_conllu_gives_its_syntactic_words(column: object, tmp_path: Path) -> None:
    """Of a range its words; no empty node; blanks inside of a word."""
    part = parts_of(tmp_path, "x.conllu", CONLLU, column=column).train
    assert part.sentences == [["I", "do", "n't", "."], ["10\u00a0000 km", "?"]]
    assert part.tags == [["PRON", "AUX", "PART", "PUNCT"], ["NOUN", "PUNCT"]]


def test_conllu_has_other_columns(tmp_path: Path) -> None:
    part = parts_of(tmp_path, "x.conllu", CONLLU, column="deprel", word_column="lemma").train
    assert part.sentences[0] == ["I", "do", "not", "."]
    assert part.tags[0] == ["nsubj", "root", "advmod", "punct"]


def test_the_real_treebank(real_data: Path) -> None:
    """Every line that begins with a whole number is a word, and no other."""
    folder = real_data / "ud_english_ewt"
    test = folder / "en_ewt-ud-test.conllu"
    found = read_word_data(WordTask(train=str(folder / "en_ewt-ud-dev.conllu"), test=str(test)))
    rows = re.findall(r"^[0-9]+\t([^\t]+)\t[^\t]+\t([^\t]+)\t", test.read_text(), re.MULTILINE)
    assert [word for words in found.test.sentences for word in words] == [row[0] for row in rows]
    assert found.test.all_tags == [row[1] for row in rows]
    assert (len(found.train.sentences), len(found.test.sentences)) == (2001, 2077)
    assert len(set(found.train.all_tags)) == 17
    assert found.scheme == "none"


@pytest.mark.parametrize("as_numbers", [False, True])
def test_saved_data_sets(as_numbers: bool, tmp_path: Path) -> None:
    """Tags as texts or as numbers of a class label; parts of a `DatasetDict`, or a folder each."""
    import datasets

    names = ["O", "B-PER", "I-PER"]
    rows = {"tokens": [["Ada", "Byron", "wrote"], [], ["So", "Ada"]]}
    tags = [["B-PER", "I-PER", "O"], [], ["O", "B-PER"]]
    if as_numbers:
        rows["ner_tags"] = [[names.index(tag) for tag in row] for row in tags]
        kind = datasets.List(datasets.ClassLabel(names=names))
    else:
        rows["ner_tags"] = tags
        kind = datasets.List(datasets.Value("string"))
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": kind}
    )
    found = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": found, "test": found.select([2])}).save_to_disk(tmp_path / "d")
    task = {"train": str(tmp_path / "d"), "test": str(tmp_path / "d"), "column": "ner_tags"}
    parts = read_word_data(WordTask.model_validate(task))
    assert parts.train.sentences == [["Ada", "Byron", "wrote"], ["So", "Ada"]]
    assert parts.train.tags == [["B-PER", "I-PER", "O"], ["O", "B-PER"]]
    assert parts.test.sentences == [["So", "Ada"]]
    with pytest.raises(
        BadInput, match=r"no column 'pos'; give column= as one of tokens, ner_tags or"
    ):
        read_word_data(WordTask.model_validate({**task, "column": "pos"}))
    with pytest.raises(BadInput, match="no column is named for the tags; give column= as one of"):
        read_word_data(WordTask.model_validate({**task, "column": None}))
    (found.select([0])).save_to_disk(tmp_path / "alone")
    parts = read_word_data(WordTask.model_validate({**task, "test": str(tmp_path / "alone")}))
    assert parts.test.tags == tags[:1]
    datasets.DatasetDict({"train": found}).save_to_disk(tmp_path / "half")
    with pytest.raises(BadInput, match=r"half': no split 'test', only train"):
        read_word_data(WordTask.model_validate({**task, "test": str(tmp_path / "half")}))


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        ([["a", "b"], ["c"]], [[0, 1], [1, 0]], r"row 1 of 'train': 1 words \(tokens\), 2 tags"),
        ([["a", "b"]], [[0, -1]], r"row 0 of 'train': -1 is not a tag; valid: 0 to 1"),
        ([["a", None]], [[0, 1]], r"row 0 of 'train': None is not a word: give texts"),
        ([["a", "b"], ["c"]], [[0, 1], None], r"row 1 of 'train': tags is None: give a list"),
    ],
)
def test_rows_of_data_sets_that_cannot_be_used(
    tokens: list[list[str]], tags: list[list[int] | None], message: str, tmp_path: Path
) -> None:
    import datasets

    label = datasets.List(datasets.ClassLabel(names=["O", "X"]))
    kinds = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": label})
    found = datasets.Dataset.from_dict({"tokens": tokens, "tags": tags}, features=kinds)
    found.save_to_disk(tmp_path / "d")
    with pytest.raises(BadInput, match=message):
        read_word_data(WordTask(train=str(tmp_path / "d"), test=str(tmp_path / "d"), column="tags"))


GOOD = b"a X\nb Y\n"


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.txt", GOOD + b"c\n", 2, r"a\.txt, line 3: 1 columns instead of 2: 'c'"),
        ("a.txt", GOOD + b"c d X\n", 2, r"line 3: 3 columns instead of 2: 'c d X'"),
        ("a.txt", b"a\tX\nb\t\n", 2, r"line 2: column 2 has no tag"),
        ("a.txt", GOOD, 3, r"line 1: no column 3; .* one of word, pos or a number from 1 to 2"),
        ("a.txt", GOOD, "ner", r"line 1: no column 'ner'; give column= as one of word, pos or"),
        ("a.txt", GOOD, None, r"line 1: no column is named for the tags; give column="),
        ("a.txt", GOOD + b"caf\xe9 X\n", 2, r"line 3: is not UTF-8 \(.*\); .* iconv -f LATIN1"),
        ("a.txt", "a X\nb Y\n".encode("utf-16"), 2, r"line 1: is not UTF-8"),
        ("a.txt", b"", 2, r"a\.txt: no sentences of words"),
        ("a.txt", b"-DOCSTART- O\n\n", 2, r"a\.txt: no sentences of words"),
        ("a.txt", b"a X\nb X\n", 2, r"all 2 words have the tag 'X': nothing to tell apart"),
        ("a.conllu.gz", gzip.compress(CONLLU.encode())[:-20], 4, r"cannot be read after line \d+"),
        ("a.txt.gz", GOOD, 2, r"a\.txt\.gz: cannot be read after line 0"),
        ("a.tsv", GOOD, 2, r"unknown kind of file; give \.conll, \.txt or \.conllu"),
        ("a.conllu", GOOD, 4, r"line 1: 1 columns parted by tabs instead of the 10 of CoNLL-U"),
        (
            "a.conllu",
            CONLLU.replace("\n\n", "\n").encode(),
            None,
            r"line 10: word '1' where 5 should be \(an empty line parts sentences\)",
        ),
        (
            "a.conllu",
            CONLLU.replace("NOUN", "_").encode(),
            None,
            r"line 11: the word '10\\xa0000 km' has no upos",
        ),
        ("a.conllu", CONLLU.encode(), "ner", r"no column 'ner'; .* id, form, lemma, upos, xpos"),
    ],
)
def test_files_that_cannot_be_used(
    name: str, content: bytes, column: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        parts_of(tmp_path, name, content, column=column)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a\.conllu: no such file"):
        read_word_data(WordTask(train=str(tmp_path / "a.conllu"), test="b.conllu"))


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("B-A I-A O B-B B-B", "iob2"),
        ("I-A I-A O I-B B-B", "iob1"),
        ("I-A B-A I-B", "iob1"),
        ("B I O", "iob2"),
        ("B-A I-A E-A O S-B", "iobes"),
        ("S-A O S-A", "iobes"),
        ("B-A I-A L-A O U-B", "bilou"),
        ("B-A I-B", "mixed"),  # neither goes on with an A nor begins as IOB1
        ("B-A O I-A", "mixed"),
        ("B-A O S-A", "mixed"),  # a span that does not end
        ("B-A L-B", "mixed"),
        ("NN O B-NP", "none"),
        ("O-A O", "none"),
    ],
)
def test_how_spans_are_marked(tags: str, scheme: str) -> None:
    assert scheme_of([tags.split()]) == scheme


@pytest.mark.parametrize(
    ("train", "test", "given", "expected"),
    [
        ("B-A I-A O", "B-A O O", "auto", "conlleval"),
        ("B-A I-A O", "B-A O I-A", "auto", "conlleval"),  # as careless annotators write it
        ("B-A I-A O", "B-A O O", "iob2", "iob2"),
        ("B-A I-A O", "B-A O O", "none", "none"),
        ("U-A O", "U-A O", "auto", "bilou"),
        ("B-A I-A O", "I-A O O", "auto", r"spans are marked by iob2 in .*, and by iob1 in"),
        ("B-A I-A O", "NN O", "auto", r"spans are marked by iob2 in .*, and by none in"),
        ("B-A O", "B-A O", "iob1", r"a\.txt: its tags do not keep .* scheme=iob1 \(found: iob2\)"),
        ("B-A O", "B-A O I-A", "iob2", r"b\.txt: its tags do not keep .* \(found: mixed\)"),
        ("NN VB", "NN VB", "iob2", r"scheme=iob2 \(found: none\)"),
        ("B-A I-A L-A O", "B-A O U-A", "auto", r"the tag 'L-A' is of BILOU, whose rules"),
    ],
)
def test_how_spans_are_read(
    train: str, test: str, given: str, expected: str, tmp_path: Path
) -> None:
    for name, tags in (("a.txt", train), ("b.txt", test)):
        (tmp_path / name).write_text("".join(f"w {tag}\n" for tag in tags.split()))
    task = {"train": str(tmp_path / "a.txt"), "test": str(tmp_path / "b.txt"), "column": 2}
    loaded = WordTask.model_validate({**task, "scheme": given})
    if expected in ("conlleval", "iob2", "none", "bilou"):
        assert read_word_data(loaded).scheme == expected
        return
    with pytest.raises(BadInput, match=expected):
        read_word_data(loaded)
