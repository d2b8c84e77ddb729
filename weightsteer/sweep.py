"""Every method over its strengths on every eval, the unsteered model shared; then the strength to release."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsteer import progress
from weightsteer.data.contrast import ContrastDataset
from weightsteer.evaluation import EvalResult, change, evaluate
from weightsteer.models.generate import generate
from weightsteer.models.language_model import LanguageModel
from weightsteer.recipe import Choose, Recipe, find_plugin, load_behavior
from weightsteer.stage import file_digest, is_finished, run_stage, write_text
from weightsteer.stats import Estimate

BASE = "base"


@dataclass(frozen=True)
class Candidate:
    """One strength: its effect, what it cost, and whether both are as asked."""

    k: float
    change: Estimate
    kept: Sequence[Mapping[str, Any]]
    qualifies: bool


@dataclass(frozen=True)
class Choice:
    """The strength to release, or None, with the reason in a sentence."""

    k: float | None
    eval: str
    metric: str
    goal: str
    keep: Mapping[str, float]
    reason: str
    candidates: Sequence[Candidate]


def run_sweep(
    recipe: Recipe, pairs: ContrastDataset, lm: LanguageModel, vectors: Mapping[str, Any], out: Path
) -> list[EvalResult]:
    """Results of all cells, each in its folder below `out`/evals; a finished cell is read, not run again."""
    grid = [(BASE, None, 0.0), *((name, v, k) for name, v in vectors.items() for k in recipe.strengths(name))]
    results = []
    with progress.task("sweep", len(grid) * len(recipe.evals)) as advance:
        for method, vector, k in grid:
            results += run_cells(recipe, pairs, lm, (method, vector, k), out)
            advance(len(recipe.evals), note=f"{method} k={k:g}")
    return results


def run_cells(
    recipe: Recipe,
    pairs: ContrastDataset,
    lm: LanguageModel,
    point: tuple[str, Any, float],
    out: Path,
) -> list[EvalResult]:
    """All evals (and the sample answers) of one (method, vector, k); the model is steered once for all of them."""
    method, vector, k = point
    steering = {"method": method, "k": k, "vector": None if vector is None else vector.digest}
    shared = {**steering, "model": lm.ref.fingerprint, "dtype": str(lm.network.dtype), "system": lm.system}
    jobs: list[tuple[Path, dict[str, Any], Any]] = []
    for settings in recipe.evals:
        folder = cell_folder(out, settings.name, method, k)
        jobs.append((folder, {**shared, **_eval_inputs(recipe, settings, pairs)}, settings))
    prompts = sample_prompts(recipe) if method in (BASE, "weights") else ()
    samples = {**shared, "prompts": prompts, "max_new_tokens": recipe.samples.max_new_tokens}
    answers = samples_folder(out, method, k)
    todo = [job for job in jobs if not is_finished(job[0], job[1])]
    ask = bool(prompts) and not is_finished(answers, samples)
    if todo or ask:
        with lm_steered(lm, vector, k) as steered:
            for folder, inputs, settings in todo:
                run_stage(
                    folder,
                    inputs,
                    lambda path, settings=settings: evaluate(
                        steered, settings, pairs=pairs, seed=recipe.seed, method=method, k=k
                    ).save(path),
                )
            if ask:
                run_stage(answers, samples, lambda path: _write_answers(steered, recipe, prompts, path))
    return [EvalResult.load(folder) for folder, _, _ in jobs]


def lm_steered(lm: LanguageModel, vector: Any, k: float) -> Any:
    """`vector.applied(lm, k)`; for the base there is no vector and nothing to apply."""
    import contextlib

    return contextlib.nullcontext(lm) if vector is None else vector.applied(lm, k)


def sample_prompts(recipe: Recipe) -> tuple[str, ...]:
    """The prompts answered side by side: the recipe's, else the behavior's."""
    own = recipe.samples.prompts
    return load_behavior(recipe).samples if own is None else own


def cell_folder(out: Path, eval: str, method: str, k: float) -> Path:
    """Where the result of one cell lies."""
    return out / "evals" / eval / method / f"k={k:g}"


def samples_folder(out: Path, method: str, k: float) -> Path:
    """Where the sample answers of one (method, k) lie."""
    return out / "samples" / method / f"k={k:g}"


def read_answers(out: Path, method: str, k: float) -> list[dict[str, str]]:
    """Sample prompts and answers of one (method, k)."""
    return json.loads((samples_folder(out, method, k) / "answers.json").read_text(encoding="utf-8"))


def choose_k(results: Sequence[EvalResult], choose: Choose) -> Choice:
    """The strength of the weight vector with the largest effect towards the goal, its 95 % interval clear of zero,
    among those whose every loss stays within its allowance over the whole interval."""
    eval, metric = split_metric(choose.eval)
    sign = 1 if choose.goal == "increase" else -1
    candidates = []
    for k in sorted({r.k for r in results if r.method == "weights"}):
        effect = _change(results, eval, metric, k)
        kept = []
        for key, allowed in choose.keep.items():
            kept_eval, kept_metric = split_metric(key)
            cost = _change(results, kept_eval, kept_metric, k)
            ok = cost.low >= -allowed
            kept.append({"metric": f"{kept_eval}.{kept_metric}", "change": asdict(cost), "allowed": allowed, "ok": ok})
        clear = effect.low > 0 if sign > 0 else effect.high < 0
        candidates.append(Candidate(k, effect, kept, clear and all(entry["ok"] for entry in kept)))
    qualified = [c for c in candidates if c.qualifies]
    best = max(qualified, key=lambda c: sign * c.change.mean, default=None)
    return Choice(
        k=best.k if best else None,
        eval=eval,
        metric=metric,
        goal=choose.goal,
        keep=dict(choose.keep),
        reason=_reason(best, candidates, choose),
        candidates=candidates,
    )


def split_metric(key: str) -> tuple[str, str]:
    """(eval, metric) of `EVAL` or `EVAL.METRIC`; the first metric of the eval where none is named."""
    eval, _, metric = key.partition(".")
    return eval, metric or next(iter(find_plugin("evals", eval).METRICS))


def _change(results: Sequence[EvalResult], eval: str, metric: str, k: float) -> Estimate:
    by_key = {(r.eval, r.method, r.k): r for r in results}
    return change(by_key[eval, "weights", k], by_key[eval, BASE, 0.0], metric)


def _reason(best: Candidate | None, candidates: Sequence[Candidate], choose: Choose) -> str:
    allowance = " and ".join(f"{key} within {allowed:g}" for key, allowed in choose.keep.items()) or "no allowance"
    if best:
        return f"k = {best.k:g} has the largest {choose.goal} of {choose.eval} among strengths that keep {allowance}."
    clear = [c for c in candidates if (c.change.low > 0 if choose.goal == "increase" else c.change.high < 0)]
    if not clear:
        return f"No strength moves {choose.eval} towards {choose.goal} by more than its 95 % interval."
    costs = ", ".join(f"k = {c.k:g}" for c in clear)
    return f"{costs} would {choose.goal} {choose.eval}, but none keeps {allowance} over the whole 95 % interval."


def _eval_inputs(recipe: Recipe, settings: Any, pairs: ContrastDataset) -> dict[str, Any]:
    """What determines the items and scores of one eval, the content of its item files included."""
    plugin = find_plugin("evals", settings.name)
    files = {name: value for name, value in settings if isinstance(value, Path)}
    return {
        "eval": settings.name,
        "version": plugin.VERSION,
        "settings": {name: value for name, value in settings if not isinstance(value, Path)},
        "files": {name: file_digest(path) for name, path in files.items() if path.is_file()},
        "pairs": pairs.digest if settings.name == "preference" else None,
        "seed": recipe.seed,
    }


def _write_answers(lm: LanguageModel, recipe: Recipe, prompts: Sequence[str], path: Path) -> None:
    answers = generate(lm, prompts, recipe.samples.max_new_tokens, label="sample answers")
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    write_text(path / "answers.json", json.dumps(rows, ensure_ascii=False, indent=1))
