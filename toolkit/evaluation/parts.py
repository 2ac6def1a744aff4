"""Scores of one encoder on one task, each a file; and who works on which.

    OUT/parts/<encoder>/<task>.json    scores, and the facts that they were made of
    OUT/leases/                        who works on what, while somebody does

Knows files and leases. Refuses to know how a score is made. No torch.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, write_json
from toolkit.base.layout import LEASE_DIR, PART_DIR
from toolkit.cluster.leases import Leases

POLL_S = 1.0


@dataclasses.dataclass(frozen=True)
class Part:
    """One encoder on one task; other `facts` are another part, though it has the same names."""

    encoder: str
    task: str
    facts: Mapping[str, Any]

    def path(self, output_dir: Path) -> Path:
        """Its file."""
        return output_dir / PART_DIR / file_name(self.encoder) / f"{file_name(self.task)}.json"


def file_name(name: str) -> str:
    """A name as that of a file; `BadInput` for one that cannot be."""
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise BadInput(f"the name {name!r}: letters, digits, spaces, - and _, please")
    return name


class Scores:
    """The scores of parts in a directory. What was seen once stays known: another evaluation, whose
    parts have the same names and other facts, may write over the files meanwhile."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self._seen: dict[Path, tuple[Mapping[str, Any], dict[str, float]]] = {}

    def of(self, part: Part) -> dict[str, float] | None:
        """The scores that are there for these very facts; None when they are to be made."""
        path = part.path(self.output_dir)
        if path in self._seen and self._seen[path][0] == part.facts:
            return self._seen[path][1]
        try:
            content = read_json(path)
            if content["facts"] != dict(part.facts):
                return None
            scores: dict[str, float] = content["scores"]
        except (BadInput, KeyError, TypeError):  # none, half a file, or somebody else's
            return None
        self._seen[path] = part.facts, scores
        return scores

    def of_all(self, every: Sequence[Part]) -> list[tuple[Part, dict[str, float]]] | None:
        """Each part with its scores; None while some are missing."""
        scored = []
        for part in every:
            scores = self.of(part)
            if scores is None:
                return None
            scored.append((part, scores))
        return scored

    def keep(self, part: Part, scores: Mapping[str, float]) -> None:
        """Write a part's scores, all or nothing."""
        path = part.path(self.output_dir)
        write_json(path, {"scores": dict(scores), "facts": dict(part.facts)})
        self._seen[path] = part.facts, dict(scores)


def main_scores(output_dir: Path) -> list[str]:
    """The names in scores.json of each task's main score, as far as parts tell; any order."""
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
) -> Iterator[Part]:
    """The parts that this worker is to make, one after another, from number `first` on; ends when
    all are there, whoever made them, or we are told to stop.

    A part must be kept before the next is asked for.
    """
    order = [*parts[first:], *parts[:first]]
    with Leases(scores.output_dir / LEASE_DIR, lease_s=lease_s) as leases:
        while missing := [part for part in order if scores.of(part) is None]:
            taken = leases.taken()
            for part in missing:
                name = f"{part.encoder}.{part.task}"
                if should_stop():
                    return
                if not leases.take(name, generation=taken.get(name)):
                    continue
                if scores.of(part) is None:
                    yield part
                leases.give_back(name)
                break
            else:
                time.sleep(POLL_S)
