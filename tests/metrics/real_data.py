"""Where the shared real data lies: REALIGN_DATA, or ../shared/data next to the project."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def rows_of(name: str) -> list[dict[str, Any]]:
    folder = Path(os.environ.get("REALIGN_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {folder} (REALIGN_DATA names another folder)")
    return [json.loads(line) for line in path.read_text().splitlines()]
