"""Batched generation, and option scoring in one pass with the shared prompt computed once."""

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weightsteer import progress
from weightsteer.models import Message
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.side_by_side import attention_inputs, fits_side_by_side, sees_everything

# Tokens of one forward pass, padding included: large enough to fill two cores or a GPU.
BATCH_TOKENS_CPU = 2048
BATCH_TOKENS_CUDA = 32768
# Tokens whose keys and values are held at once while answers are generated, one token of each row in a pass: many rows,
# or reading the weights costs more than multiplying with them. On the 135M model 12,288 are 0.3 GB.
ANSWER_TOKENS_CPU = 12288
ANSWER_TOKENS_CUDA = 131072
# Their logits, float32 over the whole vocabulary, are the largest thing in memory.
LOGIT_BYTES_CPU = 2**29
LOGIT_BYTES_CUDA = 2**33

# A start that all prompts share is computed once when it has so many tokens; below that the bookkeeping costs more.
SHARED_TOKENS = 8

# What a model's generation_config may ask for besides: habits that stand between its weights and its words, and that
# count padding as text.
PLAIN: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}

_answer_columns: ContextVar[int | None] = ContextVar("answer_columns", default=1)


def answer_columns(otherwise: int | None = 1) -> int | None:
    """How many trailing columns of the running forward pass predict answer tokens.

    1 while generating with a cache: the last prompt token, then each new token. While options are scored it is the
    last prompt token and all option tokens, and 0 in a pass over the start of a prompt. What steers only the answer
    asks here. Where nothing is scored, `otherwise`.
    """
    return _answer_columns.get(otherwise)


@torch.inference_mode()
def generate(
    lm: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    label: str = "",
) -> list[str]:
    """Answers of the model, in order of `prompts`; greedy at temperature 0, else sampled with `seed`."""
    from transformers import set_seed

    ids = [lm.tokens(lm.chat(prompt)) for prompt in prompts]
    answers = [""] * len(ids)
    decoding = {**PLAIN, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        set_seed(seed)
        decoding = {**PLAIN, "do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    lengths = [len(row) + max_new_tokens for row in ids]
    with progress.task(label or "generating", len(ids)) as advance:
        for batch in batches(lengths, ANSWER_TOKENS_CUDA if lm.device.type == "cuda" else ANSWER_TOKENS_CPU):
            width = max(len(ids[i]) for i in batch)
            pad = lm.tokenizer.pad_token_id
            rows = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in batch], device=lm.device)
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in batch], device=lm.device)
            output = lm.network.generate(
                input_ids=rows, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=pad, **decoding
            )
            for i, row in zip(batch, output, strict=True):
                answers[i] = lm.tokenizer.decode(row[width:], skip_special_tokens=True).strip()
            advance(len(batch))
    return answers


def score_options(
    lm: LanguageModel,
    prompts: Sequence[str | Sequence[Message]],
    options: Sequence[Sequence[str]],
    *,
    label: str = "",
) -> list[list[tuple[float, int]]]:
    """For every option of every prompt: its log-probability in nats as the start of the answer, and its token count.

    Probabilities of all tokens of an option are multiplied; divide by the count for the mean per token.
    """
    rows = []
    for prompt, choices in zip(prompts, options, strict=True):
        text = lm.chat(prompt)
        rows.append(_split(lm.tokens(text), [lm.tokens(text + option) for option in choices]))
    return _score(lm, rows, label)


def score_texts(lm: LanguageModel, texts: Sequence[str], *, label: str = "") -> list[tuple[float, int]]:
    """Log-probability in nats of each plain text after its first token, and how many tokens that is."""
    start = lm.tokenizer.bos_token_id
    rows = []
    for text in texts:
        ids = lm.tokens(text)
        rows.append(([start], [ids]) if start is not None else (ids[:1], [ids[1:]]))
    scored = iter(_score(lm, [row for row in rows if row[1][0]], label))
    return [next(scored)[0] if row[1][0] else (0.0, 0) for row in rows]


def _split(prompt: list[int], whole: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Prompt tokens shared by all of `whole`, and what follows them in each.

    A tokenizer may merge the end of the prompt with the start of an answer; what is merged belongs to the option.
    """
    shared = min(len(prompt), *(len(ids) - 1 for ids in whole))
    while any(ids[:shared] != prompt[:shared] for ids in whole):
        shared -= 1
    return prompt[:shared], [ids[shared:] for ids in whole]


@torch.inference_mode()
def _score(
    lm: LanguageModel, rows: list[tuple[list[int], list[list[int]]]], label: str, opened: int = 0
) -> list[list[tuple[float, int]]]:
    """Scores of options; the last `opened` tokens of every prompt are the answer's already."""
    if not fits_side_by_side(lm.network) and any(len(options) > 1 for _, options in rows):
        alone = iter(_score(lm, [(prompt, [option]) for prompt, options in rows for option in options], label, opened))
        return [[next(alone)[0] for _ in options] for _, options in rows]
    scores: list[list[tuple[float, int]]] = [[] for _ in rows]
    lengths = [len(prompt) + sum(len(option) - 1 for option in options) for prompt, options in rows]
    with progress.task(label or "scoring", len(rows)) as advance, float32_logits(lm.network):
        beginning = _beginning(lm, [prompt for prompt, _ in rows], opened)
        for batch in batches(lengths, batch_tokens(lm)):
            for i, result in zip(batch, _score_batch(lm, [rows[i] for i in batch], beginning, opened), strict=True):
                scores[i] = result
            advance(len(batch))
    return scores


def opening_tokens(lm: LanguageModel) -> int:
    """How many tokens the chat template writes between the user's turn and the answer, at least 1.

    Where there are none (Llama 2's turn ends in `[/INST]`) the last token of the turn counts, as in the code of arXiv
    2312.06681: it is the one that predicts the answer's first.
    """
    turn, whole = (
        lm.tokens(lm.tokenizer.apply_chat_template([_QUESTION], tokenize=False, add_generation_prompt=opened))
        for opened in (False, True)
    )
    shared = 0
    while shared < min(len(turn), len(whole)) and turn[shared] == whole[shared]:
        shared += 1
    return max(len(whole) - shared, 1)


_QUESTION = {"role": "user", "content": "?"}


@dataclass(frozen=True)
class _Beginning:
    """The start that all prompts share, such as a system prompt: its length and its keys and values."""

    width: int = 0
    cache: Any = None

    def keys_and_values(self, rows: int) -> dict[str, Any]:
        """What the network takes to go on from here in `rows` rows."""
        if self.cache is None:
            return {"use_cache": False}
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return {"past_key_values": cache, "use_cache": True}


def _beginning(lm: LanguageModel, prompts: list[list[int]], opened: int = 0) -> _Beginning:
    """Compute the shared start of `prompts` once; nothing where it is short or the architecture keeps other state."""
    # What is written after the last turn stays outside: it may be steered, a start never is.
    columns = zip(*(prompt[: -opening_tokens(lm) - opened] for prompt in prompts), strict=False)
    width = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    if len(prompts) < 2 or width < SHARED_TOKENS or not sees_everything(lm.network):
        return _Beginning()
    ids = torch.tensor([prompts[0][:width]], device=lm.device)
    with answer_span(0):
        return _Beginning(width, lm.network(input_ids=ids, logits_to_keep=1, use_cache=True).past_key_values)


def _score_batch(
    lm: LanguageModel, rows: list[tuple[list[int], list[list[int]]]], beginning: _Beginning, opened: int
) -> list[list[tuple[float, int]]]:
    """One forward pass: every row is the rest of its prompt, right-aligned, then its options side by side, blind to one
    another.

    The last token of an option is predicted, never fed, so a one-token option costs nothing.
    """
    prompt_width = max(len(prompt) for prompt, _ in rows)
    option_width = max(sum(len(option) - 1 for option in options) for _, options in rows)
    shape = (len(rows), prompt_width + option_width)
    ids = torch.full(shape, lm.tokenizer.pad_token_id, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    part = torch.full(shape, -1, dtype=torch.long)  # -1 padding, 0 prompt, 1.. option
    skip = beginning.width  # these columns of every row are in the cache
    positions[:, :skip], part[:, :skip] = torch.arange(skip), 0
    for r, (prompt, options) in enumerate(rows):
        start = prompt_width - len(prompt) + skip
        ids[r, start:prompt_width] = torch.tensor(prompt[skip:])
        positions[r, start:prompt_width] = torch.arange(skip, len(prompt))
        part[r, start:prompt_width] = 0
        column = prompt_width
        for number, option in enumerate(options, start=1):
            end = column + len(option) - 1
            ids[r, column:end] = torch.tensor(option[:-1], dtype=torch.long)
            positions[r, column:end] = torch.arange(len(prompt), len(prompt) + len(option) - 1)
            part[r, column:end] = number
            column = end
    with answer_span(1 + opened + option_width):
        logits = lm.network(
            input_ids=ids[:, skip:].to(lm.device),
            logits_to_keep=1 + option_width,
            **beginning.keys_and_values(len(rows)),
            **attention_inputs(lm.network, part, positions, skip),
        ).logits.float()
    return _read(logits, rows)


def _read(
    logits: Float[Tensor, "rows columns vocabulary"], rows: list[tuple[list[int], list[list[int]]]]
) -> list[list[tuple[float, int]]]:
    log_norm = logits.logsumexp(-1)
    scores = []
    for r, (_, options) in enumerate(rows):
        column, row_scores = 1, []
        for option in options:
            # The first token is predicted by the prompt's last column, the others by the option's own.
            columns = torch.tensor([0, *range(column, column + len(option) - 1)], device=logits.device)
            tokens = torch.tensor(option, device=logits.device)
            log_p = logits[r, columns, tokens] - log_norm[r, columns]
            row_scores.append((log_p.double().sum().item(), len(option)))
            column += len(option) - 1
        scores.append(row_scores)
    return scores


@contextlib.contextmanager
def answer_span(columns: int) -> Iterator[None]:
    """Say inside the block how many trailing columns predict answer tokens; see `answer_columns`."""
    token = _answer_columns.set(columns)
    try:
        yield
    finally:
        _answer_columns.reset(token)


@contextlib.contextmanager
def float32_logits(network: Any) -> Iterator[None]:
    """Compute the output head in float32: half-precision logits are spaced up to 1/8 apart, options differ by less."""
    head = network.get_output_embeddings()
    if head is None or type(head) is not torch.nn.Linear or head.weight.dtype == torch.float32:
        yield
        return
    bias = None if head.bias is None else head.bias.float()
    weight = head.weight.float()
    head.forward = lambda x: torch.nn.functional.linear(x.float(), weight, bias)
    try:
        yield
    finally:
        del head.forward


def batch_tokens(lm: LanguageModel) -> int:
    cuda = lm.device.type == "cuda"
    tokens, logit_bytes = (BATCH_TOKENS_CUDA, LOGIT_BYTES_CUDA) if cuda else (BATCH_TOKENS_CPU, LOGIT_BYTES_CPU)
    return min(tokens, logit_bytes // (4 * lm.network.get_input_embeddings().num_embeddings))


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first so that memory trouble shows at once."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
