"""The steered and the unsteered model along the same tokens, and either with values of the other put in its place."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightsteer import progress
from weightsteer.activations.mechanism.nodes import Anatomy, Node, Site, anatomy, check_sums, sources, tapped
from weightsteer.errors import AdapterError, DataError
from weightsteer.models.generate import (
    ANSWER_TOKENS_CPU,
    ANSWER_TOKENS_CUDA,
    answer_span,
    batches,
    float32_logits,
)
from weightsteer.models.language_model import LanguageModel
from weightsteer.models.paths import greedy_paths, path_log_probs
from weightsteer.models.side_by_side import attention_inputs

# Token ids of a prompt and of the completion that is forced after it.
Forced = tuple[list[int], list[int]]
# logit: z[token of the steered run] − z[token of the unsteered run]; kl: −KL(steered run ‖ this run), in nats. Both
# grow towards the steered run, and are summed over the positions at which the two runs' greedy tokens differ.
Metric = Literal["logit", "kl"]
Run = Literal["base", "steered"]

# What all nodes of a batch write, and the gradients at all that read, are held at once; see `_tokens_at_once`.
HELD_BYTES_CPU = 2**30
HELD_BYTES_CUDA = 2**34


@dataclass(frozen=True, eq=False)
class Batch:
    """Forced sequences of one pass, and the positions at which the two runs' greedy tokens differ."""

    examples: tuple[int, ...]
    """Which of the kept examples its rows are."""
    inputs: Mapping[str, Any]
    steps: int
    """Trailing columns that predict tokens of a completion."""
    row: Int[Tensor, " positions"]
    step: Int[Tensor, " positions"]
    steered_token: Int[Tensor, " positions"]
    base_token: Int[Tensor, " positions"]

    def logits(self, lm: LanguageModel) -> Float[Tensor, "positions vocabulary"]:
        """Logits at the counted positions, float32; one forward pass."""
        with answer_span(self.steps), float32_logits(lm.network):
            logits = lm.network(**self.inputs, logits_to_keep=self.steps, use_cache=False).logits
        return logits[self.row, self.step].float()

    def measure(
        self,
        logits: Float[Tensor, "positions vocabulary"],
        metric: Metric,
        target: Float[Tensor, "positions vocabulary"] | None = None,
    ) -> Float[Tensor, " rows"]:
        """The metric of each row; `target`, log-probabilities of the steered run, is what kl is measured from."""
        if metric == "logit":
            at = torch.arange(len(logits), device=logits.device)
            values = logits[at, self.steered_token] - logits[at, self.base_token]
        else:
            assert target is not None
            values = -(target.exp() * (target - logits.log_softmax(-1))).sum(-1)
        return self.by_row(values)

    def by_row(self, values: Float[Tensor, " positions"]) -> Float[Tensor, " rows"]:
        """Values at the counted positions, summed over each row."""
        return values.new_zeros(len(self.examples)).index_add(0, self.row, values)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A model with and without k·vector, along the same forced sequences."""

    lm: LanguageModel
    vector: Any
    """An activation vector that adds, or a weight vector."""
    k: float
    batches: tuple[Batch, ...]
    kept: tuple[int, ...]
    """Which of the given examples take part, in order: those in which the two runs differ somewhere."""
    base: Mapping[Metric, Float[Tensor, " examples"]]
    """Metrics of the unsteered run, float64, in the order of `kept`."""
    steered: Mapping[Metric, Float[Tensor, " examples"]]

    @cached_property
    def anatomy(self) -> Anatomy:
        return anatomy(self.lm)

    @cached_property
    def sources(self) -> tuple[Node, ...]:
        """Where the vector acts by itself; see `nodes.sources`."""
        return sources(self.lm, self.vector)

    @property
    def first(self) -> int:
        """The first block whose input differs, or the number of blocks; 0 for a weight vector."""
        return min(node.block + 1 if node.kind == "vector" else 0 for node in self.sources)

    @property
    def nodes(self) -> list[Node]:
        """All that can differ and adds up to the stream: sources, and heads and MLPs from `first` on."""
        added = [node for node in self.sources if node.kind in ("input", "vector")]
        blocks = range(self.first, len(self.anatomy.parts))
        return added + [node for block in blocks for node in self.anatomy.of_block(block)]

    def target(self, batch: Batch, metric: Metric) -> Float[Tensor, "positions vocabulary"] | None:
        """The steered run's log-probabilities, where the metric is measured from them; one forward pass."""
        if metric == "logit":
            return None
        with torch.no_grad(), self.vector.applied(self.lm, self.k) as steered:
            return batch.logits(steered).log_softmax(-1)

    def writes(self, batch: Batch, run: Run, sites: Collection[Site] | None = None) -> "Writes":
        """What the nodes at `sites` (default: all) write in one of the two runs; one forward pass."""
        found: dict[Site, Tensor] = {}

        def keep(site: Site, values: Tensor) -> Tensor:
            found[site] = values
            return values

        vector = self.vector if run == "steered" else None
        with torch.no_grad(), tapped(self.lm, vector, self.k, keep, sites=sites) as lm:
            logits = batch.logits(lm)
        if run == "base":
            check_sums(self.lm, found)
        return Writes(found, logits)


@dataclass(frozen=True, eq=False)
class Writes:
    """What was written at each site of a pass ([nodes, rows, columns, d_model]), and the logits that came of it."""

    at: dict[Site, Tensor]
    logits: Float[Tensor, "positions vocabulary"]


def forced_examples(
    lm: LanguageModel, vector: Any, k: float, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[Forced]:
    """Each prompt (token ids) with the greedy completion of the unsteered model, then with that of the steered."""
    by_run: list[dict[int, list[int]]] = [{}, {}]
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    at_once = ANSWER_TOKENS_CUDA if lm.device.type == "cuda" else ANSWER_TOKENS_CPU
    for strength, completions in zip((0, k), by_run, strict=True):
        with vector.applied(lm, strength) as steered:
            for batch in batches(lengths, at_once):
                paths = greedy_paths(steered, [prompts[i] for i in batch], max_new_tokens)
                completions.update(zip(batch, paths, strict=True))
    return [(prompt, completions[i]) for i, prompt in enumerate(prompts) for completions in by_run]


def compare(lm: LanguageModel, vector: Any, k: float, examples: Sequence[Forced]) -> Comparison:
    """Read `examples` with and without k·vector and find where the greedy tokens differ; two forward passes.

    Prompts end and completions begin in one column, so that the vector steers the tokens that it steers while
    generating. Examples in which nothing differs have nothing to explain: they are not in `kept`. An AdapterError
    when no example differs, or the vector is of another model or ablates; a DataError for an empty text. Source:
    arXiv 2604.08524 and its code.
    """
    sources(lm, vector)
    empty = [i for i, texts in enumerate(examples) if not all(texts)]
    if empty or not examples:
        problem = f"example {empty[0]} has an empty prompt or completion" if empty else "there are none"
        raise DataError(f"forced sequences: {problem}. Expected token ids of a prompt and of a completion. Remove it")
    found: dict[int, _Difference] = {}
    grouped: list[list[int]] = []
    with progress.task("comparing", len(examples)) as advance:
        for batch in batches([len(prompt) + len(path) for prompt, path in examples], _tokens_at_once(lm)):
            texts = [list(side) for side in zip(*(examples[i] for i in batch), strict=True)]
            base = path_log_probs(lm, *texts)
            with vector.applied(lm, k) as steered:
                differences = map(_difference, base, path_log_probs(steered, *texts))
            grouped.append([])
            for i, difference in zip(batch, differences, strict=True):
                if difference.steps:
                    found[i] = difference
                    grouped[-1].append(i)
            advance(len(batch))
    if not found:
        raise AdapterError(
            f"vector at k = {k:g}: the steered and the unsteered run nowhere choose different tokens in "
            f"{len(examples)} forced sequences, so there is nothing to explain. Expected texts on which they part. "
            "Raise k, or give prompts whose answers the vector changes"
        )
    kept = tuple(sorted(found))
    return Comparison(
        lm, vector, k, tuple(_batch(lm, examples, group, kept, found) for group in grouped if group), kept,
        _metrics([found[i].base for i in kept]), _metrics([found[i].steered for i in kept]),
    )  # fmt: skip


def patch(
    comparison: Comparison,
    sets: Sequence[Collection[Node]],
    into: Run = "base",
    metric: Metric = "logit",
    label: str = "patching",
) -> Float[Tensor, "examples sets"]:
    """The metric of one run in which the nodes of each set have the values of the other run; float64.

    Of a head or an MLP the value is what it adds to the stream, whatever it would add given what comes before it. No
    nodes: the run itself. `comparison.nodes`: the other run, but for changed weights of the final norm and the output
    head, which are no part of the stream; `output` has them. A ModelError lists nodes that do not exist. Costs a
    forward pass for each set, and one or two more. Source: arXiv 2604.08524 and its code.
    """
    values = torch.zeros(len(comparison.kept), len(sets), dtype=torch.float64)
    with progress.task(label, len(sets) * len(comparison.batches)) as advance:
        for batch in comparison.batches:
            target = comparison.target(batch, metric)
            for number, logits in enumerate(patched_logits(comparison, batch, sets, into)):
                values[list(batch.examples), number] = batch.measure(logits, metric, target).double().cpu()
                advance()
    return values


@torch.no_grad()
def patched_logits(
    comparison: Comparison, batch: Batch, sets: Sequence[Collection[Node]], into: Run
) -> Iterator[Float[Tensor, "positions vocabulary"]]:
    """Logits of one run with the nodes of each set as in the other run, set by set; see `patch`."""
    comparison.anatomy.check([node for nodes in sets for node in nodes])
    other = comparison.writes(
        batch, "steered" if into == "base" else "base", {node.site for nodes in sets for node in nodes}
    )
    vector = comparison.vector if into == "steered" else None
    for nodes in sets:
        wanted: dict[Site, list[int]] = {}
        for node in nodes:
            wanted.setdefault(node.site, []).append(node.head or 0)
        if any(kind == "output" for kind, _ in wanted):
            yield other.logits
            continue

        def put(site: Site, values: Tensor, wanted: dict[Site, list[int]] = wanted) -> Tensor:
            places = wanted.get(site)
            if places is None:
                return values
            return values.index_copy(0, torch.tensor(places, device=values.device), other.at[site][places])

        with tapped(comparison.lm, vector, comparison.k, put, sites=wanted.keys()) as lm:
            yield batch.logits(lm)


@dataclass(frozen=True)
class _Difference:
    """Where the greedy tokens of the two runs differ along one completion, and the metrics of both runs there."""

    steps: list[int]
    steered_tokens: list[int]
    base_tokens: list[int]
    base: dict[Metric, float]
    steered: dict[Metric, float]


def _difference(base: Float[Tensor, "step vocabulary"], steered: Float[Tensor, "step vocabulary"]) -> _Difference:
    greedy = torch.stack([steered.argmax(-1), base.argmax(-1)], 1)
    at = (greedy[:, 0] != greedy[:, 1]).nonzero().flatten()
    tokens = greedy[at]
    logit = [(found[at].gather(1, tokens) @ tokens.new_tensor([1.0, -1.0], dtype=found.dtype)).double().sum().item()
             for found in (base, steered)]  # fmt: skip
    kl = (steered[at].exp() * (steered[at] - base[at])).sum(-1).double().sum().item()
    steered_tokens, base_tokens = tokens.T.tolist()
    return _Difference(
        at.tolist(), steered_tokens, base_tokens, {"logit": logit[0], "kl": -kl}, {"logit": logit[1], "kl": 0.0}
    )


def _metrics(found: Sequence[dict[Metric, float]]) -> dict[Metric, Float[Tensor, " examples"]]:
    return {m: torch.tensor([one[m] for one in found], dtype=torch.float64) for m in get_args(Metric)}


def _batch(
    lm: LanguageModel,
    examples: Sequence[Forced],
    group: Sequence[int],
    kept: Sequence[int],
    found: Mapping[int, _Difference],
) -> Batch:
    prompts, paths = zip(*(examples[i] for i in group), strict=True)
    steps = max(map(len, paths))
    shape = (len(group), max(map(len, prompts)) + steps - 1)  # the last token of a path is predicted, never fed
    ids = torch.full(shape, lm.tokenizer.pad_token_id, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    part = torch.full(shape, -1, dtype=torch.long)
    for row, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
        end = shape[1] - steps + len(path)
        start = end - len(prompt) - len(path) + 1
        ids[row, start:end] = torch.tensor(prompt + path[:-1])
        positions[row, start:end] = torch.arange(end - start)
        part[row, start:end] = 0
    place = {i: number for number, i in enumerate(kept)}
    counted = [
        (row, *position)
        for row, i in enumerate(group)
        for position in zip(found[i].steps, found[i].steered_tokens, found[i].base_tokens, strict=True)
    ]
    inputs = {"input_ids": ids.to(lm.device), **attention_inputs(lm.network, part, positions)}
    rows, at, steered, base = torch.tensor(counted, device=lm.device).T
    return Batch(tuple(place[i] for i in group), inputs, steps, rows, at, steered, base)


def _tokens_at_once(lm: LanguageModel) -> int:
    """Columns of a batch such that what is held of each, for edges of all nodes, fits in memory."""
    body, width = anatomy(lm), lm.network.config.get_text_config().hidden_size
    # A writer's two values, a reader's gradient, and what a backward pass keeps of a block, about 16 streams.
    streams = len(body.parts) * (2 * (body.heads + 1) + body.heads + 2 * body.kv_heads + 1 + 16)
    held = HELD_BYTES_CUDA if lm.device.type == "cuda" else HELD_BYTES_CPU
    return max(1, held // (4 * width * streams))
