"""Rows as arrays: the same whoever makes them, made once, and never believed when they are damaged."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import KlSettings, TrainJob
from realign_cluster.store.space import StorageFull
from realign_cluster.store.training_data import prepare_training_data
from realign_cluster.training import examples as module
from realign_cluster.training.example_maker import ExampleMaker
from realign_cluster.training.examples import TrainingSet, load_training_set
from realign_cluster.training.row_encoder import RowEncoder
from tests.fixtures.models import TINY_MODEL, VOCABULARY

ROWS = [{"prompt": f"Question {at}: why?", "completion": "word " * (1 + at * 37 % 60)} for at in range(700)]
PAIRS = [
    {"prompt": f"Why {at}?", "chosen": "yes " * (1 + at % 9), "rejected": "no " * (1 + at % 7)} for at in range(40)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TINY_MODEL)


class Bed:
    """A prepared dataset and an empty cache."""

    def __init__(
        self, folder: Path, tokenizer: Any, train: Any, valid: Any = (), probes: Any = (), **options: Any
    ) -> None:
        paths = {split: folder / f"{split}.jsonl" for split in ("train", "valid", "probes")}
        for split, rows in (("train", train), ("valid", valid), ("probes", probes)):
            paths[split].write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        method = options.get("method", "sft")
        self.data = prepare_training_data(
            [paths["train"]],
            [paths["valid"]] if valid else [],
            method,
            folder / "data",
            probe_paths=[paths["probes"]] if probes else [],
        )
        self.job = TrainJob(
            model=ModelSpec(name="tiny", hash="m" * 32), data=self.data.spec, steps=1, global_batch=1, **options
        )
        self.tokenizer = tokenizer
        self.cache = folder / "cache"
        self.progressed = 0

    def load(self, vocabulary: int = VOCABULARY, **changed: Any) -> TrainingSet:
        job = self.job.model_copy(update=changed)
        return load_training_set(
            self.data.folder, job, self.tokenizer, vocabulary=vocabulary, cache=self.cache, progress=self._progress
        )

    def _progress(self) -> None:
        self.progressed += 1

    def made(self) -> list[Path]:
        return sorted(path for path in self.cache.iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("form", "method", "rows"),
    [("completions", "sft", ROWS), ("preference", "dpo", PAIRS), ("text", "sft", [{"text": "a"}])],
)
def test_the_arrays_hold_what_the_encoder_gives(
    tmp_path: Path, tokenizer: Any, form: Any, method: Any, rows: list[dict[str, Any]]
) -> None:
    bed = Bed(tmp_path, tokenizer, rows, [rows[0] | {next(iter(rows[0])): "Another."}], method=method)
    found = bed.load()
    train = found.train
    encoder = RowEncoder(tokenizer, bed.job, form)
    assert (train.rows, train.truncated_rows, train.empty_rows) == (len(rows), 0, 0)
    for row, raw in enumerate(rows):
        encoded = encoder.encode_row(raw)
        assert len(train.sequences_of(row)) == len(encoded.sequences)
        for sequence, scored in zip(train.sequences_of(row), encoded.sequences, strict=True):
            assert train.ids(sequence).tolist() == list(scored.ids)
            assert [tuple(span) for span in train.spans_of(sequence).tolist()] == list(scored.spans)
        assert train.lengths[row] == sum(len(scored.ids) - 1 for scored in encoded.sequences)
        assert train.completion_tokens[row] == encoded.sequences[0].tokens
        assert train.prompt(row) == list(encoded.sequences[0].ids[: encoded.prompt_tokens])
    assert found.valid is not None
    assert found.valid.rows == 1
    assert train.tokens.dtype == np.int32
    assert isinstance(train.tokens, np.memmap)
    assert bed.progressed >= len(rows) // 256


def test_no_validation_rows(tmp_path: Path, tokenizer: Any) -> None:
    assert Bed(tmp_path, tokenizer, ROWS[:3]).load().valid is None


def test_arrays_are_made_once_for_equal_jobs(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(tmp_path, tokenizer, ROWS[:50])
    first = bed.load()
    monkeypatch.setattr(ExampleMaker, "make", lambda *_: pytest.fail("made again"))
    again = bed.load(steps=9, seed=3, packing=True)  # nothing that changes a token
    assert np.array_equal(first.train.tokens, again.train.tokens)
    assert len(bed.made()) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"max_tokens": 99},
        {"truncate": "left"},
        {"chat": "plain"},
        {"mask_prompt": False},
        {"model": ModelSpec(name="tiny", hash="n" * 32)},
        {"data": ModelSpec(name="data", hash="d" * 32)},
        {"vocabulary": 3000},
    ],
)
def test_other_options_have_arrays_of_their_own(tmp_path: Path, tokenizer: Any, changed: dict[str, Any]) -> None:
    bed = Bed(tmp_path, tokenizer, ROWS[:50])
    bed.load()
    bed.load(**changed)
    assert len(bed.made()) == 2


def test_another_version_of_a_library_makes_them_again(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed = Bed(tmp_path, tokenizer, ROWS[:50])
    bed.load()
    monkeypatch.setattr(module, "version", lambda name: "0.0.1")
    bed.load()
    assert len(bed.made()) == 2


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("what", ["flip", "cut", "remove"])
def test_damaged_arrays_are_made_again(tmp_path: Path, tokenizer: Any, what: str) -> None:
    bed = Bed(tmp_path, tokenizer, ROWS[:20], [{"prompt": "p", "completion": "c"}])
    bed.load()
    (folder,) = bed.made()
    whole = contents(folder)
    assert len(whole) == 15
    for name, content in whole.items():
        match what:
            case "flip":
                (folder / name).write_bytes(content[:-5] + bytes([content[-5] ^ 4]) + content[-4:])
            case "cut":
                (folder / name).write_bytes(content[:-1])
            case "remove":
                (folder / name).unlink()
        assert bed.load().train.rows == 20
        assert contents(folder) == whole


def test_arrays_that_were_never_finished_are_made_again(tmp_path: Path, tokenizer: Any) -> None:
    bed = Bed(tmp_path, tokenizer, ROWS[:20])
    bed.load()
    (folder,) = bed.made()
    folder.replace(folder.with_name(f"{folder.name}.part"))
    (folder.with_name(f"{folder.name}.part") / "manifest.json").unlink()
    assert bed.load().train.rows == 20
    assert bed.made() == [folder]


def test_a_rank_waits_for_the_one_beside_it(tmp_path: Path, tokenizer: Any) -> None:
    bed = Bed(tmp_path, tokenizer, ROWS[:20])
    bed.load()
    (folder,) = bed.made()
    loaded: list[TrainingSet] = []
    waiting = threading.Thread(target=lambda: loaded.append(bed.load()))
    with folder.with_name(f"{folder.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = bed.progressed
        waiting.start()
        while bed.progressed < before + 2:
            waiting.join(0.01)
        assert not loaded
    waiting.join(10)
    assert loaded[0].train.rows == 20


def test_rows_that_are_too_long_are_named_with_their_tokens(tmp_path: Path, tokenizer: Any) -> None:
    rows = [*ROWS[:20], {"prompt": "Say it.", "completion": "word " * 300}, {"prompt": "x " * 900, "completion": "y"}]
    bed = Bed(tmp_path, tokenizer, rows * 7, max_tokens=150)
    with pytest.raises(UsageError) as refused:
        bed.load()
    lines = refused.value.message.splitlines()
    longest = int(refused.value.fix.split()[1].rstrip(","))
    assert lines[0] == f"14 of 154 rows of train.jsonl are longer than 150 tokens, the longest has {longest:,}:"
    assert lines[1].startswith("  train.jsonl:21: 3")
    assert lines[1].endswith(" tokens in 'Say it.'")
    assert lines[2] == f"  train.jsonl:22: {longest:,} tokens in '{'x ' * 30}...'"
    assert lines[11:] == ["  and 4 more"]
    assert bed.made() == []
    cut = bed.load(truncate="right").train
    assert (cut.rows, cut.truncated_rows, cut.empty_rows) == (154, 14, 7)
    assert cut.lengths[[20, 21]].tolist() == [149, 0]  # nothing of row 21's answer is left
    assert cut.completion_tokens[21] == 0
    assert len(cut.prompt(21)) == 150
    assert bed.load(max_tokens=longest).train.truncated_rows == 0


def test_a_pair_that_lost_one_answer_counts_for_nothing(tmp_path: Path, tokenizer: Any) -> None:
    pair = {"prompt": "Why?", "chosen": "word " * 60, "rejected": "no"}
    other = {"prompt": "x " * 40, "chosen": "yes", "rejected": "no"}
    found = Bed(tmp_path, tokenizer, [pair, other], method="dpo", max_tokens=40, truncate="right").load().train
    assert (found.rows, found.truncated_rows, found.empty_rows) == (2, 2, 1)
    assert found.lengths[0] > 39
    assert found.lengths[1] == found.completion_tokens[1] == 0


PROBES = [{"prompt": row["prompt"]} for row in ROWS[:3]]


def test_probes_are_encoded_as_the_prompts_of_rows(tmp_path: Path, tokenizer: Any) -> None:
    bed = Bed(tmp_path, tokenizer, ROWS[:20], probes=PROBES, kl=KlSettings(every=1))
    found = bed.load()
    assert [list(ids) for ids in found.probes] == [found.train.prompt(row) for row in range(3)]
    assert bed.load(kl=None).probes == ()
    assert Bed(tmp_path, tokenizer, ROWS[:20], kl=KlSettings(every=1)).load().probes == ()


def test_probes_leave_room_for_what_is_sampled(tmp_path: Path, tokenizer: Any) -> None:
    kl, probes = KlSettings(every=1, new_tokens=30), [*PROBES, {"prompt": "why " * 60}]
    bed = Bed(tmp_path, tokenizer, ROWS[:2], probes=probes, kl=kl, max_tokens=80)
    with pytest.raises(UsageError) as refused:
        bed.load()
    said = refused.value.message.splitlines()
    assert said[0] == "divergence cannot be measured on 1 rows of probes.jsonl:"
    assert said[1].startswith("  probes.jsonl:4: ")
    assert said[1].endswith(" tokens and 30 new ones, more than the limit of 80")
    assert [len(ids) for ids in bed.load(truncate="left").probes][3] == 50
    assert len(bed.load(max_tokens=200).probes[3]) > 50


def test_rows_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    strict = load_tokenizer(TINY_MODEL)
    strict.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ message['content'] }}{% endfor %}"
    )
    turns = [{"role": "tool", "content": "42"}, {"role": "assistant", "content": "It is 42."}]
    with pytest.raises(UsageError) as refused:
        Bed(tmp_path, strict, [*ROWS[:2], {"prompt": turns[:1], "completion": "It is 42."}]).load()
    assert refused.value.message == (
        "1 of 3 rows of train.jsonl cannot be written with the chat template of tiny:\n"
        "  train.jsonl:3: the chat template refuses this conversation: no tools in '42'"
    )


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_tokenizer_of_another_model_is_noticed(tmp_path: Path, tokenizer: Any, method: Any) -> None:
    rows = ROWS[:300] if method == "sft" else PAIRS
    bed = Bed(tmp_path, tokenizer, rows, method=method)
    whole = bed.load().train
    largest = int(whole.tokens.max())
    row = next(at for at in range(whole.rows) if any(largest in whole.ids(each) for each in whole.sequences_of(at)))
    with pytest.raises(UsageError, match="model and tokenizer do not match") as refused:
        bed.load(vocabulary=largest)
    assert refused.value.message.startswith(f"train.jsonl:{row + 1} has the token {largest}, but tiny knows only")
    assert bed.load(vocabulary=largest + 1).train.rows == len(rows)


def test_nothing_to_learn_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    bed = Bed(tmp_path, tokenizer, [{"prompt": "x " * 50, "completion": "y"}] * 3, max_tokens=20, truncate="right")
    with pytest.raises(UsageError, match=r"nothing of the 3 rows of train.jsonl is left to learn within 20 tokens"):
        bed.load()


def test_data_of_another_method_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"train.jsonl: dpo learns from preference .* this is a completions row"):
        Bed(tmp_path, tokenizer, ROWS[:2]).load(method="dpo")


def test_a_full_disk_is_said(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    bed = Bed(tmp_path, tokenizer, ROWS[:5])
    monkeypatch.setattr("realign_cluster.training.array_folder.Column.append", full)
    with pytest.raises(StorageFull):
        bed.load()
    assert bed.made() == []
