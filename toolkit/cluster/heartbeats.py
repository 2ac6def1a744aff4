"""RUN/heartbeats.json, which tells people when the ranks of each node were last heard.

Rank 0's monitor writes it, and no code makes decisions from it. A file system that hangs must not
delay the watchdog, so a thread of its own writes the file and ignores errors. No torch.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.base.errors import BadInput
from toolkit.base.files import read_json, temporary_of
from toolkit.base.layout import CONFIG_FILE
from toolkit.cluster.watchdog import PHASES, Seen


def of_nodes(seen: Mapping[int, Seen], *, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """One entry per node: how many `seconds` ago the rank was heard that has been silent longest,
    and the step and phase of the rank that is furthest behind."""
    now = clock()
    nodes: dict[str, list[Seen]] = {}
    for one in list(seen.values()):
        if not one.state.left:
            nodes.setdefault(one.state.host, []).append(one)
    lines = []
    for host, ranks in sorted(nodes.items()):
        behind = min(ranks, key=lambda one: (one.state.step, one.state.phase)).state
        seconds = round(now - min(one.heard for one in ranks), 1)
        place = {"step": behind.step, "phase": PHASES[behind.phase]}
        lines.append({"node": host, "seconds": seconds, **place})
    return lines


def write_forever(path: Path, look: Callable[[], list[dict[str, Any]]], *, every_s: float) -> None:
    """Write the result of `look` every `every_s` seconds, in a thread of this process.

    Nothing is written before the run has begun: a recipe that is refused leaves no files behind.
    """

    def write() -> None:
        temporary = temporary_of(path)
        while True:
            time.sleep(every_s)
            with contextlib.suppress(OSError):
                # Written beside the file and renamed, so that readers never see half of it.
                if (path.parent / CONFIG_FILE).exists():
                    temporary.write_text(json.dumps({"nodes": look()}))
                    os.replace(temporary, path)

    threading.Thread(target=write, name="heartbeats", daemon=True).start()


def read_heartbeats(path: Path, *, now: float) -> list[dict[str, Any]]:
    """The entries of the file, with `seconds` counted until `now` (seconds since 1970); an empty
    list if there is no readable file."""
    try:
        age_s = max(0.0, now - path.stat().st_mtime)
        nodes = read_json(path)["nodes"]
        return [{**node, "seconds": round(node["seconds"] + age_s, 1)} for node in nodes]
    except (BadInput, OSError, KeyError, TypeError):
        return []
