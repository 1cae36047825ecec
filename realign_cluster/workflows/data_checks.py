"""What is wrong with the examples that stages are trained on: each row looked at, no model needed but the verifier.

Every check gives 0 or 1 for each row it applies to, so that its rate has an exact bound; a row that one check has
found is left out of those that it would set off as well. Must not know what follows from a rate (`diagnosis`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from realign_cluster.domain.gate import Measurement
from realign_cluster.metrics.citation_quality import Query
from realign_cluster.metrics.reading import ReadAnswer, ReadSentence
from realign_cluster.metrics.verifiers.verdict import Pair
from realign_cluster.workflows import answers
from realign_cluster.workflows.derive import Derived, Inputs, derivation
from realign_cluster.workflows.measured import to_row
from realign_cluster.workflows.prompt_passages import passages_in_prompt
from realign_cluster.workflows.special_tokens import has_special_token

CITING: Final = ("citation", "practice")  # sets whose completions are there to teach citing
TRAINED_ON: Final = (*CITING, "preparation", "general", "valid")
MOST_SHOWN: Final = 5  # rows of each check, as evidence
MOST_READ: Final = 1000  # of each set, sentence by sentence: shows 2 % of wrong ones where 1 % is tolerated
END_OF_TEXT: Final = re.compile(r"[.!?:…。！？][\"'”’)\]*_`]*$|[\]}`)|]$")
Row = dict[str, Any]
Item = TypeVar("Item")
Verdicts = Mapping[str, Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One check of one set: `rows` it applies to by name, with whether the fault is there and the row to show."""

    check: str
    of: str
    rows: tuple[tuple[str, bool, Row], ...]

    def measurement(self, verifier: str = "") -> Measurement:
        return Measurement(
            metric=f"{self.check} in {self.of}",
            items=tuple(name for name, _, _ in self.rows),
            values=tuple(float(wrong) for _, wrong, _ in self.rows),
            verifier=verifier,
            dataset=self.of,
        )

    def examples(self) -> list[Row]:
        wrong = [(name, row) for name, there, row in self.rows if there]
        return [{"check": self.check, "set": self.of, "row": name, **row} for name, row in wrong[:MOST_SHOWN]]


@derivation(version=1)
def examples_to_verify(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "rows": completions that answer, of at most `most` rows of each set, evenly, with the passages they can cite.
    "pairs": what a verifier has to say of them: whether each passage alone, those cited, or all of them support it.
    """
    rows = [row for name in CITING for row in _answering(name, list(inputs.rows(name)), parameters["most"])]
    pairs: dict[str, Pair] = {}
    for row in rows:
        for query in _queries(row):
            pair = Pair(claim=query.claim, evidence=query.evidence)
            pairs.setdefault(pair.key, pair)
    return Derived(
        rows={
            "rows": rows,
            "pairs": [{"pair": key, "claim": p.claim, "evidence": list(p.evidence)} for key, p in pairs.items()],
        },
        value={"rows": len(rows), "pairs": len(pairs)},
    )


@derivation(version=1)
def example_measurements(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "measurements" of every check of every set, and "examples" of the rows that were found."""
    verdicts = {row["pair"]: row for row in inputs.rows("verdicts")}
    verified = list(inputs.rows("rows"))
    found: list[tuple[Found, str]] = []
    for name in TRAINED_ON:
        if inputs.has(name):
            found += [(each, "") for each in text_checks(name, list(inputs.rows(name)))]
    for name in CITING:
        rows = list(inputs.rows(name))
        found += [(each, "") for each in citing_checks(name, rows)]
        those = [row for row in verified if row["set"] == name]
        found += [
            (each, parameters["verifier"]) for each in support_checks(name, those, verdicts, parameters["supported"])
        ]
    kept = [(each, verifier) for each, verifier in found if each.rows]
    lengths = [completion_characters(name, list(inputs.rows(name))) for name in CITING]
    return Derived(
        rows={
            "measurements": [
                *(to_row(each.measurement(verifier)) for each, verifier in kept),
                *map(to_row, lengths),
            ],
            "examples": [row for each, _ in kept for row in each.examples()],
        }
    )


# --- of the text alone ---


def text_checks(name: str, rows: list[Row]) -> Iterator[Found]:
    """Tokens that a model must not learn to write, and answers that stop in the middle: of the sets that are there to
    teach answering, and only where most of their completions end like sentences.
    """
    texts = [(f"{at}", completion_of(row), row) for at, row in enumerate(rows)]
    said = [(at, text, row) for at, text, row in texts if text.strip()]
    special = {at for at, text, _ in said if has_special_token(text)}
    yield Found(
        check="special_tokens", of=name, rows=tuple((at, at in special, _shown(row, text)) for at, text, row in said)
    )
    whole = [(at, text, row) for at, text, row in said if at not in special]
    ended = {at for at, text, _ in whole if END_OF_TEXT.search(text.strip())}
    if name in CITING and 2 * len(ended) >= len(whole):
        yield Found(
            check="cut_short", of=name, rows=tuple((at, at not in ended, _shown(row, text)) for at, text, row in whole)
        )


def citing_checks(name: str, rows: list[Row]) -> Iterator[Found]:
    """Ids that lead nowhere, answers without a citation, and whether what should be answered is; of MOST_READ rows."""
    unknown, uncited, abstaining, answering = (list[tuple[str, bool, Row]]() for _ in range(4))
    for at, row in evenly(list(enumerate(rows)), MOST_READ):
        text = completion_of(row)
        if not text.strip() or has_special_token(text):
            continue
        passages, shown = passages_of(row), _shown(row, text)
        abstains = answers.abstains(text)
        if "answerable" in row:
            (abstaining if row["answerable"] else answering).append(
                (f"{at}", abstains if row["answerable"] else not abstains, shown)
            )
        if abstains or not passages:
            continue
        read = answers.read_row({"id": str(at), "sources": passages}, text)
        if read.citations:
            unknown.append((f"{at}", bool(read.unknown), shown | {"unknown": [key for _, key in read.unknown]}))
        if read.claims:
            uncited.append((f"{at}", not read.citations, shown))
    yield Found(check="unknown_ids", of=name, rows=tuple(unknown))
    yield Found(check="uncited", of=name, rows=tuple(uncited))
    yield Found(check="abstains_on_answerable", of=name, rows=tuple(abstaining))
    yield Found(check="answers_unanswerable", of=name, rows=tuple(answering))


def completion_characters(name: str, rows: list[Row]) -> Measurement:
    """How long completions are: what an answer needs room for."""
    return Measurement(
        metric=f"completion_characters in {name}",
        items=tuple(str(at) for at in range(len(rows))),
        values=tuple(float(len(completion_of(row).strip())) for row in rows),
        verifier="",
        dataset=name,
    )


# --- with the verifier ---


def support_checks(name: str, rows: Iterable[Row], verdicts: Verdicts, threshold: float) -> Iterator[Found]:
    """Sentences whose citations do not support them though another passage does, and those that no passage supports."""
    swapped, invented = [], []
    for row in rows:
        read, shown = _read(row), _shown(row, row["completion"])
        judged = [_judged(row, sentence, verdicts, threshold) for sentence in _claiming(read)]
        cites_known = any(sentence.sources and None not in sentence.sources for sentence in _claiming(read))
        if cites_known:
            swapped.append((row["id"], "swapped" in judged, shown))
        if judged:
            invented.append((row["id"], "invented" in judged, shown))
    yield Found(check="cites_another_source", of=name, rows=tuple(swapped))
    yield Found(check="unsupported", of=name, rows=tuple(invented))


def _judged(row: Row, sentence: ReadSentence, verdicts: Verdicts, threshold: float) -> str:
    """ "invented" where nothing supports it, "swapped" where another passage than those cited does, else "right"."""

    def holds(evidence: tuple[str, ...]) -> bool:
        found = verdicts[Pair(claim=sentence.claim, evidence=evidence).key]
        return found["supported"] is not None and found["supported"] >= threshold

    passages = answers.passages_of(row)
    cited = [source for source in sentence.sources if source is not None]
    alone = [text for source, text in passages.items() if source not in cited and holds((text,))]
    if cited and len(cited) == len(sentence.sources):
        if holds(tuple(dict.fromkeys(passages[source] for source in cited))):
            return "right"
        if alone:
            return "swapped"
    return "right" if alone or holds(tuple(passages.values())) else "invented"


def _queries(row: Row) -> Iterator[Query]:
    passages = answers.passages_of(row)
    for sentence in _claiming(_read(row)):
        cited = [source for source in sentence.sources if source is not None]
        if cited:
            yield Query(evidence=tuple(dict.fromkeys(passages[source] for source in cited)), claim=sentence.claim)
        yield Query(evidence=tuple(passages.values()), claim=sentence.claim)
        for text in passages.values():
            yield Query(evidence=(text,), claim=sentence.claim)


def _claiming(read: ReadAnswer) -> list[ReadSentence]:
    """The sentences that say something, those without words left out."""
    return [sentence for sentence in read.sentences if any(letter.isalnum() for letter in sentence.claim)]


def _read(row: Row) -> ReadAnswer:
    return answers.read_row(row, row["completion"])


def _answering(name: str, rows: list[Row], most: int) -> Iterator[Row]:
    for at, row in evenly(list(enumerate(rows)), most):
        text = completion_of(row)
        passages = passages_of(row)
        if text.strip() and passages and not has_special_token(text) and not answers.abstains(text):
            yield {
                "id": f"{name} {at}",
                "set": name,
                "prompt": prompt_of(row),
                "sources": passages,
                "completion": text.strip(),
            }


def evenly(rows: list[Item], most: int) -> list[Item]:
    """At most so many, from beginning to end."""
    step = max(1.0, len(rows) / most)
    return [rows[int(at * step)] for at in range(min(most, len(rows)))]


# --- rows ---


def completion_of(row: Mapping[str, Any]) -> str:
    """What the row teaches to say: of a conversation its last message; "" for a plain text, which may be templated."""
    value = row.get("completion", row.get("response", row.get("messages", "")))
    if isinstance(value, list):
        value = value[-1].get("content", "") if value and isinstance(value[-1], Mapping) else ""
    return str(value)


def prompt_of(row: Mapping[str, Any]) -> str:
    value = row.get("prompt", row.get("messages", ""))
    if isinstance(value, list):
        messages = value if "prompt" in row else value[:-1]
        return "\n".join(str(message.get("content", "")) for message in messages)
    return str(value)


def passages_of(row: Mapping[str, Any]) -> list[Row]:
    """Those that the row brings, numbered from 1; else those that stand in its prompt."""
    return row.get("sources") or passages_in_prompt(prompt_of(row))


def _shown(row: Mapping[str, Any], text: str) -> Row:
    return {"prompt": prompt_of(row), "completion": text}
