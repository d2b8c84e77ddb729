"""Every method at one divergence from the unsteered model, and what each does there, tested against one of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightsteer import progress
from weightsteer.calibration import PERCENTILE, Calibration, calibrate, measured
from weightsteer.evals import Given
from weightsteer.evaluation import EvalResult, change, draw, paired_columns
from weightsteer.models.language_model import LanguageModel
from weightsteer.points import Fitted, Point
from weightsteer.recipe import EqualKl, Recipe, find_plugin
from weightsteer.stage import run_stage, write_text
from weightsteer.stats import holm, paired_test
from weightsteer.sweep import run_cells

Row = dict[str, Any]


def compare_at_equal_kl(recipe: Recipe, given: Given, lm: LanguageModel, fitted: Fitted, out: Path) -> dict[str, Any]:
    """Rows of (method, sign): the strength that reaches the target, its metrics and their change, and the paired
    difference from the reference method's row of the same sign, with Holm's correction over all of them.

    Vectors of the first training seed take part. A method whose k has only a sign is measured, not dialled.
    """
    asked = recipe.equal_kl
    assert asked is not None
    prompts = [pair.prompt for pair in given.pairs.part("train").pairs if isinstance(pair.prompt, str)]
    prompts = draw(prompts, asked.prompts, recipe.seed)
    points: list[tuple[Row, Point | None]] = []
    signs = [
        (label, sign) for label in fitted for sign in (-1, 1) if any(k * sign > 0 for k in recipe.strengths(label))
    ]
    with progress.task("equal KL: strengths", len(signs)) as advance:
        for label, sign in signs:
            points.append(_calibrated(recipe, asked, lm, fitted[label], (label, sign), prompts, out))
            advance(note=f"{label} {sign:+d}")
    keys = asked.metrics or tuple(settings.label for settings in recipe.evals)
    evals = [settings.label for settings in recipe.evals if settings.label in {key.partition(".")[0] for key in keys}]
    base = {r.eval: r for r in run_cells(recipe, given, lm, Point(), out, evals)}
    results: dict[tuple[str, int], dict[str, EvalResult]] = {}
    with progress.task("equal KL: evals", len(points) * len(evals)) as advance:
        for row, point in points:
            if point is not None:
                found = run_cells(recipe, given, lm, point, out / "equal-kl", evals)
                results[row["method"], row["sign"]] = {r.eval: r for r in found}
            advance(len(evals), note=f"{row['method']} {row['sign']:+d}")
    metrics = [_metric(key, base) for key in keys]
    rows = [row for row, _ in points]
    for row in rows:
        found = results.get((row["method"], row["sign"]), {})
        scored = [(e, m) for e, m in metrics if e in found and m in found[e].metrics and m in base[e].metrics]
        row["metrics"] = {f"{e}.{m}": asdict(found[e].metrics[m]) for e, m in scored}
        row["change"] = {f"{e}.{m}": asdict(change(found[e], base[e], m)) for e, m in scored}
    comparisons = _against(rows, results, metrics, asked.reference)
    return {
        "target": asked.target,
        "percentile": PERCENTILE,
        "prompts": len(prompts),
        "tokens": asked.tokens,
        "reference": asked.reference,
        "comparisons": comparisons,
        "rows": rows,
    }


def _calibrated(
    recipe: Recipe,
    asked: EqualKl,
    lm: LanguageModel,
    vectors: Mapping[int | None, Any],
    which: tuple[str, int],
    prompts: list[str],
    out: Path,
) -> tuple[Row, Point | None]:
    """The row of one method and sign as far as its strength goes, and the point to evaluate, where there is one."""
    label, sign = which
    seed, vector = next(iter(vectors.items()))
    strengths = [abs(k) for k in recipe.strengths(label) if k * sign > 0]
    any_base, dialled = (
        recipe.task is not None,
        getattr(find_plugin("methods", recipe.method(label).name), "DIALLED", True),
    )

    def work(path: Path) -> None:
        found: Calibration
        if dialled:
            found = calibrate(lm, vector, sign, asked.target, prompts, asked.tokens, min(strengths), any_base)
        else:
            found = measured(lm, vector, sign * max(strengths), prompts, asked.tokens, any_base)
        write_text(path / "calibration.json", json.dumps(asdict(found), indent=1))

    folder = out / "equal-kl" / "strengths" / label / f"sign={sign:+d}"
    inputs = {
        "vector": vector.digest,
        "model": lm.ref.fingerprint,
        "dtype": str(lm.network.dtype),
        "system": lm.system,
        "target": asked.target,
        "tokens": asked.tokens,
        "prompts": prompts,
        "start": min(strengths),
    }
    run_stage(folder, inputs, work)
    found = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    kl, k = found["divergence"], found["k"]
    row = {"method": label, "sign": sign, "k": k, "note": found["note"]}
    row |= {"kl": kl["p95"], "kl_mean": kl["mean"], "kl_max": kl["maximum"]}
    return row, None if k is None else Point(label, k, vector, seed)


def _metric(key: str, base: Mapping[str, EvalResult]) -> tuple[str, str]:
    eval, _, metric = key.partition(".")
    return eval, metric or base[eval].metric


def _against(
    rows: list[Row], results: Mapping[tuple[str, int], Mapping[str, EvalResult]], metrics: Any, reference: str
) -> int:
    """Put into every row its paired difference from the reference method's; returns how many tests were made."""
    tests = []
    for row in rows:
        row["against"] = {}
        own, other = results.get((row["method"], row["sign"])), results.get((reference, row["sign"]))
        if own is None or other is None or row["method"] == reference:
            continue
        for eval, metric in metrics:
            if metric in own[eval].metrics and metric in other[eval].metrics:
                p = paired_test(*paired_columns(own[eval], other[eval], metric))
                found = asdict(change(own[eval], other[eval], metric)) | {"p": p}
                row["against"][f"{eval}.{metric}"] = found
                tests.append(found)
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_adjusted"] = p
    return len(tests)
