"""What the README says is what the program does."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from weightsteer.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_block_runs(write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe()
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert "recipes/quickstart.yaml" in block
    monkeypatch.chdir(tmp_path)
    exec(block.replace("recipes/quickstart.yaml", str(recipe)), {})
    assert (tmp_path / "checkpoints" / "less-sycophantic" / "weightsteer.json").is_file()
    assert (tmp_path / "checkpoints" / "quickstart" / "weights" / "vector" / "vector.json").is_file()


def test_table_of_commands_is_complete() -> None:
    told = re.findall(r"^\| `weightsteer (\w+)", README, re.M)
    assert sorted(told) == sorted(c.name or c.callback.__name__ for c in app.registered_commands)


def test_named_files_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("line", re.findall(r"^(?:scripts/\w+|\./recipes/\S+)", README, re.M))
def test_named_scripts_are_executable(line: str) -> None:
    path = ROOT / shlex.split(line)[0]
    assert path.stat().st_mode & 0o111, f"{path} is not executable"
