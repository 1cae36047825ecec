"""Prompts that divergence is measured on, as token ids: as scoring encodes what it draws an answer to.

They are few, so every rank encodes them each time it loads. Must not know steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import TrainJob
from realign_cluster.scoring.encode import TextEncoder, Tokenizer
from realign_cluster.scoring.errors import RowRefused

LISTED_ROWS = 10


def encode_probes(
    path: Path, job: TrainJob, tokenizer: Tokenizer, progress: Callable[[], None]
) -> Sequence[tuple[int, ...]]:
    """Of each row of `path`, none where there is no such file. Cut as the job says, so that `kl.new_tokens` fit behind.

    Raises UsageError, with the lines, for prompts that the chat template refuses and, where the job does not cut, for
    those that are too long.
    """
    if job.kl is None or not path.is_file():
        return ()
    encoder = TextEncoder(tokenizer, chat=job.chat, max_tokens=job.max_tokens, truncate=job.truncate)
    found: list[tuple[int, ...]] = []
    refused = []
    progress()
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            ids, _ = encoder.prompt(orjson.loads(line)["prompt"], job.kl.new_tokens)
            found.append(ids)
        except RowRefused as error:
            refused.append(f"{path.name}:{number}: {error.message}")
    if refused:
        listed = "\n  ".join(refused[:LISTED_ROWS])
        more = f"\n  and {len(refused) - LISTED_ROWS:,} more" if len(refused) > LISTED_ROWS else ""
        raise UsageError(
            f"divergence cannot be measured on {len(refused):,} rows of {path.name}:\n  {listed}{more}",
            "correct or remove them, a larger --max-tokens, or --truncate left",
        )
    return found
