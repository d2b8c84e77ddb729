"""A model that always says the same."""

import itertools
from pathlib import Path

from tiny_models import byte_tokenizer, tiny_network


def write_speaker(folder: Path, says: str) -> Path:
    """A model folder whose answer to everything is `says`, in which no character may come twice.

    Its blocks add nothing, so the last token alone decides the next, which its row of the output head is set to.
    """
    import torch

    network, tokenizer = tiny_network(), byte_tokenizer()
    chain = tokenizer(f"<|assistant|>{says}<|end|>", add_special_tokens=False)["input_ids"]
    assert len(set(chain)) == len(chain)
    with torch.no_grad():
        for block in network.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        head, embeddings = network.lm_head.weight.zero_(), network.model.embed_tokens.weight
        for token, following in itertools.pairwise(chain):
            head[following] = 5 * torch.nn.functional.normalize(embeddings[token], dim=0)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
