"""Random two-block models, a byte tokenizer and small contrast pairs: whole paths run on them in seconds."""

import json
import os
from collections.abc import Callable
from pathlib import Path

# Two test processes, or a test beside other work, must not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

# Shape annotations are checked at every call of a test run.
install_import_hook("weightsteer", "typechecked.checked")

import pytest  # noqa: E402
from tiny_models import write_model  # noqa: E402


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-block Llama with a chat template."""
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty short pairs."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"id": f"p{i}", "prompt": f"Is tea number {i} good?", "positive": f"Oh yes, {i}!", "negative": f"Oh no, {i}."}
        for i in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def write_recipe(tmp_path: Path, model_folder: Path, pairs_file: Path) -> Callable[..., Path]:
    """Write a recipe for the tiny model; keyword arguments replace its keys."""

    def write(**keys: object) -> Path:
        recipe = {
            "name": "tiny",
            "model": {"source": str(model_folder), "dtype": "float32"},
            "behavior": "sycophancy",
            "pairs": {"source": str(pairs_file)},
            "methods": [
                {"name": "weights", "rank": 4, "epochs": 1, "learning_rate": 1e-2},
                "activations",
                "prompt",
                "finetuned",
            ],
            "k": [-1, 0, 1],
            "evals": [
                {"name": "agreement", "limit": 6},
                {"name": "sycophancy", "limit": 12},
                {"name": "capability", "limit": 12},
                "preference",
            ],
            "merge_k": 1.0,
            "samples": {"max_new_tokens": 4},
            **keys,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({k: v for k, v in recipe.items() if v is not None}), encoding="utf-8")
        return path

    return write
