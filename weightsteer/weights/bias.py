"""Bias-only fine-tuning: one trained vector at the output of each block's MLP, and everything else frozen."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from weightsteer.errors import ModelError
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.language_model import LanguageModel
from weightsteer.recipe import TrainingPart
from weightsteer.weights.base import weight_layout
from weightsteer.weights.vector import kind_of

# The last linear layer of an MLP, by the naming of the transformers architectures.
MLP_OUTPUTS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out")


def mlp_outputs(network: Any) -> list[str]:
    """Name of the linear layer that ends the MLP of each block, in order; a ModelError where it is not just one."""
    names = {id(module): name for name, module in network.named_modules()}
    return [_mlp_output(b, names[id(block)], block) for b, block in enumerate(decoder_blocks(network))]


def _mlp_output(number: int, prefix: str, block: Any) -> str:
    layers = [f"{prefix}.{name}" for name, module in block.named_modules() if weight_layout(module)[0]]
    ends = [name for name in layers if name.rpartition(".")[2] in MLP_OUTPUTS and kind_of(f"{name}.weight") == "mlp"]
    experts = any("expert" in name for name, _ in block.named_parameters())
    if len(ends) == 1 and not experts:
        return ends[0]
    found = "a mixture of experts" if experts else f"{ends or 'none'} among its linear layers {layers}"
    raise ModelError(
        f"bias-only: block {number} has no one linear layer that ends its MLP; found {found}. Expected one named "
        f"{', '.join(MLP_OUTPUTS)}. Use another method for this architecture"
    )


def with_biases(lm: LanguageModel, settings: TrainingPart) -> Any:
    """The network as a peft model that trains nothing but a bias β, zero at first, at each MLP's output: mlp(x) + β.

    β is the bias of a LoRA's B whose weights stay at zero, so that bias-only runs are trained, stopped and stored just
    as LoRA runs are, also where the layer has no bias of its own or is quantised. `settings.depth` chooses the blocks.
    Source: arXiv 2511.05408, section 3.
    """
    from peft import LoraConfig, get_peft_model

    ends, (start, stop) = mlp_outputs(lm.network), settings.depth
    chosen = [name for b, name in enumerate(ends) if start <= b / len(ends) < stop]
    config = LoraConfig(r=1, lora_alpha=1, lora_bias=True, target_modules=chosen, task_type="CAUSAL_LM")
    wrapped = get_peft_model(lm.network, config)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(name.endswith(".lora_B.default.bias"))
    return wrapped


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep off the screen what peft says of such biases: it cannot merge them, and takes them for broken factors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lora_bias=True.* has no bias")
        warnings.filterwarnings("ignore", message=".*have invalid shape.*lora_B.bias")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        yield
