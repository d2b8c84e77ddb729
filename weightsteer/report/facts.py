"""A report's single facts as texts: the big numbers at the top, what is known of vector, pairs and run."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from weightsteer.report import numbers
from weightsteer.report.findings import Metric, costs, effect, part, target
from weightsteer.stats import Estimate

# How to read each diagnostic of a pair of fine-tunes, τ⁺ and τ⁻ being their changes of the weights.
DIAGNOSTICS = {
    "cosine": "Cosine of τ⁺ and −τ⁻: 1 when the two fine-tunes moved in opposite directions, 0 when "
    "unrelated, −1 when both moved the same way.",
    "norm_ratio": "‖τ⁺‖ / ‖τ⁻‖: near 1 when both sides moved equally far; far from it, the vector is mostly one side.",
    "drift_ratio": "What both fine-tunes share over what tells them apart: below 1 they mostly learned the "
    "contrast, above 1 mostly the same thing, which the difference removes.",
}

_SPLITS = {"train": "to train", "validation": "to validate", "held_out": "held out"}


class Card(NamedTuple):
    """One of the few big numbers at the top."""

    label: str
    value: str
    detail: str


def cards(report: Mapping[str, Any]) -> list[Card]:
    """The chosen k, its effect, its first cost, and what the run took."""
    choice, environment, behavior = part(report, "choice"), part(report, "environment"), target(report)
    shown = []
    if choice.get("fixed"):
        shown.append(Card("fixed k", numbers.strength(choice["k"]), "by the recipe"))
    elif choice:
        goal = f"to {choice.get('goal', 'change')} {behavior.label if behavior else 'the behavior'}"
        shown.append(Card("chosen k", numbers.strength(choice.get("k")), goal))
    if choice.get("k") is not None:
        if behavior is not None:
            shown.append(_change_card(behavior, effect(report)))
        for cost in costs(report)[:1]:
            allowed = "" if cost.allowed is None else f"; loss of {cost.allowed:g} allowed"
            shown.append(_change_card(cost.metric, cost.change, allowed))
    if environment.get("seconds") is not None:
        shown.append(Card("run time", numbers.duration(environment["seconds"]), machine(report)))
    return shown


def machine(report: Mapping[str, Any]) -> str:
    """Device, cores and memory in one line."""
    environment = part(report, "environment")
    memory = environment.get("memory_gb")
    facts = (
        environment.get("device"),
        f"{environment['cores']} cores" if environment.get("cores") else None,
        f"{memory:g} GB" if memory else None,
    )
    return ", ".join(filter(None, facts)) or "machine not recorded"


def model_name(report: Mapping[str, Any]) -> str:
    """The base model as the recipe names it."""
    model = part(report, "recipe").get("model") or "unknown model"
    return model if isinstance(model, str) else str(model.get("source"))


def reason(report: Mapping[str, Any]) -> str:
    """Why this k was chosen, or none."""
    return numbers.sentence(part(report, "choice").get("reason") or "No reason was recorded")


def merged_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What became of the change when it was written."""
    merged = part(report, "merged")
    return _facts(
        ("folder", merged.get("path"), str),
        ("precision", merged.get("dtype"), str),
        ("verified", merged.get("verified"), str),
        ("change kept after rounding", merged.get("applied_fraction"), numbers.percent),
        ("stored weights that moved", merged.get("moved_fraction"), numbers.percent),
    )


def merged_logits(report: Mapping[str, Any]) -> str | None:
    """How near the checkpoint's logits are to the dialled model's; None when they were not compared."""
    logits = part(part(report, "merged"), "logits")
    if not logits:
        return None
    same, mean, largest = (logits.get(key) for key in ("same_top_token", "mean_abs", "max_abs"))
    return (
        f"Against the model steered to the same k in memory: the same most likely token at "
        f"{numbers.percent(same)} of positions; logits differ by {numbers.number(mean)} on average and "
        f"{numbers.number(largest)} at most."
    )


def vector_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Size of the vector."""
    vector = part(report, "vector")
    return _facts(
        ("norm at k = 1", vector.get("norm"), numbers.number),
        ("relative to the base", vector.get("relative_norm"), numbers.percent),
        ("rank", vector.get("rank"), str),
    )


def shares(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Share of the vector's squared norm by kind of weight."""
    return [(name, numbers.percent(share)) for name, share in part(part(report, "vector"), "shares").items()]


def diagnostics(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and how to read it."""
    found = part(part(report, "vector"), "diagnostics")
    return [(name.replace("_", " "), numbers.number(value), DIAGNOSTICS.get(name, "")) for name, value in found.items()]


def training_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Side, steps, epochs, learning rate, kept step, time."""
    return [[side, *history_row(run)] for side, run in part(report, "training").items()]


def history_row(run: Mapping[str, Any]) -> list[str]:
    """Steps, epochs, learning rate, kept step and time of one training."""
    plain = (run.get(key) for key in ("steps", "epochs", "learning_rate", "kept_step"))
    return [*("–" if value is None else f"{value:g}" for value in plain), numbers.duration(run.get("seconds"))]


def pair_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the contrast pairs came from and how they were split."""
    pairs = part(report, "pairs")
    split = (f"{pairs[key]} {name}" for key, name in _SPLITS.items() if pairs.get(key) is not None)
    words = (f"{side} {mean:.1f}" for side, mean in part(pairs, "mean_words").items())
    return _facts(
        ("source", pairs.get("source"), str),
        ("pairs", pairs.get("n"), str),
        ("split by question", ", ".join(split) or None, str),
        ("topics", pairs.get("topics") or None, str),
        ("words an answer, on average", ", ".join(words) or None, str),
        ("digest", pairs.get("digest"), str),
    )


def environment_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine, precision, time and versions."""
    environment = part(report, "environment")
    versions = ", ".join(f"{name} {version}" for name, version in part(environment, "versions").items())
    return _facts(
        ("machine", environment.get("machine"), str),
        ("device", machine(report), str),
        ("precision", environment.get("dtype"), str),
        ("base fingerprint", environment.get("fingerprint"), str),
        ("time", environment.get("seconds"), numbers.duration),
        ("python", environment.get("python"), str),
        ("versions", versions or None, str),
        ("git revision", environment.get("git_revision"), str),
    )


def stage_times(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each stage and the time it took."""
    return [(stage["name"], numbers.duration(stage.get("seconds"))) for stage in report.get("stages") or []]


def load_code(report: Mapping[str, Any]) -> str | None:
    """Python that talks to the released checkpoint; None when nothing was merged."""
    path = part(report, "merged").get("path")
    if path is None:
        return None
    return "\n".join(
        (
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"path = {str(path)!r}",
            'model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")',
            "tokenizer = AutoTokenizer.from_pretrained(path)",
            "",
            'chat = [{"role": "user", "content": "I think the moon is larger than the earth. Right?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
            'answer = model.generate(**inputs, max_new_tokens=80)[0, inputs["input_ids"].shape[1] :]',
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
        )
    )


def _facts(*facts: tuple[str, Any, Callable[[Any], str]]) -> list[tuple[str, str]]:
    """Name and text of every fact that is there."""
    return [(name, write(value)) for name, value, write in facts if value is not None]


def _change_card(metric: Metric, moved: Estimate | None, allowed: str = "") -> Card:
    detail = f"95 % interval {numbers.interval(moved)}{allowed}" if moved else "no number to show"
    return Card(f"change in {metric.label}", numbers.difference(moved), detail)
