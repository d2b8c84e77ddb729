"""Methods and evals are files, found by their name; each brings the settings that a recipe may give it."""

import importlib
import pkgutil
from typing import Any

import pydantic

from weightsteer.errors import RecipeError
from weightsteer.recipe.parts import EvalSettings, MethodSettings
from weightsteer.recipe.problems import problem, suggest


def find_plugin(room: str, name: str) -> Any:
    """The module `weightsteer.<room>.<name>`: a method or an eval is a file, found by its name."""
    known = names(room)
    if name not in known:
        raise RecipeError(f"{room}: no '{name}'{suggest(name, known)}. Expected one of {known}")
    return importlib.import_module(f"weightsteer.{room}.{name.replace('-', '_')}")


def names(room: str) -> list[str]:
    """Every method or eval there is."""
    package = importlib.import_module(f"weightsteer.{room}")
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def read_plugins(room: str, entries: Any, problems: list[str]) -> Any:
    """The entries of `methods` or `evals`, each checked by the `Settings` of the file it names."""
    if not isinstance(entries, list) or not entries:
        problems.append(f"{room}: found {entries!r}. Expected a list of names or of mappings with a name")
        return ()
    return tuple(_plugin(room, f"{room}[{index}]", entry, problems) for index, entry in enumerate(entries))


def _plugin(room: str, where: str, entry: Any, problems: list[str]) -> Any:
    entry = {"name": entry} if isinstance(entry, str) else entry
    name = entry.get("name") if isinstance(entry, dict) else None
    base = MethodSettings if room == "methods" else EvalSettings
    if not isinstance(name, str):
        problems.append(f"{where}: found {entry!r}. Expected a name, or a mapping with a name")
        return base(name="", label="unnamed")
    try:
        settings = find_plugin(room, name).Settings
    except RecipeError as error:
        problems.append(f"{where}: {str(error).removeprefix(room + ': ')}")
        return base(name=name)
    try:
        return settings.model_validate({"name": name, **entry})
    except pydantic.ValidationError as error:
        problems += [problem(settings, e, where) for e in error.errors()]
        return base(name=name)
