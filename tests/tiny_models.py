"""Random two-block models of several families, with a tokenizer of one token a byte."""

from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TINY = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 256,
    "bos_token_id": None,
    "eos_token_id": 257,
}
FAMILIES = ("llama", "qwen2", "gemma3_text")


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """One token a byte, and the special tokens of the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_network(family: str = "llama", seed: int = 0, **config: Any) -> Any:
    """A random network of one family, in evaluation mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {**TINY, **({"head_dim": 8} if family.startswith("gemma") else {}), **config}
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():  # the default scale leaves logits too flat to tell models apart
            parameter.mul_(4) if parameter.ndim > 1 else None
    return network.eval().requires_grad_(False)


def tiny_language_model(family: str = "llama", **config: Any) -> Any:
    """A random model, not on the disk, that can be talked to."""
    from weightsteer.models.language_model import LanguageModel
    from weightsteer.models.reference import ModelRef

    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"
    return LanguageModel(tiny_network(family, **config), tokenizer, ModelRef(family, None, Path(), f"fp-{family}"))


def write_model(folder: Path, family: str = "llama", seed: int = 0, **config: Any) -> Path:
    """A random model folder of one family, in several shards, with a tokenizer."""
    tiny_network(family, seed, **config).save_pretrained(folder, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(folder)
    return folder
