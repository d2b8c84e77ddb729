"""The figures of a monitored run: the curve over training, block by block, and vectors beside one another."""

from typing import Any

from weightsteer.monitor.matrix import CosineMatrix
from weightsteer.monitor.record import Record
from weightsteer.report import numbers
from weightsteer.report.figures import Picture, picture
from weightsteer.report.theme import FONT_PT, Theme, method_look, new_figure

# Cells of a matrix larger than this are too small for their numbers.
_TOLD_CELLS = 14
_TICKS = 12


def run_pictures(record: Record) -> dict[str, Picture]:
    """The figures that there is data for, by name."""
    pictures = {}
    if len(record.points) > 1:
        pictures["curve"] = picture("curve", lambda theme: draw_curves(record, theme), *_curve_words(record))
    if any(reading["blocks"] for point in record.points for reading in point.vectors.values()):
        pictures["blocks"] = picture("blocks", lambda theme: draw_blocks(record, theme), *_block_words(record))
    return pictures


def matrix_picture(matrix: CosineMatrix) -> Picture:
    """The cosines of all vectors with one another, in the order of their clusters (arXiv 2511.05408, Fig. 8)."""
    pairs = [(matrix.cosine(a, b), a, b) for i, a in enumerate(matrix.names) for b in matrix.names[i + 1 :]]
    nearest, farthest = max(pairs), min(pairs)
    alt = (
        f"Cosines of {len(matrix.names)} vectors with one another. Nearest: {nearest[1]} and {nearest[2]}, "
        f"{nearest[0]:+.3f}. Least alike: {farthest[1]} and {farthest[2]}, {farthest[0]:+.3f}."
    )
    caption = "Cosines over all parameters; rows in the order of their clusters (average linkage of 1 − cosine)."
    return picture("matrix", lambda theme: draw_matrix(matrix, theme), alt, caption)


def draw_curves(record: Record, theme: Theme) -> Any:
    """Cosine with each vector against the step, with the limits of the controls, above the loss."""
    labels = record.labels
    looks = {label: method_look(theme, label, labels) for label in labels}
    entries = [{**look.line, "marker": look.marker, "label": label} for label, look in looks.items()]
    limited = any(point.limits for point in record.points)
    if limited:
        entries.append({"color": theme.muted, "linestyle": ":", "label": "limit of the controls"})
    rows = 2 if record.losses else 1
    figure, panels = new_figure(
        2.9 + 1.2 * (rows - 1), entries, (rows, 1), sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": [2.2, 1][:rows]},
    )  # fmt: skip
    axes = panels[0, 0]
    crossings = record.crossings()
    for label, look in looks.items():
        curve = [(point.step, cosine) for point, cosine in record.curve(label)]
        if curve:
            marked = look.marker if len(curve) <= 40 else None
            axes.plot(*zip(*curve, strict=True), **look.line, marker=marked, label=label, zorder=3)
        limits = [(point.step, point.limits[label]) for point in record.points if label in point.limits]
        if limits:
            axes.plot(*zip(*limits, strict=True), color=look.color, linestyle=":", linewidth=1, zorder=2)
        if label in crossings:
            at = crossings[label]
            axes.plot(at.step, at.cosine(label), "o", markersize=11, mfc="none", mec=theme.ink, mew=1.3, zorder=4)
    axes.axhline(0, color=theme.muted, linewidth=0.7, zorder=1)
    axes.set_ylabel("cosine")
    if record.losses:
        panels[1, 0].plot(*zip(*sorted(record.losses), strict=True), color=theme.muted, linewidth=1)
        panels[1, 0].set_ylabel("loss")
    panels[-1, 0].set_xlabel("optimizer step")
    return figure


def draw_blocks(record: Record, theme: Theme) -> Any:
    """Cosine within each decoder block: over training as a map, of a single model as a line."""
    if len(record.points) == 1:
        return _draw_blocks_once(record, theme)
    labels, points = record.labels, record.points
    figure, panels = new_figure(0.6 + 1.5 * len(labels), (), (len(labels), 1), sharex=True, squeeze=False)
    values = {label: _block_rows(record, label) for label in labels}
    reach = max((abs(v) for rows in values.values() for row in rows for v in row if v == v), default=1) or 1
    image = None
    for axes, label in zip(panels[:, 0], labels, strict=True):
        image = axes.imshow(
            values[label], aspect="auto", origin="lower", cmap=_diverging(theme), vmin=-reach, vmax=reach,
            interpolation="nearest",
        )  # fmt: skip
        axes.grid(visible=False)
        axes.set_title(label)
        blocks = _blocks(record)
        every = max(1, len(blocks) // 6)
        axes.set_yticks(range(0, len(blocks), every), [str(b) for b in blocks[::every]])
    every = max(1, -(-len(points) // _TICKS))
    panels[-1, 0].set_xticks(range(0, len(points), every), [str(p.step) for p in points[::every]])
    panels[-1, 0].set_xlabel("optimizer step")
    figure.supylabel("decoder block", fontsize=FONT_PT)
    figure.colorbar(image, ax=list(panels[:, 0]), label="cosine", shrink=0.8)
    return figure


def draw_matrix(matrix: CosineMatrix, theme: Theme) -> Any:
    """The matrix as a map in the order of the clusters, each number in its cell where there is room."""
    names = [matrix.names[i] for i in matrix.order]
    figure, axes = new_figure(max(2.4, 0.9 + 0.3 * len(names)))
    values = [[matrix.cosine(a, b) for b in names] for a in names]
    # the diagonal is 1 whatever the vectors are; colors are for what lies off it, which is often small
    reach = max((abs(v) for r, line in enumerate(values) for c, v in enumerate(line) if r != c), default=1) or 1
    places = 2 if reach >= 0.1 else 3
    image = axes.imshow(values, cmap=_diverging(theme), vmin=-reach, vmax=reach)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= _TOLD_CELLS:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                color = theme.paper if abs(value) > 0.6 * reach else theme.ink
                axes.text(column, row, _short(value, places), ha="center", va="center", fontsize=6, color=color)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return figure


def _short(value: float, places: int) -> str:
    """A cosine as it fits into a cell: −.016; 1 of a vector with itself."""
    return f"{value:.{places}f}".replace("0.", ".", 1).replace("1." + "0" * places, "1").replace("-", "−")


def _draw_blocks_once(record: Record, theme: Theme) -> Any:
    looks = {label: method_look(theme, label, record.labels) for label in record.labels}
    figure, axes = new_figure(
        2.4, [{**look.line, "marker": look.marker, "label": label} for label, look in looks.items()]
    )
    for label, look in looks.items():
        rows = _block_rows(record, label)
        axes.plot(_blocks(record), [row[0] for row in rows], **look.line, marker=look.marker)
    axes.axhline(0, color=theme.muted, linewidth=0.7, zorder=1)
    axes.set_xlabel("decoder block")
    axes.set_ylabel("cosine")
    return figure


def _blocks(record: Record) -> list[int]:
    return sorted({int(b) for point in record.points for reading in point.vectors.values() for b in reading["blocks"]})


def _block_rows(record: Record, label: str) -> list[list[float]]:
    """Cosines, a row for each block and a column for each point; nan where there is none."""
    rows = []
    for block in _blocks(record):
        pairs = [point.vectors[label]["blocks"].get(str(block), (None, None)) for point in record.points]
        rows.append([float("nan") if cosine is None else cosine for cosine, _ in pairs])
    return rows


def _diverging(theme: Theme) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("diverging", [theme.below, theme.paper, theme.above])


def _curve_words(record: Record) -> tuple[str, str]:
    ends = []
    for label in record.labels:
        curve = record.curve(label)
        if curve:
            (_, first), (_, last) = curve[0], curve[-1]
            ends.append(f"{label} {first:+.4f} to {last:+.4f}".replace("-", "−"))
    crossed = [f"{label} at step {point.step}" for label, point in record.crossings().items()]
    alt = f"Cosine of the change with each vector over training: {'; '.join(ends)}."
    ring = f" Ring: the limit is crossed, {numbers.listed(crossed)}." if crossed else ""
    limits = " Dotted: what control runs keep below." if any(p.limits for p in record.points) else ""
    return alt, f"Cosine of θ_t − θ_0 with each vector, over all parameters.{limits}{ring}"


def _block_words(record: Record) -> tuple[str, str]:
    told = []
    for label in record.labels:
        last = [(row[-1], block) for block, row in zip(_blocks(record), _block_rows(record, label), strict=True)]
        known = [pair for pair in last if pair[0] == pair[0]]
        if known:
            value, block = max(known, key=lambda pair: abs(pair[0]))
            told.append(f"{label} {value:+.3f} in block {block}".replace("-", "−"))
    alt = f"Cosine within each decoder block. Largest at the end: {'; '.join(told)}."
    return alt, "Cosine of the change with each vector, within each decoder block alone."
