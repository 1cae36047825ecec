"""How much work a step of some training data is: lengths of its rows in tokens, by the model's own tokenizer.

Tokenises the first rows, and those that are the longest in bytes: a rank has to hold the longest row, wherever it
stands. With the tokenizers library: no model, no MLX.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.coordinator.tokens import ENGLISH_TOKENS_PER_BYTE
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.train_work import TrainWork
from realign_cluster.domain.training import TrainSettings

SAMPLE_ROWS = 512
LONGEST_ROWS = 16  # not all bytes make as many tokens
MARKS_PER_MESSAGE = 5  # what a chat template puts around one: a guess, which the lengths of long rows do not hang on


def check_batch(settings: TrainSettings, rows: int) -> None:
    """Raises UsageError where a step asks for more rows than there are."""
    if settings.global_batch > rows:
        raise UsageError(
            f"a global batch of {settings.global_batch} is more than the {rows} rows of --data",
            f"--global-batch {rows} or less, or more data",
        )


def estimate_work(prepared: Path, rows: int, model: Path, settings: TrainSettings) -> TrainWork:
    """`prepared` is the folder of the prepared dataset, of which train.jsonl has `rows` rows."""
    with (prepared / "train.jsonl").open("rb") as file:
        first = [orjson.loads(line) for line in itertools.islice(file, SAMPLE_ROWS)]
        longest = [orjson.loads(line) for line in heapq.nlargest(LONGEST_ROWS, file, key=len)]
    seen = [_lengths(rows, model, settings) for rows in (first, longest)]
    lengths, of_longest = ([min(max(1, each.tokens), settings.max_tokens) for each in part] for part in seen)
    learned = sum(min(each.learned, length) for each, length in zip(seen[0], lengths, strict=True))
    return TrainWork(
        settings=settings,
        rows=rows,
        sequence_tokens=sum(lengths) / len(lengths),
        longest_tokens=max((*lengths, *of_longest)),
        target_fraction=max(0.01, learned / sum(lengths)),
        too_long=sum(each.text > settings.max_tokens for part in seen for each in part),
        estimated_from=f"the first {len(first):,} rows and the longest" if len(first) < rows else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Length:
    """In tokens: of a sequence, of what is learned of it, and of its texts alone, without marks around them."""

    tokens: int
    learned: int
    text: int


def _lengths(rows: Sequence[dict[str, Any]], model: Path, settings: TrainSettings) -> list[_Length]:
    """Of each sequence of `rows`."""
    sequences = [sequence for row in rows for sequence in _sequences(row)]
    counts = iter(_token_counts(model, [text for sequence in sequences for text, _ in sequence]))
    found = []
    for sequence in sequences:
        text = [next(counts) for _ in sequence]
        tokens = [count + MARKS_PER_MESSAGE * (len(sequence) > 1) for count in text]
        answered = sum(count for count, (_, answer) in zip(tokens, sequence, strict=True) if answer)
        learned = answered if settings.mask_prompt or settings.preference else sum(tokens)
        found.append(_Length(tokens=sum(tokens), learned=learned, text=sum(text)))
    return found


def _sequences(row: dict[str, Any]) -> list[list[tuple[str, bool]]]:
    """Of a canonical row, each sequence as its texts, with whether it is learned."""
    if "messages" in row:
        return [[(_text(message), message["role"] == "assistant") for message in row["messages"]]]
    if "chosen" in row:
        return [[(_text(row["prompt"]), False), (_text(row[side]), True)] for side in ("chosen", "rejected")]
    if "completion" in row:
        return [[(_text(row["prompt"]), False), (_text(row["completion"]), True)]]
    return [[(row["text"], True)]]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return str(value.get("content", ""))
    return "\n".join(_text(item) for item in value)


def _token_counts(model: Path, texts: Sequence[str]) -> list[int]:
    path = model / "tokenizer.json"
    if not path.is_file():
        return [round(len(text.encode()) * ENGLISH_TOKENS_PER_BYTE) for text in texts]
    from tokenizers import Tokenizer  # a native library that nothing else of the coordinator needs

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
