"""One side of a contrast data set -> a LoRA adapter folder (trl, peft), and both sides -> their exact difference."""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from weightsteer import progress
from weightsteer.data.contrast import SIDES, ContrastDataset, check_tokens, encode_example
from weightsteer.errors import DataError, StageError
from weightsteer.models import Message
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.language_model import LanguageModel, compute_dtype, load_model
from weightsteer.models.loading import quiet_datasets, quiet_transformers
from weightsteer.models.reference import ModelRef, resolve
from weightsteer.recipe import ModelPart, Recipe, TrainingPart
from weightsteer.stage import digest, is_finished, run_stage, versions, write_text
from weightsteer.weights.answer_loss import sft_trainer
from weightsteer.weights.vector import WeightVector, diagnostics

# A prompt (a user message or a conversation) and the answer to be trained on.
Example = tuple[str | Sequence[Message], str]
# (model, settings) -> the network as a peft model, of which only what is to be trained requires gradients.
Wrap = Callable[[LanguageModel, TrainingPart], Any]


def with_lora(lm: LanguageModel, settings: TrainingPart) -> Any:
    """The network as a peft model with a LoRA on every module that the settings choose."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=_targets(lm, settings),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(lm.network, config)
    except ValueError as error:
        raise DataError(
            f"target_modules {settings.target_modules}: peft finds none of them ({error}). Expected all-linear, or "
            "last parts of module names such as [q_proj, v_proj]"
        ) from None


def fit(recipe: Recipe, pairs: ContrastDataset, out: str | Path) -> WeightVector:
    """The weight vector of a recipe's method `weights`; see `fit_contrast`, which writes below `out`."""
    return fit_contrast(recipe.method("weights"), recipe, pairs, Path(out), recipe.seed)


def fit_contrast(
    settings: TrainingPart, recipe: Recipe, pairs: ContrastDataset, out: Path, seed: int, wrap: Wrap = with_lora
) -> WeightVector:
    """Both sides of `pairs` fine-tuned, positive change minus negative change, exactly.

    Writes `positive`, `negative` and `vector` below `out`, each a PEFT adapter folder; what is finished is not redone.
    Source: arXiv 2511.05408, section 3, eq. 1.
    """
    settings, ref = resolved(settings), resolve(recipe.model.source, recipe.model.revision)
    inputs = {
        "model": ref.fingerprint,
        "system": recipe.model.system,
        "pairs": pairs.digest,
        "seed": seed,
        "settings": training_inputs(settings),
    }
    rates = settings.learning_rates
    folders = [out / f"lr={rate:g}" for rate in rates] if len(rates) > 1 else [out]
    jobs = [
        (folder / side, {**inputs, "side": side, "learning_rate": rate}, side, rate)
        for folder, rate in zip(folders, rates, strict=True)
        for side in SIDES
    ]
    todo = [job for job in jobs if not is_finished(job[0], job[1])]
    if todo:
        lm = load_for_training(recipe.model, settings)
        check_tokens(pairs, lm, settings.max_tokens)
        parts = {side: [pairs.part(part).side(side) for part in ("train", "validation")] for side in SIDES}
        for folder, job_inputs, side, rate in todo:
            train = partial(train_adapter, lm, *parts[side], settings, rate, seed, label=f"training {side}", wrap=wrap)
            run_stage(folder, job_inputs, lambda path, train=train: train(out=path))
    best = min(folders, key=lambda folder: sum(best_validation_loss(folder / side) for side in SIDES))
    if best != out:
        for side in SIDES:
            run_stage(out / side, {**inputs, "side": side, "from": best.name}, partial(_copy, best / side))
    run_stage(out / "vector", inputs, partial(_subtract, out, recipe, pairs, ref))
    return WeightVector.load(out / "vector")


def resolved(settings: TrainingPart) -> TrainingPart:
    """The settings with their dtype as it is on this machine."""
    return settings.model_copy(update={"dtype": training_dtype(settings.dtype)})


def training_inputs(settings: TrainingPart) -> dict[str, Any]:
    """What of the settings determines a training run."""
    return {name: settings.model_dump(mode="json")[name] for name in TrainingPart.model_fields}


def load_for_training(model: ModelPart, settings: TrainingPart) -> LanguageModel:
    """The model in the dtype in which its weights stay while a LoRA on it is trained."""
    stored = "float32" if settings.dtype == "mixed" else settings.dtype
    return load_model(model.model_copy(update={"dtype": stored}))


def training_dtype(name: str) -> str:
    """What `auto` means for training: float32 throughout, multiplied in bfloat16 where the processor does that in
    hardware. A network held in bfloat16 rounds away the small changes of a beginning LoRA; on a GPU that is accepted
    for the memory it saves."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bfloat16"
    return "mixed" if compute_dtype("auto") == torch.bfloat16 else "float32"


def train_adapter(
    lm: LanguageModel,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: TrainingPart,
    learning_rate: float,
    seed: int,
    out: Path,
    *,
    label: str = "training",
    snapshots: Sequence[float] = (),
    wrap: Wrap = with_lora,
) -> None:
    """Fine-tune on (prompt, answer) rows; write an adapter folder with training.json. The model is left as it was.

    The loss is on the answer and its end of turn only. Equal seeds give equal order and initial factors. `snapshots`
    are shares of the steps at which a copy of the adapter is kept, below `out`/at=SHARE.
    """
    from transformers import set_seed

    set_seed(seed)
    with quiet_transformers(), quiet_datasets():
        adapted = wrap(lm, settings)
        saved = adapted.peft_config["default"]
        if not isinstance(saved.target_modules, str):  # a set, which every process would write in another order
            saved.target_modules = sorted(saved.target_modules)

        def save(folder: Path) -> None:
            saved.base_model_name_or_path = lm.ref.source  # not before: the trainer would ask the hub for it
            adapted.save_pretrained(folder, save_embedding_layers=False)  # else peft asks the hub for the base
            (folder / "README.md").unlink(missing_ok=True)  # peft's card is a form that nobody has filled in

        try:
            at = {share: partial(save, out / f"at={share:g}") for share in snapshots}
            history = train_network(
                adapted, lm, train, validation, settings, learning_rate, seed, out / "trainer", label=label, at=at
            )
            save(out)
        finally:
            adapted.unload()
            lm.network.eval().requires_grad_(False)
            shutil.rmtree(out / "trainer", ignore_errors=True)
    write_text(out / "training.json", json.dumps(history, indent=1))


def _targets(lm: LanguageModel, settings: TrainingPart) -> str | list[str]:
    """Modules that get a LoRA, as peft takes them: those the settings name, within their range of blocks."""
    named = settings.target_modules
    if settings.depth == (0.0, 1.0):
        return named if isinstance(named, str) else list(named)
    blocks = decoder_blocks(lm.network)
    chosen = [block for b, block in enumerate(blocks) if settings.depth[0] <= b / len(blocks) < settings.depth[1]]
    if any(parameter.ndim > 2 for block in chosen for parameter in block.parameters()):
        raise DataError(
            f"depth {list(settings.depth)}: the blocks hold fused experts, which are no modules of their own. Expected "
            "depth [0, 1] for a mixture of experts"
        )
    names = {id(module): name for name, module in lm.network.named_modules()}
    leaves = [m for block in chosen for m in block.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    found = [names[id(m)] for m in leaves]
    if not isinstance(named, str):
        found = [name for name in found if name.rpartition(".")[2] in named]
    if not found:
        raise DataError(
            f"target_modules {named} in depth {list(settings.depth)}: no linear layer of the {len(blocks)} blocks. "
            "Expected all-linear, or last parts of module names such as [q_proj, v_proj]"
        )
    return found


def best_validation_loss(folder: Path) -> float:
    """Lowest validation loss of a finished side; infinity when there was no validation part."""
    losses = json.loads((folder / "training.json").read_text(encoding="utf-8"))["validation_loss"]
    return min((loss for _, loss in losses), default=math.inf)


def train_network(
    network: Any,
    lm: LanguageModel,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: TrainingPart,
    learning_rate: float,
    seed: int,
    scratch: Path,
    *,
    label: str = "training",
    at: Mapping[float, Callable[[], None]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Train whatever of `network` requires gradients, keep its best state, and return the history.

    `at` maps shares of the steps to what is to be done there; with it the training neither stops early nor goes back.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback
    from trl import SFTConfig

    train, validation = _encoded(lm, train), _encoded(lm, () if at else validation)
    micro = settings.micro_batch_size or settings.batch_size
    steps = math.ceil(len(train) / settings.batch_size * settings.epochs)
    steps = min(steps, settings.max_steps or steps)
    measured = {"eval_strategy": "steps", "eval_steps": settings.validate_every} if validation else {}
    kept = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    arguments = SFTConfig(
        output_dir=str(scratch),
        learning_rate=learning_rate,
        max_steps=steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        lr_scheduler_type="linear",
        warmup_steps=min(settings.warmup_steps, steps // 2),
        weight_decay=settings.weight_decay,
        gradient_checkpointing=settings.gradient_checkpointing,
        use_cpu=lm.device.type == "cpu",
        bf16=settings.dtype == "mixed",  # multiplication only: weights, factors and residual stream stay float32
        max_length=None,
        completion_only_loss=True,
        seed=seed,
        data_seed=seed,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is no number is to be seen, by _history
        dataloader_pin_memory=False,
        save_strategy="steps" if validation else "no",
        save_steps=settings.validate_every,
        save_total_limit=1,
        save_only_model=True,
        **measured,
        **(kept if validation else {}),
    )
    with progress.task(label, steps) as advance:
        callbacks: list[Any] = [_progress_callback(advance), *([_snapshot_callback(at)] if at else [])]
        if validation:
            callbacks.append(EarlyStoppingCallback(settings.patience))
        trainer = sft_trainer(
            model=network,
            args=arguments,
            train_dataset=_as_dataset(train),
            eval_dataset=_as_dataset(validation) if validation else None,
            processing_class=lm.tokenizer,
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        with _training_side(lm.tokenizer):
            trainer.train()
    return _history(trainer, learning_rate, len(train), settings.batch_size)


def _encoded(lm: LanguageModel, rows: Sequence[Example]) -> list[dict[str, list[int]]]:
    examples = []
    for prompt, answer in rows:
        start, completion = encode_example(lm, prompt, answer)
        mask = [0] * len(start) + [1] * len(completion)
        examples.append({"input_ids": start + completion, "completion_mask": mask})
    return examples


def _as_dataset(examples: Sequence[dict[str, list[int]]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(list(examples))


@contextlib.contextmanager
def _training_side(tokenizer: Any) -> Iterator[None]:
    """Pad on the right while training, as trl does; generation needs the left."""
    tokenizer.padding_side = "right"
    try:
        yield
    finally:
        tokenizer.padding_side = "left"


def _progress_callback(advance: progress.Advance) -> Any:
    from transformers import TrainerCallback

    class ShowProgress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                advance(1, note=f"loss {logs['loss']:.3f}")

    return ShowProgress()


def _snapshot_callback(at: Mapping[float, Callable[[], None]]) -> Any:
    from transformers import TrainerCallback

    class KeepSnapshots(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for share, keep in at.items():
                if state.global_step == max(1, round(share * state.max_steps)):
                    keep()

    return KeepSnapshots()


def _history(trainer: Any, learning_rate: float, n_train: int, batch_size: int) -> dict[str, Any]:
    log = trainer.state.log_history
    train_loss = [[entry["step"], entry["loss"]] for entry in log if "loss" in entry]
    validation_loss = [[entry["step"], entry["eval_loss"]] for entry in log if "eval_loss" in entry]
    bad = [step for step, loss in train_loss if not math.isfinite(loss)]
    if bad:
        raise StageError(
            f"training: the loss is not finite at step {bad[0]} (learning rate {learning_rate:g}). Expected a number. "
            "Lower the learning rate, or use dtype float32"
        )
    steps = trainer.state.global_step
    kept = min(validation_loss, key=lambda entry: entry[1])[0] if validation_loss else steps
    return {
        "learning_rate": learning_rate,
        "steps": steps,
        "kept_step": kept,
        "epochs": round(steps * batch_size / n_train, 3),
        "train_loss": train_loss,
        "validation_loss": validation_loss,
    }


def _copy(source: Path, target: Path) -> None:
    """The side trained at the learning rate that won."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))


def _subtract(out: Path, recipe: Recipe, pairs: ContrastDataset, ref: ModelRef, target: Path) -> None:
    """Write the exact factored difference, and how the two sides relate (diagnostics.json)."""
    positive, negative = (WeightVector.load(out / side, base=ref.path) for side in SIDES)
    vector = positive - negative
    terms = [{**term, "adapter": side} for side, term in zip(SIDES, vector.info["terms"], strict=True)]
    info = {
        "terms": terms,  # they lie beside the vector, wherever that is
        "kind": "contrast",
        "behavior": pairs.behavior,
        "sign": "positive minus negative: k > 0 shows more of the behavior",
        "base_source": ref.source,
        "base_revision": ref.revision,
        "recipe": recipe.name,
        "recipe_digest": digest(recipe.dump()),
        "pairs_digest": pairs.digest,
        "versions": versions(),
    }
    replace(vector, base=ref.fingerprint, info={**vector.info, **info}).save(target)
    write_text(target / "diagnostics.json", json.dumps(diagnostics(positive, negative), indent=1))
