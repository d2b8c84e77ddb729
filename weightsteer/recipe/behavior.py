"""A behavior file: what is steered, and the texts that elicit, show and judge it."""

from pathlib import Path

from weightsteer.errors import RecipeError
from weightsteer.recipe.files import read_mapping
from weightsteer.recipe.parts import Recipe
from weightsteer.recipe.problems import suggest, validate
from weightsteer.recipe.training import Part


class SystemPrompts(Part):
    """One opposed pair of system prompts."""

    positive: str
    negative: str


class Behavior(Part):
    """What is steered: its description, its shipped pairs and the texts that elicit and judge it."""

    name: str
    description: str
    pairs: Path | None = None
    system_prompts: tuple[SystemPrompts, ...] = ()
    questions: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    rubric: str | None = None


def load_behavior(recipe: Recipe, name: str | None = None) -> Behavior:
    """The behavior of a recipe, or the one called `name`: a path, or a name in `behaviors/` beside the recipe or among
    the shipped ones."""
    path = behavior_path(recipe, name)
    behavior = validate(Behavior, read_mapping(path), path)
    if behavior.pairs is None:
        return behavior
    return behavior.model_copy(update={"pairs": (path.resolve().parent / behavior.pairs)})


def behavior_path(recipe: Recipe, name: str | None = None) -> Path:
    """The file of a behavior; a RecipeError when there is none."""
    name = name or recipe.behavior
    if name.endswith((".yaml", ".yml")):
        return recipe.folder / name
    folders = [recipe.folder / "behaviors", shipped_recipes() / "behaviors"]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
    raise RecipeError(
        f"behavior: no '{name}.yaml' in {' or '.join(map(str, folders))}"
        f"{suggest(name, known)}. Expected one of {known} or a path ending in .yaml"
    )


def shipped_recipes() -> Path:
    """Folder of the recipes that come with weightsteer: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
