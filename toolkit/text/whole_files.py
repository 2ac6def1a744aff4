"""Files that are one document each: .txt, .md and .rst files as people have them.

Knows encodings of text, hard-wrapped lines, and titles in file names. Refuses to know which files
are read so (`sources`).
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

import regex
from charset_normalizer import from_bytes

from toolkit.text.packed import open_packed
from toolkit.text.records import Article, Rejected, read_errors

RULES_VERSION = 2  # raise it when the same bytes give another document
MAX_FILE_BYTES = 32 * 2**20
# The longer marks first: that of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Japanese and Korean of seven bits, which are ASCII to the byte, but for the escape sequences that
# change the character set: all contain ESC $.
ESCAPED = ("iso2022_jp", "iso2022_jp_2", "iso2022_jp_ext", "iso2022_jp_2004", "iso2022_kr")
GOOD_PER_BAD = 10  # characters of several bytes for each bad byte, for a text to be UTF-8
FEW_SIGNS = 0.04  # of all bytes: fewer that are not ASCII do not tell encodings apart
_SIGNS = bytes(range(128, 256))
WRAPPED_CHARS = 120  # lines of a hard-wrapped text are shorter
TITLE_WORDS = 2  # a file name with fewer words, such as doc_0012, says nothing
# What a text has only when it is read in a wrong encoding: control characters (but for tabs, line
# ends and form feeds), and characters that are not assigned.
_STRANGE = regex.compile(r"[\p{Cn}\p{Co}\p{Cs}\p{Cc}--\t\n\v\f\r\x85]", regex.V1)
STRANGE_SHARE = 0.01
_HAN = regex.compile(r"\p{Han}")
_OF_HAN = regex.compile(r"[\u3001-\u30ff\uff00-\uffef]")  # kana and punctuation
OF_HAN_SHARE = 0.01
# An image or another file that stands in the text itself, as one word of base64; in Markdown with
# its caption, which is kept.
_EMBEDDED = re.compile(
    r"(?i)(?:!\[([^\[\]\n]*)\]\(<?)?data:[a-z]+/[^\s()\"'<>]{100,}>?(?:[ \t]+\"[^\"\n]*\")?\)?"
)
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_HEADING = re.compile(r"#{1,6}[ \t]+([^\n]+)")


class WholeFile:
    """A file with one document, as a `Source`. The document is named by the path of the file."""

    seeks = False

    def __init__(self, path: Path, *, name: str) -> None:
        self._path, self._name = path, name

    def rows(self, start: int) -> Iterator[bytes]:
        """The content of the file, at most one byte more than a document may have."""
        if start == 0:
            with open_packed(self._path) as handle, read_errors():
                yield handle.read(MAX_FILE_BYTES + 1)

    def num_bytes(self, row: bytes) -> int:
        """The size of the content in bytes."""
        return len(row)

    def document(self, row: bytes, *, number: int) -> Article | Rejected:  # noqa: ARG002
        """The document. Its title is the heading with which it begins, or the words of its file's
        name."""
        if len(row) > MAX_FILE_BYTES:
            return Rejected(f"longer than {MAX_FILE_BYTES // 2**20} MiB", is_bad=True)
        text = decoded(row)
        if text is None:
            return Rejected("no text in any known encoding", is_bad=True)
        text = unwrapped(without_embedded(text))
        if not text:
            return Rejected("empty", is_bad=False)
        title = title_of(self._name)
        if heading := _HEADING.match(text):
            rest = text[heading.end() :].strip()
            title, text = (heading[1].strip(), rest) if rest else (title, text)
        return Article(id=self._name, title=title, url="", text=text)


def decoded(content: bytes) -> str | None:
    """The text that bytes hold: by their mark, else as UTF-8, else in the encoding that
    charset-normalizer finds most likely; None for what is no text, such as a picture.

    UTF-16 and UTF-32 without a mark, and ISO-2022, are looked for before: both may be UTF-8 too, to
    the byte. Of the former charset-normalizer knows a part, of the latter nothing.
    """
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return _if_text(_strictly(content[len(mark) :], encoding))
    if b"\0" in content:
        return _wide(content)
    if b"\x1b$" in content and content.isascii():
        found = (_strictly(content, encoding) for encoding in ESCAPED)
        return next((text for text in found if text and not _STRANGE.search(text)), None)
    if (text := _strictly(content, "utf-8")) is not None:
        return text
    # A few bad bytes in much UTF-8, as where a file was cut, make it no other encoding.
    text = content.decode(errors="replace")
    num_bad = text.count("\N{REPLACEMENT CHARACTER}")
    num_good = sum(not character.isascii() for character in text) - num_bad
    if num_bad * GOOD_PER_BAD <= num_good:
        return text
    return _if_text(_likeliest(content))


def _likeliest(content: bytes) -> str | None:
    """The text in the encoding that charset-normalizer finds most likely.

    A few signs in much ASCII, such as quotes and the letters of names, say nearly nothing, and it
    then prefers Baltic or Polish letters as often as not: there we take Western European (cp1252),
    as browsers do, where it is nearly as likely.
    """
    found = from_bytes(content)
    best = found.best()
    if best is None:
        return None
    num_signs = len(content) - len(content.translate(None, _SIGNS))
    if num_signs <= FEW_SIGNS * len(content):
        for one in found:
            is_western = "cp1252" in (one.encoding, *one.could_be_from_charset)
            is_near = one.chaos <= best.chaos + 0.02 and one.coherence >= best.coherence - 0.1
            if is_western and is_near:
                return str(one)
    return str(best)


def _strictly(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _wide(content: bytes) -> str | None:
    """The text of UTF-32 or UTF-16 without a mark, which has zero bytes, as no other encoding has;
    None for anything else with such bytes.

    In UTF-32 the highest byte of each character is zero. In UTF-16 it is that of all ASCII, of
    which every script uses at least blanks or line ends, while a lowest byte seldom is.
    """
    for encoding, highest in (("utf-32-le", 3), ("utf-32-be", 0)):
        if not any(content[highest::4]) and (text := _strictly(content, encoding)) is not None:
            return _if_plausible(text)
    num_zeros = {"utf-16-be": content[0::2].count(0), "utf-16-le": content[1::2].count(0)}
    encoding = max(num_zeros, key=lambda one: num_zeros[one])
    # ASCII with a few zero bytes would be read as ideographs.
    rest = _strictly(content.replace(b"\0", b""), "utf-8")
    is_narrow = rest is not None and _STRANGE.search(rest) is None
    if is_narrow and num_zeros[encoding] < len(content) // 4:
        return None
    return _if_plausible(_strictly(content, encoding))


def _if_plausible(text: str | None) -> str | None:
    """The text, unless it has characters that show that its encoding is another: such as no text
    has, or ideographs without the kana or the punctuation that stand between them."""
    if text is None or "\0" in text:
        return None
    if len(_STRANGE.findall(text)) > STRANGE_SHARE * len(text):
        return None
    num_han = len(_HAN.findall(text))
    is_bare = len(_OF_HAN.findall(text)) < OF_HAN_SHARE * num_han
    return None if is_bare and num_han > len(text) // 2 else text


def _if_text(text: str | None) -> str | None:
    return None if text is None or "\0" in text else text


def without_embedded(text: str) -> str:
    """The text without the images and other files that stand in it as data URIs."""
    return _EMBEDDED.sub(lambda found: found[1] or "", text)


def unwrapped(text: str) -> str:
    """The text with one newline between paragraphs. In a text whose paragraphs are separated by
    blank lines and whose lines are short, the lines of a paragraph are joined: a sentence would
    otherwise end with its line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    paragraphs = _BLANK_LINES.split(text)
    lines = [len(line) for line in text.split("\n")]
    is_wrapped = len(paragraphs) > 1 and max(lines) <= WRAPPED_CHARS
    if is_wrapped:
        paragraphs = [_joined(paragraph) for paragraph in paragraphs]
    return "\n".join(
        line.strip() for part in paragraphs for line in part.split("\n") if line.strip()
    )


def _joined(paragraph: str) -> str:
    """The lines of a paragraph as one, but for headings and the items of lists."""
    whole: list[str] = []
    for line in paragraph.split("\n"):
        stands_alone = re.match(r"\s*([-*+>#|]|\d+[.)])\s", line) is not None
        after_heading = bool(whole) and whole[-1].startswith("#")
        if whole and not stands_alone and not after_heading:
            whole[-1] = f"{whole[-1].rstrip()} {line.strip()}"
        else:
            whole.append(line)
    return "\n".join(whole)


def title_of(name: str) -> str:
    """The words in a file's name, if it has any that say something; otherwise empty."""
    words = re.split(r"[\s_\-.]+", Path(name).name.partition(".")[0])
    telling = [word for word in words if sum(map(str.isalpha, word)) > 1]
    return " ".join(word for word in words if word) if len(telling) >= TITLE_WORDS else ""
