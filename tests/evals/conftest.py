"""A model whose option scores are written down by the test."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, str], Any]], list[tuple[str, str]]]:
    """Have `score_options` answer from `score(prompt, option)` -> log p or (log p, tokens); returns what was asked."""

    def install(score: Callable[[str, str], Any]) -> list[tuple[str, str]]:
        asked: list[tuple[str, str]] = []

        def score_options(lm: Any, prompts: Sequence[Any], options: Sequence[Sequence[str]], *, label: str = "") -> Any:
            assert len(prompts) == len(options)
            asked.extend((p, o) for p, choices in zip(prompts, options, strict=True) for o in choices)
            found = [[score(p, o) for o in choices] for p, choices in zip(prompts, options, strict=True)]
            return [[s if isinstance(s, tuple) else (s, 1) for s in row] for row in found]

        monkeypatch.setattr("weightsteer.models.generate.score_options", score_options)
        return asked

    return install


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Have the model give these answers; returns what it was asked."""

    def install(*answers: str) -> list[Any]:
        asked: list[Any] = []

        def generate(lm: Any, prompts: Sequence[str], max_new_tokens: int, **options: Any) -> list[str]:
            asked.append((list(prompts), max_new_tokens, options))
            return list(answers)

        monkeypatch.setattr("weightsteer.models.generate.generate", generate)
        return asked

    return install


@pytest.fixture
def write_items(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as a JSON lines file."""

    def write(*rows: Any, name: str = "items.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        return path

    return write
