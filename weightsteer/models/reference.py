"""A model reference, resolved to a folder of safetensors on this machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelRef:
    """Which weights, exactly. `fingerprint` and `path` are set once the reference is resolved."""

    source: str
    revision: str | None = None
    dtype: str = "auto"
    fingerprint: str | None = None
    path: str | None = None
