"""Prepared rows as token ids: made once for a dataset, a model and the job's options, then mapped from a cache.

Every rank of every node comes to the same arrays, so all of them know the tokens of all rows. A row's number is its
line in train.jsonl or valid.jsonl (from 0), whatever was cut or left nothing to learn. Must not know steps or shares.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import PROBES_FILE, TrainJob
from realign_cluster.scoring.encode import Tokenizer
from realign_cluster.store.benchmark_data import PREFIX
from realign_cluster.store.space import StorageFull, is_disk_full
from realign_cluster.training.array_folder import Array, find_arrays, making_arrays
from realign_cluster.training.example_maker import EXAMPLES_VERSION, ExampleMaker
from realign_cluster.training.probes import encode_probes

SPLITS: Final = ("train", "valid")
LOCK_SECONDS: Final = 0.2  # between two looks whether another rank of this node has made them

Progress = Callable[[], None]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The rows of one file. A row has one sequence or, of a preference method, two: 2r is chosen, 2r + 1 rejected.

    tokens             (all tokens,) int32, one sequence after the other
    offsets            (sequences + 1,) int64: where each begins in `tokens`
    spans              (all spans,  2) int32: half-open, of positions in their sequence; each at 1 or later
    span_offsets       (sequences + 1,) int64: where each sequence's begin in `spans`
    prompt_tokens      (rows,) int32: ids of the row's first sequence before anything is answered
    lengths            (rows,) int32: tokens that go through the model; a sequence's last one is predicted, never read
    completion_tokens  (rows,) int32: tokens that are learned; of a pair, the chosen ones

    A row from which nothing can be learned (any of its sequences was cut to its prompt) has 0 in the last two.
    """

    sequences_per_row: int
    tokens: Int32
    offsets: Int64
    spans: Int32
    span_offsets: Int64
    prompt_tokens: Int32
    lengths: Int32
    completion_tokens: Int32
    truncated_rows: int
    empty_rows: int

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def rows_to_learn(self) -> Int64:
        """Numbers of the rows from which something can be learned, ascending: what steps are made of."""
        return np.flatnonzero(self.completion_tokens)

    def ids(self, sequence: int) -> Int32:
        """Token ids of a sequence, read-only."""
        return self.tokens[self.offsets[sequence] : self.offsets[sequence + 1]]

    def spans_of(self, sequence: int) -> Int32:
        """(n, 2): what is learned of a sequence."""
        return self.spans[self.span_offsets[sequence] : self.span_offsets[sequence + 1]]

    def sequences_of(self, row: int) -> range:
        return range(row * self.sequences_per_row, (row + 1) * self.sequences_per_row)

    def prompt(self, row: int) -> list[int]:
        """Token ids that an answer follows."""
        found: list[int] = self.ids(row * self.sequences_per_row)[: self.prompt_tokens[row]].tolist()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """`benchmarks` by name: rows of a question's choices, one sequence each. `probes`: token ids of each prompt that
    divergence is measured on; none where it is measured on prompts of the other rows.
    """

    train: Examples
    valid: Examples | None
    benchmarks: Mapping[str, Examples]
    probes: Sequence[Sequence[int]] = ()


def load_training_set(
    folder: Path,
    job: TrainJob,
    tokenizer: Tokenizer,
    *,
    vocabulary: int,
    cache: Path,
    progress: Progress = lambda: None,
) -> TrainingSet:
    """The examples of the prepared dataset in `folder`: from `cache` if they are there and whole, else made for it.

    `vocabulary` is the number of tokens that the model knows. `progress` is called every few hundred rows. Raises
    UsageError for rows longer than the job allows where it does not cut, for rows that the chat template refuses, for
    a tokenizer that does not belong to the model, and if too little is left to learn; StorageFull.
    """
    place = cache / _key(job, vocabulary)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(place.with_name(f"{place.name}.lock"), progress):
            found = find_arrays(place, progress)
            if found is None:
                facts: dict[str, Any] = {}
                with making_arrays(place, facts) as making:
                    for split in SPLITS:
                        if (path := folder / f"{split}.jsonl").is_file():
                            facts[split] = ExampleMaker(path, job, tokenizer, vocabulary).make(making / split, progress)
                    asked = job.model_copy(update={"method": "sft", "mask_prompt": True})
                    for path in sorted(folder.glob(f"{PREFIX}*.jsonl")):
                        maker = ExampleMaker(path, asked, tokenizer, vocabulary)
                        facts[path.stem] = maker.make(making / path.stem, progress)
                found = find_arrays(place, progress)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull(cache, (folder / "train.jsonl").stat().st_size) from error
        raise
    assert found is not None
    arrays, facts = found
    splits = {split: _examples(split, arrays, facts[split]) for split in facts}
    _check_batch(splits["train"], job)
    benchmarks = {split.removeprefix(PREFIX): found for split, found in splits.items() if split.startswith(PREFIX)}
    return TrainingSet(
        train=splits["train"],
        valid=splits.get("valid"),
        benchmarks=benchmarks,
        probes=encode_probes(folder / PROBES_FILE, job, tokenizer, progress),
    )


def _check_batch(train: Examples, job: TrainJob) -> None:
    learned = len(train.rows_to_learn())
    if job.global_batch > learned:
        raise UsageError(
            f"of {learned:,} of the {train.rows:,} rows of train.jsonl something is left to learn within"
            f" {job.max_tokens:,} tokens, fewer than a global batch of {job.global_batch:,}",
            f"a larger --max-tokens, --truncate left, or --global-batch {learned} or less",
        )


def _examples(split: str, arrays: dict[str, Array], facts: dict[str, Any]) -> Examples:
    fields: dict[str, Any] = dict(facts)
    for name, array in arrays.items():
        if name.startswith(f"{split}/"):
            fields[name.removeprefix(f"{split}/")] = array
    return Examples(**fields)


def _key(job: TrainJob, vocabulary: int) -> str:
    """Of all that the arrays depend on."""
    facts = {
        "version": EXAMPLES_VERSION,
        "data": job.data.hash,
        "model": job.model.hash,
        "vocabulary": vocabulary,
        "preference": job.preference,
        "libraries": [version(name) for name in ("tokenizers", "transformers", "mlx-lm")],
        **job.model_dump(include={"chat", "max_tokens", "truncate", "mask_prompt"}),
    }
    return blake2b(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


@contextmanager
def _alone(path: Path, progress: Progress) -> Iterator[None]:
    """Only one rank of a node makes what others wait for; the kernel drops the lock with the process."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress()
                time.sleep(LOCK_SECONDS)
        yield
