"""The command line: parsing and printing only. Each verb is one public function."""

import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from weightsteer import __version__, progress
from weightsteer.errors import WeightsteerError

OK, NEGATIVE, BAD_INPUT, NOT_CHECKED, INTERRUPTED = 0, 1, 2, 3, 130
# What typer raises for a wrong command line; of the whole family it exports only BadParameter.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="weightsteer",
    help="Steer language models by arithmetic on their weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write.")]
MustOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Strength = Annotated[float, typer.Option("--k", help="Strength, in units of the stored vector.")]
AnyBase = Annotated[bool, typer.Option("--any-base", help="Allow a model other than the vector's base.")]


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """Import what the block names without looking for garbage, then or at the end of the program.

    Modules are hundreds of thousands of objects that stay; going through them takes a third of torch's time to come up.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def check(recipe: RecipePath, set: Set = [], out: Out = None, json: Json = False) -> None:  # noqa: B006
    """Check a recipe whole, and show its stages and which are done. Loads no model."""
    from weightsteer.pipeline import default_folder, load_inputs, status
    from weightsteer.recipe import StudySettings, load_experiment

    checked = load_experiment(recipe, set)
    if isinstance(checked, StudySettings):
        from weightsteer.studies import check_study

        told = check_study(checked)
        _print(json, {"recipe": checked.model_dump(mode="json")}, "\n  ".join([f"{recipe}: ok", *told]))
        return
    pairs = load_inputs(checked)
    stages = status(checked, out)
    lines = [f"{recipe}: ok. {len(pairs)} pairs, {len(checked.methods)} methods, {len(checked.evals)} evals"]
    lines += [f"  {stage:<10} {done}/{of}" for stage, done, of in stages]
    lines.append(f"  in {out or default_folder(checked)}")
    _print(json, {"recipe": checked.dump(), "pairs": len(pairs), "stages": stages}, "\n".join(lines))


@app.command()
def run(
    recipe: RecipePath,
    set: Set = [],  # noqa: B006
    out: Out = None,
    until: Annotated[str, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = "report",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run all stages of a recipe, skipping finished ones; ends with a table and the path of the report."""
    from weightsteer.pipeline import run
    from weightsteer.recipe import StudySettings, load_experiment

    loaded = load_experiment(recipe, set)
    if isinstance(loaded, StudySettings):
        _run_study(loaded, out, json, quiet)
        return
    with progress.display(quiet or json):
        outcome = run(loaded, out, until=until)
    if outcome.report is None:
        _print(json, {"folder": outcome.folder}, f"Stopped after {until}: {outcome.folder}")
        return
    from weightsteer.report import headline, summary_table

    text = [summary_table(outcome.report), "", headline(outcome.report), ""]
    text.append(f"Checkpoint  {outcome.checkpoint or 'none: no strength was chosen'}")
    text.append(f"Report      {outcome.folder / 'report' / 'report.html'}")
    if outcome.reused:
        text.append("Everything was done already.")
    _print(json, outcome.report, "\n".join(text))


def _run_study(settings: Any, out: Path | None, as_json: bool, quiet: bool) -> None:
    from weightsteer.report.document import as_json as told
    from weightsteer.report.document import in_terminal
    from weightsteer.studies import run_study

    with progress.display(quiet or as_json):
        found = run_study(settings, out)
    text = f"{in_terminal(found.document)}\n\nReport  {found.folder / 'report' / 'report.html'}"
    _print(as_json, told(found.document), text)


@app.command()
def elicit(
    trait: Annotated[Path, typer.Argument(metavar="TRAIT", help="A behavior file, or a persona-vectors trait file.")],
    out: MustOut,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Whose answers are sampled.")],
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="MODEL", help="Model that rates; by default the sampled one.")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option("--judge-url", metavar="URL", help="OpenAI-compatible server that serves the judge.")
    ] = None,
    questions: Annotated[int | None, typer.Option("--questions", min=1, help="Use at most so many questions.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers per question and system prompt.")] = 10,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 600,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of questions and answers.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make contrast pairs: a model's own answers under opposed system prompts, kept by a judge's rating."""
    from weightsteer.data.elicit import elicit, read_elicitation
    from weightsteer.data.pairing import elicitation_table
    from weightsteer.data.traits import read_behavior
    from weightsteer.judge import open_judge
    from weightsteer.models.language_model import load_model
    from weightsteer.recipe import ElicitPart, JudgePart, ModelPart

    behavior, part = read_behavior(trait), ModelPart(source=model)
    asked = ElicitPart(questions=questions, samples=samples, max_new_tokens=max_new_tokens)
    rater = open_judge(JudgePart(kind="server" if judge_url else "local", model=judge, url=judge_url), part)
    with progress.display(quiet or json):
        pairs = elicit(behavior, load_model(part), asked, rater, seed, out)
    counts = read_elicitation(out)
    text = f"{elicitation_table(counts['sides'])}\n{out / 'pairs' / 'pairs.jsonl'}: {len(pairs)} pairs"
    _print(json, counts, text)


@app.command()
def combine(
    terms: Annotated[list[str], typer.Argument(metavar="ADAPTER=WEIGHT...", help="Adapters, vectors or checkpoints.")],
    out: MustOut,
    base: Annotated[Path | None, typer.Option("--base", metavar="MODEL", help="The model they are changes of.")] = None,
    json: Json = False,
) -> None:
    """Weighted sum of adapters, vectors or checkpoints as one vector; POSITIVE=1 NEGATIVE=-1 is the contrast."""
    with _imports():
        from weightsteer.weights.combine import combine

    vector = combine([_term(term, "ADAPTER=WEIGHT") for term in terms], base, out)
    _print(json, _describe_vector(vector), f"{out}: {len(vector.entries)} parameters, norm {vector.norm():.4g}")


@app.command()
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Model to change; may be task-tuned.")],
    vectors: Annotated[list[str], typer.Argument(metavar="VECTOR[=K]...", help="Vectors or adapters to add.")],
    out: MustOut,
    k: Annotated[float, typer.Option("--k", help="Strength of the vectors that name none.")] = 1.0,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="TASK", help="Fold this adapter in first.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Stored dtype; the base's own by default.")] = None,
    depth: Annotated[
        str | None, typer.Option("--depth", metavar="ALPHA,BETA", help="Block l of L takes alpha + beta*l/(L-1).")
    ] = None,
    module: Annotated[
        list[str], typer.Option("--module", metavar="PART=FACTOR", help="Scale parameters with PART in their name.")
    ] = [],  # noqa: B006
    any_base: AnyBase = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a standalone checkpoint, rounded once."""
    with _imports():
        from weightsteer.merging.merge import merge
        from weightsteer.models.reference import resolve
        from weightsteer.weights.vector import WeightVector

    with progress.display(quiet or json):
        ref = resolve(base)
        terms = [_term(v, "VECTOR=K") if _has_weight(v) else (v, k) for v in vectors]
        loaded = [(WeightVector.load(path, None if any_base else ref.path), strength) for path, strength in terms]
        task = None if adapter is None else WeightVector.load(adapter, ref.path)
        scale = _scale(depth, module)
        result = merge(ref, loaded, out, adapter=task, scale=scale, dtype=dtype, any_base=any_base)
    applied = result.provenance.applied
    text = f"{out}: {result.changed} of {result.tensors} tensors changed, {result.size_bytes / 1e6:.0f} MB"
    _print(json, result, f"{text}\nApplied: {_plain(applied)}")


@app.command()
def export(
    vector: Annotated[Path, typer.Argument(metavar="VECTOR", help="Vector or adapter.")],
    out: MustOut,
    k: Strength = 1.0,
    rank: Annotated[int | None, typer.Option("--rank", help="One that vLLM accepts; the least that fits.")] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Needed for dense entries.")] = None,
    json: Json = False,
) -> None:
    """Write a plain adapter with k folded in, of a rank that vLLM serves."""
    from weightsteer.models.reference import resolve
    from weightsteer.weights.export import export
    from weightsteer.weights.vector import WeightVector

    folder = None if base is None else resolve(base).path
    result = export(WeightVector.load(vector, folder), k, out, rank, folder)
    _print(json, result, f"{out}: rank {result.rank}, {result.retained:.4%} of the squared norm kept")


@app.command()
def compress(
    vector: Annotated[Path, typer.Argument(metavar="VECTOR", help="Vector or adapter.")],
    out: MustOut,
    rank: Annotated[int | None, typer.Option("--rank", help="Rank to keep.")] = None,
    energy: Annotated[float | None, typer.Option("--energy", help="Share of the squared norm to keep.")] = None,
    density: Annotated[float | None, typer.Option("--density", help="Share of elements to keep, by size.")] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Its base, where it is needed.")] = None,
    json: Json = False,
) -> None:
    """Write a smaller vector: of lower rank, or with its smallest elements dropped."""
    from weightsteer.models.reference import resolve
    from weightsteer.weights.vector import WeightVector

    if sum(option is not None for option in (rank, energy, density)) != 1:
        raise WeightsteerError("compress: give exactly one of --rank, --energy and --density")
    loaded = WeightVector.load(vector, None if base is None else resolve(base).path)
    smaller = loaded.sparsify(density) if density is not None else loaded.compress(rank, energy)[0]
    smaller.save(out)
    kept = smaller.norm() ** 2 / loaded.norm() ** 2
    _print(
        json, {"retained": kept, "rank": smaller.rank}, f"{out}: rank {smaller.rank}, {kept:.4%} of the squared norm"
    )


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A merged checkpoint.")],
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Where its base lies now.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recompute what a checkpoint should hold. Exit code 0: ok, 1: failed, 3: could not be checked."""
    with _imports():
        from weightsteer.merging.verify import verify
        from weightsteer.models.reference import resolve

    with progress.display(quiet or json):
        result = verify(folder, base=None if base is None else resolve(base).path)
    _print(json, result, "\n  ".join([f"{folder}: {result.outcome}", *result.problems]))
    raise typer.Exit({"ok": OK, "failed": NEGATIVE}.get(result.outcome, NOT_CHECKED))


@app.command(name="eval")
def evaluate_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, package:NAME or hub id.")],
    evals: Annotated[list[str], typer.Argument(metavar="EVAL...", help="Names of evals.")],
    vector: Annotated[
        Path | None, typer.Option("--vector", metavar="V", help="Vector or adapter to steer with.")
    ] = None,
    k: Strength = 1.0,
    limit: Annotated[int | None, typer.Option("--limit", min=2, help="Use at most so many items.")] = None,
    any_base: AnyBase = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run evals on any model, steered or not."""
    import contextlib

    from weightsteer.evaluation import evaluate
    from weightsteer.models.language_model import load_model
    from weightsteer.recipe import find_plugin
    from weightsteer.weights.vector import WeightVector

    for name in evals:
        find_plugin("evals", name)
    with progress.display(quiet or json):
        lm = load_model(model)
        steering = contextlib.nullcontext(lm)
        if vector is not None:
            steering = WeightVector.load(vector, None if any_base else lm.ref.path).applied(lm, k, any_base)
        with steering as steered:
            method, strength = ("base", 0.0) if vector is None else (str(vector), k)
            results = [evaluate(steered, name, limit=limit, method=method, k=strength) for name in evals]
    lines = []
    for result in results:
        lines += [f"{result.eval} (n = {result.n}, unscored {result.n_unscored})"]
        lines += [f"  {m:<20} {e.mean:8.3f}  [{e.low:.3f}, {e.high:.3f}]" for m, e in result.metrics.items()]
    _print(json, [{**asdict(r), "scores": None} for r in results], "\n".join(lines))


@app.command()
def diagnose(
    source: Annotated[Path, typer.Argument(metavar="RECIPE_OR_PAIRS", help="Recipe, pairs, or two-choice questions.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Needed where no recipe names one.")
    ] = None,
    vector: Annotated[list[Path], typer.Option("--vector", metavar="V", help="Vector to steer with; repeatable.")] = [],  # noqa: B006
    out: Out = None,
    parts: Annotated[bool, typer.Option("--parts", help="Steer by each kind and block of weight vectors too.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say beforehand whether a behavior can be steered, and how vectors move items that are in no pair."""
    from weightsteer.diagnosis import diagnose
    from weightsteer.report.document import as_json, in_terminal
    from weightsteer.report.page import finite

    with progress.display(quiet or json):
        document = diagnose(source, model, vector, out, parts=parts)
    page = "" if out is None else f"\n\nPage  {out / 'report.html'}"
    _print(json, finite(as_json(document)), in_terminal(document) + page)


@app.command()
def monitor(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="Saved checkpoints or adapters of a training run, or one model.")
    ],
    vector: Annotated[
        list[str], typer.Option("--vector", metavar="[NAME=]V", help="Vector, or a library of vectors; repeatable.")
    ],
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="What the run started from.")] = None,
    out: Out = None,
    control: Annotated[
        list[Path], typer.Option("--control", metavar="FILE", help="Readings of a control run; repeatable.")
    ] = [],  # noqa: B006
    sigma: Annotated[float, typer.Option("--sigma", min=0, help="Limit: so many spreads above the controls.")] = 3.0,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="JSON lines of prompt, for activation vectors.")
    ] = None,
    training_set: Annotated[
        Path | None, typer.Option("--training-set", metavar="FILE", help="JSON lines of prompt and answer, to screen.")
    ] = None,
    any_base: AnyBase = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a training run along known vectors, afterwards: the cosine of every saved state, as a page with --out."""
    from weightsteer.monitor.page import headline, summary_rows
    from weightsteer.monitor.watch import Rows, monitor_run, read_rows

    rows = Rows(
        [text for (text,) in read_rows(prompts, ["prompt"])] if prompts else (),
        [(prompt, answer) for prompt, answer in read_rows(training_set, ["prompt", "answer"])] if training_set else (),
    )
    with progress.display(quiet or json):
        monitored = monitor_run(run_dir, vector, base, out, control, sigma, any_base, rows)
    kinds, summary = summary_rows(monitored)
    table = [["vector", "cosine", "projection", *kinds, "limit", "crossed"]]
    table += [[r.label, r.cosine, r.projection, *r.kinds, r.limit, r.crossed] for r in summary]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [headline(monitored), ""]
    lines += ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if out is not None:
        lines += ["", f"Page  {out}"]
    _print(json, [asdict(point) for point in monitored.record.points], "\n".join(lines))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A merged checkpoint, a vector or an adapter.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    branch: Annotated[str | None, typer.Option("--branch", help="Branch to push to; made if it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; contact no hub.")] = False,
    unverified: Annotated[bool, typer.Option("--unverified", help="Push even if it cannot be checked.")] = False,
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="Where its base lies now.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify a checkpoint, a vector or an adapter and publish it with its card. Run again, it sends what is missing."""
    from weightsteer.hub.push import push

    with progress.display(quiet or json):
        result = push(
            folder, repo_id, private=private, branch=branch, create_pr=create_pr, dry_run=dry_run,
            unverified=unverified, base=base,
        )  # fmt: skip
    sending = result.files if dry_run else result.sent
    lines = [f"{result.files[name]:>14,} B  {name}" for name in sending]
    lines += [f"{'deleted':>16}  {name}" for name in result.deleted]
    lines += [f"{'left out':>16}  {name}" for name in result.left_out]
    total = sum(result.files[name] for name in sending)
    lines += [f"{total:>14,} B  {'to send' if dry_run else 'sent'}, {len(result.files)} files in all", *result.notes]
    _print(json, result, "\n".join([*lines, result.url or f"Nothing was sent to {repo_id}"]))


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Recipe, vector, adapter, checkpoint or result.")],
    other: Annotated[Path | None, typer.Argument(metavar="[VECTOR]", help="A second vector: their cosine.")] = None,
    json: Json = False,
) -> None:
    """Show what a recipe, vector, adapter, checkpoint or result is and where it comes from."""
    from weightsteer.show import describe

    facts = describe(path, other)
    _print(json, facts, _plain(facts))


def main() -> None:
    """Run the program; expected errors are printed alone, anything else keeps its traceback."""
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        error.show()  # pyright: ignore[reportAttributeAccessIssue]
        sys.exit(BAD_INPUT)
    except WeightsteerError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # which newer versions of typer return
        print("Interrupted. What is finished is kept: the same command goes on from here.", file=sys.stderr)
    sys.exit(code)


def _term(text: str, form: str) -> tuple[str, float]:
    path, _, weight = text.rpartition("=")
    try:
        return path, float(weight)
    except ValueError:
        raise WeightsteerError(f"{text}: expected {form}, such as runs/a=-1") from None


def _scale(depth: str | None, module: list[str]) -> Any:
    """The scaling that the options ask for; None for none."""
    from weightsteer.merging.scale import Scale

    if depth is None and not module:
        return None
    try:
        alpha, beta = (float(part) for part in depth.split(",")) if depth else (1.0, 0.0)
    except ValueError:
        raise WeightsteerError(f"--depth {depth}: expected ALPHA,BETA, such as 0.5,0.5") from None
    return Scale(alpha, beta, modules=dict(_term(part, "PART=FACTOR") for part in module))


def _has_weight(text: str) -> bool:
    return "=" in text and not Path(text).exists()


def _describe_vector(vector: Any) -> dict[str, Any]:
    return {"parameters": len(vector.entries), "norm": vector.norm(), "base": vector.base, "info": dict(vector.info)}


def _print(as_json: bool, value: Any, text: str) -> None:
    if as_json:
        value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        print(json.dumps(value, ensure_ascii=False, default=str))
    else:
        print(text)


def _plain(facts: Any, indent: str = "") -> str:
    """Nested facts as indented lines."""
    if not isinstance(facts, dict):
        return f"{indent}{facts}"
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", _plain(value, indent + "  ")]
        elif isinstance(value, float):
            lines.append(f"{indent}{key}: {value:.6g}")
        elif isinstance(value, list) and len(value) > 12:
            lines.append(f"{indent}{key}: {len(value)} entries, first {value[0]}")
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)
