"""The tiny model loaded, a vector on it, and runs that were trained on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainings import load, new_trainer, random_vector, with_lora

from weightsteer.weights.base import Base
from weightsteer.weights.vector import WeightVector


@pytest.fixture
def network(model_folder: Path) -> Any:
    return load(model_folder)


@pytest.fixture
def vector(model_folder: Path) -> WeightVector:
    return random_vector(load(model_folder), base=Base.of(model_folder).fingerprint)


@pytest.fixture
def trained_run(model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A run folder with checkpoint-2, -4 and -6; of adapters, or of whole models."""

    def train(lora: dict[str, Any] | None, callbacks: list[Any] = [], **arguments: Any) -> Path:  # noqa: B006
        network = load(model_folder)
        wrapped = network if lora is None else with_lora(network, **lora)
        new_trainer(wrapped, tmp_path / "run", callbacks, **arguments).train()
        return tmp_path / "run"

    return train
