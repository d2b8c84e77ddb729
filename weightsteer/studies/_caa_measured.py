"""The stages of the study `caa`: each measures one thing for all behaviors, and is skipped when it is finished."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from weightsteer import progress
from weightsteer.errors import AdapterError, DataError
from weightsteer.evals.ab import Item
from weightsteer.stage import digest, run_stage, write_text
from weightsteer.studies.caa import BehaviorSet, Settings

SIDES = ("positive", "negative")
SYSTEMS = ("none", *SIDES)
# Strengths of Tables 3, 4 and 10, of side effects and of whatever costs more than a few columns.
TABLE_KS = (-1.0, 0.0, 1.0)
RESULT = "result.json"
# Texts whose mean activation is what all texts share: it is subtracted before a token's projection is drawn.
ORIGIN_TEXTS = 8


@dataclass(frozen=True)
class Measured:
    """What all stages found, by behavior where nothing else is said; lists over questions are in their order."""

    blocks: Mapping[str, Any]
    """`effects`: behavior -> block -> p(match) at +1 less at −1 of each held-out question; `chosen`; `of`, how many."""
    answers: Mapping[str, Any]
    """Behavior -> system prompt -> `p`: strength -> p(match) of each test question; `mass`: strength -> mean."""
    views: Mapping[str, Any]
    """`separation`, `planes`, `cosines`, `transfer` (block -> effects at it)."""
    tuned: Mapping[str, Any] | None
    """Behavior -> side -> strength -> p(match) of each test question."""
    shift: Mapping[str, Any] | None
    """Behavior -> block -> cosine with the shift of the weight vector."""
    side_effects: Mapping[str, Any] | None
    """Benchmark -> behavior -> strength -> p(right letter) of each question."""
    open_ended: Mapping[str, Any] | None
    """Behavior -> strength -> rating of each answer, 0 to 10, None where the judge gave none."""


@dataclass
class Bench:
    """The model, the questions and the folder that the stages share."""

    settings: Settings
    sets: Sequence[BehaviorSet]
    benchmarks: Mapping[str, Sequence[Item]]
    out: Path
    chosen: dict[str, int] = field(default_factory=dict, init=False)
    """Behavior -> the block that its vector is added at; known after the sweep."""

    def measure(self) -> Measured:
        """Every stage, in order."""
        settings = self.settings
        self.stage("vectors", ("mode",), self.make_vectors)
        blocks = self.stage("blocks", ("mode", "stride", "block"), self.sweep_blocks)
        self.chosen = blocks["chosen"]
        at = {"mode": settings.mode, "chosen": self.chosen}
        prompts = [[s.behavior.positive, s.behavior.negative] for s in self.sets]
        answers = self.stage("answers", ("k",), self.answer_letters, prompts=prompts, **at)
        views = self.stage("views", ("stride", "view_pairs"), self.view, **at)
        self.stage("heat", (), self.write_pages, titles=[s.behavior.shown for s in self.sets], **at)
        tuned = shift = None
        if settings.fine_tune is not None:
            for found in self.sets:
                self.fine_tune(found)
            tuned = self.stage("tuned-answers", ("fine_tune",), self.answer_tuned, **at)
            shift = self.stage("shift", ("fine_tune",), self.measure_shifts, **at)
        costs = opened = None
        if self.benchmarks:
            asked = {name: [asdict(item) for item in items] for name, items in self.benchmarks.items()}
            costs = self.stage("side-effects", (), self.measure_costs, questions=digest(asked), **at)
        if settings.judge is not None:
            rated = digest([[s.behavior.rubric, s.open_ended] for s in self.sets])
            opened = self.stage("open-ended", ("max_new_tokens", "judge"), self.rate_open, asked=rated, **at)
        return Measured(blocks, answers, views, tuned, shift, costs, opened)

    def stage(self, name: str, keys: Sequence[str], work: Callable[[Path], Any], **inputs: Any) -> Any:
        """What `work(folder)` gives, written as JSON; `keys` are the settings that it depends on."""
        said = self.settings.model_dump(mode="json")
        inputs = {**self.identity, **{key: said[key] for key in keys}, **inputs}

        def write(folder: Path) -> None:
            progress.say(f"{name} ...")
            write_text(folder / RESULT, json.dumps(work(folder), allow_nan=False))

        run_stage(self.out / name, inputs, write)
        return json.loads((self.out / name / RESULT).read_text(encoding="utf-8"))

    @cached_property
    def identity(self) -> dict[str, Any]:
        from weightsteer.models.language_model import compute_dtype

        model = self.settings.model
        return {
            "model": self.ref.fingerprint,
            "dtype": str(compute_dtype(model.dtype)),
            "system": model.system,
            "seed": self.settings.seed,
            "questions": digest([[s.behavior.name, s.pairs, s.held_out, s.test] for s in self.sets]),
        }

    @cached_property
    def ref(self) -> Any:
        from weightsteer.models.reference import resolve

        return resolve(self.settings.model.source, self.settings.model.revision)

    @cached_property
    def lm(self) -> Any:
        from weightsteer.models.language_model import load_model

        return load_model(self.settings.model)

    @cached_property
    def training_lm(self) -> Any:
        from weightsteer.weights.finetune import load_for_training, resolved

        assert self.settings.fine_tune is not None
        return load_for_training(self.settings.model, resolved(self.settings.fine_tune))

    @cached_property
    def vectors(self) -> dict[str, Any]:
        """Behavior -> its vector at all blocks, of the behaviors' common norms."""
        from weightsteer.activations.vector import ActivationVector

        return {found.behavior.name: ActivationVector.load(self.out / "vectors" / found.behavior.name)
                for found in self.sets}  # fmt: skip

    def at_chosen(self, found: BehaviorSet) -> Any:
        return self.vectors[found.behavior.name].at(self.chosen[found.behavior.name])

    def make_vectors(self, folder: Path) -> Any:
        """Norms before they are made common, by behavior and block."""
        from weightsteer.activations.makers import caa_vector, with_common_norms

        raw = {}
        for found in self.sets:
            vector = caa_vector(self.lm, as_pairs(found, found.pairs), f"{found.behavior.name}: vector")
            raw[found.behavior.name] = replace(vector, mode=self.settings.mode)
        for name, vector in with_common_norms(raw).items():
            vector.save(folder / name)
        return {name: [v.at(block).norm() for block in v.directions] for name, v in raw.items()}

    def sweep_blocks(self, folder: Path) -> Any:
        from weightsteer.activations.views import effect_by_block

        effects: dict[str, dict[int, list[float]]] = {}
        for found in self.sets:
            name, vector = found.behavior.name, self.vectors[found.behavior.name]
            tried = self.tried(vector, [] if self.settings.block is None else [self.settings.block])
            rows = effect_by_block(self.lm, self.questions(found, found.held_out), [vector.at(b) for b in tried],
                                   label=f"{name}: block sweep")  # fmt: skip
            effects[name] = dict(zip(tried, listed(rows, f"{name}, block sweep"), strict=True))
        chosen = {
            name: self.settings.block if self.settings.block is not None else max(by, key=lambda b: sum(by[b]))
            for name, by in effects.items()
        }
        return {"effects": effects, "chosen": chosen, "of": len(self.vectors[next(iter(effects))].directions)}

    def answer_letters(self, folder: Path) -> Any:
        result: dict[str, Any] = {}
        for found in self.sets:
            prompts = dict(
                zip(SYSTEMS, (self.lm.system, found.behavior.positive, found.behavior.negative), strict=True)
            )
            result[found.behavior.name] = {
                system: self.score(self.lm.with_system(text), found, f"{found.behavior.name}, system prompt {system}")
                for system, text in prompts.items()
            }
        return result

    def score(self, lm: Any, found: BehaviorSet, what: str, ks: Sequence[float] | None = None) -> dict[str, Any]:
        """Strength -> p(match) of each test question, and the mean probability of both answers together."""
        from weightsteer.activations.letters import score_many
        from weightsteer.activations.views import first_of_two

        ks = self.settings.strengths if ks is None else ks
        [log_p] = score_many(lm, self.questions(found, found.test, lm), [self.at_chosen(found)], ks, label=what)
        mass = listed(log_p.exp().sum(-1).mean(-1), what)
        return {
            "p": dict(zip(map(_key, ks), listed(first_of_two(log_p), what), strict=True)),
            "mass": dict(zip(map(_key, ks), mass, strict=True)),
        }

    def view(self, folder: Path) -> Any:
        from weightsteer.activations.views import block_cosines, effect_by_block, moved_to

        result: dict[str, Any] = {"separation": {}, "planes": {}, "cosines": {}, "transfer": {}}
        for found in self.sets:
            name, vector = found.behavior.name, self.vectors[found.behavior.name]
            block = self.chosen[name]
            result["separation"][name], result["planes"][name] = self.components(found, block)
            result["cosines"][name] = [[round(c, 5) for c in row] for row in block_cosines(vector).tolist()]
            tried = self.tried(vector, [block])
            rows = effect_by_block(self.lm, self.questions(found, found.held_out), moved_to(vector, block, tried),
                                   label=f"{name}: transfer")  # fmt: skip
            result["transfer"][name] = dict(zip(tried, listed(rows, f"{name}, transfer"), strict=True))
        return result

    def components(self, found: BehaviorSet, block: int) -> tuple[Any, Any]:
        """Both separations by block; the planes of four blocks spread over the depth, the vector's own among them."""
        from weightsteer.activations.capture import answer_token_examples
        from weightsteer.activations.views import components_by_block

        items = found.pairs[: self.settings.view_pairs]
        sides = answer_token_examples(self.lm, as_pairs(found, items).pairs)
        labels = {
            "behavior": ["matching"] * len(items) + ["other"] * len(items),
            "answer": [item.match for item in items] + [item.other for item in items],
        }
        views = components_by_block(
            self.lm, [*sides[0], *sides[1]], labels, limit=2 * len(items), label=f"{found.behavior.name}: components"
        )
        shown = sorted({0, len(views) // 3, block, len(views) - 1})
        planes = [{"block": b, "points": views[b].points.tolist(), "shares": views[b].shares} for b in shown]
        return [dict(view.separation) for view in views], {"labels": labels, "blocks": planes}

    def write_pages(self, folder: Path) -> Any:
        """heat-NAME.html for each behavior: its first test question with the matching answer."""
        from weightsteer.activations.capture import Example, capture
        from weightsteer.activations.projection import project, write_page

        texts = [q.ids for found in self.sets for q in self.questions(found, found.held_out[:ORIGIN_TEXTS])]
        origin = capture(self.lm, [Example(ids, (range(len(ids)),)) for ids in texts], "heat: mean activation").mean[0]
        pages = {}
        for found in self.sets:
            name, [item, *_] = found.behavior.name, found.test
            text = self.lm.chat(item.question) + answer_text(item, item.match)
            shown = project(self.lm, text, self.vectors[name], title=found.behavior.shown, origin=origin)
            note = f"The study steers at block {self.chosen[name]}. The mean over {len(texts)} texts is subtracted."
            pages[name] = f"heat-{name}.html"
            write_page(folder / pages[name], [shown], f"Where {found.behavior.shown} is in a text", note)
        return pages

    def fine_tune(self, found: BehaviorSet) -> None:
        """A LoRA of each side on the letters of the very questions that the vector is made from."""
        from weightsteer.data.contrast import check_tokens
        from weightsteer.weights.finetune import resolved, train_adapter, training_inputs

        assert self.settings.fine_tune is not None
        settings, pairs = resolved(self.settings.fine_tune), as_pairs(found, found.pairs)
        for side in SIDES:
            inputs = {**self.identity, "questions": pairs.digest, "side": side, "settings": training_inputs(settings)}

            def train(folder: Path, side: Any = side) -> None:
                check_tokens(pairs, self.training_lm, settings.max_tokens)
                rate, label = settings.learning_rates[0], f"{found.behavior.name}: training {side}"
                train_adapter(
                    self.training_lm, pairs.side(side), (), settings, rate, self.settings.seed, folder, label=label
                )

            run_stage(self.out / "tuned" / found.behavior.name / side, inputs, train)

    def side(self, found: BehaviorSet, side: str) -> Any:
        """What the fine-tune of one side changes, a WeightVector."""
        from weightsteer.weights.vector import WeightVector

        return WeightVector.load(self.out / "tuned" / found.behavior.name / side, base=self.ref.path)

    def answer_tuned(self, folder: Path) -> Any:
        result: dict[str, Any] = {}
        for found in self.sets:
            result[found.behavior.name] = {}
            for side in SIDES:
                with self.side(found, side).applied(self.lm, 1) as tuned:
                    scored = self.score(tuned, found, f"{found.behavior.name}, {side} fine-tune", TABLE_KS)
                result[found.behavior.name][side] = scored["p"]
        return result

    def measure_shifts(self, folder: Path) -> Any:
        from weightsteer.activations.capture import Example
        from weightsteer.activations.views import activation_shift, shift_cosines

        result = {}
        for found in self.sets:
            name, questions = found.behavior.name, self.questions(found, found.held_out)
            # Read where the letter is decided: the last token before it.
            texts = [Example(q.ids, (range(len(q.ids) - 1, len(q.ids)),)) for q in questions]
            weights = self.side(found, "positive") - self.side(found, "negative")
            shift = activation_shift(self.lm, weights, 1.0, texts, f"{name}: shift")
            result[name] = shift_cosines(self.vectors[name], shift)
        return result

    def measure_costs(self, folder: Path) -> Any:
        from weightsteer.activations.letters import encode_questions, score_many
        from weightsteer.activations.views import first_of_two

        result = {}
        for name, items in self.benchmarks.items():
            options = [(item.match, item.other) for item in items]
            questions = encode_questions(self.lm, [item.question for item in items], items[0].opening, options)
            vectors = [self.at_chosen(found) for found in self.sets]
            p = first_of_two(score_many(self.lm, questions, vectors, TABLE_KS, label=name))
            rows = {found.behavior.name: listed(row, name) for found, row in zip(self.sets, p, strict=True)}
            result[name] = {key: dict(zip(map(_key, TABLE_KS), row, strict=True)) for key, row in rows.items()}
        return result

    def rate_open(self, folder: Path) -> Any:
        """Ratings, and the answers themselves in answers.json."""
        from weightsteer.data.traits import fill_rubric
        from weightsteer.judge import open_judge
        from weightsteer.models.generate import generate

        assert self.settings.judge is not None
        judge = open_judge(self.settings.judge, self.settings.model)
        result: dict[str, Any] = {}
        said: dict[str, Any] = {}
        for found in self.sets:
            name, rubric = found.behavior.name, found.behavior.rubric
            result[name], said[name] = {}, {}
            for k in TABLE_KS if rubric else ():
                with self.at_chosen(found).applied(self.lm, k) as steered:
                    answers = generate(steered, found.open_ended, self.settings.max_new_tokens, label=f"{name}: open")
                asked = [fill_rubric(rubric, q, a) for q, a in zip(found.open_ended, answers, strict=True)]
                scores = [verdict.score for verdict in judge.rate(asked, "0-100", f"{name}: rating")]
                # The scale of the paper's tables has eleven steps; the judges here rate in 101.
                result[name][_key(k)] = [None if score is None else score / 10 for score in scores]
                said[name][_key(k)] = answers
        write_text(folder / "answers.json", json.dumps(said, ensure_ascii=False, indent=1))
        return result

    def questions(self, found: BehaviorSet, items: Sequence[Item], lm: Any = None) -> list[Any]:
        from weightsteer.activations.letters import encode_questions

        options = [(item.match, item.other) for item in items]
        return encode_questions(lm or self.lm, [item.question for item in items], found.opening, options)

    def tried(self, vector: Any, besides: Sequence[int]) -> list[int]:
        """The blocks of sweep and transfer."""
        missing = [block for block in besides if block not in vector.directions]
        if missing:
            raise AdapterError(
                f"block {missing[0]}: does not exist in {self.ref.source}, which has {len(vector.directions)} blocks. "
                f"Expected 0 to {len(vector.directions) - 1}"
            )
        return sorted({*list(vector.directions)[:: self.settings.stride], *besides})


def as_pairs(found: BehaviorSet, items: Sequence[Item]) -> Any:
    """The questions with both answers, as a vector is made from and a fine-tune trained on."""
    from weightsteer.data.contrast import ContrastDataset, ContrastPair

    pairs = [ContrastPair(i.id, i.question, answer_text(i, i.match), answer_text(i, i.other)) for i in items]
    return ContrastDataset(found.behavior.name, tuple(pairs))


def answer_text(item: Item, answer: str) -> str:
    """(A) for a letter, else the word."""
    return f"({answer})" if item.lettered else answer


def listed(values: Any, what: str) -> Any:
    """A tensor as lists; a DataError when a number in it is none."""
    if not values.isfinite().all():
        raise DataError(f"{what}: some probabilities are no numbers. Expected strengths that the model survives")
    return values.tolist()


def _key(k: float) -> str:
    return f"{k:g}"
