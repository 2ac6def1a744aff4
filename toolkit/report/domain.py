"""What a person wants to know first of an encoder that was adapted to a domain.

Knows the files of the stages that adapt one. Refuses to know scores, which have sections of their
own.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import Count, checked
from toolkit.base.files import is_committed, read_json
from toolkit.base.layout import (
    CHOSEN_FILE,
    CONFIG_FILE,
    DOCUMENTS_FILE,
    ENCODER_DIR,
    MANIFEST_FILE,
    SEARCHED_DIR,
)
from toolkit.base.shown import in_html
from toolkit.report.html import Section, came_from, table
from toolkit.runs.standing import Standing

DEPLOY = """\
# in Python
from sentence_transformers import SentenceTransformer
SentenceTransformer({model!r}).encode(["a text"])

# as a service
vllm serve {model} --runner pooling

# a corpus, and searches in it: with FAISS, or fused with BM25
python -m toolkit.encode embed_corpus encoder.model={model} \\
    corpus.input={corpus} output_dir=embeddings
python -m toolkit.search embeddings --build-index hnsw
python -m toolkit.search embeddings "a question" --index hnsw
python -m toolkit.search embeddings "a question" --hybrid
"""


class _Part(TypedDict):
    documents: Count
    passages: Count


class _Documents(TypedDict):
    documents: Count
    parts: dict[str, _Part]
    settings: dict[str, Any]
    not_read: NotRequired[dict[str, Count]]


class _Asked(TypedDict):
    asked: Count
    kept: Count
    dropped: dict[str, Count]


class _Questions(TypedDict):
    counts: _Asked


class _Chosen(TypedDict):
    encoder: str
    ratio: float
    model: str
    digest: str


def of_domain(
    run: Path, stages: Sequence[Standing], *, places: Mapping[str, Path]
) -> Iterator[Section]:
    """The sections on data, deployment and recipe; none for a run without documents."""
    kinds = {one.stage: one.kind for one in stages}
    folders = [places[name] for name, kind in kinds.items() if kind == "documents"]
    found = [folder for folder in folders if (folder / DOCUMENTS_FILE).is_file()]
    if not found:
        return
    text = _documents(found[0])
    rows = [
        _questions(name, places[name] / MANIFEST_FILE)
        for name, kind in kinds.items()
        if kind == "questions" and (places[name] / MANIFEST_FILE).is_file()
    ]
    yield "What it was trained on", text + (table(rows) if rows else ""), "", b""
    chosen = [folder for folder in places.values() if (folder / CHOSEN_FILE).is_file()]
    trained = [name for name, folder in places.items() if is_committed(folder / ENCODER_DIR)]
    if chosen or trained:
        # Where none was chosen among merges, it is what the last training stage has made.
        about = _chosen(chosen[-1]) if chosen else _trained(trained[-1], places[trained[-1]])
        text = about[0] + _deploy(about[1], source=found[0])
        yield "The encoder, and how to deploy it", text, "", b""
    if (run / CONFIG_FILE).is_file():
        recipe = (run / CONFIG_FILE).read_text(encoding="utf-8")
        yield "The recipe", f"<details>{_as_written(recipe)}</details>", "", b""


def _documents(folder: Path) -> str:
    path = folder / DOCUMENTS_FILE
    found = checked(read_json(path), _Documents, source=path, advice="collect them again")
    rows = [
        {"part": part, "documents": count["documents"], "passages": count["passages"]}
        for part, count in found["parts"].items()
    ]
    source = in_html(str(found["settings"].get("source", "")))
    told = (
        f"<p>{found['documents']:,} documents of {source}. Training sees passages of the part "
        "train alone; what dev and test ask for is searched in all of them.</p>"
    )
    if passed := found.get("not_read"):
        most_first = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{reason} {count:,}" for reason, count in most_first)
        told += f"<p>Not read: {in_html(counts)}.</p>"
    return came_from(path) + told + table(rows)


def _questions(stage: str, path: Path) -> dict[str, Any]:
    counts = checked(read_json(path), _Questions, source=path, advice="write them again")["counts"]
    left_out = ", ".join(f"{why} {count:,}" for why, count in counts["dropped"].items())
    return {
        "questions": stage,
        "asked": counts["asked"],
        "kept": counts["kept"],
        "left out": left_out or "none",
    }


def _chosen(folder: Path) -> tuple[str, str]:
    """HTML about the encoder that was chosen among merges, and its folder."""
    path = folder / CHOSEN_FILE
    chosen = checked(read_json(path), _Chosen, source=path, advice="run the evaluation again")
    told = (
        f"<p>Chosen: {in_html(chosen['encoder'])}, with {chosen['ratio']:.0%} of the domain's "
        f"encoder; weights {in_html(chosen['digest'][:16])}, in {in_html(chosen['model'])}.</p>"
    )
    return came_from(path) + told, chosen["model"]


def _trained(stage: str, folder: Path) -> tuple[str, str]:
    """HTML about the encoder of a training stage, and its folder."""
    encoder = (folder / ENCODER_DIR).absolute()
    told = f"<p>Trained by the stage {in_html(stage)}, and not merged; in {in_html(encoder)}.</p>"
    return told, str(encoder)


def _deploy(model: str, *, source: Path) -> str:
    places = {"model": model, "corpus": str(source / SEARCHED_DIR)}
    return _as_written(
        DEPLOY.format(**{name: shlex.quote(place) for name, place in places.items()})
    )


def _as_written(text: str) -> str:
    """Lines of text as a block of HTML."""
    return "<pre>" + "\n".join(in_html(line) for line in text.splitlines()) + "</pre>"
