"""All that a run found, as one JSON-able mapping: the content of report.json."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsteer.data.contrast import SIDES, ContrastDataset
from weightsteer.evals import needs_judge
from weightsteer.evaluation import EvalResult, change
from weightsteer.models.language_model import LanguageModel
from weightsteer.points import BASE, UNTUNED, Fitted, Point
from weightsteer.recipe import Recipe, find_plugin, load_behavior
from weightsteer.stage import digest, machine
from weightsteer.stats import spearman
from weightsteer.sweep import read_answers, sample_prompts

FORMAT = 2


@dataclass(frozen=True)
class Found:
    """What a run made and measured."""

    pairs: ContrastDataset
    lm: LanguageModel
    """The model that was steered."""
    fitted: Fitted
    results: Sequence[EvalResult]
    choice: Mapping[str, Any] | None
    released: Mapping[str, Any] | None
    """What the merge and its verification said, with `results`."""
    compared: Mapping[str, Any] | None
    """Methods at equal divergence from the unsteered model."""
    agreement: Mapping[str, Any] | None
    """How far the judge agrees with labels given by hand."""
    out: Path


def summarize(recipe: Recipe, found: Found) -> dict[str, Any]:
    """Everything the report shows."""
    reference = {r.eval: r for r in found.results if r.method == BASE}
    merged = None
    if found.released is not None:
        merged = {name: value for name, value in found.released.items() if name != "results"}
        merged["cells"] = cells(found.released.get("results", []), reference, found)
    return {
        "format": FORMAT,
        "name": recipe.name,
        "behavior": recipe.behavior,
        "description": load_behavior(recipe).description,
        "recipe": recipe.dump(),
        "recipe_digest": digest(recipe.dump()),
        "methods": {m.label: _method(m, found) for m in recipe.methods},
        "evals": {e.label: _eval(e) for e in recipe.evals},
        "cells": cells(found.results, reference, found),
        "choice": found.choice,
        "equal_kl": found.compared,
        "interference": _interference(recipe, found.results, reference),
        "figures": [figure.model_dump() for figure in recipe.figures],
        "merged": merged,
        "vector": _vector(found),
        "task": _task(recipe, found.out),
        "training": _training(found.out / "weights"),
        "judge": _judge(recipe, found.agreement),
        "pairs": _pairs(found.pairs),
        "activation": _activation(found.out),
        "samples": _samples(recipe, found.out),
        "environment": environment(found.lm),
        "notes": _notes(recipe, found.results),
    }


def cells(results: Sequence[EvalResult], reference: Mapping[str, EvalResult], found: Found) -> list[dict[str, Any]]:
    """Results as rows, each metric with its paired change from the unsteered model and its value at every seed."""
    rows = []
    for result in results:
        base = reference[result.eval]
        moved = None
        if result is not base:
            moved = {m: asdict(change(result, base, m)) for m in result.metrics if m in base.metrics}
        left_out = ("scores", "model", "version", "seed")
        row = {name: value for name, value in asdict(result).items() if name not in left_out}
        rows.append({**row, "change": moved, "seeds": _seeds(result, found)})
    return rows


def _seeds(result: EvalResult, found: Found) -> list[dict[str, Any]]:
    """Means at each training seed, where there were several."""
    seeds = [seed for seed in found.fitted.get(result.method, {}) if seed is not None]
    rows = []
    for seed in seeds:
        point = Point(result.method, result.k, None, seed)
        single = EvalResult.load(found.out / "evals" / result.eval / point.path)
        rows.append({"seed": seed, "metrics": {m: e.mean for m, e in single.metrics.items()}})
    return rows


def _method(settings: Any, found: Found) -> dict[str, Any]:
    seeds = [seed for seed in found.fitted.get(settings.label, {}) if seed is not None]
    return {"method": settings.name, "about": find_plugin("methods", settings.name).ABOUT, "seeds": seeds}


def _interference(
    recipe: Recipe, results: Sequence[EvalResult], reference: Mapping[str, EvalResult]
) -> dict[str, Any] | None:
    """How far each vector moves each metric at one strength."""
    asked = recipe.interference
    if asked is None:
        return None
    by_key = {(r.eval, r.method, r.k): r for r in results}

    def moved(vector: str, key: str) -> dict[str, float] | None:
        eval, _, metric = key.partition(".")
        steered, base = by_key.get((eval, vector, asked.k)), reference[eval]
        metric = metric or base.metric
        if steered is None or metric not in steered.metrics or metric not in base.metrics:
            return None
        return asdict(change(steered, base, metric))

    matrix = [[moved(vector, key) for key in asked.metrics] for vector in asked.vectors]
    return {"vectors": asked.vectors, "metrics": asked.metrics, "k": asked.k, "matrix": matrix}


def _task(recipe: Recipe, out: Path) -> dict[str, Any] | None:
    """Where the task-tuned model comes from, and how its training went."""
    part = recipe.task
    if part is None:
        return None
    source = part.model or part.source
    named = Path(source).name if source else f"GCD of numbers from {part.gcd.low} to {part.gcd.high}, generated"
    return {"source": named, "label": UNTUNED, "training": _history(out / "task" / "adapter")}


def _judge(recipe: Recipe, agreement: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Which judge rated, where one did."""
    if recipe.pairs.elicit is None and not any(needs_judge(settings) for settings in recipe.evals):
        return None
    model = recipe.judge.model or (recipe.model.source if recipe.judge.kind == "local" else None)
    return {"kind": recipe.judge.kind, "model": model, "agreement": agreement}


def environment(lm: LanguageModel) -> dict[str, Any]:
    """The machine, the libraries and the model."""
    return machine() | {
        "device": _device(lm),
        "dtype": str(lm.network.dtype).removeprefix("torch."),
        "model": lm.ref.source,
        "fingerprint": lm.ref.fingerprint,
    }


def _device(lm: LanguageModel) -> str:
    import torch

    return torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else lm.device.type


def _eval(settings: Any) -> dict[str, Any]:
    plugin = find_plugin("evals", settings.name)
    metric = next(iter(plugin.METRICS))
    return {
        "eval": settings.name,
        "version": plugin.VERSION,
        "metric": metric,
        "reads": plugin.METRICS[metric],
        "kind": plugin.KIND,
        "metrics": plugin.METRICS,
    }


def _vector(found: Found) -> dict[str, Any] | None:
    vectors = found.fitted.get("weights")
    if not vectors:
        return None
    vector = next(iter(vectors.values()))
    parameters = dict(found.lm.network.named_parameters())
    base_norms = {name: parameters[name].float().norm().item() for name in vector.entries}
    diagnostics = json.loads((found.out / "weights" / "vector" / "diagnostics.json").read_text(encoding="utf-8"))
    return {
        "norm": vector.norm(),
        "relative_norm": vector.relative_norm(base_norms),
        "rank": vector.rank,
        "norm_by_block": sorted(vector.norm_by_block().items()),
        "shares": vector.shares_by_kind(),
        "diagnostics": diagnostics,
    }


def _training(folder: Path) -> dict[str, Any] | None:
    found = {side: _history(folder / side) for side in SIDES}
    return None if None in found.values() else found


def _history(folder: Path) -> dict[str, Any] | None:
    """Losses and seconds of one finished training."""
    if not (folder / "training.json").is_file():
        return None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {**json.loads((folder / "training.json").read_text(encoding="utf-8")), "seconds": manifest["seconds"]}


def _pairs(pairs: ContrastDataset) -> dict[str, Any]:
    splits = Counter(pair.split for pair in pairs.pairs)
    words = {side: [len(getattr(pair, side).split()) for pair in pairs.pairs] for side in SIDES}
    return {
        "source": pairs.source,
        "n": len(pairs),
        **{split: splits[split] for split in ("train", "validation", "held_out")},
        "topics": len({pair.topic for pair in pairs.pairs if pair.topic}),
        "digest": pairs.digest,
        "mean_words": {side: sum(n) / len(n) for side, n in words.items()},
    }


def _activation(out: Path) -> dict[str, Any] | None:
    path = out / "activations" / "sweep.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _samples(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    prompts = sample_prompts(recipe)
    points = [(BASE, 0.0)]
    released = recipe.released or "weights"
    if released in [m.label for m in recipe.methods]:
        points += [(released, k) for k in recipe.strengths(released)]
    points.sort(key=lambda point: point[1])
    answers = {(method, k): read_answers(out, method, k) for method, k in points} if prompts else {}
    return [
        {
            "prompt": prompt,
            "answers": [{"method": m, "k": k, "text": answers[m, k][i]["answer"]} for m, k in points],
        }
        for i, prompt in enumerate(prompts)
    ]


def _notes(recipe: Recipe, results: Sequence[EvalResult]) -> list[str]:
    notes = []
    for settings in recipe.evals:
        cells = [r for r in results if r.eval == settings.label and r.metric in r.metrics]
        base = [r for r in cells if r.method == BASE]
        points = sorted([*base, *(r for r in cells if r.method == "weights")], key=lambda r: r.k)
        if len(points) > 2:
            rho = spearman([r.k for r in points], [r.mean for r in points])
            notes.append(f"Spearman correlation of {settings.label} {points[0].metric} with k, weights: {rho:.2f}.")
    return notes
