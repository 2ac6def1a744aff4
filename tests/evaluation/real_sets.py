"""Real collections as texts and judgements; mind their traps (the notes with the data)."""

import re
from pathlib import Path

Grades = dict[str, dict[str, int]]


def read_cranfield(real_data: Path) -> tuple[dict[str, str], dict[str, str], Grades]:
    """Documents that are not empty, queries numbered in order as the judgements number them, and
    grades."""
    folder = real_data / "cranfield"
    text = (folder / "cran.all.1400.xml").read_text(encoding="utf-8")
    documents = {}
    for found in re.findall(r"<doc>(.*?)</doc>", text, re.DOTALL):
        body = " ".join(_inside(found, "text").split())
        if body:
            documents[_inside(found, "docno").strip()] = body
    text = (folder / "cran.qry.xml").read_text(encoding="utf-8")
    titles = re.findall(r"<title>(.*?)</title>", text, re.DOTALL)
    queries = {str(number): " ".join(title.split()) for number, title in enumerate(titles, 1)}
    grades: Grades = {}
    for line in (folder / "cranqrel.trec.txt").read_text().splitlines():
        query, _, document, grade = line.split()
        grades.setdefault(query, {})[document] = max(0, int(grade))
    return documents, queries, grades


def read_entailment(real_data: Path, *, rows: int) -> tuple[list[str], list[str], list[int]]:
    """Premises, hypotheses, and 1 where the one entails the other."""
    folder = real_data / "snli_devtest"
    columns = [
        (folder / f"{name}.test").read_text(encoding="utf-8").splitlines()[:rows]
        for name in ("s1", "s2", "labels")
    ]
    return columns[0], columns[1], [int(label == "entailment") for label in columns[2]]


def _inside(text: str, name: str) -> str:
    found = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
    return found.group(1) if found else ""
