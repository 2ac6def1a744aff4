"""A folder of text files as people have it: each file is one document."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import run
from toolkit.base.errors import BadInput
from toolkit.text.records import Article
from toolkit.text.shards import open_shards
from toolkit.text.sources import find_inputs
from toolkit.text.whole_files import decoded, title_of, unwrapped, without_embedded

PROSE = "Die Strömung über dem Flügel wird turbulent, sobald die Störungen groß genug werden. " * 5


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "iso8859-15", "cp850"],
)
def test_a_text_is_read_in_the_encoding_in_which_it_was_written(encoding: str) -> None:
    assert decoded(PROSE.encode(encoding)) == PROSE


def test_japanese_and_russian_in_their_old_encodings() -> None:
    japanese = "翼の上の流れは、擾乱が十分に大きくなると乱流になります。" * 20
    russian = "Течение над крылом становится турбулентным, когда возмущения растут. " * 20
    assert decoded(japanese.encode("shift_jis")) == japanese
    assert decoded(russian.encode("cp1251")) == russian


SENTENCES = {
    "en": "The flow over the wing becomes turbulent as the disturbances grow.",
    "de": PROSE,
    "ru": "Течение над крылом становится турбулентным, когда возмущения растут.",
    "el": "Η ροή πάνω από την πτέρυγα γίνεται τυρβώδης.",
    "he": "הזרימה מעל הכנף הופכת לסוערת כאשר ההפרעות גדלות.",
    "ar": "يصبح التدفق فوق الجناح مضطربا عندما تنمو الاضطرابات.",
    "hi": "पंख के ऊपर का प्रवाह अशांत हो जाता है।",
    "th": "กระแสลมเหนือปีกจะปั่นป่วน เมื่อการรบกวนมากพอ",
    "ja": "翼の上の流れは、擾乱が十分に大きくなると乱流になります。",
    "zh": "机翼上方的气流，在扰动足够大时变为湍流。",
    "ko": "날개 위의 흐름은 교란이 커지면 난류가 된다.",
    "signs": "Wings \U0001f6e9 are great \U0001f44d, aren’t they?",
}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("language", SENTENCES)
def test_wide_characters_without_a_mark(language: str, encoding: str) -> None:
    for text in (f"{SENTENCES[language]}\n", f"{SENTENCES[language]}\r\n" * 30):
        assert decoded(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("language", "encoding"),
    [("ja", "iso2022_jp"), ("ja", "iso2022_jp_2004"), ("zh", "iso2022_jp_2"), ("ko", "iso2022_kr")],
)
def test_encodings_of_seven_bits(language: str, encoding: str) -> None:
    text = f"{SENTENCES[language]}\nABC\n"
    assert decoded(text.encode(encoding)) == text


@pytest.mark.parametrize(
    "content",
    [
        b"a text with one\0 byte that is zero, and with an even number of bytes",
        b"name\0value\0other\0thing\0" * 50,
        b"file.txt" + b"\0" * 92 + b"0000644\0" + b"\0" * 400 + b"An archive of tar. " * 40,
        "Größe über\0 alles Maß".encode("cp1252"),
        "翼の上の流れ\0は乱流".encode("shift_jis"),
        b"\x1b$)A\x0e<:=;\x0f is ISO-2022-CN\n",
        b"an escape \x1b$ of nothing",
    ],
)
def test_what_only_looks_like_such_a_text_gives_none(content: bytes) -> None:
    assert decoded(content) is None


def test_an_escape_sequence_of_colour_is_no_encoding() -> None:
    text = "\x1b[31mred\x1b[0m costs $ 5\n"
    assert decoded(text.encode()) == text


def test_an_embedded_image_is_left_out_and_the_text_stays(tmp_path: Path) -> None:
    image = "data:image/png;base64," + "iVBORw0KGgo+/" * 1000 + "=="
    text = f'# Flow\n\nBefore ![the wing]({image} "title") and after.\n\n[w]: {image}\n\nThe end.\n'
    assert without_embedded(text) == "# Flow\n\nBefore the wing and after.\n\n[w]: \n\nThe end.\n"
    assert without_embedded(f'<img src="{image}" alt="x">') == '<img src="" alt="x">'
    plain = "A short data:text/plain,hello and ![a picture](pictures/a.png) stay. ![x]"
    assert without_embedded(plain) == plain
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text(text)
    out = tmp_path / "out"
    command = [sys.executable, "data_scripts/shard_wikipedia.py", "--whole-files", "--input"]
    run([*command, str(tmp_path / "in"), "--output", str(out)])
    assert open_shards(out).text(0) == "Before the wing and after.\n[w]:\nThe end."


@pytest.mark.parametrize(
    "signs", ["café – déjà vu", "“quoted”, naïve", "£5 at 20° C", "Größe", "’s"]
)
def test_a_few_signs_in_much_ascii_are_western(signs: str) -> None:
    text = (
        f"The flow over the wing grows, {signs}, as soon as the disturbances do so. "
        + "Words. " * 60
    )
    assert decoded(text.encode("cp1252")) == text


def test_many_letters_tell_other_encodings() -> None:
    text = (
        "Przepływ nad skrzydłem staje się turbulentny, gdy zaburzenia rosną. Właściwości warstwy "
        "przyściennej mierzono ciśnieniomierzem, a łódka płynęła dalej. "
    )
    assert decoded(text.encode("cp1250")) == text


def test_a_text_that_was_cut_in_a_character_keeps_its_encoding() -> None:
    content = PROSE.encode()[: PROSE.encode().rindex("ö".encode()) + 1]
    assert decoded(content) == PROSE[: PROSE.rindex("ö")] + "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9, b"\xff\xfe\0", b"a\0b"])
def test_what_is_no_text_gives_none(content: bytes) -> None:
    assert decoded(content) is None


def test_lines_of_a_wrapped_paragraph_are_joined_and_others_are_kept() -> None:
    wrapped = "The first paragraph\ngoes on here.\n\n  \nThe second\none.\n- a\n- b\nc\n"
    wrapped = wrapped.replace("\n", "\r\n")
    assert unwrapped(wrapped) == "The first paragraph goes on here.\nThe second one.\n- a\n- b c"
    poem = "One line\nanother line\n"
    assert unwrapped(poem) == "One line\nanother line"
    long = f"{'word ' * 40}\nnext line\n\nlast"
    assert unwrapped(long).count("\n") == 2


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("in/Boundary_layers-over  wings.txt.gz", "Boundary layers over wings"),
        ("doc_0012.txt", ""),
        ("3f9a.md", ""),
        ("Report 2021 Q3.txt", ""),
        ("Annual Report 2021.txt", "Annual Report 2021"),
    ],
)
def test_a_file_name_that_says_something_is_the_title(name: str, title: str) -> None:
    assert title_of(name) == title


def test_a_folder_with_odd_names_becomes_shards_with_a_document_per_file(tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    (folder / "sub folder").mkdir(parents=True)
    files = {
        "a.txt": b"One document\nof two lines.",
        "Ünïcode näme & (1).txt": "Second document.".encode("utf-16"),
        "sub folder/notes.md": b"# What we saw\n\nThird document.",
        "empty.txt": b"",
        "rows.jsonl": b'{"id": "j", "text": "A row."}\n',
        "picture.png": b"\x89PNG",
        ".hidden.txt": b"not this one",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / os.fsdecode(b"n\xffame.txt")).write_bytes(b"A name that is not UTF-8.")
    out = tmp_path / "shards"
    command = [sys.executable, "data_scripts/shard_wikipedia.py", "--whole-files", "--input"]
    said = run([*command, str(folder), "--output", str(out)])
    shards = open_shards(out)
    records = {record["id"]: record for record in shards.records(0, len(shards))}
    assert {name: record["text"] for name, record in records.items()} == {
        "a.txt": "One document\nof two lines.",
        "Ünïcode näme & (1).txt": "Second document.",
        "sub folder/notes.md": "Third document.",
        "j": "A row.",
        r"n\xffame.txt": "A name that is not UTF-8.",
    }
    assert records["sub folder/notes.md"]["title"] == "What we saw"
    assert "1 left out: empty" in said
    # A damaged shard is made again from the same folder.
    shard = next(out.glob("shard-*.parquet"))
    before = shard.read_bytes()
    shard.write_bytes(before[:-5])
    repair = [sys.executable, "data_scripts/verify_shards.py", str(out), "--repair", "--source"]
    run([*repair, str(folder)])
    assert shard.read_bytes() == before


def test_a_binary_file_called_txt_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9)
    command = [sys.executable, "data_scripts/shard_wikipedia.py", "--whole-files", "--input"]
    said = run([*command, str(tmp_path / "in"), "--output", str(tmp_path / "out")], code=2)
    assert "no text in any known encoding" in said
    assert not (tmp_path / "out").exists()


def test_without_the_option_a_text_file_has_a_document_per_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert [given.kind for given in find_inputs([tmp_path])] == ["text"]
    assert [given.kind for given in find_inputs([tmp_path], whole_files=True)] == ["file"]
    (tmp_path / "b.rst").write_text("one")
    with pytest.raises(BadInput, match="unknown kind of file"):
        find_inputs([tmp_path / "b.rst"])


def test_what_is_kept_of_a_file_is_an_article() -> None:
    from toolkit.text.whole_files import WholeFile

    document = WholeFile(Path("x.txt"), name="x.txt").document(b"words", number=0)
    assert document == Article(id="x.txt", title="", url="", text="words")
