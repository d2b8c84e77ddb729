"""All that a run found, as one JSON-able mapping: the content of report.json."""

import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightsteer.data.contrast import SIDES, ContrastDataset
from weightsteer.evaluation import EvalResult, change
from weightsteer.models.language_model import LanguageModel
from weightsteer.recipe import Recipe, find_plugin, load_behavior
from weightsteer.stage import digest, git_revision, versions
from weightsteer.stats import spearman
from weightsteer.sweep import BASE, read_answers, sample_prompts

FORMAT = 1


def summarize(
    recipe: Recipe,
    pairs: ContrastDataset,
    lm: LanguageModel,
    vectors: Mapping[str, Any],
    results: Sequence[EvalResult],
    choice: Mapping[str, Any] | None,
    released: Mapping[str, Any] | None,
    out: Path,
) -> dict[str, Any]:
    """Everything the report shows. `released` holds what the merge and its verification said, with `results`."""
    reference = {r.eval: r for r in results if r.method == BASE}
    merged = None
    if released is not None:
        merged = {name: value for name, value in released.items() if name != "results"}
        merged["cells"] = cells(released.get("results", []), reference)
    return {
        "format": FORMAT,
        "name": recipe.name,
        "behavior": recipe.behavior,
        "description": load_behavior(recipe).description,
        "recipe": recipe.dump(),
        "recipe_digest": digest(recipe.dump()),
        "evals": {e.name: _eval(e.name) for e in recipe.evals},
        "cells": cells(results, reference),
        "choice": choice,
        "merged": merged,
        "vector": _vector(vectors, lm, out),
        "training": _training(out),
        "pairs": _pairs(pairs),
        "activation": _activation(vectors, out),
        "samples": _samples(recipe, out),
        "environment": environment(lm),
        "notes": _notes(recipe, results),
    }


def cells(results: Sequence[EvalResult], reference: Mapping[str, EvalResult]) -> list[dict[str, Any]]:
    """Results as rows, each metric with its paired change from the unsteered model."""
    rows = []
    for result in results:
        base = reference[result.eval]
        moved = None
        if result is not base:
            moved = {m: asdict(change(result, base, m)) for m in result.metrics if m in base.metrics}
        row = {name: value for name, value in asdict(result).items() if name not in ("scores", "model", "version")}
        rows.append({**row, "change": moved})
    return rows


def environment(lm: LanguageModel) -> dict[str, Any]:
    """The machine and the libraries, without anything that identifies its user."""
    return {
        "machine": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": _device(lm),
        "dtype": str(lm.network.dtype).removeprefix("torch."),
        "model": lm.ref.source,
        "fingerprint": lm.ref.fingerprint,
        "python": platform.python_version(),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _device(lm: LanguageModel) -> str:
    import torch

    return torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else lm.device.type


def _eval(name: str) -> dict[str, Any]:
    plugin = find_plugin("evals", name)
    metric = next(iter(plugin.METRICS))
    return {
        "version": plugin.VERSION,
        "metric": metric,
        "reads": plugin.METRICS[metric],
        "kind": plugin.KIND,
        "metrics": plugin.METRICS,
    }


def _vector(vectors: Mapping[str, Any], lm: LanguageModel, out: Path) -> dict[str, Any] | None:
    vector = vectors.get("weights")
    if vector is None:
        return None
    parameters = dict(lm.network.named_parameters())
    base_norms = {name: parameters[name].float().norm().item() for name in vector.entries}
    diagnostics = json.loads((out / "weights" / "vector" / "diagnostics.json").read_text(encoding="utf-8"))
    return {
        "norm": vector.norm(),
        "relative_norm": vector.relative_norm(base_norms),
        "rank": vector.rank,
        "norm_by_block": sorted(vector.norm_by_block().items()),
        "shares": vector.shares_by_kind(),
        "diagnostics": diagnostics,
    }


def _training(out: Path) -> dict[str, Any] | None:
    found = {}
    for side in SIDES:
        path = out / "weights" / side
        if not (path / "training.json").is_file():
            return None
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        found[side] = {
            **json.loads((path / "training.json").read_text(encoding="utf-8")),
            "seconds": manifest["seconds"],
        }
    return found


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


def _activation(vectors: Mapping[str, Any], out: Path) -> dict[str, Any] | None:
    if "activations" not in vectors:
        return None
    return json.loads((out / "activations" / "sweep.json").read_text(encoding="utf-8"))


def _samples(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    prompts = sample_prompts(recipe)
    points = [(BASE, 0.0)]
    if "weights" in [m.name for m in recipe.methods]:
        points += [("weights", k) for k in recipe.strengths("weights")]
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
    notes = ["One training seed: run-to-run spread is not in the intervals, which are over items only."]
    for settings in recipe.evals:
        cells = [r for r in results if r.eval == settings.name]
        base = [r for r in cells if r.method == BASE]
        points = sorted([*base, *(r for r in cells if r.method == "weights")], key=lambda r: r.k)
        if len(points) > 2:
            rho = spearman([r.k for r in points], [r.mean for r in points])
            notes.append(f"Spearman correlation of {settings.name} {points[0].metric} with k, weights: {rho:.2f}.")
    return notes
