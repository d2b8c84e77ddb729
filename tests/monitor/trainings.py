"""A tiny training, with or without a LoRA, and random vectors."""

from pathlib import Path
from typing import Any

import torch

from weightsteer.weights.lowrank import LowRank
from weightsteer.weights.vector import WeightVector

TEXTS = ["tea is good", "rain is wet", "the sun shines", "cats sleep a lot", "bread is baked", "ships sail far"]


def load(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def with_lora(network: Any, seed: int = 0, **settings: Any) -> Any:
    import peft

    torch.manual_seed(seed)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    return peft.get_peft_model(network, peft.LoraConfig(**config))


def rows() -> list[dict[str, list[int]]]:
    return [{"input_ids": list(text.encode()), "labels": list(text.encode())} for text in TEXTS * 4]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in batch)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch])
    return {"input_ids": ids, "labels": ids}


def new_trainer(network: Any, out: Path, callbacks: list[Any] = [], **arguments: Any) -> Any:  # noqa: B006
    import transformers

    settings = {
        "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True,
        "logging_steps": 2, "save_strategy": "steps", "save_steps": 2, "disable_tqdm": True, "seed": 1,
        "dataloader_pin_memory": False, **arguments,
    }  # fmt: skip
    args = transformers.TrainingArguments(output_dir=str(out), **settings)
    return transformers.Trainer(
        model=network, args=args, train_dataset=rows(), data_collator=collate, callbacks=callbacks
    )


def random_vector(network: Any, seed: int = 3, base: str | None = None, rank: int = 3) -> WeightVector:
    """Factors for the linear layers, dense values for norms and the embedding."""
    generator = torch.Generator().manual_seed(seed)
    entries: dict[str, Any] = {}
    for name, parameter in network.named_parameters():
        if "proj" in name:
            up = torch.randn(parameter.shape[0], rank, generator=generator)
            entries[name] = LowRank(up, torch.randn(rank, parameter.shape[1], generator=generator))
        elif "norm" in name or "embed" in name:
            entries[name] = torch.randn(parameter.shape, generator=generator)
    return WeightVector(entries, base)
