"""What the stages of the study `mechanism` share: the model, the four vectors, the questions, and their folders."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from weightsteer import progress
from weightsteer.activations.makers import persona_vector
from weightsteer.activations.trained import VectorTraining, trained_vector
from weightsteer.activations.vector import ActivationVector
from weightsteer.errors import DataError
from weightsteer.evals import preference
from weightsteer.models.blocks import decoder_blocks
from weightsteer.models.language_model import compute_dtype, load_model
from weightsteer.models.reference import resolve
from weightsteer.report.page import finite
from weightsteer.stage import run_stage, to_json, write_text
from weightsteer.stats import Estimate
from weightsteer.studies.mechanism import Given, block_of
from weightsteer.weights.finetune import fit_contrast
from weightsteer.weights.vector import WeightVector

# Name of a vector -> what it is trained for; None where it is a difference in means.
ACTIVATIONS: Mapping[str, Any] = {"means": None, "next-token": "next_token", "preference": "preference"}
WEIGHTS = "weights"
NAMES = (*ACTIVATIONS, WEIGHTS)
RESULT = "result.json"


@dataclass
class Bench:
    """One run. What is slow happens in stages; a stage is finished when its folder is there."""

    given: Given
    out: Path

    def stage(self, name: str, keys: Sequence[str], work: Callable[[Path], Any], **inputs: Any) -> Any:
        """What `work(folder)` gives, by way of JSON; `keys` are the settings that it depends on."""
        said = self.given.settings.model_dump(mode="json")
        inputs = {**self.identity, **{key: said[key] for key in keys}, **inputs}

        def write(folder: Path) -> None:
            progress.say(f"{name} ...")
            write_text(folder / RESULT, json.dumps(finite(to_json(work(folder))), allow_nan=False))

        run_stage(self.out / name, inputs, write)
        return json.loads((self.out / name / RESULT).read_text(encoding="utf-8"), object_hook=_estimate)

    def of_vectors(self, *names: str) -> dict[str, Any]:
        """What a stage on these vectors depends on."""
        return {"vectors": {name: [self.vectors[name].digest, self.k(name)] for name in names}}

    @cached_property
    def identity(self) -> dict[str, Any]:
        settings = self.given.settings
        return {
            "model": resolve(settings.model.source, settings.model.revision).fingerprint,
            "dtype": str(compute_dtype(settings.model.dtype)),
            "system": settings.model.system,
            "seed": settings.seed,
            "pairs": self.given.pairs.digest,
        }

    @cached_property
    def lm(self) -> Any:
        return load_model(self.given.settings.model)

    @cached_property
    def blocks(self) -> int:
        return len(decoder_blocks(self.lm.network))

    @cached_property
    def block(self) -> int:
        return block_of(self.given.settings, self.blocks)

    @cached_property
    def lengths(self) -> dict[str, float]:
        """Of the three activation vectors when they were found; they are kept below `out`/activations."""
        return self.stage("activations", ("vector_training", "answer_tokens"), self._fit, block=self.block)

    @cached_property
    def vectors(self) -> dict[str, Any]:
        """The four vectors; those of activations all of the length of the difference in means."""
        settings = self.given.settings
        found: dict[str, Any] = {name: ActivationVector.load(self.out / "activations" / name) for name in self.lengths}
        weights = fit_contrast(settings.fine_tune, self.given.recipe, self.given.pairs, self.out / WEIGHTS,
                               settings.seed)  # fmt: skip
        return {**found, WEIGHTS: weights}

    @property
    def weights(self) -> WeightVector:
        return self.vectors[WEIGHTS]

    def k(self, name: str) -> float:
        """The strength of a vector."""
        return self.given.settings.k_weights if name == WEIGHTS else self.given.settings.k

    @cached_property
    def held_out(self) -> list[Any]:
        """The pairs that are measured on."""
        return list(self.given.pairs.part("held_out").pairs)

    def prompts(self) -> list[list[int]]:
        """Token ids of every held-out question, up to the answer."""
        return [self.lm.tokens(self.lm.chat(pair.prompt)) for pair in self.held_out]

    def effect(self, lm: Any) -> list[float]:
        """Of every held-out question: log-likelihood per token of the answer that shows the behavior less the other's.

        The metric `log_odds` of the eval `preference`.
        """
        found: list[Any] = [score.values["log_odds"] for score in preference.score(lm, self.held_out)]
        if not all(map(math.isfinite, found)):
            raise DataError(
                f"preference on {len(found)} held-out questions: some log-odds are not finite. Expected numbers. Lower "
                "k or k_weights, or load the model in float32"
            )
        return found

    @cached_property
    def unsteered(self) -> list[float]:
        return self.effect(self.lm)

    def change(self, name: str) -> Callable[[Any], list[float]]:
        """Of any vector at the strength of the vector called `name`: what it adds to the effect of every question."""

        def measured(vector: Any) -> list[float]:
            before = self.unsteered  # now, not while the model is steered
            with vector.applied(self.lm, self.k(name)) as steered:
                after = self.effect(steered)
            return [b - a for a, b in zip(before, after, strict=True)]

        return measured

    def _fit(self, folder: Path) -> Any:
        """Save the three activation vectors, each added at every token; their lengths when they were found."""
        settings, train = self.given.settings, self.given.pairs.part("train")
        # The trained vectors are added at every token, so this one is too.
        means = replace(persona_vector(self.lm, train, "difference in means").at(self.block), mode="all")
        found = {"means": means}
        training = settings.vector_training.model_dump()
        like = VectorTraining(self.block, answer_tokens=settings.answer_tokens, seed=settings.seed, **training)
        for name, objective in ACTIVATIONS.items():
            if objective is not None:
                label = f"training the {name} vector"
                found[name] = trained_vector(self.lm, train, replace(like, objective=objective), label)
        for name, vector in found.items():
            (vector * (means.norm() / vector.norm())).save(folder / name)
        return {name: vector.norm() for name, vector in found.items()}


def _estimate(found: dict[str, Any]) -> Any:
    """An estimate as it was before it was written; None where it was no number."""
    if found.keys() != {"mean", "low", "high"}:
        return found
    return None if found["mean"] is None else Estimate(**found)
