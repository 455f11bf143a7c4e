"""Small pictures as SVG, which need no script."""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup


def sparkline(values: Iterable[float | None], width: int = 96, height: int = 22, color: str = "var(--blue)") -> Markup:
    """A line as small as a word; gaps are bridged."""
    known = [(x, float(y)) for x, y in enumerate(values) if y is not None and math.isfinite(y)]
    if len(known) < 2:
        return Markup("")
    low, high = min(y for _, y in known), max(y for _, y in known)
    right, span = known[-1][0] or 1, (high - low) or 1.0
    points = [(2 + x / right * (width - 4), height - 3 - (y - low) / span * (height - 6)) for x, y in known]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    end = points[-1]
    return Markup(
        f'<svg class="spark" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="from {known[0][1]:.3g} to {known[-1][1]:.3g}"><polyline points="{path}" fill="none" '
        f'stroke="{color}" stroke-width="1.4"/><circle cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="2" fill="{color}"/></svg>'
    )


def two_histograms(
    everything: Sequence[int],
    found: Sequence[int],
    low: float,
    high: float,
    marked: tuple[float | None, float | None] | None = None,
    width: int = 72,
    height: int = 22,
) -> Markup:
    """Bars of one width from ``low`` to ``high``: pale of all rows, and before them full of those found. Behind them is
    marked to which range the rows were narrowed, None where it has no such end."""
    if not everything or max(everything) == 0:
        return Markup("")
    bar, tallest = width / len(everything), max(everything)

    def bars(counts: Sequence[int], kind: str) -> str:
        return "".join(
            f'<rect class="{kind}" x="{i * bar:.2f}" y="{height - n / tallest * height:.2f}" '
            f'width="{max(bar - 0.6, 0.4):.2f}" height="{n / tallest * height:.2f}"/>'
            for i, n in enumerate(counts)
            if n
        )

    mark = ""
    if marked is not None:
        ends = (low if marked[0] is None else marked[0], high if marked[1] is None else marked[1])
        left, right = (width * min(1.0, max(0.0, (end - low) / ((high - low) or 1.0))) for end in ends)
        mark = f'<rect class="mark" x="{left:.2f}" y="0" width="{max(right - left, 1.0):.2f}" height="{height}"/>'
    return Markup(
        f'<svg class="histogram" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'preserveAspectRatio="none" aria-label="from {low:.3g} to {high:.3g}">'
        f"{mark}{bars(everything, 'all')}{bars(found, 'found')}</svg>"
    )
