"""A recipe's stages in order: pairs, task, fit, sweep, equal-kl, choose, merge, verify, report."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from weightsteer import progress
from weightsteer.data.contrast import ContrastDataset, load_pairs, split_pairs, write_pairs
from weightsteer.data.tasks import load_examples
from weightsteer.errors import DataError, StageError, WeightsteerError, report_problems
from weightsteer.evals import Given, needs_judge, with_items
from weightsteer.methods import Fit
from weightsteer.points import UNTUNED, Point, grid
from weightsteer.recipe import Recipe, find_plugin, load_behavior
from weightsteer.stage import (
    MANIFEST,
    command,
    discard,
    locked,
    read_manifest,
    run_stage,
    stage_digests,
    to_json,
    write_text,
    writing,
)
from weightsteer.task import Tuned, tune

STAGES = ("pairs", "task", "fit", "sweep", "equal-kl", "choose", "merge", "verify", "report")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    folder: Path
    report: Mapping[str, Any] | None
    """The content of report.json; None when the run was stopped before the report."""
    checkpoint: Path | None
    """The steered checkpoint; None when no strength qualified or none was asked for."""
    reused: bool = False
    """Every stage was there already."""


def run(recipe: Recipe, out: str | Path | None = None, *, until: str = STAGES[-1]) -> Outcome:
    """Run all stages of a recipe up to `until` into `out` (default: checkpoints/<name>), skipping finished ones."""
    if until not in STAGES:
        raise StageError(f"--until {until}: no such stage. Expected one of {', '.join(STAGES)}")
    out = Path(out) if out is not None else default_folder(recipe)
    with locked(out), writing(out):
        return _Run(recipe, out, until).go()


def default_folder(recipe: Recipe) -> Path:
    """checkpoints/<recipe name> below the current folder."""
    return Path("checkpoints") / recipe.name


def status(recipe: Recipe, out: str | Path | None = None) -> list[tuple[str, int, int]]:
    """(stage, finished parts, all parts) of every stage of a recipe; reads manifests only, loads no model."""
    out = Path(out) if out is not None else default_folder(recipe)
    parts: dict[str, list[Path]] = {stage: [] for stage in STAGES}
    parts["pairs"] = [out / "pairs"]
    if recipe.task is not None and recipe.task.model is None:
        parts["task"] = [out / "task" / "adapter"]
    fitted: dict[str, dict[int | None, Any]] = {}
    for settings in recipe.methods:
        plugin = find_plugin("methods", settings.name)
        seeds = seeds_of(recipe, plugin)
        fitted[settings.label] = dict.fromkeys(seeds)
        written = getattr(plugin, "WRITES", ())
        parts["fit"] += [seed_folder(recipe, out, seed) / settings.label / name for seed in seeds for name in written]
    parts["sweep"] = [out / "evals" / e.label / point.path for e in recipe.evals for point in grid(recipe, fitted)]
    if recipe.equal_kl is not None:
        parts["equal-kl"] = [out / "equal-kl"]
    parts["report"] = [out / "report"]
    done = [(stage, sum((p / MANIFEST).is_file() for p in found), len(found)) for stage, found in parts.items()]
    merged = (out / "merged" / "weightsteer.json").is_file()
    asked = int(recipe.released is not None)
    return [(s, int(merged), asked) if s == "merge" else (s, n, of) for s, n, of in done if of or s == "merge"]


def seeds_of(recipe: Recipe, plugin: Any) -> tuple[int | None, ...]:
    """Training seeds of a method; (None,) when there is one vector only."""
    return recipe.seeds if getattr(plugin, "SEEDED", False) and recipe.repeats > 1 else (None,)


def seed_folder(recipe: Recipe, out: Path, seed: int | None) -> Path:
    """Where the vectors of one training seed lie: those of the first directly in the run's folder."""
    return out if seed in (None, recipe.seed) else out / f"seed={seed}"


def load_inputs(recipe: Recipe) -> ContrastDataset:
    """The pairs of a recipe, when nothing that later stages read is missing; all that is, is named in one error.

    Where the pairs are still to be elicited, there are none yet and only the rest is checked.
    """
    from weightsteer.models.reference import locate

    elicited = recipe.pairs.elicit is not None
    pairs = ContrastDataset(recipe.behavior, ()) if elicited else load_pairs(recipe)
    given = Given(pairs, other_pairs(recipe), load_behavior(recipe))
    checks = [partial(locate, recipe.model.source)]
    if not elicited:
        checks += [partial(_read_items, e, given) for e in recipe.evals]
        methods = [(m, find_plugin("methods", m.name)) for m in recipe.methods]
        checks += [partial(plugin.check, m, recipe, pairs) for m, plugin in methods if hasattr(plugin, "check")]
    if recipe.task is not None and recipe.task.model is None:
        checks.append(partial(load_examples, recipe.task, recipe.seed))
    errors = []
    for check in checks:
        try:
            check()
        except WeightsteerError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    report_problems(DataError, f"recipe {recipe.name}", [str(error) for error in errors])
    return pairs


def other_pairs(recipe: Recipe) -> dict[str, ContrastDataset]:
    """Behavior -> its pairs, of the methods that are fitted on another behavior than the recipe's."""
    from weightsteer.methods.weights import Settings, own_pairs

    named = [m for m in recipe.methods if isinstance(m, Settings) and m.behavior is not None]
    return {m.behavior: own_pairs(m, recipe, None) for m in named if m.behavior is not None}


def _read_items(settings: Any, given: Given) -> Any:
    return find_plugin("evals", settings.name).read_items(with_items(settings), given)


class _Run:
    """One run: what later stages need of earlier ones, made when first needed."""

    def __init__(self, recipe: Recipe, out: Path, until: str) -> None:
        from weightsteer.models.reference import resolve

        self.recipe, self.out, self.until = recipe, out, STAGES.index(until)
        self.pairs: ContrastDataset = load_inputs(recipe)
        self.ref = resolve(recipe.model.source, recipe.model.revision)
        self.seconds: list[dict[str, Any]] = []
        self.fitted: dict[str, dict[int | None, Any]] = {}

    @cached_property
    def lm(self) -> Any:
        from weightsteer.models.language_model import load_model

        return load_model(self.recipe.model)

    @cached_property
    def judge(self) -> Any:
        """Who rates; opened only where something is rated."""
        from weightsteer.judge import open_judge

        return open_judge(self.recipe.judge, self.recipe.model)

    @cached_property
    def given(self) -> Given:
        """What the evals get."""
        judged = any(needs_judge(settings) for settings in self.recipe.evals)
        return Given(self.pairs, other_pairs(self.recipe), load_behavior(self.recipe), self.judge if judged else None)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the report of a finished run was made from."""
        from weightsteer.models.language_model import compute_dtype

        return {
            "recipe": self.recipe.dump(),
            "model": self.ref.fingerprint,
            "dtype": str(compute_dtype(self.recipe.model.dtype)),
            "pairs": self.pairs.digest,
        }

    def go(self) -> Outcome:
        if self.recipe.pairs.elicit is not None:
            self._timed("pairs", self._elicit)
        finished = self._finished()
        if finished:
            return finished
        if self.given.judge is not None:
            from weightsteer.judge.agreement import check_judge

            check_judge(self.given.judge)
        if not (self.out / "recipe.yaml").exists():
            self._write_recipe(self.out)
        outcome = self._stages()
        self._write_recipe(self.out)  # only now is all that lies there made from it
        return outcome

    def _write_recipe(self, folder: Path) -> None:
        write_text(folder / "recipe.yaml", yaml.safe_dump(self.recipe.dump(), sort_keys=False, allow_unicode=True))

    def _stages(self) -> Outcome:
        start = time.monotonic()
        if self.recipe.pairs.elicit is None:
            self._timed("pairs", self._pairs)
        if not self._wants("task"):
            return Outcome(self.out, None, None)
        self._check_release()
        tuned = Tuned(self.ref, self.lm)
        if self.recipe.task is not None:
            tuned = self._timed("task", lambda: tune(self.recipe, self.ref, self.out))
        if not self._wants("fit"):
            return Outcome(self.out, None, None)
        self._timed("fit", lambda: self._fit(tuned))
        if not self._wants("sweep"):
            return Outcome(self.out, None, None)
        results = self._timed("sweep", lambda: self._sweep(tuned))
        compared = None
        if self.recipe.equal_kl is not None and self._wants("equal-kl"):
            compared = self._timed("equal-kl", lambda: self._compare(tuned))
        choice = self._choice(results)
        released, merged = None, self.out / "merged"
        if (choice is None or choice["k"] is None) and merged.exists():
            reason = choice["reason"] if choice else "it has no choose"
            raise StageError(
                f"{merged}: holds a checkpoint, but this recipe merges none ({reason})\nExpected no checkpoint. Choose "
                "another --out, or delete this folder"
            )
        if choice and choice["k"] is not None and self._wants("merge"):
            vector = next(iter(self.fitted[choice["method"]].values()))
            released = self._timed("merge", lambda: self._merge(tuned, vector, choice["k"]))
            if self._wants("verify"):
                released |= self._timed("verify", lambda: self._verify(tuned, vector, choice["k"]))
        if not self._wants("report"):
            return Outcome(self.out, None, self._checkpoint(released))
        report = self._report(tuned, results, choice, released, compared, time.monotonic() - start)
        return Outcome(self.out, report, self._checkpoint(released))

    def _check_release(self) -> None:
        """A RecipeError, before anything is trained, where what is to be merged fits in no checkpoint of the model."""
        labels = [label for label in (self.recipe.released,) if label is not None]
        for label in labels:  # which grows: what is merged may be made of other methods
            settings = self.recipe.method(label)
            made_of = getattr(settings, "of", ())
            labels += [made_of] if isinstance(made_of, str) else made_of
            plugin = find_plugin("methods", settings.name)
            if hasattr(plugin, "check_release"):
                plugin.check_release(settings, self.lm.network)

    def _wants(self, stage: str) -> bool:
        return STAGES.index(stage) <= self.until

    def _timed(self, stage: str, work: Any) -> Any:
        progress.say(f"[{STAGES.index(stage) + 1}/{len(STAGES)}] {stage}")
        start = time.monotonic()
        result = work()
        self.seconds.append({"name": stage, "seconds": round(time.monotonic() - start, 1)})
        return result

    def _finished(self) -> Outcome | None:
        """The outcome of a run whose report, and every stage behind it, is there already."""
        if not self._wants("report"):
            return None
        try:
            manifest = read_manifest(self.out / "report")
        except StageError:
            manifest = None
        if manifest is None or manifest["inputs"].get("run") != to_json(self.inputs):
            return None
        whole = (self.out / "report" / "report.json").is_file()
        if not whole or manifest["inputs"]["stages"] != stage_digests(self.out):
            return None
        report = json.loads((self.out / "report" / "report.json").read_text(encoding="utf-8"))
        return Outcome(self.out, report, self._checkpoint(report.get("merged")), reused=True)

    def _checkpoint(self, released: Mapping[str, Any] | None) -> Path | None:
        return self.out / "merged" if released else None

    def _pairs(self) -> None:
        inputs = {"pairs": self.pairs.digest, "behavior": self.recipe.behavior}
        run_stage(self.out / "pairs", inputs, lambda path: write_pairs(self.pairs, path / "pairs.jsonl"))

    def _elicit(self) -> None:
        """Sample the pairs from the model, and check what could not be checked before they were there."""
        from weightsteer.data.elicit import elicit
        from weightsteer.judge.agreement import check_judge

        recipe, behavior = self.recipe, load_behavior(self.recipe)
        assert recipe.pairs.elicit is not None
        check_judge(self.judge)
        found = elicit(behavior, self.lm, recipe.pairs.elicit, self.judge, recipe.seed, self.out / "elicited")
        self.pairs = ContrastDataset(recipe.behavior, split_pairs(found, recipe.pairs, recipe.seed), "elicited")
        for settings in recipe.methods:
            plugin = find_plugin("methods", settings.name)
            if hasattr(plugin, "check"):
                plugin.check(settings, recipe, self.pairs)
        self._pairs()

    def _fit(self, tuned: Tuned) -> None:
        """The vector of every method at each of its training seeds."""
        for settings in self.recipe.methods:
            plugin = find_plugin("methods", settings.name)
            found = {}
            for seed in seeds_of(self.recipe, plugin):
                earlier = {label: vectors.get(seed, vectors.get(None)) for label, vectors in self.fitted.items()}
                fit = Fit(
                    recipe=self.recipe,
                    pairs=self.pairs,
                    lm=self.lm,
                    out=seed_folder(self.recipe, self.out, seed),
                    seed=self.recipe.seed if seed is None else seed,
                    task=tuned.task,
                    examples=tuned.examples,
                    vectors=earlier,
                )
                found[seed] = plugin.fit(settings, fit)
                self._say_fitted(settings.label, fit.folder(settings))
            self.fitted[settings.label] = found

    def _say_fitted(self, label: str, folder: Path) -> None:
        """How the two sides of a trained vector relate, as soon as it is known."""
        path = folder / "vector" / "diagnostics.json"
        if path.is_file():
            sides = json.loads(path.read_text(encoding="utf-8"))
            progress.say(
                f"      {label}: cosine(τ⁺, −τ⁻) {sides['cosine']:.2f}, norm ratio {sides['norm_ratio']:.2f}, "
                f"drift ratio {sides['drift_ratio']:.2f}"
            )

    def _sweep(self, tuned: Tuned) -> list[Any]:
        from weightsteer.sweep import run_cells, run_sweep

        results = run_sweep(self.recipe, self.given, tuned.lm, self.fitted, self.out)
        if self.recipe.task is not None:
            results += run_cells(self.recipe, self.given, self.lm, Point(UNTUNED), self.out)
        return results

    def _choice(self, results: Any) -> dict[str, Any] | None:
        from weightsteer.sweep import choose_k

        if self.recipe.merge_k is not None:
            return {"k": self.recipe.merge_k, "method": self.recipe.released, "fixed": True}
        if self.recipe.choose is None:
            return None
        choice = choose_k(results, self.recipe.choose)
        progress.say(f"[{STAGES.index('choose') + 1}/{len(STAGES)}] choose: {choice.reason}")
        return to_json(choice)

    def _compare(self, tuned: Tuned) -> dict[str, Any]:
        from weightsteer.equal_kl import compare_at_equal_kl

        return compare_at_equal_kl(self.recipe, self.given, tuned.lm, self.fitted, self.out)

    def _merge(self, tuned: Tuned, vector: Any, k: float) -> dict[str, Any]:
        from weightsteer.merging.merge import merge

        result = merge(tuned.ref, [(vector, k)], self.out / "merged", any_base=self.recipe.task is not None)
        self._write_recipe(self.out / "merged")
        applied = result.provenance.applied
        return {
            "path": str(self.out / "merged"),
            "dtype": result.provenance.dtype or "that of the base",
            "applied_fraction": applied["share"],
            "moved_fraction": applied["moved"],
        }

    def _verify(self, tuned: Tuned, vector: Any, k: float) -> dict[str, Any]:
        """Recompute the checkpoint, then load it as a user would: its logits, and every eval, as merged."""
        from weightsteer.merging.verify import verify
        from weightsteer.models.language_model import load_model
        from weightsteer.release import compare_logits
        from weightsteer.sweep import run_cells

        merged, lm = self.out / "merged", tuned.lm
        verification = verify(merged, base=tuned.ref.path)
        if verification.outcome != "ok":
            raise StageError(
                "\n  ".join([f"{merged}: verification says {verification.outcome}", *verification.problems])
                + "\nDelete the folder and run again"
            )
        logits = self.out / "checks" / "logits"
        inputs = {"vector": vector.digest, "k": k, "model": tuned.ref.fingerprint, "dtype": str(lm.network.dtype)}
        run_stage(logits, inputs, lambda path: compare_logits(self.recipe, lm, vector, k, merged, path))
        released = load_model(self.recipe.model.model_copy(update={"source": str(merged), "revision": None}))
        results = run_cells(self.recipe, self.given, released, Point("merged", k), self.out)
        return {
            "verified": verification.outcome,
            "logits": json.loads((logits / "logits.json").read_text(encoding="utf-8")),
            "results": results,
        }

    def _agreement(self) -> dict[str, Any] | None:
        """How far the judge of a stance agrees with labels given by hand, where the run was judged so."""
        from weightsteer.judge.agreement import judge_agreement

        judged = self.recipe.pairs.elicit is not None or self.given.judge is not None
        behavior = load_behavior(self.recipe)
        if not judged or behavior.name != "sycophancy" or behavior.rubric is None:  # the only labels there are
            return None
        folder, rubric = self.out / "checks" / "judge", behavior.rubric
        inputs = {"judge": self.judge.digest, "rubric": rubric}
        run_stage(
            folder,
            inputs,
            lambda path: write_text(path / "agreement.json", json.dumps(judge_agreement(self.judge, rubric), indent=1)),
        )
        return json.loads((folder / "agreement.json").read_text(encoding="utf-8"))

    def _report(
        self, tuned: Tuned, results: Any, choice: Any, released: Any, compared: Any, seconds: float
    ) -> dict[str, Any]:
        from weightsteer.report import write_report
        from weightsteer.summary import Found, summarize

        trusted = self._agreement()
        found = Found(self.pairs, tuned.lm, self.fitted, results, choice, released, compared, trusted, self.out)
        report = to_json(summarize(self.recipe, found) | {"stages": self.seconds})
        report["environment"] |= {"command": command(), "seconds": round(seconds, 1)}
        folder = self.out / "report"
        discard(folder)  # a view of the other stages, made anew when one of them is
        inputs = {"run": self.inputs, "stages": stage_digests(self.out)}
        run_stage(folder, inputs, lambda path: write_report(report, path))
        return report
