"""Who did what and when, one JSON object a line: kept apart from the log, since it answers other questions.

Prompts are not repeated here; a recipe's hash says whether two jobs asked for the same.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any


class Audit:
    """Appends to a file, opening it anew each time, so that it may be moved away by whoever rotates logs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, **fields: Any) -> None:
        said = {key: value for key, value in fields.items() if value not in (None, "")}
        line = json.dumps({"time": round(time.time(), 3), **said}, ensure_ascii=False)
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
