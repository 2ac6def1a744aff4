"""What became of the rows of a source: documents, rows left out, rows in quarantine.

Knows counts. Refuses to know rows. The manifest of shards records a tally, and an encoding repeats
it, so that whoever has the vectors can tell how many rows there were before.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from toolkit.base.documents import Count


class Tally(TypedDict):
    """Every row that was read is in exactly one of `documents`, `dropped` (left out on purpose) and
    `quarantined` (bad), the last two by reason. `without_id` of the documents are named by file and
    row; shards of an older toolkit do not count them. `damaged_files` could not be read to their
    end: what follows in them is in no count. `limit`: no more rows of each input were read."""

    rows: Count
    documents: Count
    dropped: dict[str, Count]
    quarantined: dict[str, Count]
    damaged_files: Count
    without_id: NotRequired[Count]
    limit: NotRequired[Count | None]


class Summary(TypedDict):
    """What a manifest's summary must have to give a tally."""

    rows: Count
    documents: Count
    dropped: dict[str, Count]
    quarantined: dict[str, Count]
    damaged_files: dict[str, str]
    without_id: NotRequired[Count]


def tally_of(summary: Summary, *, limit: int | None) -> Tally:
    """The tally that the summary in a manifest gives."""
    tally: Tally = {
        "rows": summary["rows"],
        "documents": summary["documents"],
        "dropped": summary["dropped"],
        "quarantined": summary["quarantined"],
        "damaged_files": len(summary["damaged_files"]),
        "limit": limit,
    }
    if "without_id" in summary:
        tally["without_id"] = summary["without_id"]
    return tally


def tally_fault(tally: Tally, *, documents: int) -> str:
    """Why a tally is not that of so many documents; empty if every row is counted once."""
    if tally["documents"] != documents:
        return f"there are {documents:,} documents, and {tally['documents']:,} rows were kept"
    dropped, bad = sum(tally["dropped"].values()), sum(tally["quarantined"].values())
    if tally["rows"] != documents + dropped + bad:
        return (
            f"{tally['rows']:,} rows are not {documents:,} kept + {dropped:,} left out + "
            f"{bad:,} in quarantine"
        )
    return ""


def in_words(tally: Mapping[str, Any], *, kept: str) -> str:
    """A tally as a sum that a reader can check: `kept` says what the documents have become."""
    limit = f" (at most {tally['limit']:,} of each input)" if tally.get("limit") else ""
    parts = [kept]
    for key, name in (("dropped", "left out"), ("quarantined", "in quarantine")):
        counts = Counter(tally[key])
        if total := counts.total():
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
            parts.append(f"{total:,} {name} ({reasons})")
    damaged = ""
    if number := tally["damaged_files"]:
        damaged = f", and unknown rows behind the damage in {number:,} file{'s'[: number != 1]}"
    return f"{tally['rows']:,} rows in the source{limit} = {' + '.join(parts)}{damaged}"
