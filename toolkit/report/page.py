"""The page of a run: curves, restarts, scores, neighbours, a map of the embeddings.

Knows what a stage has written, and HTML. Refuses to know how a picture is drawn.
"""

import base64
import contextlib
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.console import say
from toolkit.base.documents import checked
from toolkit.base.files import read_json, write_atomic
from toolkit.base.layout import (
    CHOSEN_FILE,
    COMMIT_MARKER,
    ENCODER_DIR,
    MANIFEST_FILE,
    MERGED_FILE,
    METRICS_FILE,
    PAGE_FILE,
    PART_DIR,
    PLAN_FILE,
    SCORES_FILE,
    UNIT_DIR,
)
from toolkit.base.needs import need_package
from toolkit.base.shown import in_html
from toolkit.encoding.formats import unit_length
from toolkit.evaluation.baselines import not_better
from toolkit.evaluation.parts import main_scores
from toolkit.report.comparison import of_agreement, of_comparison
from toolkit.report.domain import of_domain
from toolkit.report.html import Section, came_from, table
from toolkit.runs.launched import read_launched
from toolkit.runs.records import read_metrics, read_starts
from toolkit.runs.standing import LAST_FILE, Standing, standings

MAP_ROWS, MAP_NAMES, HEAT_ROWS = 2000, 14, 24
SAMPLES, NEIGHBOURS = 6, 3
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 } img { max-width: 100% }
td, th { border-bottom: 1px solid #ccc; padding: .25rem .8rem; text-align: left }
figcaption, .from { color: #666; font-size: .85rem } figure { margin: 1rem 0 }
"""


def report(run: Path, *, output: Path, now: float) -> None:
    """Write the page of a run, dated `now` (Unix seconds). Raises `BadInput` for a folder that is
    no run, and when matplotlib is missing."""
    need_package("matplotlib", of="toolkit.report")
    stages = standings(run, now=now)
    places = {one.name: Path(one.output) for one in read_launched(run)} or {stages[0].stage: run}
    body, pictures = [summary(stages, places=places)], dict[str, bytes]()
    first = list(of_domain(run, stages, places=places))
    # Of a domain, people want to know first whether it was worth it: the last evaluation.
    last_first = list(reversed(stages))
    ordered = sorted(last_first, key=_is_no_evaluation) if first else stages
    every = [first, *(sections(one, output=places[one.stage]) for one in ordered)]
    for some in every:
        for title, text, name, picture in some:
            body.append(f"<h2>{in_html(title)}</h2>{text}")
            if picture:
                # Two names of stages may become the same file name.
                while name in pictures:
                    name = f"_{name}"
                pictures[name] = picture
                data = base64.b64encode(picture).decode()
                body.append(
                    f'<figure><img alt="{in_html(title)}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{in_html(name)}</figcaption></figure>"
                )
    output.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_atomic(output / name, picture)
    title = in_html(run)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><h1>{title}</h1>"
        f'<p class="from">The run as it was on {date(now)}.</p>{"".join(body)}</html>\n'
    )
    write_atomic(output / PAGE_FILE, page)
    say(f"{output / PAGE_FILE}: {len(stages)} stages, {len(pictures)} pictures")


def _is_no_evaluation(one: Standing) -> bool:
    return one.kind != "evaluate"


Scores = Mapping[str, Mapping[str, float]]


def sections(one: Standing, *, output: Path) -> Iterator[Section]:
    """The sections of a stage; each names the file that its numbers come from."""
    from toolkit.report import pictures

    if rows := [row for row in read_metrics(output) if row["step"] or len(row) > 2]:
        starts = read_starts(output)
        restarts = [int(start["step"]) for start in starts[1:]]
        text = came_from(output / METRICS_FILE) + table(start_rows(starts)) + time_spent(rows)
        yield (
            f"{one.stage}: training",
            text,
            picture_name(one, "curves"),
            pictures.curves(rows, restarts=restarts),
        )
    if (output / SCORES_FILE).is_file():
        scores: Scores = read_json(output / SCORES_FILE)
        main = main_scores(output)
        picture = pictures.bars(shown(scores, main=main))
        text = came_from(output / SCORES_FILE) + table(transposed(scores))
        text += "".join(f"<p>{in_html(line)}</p>" for line in not_better(scores, main=main))
        text += of_agreement(output, scores=scores)
        yield f"{one.stage}: scores", text, picture_name(one, "scores"), picture
        yield from of_comparison(one.stage, output=output, scores=scores)
    if (output / CHOSEN_FILE).is_file():
        yield _forgetting(one, path=output / CHOSEN_FILE)
    if one.kind == "embed" and (output / MANIFEST_FILE).is_file():
        yield from of_embeddings(one, output=output)


PHASES = {
    "data_s": "reading",
    "ranks_s": "waiting for other ranks",
    "forward_s": "forward",
    "backward_s": "backward",
    "step_s": "optimizer",
    "save_s": "saving",
}


def time_spent(rows: Sequence[Mapping[str, Any]]) -> str:
    """HTML that says where the time of the steps in a metrics file went; "" for an older one."""
    spent = {name: sum(row.get(key) or 0.0 for row in rows) for key, name in PHASES.items()}
    total = sum(spent.values())
    if not total:
        return ""
    parts = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in spent.items())
    return f"<p>Where the time of these steps went on rank 0: {parts}.</p>"


class _Row(TypedDict):
    encoder: str
    ratio: float
    general: float
    domain: float
    is_allowed: bool


class _Choice(TypedDict):
    encoder: str
    tolerance: float
    rows: list[_Row]


def _forgetting(one: Standing, *, path: Path) -> Section:
    """What merges have forgotten and learnt, and which of them was chosen."""
    from toolkit.report import pictures

    choice = checked(read_json(path), _Choice, source=path, advice="run the evaluation again")
    rows = [
        {
            "ratio": row["ratio"],
            "encoder": row["encoder"],
            "general": row["general"],
            "domain": row["domain"],
            "allowed": "yes" if row["is_allowed"] else "no",
            "chosen": "chosen" if row["encoder"] == choice["encoder"] else "",
        }
        for row in choice["rows"]
    ]
    picture = pictures.forgetting(
        rows, least=choice["rows"][0]["general"] - choice["tolerance"] if rows else 0.0
    )
    title = f"{one.stage}: forgetting"
    return title, came_from(path) + table(rows), picture_name(one, "forgetting"), picture


def of_embeddings(one: Standing, *, output: Path) -> Iterator[Section]:
    """A map of rows spread evenly over the corpus, and the nearest neighbours of a few."""
    from toolkit.encoding.store import VectorStore
    from toolkit.report import pictures

    store = VectorStore(output)
    rows = np.unique(np.linspace(0, store.num_rows - 1, min(MAP_ROWS, store.num_rows)).astype(int))
    if len(rows) < 3:
        return
    unit = unit_length(store.read(rows))
    names = names_of(store, rows.tolist())
    neighbours = []
    for row in np.linspace(0, len(rows) - 1, SAMPLES).astype(int):
        cosine = unit @ unit[row]
        cosine[row] = -np.inf  # a row is not its own neighbour
        best = np.argsort(-cosine)[:NEIGHBOURS]
        near = "; ".join(f"{names[k]} ({cosine[k]:.3f})" for k in best)
        neighbours.append({"document": names[row], f"nearest of {len(rows):,} (cosine)": near})
    text = came_from(output / MANIFEST_FILE) + table(neighbours)
    picture = pictures.embedding_map(unit, names=names, named=MAP_NAMES)
    yield f"{one.stage}: embeddings", text, picture_name(one, "map"), picture
    some = np.unique(np.linspace(0, len(rows) - 1, HEAT_ROWS).astype(int))
    picture = pictures.heat_map(unit[some], names=[names[row] for row in some])
    text = came_from(output / MANIFEST_FILE)
    yield f"{one.stage}: similarities", text, picture_name(one, "similarities"), picture


def shown(scores: Scores, *, main: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each encoder's main scores, or all its scores where the main ones are not known."""
    return {
        encoder: {name: value for name, value in row.items() if name in main or not main}
        for encoder, row in scores.items()
    }


def transposed(scores: Scores) -> list[dict[str, Any]]:
    """One row per score, one column per encoder."""
    names = dict.fromkeys(name for row in scores.values() for name in row)
    return [
        {"score": name, **{encoder: row.get(name, "-") for encoder, row in scores.items()}}
        for name in names
    ]


def names_of(store: Any, rows: Sequence[int]) -> list[str]:
    """The title of each row, or its id where it has no title."""
    names, wanted = [], list(rows)
    for unit in store.units:
        here = [row - unit.start for row in wanted if unit.start <= row < unit.stop]
        if here:
            records = store.records(unit)
            names += [str(records[row].get("title") or records[row]["id"]) for row in here]
    return names


def picture_name(one: Standing, what: str) -> str:
    """The file name of a stage's picture, whatever characters the stage's name has."""
    stage = re.sub(r"[^\w.-]+", "_", one.stage)
    return f"{stage}-{what}.png"


def date(seconds: float) -> str:
    """Unix seconds as a date and time in UTC."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def written(one: Standing, *, output: Path) -> tuple[str, str]:
    """When a stage began and when it last wrote a result, by the times of its files; both empty if
    it has written nothing."""
    in_units = (PLAN_FILE, f"{UNIT_DIR}/*.json", MANIFEST_FILE)
    patterns = {
        "embed": in_units,
        "questions": in_units,
        "evaluate": (f"{PART_DIR}/*/*.json", SCORES_FILE),
        **{kind: (LAST_FILE[kind],) for kind in ("documents", "mine")},
        "merge": (f"*/{COMMIT_MARKER}", MERGED_FILE),
    }.get(one.kind, (METRICS_FILE, f"{ENCODER_DIR}/{COMMIT_MARKER}"))
    paths = [path for pattern in patterns for path in output.glob(pattern)]
    times = sorted(path.stat().st_mtime for path in paths)
    # The metrics file has the time of its last line; the first start tells when the run began.
    starts = [str(start.get("time", "")) for start in read_starts(output)]
    with contextlib.suppress(ValueError):
        times = [datetime.datetime.fromisoformat(s).timestamp() for s in starts[:1]] + times
    return (date(times[0]), date(times[-1])) if times else ("", "")


def summary(stages: Sequence[Standing], *, places: Mapping[str, Path]) -> str:
    """An HTML table with one row per stage."""
    dates = [written(one, output=places[one.stage]) for one in stages]
    rows = [
        {
            "stage": one.stage,
            "kind": one.kind,
            "state": one.state + f" ({one.reason})" * bool(one.reason),
            "done": f"{one.done:,}/{one.total:,} {one.unit}" if one.total else "",
            "loss": "" if one.loss is None else f"{one.loss:.4f}",
            "restarts": one.restarts or "",
            "began": began,
            "last written": last,
            "trouble": one.trouble,
        }
        for one, (began, last) in zip(stages, dates, strict=True)
    ]
    return table(rows)


def start_rows(starts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One table row per start of a run."""
    names = ("time", "step", "job", "world_size", "num_nodes", "device", "attention")
    return [{name: start.get(name, "") for name in names} for start in starts]
