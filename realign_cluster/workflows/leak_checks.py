"""Evaluation questions that training rows all but repeat: near copies, which comparing word for word lets through.

A near copy has nearly all runs of three words of a question's prompt, and nearly all of those that are not its
passages': rows about the same passages that ask something else are no copies, nor are the same words about others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from realign_cluster.curation.words import grams, words_of
from realign_cluster.domain.gate import Measurement
from realign_cluster.metrics.citations import strip_citations
from realign_cluster.workflows.data_checks import MOST_SHOWN, TRAINED_ON, completion_of, prompt_of
from realign_cluster.workflows.derive import Derived, Inputs, derivation
from realign_cluster.workflows.measured import to_row

RUN_WORDS: Final = 3
COPIED: Final = 0.75  # of all runs of a prompt: one word in twelve may be another
ASKED: Final = 0.6  # of its runs outside its passages, which are few: in a question of seven words one may be another
COMMON_ROWS: Final = 100  # a run that more training rows have says little of which row was copied
CANDIDATES: Final = 4  # training rows compared in full, for each question
EVALUATED_ON: Final = ("items", "sealed")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Of an evaluation question: the training row that is most like it, and how much of it that row has."""

    set: str
    row: int
    share: float


class TrainedPrompts:
    """The prompts of all training rows, by their runs of words."""

    def __init__(self, sets: Mapping[str, Sequence[str]]) -> None:
        self._runs: list[frozenset[str]] = []
        self._places: list[tuple[str, int]] = []
        for name, prompts in sets.items():
            for at, prompt in enumerate(prompts):
                self._runs.append(runs_of(prompt))
                self._places.append((name, at))
        by_run: dict[str, list[int]] = defaultdict(list)
        for row, runs in enumerate(self._runs):
            for run in runs:
                by_run[run].append(row)
        self._telling = {run: rows for run, rows in by_run.items() if len(rows) <= COMMON_ROWS}

    def nearest(self, prompt: str, passages: Sequence[str]) -> Copy | None:
        """The row that has most of the prompt, if it has nearly all: None where none is a copy."""
        runs = runs_of(prompt)
        said = frozenset[str]().union(*(runs_of(text) for text in passages)) if passages else frozenset()
        own = runs - said
        if not runs:
            return None
        shared: Counter[int] = Counter()
        for run in runs:
            shared.update(self._telling.get(run, ()))
        best: Copy | None = None
        for row, _ in shared.most_common(CANDIDATES):
            share = len(runs & self._runs[row]) / len(runs)
            own_share = len(own & self._runs[row]) / len(own) if own else 1.0
            if share >= COPIED and own_share >= ASKED and (best is None or share > best.share):
                name, at = self._places[row]
                best = Copy(set=name, row=at, share=share)
        return best


def runs_of(text: str) -> frozenset[str]:
    """Runs of words without citations' numbers: those only tell in which order passages stand."""
    return frozenset(grams(words_of(strip_citations(text)), RUN_WORDS))


@derivation(version=1)
def leak_measurements(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "measurements": of each evaluation set the questions that were copied; "examples": some, beside their copies."""
    del parameters
    rows = {name: list(inputs.rows(name)) for name in TRAINED_ON if inputs.has(name)}
    trained = TrainedPrompts({name: [prompt_of(row) for row in each] for name, each in rows.items()})
    measured, examples = [], []
    for name in EVALUATED_ON:
        found = list(_copies(trained, inputs.rows(name)))
        measured.append(
            Measurement(
                metric=f"leaked in {name}",
                items=tuple(item["id"] for item, _ in found),
                values=tuple(float(copy is not None) for _, copy in found),
                verifier="",
                dataset=name,
            )
        )
        copied = [(item, copy) for item, copy in found if copy is not None]
        examples += [
            {
                "check": "leaked",
                "set": name,
                "row": item["id"],
                "prompt": prompt_of(item),
                "copy": f"{copy.set} {copy.row}",
                "copied_prompt": prompt_of(rows[copy.set][copy.row]),
                "completion": completion_of(rows[copy.set][copy.row]),
            }
            for item, copy in copied[:MOST_SHOWN]
        ]
    return Derived(rows={"measurements": [to_row(each) for each in measured], "examples": examples})


def _copies(trained: TrainedPrompts, items: Iterable[Row]) -> Iterator[tuple[Row, Copy | None]]:
    for item in items:
        yield item, trained.nearest(prompt_of(item), [source["text"] for source in item["sources"]])
