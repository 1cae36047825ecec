"""Rows scored by the cluster for a caller that wants the scores, not a run: a real run all the same, in a folder of its
own, that can be kept.

Everything that `realign curate` promises holds: rows are scored exactly once whatever fails, and a folder that is kept
is resumed by the same call.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.coordinator.curate import curate
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.progress import Level, ProgressSnapshot
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.errors import RunFailed
from realign_cluster.store.durable import write_durably

NUMBER_FIELD: Final = "number"  # of the row, so that scores find back to it
INPUT_FILE: Final = "rows.jsonl"
RUN_FOLDER: Final = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterScores:
    """`scores[i]`: of row i by kind, None where `errors[i]` says why there are none. `nodes`: how many rows each
    scored.
    """

    scores: tuple[dict[str, Any] | None, ...]
    errors: dict[int, str]
    nodes: dict[str, int]


async def score_on_cluster(
    request: CurateRequest, rows: Sequence[Mapping[str, Any]], *, home: ClusterHome | None = None
) -> ClusterScores:
    """Scores `rows` (with the fields that the request names) as the request says, but for its inputs.

    `request.out` is the folder to keep rows and run in; "-" keeps nothing. Raises what `curate` raises, and RunFailed
    if it could not be completed.
    """
    with _folder(request.out) as folder:
        numbered = (orjson.dumps({**row, NUMBER_FIELD: at}) for at, row in enumerate(rows))
        write_durably(folder / INPUT_FILE, b"".join(line + b"\n" for line in numbered))
        out = folder / RUN_FOLDER
        asked = request.model_copy(update={"inputs": (str(folder / INPUT_FILE),), "out": out})
        heard = _Heard()
        code = await curate(asked.anchored(), dashboard=heard, home=home)
        if code:
            raise RunFailed("\n".join(["the rows could not be scored", *heard.notes]), "see realign doctor")
        scores = {row[NUMBER_FIELD]: row["scores"] for row in _lines(out / "output")}
        errors = {row[NUMBER_FIELD]: str(row["error"]["message"]) for row in _lines(out / "failed")}
        nodes = orjson.loads((out / "summary.json").read_bytes())["nodes"]
    return ClusterScores(
        scores=tuple(scores.get(at) for at in range(len(rows))),
        errors=errors,
        nodes={name: int(node["rows"]) for name, node in nodes.items()},
    )


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[Path]:
    if str(out) == "-":
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        out.mkdir(parents=True, exist_ok=True)
        yield out


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for part in sorted(folder.glob("*.jsonl")):
        with part.open("rb") as lines:
            for line in lines:
                yield orjson.loads(line)


@dataclass(slots=True)
class _Heard:
    """A dashboard that shows nothing and remembers what went wrong."""

    notes: list[str] = field(default_factory=list)

    def start(self, title: str) -> None: ...

    def update(self, snapshot: ProgressSnapshot) -> None: ...

    def note(self, message: str, level: Level = "info") -> None:
        if level in ("warning", "error"):
            self.notes.append(message)

    def event(self, name: str, fields: Mapping[str, object]) -> None: ...

    def stop(self) -> None: ...
