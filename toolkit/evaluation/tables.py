"""Scores as a plain-text table, readable in a terminal, a log and an e-mail."""

from collections.abc import Mapping

from toolkit.base.shown import visible
from toolkit.evaluation.task import LOWER_IS_BETTER


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One line per score, one column per encoder; a star marks the best of each line."""
    encoders = list(rows)
    heads = [visible(encoder) for encoder in encoders]
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    left = max([len(visible(name)) for name in names] + [7])
    widths = [max(len(head), 7) for head in heads]
    head = " " * left + "".join(f"  {e:>{w}}" for e, w in zip(heads, widths, strict=True))
    lines = [head, "-" * len(head)]
    for name in names:
        values = [scores[name] for scores in rows.values() if name in scores]
        best = min(values) if name.endswith(LOWER_IS_BETTER) else max(values)
        cells = []
        for encoder, width in zip(encoders, widths, strict=True):
            value = rows[encoder].get(name)
            cell = "-" if value is None else f"{value:.3f}{'*' if value == best else ' '}"
            cells.append(f"  {cell:>{width}}")
        lines.append((visible(name).ljust(left) + "".join(cells)).rstrip())
    return "\n".join(lines)
