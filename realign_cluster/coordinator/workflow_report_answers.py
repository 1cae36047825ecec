"""One answer for people to look at: its citations against the passages they mean, its claims with their verdicts and
where in the sources those were found.

Takes rows of the "answers" and "verdicts" artifacts; knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from realign_cluster.coordinator.markup import table
from realign_cluster.metrics.citations import Resolved
from realign_cluster.metrics.verifiers.verdict import Pair
from realign_cluster.workflows.answers import read_row

Row = Mapping[str, Any]
LETTERS: Final = 700  # of a text on the page: the artifact has all of it
VERDICT_STYLES: Final = {"supported": "good", "contradicted": "bad", "unverifiable": "warn"}


def clipped(text: str, letters: int = LETTERS) -> str:
    return text if len(text) <= letters else f"{text[:letters].rstrip()} …"


def question_of(row: Row, letters: int = 160) -> str:
    """The end of the prompt is its question, or its beginning where that says so: what fits on a line."""
    prompt = row.get("prompt", "")
    if isinstance(prompt, list):
        prompt = prompt[-1].get("content", "") if prompt else ""
    return clipped(" ".join(str(prompt).split()), letters)


def answer_block(row: Row, verdicts: Mapping[str, Row]) -> str:
    """The text with its citations, and under it claims and sources. `verdicts` by the key of their pair."""
    return f"{answer_text(row)}{claims_table(row, verdicts)}{sources_list(row, verdicts)}"


def answer_text(row: Row) -> str:
    """Each citation marked by whether what its sentence cites entails it; over it, the passage that it means."""
    text = str(row["text"])
    parts, at = [], 0
    for citation in read_row(row, text).citations:
        mark = citation.mark
        parts += [escape(text[at : mark.begin]), _citation(row, citation)]
        at = mark.end
    parts.append(escape(text[at:]))
    said = "".join(parts) or '<span class="dim">(nothing)</span>'
    abstains = ' <span class="tag">abstains</span>' if row["abstains"] else ""
    return f'<p class="answer">{said}{abstains}</p>'


def claims_table(row: Row, verdicts: Mapping[str, Row]) -> str:
    """Each claim, what was found of it against all of its sources, and the span that this rests on."""
    if not row["claims"]:
        return ""
    rows = []
    for claim in row["claims"]:
        found = verdict_on(row, claim["text"], verdicts)
        probability = found.get("supported")
        rows.append(
            [
                escape(clipped(claim["text"], 240)),
                f'<span class="{VERDICT_STYLES.get(claim["verdict"], "dim")}">{escape(claim["verdict"])}</span>',
                "-" if probability is None else f"{probability:.2f}",
                escape(", ".join(_number_of(row, source) for source in claim["sources"])) or "none",
                _span(row, found),
            ]
        )
    return table(["claim", "verdict", ">supported", "cites", "the verifier looked at"], rows)


def sources_list(row: Row, verdicts: Mapping[str, Row]) -> str:
    """Every source that the answer was given, what the verifier looked at marked in it, those that are cited first."""
    cited = {source for sentence in row["sentences"] for source in sentence["sources"]}
    spans = [span for claim in row["claims"] if (span := span_of(row, verdict_on(row, claim["text"], verdicts)))]
    parts = []
    for at, source in enumerate(row["sources"]):
        own = [(begin, end) for source_at, begin, end in spans if source_at == at]
        name = " ".join(str(source[field]) for field in ("id", "title", "type") if source.get(field))
        tag = ' <span class="tag">cited</span>' if source["id"] in cited else ""
        parts.append(f'<li value="{at + 1}"><b>{escape(name)}</b>{tag}<br>{_marked(str(source["text"]), own)}</li>')
    if not parts:
        return ""
    count = f"{len(parts)} source{'s' if len(parts) > 1 else ''}, {len(cited - {None})} cited"
    return f'<details><summary>{count}</summary><ol class="sources">{"".join(parts)}</ol></details>'


def verdict_on(row: Row, claim: str, verdicts: Mapping[str, Row]) -> Row:
    """The verifier's verdict on a claim against all the sources; empty where it is not among these."""
    evidence = tuple(source["text"] for source in row["sources"])
    return verdicts.get(Pair(claim=claim, evidence=evidence).key, {})


def span_of(row: Row, verdict: Row) -> tuple[int, int, int] | None:
    """(index of the source, begin, end within its text) of a verdict on all the sources, joined by newlines."""
    if not verdict.get("span"):
        return None
    begin, end = verdict["span"]
    for at, source in enumerate(row["sources"]):
        length = len(source["text"])
        if begin <= length:
            return at, begin, min(end, length)
        begin, end = begin - length - 1, end - length - 1
    return None


def _citation(row: Row, citation: Resolved) -> str:
    mark, texts = citation.mark, {source["id"]: str(source["text"]) for source in row["sources"]}
    sentence = next((each for each in row["sentences"] if each["begin"] <= mark.begin < each["end"]), None)
    known = [source for source in citation.sources if source is not None and source in texts]
    style = "unknown" if len(known) < len(citation.sources) else "good" if sentence and sentence["entailed"] else "bad"
    said = {"unknown": "no such source", "good": "entails the sentence", "bad": "does not entail the sentence"}[style]
    passages = "".join(
        f"<b>{escape(f'{_number_of(row, source)} {source}')}</b> {escape(clipped(texts[source], 400))}<br>"
        for source in known
    )
    return (
        f'<span class="cite {style}" tabindex="0">{escape(row["text"][mark.begin : mark.end])}'
        f'<span class="passage">{passages}<i>{said}</i></span></span>'
    )


def _span(row: Row, verdict: Row) -> str:
    found = span_of(row, verdict)
    if found is None:
        return f'<span class="dim">{escape(str(verdict.get("reason", "")))}</span>'
    at, begin, end = found
    text = clipped(str(row["sources"][at]["text"])[begin:end], 240)
    reason = f' <span class="dim">{escape(str(verdict["reason"]))}</span>' if verdict.get("reason") else ""
    return f"[{at + 1}] <q>{escape(text)}</q>{reason}"


def _number_of(row: Row, source: str | None) -> str:
    numbers = {each["id"]: f"[{at}]" for at, each in enumerate(row["sources"], 1)}
    return numbers.get(source, "[?]")


def _marked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    parts, at = [], 0
    for begin, end in sorted(set(spans)):
        if begin < at:
            continue
        parts += [escape(text[at:begin]), f"<mark>{escape(text[begin:end])}</mark>"]
        at = end
    rest = clipped(text[at:]) if at else clipped(text)
    return "".join([*parts, escape(rest)])
