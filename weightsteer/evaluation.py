"""(LanguageModel, eval) -> EvalResult: a number, its interval, and every item behind it."""

import json
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from weightsteer.errors import DataError
from weightsteer.evals import Given, ItemScore, with_items
from weightsteer.models.language_model import LanguageModel
from weightsteer.recipe import EvalSettings, find_plugin
from weightsteer.stage import write_text
from weightsteer.stats import Estimate, paired_difference, weighted_mean


@dataclass(frozen=True)
class EvalResult:
    """What one eval gave on one model; `mean`, `low`, `high` are those of the eval's first metric."""

    eval: str
    version: int
    model: str
    method: str
    k: float
    n: int
    n_unscored: int
    seconds: float
    metric: str
    """Name of the eval's first metric, which its result is known by."""
    metrics: Mapping[str, Estimate]
    """Those that enough items count for; the first may be missing."""
    scores: Sequence[ItemScore]
    seed: int | None = None
    """Training seed of the vector; None where nothing was trained, or for a mean over several seeds."""

    @property
    def mean(self) -> float:
        return self._primary.mean

    @property
    def low(self) -> float:
        return self._primary.low

    @property
    def high(self) -> float:
        return self._primary.high

    @property
    def _primary(self) -> Estimate:
        if self.metric not in self.metrics:
            raise DataError(
                f"{self.eval}, {self.method} at k = {self.k:g}: fewer than two of {self.n} items count for "
                f"{self.metric}. Use more items, or strengths that the model survives"
            )
        return self.metrics[self.metric]

    def __str__(self) -> str:
        return f"{self.eval} {self.metric} {self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"

    def save(self, folder: Path) -> None:
        """Write result.json and items.jsonl."""
        summary = {name: value for name, value in asdict(self).items() if name != "scores"}
        write_text(folder / "result.json", json.dumps(summary, indent=1))
        with (folder / "items.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for item in self.scores:
                file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "EvalResult":
        """Read what `save` wrote."""
        raw = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        metrics = {name: Estimate(**estimate) for name, estimate in raw.pop("metrics").items()}
        lines = (folder / "items.jsonl").read_text(encoding="utf-8").split("\n")
        return cls(**raw, metrics=metrics, scores=[ItemScore(**json.loads(line)) for line in lines if line])


def evaluate(
    lm: LanguageModel,
    eval: str | EvalSettings,
    *,
    limit: int | None = None,
    given: Given | None = None,
    seed: int = 0,
    method: str = "base",
    k: float = 0.0,
    training_seed: int | None = None,
) -> EvalResult:
    """Run one eval on a model, steered or not; a DataError when nothing could be scored.

    `limit` draws that many items with `seed`; `given` holds the pairs, the behavior and the judge for the evals that
    want them.
    """
    plugin = find_plugin("evals", eval if isinstance(eval, str) else eval.name)
    settings = with_items(plugin.Settings(name=eval) if isinstance(eval, str) else eval)
    given = given or Given()
    items = draw(plugin.read_items(settings, given), settings.limit if limit is None else limit, seed)
    start = time.monotonic()
    scores = [_checked(item) for item in plugin.score(lm, items, settings, given)]
    seconds = time.monotonic() - start
    return EvalResult(
        eval=settings.label,
        version=plugin.VERSION,
        model=lm.ref.source,
        method=method,
        k=k,
        n=len(scores),
        n_unscored=sum(item.unscored is not None for item in scores),
        seconds=round(seconds, 3),
        metric=next(iter(plugin.METRICS)),
        metrics=_estimates(scores, plugin.METRICS, f"{settings.label}, {method} at k = {k:g}"),
        scores=scores,
        seed=training_seed,
    )


def pooled(results: Sequence[EvalResult]) -> EvalResult:
    """One result for the same cell at several training seeds: every item's mean over the seeds.

    Intervals are over items; how far the seeds lie apart is told beside them, not inside.
    """
    first = results[0]
    if len(results) == 1:
        return first
    scores = [_mean_item(items) for items in zip(*(r.scores for r in results), strict=True)]
    known = dict.fromkeys(metric for result in results for metric in result.metrics)
    metrics = _estimates(scores, known, f"{first.eval}, {first.method} at k = {first.k:g}")
    seconds = round(sum(r.seconds for r in results), 3)
    unscored = sum(item.unscored is not None for item in scores)
    return replace(first, scores=scores, metrics=metrics, seconds=seconds, n_unscored=unscored, seed=None)


def _mean_item(items: Sequence[ItemScore]) -> ItemScore:
    """The mean of one item over seeds, each metric over those seeds in which it has a value."""
    scored = [item for item in items if item.unscored is None]
    if not scored:
        return items[0]
    found = {
        metric: [value for item in scored if (value := item.values.get(metric)) is not None]
        for metric in scored[0].values
    }
    values = {metric: sum(of) / len(of) if of else None for metric, of in found.items()}
    counts = {metric: len(of) / len(items) for metric, of in found.items() if 0 < len(of) < len(items)}
    return ItemScore(items[0].id, values, counts=counts)


def _estimates(scores: Sequence[ItemScore], known: Iterable[str], where: str) -> dict[str, Estimate]:
    """Mean and interval of each metric that at least two items count for; a DataError when there is none."""
    metrics: dict[str, Estimate] = {}
    for metric in known:
        values, weights = columns(scores, metric)
        if sum(weight > 0 for weight in weights) >= 2:
            metrics[metric] = weighted_mean(values, weights)
    if not metrics:
        reasons = {item.unscored for item in scores if item.unscored}
        raise DataError(
            f"{where}: fewer than two of {len(scores)} items count for any metric "
            f"({', '.join(sorted(reasons)) or 'all were scored'}). Expected at least two. Use more items, or "
            "strengths that the model survives"
        )
    return metrics


def change(steered: EvalResult, reference: EvalResult, metric: str) -> Estimate:
    """Paired difference steered - reference of one metric over the items that both scored."""
    treated, control, weights = paired_columns(steered, reference, metric)
    try:
        return paired_difference(treated, control, weights)
    except ValueError as error:
        raise DataError(
            f"{steered.eval}.{metric}, {steered.method} at k = {steered.k:g} against {reference.method}: {error}. Use "
            "more items"
        ) from None


def paired_columns(
    steered: EvalResult, reference: EvalResult, metric: str
) -> tuple[list[float], list[float], tuple[list[float], list[float]]]:
    """Values of the items that both scored, steered and reference, and how much each counts on either side."""
    ids = [item.id for item in steered.scores]
    if ids != [item.id for item in reference.scores]:
        raise DataError(f"{steered.eval}: two results to compare are over different items; run the eval again on both")
    both = [
        (a, b)
        for a, b in zip(steered.scores, reference.scores, strict=True)
        if a.unscored is None and b.unscored is None
    ]
    treated, w_treated = columns([a for a, _ in both], metric)
    control, w_control = columns([b for _, b in both], metric)
    return treated, control, (w_treated, w_control)


def draw(items: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """`items`, or `limit` of them drawn with `seed`, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def columns(scores: Sequence[ItemScore], metric: str) -> tuple[list[float], list[float]]:
    """Values of one metric, and how much each item counts: 1, or 0 where it does not."""
    values = [item.values.get(metric) if item.unscored is None else None for item in scores]
    weights = [0.0 if v is None else item.counts.get(metric, 1.0) for v, item in zip(values, scores, strict=True)]
    return [v or 0.0 for v in values], weights


def _checked(item: ItemScore) -> ItemScore:
    """The item, unscored when a number in it is none: a model steered too far can give infinities."""
    if _is_finite([item.values, item.detail]):
        return item
    return ItemScore(item.id, {}, unscored="the model's probabilities are not numbers")


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
