"""The last encoder of an evaluation beside the first one, query by query.

Knows HTML and comparisons. Refuses to know how they are made (`evaluation.comparing`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from toolkit.base.layout import PART_DIR
from toolkit.base.shown import in_html
from toolkit.evaluation.baselines import is_beside
from toolkit.evaluation.comparing import Agreement, Change, Comparison, agreements, compare
from toolkit.evaluation.parts import shown
from toolkit.report.html import Section, came_from, table

SHOWN_QUERIES = 10


def of_comparison(
    stage: str, *, output: Path, scores: Mapping[str, Mapping[str, float]]
) -> Iterator[Section]:
    """A section for each task whose queries were kept for both encoders; none for one encoder.
    `scores` has names as tables show them, in the recipe's order."""
    # Folders have the recipe's names, and tables show blanks for underscores.
    folders = {shown(path.name): path.name for path in (output / PART_DIR).glob("*")}
    names = [name for name in scores if name in folders and not is_beside(name)]
    if len(names) < 2:
        return
    before, after = names[0], names[-1]
    for one in compare(output, before=folders[before], after=folders[after]):
        if not any(name.startswith(f"{one.task} ") for name in scores[after]):
            continue  # of an earlier evaluation, which had more tasks
        title = f"{stage}: {one.task}, {after} beside {before}"
        text = came_from(output / PART_DIR) + _words(one, before=before, after=after)
        worst = [change for change in one.changes if change.difference < 0][:SHOWN_QUERIES]
        best = [change for change in one.changes[::-1] if change.difference > 0][:SHOWN_QUERIES]
        for head, some in (("What became worse", worst), ("What became better", best)):
            if some:
                rows = table([_row(change, before=before, after=after) for change in some])
                text += f"<h3>{head}</h3>{rows}"
        yield title, text, "", b""


def of_agreement(output: Path, *, scores: Mapping[str, Mapping[str, float]]) -> str:
    """HTML that says how two sets of queries about one corpus agree on what is better: questions
    that a model wrote, say, and people's own. "" where there are no two."""
    folders = {shown(path.name): path.name for path in (output / PART_DIR).glob("*")}
    found = agreements(output, rankers=[folders[name] for name in scores if name in folders])
    return "".join(f"<p>{in_html(_agreeing(one))}</p>" for one in found)


def _agreeing(one: Agreement) -> str:
    first, second = one.tasks
    told = (
        f"Do {first} and {second} agree on which is better? They put {len(one.reversed)} of "
        f"{one.num_pairs} pairs in another order (Kendall's tau {one.tau:.2f} over "
        f"{len(one.rankers)})"
    )
    pairs = "; ".join(f"{shown(better)} above {shown(worse)}" for better, worse in one.reversed)
    return f"{told}: by {first} alone, {pairs}." if pairs else f"{told}."


def _words(one: Comparison, *, before: str, after: str) -> str:
    number = len(one.changes)
    first, last = (
        sum(getattr(change, which)["score"] for change in one.changes) / number
        for which in ("before", "after")
    )
    found = one.difference
    better = sum(change.difference > 0 for change in one.changes)
    worse = sum(change.difference < 0 for change in one.changes)
    return (
        f"<p>{in_html(before)} {first:.3f}, {in_html(after)} {last:.3f}: {found.mean:+.3f} (95 % "
        f"interval {found.low:+.3f} to {found.high:+.3f}). Of {number:,} queries {better:,} are "
        f"better and {worse:,} worse.</p>"
    )


def _row(change: Change, *, before: str, after: str) -> dict[str, str]:
    return {
        "query": change.after["query"],
        "relevant": "; ".join(change.after["relevant"]),
        f"{before}: first hits": "; ".join(change.before["first"]),
        f"{after}: first hits": "; ".join(change.after["first"]),
        before: f"{change.before['score']:.3f}",
        after: f"{change.after['score']:.3f}",
    }
