"""Residual activations of all blocks at chosen tokens, in batched forward passes: streamed, or as moments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.data.contrast import ContrastPair, encode_example
from weightsteer.errors import DataError, report_problems
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.generate import batch_tokens, batches
from weightsteer.models.language_model import LanguageModel

# A number is the index of a token in prompt and answer together; a negative one counts from their end.
Position = Literal["answer", "prompt", "last", "last_prompt"] | int
SHOWN = 5


@dataclass(frozen=True)
class Example:
    """Token ids of a text and the ranges of them that are read, each averaged over its tokens."""

    ids: list[int]
    reads: tuple[range, ...]


@dataclass
class Moments:
    """Count, mean and variance of activations, merged batch by batch in float64 (Chan, Golub and LeVeque 1979)."""

    n: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """Sum of squared distances from the mean."""

    @property
    def variance(self) -> Tensor:
        """Population variance: squares divided by n."""
        return self.squares / self.n

    def add(self, values: Float[Tensor, "rows ..."]) -> None:
        """Take in the rows of one batch."""
        values = values.double()
        rows, mean = len(values), values.mean(0)
        step = mean - self.mean
        self.mean = self.mean + step * (rows / (self.n + rows))
        within = (values - mean).square().sum(0)
        self.squares = self.squares + within + step.square() * (self.n * rows / (self.n + rows))
        self.n += rows


def example(prompt: list[int], answer: list[int], *positions: Position) -> Example:
    """The text of a prompt and its answer, read at each of `positions`; a DataError where it has no such token."""
    length = len(prompt) + len(answer)
    named = {
        "answer": range(len(prompt), length),
        "prompt": range(len(prompt)),
        "last": range(length - 1, length),
        "last_prompt": range(len(prompt) - 1, len(prompt)),
    }
    reads = []
    for position in positions:
        if isinstance(position, int):
            index = position + length if position < 0 else position
            reads.append(range(index, index + 1))
        else:
            reads.append(named[position])
        if not reads[-1] or not 0 <= reads[-1].start < length:
            raise DataError(
                f"position {position!r}: is not among {len(prompt)} prompt and {len(answer)} answer tokens. Expected "
                f"{', '.join(named)} or an index from {-length} to {length - 1}"
            )
    return Example(prompt + answer, tuple(reads))


def answer_token_examples(lm: LanguageModel, pairs: Sequence[ContrastPair]) -> tuple[list[Example], list[Example]]:
    """Both texts of each pair, read at the one token in which they differ, such as the letter of an A/B answer.

    Source: arXiv 2312.06681, section 3. One DataError names the pairs that differ in more than one token.
    """
    sides: tuple[list[Example], list[Example]] = ([], [])
    problems = []
    for pair in pairs:
        encoded = [encode_example(lm, pair.prompt, answer) for answer in (pair.positive, pair.negative)]
        texts = [prompt + answer for prompt, answer in encoded]
        differing = [i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b]
        if len(texts[0]) != len(texts[1]) or len(differing) != 1:
            problems.append(f"{pair.id}: {pair.positive!r} and {pair.negative!r} differ in more than one token")
            continue
        for side, ids in zip(sides, texts, strict=True):
            side.append(Example(ids, (range(differing[0], differing[0] + 1),)))
    if problems:
        more = [f"... and {len(problems) - SHOWN} more of the kind"] if len(problems) > SHOWN else []
        expected = (
            "expected answers such as (A) and (B), of which one token is read; read their mean or last token instead"
        )
        report_problems(DataError, f"answer tokens of {len(pairs)} pairs", [*problems[:SHOWN], *more, expected])
    return sides


def capture(lm: LanguageModel, examples: Sequence[Example], label: str = "") -> Moments:
    """Moments over `examples` of the output of every block at every read: tensors [reads, blocks, d_model]."""
    moments = Moments()
    for _, found in activations(lm, examples, label):
        moments.add(found)
    return moments


def activations(
    lm: LanguageModel, examples: Sequence[Example], label: str = ""
) -> Iterator[tuple[list[int], Float[Tensor, "rows reads blocks d_model"]]]:
    """Batch by batch: which of `examples`, and the output of every block at every read of theirs; float32, on the CPU.

    Examples of like length share a batch, so they do not come in order. All have as many reads as the first.
    """
    # The model is causal: what follows the last token that is read changes nothing.
    ends = [max(read[-1] for read in text.reads) + 1 for text in examples]
    _check_context(lm, ends)
    with progress.task(label or "activations", len(examples)) as advance:
        for batch in batches(ends, batch_tokens(lm)):
            yield batch, _read_batch(lm, [examples[i] for i in batch], [ends[i] for i in batch])
            advance(len(batch))


def pair_activations(
    lm: LanguageModel, positive: Sequence[Example], negative: Sequence[Example], label: str = ""
) -> Iterator[tuple[list[int], Float[Tensor, "rows reads blocks d_model"], Float[Tensor, "rows reads blocks d_model"]]]:
    """Batch by batch: which pairs, and the activations of both of their sides, as `activations` gives them."""
    ends = [
        max(read[-1] for side in sides for read in side.reads) + 1 for sides in zip(positive, negative, strict=True)
    ]
    _check_context(lm, ends)
    with progress.task(label or "activations", len(ends)) as advance:
        for batch in batches(ends, batch_tokens(lm) // 2):
            both = [positive[i] for i in batch] + [negative[i] for i in batch]
            found = _read_batch(lm, both, [ends[i] for i in batch] * 2)
            yield batch, found[: len(batch)], found[len(batch) :]
            advance(len(batch))


def mean_answer_activations(
    lm: LanguageModel, examples: Sequence[tuple[list[int], list[int]]], label: str = ""
) -> Float[Tensor, "blocks d_model"]:
    """Output of every block, mean over the answer tokens of each example, then over examples; float64.

    `examples` are (prompt, answer) token ids. Source: arXiv 2507.21509, section 2 (response average).
    """
    return capture(lm, [example(prompt, answer, "answer") for prompt, answer in examples], label).mean[0]


@torch.inference_mode()
def _read_batch(lm: LanguageModel, texts: list[Example], ends: list[int]) -> Float[Tensor, "rows reads blocks d_model"]:
    width = max(ends)
    # Padding stands on the right, where causal attention and recurrent layers do not see it.
    ids = torch.full((len(texts), width), lm.tokenizer.pad_token_id)
    attention = torch.zeros(len(texts), width, dtype=torch.long)
    for row, (text, end) in enumerate(zip(texts, ends, strict=True)):
        end = min(end, len(text.ids))
        ids[row, :end], attention[row, :end] = torch.tensor(text.ids[:end]), 1
    reader = _reader([text.reads for text in texts], width)
    found: list[Tensor] = []
    blocks = decoder_blocks(lm.network)
    hooks = [block.register_forward_hook(partial(_keep, reader.to(lm.device), found)) for block in blocks]
    try:
        # The decoder without its head: nothing is predicted.
        lm.network.get_decoder()(input_ids=ids.to(lm.device), attention_mask=attention.to(lm.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found, 2).cpu()


def _reader(reads: Sequence[tuple[range, ...]], width: int) -> Float[Tensor, "rows reads columns"]:
    """What multiplies hidden states to give the mean of every read."""
    reader = torch.zeros(len(reads), len(reads[0]), width)
    for row, ranges in enumerate(reads):
        for number, read in enumerate(ranges):
            reader[row, number, read.start : read.stop] = 1 / len(read)
    return reader


def _keep(
    reader: Float[Tensor, "rows reads columns"], found: list[Tensor], _module: Any, _inputs: Any, output: Any
) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    found.append(reader @ hidden.float())


def _check_context(lm: LanguageModel, lengths: Sequence[int]) -> None:
    if not lengths:
        raise DataError("activations: no texts to read. Expected at least one")
    context = getattr(lm.network.config.get_text_config(), "max_position_embeddings", None)
    longest = max(lengths)
    if context is not None and longest > context:
        raise DataError(
            f"a text of {longest} tokens: longer than the context of {lm.ref.source}, {context} tokens. Expected texts "
            "that fit. Shorten it"
        )
