"""Makes the prepared form of capability benchmarks: one row a choice, as ranks read them, beside the training data.

{"prompt": ..., "completion": one choice, "item": number of the question, "correct": whether it is the right one}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from realign_cluster.domain.benchmark_rows import benchmark_item
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.rows import BadField

PREFIX = "benchmark-"
LISTED_PROBLEMS = 20


def prepared_benchmarks(paths: Sequence[str]) -> dict[str, bytes]:
    """File names and contents for the prepared dataset; a benchmark is called as its file is, without the ending.

    Raises UsageError, with file and line, for rows that are wrong, empty files, and two of one name.
    """
    found: dict[str, bytes] = {}
    for path in map(Path, paths):
        name = f"{PREFIX}{path.stem}.jsonl"
        if name in found:
            raise UsageError(f"two benchmarks are called {path.stem}", "rename one of the files")
        found[name] = b"".join(_rows(path))
    return found


def _rows(path: Path) -> Iterator[bytes]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"--benchmark: {path}: {error.strerror}", "name a JSONL file") from error
    problems = []
    item = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            found = benchmark_item(row if isinstance(row, dict) else {})
        except (orjson.JSONDecodeError, BadField) as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        for at, choice in enumerate(found.choices):
            body = {"prompt": found.prompt, "completion": choice, "item": item, "correct": at == found.correct}
            yield orjson.dumps(body, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
        item += 1
    if problems:
        listed = "\n  ".join(problems[:LISTED_PROBLEMS])
        more = f"\n  and {len(problems) - LISTED_PROBLEMS} more" if len(problems) > LISTED_PROBLEMS else ""
        raise UsageError(
            f"{len(problems)} rows of {path} are no benchmark questions:\n  {listed}{more}", "correct or remove them"
        )
    if not item:
        raise UsageError(f"the benchmark {path} has no rows", "give a file with one JSON object per line")
