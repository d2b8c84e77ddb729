"""Where the decoder blocks of a network are."""

from typing import Any

from weightsteer.errors import ModelError

# Paths of the block list below the decoder, by the naming of the transformers architectures.
BLOCK_LISTS = ("layers", "h", "blocks", "decoder.layers", "language_model.layers")


def decoder_blocks(network: Any) -> Any:
    """The list of decoder blocks (a torch ModuleList), in order; a ModelError when the architecture hides it."""
    decoder = network.get_decoder() if hasattr(network, "get_decoder") else network
    for path in BLOCK_LISTS:
        module = decoder
        for step in path.split("."):
            module = getattr(module, step, None)
        if module is not None and len(module) == network.config.get_text_config().num_hidden_layers:
            return module
    raise ModelError(
        f"{type(network).__name__}: no list of decoder blocks found under {', '.join(BLOCK_LISTS)}. Expected one entry "
        "per hidden layer. Please report the architecture"
    )
