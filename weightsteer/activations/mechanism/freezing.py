"""Parts of a model frozen at what they are without steering, while the rest is steered, and what that costs."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from weightsteer import progress
from weightsteer.activations.mechanism.anatomy import Part, matrix_shape, resolve
from weightsteer.activations.mechanism.parts import without
from weightsteer.errors import AdapterError, ModelError
from weightsteer.models.language_model import LanguageModel
from weightsteer.stats import RESAMPLES, Estimate, paired_difference
from weightsteer.weights.vector import WeightVector

# What a model does, a number for each item, such as the log-odds of two answers; as many for every model.
Effect = Callable[[LanguageModel], Sequence[float]]

CIRCUITS: Mapping[str, tuple[Part, ...]] = {
    "attention probabilities (QK)": (Part("qk"),),
    "values (OV)": (Part("ov"),),
    "MLP outputs": (Part("mlp"),),
}


@runtime_checkable
class Steering(Protocol):
    """A vector of any kind that acts on the network itself."""

    def applied(self, lm: Any, k: float) -> contextlib.AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class Kept:
    """What is left of an effect when some of it is taken away."""

    change: Estimate
    """Mean change from the unsteered model."""
    lost: Estimate
    """Mean of the whole effect minus what is left, item by item."""
    share: Estimate | None
    """Change as a share of the whole change; None where that cannot be told from zero."""

    @property
    def share_lost(self) -> Estimate | None:
        if self.share is None:
            return None
        return Estimate(1 - self.share.mean, 1 - self.share.high, 1 - self.share.low)


@dataclass(frozen=True)
class Comparison:
    """An effect as a whole, and what is left of it in each of several cases; intervals over the same items."""

    items: int
    whole: Estimate
    cases: Mapping[str, Kept]


@contextlib.contextmanager
def frozen(vector: Steering, lm: LanguageModel, k: float, *parts: Part) -> Iterator[LanguageModel]:
    """`lm` steered by k times the vector, with `parts` at what they are in the unsteered pass over the same tokens.

    qk: attention probabilities, held by holding queries and keys, which determine them (and so whatever computes
    attention need not show them); ov: values, and the weights that read them out; mlp: outputs of the MLP. In every
    pass of the decoder, a generated token's too, the unsteered pass comes first, with hooks and weights as they are
    when the block is entered. It keeps keys and values of its own, so that caches work. With nothing to steer, k = 0 or
    a vector of zero, the model is itself bit for bit.

    Source: arXiv 2604.08524 and its code. Costs two passes. A ModelError for a block or head that does not exist or an
    architecture that cannot be taken apart; an AdapterError for a vector of another model or one that acts on the
    prompt.
    """
    with vector.applied(lm, 0):
        pass  # says what does not fit before anything is taken apart
    sites = _sites(lm.network, parts)
    if isinstance(vector, WeightVector):
        vector = without(vector, lm, *parts)
    before = _State(lm.network)
    with vector.applied(lm, k) as steered:
        if steered.network is not lm.network or steered.system != lm.system:
            raise AdapterError(
                f"{type(vector).__name__}: steers by the prompt, so that both passes would read other tokens. Expected "
                "a vector of weights or of activations"
            )
        if any("forward" in vars(module) for module in (lm.network, lm.network.get_decoder())):
            raise AdapterError(
                f"{type(lm.network).__name__}: its forward pass is replaced already. Expected a vector that steers by "
                "hooks or weights, and one freezing at a time. Give all parts to one call"
            )
        with _Passes(lm.network, sites, before).on():
            yield steered


def freezing_effects(
    vector: Steering,
    lm: LanguageModel,
    k: float,
    effect: Effect,
    cases: Mapping[str, Sequence[Part]] = CIRCUITS,
    seed: int = 0,
) -> Comparison:
    """What is left of the effect of k times the vector when each case's parts are frozen.

    Published for refusal: freezing all attention probabilities costs 8.75 % of the effect, values far more (arXiv
    2604.08524). Those are shares of answers that a judge counts; here `effect` says what is counted.
    """
    steerings = {name: functools.partial(frozen, vector, lm, k, *parts) for name, parts in cases.items()}
    return _measure(vector, lm, k, effect, steerings, seed)


def part_effects(
    vector: WeightVector, lm: LanguageModel, k: float, effect: Effect, parts: Mapping[str, WeightVector], seed: int = 0
) -> Comparison:
    """What is left of the effect of a weight vector when only some of it is applied; see `parts.part`."""
    return _measure(
        vector, lm, k, effect, {name: functools.partial(one.applied, lm, k) for name, one in parts.items()}, seed
    )


def compare(
    base: Sequence[float], steered: Sequence[float], cases: Mapping[str, Sequence[float]], seed: int = 0
) -> Comparison:
    """What of the change from `base` to `steered` each case keeps; all are numbers of the same items in one order.

    A share is a ratio of two mean changes, its interval over items resampled together. A ValueError where the items
    are not the same.
    """
    whole = paired_difference(steered, base, seed=seed)
    kept = {}
    for name, values in cases.items():
        change = paired_difference(values, base, seed=seed)
        found = whole.low > 0 or whole.high < 0
        share = _ratio(np.subtract(values, base), np.subtract(steered, base), seed) if found else None
        kept[name] = Kept(change, paired_difference(steered, values, seed=seed), share)
    return Comparison(len(base), whole, kept)


def _measure(
    vector: Steering,
    lm: LanguageModel,
    k: float,
    effect: Effect,
    steerings: Mapping[str, Callable[[], contextlib.AbstractContextManager[LanguageModel]]],
    seed: int,
) -> Comparison:
    found = {}
    with progress.task("frozen parts", len(steerings) + 2) as advance:
        base = effect(lm)
        advance()
        with vector.applied(lm, k) as steered:
            whole = effect(steered)
        advance()
        for name, steering in steerings.items():
            with steering() as steered:
                found[name] = effect(steered)
            advance(note=name)
    return compare(base, whole, found, seed)


def _ratio(part: np.ndarray, whole: np.ndarray, seed: int) -> Estimate:
    """mean(part) / mean(whole) and its interval over resampled items."""
    items = np.random.default_rng(seed).integers(len(whole), size=(RESAMPLES, len(whole)))
    low, high = np.quantile(part[items].mean(1) / whole[items].mean(1), (0.025, 0.975))
    return Estimate(float(part.mean() / whole.mean()), float(low), float(high))


# Module -> which of its outputs are frozen, as a mask; None for all.
Sites = dict[nn.Module, Tensor | None]


def _sites(network: Any, parts: Sequence[Part]) -> Sites:
    """The layers whose outputs are held, a layer that computes several things named once."""
    outputs: dict[str, list[int] | None] = {}
    for part in parts:
        for block in resolve(network, part):
            for name, places in block.outputs(part.what, part.heads).items():
                outputs[name] = None if places is None else [*(outputs.get(name) or []), *places]
    sites: Sites = {}
    for name, places in outputs.items():
        module = network.get_submodule(name)
        mask = None
        if places is not None:
            mask = torch.zeros(matrix_shape(module)[0], dtype=torch.bool, device=network.device)
            mask[places] = True
        sites[module] = mask
    return sites


class _Passes:
    """The two passes of a decoder: the unsteered one, then the steered one with what is frozen in its place."""

    def __init__(self, network: Any, sites: Sites, before: "_State") -> None:
        self.network, self.sites, self.before = network, sites, before
        self.original = network.get_decoder().forward
        self.kept: dict[nn.Module, Tensor] = {}
        self.own: set[int] = set()
        self.unsteered = False

    def forward(self, input_ids: Tensor | None = None, **given: Any) -> Any:
        """The decoder's forward pass while parts are frozen."""
        rows = len(given["inputs_embeds"] if input_ids is None else input_ids)
        cache = given.get("past_key_values")
        base = self._unsteered(input_ids, given if cache is None else {**given, "past_key_values": _twin(cache, rows)})
        output = self.original(input_ids, **given)
        if cache is None and getattr(output, "past_key_values", None) is not None:
            output.past_key_values.unsteered = _Twin(base.past_key_values, rows)
        return output

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Put the two passes in the place of the decoder's one."""
        decoder = self.network.get_decoder()
        # Registered once and after the vector's own hooks, so that whoever looks on later sees what is frozen.
        hooks = [module.register_forward_hook(self._hold) for module in self.sites]
        self.own = {hook.id for hook in hooks}

        # transformers reads the signature of what it calls.
        @functools.wraps(self.original)
        def forward(*args: Any, **given: Any) -> Any:
            return self.forward(*args, **given)

        decoder.forward = forward
        try:
            yield
        finally:
            del decoder.forward
            for hook in hooks:
                hook.remove()

    def _unsteered(self, input_ids: Tensor | None, given: Mapping[str, Any]) -> Any:
        self.kept.clear()
        self.unsteered = True
        try:
            with self.before.restored(self.own), torch.no_grad():
                output = self.original(input_ids, **given)
        finally:
            self.unsteered = False
        unused = [name for name, m in self.network.named_modules() if m in self.sites and m not in self.kept]
        if unused:
            raise ModelError(
                f"{type(self.network).__name__}: {', '.join(unused)} took no part in a forward pass. Expected each "
                "block to use its own (some architectures share keys and values between blocks). Leave these out"
            )
        return output

    def _hold(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        found = output[0] if isinstance(output, tuple) else output
        if self.unsteered:
            self.kept[module] = found
            return output
        if module not in self.kept:
            raise ModelError(
                f"{type(self.network).__name__}: a frozen {type(module).__name__} ran twice in a pass of the decoder, "
                "or outside of one. Expected it once in each. Call the whole network"
            )
        held, mask = self.kept.pop(module), self.sites[module]
        held = held if mask is None else torch.where(mask, held, found)
        return (held, *output[1:]) if isinstance(output, tuple) else held


class _State:
    """Hooks and parameters of a network at one time: all that steering changes."""

    def __init__(self, network: Any) -> None:
        self.modules = [
            (module, [(hooks, set(hooks)) for hooks in (module._forward_pre_hooks, module._forward_hooks)],
             dict(module._parameters))
            for module in network.modules()
        ]  # fmt: skip

    @contextlib.contextmanager
    def restored(self, own: set[int]) -> Iterator[None]:
        """The network as it was, but for the hooks `own`; afterwards as it is now, the order of hooks included."""
        with contextlib.ExitStack() as undo:
            for module, both, parameters in self.modules:
                for hooks, before in both:
                    if hooks.keys() - before - own:
                        undo.callback(_put_back, hooks, dict(hooks))
                        for number in hooks.keys() - before - own:
                            del hooks[number]
                now = module._parameters
                for name, parameter in parameters.items():
                    if now[name] is not parameter:
                        undo.callback(now.__setitem__, name, now[name])
                        now[name] = parameter
            yield


def _put_back(hooks: dict[int, Any], before: dict[int, Any]) -> None:
    """The hooks that were there, in their order, then those that came since."""
    since = {number: hook for number, hook in hooks.items() if number not in before}
    hooks.clear()
    hooks.update(before | since)


@dataclass
class _Twin:
    """Keys and values of the unsteered pass. It hangs on those of the steered pass, and is copied with them."""

    cache: Any
    rows: int


def _twin(cache: Any, rows: int) -> Any:
    """The unsteered counterpart of a cache, made with the first tokens."""
    if not hasattr(cache, "unsteered") and cache.get_seq_length() == 0:
        cache.unsteered = _Twin(copy.deepcopy(cache), rows)
    twin = getattr(cache, "unsteered", None)
    if twin is None or twin.cache.get_seq_length() != cache.get_seq_length() or rows % twin.rows:
        held = 0 if twin is None else twin.cache.get_seq_length()
        raise AdapterError(
            f"a cache of {cache.get_seq_length()} tokens: {held} of them were read without steering. Expected a cache "
            "that was begun, and never cut, where the parts are frozen. Start with the whole text"
        )
    if rows != twin.rows:  # a start that all rows share, repeated for each
        twin.cache.batch_repeat_interleave(rows // twin.rows)
        twin.rows = rows
    return twin.cache
