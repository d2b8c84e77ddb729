"""Where the decoder blocks are."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_network

from weightsteer.errors import ModelError
from weightsteer.models.blocks import decoder_blocks


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2", "opt", "gpt_neox", "mixtral"])
def test_blocks_are_found_in_order(family: str):
    network = tiny_network(family, **({"num_local_experts": 2} if family == "mixtral" else {}))
    blocks = decoder_blocks(network)
    assert isinstance(blocks, torch.nn.ModuleList)
    assert len(blocks) == 2
    ran: list[int] = []
    for b, block in enumerate(blocks):
        block.register_forward_hook(lambda *_arguments, b=b: ran.append(b))
    network(torch.tensor([[1, 2, 3]]))
    assert ran == [0, 1]


def test_an_architecture_that_hides_its_blocks():
    config = SimpleNamespace(num_hidden_layers=3, get_text_config=lambda: config)
    network = SimpleNamespace(config=config, layers=[1, 2])
    with pytest.raises(ModelError, match="SimpleNamespace: no list of decoder blocks found under layers, h, blocks"):
        decoder_blocks(network)
