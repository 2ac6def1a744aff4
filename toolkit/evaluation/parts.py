"""Scores of one encoder on one task, one file each; and which worker makes which.

    OUT/parts/<encoder>/<task>.json    scores, the facts that they depend on, each query's score
    OUT/leases/                        which worker is making which scores

Knows files and leases. Refuses to know how a score is made. No torch.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.base.layout import LEASE_DIR, PART_DIR
from toolkit.cluster.leases import Leases
from toolkit.encoding.schedule import WAIT_GROWTH
from toolkit.evaluation.task import Outcome

FIRST_POLL_S, POLL_S = 0.05, 1.0


@dataclasses.dataclass(frozen=True)
class Part:
    """One encoder on one task. With other `facts` it is another part, even under the same names."""

    encoder: str
    task: str
    facts: Mapping[str, Any]

    def path(self, output_dir: Path) -> Path:
        """The file of this part's scores."""
        return output_dir / PART_DIR / file_name(self.encoder) / f"{file_name(self.task)}.json"


def shown(name: str) -> str:
    """An encoder's name in tables."""
    return name.replace("_", " ")


def file_name(name: str) -> str:
    """The name, if it can be a file's name too; else raise `BadInput`."""
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise BadInput(f"the name {name!r}: use letters, digits, spaces, - and _")
    return name


class Scores:
    """The scores of parts in a directory. Scores that were read once are kept in memory: another
    evaluation, with the same names and other facts, may overwrite the files meanwhile."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._seen: dict[Path, tuple[Mapping[str, Any], dict[str, float]]] = {}

    def of(self, part: Part) -> dict[str, float] | None:
        """The scores on disk for exactly these facts; None if they are still to be made."""
        path = part.path(self.output_dir)
        if path in self._seen and self._seen[path][0] == part.facts:
            return self._seen[path][1]
        try:
            content = read_json(path)
            if content["facts"] != dict(part.facts):
                return None
            scores: dict[str, float] = content["scores"]
        except (BadInput, KeyError, TypeError):  # missing, cut short, or of another format
            return None
        self._seen[path] = part.facts, scores
        return scores

    def of_all(self, every: Sequence[Part]) -> list[tuple[Part, dict[str, float]]] | None:
        """Every part with its scores; None while any are missing."""
        scored = []
        for part in every:
            scores = self.of(part)
            if scores is None:
                return None
            scored.append((part, scores))
        return scored

    def keep(self, part: Part, outcome: Outcome) -> None:
        """Write a part's scores and what was found for its queries, all or nothing."""
        path, scores = part.path(self.output_dir), dict(outcome.scores)
        found: dict[str, Any] = {"queries": dict(outcome.queries)} if outcome.queries else {}
        found |= {"corpus": outcome.corpus} if outcome.corpus else {}
        write_json(path, {"scores": scores, "facts": dict(part.facts), **found})
        self._seen[path] = part.facts, scores


def main_scores(output_dir: Path) -> list[str]:
    """The names that scores.json gives to the main scores of tasks, as far as parts tell."""
    names = set()
    for path in (output_dir / PART_DIR).glob("*/*.json"):
        with contextlib.suppress(BadInput, KeyError, TypeError):
            names.add(f"{path.stem} {read_json(path)['facts']['main']}")
    return sorted(names)


def share(
    parts: Sequence[Part],
    *,
    scores: Scores,
    lease_s: float,
    first: int,
    should_stop: Callable[[], bool],
    help_others: Callable[[], bool] = lambda: False,
) -> Generator[Part]:
    """The parts that this worker is to make, one after another, from number `first` on. Ends when
    all scores are there, whoever made them, or when we are told to stop. While others hold all
    parts that are left, it calls `help_others`, which returns whether there was something to do.

    The caller must `keep` the scores of a part before it asks for the next part.
    """
    order = [*parts[first:], *parts[:first]]
    wait_s = FIRST_POLL_S
    with Leases(scores.output_dir / LEASE_DIR, lease_s=lease_s) as leases:
        while missing := [part for part in order if scores.of(part) is None]:
            taken = leases.taken()
            for part in missing:
                name = f"{part.encoder}.{part.task}"
                if should_stop():
                    return
                if not leases.take(name, generation=taken.get(name)):
                    continue
                if scores.of(part) is None:  # another worker may have made it since we looked
                    yield part
                leases.give_back(name)
                wait_s = FIRST_POLL_S
                break
            else:  # others hold all that is missing: one of them may fail
                if help_others():
                    wait_s = FIRST_POLL_S
                else:
                    time.sleep(wait_s)
                    wait_s = min(WAIT_GROWTH * wait_s, POLL_S)
