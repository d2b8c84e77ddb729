"""A recipe: everything that determines a run, checked whole before anything is loaded."""

from weightsteer.recipe.behavior import Behavior, SystemPrompts, load_behavior, shipped_recipes
from weightsteer.recipe.load import finite, load_experiment, load_recipe, load_study, parse_recipe
from weightsteer.recipe.parts import (
    AnsweredSettings,
    Choose,
    ElicitPart,
    EqualKl,
    EvalSettings,
    FigurePart,
    GcdPart,
    Interference,
    JudgePart,
    MethodSettings,
    ModelPart,
    PairsPart,
    Recipe,
    Samples,
    StudySettings,
    TaskPart,
)
from weightsteer.recipe.plugins import find_plugin
from weightsteer.recipe.training import Part, TrainingPart

__all__ = [
    "AnsweredSettings",
    "Behavior",
    "Choose",
    "ElicitPart",
    "EqualKl",
    "EvalSettings",
    "FigurePart",
    "GcdPart",
    "Interference",
    "JudgePart",
    "MethodSettings",
    "ModelPart",
    "PairsPart",
    "Part",
    "Recipe",
    "Samples",
    "StudySettings",
    "SystemPrompts",
    "TaskPart",
    "TrainingPart",
    "find_plugin",
    "finite",
    "load_behavior",
    "load_experiment",
    "load_recipe",
    "load_study",
    "parse_recipe",
    "shipped_recipes",
]
