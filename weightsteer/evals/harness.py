"""Tasks of lm-evaluation-harness (MMLU, GSM8K, TruthfulQA, any local task file) on a model, steered or not."""

import functools
import importlib.util
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic

from weightsteer.errors import DataError, report_problems
from weightsteer.evals import ItemScore
from weightsteer.evals._harness_model import SteeredModel
from weightsteer.recipe import EvalSettings
from weightsteer.recipe.problems import suggest

VERSION = 1
KIND = "capability"
METRICS = {
    "score": "the metric asked for, else each task's first that is a number per item and better when higher",
    "acc": "share of questions whose right option is the likeliest",
    "acc_norm": "the same, likelihoods divided by the length of the option",
    "exact_match": "share of written answers that are the right one, after the task's own filters",
}
INSTALL = "pip install 'weightsteer[harness]'"
FEWSHOT_SEED = 1234  # the harness's own default


class Settings(EvalSettings):
    """Which tasks, and how they are put."""

    tasks: Annotated[tuple[Path | str, ...], pydantic.Field(min_length=1)]
    """Names that the harness knows, and task files of one's own (.yaml)."""
    metric: str | None = None
    """What `score` is: `acc_norm`, or with one of the task's filters `exact_match,flexible-extract`."""
    num_fewshot: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Solved examples before each question; None leaves it to the task."""
    chat: bool = True
    """Ask through the chat template; false puts plain text, as base models are asked."""
    max_new_tokens: Annotated[int, pydantic.Field(gt=0)] = 256
    """Longest answer where the task does not say."""

    @pydantic.field_validator("tasks")
    @classmethod
    def _files(cls, tasks: tuple[Path | str, ...]) -> tuple[Path | str, ...]:
        """Task files as paths, which a recipe reads from its own folder."""
        return tuple(Path(task) if Path(task).suffix in (".yaml", ".yml") else str(task) for task in tasks)


@dataclass(frozen=True)
class Item:
    """One document of one task."""

    id: str
    task: Any
    """The harness's task object."""
    number: int
    """Place of the document in the task's test set."""


def read_items(settings: Settings, given: Any) -> list[Item]:
    """All documents of the tasks; a DataError when the harness, a task or its data cannot be had."""
    if settings.items is not None:
        raise DataError(
            f"harness: found items {settings.items}. Expected a task file, which names its data, among tasks"
        )
    if importlib.util.find_spec("lm_eval") is None:
        raise DataError(f"harness: lm_eval is not installed. Expected lm-evaluation-harness. Install it: {INSTALL}")
    tasks = _load(settings.tasks, settings.num_fewshot)
    return [Item(f"{name}-{n}", task, n) for name, task in tasks.items() for n in range(len(task.eval_docs))]


@functools.cache  # the harness reads 14,000 task files for its index, and every cell of a sweep asks
def _load(tasks: tuple[Path | str, ...], num_fewshot: int | None) -> dict[str, Any]:
    import yaml
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))
    known = manager.all_tasks
    problems = [
        f"tasks: no '{task}'{suggest(task, known)}. Expected a task of the harness, or a task file ending in .yaml"
        for task in tasks
        if isinstance(task, str) and task not in known
    ]
    problems += [
        f"tasks: {task}: no such file. Expected a task file of the harness"
        for task in tasks
        if isinstance(task, Path) and not task.is_file()
    ]
    report_problems(DataError, "harness", problems)
    loaded: dict[str, Any] = {}
    for task in tasks:
        try:
            found = manager.load([str(task)])["tasks"]
        except (DatasetsError, OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise DataError(
                f"harness: task {task}: it or its data cannot be loaded ({type(error).__name__}: {error}). Expected a "
                "task whose data set is on this machine or on a hub that can be reached. Go online once, or write a "
                "task file with data_files of your own"
            ) from None
        if twice := sorted(found.keys() & loaded.keys()):
            raise DataError(f"harness: tasks: found {', '.join(twice)} twice. Expected each task once. Remove {task}")
        loaded |= found
    for name, task in loaded.items():
        _set_fewshot(name, task, num_fewshot)
    return loaded


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    own = task.get_config("num_fewshot")
    if num_fewshot and own == 0:
        raise DataError(f"harness: task {name} takes no examples, found num_fewshot {num_fewshot}. Expected 0 or none")
    task.set_config(key="num_fewshot", value=(own or 0) if num_fewshot is None else num_fewshot)


def score(lm: Any, items: Sequence[Item], settings: Settings, given: Any) -> list[ItemScore]:
    """What the harness gives each document, every metric under every filter of the task in the detail."""
    import lm_eval
    from lm_eval.evaluator import evaluate

    tasks = {item.task.task_name: item.task for item in items}
    wanted: dict[str, list[int]] = defaultdict(list)
    for item in items:
        wanted[item.task.task_name].append(item.number)
    for task in tasks.values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)  # each cell draws the same examples
    asked: Any = evaluate  # takes whatever answers as its own model class does
    results = asked(
        lm=SteeredModel(lm, settings.max_new_tokens, settings.chat),
        task_dict={"tasks": tasks},
        samples={name: sorted(numbers) for name, numbers in wanted.items()},
        bootstrap_iters=0,
        system_instruction=lm.system,
        apply_chat_template=settings.chat,
        fewshot_as_multiturn=settings.chat,
    )
    by_document: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for name, samples in results["samples"].items():
        for sample in samples:
            by_document[name, sample["doc_id"]].append(sample)
    return [
        _item_score(item, by_document[item.task.task_name, item.number], settings.metric, lm_eval.__version__)
        for item in items
    ]


def _item_score(item: Item, samples: Sequence[Mapping[str, Any]], metric: str | None, version: str) -> ItemScore:
    """One document's metrics; `samples` holds what each filter of the task made of the answer."""
    found: dict[str, float] = {}
    for sample in samples:
        for name in sample["metrics"]:
            if isinstance(sample[name], int | float) or getattr(sample[name], "ndim", None) == 0:
                found.setdefault(name, float(sample[name]))
                found[f"{name},{sample['filter']}"] = float(sample[name])
    better = item.task.higher_is_better()
    metric = metric or next((name for name in found if "," not in name and better.get(name, True)), None)
    if metric not in found:
        raise DataError(
            f"harness: task {item.task.task_name}: found the metrics {list(found)}. Expected "
            f"{metric or 'one that is better when higher'}. Set metric to one of them, or leave the task out"
        )
    detail = {
        "task": item.task.task_name,
        "prompt": str(samples[0]["arguments"][0][0]),
        "answers": [str(answer) for answer in samples[0]["filtered_resps"]],
        "target": str(samples[0]["target"]),
        "metrics": {name: value for name, value in found.items() if "," in name},
        "harness": version,
    }
    return ItemScore(item.id, {**{name: found.get(name) for name in METRICS}, "score": found[metric]}, detail)
