"""Texts beside the points of a figure, placed so that they cover neither one another nor the data."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from weightsteer.report.theme import FONT_PT

SIZE_PT = FONT_PT - 1.5
# Where a label may stand around its point: near before far, above before beside before across.
_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES_PT = (4.0, 7.0, 10.0)
# A label that must stand somewhere may go further for a clear place.
_FAR_PT = (*_DISTANCES_PT, 16.0, 24.0, 33.0)
# A label more than this covered, as a share of its own area, is worse than none.
_TOLERABLE = 0.2


class Box(NamedTuple):
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float


class _Place(NamedTuple):
    """Where a label may stand, and the point it belongs to, in pixels."""

    center: tuple[float, float]
    box: Box
    point: tuple[float, ...]


class Label(NamedTuple):
    """A text and the point it belongs to, in data coordinates; a `required` one is never dropped."""

    x: float
    y: float
    text: str
    color: str
    required: bool = False


def place_labels(
    axes: Any, labels: Sequence[Label], obstacles: Sequence[Box], points: Sequence[tuple[float, float]]
) -> None:
    """Write each label at the place around its point that covers least; drop it where none is clear enough.

    `labels` come most important first. A place nearer to another of the `points` would be misread, so it is
    not taken. Limits and layout of the figure must be final.
    """
    pixels_per_pt = axes.figure.dpi / 72
    taken, markers = np.asarray(obstacles, float).reshape(-1, 4), axes.transData.transform(list(points))
    frame = Box(*axes.get_window_extent().extents)
    for label in labels:
        # DejaVu Sans: digits are 0.64 em wide, a line of text 1.16 em high.
        half_width, half_height = (em * SIZE_PT * pixels_per_pt for em in (0.32 * len(label.text), 0.58))
        best, covered, tolerable = None, math.inf, _TOLERABLE * 4 * half_width * half_height
        at = axes.transData.transform((label.x, label.y))
        for distance_pt in _FAR_PT if label.required else _DISTANCES_PT:
            if distance_pt > _DISTANCES_PT[-1] and covered <= tolerable:
                break  # near its point, though something is touched, is better than clear and far away
            for place in _places(at, half_width, half_height, distance_pt * pixels_per_pt):
                covers = _covered(place.box, taken) + _outside(place.box, frame)
                if covers < covered and (label.required or not _nearer(markers, place)):
                    best, covered = place, covers
        if best is None or (covered > tolerable and not label.required):
            continue
        taken = np.vstack([taken, best.box])
        axes.annotate(
            label.text, best.center, xycoords="figure pixels", color=label.color, fontsize=SIZE_PT,
            fontweight="bold" if label.required else "normal", ha="center", va="center", zorder=9,
            annotation_clip=False,
        )  # fmt: skip


def _places(point: np.ndarray, half_width: float, half_height: float, distance: float) -> list[_Place]:
    places = []
    for right, up in _DIRECTIONS:
        x, y = point[0] + right * (distance + half_width), point[1] + up * (distance + half_height)
        places.append(_Place((x, y), _around(x, y, half_width, half_height), tuple(point)))
    return places


def _nearer(markers: np.ndarray, place: _Place) -> bool:
    """Whether some other marker is nearer to the label than its own; one at the same spot is not."""
    own = math.dist(place.center, place.point)
    return bool((np.hypot(*(markers - place.center).T) < own - 1).any())


def marker_box(axes: Any, x: float, y: float, size_pt: float) -> Box:
    """What a marker covers."""
    half = size_pt / 2 * axes.figure.dpi / 72
    center_x, center_y = axes.transData.transform((x, y))
    return _around(center_x, center_y, half, half)


def line_boxes(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """What a straight line covers, as a chain of small boxes."""
    (x0, y0), (x1, y1) = axes.transData.transform([start, end])
    half = axes.figure.dpi / 72
    steps = max(1, round(max(abs(x1 - x0), abs(y1 - y0)) / (2 * half)))
    return [
        _around(x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps, half, half) for step in range(steps + 1)
    ]


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)


def _covered(box: Box, others: np.ndarray) -> float:
    """Pixels of `others`, a box a row, that a box would cover, counted once for each of them."""
    x0, y0, x1, y1 = others.T
    widths = np.minimum(x1, box.x1) - np.maximum(x0, box.x0)
    heights = np.minimum(y1, box.y1) - np.maximum(y0, box.y0)
    return float((widths.clip(0) * heights.clip(0)).sum())


def _outside(box: Box, frame: Box) -> float:
    """Pixels by which a box sticks out of the frame, weighed so that staying inside comes first."""
    over = (frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1)
    return 100.0 * sum(max(pixels, 0.0) for pixels in over)
