"""What the study `mechanism` says of how much of a vector is needed."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from weightsteer.report import numbers
from weightsteer.report.document import Cell, Figure, Section, Table
from weightsteer.report.sparsity_figures import draw_curves, draw_overlap
from weightsteer.studies._mechanism_measured import Measured
from weightsteer.studies._mechanism_paths import chance_of, matrices, overlap_words, silent
from weightsteer.studies._mechanism_thinned import ATTRIBUTION, THINNED
from weightsteer.studies._mechanism_words import LABELS, PUBLISHED_MODELS, SOURCE, nothing, sentences, told
from weightsteer.studies.mechanism import Settings

RULES = {ATTRIBUTION: "attribution", "effect": "largest effects", "magnitude": "largest elements", "random": "random"}
PUBLISHED = (
    f"Published ({SOURCE}, {PUBLISHED_MODELS}): 90 to 99 % of the dimensions can be left out while most of the effect "
    "stays; at r = 1 between 75 and 84 % of them go."
)


def dimensions(settings: Settings, found: Measured) -> Section:
    """How few dimensions of the difference in means are enough, and whether vectors agree on them."""
    sparse = found.sparse
    acting = numbers.excludes_zero(sparse["whole"])
    curves = _curves(sparse["curves"], RULES) if acting else {}
    figures = _curve_figure("dimensions", curves, "share of the dimensions kept")
    if len(sparse["kept"]) > 1:
        names = list(sparse["kept"])
        figures.append(
            Figure("kept", f"Overlap of the dimensions kept at r = {settings.threshold:g}.",
                   numbers.sentence("; ".join(map(overlap_words, sparse["shared"]))),
                   partial(draw_overlap, [LABELS[name] for name in names], *matrices(names, sparse["shared"])))
        )  # fmt: skip
    missing = [name for name in found.lengths if name not in sparse["kept"]]
    alone = [] if sparse["whole"] is None or acting else [LABELS[THINNED]]
    return Section(
        "How few dimensions",
        "How much of an activation vector can be left out, and do vectors made in different ways need the same?",
        sentences(_best(curves, "dimensions"), _agreeing(settings, sparse), nothing(alone), silent(missing)),
        (_points_table("Mean difference with dimensions left out", sparse["curves"], RULES, acting),
         _kept_table(sparse)),
        tuple(figures),
        (
            "Attribution keeps the dimensions whose share of the effect on the answers' tokens is at least r times "
            "their share of the vector; the other rules keep as many. What is left is as long as the whole.",
            f"r: {', '.join(f'{r:g}' for r in settings.thresholds)}. The effect that is left is measured on "
            "held-out questions, as in the first section.",
            PUBLISHED,
        ),
    )  # fmt: skip


def weights(settings: Settings, found: Measured) -> Section:
    """How little of the weight vector is enough."""
    thinned = found.thinned
    acting = numbers.excludes_zero(thinned["whole"])
    rules = {rule: rule for rule in thinned["curves"]}
    curves = _curves(thinned["curves"], rules) if acting else {}
    kinds: tuple[tuple[Cell, ...], ...] = tuple(
        (
            kind,
            numbers.percent(point["share"]),
            numbers.change(point["effect"]),
            told(point["retained"]) if acting else "none",
        )
        for kind, point in thinned["kinds"].items()
    )
    return Section(
        "How little of the weights",
        "How much of a weight vector can be thrown away?",
        _best(curves, "weights") or nothing([LABELS["weights"]]),
        (
            _points_table("Weight vector with some of it left", thinned["curves"], rules, acting),
            Table("Kinds of modules alone", ("kind", "share of the changed parameters", "effect", "share left"), kinds),
        ),
        tuple(_curve_figure("weights", curves, "share of the weight vector kept")),
        (
            f"Shares are of the elements, of the {thinned['rank']} singular directions of each matrix, or of the "
            "parameters in the blocks that are kept.",
        ),
    )


def _curves(found: Mapping[str, Sequence[Mapping[str, Any]]], rules: Mapping[str, str]) -> dict[str, Any]:
    """Rule as it is called -> share kept and effect left, most kept first."""
    return {
        rules[rule]: sorted(((point["share"], point["retained"]) for point in points), key=lambda one: -one[0])
        for rule, points in found.items()
    }


def _curve_figure(name: str, curves: Mapping[str, Any], label: str) -> list[Figure]:
    if not curves:
        return []
    alt = "; ".join(f"{rule}: {told(left)} at {numbers.percent(share)}" for rule, [*_, (share, left)] in curves.items())
    caption = "Effect that is left, as a share of the whole vector's, by the share that is kept."
    return [Figure(name, caption, f"{alt}.", lambda theme: draw_curves(curves, theme, label))]


def _best(curves: Mapping[str, Any], what: str) -> str:
    """How little each rule can keep with at least half of the effect left, its interval included."""
    if not curves:
        return ""
    said = []
    for rule, points in curves.items():
        enough = []
        for share, left in points:  # from the most kept on, as long as it holds
            if left is None or left.low < 0.5:
                break
            enough.append((share, left))
        said.append(
            f"{rule} down to {numbers.percent(enough[-1][0])} ({told(enough[-1][1])} left)" if enough
            else f"{rule} nowhere tried"
        )  # fmt: skip
    return (
        f"At least half of the effect is left, its interval included, with these shares of the {what} kept: "
        f"{'; '.join(said)}."
    )


def _agreeing(settings: Settings, sparse: Mapping[str, Any]) -> str:
    if not sparse["shared"]:
        return ""
    certain = sum(one["p_value"] < 0.05 / len(sparse["shared"]) for one in sparse["shared"])
    return (
        f"At r = {settings.threshold:g} the dimensions kept overlap, in both by in either: "
        f"{'; '.join(map(overlap_words, sparse['shared']))}; {certain} of {len(sparse['shared'])} overlaps exceed "
        "chance (p < 0.05, corrected for their number)."
    )


def _points_table(
    caption: str, found: Mapping[str, Sequence[Mapping[str, Any]]], rules: Mapping[str, str], acting: bool = True
) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            rules[rule],
            numbers.percent(one["share"]),
            numbers.change(one["effect"]),
            told(one["retained"]) if acting else "none",
        )
        for rule, points in found.items()
        for one in points
    ]
    return Table(caption, ("kept by", "share kept", "effect", "share of the whole effect"), tuple(rows))


def _kept_table(sparse: Mapping[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            f"{LABELS[overlap['one']]} and {LABELS[overlap['other']]}",
            overlap["shared"],
            overlap["iou"],
            overlap["expected_iou"],
            chance_of(overlap),
        )
        for overlap in sparse["shared"]
    ]
    kept = "; ".join(f"{LABELS[name]} {count}" for name, count in sparse["kept"].items())
    caption = f"Dimensions kept by two vectors, of {sparse['dimensions']} (kept: {kept or 'none'})"
    return Table(caption, ("of", "in both", "in both by in either", "by chance", "p"), tuple(rows))
