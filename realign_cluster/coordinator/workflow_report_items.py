"""What is behind a number: the items that it was measured on, the worst first, each with what it was made from.

`Behind` collects what the page refers to, so that nothing is on it twice: stages that measured the same model on the
same questions share their items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from realign_cluster.coordinator.charts import number
from realign_cluster.coordinator.markup import note, table
from realign_cluster.coordinator.workflow_history import BASELINE, Attempt, Measured, WorkflowHistory
from realign_cluster.coordinator.workflow_report_answers import clipped, question_of
from realign_cluster.domain.gate import Gate, on_scale
from realign_cluster.domain.retention import METRIC as RETENTION
from realign_cluster.workflows.jobs import content_hash

SHOWN: Final = 10  # items of a metric
PAIRED: Final = {  # computed by a stage from a measure of two models
    "factuality_change": "supported_or_silent",
    "citation_precision_change": "citation_precision",
    "citation_recall_change": "citation_recall",
    "coverage_change": "coverage_by_answer",
}
LOWER_IS_BETTER: Final = frozenset(
    {
        "hallucination_rate",
        "contradicted_claims",
        "unverifiable_claims",
        "over_abstention",
        "answers_on_unanswerable",
        "perplexity",
        "kl",
        "drift",
        "verifier_false_positives",
        "verifier_false_negatives",
    }
)
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A metric's items as the page shows them. `worst`: (item, value, what is known of it as HTML)."""

    anchor: str
    metric: str
    dataset: str
    worst: tuple[tuple[str, float, str], ...]
    count: int
    undefined: int
    files: Mapping[str, str]  # by what they are
    used_by: list[str] = field(default_factory=list)


class Behind:
    """What was linked to so far: `items` by anchor, and of which answers the page has to show which."""

    def __init__(self, history: WorkflowHistory) -> None:
        self.history = history
        self.items: dict[str, Items] = {}
        self.answers: dict[str, dict[str, None]] = {}  # artifact -> ids of items, in the order of links
        self._by_item: dict[str, dict[str, Row]] = {}
        self._verdicts: dict[str, dict[str, Row]] = {}
        self._directions = {
            gate.rule.metric: gate.rule.direction
            for stage in history.workflow.stages
            for gate in stage.gates
            if isinstance(gate.rule, Gate)
        }

    def link(self, attempt: Attempt, metric: str) -> str:
        """The anchor of what is behind a metric (or the name of a gate's) of an attempt; "" where nothing is kept."""
        if metric.startswith(RETENTION):
            return self._retention(attempt, metric.removeprefix(RETENTION))
        if metric in attempt.facts:
            return f"facts-{attempt.stage}-{attempt.number}"
        name = {"progress": self.history.workflow.primary, **PAIRED}.get(metric, metric)
        if name not in attempt.measurements:
            return ""
        found = self.history.measured(attempt, name)
        if found is None:
            return ""
        anchor = f"m-{content_hash([found.job.key, name])[:12]}"
        if anchor not in self.items:
            self.items[anchor] = self._items(anchor, found)
        if attempt.label not in self.items[anchor].used_by:
            self.items[anchor].used_by.append(attempt.label)
        return anchor

    def answer(self, artifact: str, item: str) -> str:
        """The anchor of an answer, which is put on the page by that."""
        self.answers.setdefault(artifact, {})[item] = None
        return f"a-{content_hash([artifact, item])[:12]}"

    def large_is_bad(self, metric: str) -> bool:
        return self._directions.get(metric) == "at most" or metric in LOWER_IS_BETTER

    def _items(self, anchor: str, found: Measured) -> Items:
        row = found.row
        values = [
            (str(item), on_scale(value / unit if unit else value, row.get("scale", "plain")), unit)
            for item, value, unit in zip(
                row["items"], row["values"], row["units"] or [1.0] * len(row["items"]), strict=True
            )
        ]
        sign = -1.0 if self.large_is_bad(row["metric"]) else 1.0
        values.sort(key=lambda each: (sign * each[1], -each[2], each[0]))
        describe = self._describer(found)
        return Items(
            anchor=anchor,
            metric=row["metric"],
            dataset=row["dataset"],
            worst=tuple((item, value, describe(item)) for item, value, _ in values[:SHOWN]),
            count=len(values),
            undefined=row["undefined"],
            files=self._files(
                {
                    "measurements": found.artifact,
                    **(found.job.result or {})["outputs"],
                    **found.job.request["inputs_by_role"],
                }
            ),
        )

    def _retention(self, attempt: Attempt, benchmark: str) -> str:
        """The benchmark's items before and after, those that were lost first."""
        first = self.history.last(self.history.workflow.stages[0].name)
        before_id = first.artifacts.get(f"{BASELINE}benchmarks") if first else None
        after_id = attempt.artifacts.get("benchmarks")
        if before_id is None or after_id is None:
            return ""
        anchor = f"m-{content_hash([before_id, after_id, benchmark])[:12]}"
        if anchor not in self.items:
            scores = [
                {row["item"]: row["score"] for row in self.history.rows(artifact) if row["benchmark"] == benchmark}
                for artifact in (before_id, after_id)
            ]
            changes = sorted((scores[1][item] - scores[0][item], item) for item in scores[0] if item in scores[1])
            maker = self.history.maker_for(attempt, after_id)
            questions = self._benchmark_rows(maker.request["inputs_by_role"] if maker else {}, benchmark)
            self.items[anchor] = Items(
                anchor=anchor,
                metric=f"retention of {benchmark}: change of each item's score",
                dataset=benchmark,
                worst=tuple((item, change, questions.get(item, "")) for change, item in changes[:SHOWN]),
                count=len(changes),
                undefined=0,
                files=self._files({"before": before_id, "after": after_id}),
            )
        if attempt.label not in self.items[anchor].used_by:
            self.items[anchor].used_by.append(attempt.label)
        return anchor

    def _files(self, artifacts: Mapping[str, str]) -> dict[str, str]:
        return {name: path for name, each in artifacts.items() if (path := self.history.path_of(str(each)))}

    # --- what an item is ---

    def _describer(self, found: Measured) -> Callable[[str], str]:
        """A function from an item's name to HTML, by what measured it."""
        job = found.job
        outputs, roles = (job.result or {})["outputs"], job.request["inputs_by_role"]
        known: dict[str, str] = {}
        match job.request.get("function"):
            case "answer_measurements":
                rows = self._rows_by_item(outputs["answers"])
                return lambda item: (
                    f'<a href="#{self.answer(outputs["answers"], item)}">{escape(question_of(rows[item]))}</a>'
                    if item in rows
                    else ""
                )
            case "benchmark_scores" if found.row["metric"] == "perplexity":
                known = {row["id"]: _pair(row) for row in self.history.rows(roles["scored"]) if row["set"] == "valid"}
            case "benchmark_scores":
                known = self._benchmark_rows(roles, found.row["dataset"])
            case "divergences":
                known = {row["id"]: _pair(row) for row in self.history.rows(roles["scored"])}
            case "retrieval_measurements":
                known = {str(at): _ranking(row) for at, row in enumerate(self.history.rows(outputs["rankings"]))}
            case "verifier_quality":
                known = {
                    str(row.get("id", at)): _label(row) for at, row in enumerate(self.history.rows(roles["labels"]))
                }
            case "pairs_supported":
                known = {
                    str(at): escape(clipped(f"{row['claim']} | {'; '.join(s['text'] for s in row['sources'])}"))
                    for at, row in enumerate(self.history.rows(roles["pairs"]))
                }
        return lambda item: known.get(item, "")

    def _rows_by_item(self, answers: str) -> dict[str, Row]:
        if answers not in self._by_item:
            self._by_item[answers] = {str(row["id"]): row for row in self.history.rows(answers)}
        return self._by_item[answers]

    def answer_rows(self, answers: str) -> Mapping[str, Row]:
        """By the question's name."""
        return self._rows_by_item(answers)

    def verdicts(self, answers: str) -> Mapping[str, Row]:
        """That the answers of an artifact were measured by, by the key of their pair."""
        if answers not in self._verdicts:
            maker = self.history.maker(answers)
            rows = self.history.rows(maker.request["inputs_by_role"]["verdicts"]) if maker else []
            self._verdicts[answers] = {str(row["pair"]): row for row in rows}
        return self._verdicts[answers]

    def _benchmark_rows(self, roles: Mapping[str, str], name: str) -> dict[str, str]:
        """The benchmark's questions with the right answer, and what the model said to those that are answered."""
        full = f"benchmark {name}"
        said = {
            row["id"]: row["scores"]["generate"]["samples"][0]["text"]
            for row in self.history.rows(roles.get("answered"))
            if row["set"] == full
        }
        found = {
            row["item"]: _of_task(row) for row in self.history.rows(roles.get("harness")) if row["benchmark"] == name
        }
        for at, row in enumerate(self.history.rows(roles.get(full))):
            answer = f"; it said <q>{escape(clipped(said[str(at)], 120))}</q>" if str(at) in said else ""
            right = escape(clipped(str(row.get("answer", "")), 120))
            found[str(at)] = f"{escape(question_of(row))} <b>{right}</b>{answer}"
        return found


def _of_task(row: Row) -> str:
    """A document of lm-evaluation-harness: the end of what was asked, after any examples."""
    said = f"; it said <q>{escape(clipped(str(row['said']), 120))}</q>" if "said" in row else ""
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    asked = escape(" ".join(prompt.split())[-160:])
    return f"{asked} <b>{escape(clipped(str(row['answer']), 120))}</b>{said}"


def items_section(behind: Behind) -> str:
    """All that was linked to."""
    parts = []
    for each in behind.items.values():
        shown = (
            f"{len(each.worst)} of {each.count:,} items" if len(each.worst) < each.count else f"{each.count:,} items"
        )
        title = f"{each.metric} on {each.dataset}: {', '.join(each.used_by)}"
        rows = [[f"<code>{escape(item)}</code>", number(value), said] for item, value, said in each.worst]
        files = ", ".join(f'<a href="{escape(path)}">{escape(name)}</a>' for name, path in each.files.items())
        undefined = f", undefined on {each.undefined:,} more" if each.undefined else ""
        body = note(f"The worst first: {shown}{undefined}.") + table(["item", ">value", "what it is"], rows)
        parts.append(
            f'<details><summary>{escape(title)}</summary><div id="{each.anchor}">{body}'
            f'<p class="dim note">All of them: {files}</p></div></details>'
        )
    return "".join(parts)


def _pair(row: Row) -> str:
    return f"{escape(question_of(row))} <q>{escape(clipped(str(row['response']), 200))}</q>"


def _ranking(row: Row) -> str:
    relevant = set(row["relevant"])
    ranked = " ".join(
        f"<b>{escape(str(each))}</b>" if each in relevant else escape(str(each)) for each in row["ranked"][:5]
    )
    wanted = ", ".join(map(str, row["relevant"][:5]))
    return f"{escape(clipped(row['query'], 200))}; relevant {escape(wanted)}; ranked {ranked}"


def _label(row: Row) -> str:
    evidence = row["evidence"] if isinstance(row["evidence"], str) else "; ".join(row["evidence"])
    claim, said = escape(clipped(row["claim"], 200)), escape(row["label"])
    return f"{claim}; people say <b>{said}</b> of <q>{escape(clipped(evidence, 300))}</q>"
