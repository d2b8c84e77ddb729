"""A loaded language model and how to talk to it."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightsteer.errors import ModelError
from weightsteer.models import Message
from weightsteer.models.loading import check_complete, loading_errors, quiet_transformers
from weightsteer.models.reference import ModelRef, resolve
from weightsteer.recipe import ModelPart


@dataclass(frozen=True)
class LanguageModel:
    """A network, its tokenizer with a chat template, where it came from, and the system prompt of conversations."""

    network: Any
    """A transformers causal language model."""
    tokenizer: Any
    ref: ModelRef
    system: str | None = None

    @property
    def device(self) -> torch.device:
        return self.network.device

    def with_system(self, system: str | None) -> "LanguageModel":
        """The same network under another system prompt."""
        return dataclasses.replace(self, system=system)

    def chat(self, prompt: str | Sequence[Message]) -> str:
        """The text after which the model answers `prompt`, a user message or a conversation.

        The model's system prompt is put first; a chat template without a system role takes it as the start of the
        first user message.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if self.system is not None and messages[0]["role"] != "system":
            messages = self._with_system_message(messages)
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text that already holds its special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _with_system_message(self, messages: list[Message]) -> list[Message]:
        from jinja2 import TemplateError

        assert self.system is not None
        withs = [{"role": "system", "content": self.system}, *messages]
        try:
            rendered = self.tokenizer.apply_chat_template(withs, tokenize=False)
        except TemplateError:
            rendered = ""
        if self.system in rendered:
            return withs
        first = {"role": "user", "content": f"{self.system}\n\n{messages[0]['content']}"}
        return [first, *messages[1:]]


def load_model(model: ModelPart | str | Path) -> LanguageModel:
    """Load a model to evaluation mode on the GPU where there is one; see `resolve` for what `model` may be.

    A ModelError says so when the folder holds only pickles, needs code of its own, or has no chat template.
    """
    import transformers

    part = model if isinstance(model, ModelPart) else ModelPart(source=str(model))
    ref = resolve(part.source, part.revision)
    if (ref.path / "adapter_config.json").exists():
        raise ModelError(
            f"model {ref.source}: an adapter (adapter_config.json) lies beside the weights, and transformers would put "
            "it on unasked. Expected the model alone. Move the adapter to a folder of its own"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet_transformers(), _explained(ref):
        network, loading = transformers.AutoModelForCausalLM.from_pretrained(
            ref.path,
            dtype=compute_dtype(part.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # told, with all others, by check_complete
            output_loading_info=True,
        )
        check_complete(ref.source, loading)
        tokenizer = transformers.AutoTokenizer.from_pretrained(ref.path, trust_remote_code=False)
    network.to(device).eval().requires_grad_(False)
    _set_chat_template(tokenizer, part, ref)
    if tokenizer.pad_token_id is None:
        # Padding is masked wherever it is used, so any token will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "left"
    return LanguageModel(network, tokenizer, ref, part.system)


def compute_dtype(name: str) -> torch.dtype:
    """The torch dtype that `name` means on this machine; `auto` is bfloat16 where the processor multiplies it."""
    if name != "auto":
        return getattr(torch, name)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    has_bfloat16 = torch.cpu.get_capabilities().get("amx_bf16") or torch.cpu.get_capabilities().get("avx512_bf16")
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _set_chat_template(tokenizer: Any, part: ModelPart, ref: ModelRef) -> None:
    from jinja2 import TemplateError

    if part.chat_template is not None:
        try:
            tokenizer.chat_template = part.chat_template.read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(
                f"model.chat_template {part.chat_template}: {error.strerror}. Expected a Jinja file"
            ) from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"model {ref.source}: has no chat template. Expected an instruction-tuned model, whose tokenizer says how "
            "a conversation is written. Choose one, or name a Jinja file as model.chat_template"
        )
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ModelError(
            f"model {ref.source}: its chat template cannot write a question ({error}). Expected a Jinja template over "
            "messages. Name another one as model.chat_template"
        ) from None


@contextlib.contextmanager
def _explained(ref: ModelRef) -> Iterator[None]:
    """Turn what loading may raise into one ModelError that says what to do."""
    try:
        yield
    except loading_errors() as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {ref.source}: its architecture is code inside the model folder (auto_map in config.json), "
                "which is never run. Expected an architecture that transformers has. Choose another model, or a "
                "transformers version that includes this one"
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {ref.source}: cannot be loaded ({reason}). Expected a folder of safetensors with config.json and "
            "tokenizer files, as save_pretrained writes it"
        ) from error
