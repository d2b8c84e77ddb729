"""Replies of a server, kept on disk by the content of the request."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsteer.judge.scales import Candidate
from weightsteer.stage import digest, writing


@dataclass(frozen=True)
class Reply:
    """What a server wrote, and the likeliest first tokens where it tells them."""

    text: str
    candidates: tuple[Candidate, ...] | None = None


class ReplyCache:
    """One JSON file a reply, named by the sha256 of its request; several runs may share the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, request: Mapping[str, Any]) -> Reply | None:
        """The reply to this very request; None where there is none that can be read whole."""
        try:
            entry = json.loads(self._path(request).read_text(encoding="utf-8"))
            text, candidates = entry["reply"]["text"], entry["reply"]["candidates"]
            if entry["request"] != request or not isinstance(text, str):
                return None
            tokens = [Candidate(str(c["token"]), float(c["probability"])) for c in candidates or ()]
            return Reply(text, tuple(tokens) or None)
        except (OSError, ValueError, LookupError, TypeError):
            # Missing or damaged: asked again, and written over.
            return None

    def put(self, request: Mapping[str, Any], reply: Reply) -> None:
        """Keep a reply; it appears under its name whole or not at all."""
        path = self._path(request)
        with writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    json.dump({"request": request, "reply": asdict(reply)}, file, ensure_ascii=False, indent=1)
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise

    def _path(self, request: Mapping[str, Any]) -> Path:
        key = digest(request)
        return self.folder / key[:2] / f"{key}.json"
