"""What adapter_config.json may say for an adapter to be read exactly; the rest is refused by name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsteer.errors import AdapterError, report_problems

MERGE_INSTEAD = "Merge it into its base with the library that trained it and combine the checkpoints (MERGED=1 BASE=-1)"

# Settings under which an adapter is something else than scale·B·A added to a weight of the given base.
REFUSED = {
    "alora_invocation_tokens": "aLoRA acts only after an invocation string, so it is no change of a weight",
    "arrow_config": "Arrow routes between adapters per token, so it is no change of a weight",
    "kasa_config": "KaSA truncates the base and inserts singular values",
    "layer_replication": "layer replication adds blocks that the base does not have",
    "megatron_config": "Megatron's parallel layers store the factors in parts",
    "monteclora_config": "MonteCLoRA samples its weights",
    "trainable_token_indices": "trained tokens are stored apart from the embedding",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "use_qalora": "QALoRA pools the inputs of a quantised layer",
    "velora_config": "VeLoRA stores projections beside the factors",
}
# Initialisations that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) subtract
# something from it, so that their factors mean nothing beside the original weights.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
UNDERSTOOD = {
    *(
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
    ),
    *(
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
    ),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"),
    *(
        "megatron_core",
        "modules_to_save",
        "modules_to_tie",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
    ),
    *(
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "target_modules_to_tie",
        "target_parameters",
    ),
    *("task_type", "use_dora", "use_rslora"),
}


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise an AdapterError with everything in `config` that makes the change unknown or is not valid."""
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise AdapterError(f"{path}: peft_type is {peft_type!r}. Expected 'LORA'. {MERGE_INSTEAD}")
    problems = [f"{key}: {why}. {MERGE_INSTEAD}" for key, why in REFUSED.items() if config.get(key)]
    if config.get("init_lora_weights") not in PLAIN_INITS:
        problems.append(
            f"init_lora_weights: {config['init_lora_weights']!r} changes the base itself. Save the adapter "
            "as plain LoRA with peft's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    problems += [
        f"{key}: {value!r} is not known to this version of weightsteer, so the change cannot be told"
        for key, value in config.items()
        if value and key not in UNDERSTOOD and key not in REFUSED
    ]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            problems.append(f"{key}: {patterns!r}. Expected a mapping of module names to numbers")
            continue
        for pattern, value in patterns.items():
            problems += _number_problems(f"{key}[{pattern!r}]", value, whole=key == "rank_pattern")
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                problems.append(f"{key}[{pattern!r}]: is not a regular expression ({error})")
    problems += _number_problems("r", config.get("r"), whole=True)
    problems += _number_problems("lora_alpha", config.get("lora_alpha"), whole=False)
    for key in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"):
        if config.get(key) not in (True, False, None):
            problems.append(f"{key}: {config[key]!r}. Expected true or false")
    targets = config.get("target_parameters")
    if targets is not None and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        problems.append(f"target_parameters: {targets!r}. Expected a list of names")
    report_problems(AdapterError, path, problems)


def _number_problems(key: str, value: object, whole: bool) -> list[str]:
    if isinstance(value, int if whole else int | float) and not isinstance(value, bool):
        if whole and 0 < value < 2**31:
            return []
        if not whole and abs(value) < 2**31:  # false for nan
            return []
    return [f"{key}: {value!r}. Expected a {'whole number of 1 or more' if whole else 'finite number'}"]
