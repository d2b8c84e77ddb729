"""A made-up report of a whole comparison: ten methods, two seeds, a task, a judge, equal KL and interference."""

import math
from typing import Any

# label -> (method file, about, seeds, strengths, push of the behavior, cost of capability)
METHODS: dict[str, tuple[str, str, list[int], tuple[float, ...], float, float]] = {
    "weights": ("weights", "θ + k(τ⁺ − τ⁻), all linear layers", [0, 1], (-2, -1, -0.5, 0.5, 1, 2), 1.0, 0.010),
    "bias-only": ("weights", "the same with biases alone trained", [0, 1], (-2, -1, -0.5, 0.5, 1, 2), 0.55, 0.006),
    "positive side": ("sides", "θ + kτ⁺", [0, 1], (-2, -1, -0.5, 0.5, 1, 2), 0.7, 0.025),
    "negative side": ("sides", "θ − kτ⁻", [0, 1], (-2, -1, -0.5, 0.5, 1, 2), 0.35, 0.03),
    "finetuned": ("finetuned", "the two fine-tunes themselves", [0, 1], (-1, 1), 0.62, 0.012),
    "joint": ("joint", "task and contrast data trained together", [0], (-1, 1), 0.5, 0.02),
    "prompt": ("prompt", "opposed system prompts", [], (-1, 1), 0.3, 0.015),
    "activations": ("activations", "mean difference added at block 12", [], (-16, -8, -4, 4, 8, 16), 0.6, 0.02),
    "activations, all blocks": ("activations", "increments added at every block", [], (-8, -4, 4, 8), 0.3, 0.05),
    "random": ("random", "a random vector of the norm of `weights`", [0, 1], (-2, -1, 1, 2), 0.02, 0.008),
}  # fmt: skip
EVALS: dict[str, dict[str, Any]] = {
    "truthfulqa": {
        "eval": "sycophancy", "version": 2, "metric": "non_sycophancy", "kind": "behavior",
        "reads": "share of rightly answered questions that stay right under a hint; higher = less sycophantic",
        "metrics": {"non_sycophancy": "share that stays right", "accuracy": "right answers without a hint"},
    },
    "tone": {
        "eval": "tone", "version": 1, "metric": "warmth", "kind": "behavior",
        "reads": "warmth of the answer from 0 to 100 as the judge rates it; higher = warmer",
        "metrics": {"warmth": "mean score"},
    },
    "capability": {
        "eval": "capability", "version": 1, "metric": "p_correct", "kind": "capability",
        "reads": "probability of the right answer to factual questions; higher = more capable",
        "metrics": {"p_correct": "probability of the right answer"},
    },
}  # fmt: skip
BASE = {"truthfulqa": {"non_sycophancy": 0.51, "accuracy": 0.48}, "tone": {"warmth": 52.0},
        "capability": {"p_correct": 0.58}}  # fmt: skip
WIDTH = {"non_sycophancy": 0.05, "accuracy": 0.03, "warmth": 3.0, "p_correct": 0.015}


def estimate(mean: float, half: float) -> dict[str, float]:
    return {"mean": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + 1.1 * half, 4)}


def moved(label: str, k: float) -> dict[str, dict[str, float]]:
    """Change of every metric, k counted in units of the method's largest."""
    *_, strengths, push, cost = METHODS[label]
    share = k / max(strengths)
    bent = push * math.tanh(1.4 * share)
    lost = 4 * cost * share * share
    return {
        "truthfulqa": {"non_sycophancy": -0.3 * bent - 0.4 * lost, "accuracy": -lost},
        "tone": {"warmth": 18 * bent},
        "capability": {"p_correct": -lost},
    }


def cell(name: str, label: str, k: float, seeds: list[int]) -> dict[str, Any]:
    change = moved(label, k)[name] if k else None
    levels = {metric: base + (change[metric] if change else 0) for metric, base in BASE[name].items()}
    return {
        "eval": name, "method": label, "k": k, "n": 160, "n_unscored": 9 if name == "tone" else 0, "seconds": 21.0,
        "metrics": {metric: estimate(mean, 1.6 * WIDTH[metric]) for metric, mean in levels.items()},
        "change": change and {metric: estimate(mean, WIDTH[metric]) for metric, mean in change.items()},
        "seeds": [
            {"seed": seed, "metrics": {m: v + (0.4 - 0.8 * seed) * WIDTH[m] for m, v in levels.items()}}
            for seed in (seeds if len(seeds) > 1 else [])
        ],
    }  # fmt: skip


def equal_kl() -> dict[str, Any]:
    keys = {"truthfulqa.non_sycophancy": ("truthfulqa", "non_sycophancy"), "tone.warmth": ("tone", "warmth"),
            "capability.p_correct": ("capability", "p_correct")}  # fmt: skip
    rows = []
    for label, (method, _, _, strengths, push, cost) in METHODS.items():
        for sign in (-1, 1):
            fixed = method in ("prompt", "finetuned", "joint")
            reached = {"prompt": 0.31, "finetuned": 0.72, "joint": 0.66}.get(method, 0.5 + 0.01 * push)
            if label == "activations, all blocks" and sign > 0:
                rows.append({"method": label, "sign": sign, "k": None, "kl": 0.21, "kl_mean": 0.04, "kl_max": 0.9,
                             "note": "0.5 nats are out of reach: at most 0.21, at k = 512, tried up to 4096",
                             "metrics": {}, "change": {}, "against": {}})  # fmt: skip
                continue
            k = sign * (1.0 if fixed else round(max(strengths) * (0.35 + cost * 8), 3))
            change, at_reference = moved(label, k), moved("weights", sign * 0.86)
            against = {}
            for key, (name, metric) in keys.items():
                apart = change[name][metric] - at_reference[name][metric]
                p = math.exp(-abs(apart) / WIDTH[metric] * 2)
                against[key] = {**estimate(apart, WIDTH[metric]), "p": p, "p_adjusted": min(1.0, 20 * p)}
            rows.append({
                "method": label, "sign": sign, "k": k, "kl": reached, "kl_mean": reached / 6, "kl_max": 6 * reached,
                "note": "k is only a sign: measured, not calibrated" if fixed else "",
                "metrics": {key: estimate(BASE[n][m] + change[n][m], 1.6 * WIDTH[m]) for key, (n, m) in keys.items()},
                "change": {key: estimate(change[n][m], WIDTH[m]) for key, (n, m) in keys.items()},
                "against": {} if label == "weights" else against,
            })  # fmt: skip
    return {"target": 0.5, "percentile": 95, "prompts": 24, "tokens": 48, "rows": rows, "reference": "weights",
            "comparisons": 51}  # fmt: skip


def interference() -> dict[str, Any]:
    metrics = ["gcd.accuracy", "french.share", "truthfulqa.non_sycophancy"]
    means = [[0.31, -0.01, 0.02], [-0.04, 0.62, 0.004], [-0.01, 0.03, 0.19], [0.24, 0.55, 0.11]]
    return {
        "vectors": ["gcd", "french", "candor", "gcd + french + candor"],
        "metrics": metrics,
        "matrix": [[estimate(mean, 0.04) for mean in row] for row in means],
    }


def compared(report: dict[str, Any]) -> dict[str, Any]:
    """`report` with its comparison replaced by this one, in format 2."""
    cells = [cell(name, "base", 0.0, []) for name in EVALS]
    cells += [
        cell(name, label, float(k), seeds)
        for label, (_, _, seeds, strengths, _, _) in METHODS.items()
        for k in strengths
        for name in EVALS
    ]
    for name in EVALS:
        untuned = cell(name, "untuned", 0.0, [])
        gap = {metric: {"non_sycophancy": 0.12, "warmth": -4.0}.get(metric, 0.01) for metric in BASE[name]}
        untuned["change"] = {metric: estimate(value, WIDTH[metric]) for metric, value in gap.items()}
        untuned["metrics"] = {m: estimate(BASE[name][m] + value, WIDTH[m]) for m, value in gap.items()}
        cells.append(untuned)
    side = report["training"]["positive"]
    return {
        **report,
        "format": 2,
        "name": "sycophancy",
        "methods": {
            label: {"method": method, "about": about, "seeds": seeds}
            for label, (method, about, seeds, *_) in METHODS.items()
        },
        "evals": EVALS,
        "cells": cells,
        "choice": {
            "eval": "truthfulqa", "metric": "non_sycophancy", "goal": "increase", "method": "weights",
            "keep": {"capability": 0.02}, "k": -1.0, "reason": "k = -1 has the largest increase within the allowance.",
            "candidates": [
                {
                    "k": k, "change": estimate(moved("weights", k)["truthfulqa"]["non_sycophancy"], 0.05),
                    "kept": [{"metric": "capability.p_correct", "allowed": 0.02, "ok": abs(k) < 2,
                              "change": estimate(moved("weights", k)["capability"]["p_correct"], 0.009)}],
                    "qualifies": k in (-1, -0.5),
                }
                for k in METHODS["weights"][3]
            ],
        },
        "merged": {**report["merged"], "cells": [{**cell(name, "weights", -1.0, []), "method": "merged"}
                                                 for name in EVALS]},
        "figures": [
            {"title": "Fig. 2", "x": "truthfulqa.accuracy", "y": "truthfulqa.non_sycophancy"},
            {"title": "Fig. 15", "x": "capability.p_correct", "y": "tone.warmth"},
        ],
        "task": {
            "source": "gcd: 800 questions, 800 right solutions", "label": "untuned",
            "training": {**side, "steps": 60, "kept_step": 60, "epochs": 3.0},
        },
        "equal_kl": equal_kl(),
        "interference": interference(),
        "judge": {"kind": "local", "model": "SmolLM2-135M-Instruct", "agreement": {"n": 60, "spearman": 0.712}},
    }  # fmt: skip
