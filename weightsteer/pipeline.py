"""A recipe's stages in order: pairs, weights, baselines, sweep, choose, merge, verify, report."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from weightsteer import progress
from weightsteer.data.contrast import ContrastDataset, load_pairs, write_pairs
from weightsteer.errors import DataError, StageError, WeightsteerError, report_problems
from weightsteer.recipe import Recipe, find_plugin
from weightsteer.stage import (
    MANIFEST,
    digest,
    discard,
    locked,
    read_manifest,
    run_stage,
    to_json,
    write_text,
    writing,
)

STAGES = ("pairs", "weights", "baselines", "sweep", "choose", "merge", "verify", "report")


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
    methods = [m.name for m in recipe.methods]
    parts["pairs"] = [out / "pairs"]
    if {"weights", "finetuned"} & set(methods):
        parts["weights"] = [out / "weights" / name for name in ("positive", "negative", "vector")]
    parts["baselines"] = [out / "activations"] if "activations" in methods else []
    points = [("base", 0.0), *((name, k) for name in methods for k in recipe.strengths(name))]
    parts["sweep"] = [out / "evals" / e.name / name / f"k={k:g}" for e in recipe.evals for name, k in points]
    parts["report"] = [out / "report"]
    done = [(stage, sum((p / MANIFEST).is_file() for p in found), len(found)) for stage, found in parts.items()]
    merged = (out / "merged" / "weightsteer.json").is_file()
    asked = int(recipe.choose is not None or recipe.merge_k is not None)
    return [(s, int(merged), asked) if s == "merge" else (s, n, of) for s, n, of in done if of or s == "merge"]


def load_inputs(recipe: Recipe) -> ContrastDataset:
    """The pairs of a recipe, when nothing that later stages read is missing; all that is, is named in one error."""
    from weightsteer.models.reference import locate

    pairs = load_pairs(recipe)
    checks = [partial(locate, recipe.model.source)]
    checks += [partial(find_plugin("evals", e.name).read_items, e, pairs) for e in recipe.evals]
    methods = [find_plugin("methods", m.name) for m in recipe.methods]
    checks += [partial(method.check, recipe, pairs) for method in methods if hasattr(method, "check")]
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


class _Run:
    """One run: what later stages need of earlier ones, made when first needed."""

    def __init__(self, recipe: Recipe, out: Path, until: str) -> None:
        from weightsteer.models.reference import resolve

        self.recipe, self.out, self.until = recipe, out, STAGES.index(until)
        self.pairs: ContrastDataset = load_inputs(recipe)
        self.ref = resolve(recipe.model)
        self.seconds: list[dict[str, Any]] = []

    @cached_property
    def lm(self) -> Any:
        from weightsteer.models.language_model import load_model

        return load_model(self.recipe.model)

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
        finished = self._finished()
        if finished:
            return finished
        if not (self.out / "recipe.yaml").exists():
            self._write_recipe(self.out)
        outcome = self._stages()
        self._write_recipe(self.out)  # only now is all that lies there made from it
        return outcome

    def _write_recipe(self, folder: Path) -> None:
        write_text(folder / "recipe.yaml", yaml.safe_dump(self.recipe.dump(), sort_keys=False, allow_unicode=True))

    def _stages(self) -> Outcome:
        start = time.monotonic()
        self._timed("pairs", self._pairs)
        vectors: dict[str, Any] = {}
        if self._wants("weights") and {"weights", "finetuned"} & {m.name for m in self.recipe.methods}:
            self._timed("weights", self._weights)
        if self._wants("baselines"):
            vectors = self._timed("baselines", self._vectors)
        if not self._wants("sweep"):
            return Outcome(self.out, None, None)
        results = self._timed("sweep", lambda: self._sweep(vectors))
        choice = self._choice(results)
        released, merged = None, self.out / "merged"
        if (choice is None or choice["k"] is None) and merged.exists():
            reason = choice["reason"] if choice else "it has no choose"
            raise StageError(
                f"{merged}: holds a checkpoint, but this recipe merges none ({reason})\nExpected no checkpoint. Choose "
                "another --out, or delete this folder"
            )
        if choice and choice["k"] is not None and self._wants("merge"):
            released = self._timed("merge", lambda: self._merge(vectors["weights"], choice["k"]))
            if self._wants("verify"):
                released |= self._timed("verify", lambda: self._verify(vectors["weights"], choice["k"]))
        if not self._wants("report"):
            return Outcome(self.out, None, self._checkpoint(released))
        report = self._report(vectors, results, choice, released, time.monotonic() - start)
        return Outcome(self.out, report, self._checkpoint(released))

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

    def _weights(self) -> None:
        from weightsteer.weights.finetune import fit

        vector = fit(self.recipe, self.pairs, self.out / "weights")
        sides = json.loads((self.out / "weights" / "vector" / "diagnostics.json").read_text(encoding="utf-8"))
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in vector.shares_by_kind().items() if share)
        progress.say(
            f"      norm {vector.norm():.3g} ({shares}); cosine(τ⁺, −τ⁻) {sides['cosine']:.2f}, norm ratio "
            f"{sides['norm_ratio']:.2f}, drift ratio {sides['drift_ratio']:.2f}"
        )

    def _vectors(self) -> dict[str, Any]:
        names = [m.name for m in self.recipe.methods]
        return {name: find_plugin("methods", name).fit(self.recipe, self.pairs, self.lm, self.out) for name in names}

    def _sweep(self, vectors: Mapping[str, Any]) -> Any:
        from weightsteer.sweep import run_sweep

        return run_sweep(self.recipe, self.pairs, self.lm, vectors, self.out)

    def _choice(self, results: Any) -> dict[str, Any] | None:
        from weightsteer.sweep import choose_k

        if self.recipe.merge_k is not None:
            return {"k": self.recipe.merge_k, "fixed": True}
        if self.recipe.choose is None:
            return None
        choice = choose_k(results, self.recipe.choose)
        progress.say(f"[{STAGES.index('choose') + 1}/{len(STAGES)}] choose: {choice.reason}")
        return to_json(choice)

    def _merge(self, vector: Any, k: float) -> dict[str, Any]:
        from weightsteer.merging.merge import merge

        result = merge(self.ref, [(vector, k)], self.out / "merged")
        self._write_recipe(self.out / "merged")
        applied = result.provenance.applied
        return {
            "path": str(self.out / "merged"),
            "dtype": result.provenance.dtype or "that of the base",
            "applied_fraction": applied["share"],
            "moved_fraction": applied["moved"],
        }

    def _verify(self, vector: Any, k: float) -> dict[str, Any]:
        """Recompute the checkpoint, then load it as a user would: its logits, and every eval, as merged."""
        from weightsteer.merging.verify import verify
        from weightsteer.release import compare_logits
        from weightsteer.sweep import run_cells

        merged = self.out / "merged"
        verification = verify(merged, base=self.ref.path)
        if verification.outcome != "ok":
            raise StageError(
                "\n  ".join([f"{merged}: verification says {verification.outcome}", *verification.problems])
                + "\nDelete the folder and run again"
            )
        logits = self.out / "checks" / "logits"
        inputs = {"vector": vector.digest, "k": k, "model": self.ref.fingerprint, "dtype": str(self.lm.network.dtype)}
        run_stage(logits, inputs, lambda path: compare_logits(self.recipe, self.lm, vector, k, merged, path))
        from weightsteer.models.language_model import load_model

        released = load_model(self.recipe.model.model_copy(update={"source": str(merged), "revision": None}))
        results = run_cells(self.recipe, self.pairs, released, ("merged", None, k), self.out)
        return {
            "verified": verification.outcome,
            "logits": json.loads((logits / "logits.json").read_text(encoding="utf-8")),
            "results": results,
        }

    def _report(
        self, vectors: Mapping[str, Any], results: Any, choice: Any, released: Any, seconds: float
    ) -> dict[str, Any]:
        from weightsteer.report import write_report
        from weightsteer.summary import summarize

        report = to_json(
            summarize(self.recipe, self.pairs, self.lm, vectors, results, choice, released, self.out)
            | {"stages": self.seconds}
        )
        report["environment"] |= {"command": _command(), "seconds": round(seconds, 1)}
        folder = self.out / "report"
        discard(folder)  # a view of the other stages, made anew when one of them is
        inputs = {"run": self.inputs, "stages": stage_digests(self.out)}
        run_stage(folder, inputs, lambda path: write_report(report, path))
        return report


def stage_digests(out: Path) -> dict[str, str]:
    """Every finished stage folder below `out` but the report, with the digest of what it was made from."""
    found = {}
    for path in sorted(out.rglob(MANIFEST)):
        name = str(path.parent.relative_to(out))
        if name != "report" and not any(part.startswith(".") for part in path.relative_to(out).parts):
            manifest = read_manifest(path.parent)
            found[name] = manifest["inputs_digest"] if manifest else ""
    provenance = out / "merged" / "weightsteer.json"
    if provenance.is_file():
        found["merged"] = digest(json.loads(provenance.read_text(encoding="utf-8")))
    return found


def _command() -> str:
    """The command line of this run, without the path of the program; from Python, a word that says so."""
    program = Path(sys.argv[0]).name
    return " ".join(["weightsteer", *sys.argv[1:]]) if program == "weightsteer" else "weightsteer.run (from Python)"
