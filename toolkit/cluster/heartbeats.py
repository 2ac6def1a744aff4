"""When the ranks of each node were last heard, for people: RUN/heartbeats.json.

Rank 0's monitor writes it; nobody decides anything by it. A file system that hangs must not hold up
the watchdog, so a thread writes, and what cannot be written is left out. No torch.
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
    """A line a node: the rank that was heard longest ago, `seconds` before now, and the place of
    the one that is furthest behind."""
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
    """Write what `look` sees every `every_s` seconds, by a thread of this process.

    Only into a run that has begun: what is refused before leaves nothing behind.
    """

    def write() -> None:
        temporary = temporary_of(path)
        while True:
            time.sleep(every_s)
            with contextlib.suppress(OSError):
                if (path.parent / CONFIG_FILE).exists():
                    temporary.write_text(json.dumps({"nodes": look()}))
                    os.replace(temporary, path)

    threading.Thread(target=write, name="heartbeats", daemon=True).start()


def read_heartbeats(path: Path, *, now: float) -> list[dict[str, Any]]:
    """The lines of a file that was written some time before `now`, in seconds since 1970; none
    where there is no such file."""
    try:
        age_s = max(0.0, now - path.stat().st_mtime)
        nodes = read_json(path)["nodes"]
        return [{**node, "seconds": round(node["seconds"] + age_s, 1)} for node in nodes]
    except (BadInput, OSError, KeyError, TypeError):
        return []
