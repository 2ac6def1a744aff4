"""A folder as people have it: odd names, old encodings, all sizes, and files that are no texts."""

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from tests.conftest import run
from toolkit.text.shards import open_shards

NAMES = [
    b"plain {n}.txt",
    b"with  blanks {n}.md",
    b"hash#{n}.txt",
    b"100%{n}.txt",
    b"q'uo\"te{n}.rst",
    "emoji \U0001f6e9 {n}.txt".encode(),
    b"latin\xe9\xff{n}.TXT",
    b"-dash{n}.txt",
    b"new\nline{n}.md",
    b"*[?] \\ | {n}.txt",
    b"long" + b"x" * 240 + b"{n}.txt",
]
ENCODINGS = {
    "wing flow layer heat plate jet nozzle panel load shell court lease notice duty title pump": (
        ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"]
    ),
    "течение над крылом становится турбулентным когда возмущения растут слой давление опыт прибор "
    "стена поток воздух скорость": ["cp1251", "utf-16-be", "utf-8"],
    "翼の上の 流れは 乱流に なります 境界層の 圧力計を 実験で 記録し 速度が 空気と": (
        ["shift_jis", "iso2022_jp", "utf-16-le", "gb18030"]
    ),
}


def text_of(number: int, words: str) -> str:
    """Sentences of words drawn by the number, with what stands between them in this script."""
    draw = random.Random(number)
    blank, stop = (" ", ". ") if words[0] != "翼" else ("", "。")
    known = words.split()
    return "".join(blank.join(draw.choices(known, k=9)) + stop for _ in range(8)).strip()


def fill(folder: Path) -> dict[str, str]:
    """Write the documents; returns the text of each, by its name as an id."""
    wanted = {}
    cases = [(words, encoding) for words, some in ENCODINGS.items() for encoding in some]
    for number in range(132):
        words, encoding = cases[number % len(cases)]
        name = NAMES[number % len(NAMES)].replace(b"{n}", b"%d" % number)
        if number % 3:
            name = b"sub folder/deep\xff/" + name
        text = text_of(number, words)
        path = os.fsencode(folder) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as handle:
            handle.write(text.encode(encoding))
        wanted[name.decode("utf-8", "backslashreplace")] = text
    return wanted


def test_every_file_of_any_folder_is_accounted_for(tmp_path: Path) -> None:
    folder, out = tmp_path / "papers", tmp_path / "out"
    wanted = fill(folder)
    for number in range(4):
        (folder / f"empty {number}.txt").write_bytes(b"" if number % 2 else b" \n")
        (folder / f"picture {number}.txt").write_bytes(random.Random(number).randbytes(3000))
        (folder / f"scan {number}.pdf").write_bytes(b"%PDF-1.4")
    (folder / "copy.txt").write_text(wanted["plain 0.txt"])
    (folder / "word.md").write_text("Word")
    (folder / "large.txt").write_text(" ".join(map(str, range(200_000))))
    (folder / "circle").symlink_to(folder)
    (folder / ".git").mkdir()
    said = run(
        [sys.executable, "-m", "toolkit.launch", "domain_documents", "--cluster", "local"]
        + ["--gpus-per-node", "0", f"source={folder}", f"output_dir={out}"]
    )
    shards = open_shards(out / "source")
    found = {record["id"]: record["text"] for record in shards.records(0, len(shards))}
    wrong = {name for name, text in wanted.items() if found.get(name) != text}
    left = pq.read_table(out / "source" / "duplicates.parquet")["file"].to_pylist()
    assert wrong == {*left} & {*wanted}
    assert left in (["copy.txt"], ["plain 0.txt"])
    assert set(found) - set(wanted) >= {"word.md", "large.txt"}
    content = json.loads((out / "documents.json").read_text())
    assert content["not_read"] == {"linked folder": 1, ".pdf": 4, "hidden": 1}
    assert content["documents"] == len(wanted) + 2
    assert "4 left out of source: empty" in said
    assert "4 left out of source: no text in any known encoding" in said
    rows = pq.read_table(out / "split.parquet").to_pylist()
    assert len({row["document"] for row in rows}) == content["documents"]
    assert all(len(row["id"].split()) == 1 for row in rows)
    assert Counter(row["part"] for row in rows)["dev"] == content["parts"]["dev"]["passages"]
