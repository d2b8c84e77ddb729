"""What writes to a model's residual stream and what reads from it, and hooks that show or change both."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weightsteer.errors import AdapterError, ModelError, report_problems
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.language_model import LanguageModel

Kind = Literal["input", "head", "mlp", "vector", "output", "query", "key", "value", "attention"]
# All nodes of a kind in a block; "attention" stands for the queries, keys and values of a block together.
Site = tuple[Kind, int]
# What is written at a site, and what is written instead (the same tensor: nothing else).
Tap = Callable[[Site, Float[Tensor, "nodes rows columns d_model"]], Float[Tensor, "nodes rows columns d_model"]]
# The stream at a site, and the stream that each of its readers sees.
Read = Callable[[Site, Float[Tensor, "rows columns d_model"]], Float[Tensor, "readers rows columns d_model"]]


@dataclass(frozen=True)
class Node:
    """A place where something is written to the residual stream or read from it; blocks and heads count from 0.

    - `head`, `mlp`: what it adds to the stream, behind the norm that Gemma puts there;
    - `vector`: what an activation vector adds behind a block;
    - `input`: the stream before a block. That of block 0 is the embedding; that of the number of blocks is what the
      output head reads;
    - `output`: the logits; as a reader, the output head with its norm;
    - `query`, `key`, `value`: one head's view of the stream; as a reader, `mlp` is the MLP's. Where heads share keys
      and values (grouped queries), these are numbered by group.
    """

    kind: Kind
    block: int
    head: int | None = None

    @property
    def site(self) -> Site:
        return self.kind, self.block

    def __str__(self) -> str:
        if self.kind == "output":
            return "output"
        return f"block {self.block} {self.kind}" + ("" if self.head is None else f" {self.head}")


@dataclass(frozen=True)
class Parts:
    """The modules of a decoder block, by what they do to the residual stream."""

    block: nn.Module
    attention_norm: nn.Module
    projections: tuple[nn.Module, ...]
    """Their outputs side by side are the queries of all heads, then keys, then values."""
    out: nn.Module
    attention_end: nn.Module | None
    """The norm between `out` and the stream, where there is one."""
    mlp_norm: nn.Module
    mlp: nn.Module
    """What the MLP adds to the stream is this module's output."""


@dataclass(frozen=True)
class Anatomy:
    """The blocks of a model and how many heads each has."""

    parts: tuple[Parts, ...]
    heads: int
    kv_heads: int

    @property
    def group(self) -> int:
        """How many heads share a key and a value."""
        return self.heads // self.kv_heads

    @property
    def writers(self) -> list[Node]:
        """Every head and MLP, in order."""
        return [node for block in range(len(self.parts)) for node in self.of_block(block)]

    def of_block(self, block: int) -> list[Node]:
        return [*(Node("head", block, h) for h in range(self.heads)), Node("mlp", block)]

    def check(self, nodes: Collection[Node]) -> None:
        """Raise a ModelError that lists the nodes that are not in the model or write nothing."""
        blocks = len(self.parts)
        problems = []
        for node in dict.fromkeys(nodes):
            last = blocks if node.kind in ("input", "output") else blocks - 1
            if node.kind not in ("input", "head", "mlp", "vector", "output"):
                problems.append(f"{node}: is read, not written. Expected an input, head, mlp, vector or output")
            elif not 0 <= node.block <= last:
                problems.append(f"{node}: no such block. Expected one from 0 to {last}")
            elif (node.kind == "head") != (node.head is not None) or not 0 <= (node.head or 0) < self.heads:
                expected = f"a head from 0 to {self.heads - 1}" if node.kind == "head" else "none"
                problems.append(f"{node}: no head {node.head}. Expected {expected}")
        report_problems(ModelError, "nodes", problems)


# Children of a block: norm, attention, its second norm, norm of the MLP, MLP, its second norm.
_BLOCKS = (
    ("input_layernorm", "self_attn", None, "post_attention_layernorm", "mlp", None),
    ("input_layernorm", "self_attn", "post_attention_layernorm",
     "pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    ("ln_1", "attn", None, "ln_2", "mlp", None),
)  # fmt: skip
_ATTENTIONS = ((("q_proj", "k_proj", "v_proj"), "o_proj"), (("c_attn",), "c_proj"))


def anatomy(lm: LanguageModel) -> Anatomy:
    """Where a model's heads and MLPs are: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, GPT-2 and what is built alike.

    A ModelError names a block that is built otherwise. That what is found adds up to the stream is checked when it is
    read, see `check_sums`.
    """
    config = lm.network.config.get_text_config()
    heads = config.num_attention_heads
    parts = tuple(_parts(lm, block, number) for number, block in enumerate(decoder_blocks(lm.network)))
    return Anatomy(parts, heads, getattr(config, "num_key_value_heads", None) or heads)


def _parts(lm: LanguageModel, block: nn.Module, number: int) -> Parts:
    children = dict(block.named_children())
    layout = next((names for names in _BLOCKS if set(names) - {None} == set(children)), None)
    inside = dict(children[layout[1]].named_children()) if layout else {}
    attention = next((names for names in _ATTENTIONS if {*names[0], names[1]} <= set(inside)), None)
    if layout is None or attention is None:
        found = f"attention of {', '.join(inside)}" if layout else f"modules {', '.join(children)}"
        raise ModelError(
            f"{type(lm.network).__name__}: block {number} has {found}. Expected a block built as in Llama, Qwen2, "
            "Gemma 3 or GPT-2: heads and MLPs are found by the names of their modules. Use a model of these families"
        )
    norm, _, end, mlp_norm, mlp, mlp_end = layout
    projections, out = attention
    return Parts(
        block, children[norm], tuple(inside[name] for name in projections), inside[out],
        children[end] if end else None, children[mlp_norm], children[mlp_end or mlp],
    )  # fmt: skip


@contextlib.contextmanager
def tapped(
    lm: LanguageModel, vector: Any, k: float, tap: Tap, read: Read | None = None, sites: Collection[Site] | None = None
) -> Iterator[LanguageModel]:
    """`lm`, steered by k·vector (None: unsteered), while `tap` sees and may change what is written at `sites`.

    None means every site. With `read`, every reader of those `sites` gets a stream of its own. Sites come in the order
    of the pass: input and heads and MLP of a block, the vector behind it, at last the input of the output head.
    """
    body = anatomy(lm)
    plain: dict[int, Tensor] = {}
    with contextlib.ExitStack() as undo:
        # Before the vector's own hooks, so that what it adds can be told from what the block put out.
        for number, parts in enumerate(body.parts):
            undo.callback(parts.block.register_forward_hook(_keep(plain, number)).remove)
        steered = lm if vector is None else undo.enter_context(vector.applied(lm, k))
        for hook in _hooks(body, plain, tap, read, sites):
            undo.callback(hook.remove)
        yield steered


def _hooks(
    body: Anatomy, plain: dict[int, Tensor], tap: Tap, read: Read | None, sites: Collection[Site] | None
) -> Iterator[RemovableHandle]:
    for number, parts in enumerate(body.parts):
        if read and (sites is None or ("attention", number) in sites):
            yield from _attention_reads(body, number, read)
        if sites is None or ("head", number) in sites:
            yield from _head_writes(parts, body.heads, number, tap)
        if read and (sites is None or ("mlp", number) in sites):
            yield parts.mlp_norm.register_forward_pre_hook(_mlp_read(number, read))
        if sites is None or ("mlp", number) in sites:
            yield parts.mlp.register_forward_hook(_mlp_write(number, tap))
        if sites is None or ("input", number) in sites:
            yield parts.block.register_forward_pre_hook(_input(number, tap), with_kwargs=True)
        last = number + 1 == len(body.parts)
        yield parts.block.register_forward_hook(_block_end(number, plain, tap, read if last else None, sites, last))


def _keep(plain: dict[int, Tensor], number: int) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        plain[number] = _hidden(output)

    return hook


def _input(number: int, tap: Tap) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        changed = tap(("input", number), hidden[None])[0]
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return hook


def _mlp_read(number: int, read: Read) -> Any:
    return lambda _module, args: (read(("mlp", number), args[0])[0],)


def _mlp_write(number: int, tap: Tap) -> Any:
    return lambda _module, _args, output: tap(("mlp", number), output[None])[0]


def _block_end(
    number: int, plain: dict[int, Tensor], tap: Tap, read: Read | None, sites: Collection[Site] | None, last: bool
) -> Any:
    """What the vector adds behind a block; behind the last one also what the output head reads."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        hidden, before = _hidden(output), plain.pop(number)
        if sites is None or ("vector", number) in sites:
            # A block that is not steered passes on the very tensor that it made.
            none = hidden.new_zeros(()).expand(1, *hidden.shape)
            values = none if hidden is before else (hidden - before)[None]
            changed = tap(("vector", number), values)
            hidden = hidden if changed is values else before + changed[0]
        if last and (sites is None or ("input", number + 1) in sites):
            hidden = tap(("input", number + 1), hidden[None])[0]
        if read is not None:
            hidden = read(("output", number + 1), hidden)[0]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook


def _head_writes(parts: Parts, heads: int, number: int, tap: Tap) -> Iterator[RemovableHandle]:
    """What each head adds to the stream: its slice of the output matrix times its values; a bias is shared equally."""
    held: list[Tensor] = []

    def split(values: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        by_head = values.unflatten(-1, (heads, -1)).movedim(-2, 0)
        each = by_head.flatten(1, 2) @ matrix.unflatten(0, (heads, -1)) + bias / heads
        each = each.unflatten(1, values.shape[:2])
        if parts.attention_end is None:
            return tap(("head", number), each).sum(0)
        held.append(each)
        return each.sum(0)

    def ask(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.cat([args[0], torch.ones_like(args[0][:1])]),)

    def rescale(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # An RMS norm is y ↦ s·γ∘y with one s for each token: what it makes of ones gives γ up to a factor, and
        # lengths give s, so that heads can be scaled one by one as their sum is.
        total, normed, gamma = args[0][:-1], output[:-1], output[-1]
        length = (gamma * total).norm(dim=-1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)
        return tap(("head", number), held.pop() * gamma * (normed.norm(dim=-1, keepdim=True) / length)).sum(0)

    yield from _by_matrix(parts.out, split)
    if parts.attention_end is not None:
        yield parts.attention_end.register_forward_pre_hook(ask)
        yield parts.attention_end.register_forward_hook(rescale)


def _attention_reads(body: Anatomy, number: int, read: Read) -> Iterator[RemovableHandle]:
    """Every query, key and value of a block made from a stream of its own."""
    parts, groups = body.parts[number], (body.heads, body.kv_heads, body.kv_heads)
    if len(parts.projections) == 1:
        groups = (sum(groups),)
    held: list[Tensor] = []
    waiting: list[int] = []

    def spread(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        streams = read(("attention", number), args[0])
        held.append(streams)
        return (streams.flatten(0, 1),)

    def normed(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        held.append(output.unflatten(0, held.pop().shape[:2]))
        waiting.extend(groups)
        return held[-1][0]  # as wide as the projections expect; they look at what is held instead

    def project(first: int, group: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def compute(_values: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
            seen = held[-1][first : first + group]
            made = seen.flatten(1, 2) @ matrix.unflatten(-1, (group, -1)).movedim(1, 0)
            waiting.pop()
            if not waiting:  # the widest tensor of a block goes as soon as it is used up
                held.clear()
            return made.unflatten(1, seen.shape[1:3]).movedim(0, 2).flatten(-2) + bias

        return compute

    yield parts.attention_norm.register_forward_pre_hook(spread)
    yield parts.attention_norm.register_forward_hook(normed)
    for place, (module, group) in enumerate(zip(parts.projections, groups, strict=True)):
        yield from _by_matrix(module, project(sum(groups[:place]), group))


def _by_matrix(module: nn.Module, compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[RemovableHandle]:
    """Put compute(input, matrix [d_in, d_out], bias [d_out]) in the place of a linear module's output.

    The module is applied to the unit vectors and to zero: whatever its class and whatever a weight vector adds to it,
    that is its matrix and its bias.
    """
    held: list[Tensor] = []

    def ask(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        held.append(args[0])
        width = args[0].shape[-1]
        return (torch.eye(width + 1, width, dtype=args[0].dtype, device=args[0].device)[None],)

    def answer(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return compute(held.pop(), output[0, :-1] - output[0, -1], output[0, -1])

    yield module.register_forward_pre_hook(ask)
    yield module.register_forward_hook(answer)


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def check_sums(lm: LanguageModel, writes: Mapping[Site, Tensor]) -> None:
    """Raise a ModelError where the stream before a block and what its heads and MLP add is not the stream after it.

    `writes` are those of an unsteered pass; blocks of which some are missing are not looked at. Tolerance: 10⁻³ of the
    stream's length in float32, 5·10⁻² in half precision.
    """
    tolerance = 1e-3 if lm.network.dtype in (torch.float32, torch.float64) else 5e-2
    for block in range(len(decoder_blocks(lm.network))):
        sites: list[Site] = [("input", block), ("head", block), ("mlp", block)]
        after = writes.get(("input", block + 1))
        if after is None or not all(site in writes for site in sites):
            continue
        missed = after[0].float() - sum(writes[site].float().sum(0) for site in sites)
        error = (missed.norm() / after.float().norm()).item()
        if not error <= tolerance:
            raise ModelError(
                f"{type(lm.network).__name__}: what heads and MLP of block {block} write misses the residual stream by "
                f"{error:.2g} of its length. Expected them to add up to it, as in Llama, Qwen2, Gemma 3 and GPT-2. Use "
                "a model of these families"
            )


def sources(lm: LanguageModel, vector: Any) -> tuple[Node, ...]:
    """Where a vector acts by itself: behind its blocks, or, for a change of weights, at the embedding and every writer.

    An AdapterError for a vector of another kind, and for one that ablates: what it takes out depends on the stream, so
    it is no part of a sum.
    """
    if getattr(vector, "operation", "add") != "add":
        raise AdapterError("activation vector: ablates. Expected one that adds, whose effect is a sum over nodes")
    if hasattr(vector, "directions"):
        return tuple(Node("vector", block) for block in sorted(vector.directions))
    if hasattr(vector, "entries"):
        return (Node("input", 0), *anatomy(lm).writers)
    raise AdapterError(f"{type(vector).__name__}: Expected an activation vector or a weight vector")
