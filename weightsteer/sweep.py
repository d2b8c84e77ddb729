"""Every method over its strengths on every eval, the unsteered model shared; then the strength to release."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from weightsteer import progress
from weightsteer.evals import Given, needs_judge, with_items
from weightsteer.evaluation import EvalResult, change, evaluate, pooled
from weightsteer.models.generate import generate
from weightsteer.models.language_model import LanguageModel
from weightsteer.points import BASE, Fitted, Point, grid
from weightsteer.recipe import Choose, Recipe, find_plugin, load_behavior
from weightsteer.stage import file_digest, is_finished, run_stage, write_text
from weightsteer.stats import Estimate


@dataclass(frozen=True)
class Candidate:
    """One strength: its effect (None where it could not be scored), what it cost, and whether both are as asked."""

    k: float
    change: Estimate | None
    kept: Sequence[Mapping[str, Any]]
    clear: bool
    """The effect is towards the goal over its whole interval."""
    qualifies: bool


@dataclass(frozen=True)
class Choice:
    """The strength to release, or None, with the reason in a sentence."""

    k: float | None
    method: str
    eval: str
    metric: str
    goal: str
    keep: Mapping[str, float]
    reason: str
    candidates: Sequence[Candidate]


def run_sweep(recipe: Recipe, given: Given, lm: LanguageModel, fitted: Fitted, out: Path) -> list[EvalResult]:
    """Results of all cells, each in its folder below `out`/evals; a finished cell is read, not run again.

    A cell that was run at several training seeds comes back as their mean, item by item.
    """
    points, cells = grid(recipe, fitted), {}
    with progress.task("sweep", len(points) * len(recipe.evals)) as advance:
        for point in points:
            for result in run_cells(recipe, given, lm, point, out):
                cells.setdefault((result.method, result.k, result.eval), []).append(result)
            seed = "" if point.seed is None else f" seed {point.seed}"
            advance(len(recipe.evals), note=f"{point.method} k={point.k:g}{seed}")
    return [pooled(results) for results in cells.values()]


def run_cells(
    recipe: Recipe, given: Given, lm: LanguageModel, point: Point, out: Path, evals: Sequence[str] | None = None
) -> list[EvalResult]:
    """All evals and the sample answers of one point, or `evals` alone; the model is steered once for all."""
    digest = None if point.vector is None else point.vector.digest
    steering = {"method": point.method, "k": point.k, "seed": point.seed, "vector": digest}
    shared = {**steering, "model": lm.ref.fingerprint, "dtype": str(lm.network.dtype), "system": lm.system}
    jobs: list[tuple[Path, dict[str, Any], Any]] = []
    for settings in recipe.evals:
        if evals is None or settings.label in evals:
            folder = out / "evals" / settings.label / point.path
            jobs.append((folder, {**shared, **_eval_inputs(recipe, settings, given)}, settings))
    prompts = sample_prompts(recipe) if evals is None and _is_sampled(recipe, point) else ()
    samples = {**shared, "prompts": prompts, "max_new_tokens": recipe.samples.max_new_tokens}
    answers = samples_folder(out, point.method, point.k)
    todo = [job for job in jobs if not is_finished(job[0], job[1])]
    ask = bool(prompts) and not is_finished(answers, samples)
    if todo or ask:
        with point.steering(lm, any_base=recipe.task is not None) as steered:
            for folder, inputs, settings in todo:
                run_stage(folder, inputs, partial(_write_result, steered, settings, recipe, given, point))
            if ask:
                run_stage(answers, samples, lambda path: _write_answers(steered, recipe, prompts, path))
    return [EvalResult.load(folder) for folder, _, _ in jobs]


def _write_result(lm: LanguageModel, settings: Any, recipe: Recipe, given: Given, point: Point, path: Path) -> None:
    result = evaluate(
        lm,
        settings,
        given=given,
        seed=recipe.seed,
        method=point.method,
        k=point.k,
        training_seed=point.seed,
    )
    result.save(path)


def _is_sampled(recipe: Recipe, point: Point) -> bool:
    """The unsteered model and the vector that may be released answer the sample prompts, at one seed."""
    released = recipe.released or "weights"
    return point.method in (BASE, released) and point.seed in (None, recipe.seed)


def sample_prompts(recipe: Recipe) -> tuple[str, ...]:
    """The prompts answered side by side: the recipe's, else the behavior's."""
    own = recipe.samples.prompts
    return load_behavior(recipe).samples if own is None else own


def samples_folder(out: Path, method: str, k: float) -> Path:
    """Where the sample answers of one (method, k) lie."""
    return out / "samples" / Point(method, k).path


def read_answers(out: Path, method: str, k: float) -> list[dict[str, str]]:
    """Sample prompts and answers of one (method, k)."""
    return json.loads((samples_folder(out, method, k) / "answers.json").read_text(encoding="utf-8"))


def choose_k(results: Sequence[EvalResult], choose: Choose) -> Choice:
    """The strength with the largest effect towards the goal, its 95 % interval clear of zero, among those whose every
    loss stays within its allowance over the whole interval."""
    by_key = {(r.eval, r.method, r.k): r for r in results}

    def moved(key: str, k: float) -> tuple[str, Estimate | None]:
        eval, _, metric = key.partition(".")
        base = by_key[eval, BASE, 0.0]
        metric, steered = metric or base.metric, by_key[eval, choose.method, k]
        scored = metric in base.metrics and metric in steered.metrics
        return f"{eval}.{metric}", change(steered, base, metric) if scored else None

    sign = 1 if choose.goal == "increase" else -1
    candidates = []
    for k in sorted({r.k for r in results if r.method == choose.method}):
        name, effect = moved(choose.eval, k)
        kept = []
        for key, allowed in choose.keep.items():
            metric, cost = moved(key, k)
            ok = cost is not None and cost.low >= -allowed
            kept.append({"metric": metric, "change": cost and asdict(cost), "allowed": allowed, "ok": ok})
        clear = effect is not None and (effect.low > 0 if sign > 0 else effect.high < 0)
        candidates.append(Candidate(k, effect, kept, clear, clear and all(entry["ok"] for entry in kept)))
    qualified = [c for c in candidates if c.qualifies]
    best = max(qualified, key=lambda c: sign * c.change.mean if c.change else 0.0, default=None)
    eval, _, metric = name.partition(".")
    return Choice(
        k=best.k if best else None,
        method=choose.method,
        eval=eval,
        metric=metric,
        goal=choose.goal,
        keep=dict(choose.keep),
        reason=_reason(best, candidates, choose),
        candidates=candidates,
    )


def _reason(best: Candidate | None, candidates: Sequence[Candidate], choose: Choose) -> str:
    allowance = " and ".join(f"{key} within {allowed:g}" for key, allowed in choose.keep.items()) or "no allowance"
    if best:
        return f"k = {best.k:g} has the largest {choose.goal} of {choose.eval} among strengths that keep {allowance}."
    clear = [c for c in candidates if c.clear]
    if not clear:
        return f"No strength moves {choose.eval} towards {choose.goal} by more than its 95 % interval."
    costs = ", ".join(f"k = {c.k:g}" for c in clear)
    return f"{costs} would {choose.goal} {choose.eval}, but none keeps {allowance} over the whole 95 % interval."


def _eval_inputs(recipe: Recipe, settings: Any, given: Given) -> dict[str, Any]:
    """What determines the items and scores of one eval, the content of its item files included."""
    plugin = find_plugin("evals", settings.name)
    judged = needs_judge(settings)
    return {
        "eval": settings.name,
        "version": plugin.VERSION,
        "settings": {name: value for name, value in settings if not isinstance(value, Path) and name != "label"},
        "files": {name: file_digest(path) for name, path in _files(with_items(settings)) if path.is_file()},
        "pairs": _pairs(settings, given).digest if getattr(plugin, "PAIRS", False) else None,
        "behavior": given.behavior.model_dump(mode="json", exclude={"pairs"}) if judged else None,
        "judge": given.judge.digest if judged and given.judge is not None else None,
        "seed": recipe.seed,
    }


def _pairs(settings: Any, given: Given) -> Any:
    """The pairs that an eval's items are among: the run's, or another behavior's."""
    return given.others.get(getattr(settings, "behavior", None), given.pairs)


def _files(settings: Any) -> Iterator[tuple[str, Path]]:
    """(key, path) of every file that an eval's settings name; task files of the harness stand in a list, as texts."""
    for key, value in settings:
        if isinstance(value, Path):
            yield key, value
        elif isinstance(value, tuple):
            yield from ((f"{key}: {v}", Path(v)) for v in value if isinstance(v, str) and v.endswith((".yaml", ".yml")))


def _write_answers(lm: LanguageModel, recipe: Recipe, prompts: Sequence[str], path: Path) -> None:
    answers = generate(lm, prompts, recipe.samples.max_new_tokens, label="sample answers")
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    write_text(path / "answers.json", json.dumps(rows, ensure_ascii=False, indent=1))
