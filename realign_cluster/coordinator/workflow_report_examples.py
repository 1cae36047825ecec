"""The same questions answered by stage 1's model and by the one that came out, side by side: a sample nobody chose.

Every question is counted; of those that changed for better, for worse and not at all the first few are shown in the
order of a hash of their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, Final, Literal

from realign_cluster.coordinator.markup import note
from realign_cluster.coordinator.workflow_history import Attempt, WorkflowHistory
from realign_cluster.coordinator.workflow_report_answers import answer_text, claims_table, question_of, sources_list
from realign_cluster.coordinator.workflow_report_items import Behind
from realign_cluster.domain.gates import order_of
from realign_cluster.workflows.training_data import good_answer

Change = Literal["better", "worse", "unchanged"]
CHANGES: Final[tuple[Change, ...]] = ("better", "worse", "unchanged")
SHOWN: Final = 3  # of each
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeAfter:
    """Two artifacts of answers to the same questions, and what became of each. `final`: `after` was given by the model
    that came out; otherwise by the last one that was measured on these questions.
    """

    before: str
    after: str
    after_label: str
    final: bool
    items: Mapping[Change, tuple[str, ...]]  # in the order of the hash


def final_model(history: WorkflowHistory) -> str:
    """Of a run that has no end yet, the model that the next stage would begin with."""
    if history.end:
        return str(history.end["model"]["identity"])
    for attempt in reversed(history.attempts):
        model = attempt.record.body.get("model")
        if model and attempt.turn in ("pass", "go on"):
            return str(model.get("artifact") or model.get("hash"))
    first = next((job for job in history.jobs if isinstance(job.request.get("model"), Mapping)), None)
    return str(first.request["inputs_by_role"]["model"]) if first is not None else ""


def before_and_after(history: WorkflowHistory) -> BeforeAfter | None:
    """None until two models have answered the same questions."""
    first = history.last(history.workflow.stages[0].name)
    if first is None or first.answers is None:
        return None
    wanted, dataset = final_model(history), _dataset(history, first.answers)
    later = [
        each
        for each in history.attempts
        if each.answers not in (None, first.answers) and _dataset(history, each.answers) == dataset
    ]
    if not later:
        return None
    final = [each for each in later if each.answers and wanted in history.answered_by(each.answers)]
    chosen: Attempt = (final or later)[-1]
    assert chosen.answers is not None
    return BeforeAfter(
        before=first.answers,
        after=chosen.answers,
        after_label=chosen.label,
        final=bool(final),
        items=_changes(history.rows(first.answers), history.rows(chosen.answers)),
    )


def examples_body(history: WorkflowHistory, behind: Behind) -> str:
    found = before_and_after(history)
    if found is None:
        return note("Two models have not yet answered the same questions.")
    counts = ", ".join(f"{len(found.items[change]):,} {change}" for change in CHANGES)
    total = sum(map(len, found.items.values()))
    whose = (
        "the model that came out"
        if found.final
        else "the last model that was measured on them (not the one that came out)"
    )
    words = note(
        f"All {total:,} questions that both answered: {counts}. A good answer has every claim supported and every "
        f"sentence entailed by what it cites, or rightly abstains. Of each kind the first {SHOWN} are shown in the "
        f"order of a hash of the question's name. At the left stage 1's model, at the right {whose}, as of stage "
        f"{found.after_label}. Over a citation stands what it cites."
    )
    before, after = behind.answer_rows(found.before), behind.answer_rows(found.after)
    parts = [words]
    for change in CHANGES:
        shown = found.items[change][:SHOWN]
        parts += [f"<h3>Changed for {change}</h3>" if change != "unchanged" else "<h3>Unchanged</h3>"] if shown else []
        for item in shown:
            parts.append(_side_by_side(item, found, before[item], after[item], behind))
    return "".join(parts)


def _side_by_side(item: str, found: BeforeAfter, before: Row, after: Row, behind: Behind) -> str:
    verdicts = {**behind.verdicts(found.before), **behind.verdicts(found.after)}
    columns = "".join(
        f'<div><a class="dim" href="#{behind.answer(artifact, item)}">{escape(name)}</a>'
        f"{answer_text(row)}{claims_table(row, verdicts)}</div>"
        for name, artifact, row in (("stage 1", found.before, before), ("after", found.after, after))
    )
    both = {**after, **{name: [*before[name], *after[name]] for name in ("sentences", "claims")}}
    answerable = "" if after["answerable"] else ' <span class="tag">no answer in its sources</span>'
    return (
        f'<div class="example"><p class="question"><code>{escape(item)}</code> {escape(question_of(after, 400))}'
        f'{answerable}</p><div class="pair">{columns}</div>{sources_list(both, verdicts)}</div>'
    )


def _dataset(history: WorkflowHistory, answers: str | None) -> str:
    maker = history.maker(answers)
    return str(maker.request["parameters"]["dataset"]) if maker is not None else ""


def _changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[Change, tuple[str, ...]]:
    old = {str(row["id"]): good_answer(row) for row in before}
    found: dict[Change, list[str]] = {change: [] for change in CHANGES}
    for row in after:
        item, now = str(row["id"]), good_answer(row)
        if item in old:
            found["unchanged" if now == old[item] else "better" if now else "worse"].append(item)
    return {change: tuple(items[at] for at in order_of(items)) for change, items in found.items()}
