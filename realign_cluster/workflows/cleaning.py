"""Training rows that hold what models are judged on, or that come twice, are left out: each set by its own rules.

A set is cleaned where a stage first trains on it. The same rows, rules and held-out sets are the same job: whoever asks
again is given the same artifact. Must not know what the rows are then used for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from realign_cluster.curation.decontaminate import Decontamination, EvaluationSet, decontaminate
from realign_cluster.curation.deduplicate import deduplicate
from realign_cluster.curation.words import plain_text, words_of
from realign_cluster.workflows.benchmarks import PREFIX
from realign_cluster.workflows.data_checks import completion_of, prompt_of
from realign_cluster.workflows.derive import Derived, Inputs, derivation, derive
from realign_cluster.workflows.jobs import ArtifactId, Ask, JobResult
from realign_cluster.workflows.stage import Context

QUESTIONS: Final = ("items", "sealed")  # that gates are judged by
VALIDATION: Final = "valid"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """By set: the rows that are left, and what `clean_rows` counted."""

    rows: Mapping[str, ArtifactId]
    counts: Mapping[str, Mapping[str, Any]]

    @property
    def artifacts(self) -> dict[str, ArtifactId]:
        return {f"cleaned {name}": rows for name, rows in self.rows.items()}

    @property
    def none_left(self) -> str:
        """Of which set no row is left, and why; "" where each has some."""
        for name, found in self.counts.items():
            if not found["kept"]:
                by = holding_text(found["holding"])
                return (
                    f"no row of {name} is left of {found['rows']:,}: {found['contaminated']:,} are contaminated by {by}"
                )
        return ""


def cleaned(context: Context, *names: str) -> Generator[Ask, JobResult, Cleaned]:
    """Those of the sets `names` that the user gave, cleaned as [cleaning] says of each."""
    rows, counts = dict[str, ArtifactId](), dict[str, Mapping[str, Any]]()
    for name in names:
        if name in context.state.data:
            done = yield derive(
                clean_rows,
                f"{name}: cleaned",
                inputs={"rows": context.state.data[name], **held_out(context)},
                **getattr(context.config.cleaning, name).model_dump(mode="json"),
            )
            rows[name], counts[name] = done.outputs["rows"], done.value
    return Cleaned(rows=rows, counts=counts)


def cleaned_with_general(context: Context, name: str) -> Generator[Ask, JobResult, Cleaned]:
    """The set `name`, and what is mixed into a training on it, if something is."""
    return (yield from cleaned(context, name, *(("general",) if context.config.mix.general else ())))


def held_out(context: Context) -> dict[str, ArtifactId]:
    """What no training row may hold, by name: questions, validation rows, benchmarks but those that are taught. Of a
    benchmark that is a task of lm-evaluation-harness the items are not known here.
    """
    data, taught = context.state.data, context.config.cleaning.taught
    kept = [PREFIX + name for name in context.config.benchmark_files if name not in taught]
    return {name: data[name] for name in (*QUESTIONS, VALIDATION, *kept) if name in data}


def held_out_sets(inputs: Inputs, *, validation: bool = True) -> list[EvaluationSet]:
    """Of inputs by the names of `held_out`: of questions and benchmarks what is asked, of validation rows all of them,
    for what asks the same and answers otherwise is not the same row. What has no words can be in no other text.
    """
    sets = []
    for name in filter(is_held_out, inputs.names()):
        items: list[tuple[str, ...]]
        if name != VALIDATION:
            items = [(plain_text(row["prompt"]) or "",) for row in inputs.rows(name)]
        elif validation:
            items = [(prompt_of(row), completion_of(row)) for row in inputs.rows(name)]
        else:
            continue
        if worded := tuple(item for item in items if words_of("\n".join(item))):
            sets.append(EvaluationSet(name=_set_name(name), items=worded))
    return sets


def held_out_prompts(inputs: Inputs) -> dict[str, list[Row]]:
    """Of each of those inputs what is asked, as rows of a split."""
    return {
        _set_name(name): [{"prompt": row["prompt"]} for row in inputs.rows(name)]
        for name in filter(is_held_out, inputs.names())
    }


def is_held_out(name: str) -> bool:
    """Of an input that rows are only held against."""
    return name in (*QUESTIONS, VALIDATION) or name.startswith(PREFIX)


def _set_name(name: str) -> str:
    """A benchmark's own, unless it is also that of another set."""
    plain = name.removeprefix(PREFIX)
    return name if plain in (*QUESTIONS, VALIDATION) else plain


@derivation(version=4)
def clean_rows(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "rows": of "rows" those that hold nothing of the other inputs, by the variants "contamination"; of these, those
    that are no copy of an earlier one, by "duplicates". The value counts each row once: as kept, or by why it is not.
    """
    rows = list(inputs.rows("rows"))
    texts = [tuple(_texts(row)) for row in rows]
    found = decontaminate(texts, held_out_sets(inputs), variants=tuple(parameters["contamination"]))
    left, exact, near = list(found.kept), 0, 0
    if parameters["duplicates"] != "keep":
        copies = deduplicate(["\n".join(texts[at][:2]) for at in left], near=parameters["duplicates"] == "near")
        left, exact, near = [left[at] for at in copies.kept], copies.count("exact"), copies.count("near")
    return Derived(
        rows={"rows": [rows[at] for at in left]},
        value={
            "rows": len(rows),
            "contaminated": len(found.dropped),
            "holding": _holding(found),
            "doubled": exact,
            "nearly doubled": near,
            "kept": len(left),
        },
    )


def holding_text(holding: Mapping[str, Mapping[str, int]]) -> str:
    """ "items (exact 2, 13-gram 1), basics (exact 3)"."""
    return ", ".join(
        f"{name} ({', '.join(f'{variant} {count:,}' for variant, count in variants.items())})"
        for name, variants in holding.items()
    )


def _holding(found: Decontamination) -> dict[str, dict[str, int]]:
    """How many rows hold something of each set, by the variant that found it first; only of sets that are held."""
    holding: dict[str, dict[str, int]] = {}
    for each in found.sets:
        first = {match.row: match.variant for match in reversed(each.matches)}
        if counts := Counter(first.values()):
            holding[each.name] = {variant: counts[variant] for variant in sorted(counts)}
    return holding


def _texts(row: Row) -> Iterator[str]:
    """What is asked and what is answered, or the plain text; of several messages that are asked each one too: what is
    asked of a model stands in one of them.
    """
    said = {name: value for name, value in row.items() if value is not None}
    if not {"prompt", "completion", "response", "messages"} & said.keys():
        yield str(said.get("text", ""))
        return
    yield prompt_of(said)
    yield completion_of(said)
    messages = said["prompt"] if "prompt" in said else said.get("messages", [])[:-1]
    if isinstance(messages, list) and len(messages) > 1:
        yield from (str(message.get("content") or "") for message in messages)
