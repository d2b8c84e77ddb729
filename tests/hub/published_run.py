"""What a run leaves to publish: a base, a vector of its changes, a merged checkpoint, a recipe and a report."""

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_models import write_model

K = -1.0


def write_run(run: Path, base: Path | None = None) -> Path:
    """`run` with base/, weights/vector, merged/ and recipe.yaml, full of paths as real ones are."""
    import torch

    from weightsteer.merging.merge import merge
    from weightsteer.models.fingerprint import fingerprint
    from weightsteer.weights.lowrank import LowRank
    from weightsteer.weights.vector import WeightVector

    base = base or write_model(run / "base")
    generator = torch.Generator().manual_seed(0)
    shapes = {"q_proj": (32, 32), "v_proj": (16, 32)}
    entries = {
        f"model.layers.{block}.self_attn.{module}.weight": LowRank(
            torch.randn(rows, 4, generator=generator) / 10, torch.randn(4, columns, generator=generator) / 10
        )
        for block in (0, 1)
        for module, (rows, columns) in shapes.items()
    }
    sides = {"positive": 1.0, "negative": -1.0}
    info = {
        "terms": [{"weight": sign, "adapter": str(run / "weights" / side)} for side, sign in sides.items()],
        "notes": [f"counted as zero in +1·{run}/weights/negative, which lacks them: lm_head.weight"],
        "kind": "contrast",
        "behavior": "sycophancy",
        "base_source": str(base),
        "base_revision": None,
        "recipe": "tiny",
        "recipe_digest": "0" * 64,
        "pairs_digest": "1" * 64,
    }
    vector = WeightVector(entries, fingerprint(base), info)
    vector.save(run / "weights" / "vector")
    merge(base, [(vector, K)], run / "merged")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe(run, base)), encoding="utf-8")
    (run / "merged" / "recipe.yaml").write_text(yaml.safe_dump(recipe(run, base)), encoding="utf-8")
    return run


def recipe(run: Path, base: Path) -> dict[str, Any]:
    """A resolved recipe: every path absolute."""
    return {
        "name": "tiny",
        "model": {"source": str(base), "revision": None, "system": "/no_think", "chat_template": f"{run}/chat.jinja"},
        "behavior": str(run / "behaviors" / "flattery.yaml"),
        "pairs": {"source": str(run / "my pairs" / "pairs.jsonl"), "subset": None},
        "evals": [{"name": "agreement", "items": str(run / "items" / "agreement.jsonl")}],
        "k": [-1.0, 0.0, 1.0],
    }


def write_report_of(run: Path, report: dict[str, Any]) -> None:
    """The report beside the checkpoint, made to tell of it."""
    described = json.loads((run / "merged" / "weightsteer.json").read_text(encoding="utf-8"))
    report["environment"]["fingerprint"] = described["base"]["fingerprint"]
    report["pairs"] |= {"digest": "1" * 64, "source": str(run / "pairs.jsonl")}
    folder = run / "report"
    (folder / "figures").mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    for name in ("tradeoff", "effects", "training"):
        (folder / "figures" / f"{name}.png").write_bytes(b"\x89PNG " + name.encode())
