"""How much merges of a general encoder and one of a domain forget and have learnt, and the one that
is chosen of them.

Knows main scores by encoder and task. Refuses to know how scores are made and curves are drawn.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.base.console import say, say_lines
from toolkit.base.files import write_json
from toolkit.base.layout import CHOSEN_FILE
from toolkit.evaluation.tables import table
from toolkit.settings.merge_schema import Forgetting, ratio_name

ROUNDING = 1e-9  # of a mean of scores: a drop that is the tolerance is no more than the tolerance


@dataclasses.dataclass(frozen=True)
class Row:
    """An encoder with its share of the domain, the means of its main scores on general tasks and on
    those of the domain, and whether the former is within the tolerance."""

    encoder: str
    ratio: float
    general: float
    domain: float
    is_allowed: bool
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The rows by ascending ratio, and the one that is chosen."""

    rows: tuple[Row, ...]
    chosen: Row


def choose(scores: Mapping[str, Mapping[str, float]], *, asked: Forgetting) -> Choice:
    """Choose by the main scores of each encoder on each task: of the encoders whose general mean is
    at most `asked.tolerance` below that of ratio 0, the one with the best mean on the domain; of
    equal ones that with the smallest ratio."""

    def mean(encoder: str, tasks: tuple[str, ...]) -> float:
        return statistics.fmean(scores[encoder][task] for task in tasks)

    by_ratio = sorted(asked.ratios, key=lambda encoder: asked.ratios[encoder])
    least = mean(by_ratio[0], asked.general) - asked.tolerance - ROUNDING
    rows = tuple(
        Row(
            encoder,
            ratio=asked.ratios[encoder],
            general=(general := mean(encoder, asked.general)),
            domain=mean(encoder, asked.domain),
            is_allowed=general >= least,
            scores={task: scores[encoder][task] for task in (*asked.general, *asked.domain)},
        )
        for encoder in by_ratio
    )
    # Of equal ones `max` takes the first; that of ratio 0 is always allowed.
    return Choice(rows, max((row for row in rows if row.is_allowed), key=lambda row: row.domain))


def write_choice(
    output_dir: Path,
    *,
    scores: Mapping[str, Mapping[str, float]],
    asked: Forgetting,
    models: Mapping[str, str],
    digests: Mapping[str, str],
) -> Choice:
    """Choose, print the table and the choice, and write chosen.json; `models` and `digests` are
    those of each encoder."""
    choice = choose(scores, asked=asked)
    first, chosen = choice.rows[0], choice.chosen
    content: dict[str, Any] = {
        "encoder": chosen.encoder,
        "ratio": chosen.ratio,
        "model": _place_of(models[chosen.encoder]),
        "digest": digests[chosen.encoder],
        "tolerance": asked.tolerance,
        "general": list(asked.general),
        "domain": list(asked.domain),
        "rows": [dataclasses.asdict(row) for row in choice.rows],
    }
    write_json(output_dir / CHOSEN_FILE, content)
    columns = {
        ratio_name(row.ratio): {"general": row.general, "domain": row.domain, **row.scores}
        for row in choice.rows
    }
    say_lines(table(columns))
    say(
        f"chosen: {chosen.encoder}, ratio {ratio_name(chosen.ratio)}: domain {chosen.domain:.4f} "
        f"({chosen.domain - first.domain:+.4f}), general {chosen.general:.4f} "
        f"({chosen.general - first.general:+.4f}; at most {asked.tolerance:g} may be lost)"
    )
    return choice


def _place_of(model: str) -> str:
    """A folder by its whole path, so that the choice stands for it from any directory."""
    return str(Path(model).absolute()) if Path(model).exists() else model
