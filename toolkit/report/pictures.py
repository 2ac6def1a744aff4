"""Pictures of a run as PNG: curves of training, bars of scores, maps of embeddings.

Knows matplotlib. Refuses to know where the numbers come from. Names come from the data, so that
they are drawn through `in_picture` alone.

Shapes: N points, D width.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from toolkit.base.shown import in_picture

CURVES = (
    "loss",
    "held_out_loss",
    "accuracy",
    "probe_spearman",
    "probe_ndcg_at_10",
    "lr",
    "grad_norm",
    "tokens_per_s",
    "memory_gib",
)
DPI = 110


def curves(rows: Sequence[Mapping[str, Any]], *, restarts: Sequence[int]) -> bytes:
    """One curve over the steps for each of `CURVES` that was logged, with a dotted line at each
    restart."""
    shown = [name for name in CURVES if any(row.get(name) is not None for row in rows)]
    columns = 3
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    for place, name in enumerate(shown, 1):
        axes = figure.add_subplot(lines, columns, place)
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        steps, values = zip(*points, strict=True)
        # Few points, as of a probe, would hardly be seen as a line alone.
        axes.plot(steps, values, "o-" if len(points) < 30 else "-", markersize=3, linewidth=1.2)
        for step in restarts:
            axes.axvline(step, linestyle=":", color="tab:red", linewidth=1)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return _png(figure)


def bars(scores: Mapping[str, Mapping[str, float]]) -> bytes:
    """One group of bars per task, with one bar per encoder."""
    tasks = list(dict.fromkeys(task for row in scores.values() for task in row))
    figure = Figure(figsize=(max(5.0, 1.2 + 2.2 * len(tasks)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(scores))
    for number, (encoder, row) in enumerate(scores.items()):
        places = np.arange(len(tasks)) + (number - (len(scores) - 1) / 2) * width
        values = [row.get(task, np.nan) for task in tasks]
        made = axes.bar(places, values, width, label=in_picture(encoder))
        axes.bar_label(made, fmt="%.3f", fontsize=7, padding=2)
    axes.set_xticks(range(len(tasks)), [in_picture(task) for task in tasks])
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.grid(axis="y", alpha=0.3)
    return _png(figure)


def forgetting(rows: Sequence[Mapping[str, Any]], *, least: float) -> bytes:
    """The general and the domain's mean of each merge over its ratio, a dotted line at the `least`
    general mean that is allowed, and a ring around what was chosen."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    ratios = [row["ratio"] for row in rows]
    for name, colour in (("general", "tab:blue"), ("domain", "tab:orange")):
        axes.plot(ratios, [row[name] for row in rows], "o-", color=colour, markersize=4, label=name)
        for row in rows:
            if row["chosen"]:
                axes.plot(
                    row["ratio"], row[name], "o", color=colour, markersize=11, fillstyle="none"
                )
    axes.axhline(least, linestyle=":", color="tab:blue", linewidth=1, label="least general")
    axes.set_xlabel("share of the domain's encoder", fontsize=9)
    axes.set_ylabel("mean of the main scores", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return _png(figure)


def embedding_map(unit_ND: NDArray[np.float32], *, names: Sequence[str], named: int) -> bytes:
    """Vectors of unit length along the two directions in which they differ most (principal
    components); `named` of them, spread over the map, have their names beside them."""
    centred_ND = unit_ND - unit_ND.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred_ND, full_matrices=False)
    points_N2 = centred_ND @ directions[:2].T
    share = (sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-12)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(points_N2[:, 0], points_N2[:, 1], s=8, alpha=0.5)
    for row in _spread(points_N2, number=named):
        axes.annotate(in_picture(names[row], chars=28), points_N2[row], fontsize=7, alpha=0.9)
    axes.set_title(f"{len(points_N2):,} vectors; two components, {share:.0%} of the variance")
    axes.tick_params(labelsize=7)
    return _png(figure)


def heat_map(unit_ND: NDArray[np.float32], *, names: Sequence[str]) -> bytes:
    """The cosine of every two vectors of unit length, sorted by the first principal component, so
    that similar vectors are neighbours."""
    centred_ND = unit_ND - unit_ND.mean(axis=0)
    order = np.argsort(np.linalg.svd(centred_ND, full_matrices=False)[0][:, 0])
    cosine_NN = unit_ND[order] @ unit_ND[order].T
    figure = Figure(figsize=(8.5, 7), layout="constrained")
    axes = figure.add_subplot()
    # Not from -1: a decoder's vectors often have cosines in a narrow range.
    lowest = float(cosine_NN.min())
    image = axes.imshow(cosine_NN, vmin=lowest, vmax=1.0, cmap="viridis")
    labels = [in_picture(names[row], chars=24) for row in order]
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    figure.colorbar(image, label="cosine", shrink=0.8)
    return _png(figure)


def _spread(points_N2: NDArray[np.float32], *, number: int) -> list[int]:
    """Points far from one another: each is the farthest from all before it (Gonzalez 1985)."""
    chosen = [0]
    distance_N = np.linalg.norm(points_N2 - points_N2[0], axis=1)
    while len(chosen) < min(number, len(points_N2)):
        chosen.append(int(distance_N.argmax()))
        step_N = np.linalg.norm(points_N2 - points_N2[chosen[-1]], axis=1)
        distance_N = np.minimum(distance_N, step_N)
    return chosen


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
