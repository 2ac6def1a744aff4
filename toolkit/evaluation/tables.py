"""Scores as a plain-text table, readable in a terminal, a log and an e-mail."""

from collections.abc import Mapping


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One line a row name, one column a score; the best of each column carries a star."""
    columns = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    best = {c: max(scores[c] for scores in rows.values() if c in scores) for c in columns}
    left = max([len(name) for name in rows] + [7])
    widths = {c: max(len(c), 7) for c in columns}
    lines = ["encoder".ljust(left) + "".join(f"  {c:>{widths[c]}}" for c in columns)]
    lines.append("-" * len(lines[0]))
    for name, scores in rows.items():
        cells = []
        for c in columns:
            mark = "*" if scores.get(c) == best[c] else " "
            cells.append(f"  {f'{scores[c]:.3f}{mark}' if c in scores else '-':>{widths[c]}}")
        lines.append(name.ljust(left) + "".join(cells))
    return "\n".join(lines)
