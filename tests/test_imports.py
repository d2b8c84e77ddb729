"""Who may import whom: downwards only, and nothing heavy before it is needed."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import weightsteer

PACKAGE = Path(weightsteer.__file__).parent
# Lowest first. Rooms of one row stand side by side and do not know one another, but for PEERS.
ORDER = (
    ("errors",),
    ("progress", "recipe", "stage", "stats"),
    ("steerability",),
    ("models",),
    ("data",),
    ("weights", "activations", "judge"),
    ("merging",),
    ("methods", "evals"),
    ("points", "evaluation"),
    ("calibration", "sweep"),
    ("equal_kl",),
    ("release", "summary", "report", "show", "hub", "task"),
    ("monitor", "diagnosis"),
    ("studies",),
    ("pipeline",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# A method may be tuned with an eval; the card on the hub shows what the report says; what steering does inside is asked
# of both kinds of vectors.
PEERS = {("methods", "evals"), ("hub", "report"), ("activations", "weights")}
# They cost seconds, so they are imported inside the functions that need them; torch may stand at the top of some rooms.
HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "scipy", "matplotlib", "huggingface_hub",
         "safetensors", "gguf", "openai", "lm_eval"}  # fmt: skip
EXCEPT = {"monitor/callback.py": {"transformers"}}  # a TrainerCallback, loaded by whoever trains
ROOMS_OF_TORCH = {"weights", "merging", "monitor", "activations", "models"}


def sources() -> Iterator[tuple[str, str, ast.Module]]:
    """(file, room, syntax tree) of every file but the package's own, which names everything and loads it when asked."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.name != "__init__.py" or len(relative.parts) > 1:
            yield str(relative), relative.parts[0].removesuffix(".py"), ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Dotted names of what is imported."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "weightsteer":
            yield from (f"weightsteer.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_room_has_its_place():
    assert {room for _, room, _ in sources()} == set(LEVEL)


def test_imports_lead_downwards():
    wrong = [
        f"{file} imports {name}"
        for file, room, tree in sources()
        for name in imported(ast.walk(tree))
        if name.startswith("weightsteer.")
        for other in [name.split(".")[1]]
        if other not in ("__version__", room) and LEVEL[other] >= LEVEL[room] and (room, other) not in PEERS
    ]
    assert wrong == []


def test_heavy_libraries_are_imported_where_they_are_used():
    wrong = [
        f"{file} imports {name} at the top"
        for file, room, tree in sources()
        for name in imported(tree.body)
        if name.split(".")[0] in HEAVY - ({"torch"} if room in ROOMS_OF_TORCH else set()) - EXCEPT.get(file, set())
    ]
    assert wrong == []
