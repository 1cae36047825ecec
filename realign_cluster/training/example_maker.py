"""Tokenises one prepared file into the arrays of `examples.Examples`, and says which rows cannot be trained on.

Streams: memory is bounded by a few hundred rows. Must not know caches or batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.training_rows import WrongForm, form_of
from realign_cluster.scoring.encode import Tokenizer
from realign_cluster.scoring.errors import RowRefused
from realign_cluster.training.array_folder import Column
from realign_cluster.training.row_encoder import EncodedRow, RowEncoder, RowTooLong

EXAMPLES_VERSION: Final = 1  # of what the arrays hold: those of another version are made again
ROWS_AT_A_TIME: Final = 256
LISTED_ROWS: Final = 10
SHOWN_CHARACTERS: Final = 60

Row = dict[str, Any]


class ExampleMaker:
    """`path` is train.jsonl or valid.jsonl of a prepared dataset. One file, one `make`."""

    def __init__(self, path: Path, job: TrainJob, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._path = path
        self._job = job
        self._vocabulary = vocabulary
        try:
            self._encoder = RowEncoder(tokenizer, job, form_of(self._first_row(), job.method))
        except WrongForm as error:
            raise UsageError(f"{path.name}: {error}", "prepare the data for this method") from error
        self._rows = self._truncated = self._empty = 0
        self._offset = self._span_offset = 0
        self._refused: list[str] = []
        self._too_long: list[str] = []
        self._refused_rows = self._too_long_rows = self._longest = 0

    def make(self, folder: Path, progress: Callable[[], None]) -> dict[str, int]:
        """Writes the arrays to `folder` and answers the other fields of Examples. Raises UsageError as
        `examples.load_training_set` says.
        """
        folder.mkdir()
        with ExitStack() as stack, self._path.open("rb") as file:
            columns = {
                name: stack.enter_context(Column(folder / f"{name}.npy", kind, width))
                for name, kind, width in (
                    ("tokens", np.int32, None),
                    ("offsets", np.int64, None),
                    ("spans", np.int32, 2),
                    ("span_offsets", np.int64, None),
                    ("prompt_tokens", np.int32, None),
                    ("lengths", np.int32, None),
                    ("completion_tokens", np.int32, None),
                )
            }
            columns["offsets"].append([0])
            columns["span_offsets"].append([0])
            while lines := list(islice(file, ROWS_AT_A_TIME)):
                progress()
                encoded = list(self._encoded([orjson.loads(line) for line in lines]))
                self._rows += len(lines)
                if not (self._refused_rows or self._too_long_rows):
                    self._append(columns, encoded)
        self._judge()
        return {
            "sequences_per_row": 2 if self._job.preference else 1,
            "truncated_rows": self._truncated,
            "empty_rows": self._empty,
        }

    def _first_row(self) -> Row:
        with self._path.open("rb") as file:
            line = file.readline()
        if not line:
            raise UsageError(f"{self._path.name} has no rows", "prepare the data again")
        row: Row = orjson.loads(line)
        return row

    def _encoded(self, rows: list[Row]) -> Iterator[EncodedRow]:
        """Of the rows that can be; the others are noted."""
        for number, row in enumerate(rows, start=self._rows):
            try:
                yield self._encoder.encode_row(row)
            except RowTooLong as error:
                self._too_long_rows += 1
                self._longest = max(self._longest, error.tokens)
                if len(self._too_long) < LISTED_ROWS:
                    self._too_long.append(f"{self._where(number)}: {error} in {_beginning(row)}")
            except RowRefused as error:
                self._refused_rows += 1
                if len(self._refused) < LISTED_ROWS:
                    self._refused.append(f"{self._where(number)}: {error.message} in {_beginning(row)}")

    def _append(self, columns: Mapping[str, Column], rows: list[EncodedRow]) -> None:
        """`rows` are the last of those counted in `_rows`."""
        sequences = [sequence for row in rows for sequence in row.sequences]
        sizes = np.array([len(sequence.ids) for sequence in sequences], dtype=np.int64)
        tokens = np.fromiter(chain.from_iterable(sequence.ids for sequence in sequences), dtype=np.int64)
        self._check_vocabulary(tokens, sizes, self._rows - len(rows))
        spans = [span for sequence in sequences for span in sequence.spans]
        span_counts = np.array([len(sequence.spans) for sequence in sequences], dtype=np.int64)
        columns["tokens"].append(tokens)
        columns["offsets"].append(self._offset + np.cumsum(sizes))
        columns["spans"].append(np.array(spans, dtype=np.int32).reshape(-1, 2))
        columns["span_offsets"].append(self._span_offset + np.cumsum(span_counts))
        columns["prompt_tokens"].append([row.prompt_tokens for row in rows])
        learned = [all(sequence.tokens for sequence in row.sequences) for row in rows]
        columns["lengths"].append(
            [
                sum(len(sequence.ids) - 1 for sequence in row.sequences) * some
                for row, some in zip(rows, learned, strict=True)
            ]
        )
        columns["completion_tokens"].append(
            [row.sequences[0].tokens * some for row, some in zip(rows, learned, strict=True)]
        )
        self._offset += int(sizes.sum())
        self._span_offset += len(spans)
        self._truncated += sum(any(sequence.truncated for sequence in row.sequences) for row in rows)
        self._empty += len(rows) - sum(learned)

    def _check_vocabulary(self, tokens: Any, sizes: Any, first_row: int) -> None:
        beyond = np.flatnonzero(tokens >= self._vocabulary)
        if len(beyond):
            sequence = int(np.searchsorted(np.cumsum(sizes), beyond[0], side="right"))
            row = first_row + sequence // (2 if self._job.preference else 1)
            raise UsageError(
                f"{self._where(row)} has the token {tokens[beyond[0]]}, but {self._job.model.name} knows only"
                f" {self._vocabulary:,} tokens: model and tokenizer do not match",
                "put the tokenizer's files that came with the model into its folder",
            )

    def _judge(self) -> None:
        name = self._path.name
        if self._refused_rows:
            raise UsageError(
                f"{self._refused_rows:,} of {self._rows:,} rows of {name} cannot be written with the chat template of"
                f" {self._job.model.name}:{_listed(self._refused, self._refused_rows)}",
                "correct or remove them, or take a model whose template takes them",
            )
        if self._too_long_rows:
            limit = self._job.max_tokens
            raise UsageError(
                f"{self._too_long_rows:,} of {self._rows:,} rows of {name} are longer than {limit:,} tokens,"
                f" the longest has {self._longest:,}:{_listed(self._too_long, self._too_long_rows)}",
                f"--max-tokens {self._longest}, or --truncate left or right",
            )
        if self._empty == self._rows:
            raise UsageError(
                f"nothing of the {self._rows:,} rows of {name} is left to learn within {self._job.max_tokens:,} tokens",
                "a larger --max-tokens, or --truncate left",
            )

    def _where(self, row: int) -> str:
        return f"{self._path.name}:{row + 1}"


def _listed(rows: list[str], count: int) -> str:
    more = [f"and {count - len(rows):,} more"] if count > len(rows) else []
    return "".join(f"\n  {line}" for line in [*rows, *more])


def _beginning(row: Row) -> str:
    """How a row begins, to find it by in files of another form."""
    value: Any = row.get("prompt", row.get("text", row.get("messages")))
    text = " ".join((value if isinstance(value, str) else value[0]["content"]).split())
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")
