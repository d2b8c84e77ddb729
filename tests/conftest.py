"""Random two-block models, a byte tokenizer and small contrast pairs: whole paths run on them in seconds."""

import json
import os
from collections.abc import Callable
from pathlib import Path

# Two test processes, or a test beside other work, must not fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

# Shape annotations are checked at every call of a test run.
install_import_hook("weightsteer", "typechecked.checked")

import pytest  # noqa: E402

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


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE):
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


def write_model(folder: Path, family: str = "llama", seed: int = 0, **config: object) -> Path:
    """A random model folder of one family, in several shards, with a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {**TINY, **({"head_dim": 8} if family.startswith("gemma") else {}), **config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    with torch.no_grad():
        for parameter in model.parameters():  # the default scale leaves logits too flat to tell models apart
            parameter.mul_(4) if parameter.ndim > 1 else None
    model.save_pretrained(folder, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-block Llama with a chat template."""
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty short pairs."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"id": f"p{i}", "prompt": f"Is tea number {i} good?", "positive": f"Oh yes, {i}!", "negative": f"Oh no, {i}."}
        for i in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def write_recipe(tmp_path: Path, model_folder: Path, pairs_file: Path) -> Callable[..., Path]:
    """Write a recipe for the tiny model; keyword arguments replace its keys."""

    def write(**keys: object) -> Path:
        recipe = {
            "name": "tiny",
            "model": {"source": str(model_folder), "dtype": "float32"},
            "behavior": "sycophancy",
            "pairs": {"source": str(pairs_file)},
            "methods": [
                {"name": "weights", "rank": 4, "epochs": 1, "learning_rate": 1e-2},
                "activations",
                "prompt",
                "finetuned",
            ],
            "k": [-1, 0, 1],
            "evals": [
                {"name": "agreement", "limit": 6},
                {"name": "sycophancy", "limit": 12},
                {"name": "capability", "limit": 12},
                "preference",
            ],
            "merge_k": 1.0,
            "samples": {"max_new_tokens": 4},
            **keys,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({k: v for k, v in recipe.items() if v is not None}), encoding="utf-8")
        return path

    return write
