"""(LanguageModel, eval) -> EvalResult: a number, its interval, and every item behind it."""

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsteer.data.contrast import ContrastDataset
from weightsteer.errors import DataError
from weightsteer.evals import ItemScore
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
    metrics: Mapping[str, Estimate]
    scores: Sequence[ItemScore]

    @property
    def metric(self) -> str:
        """Name of the eval's first metric."""
        return next(iter(self.metrics))

    @property
    def mean(self) -> float:
        return self.metrics[self.metric].mean

    @property
    def low(self) -> float:
        return self.metrics[self.metric].low

    @property
    def high(self) -> float:
        return self.metrics[self.metric].high

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
    pairs: ContrastDataset | None = None,
    seed: int = 0,
    method: str = "base",
    k: float = 0.0,
) -> EvalResult:
    """Run one eval on a model, steered or not; a DataError when nothing could be scored.

    `limit` draws that many items with `seed`; `pairs` gives the held-out pairs to the evals that want them.
    """
    plugin = find_plugin("evals", eval if isinstance(eval, str) else eval.name)
    settings = plugin.Settings(name=eval) if isinstance(eval, str) else eval
    items = draw(plugin.read_items(settings, pairs), settings.limit if limit is None else limit, seed)
    start = time.monotonic()
    scores = [_checked(item) for item in plugin.score(lm, items)]
    seconds = time.monotonic() - start
    metrics = {}
    for metric in plugin.METRICS:
        values, weights = columns(scores, metric)
        if sum(weights) >= 2:
            metrics[metric] = weighted_mean(values, weights)
        elif not metrics:
            reasons = {item.unscored for item in scores if item.unscored}
            raise DataError(
                f"{settings.name}, {method} at k = {k:g}: {sum(weights):g} of {len(scores)} items count for {metric} "
                f"({', '.join(sorted(reasons)) or 'all were scored'}). Expected at least two. Use more items, or "
                "strengths that the model survives"
            )
    return EvalResult(
        eval=settings.name,
        version=plugin.VERSION,
        model=lm.ref.source,
        method=method,
        k=k,
        n=len(scores),
        n_unscored=sum(item.unscored is not None for item in scores),
        seconds=round(seconds, 3),
        metrics=metrics,
        scores=scores,
    )


def change(steered: EvalResult, reference: EvalResult, metric: str) -> Estimate:
    """Paired difference steered - reference of one metric over the items that both scored."""
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
    try:
        return paired_difference(treated, control, (w_treated, w_control))
    except ValueError as error:
        raise DataError(
            f"{steered.eval}.{metric}, {steered.method} at k = {steered.k:g} against {reference.method}: {error}. Use "
            "more items"
        ) from None


def draw(items: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """`items`, or `limit` of them drawn with `seed`, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def columns(scores: Sequence[ItemScore], metric: str) -> tuple[list[float], list[float]]:
    """Values of one metric, and a weight of 1 for each item that counts, 0 for one that does not."""
    values = [item.values.get(metric) if item.unscored is None else None for item in scores]
    return [v or 0.0 for v in values], [0.0 if v is None else 1.0 for v in values]


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
