"""From generated answers to measurements: reading, what a verifier is asked, and what its verdicts make of the answers.

Two derivations with the verifier's work between them, so that a judge model can do it on the cluster. A passage
that an answer may cite stands in its item's `sources`, numbered from 1; its id or title will do as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from realign_cluster.metrics import citation_quality as quality
from realign_cluster.metrics.citation_marks import Form, find_marks
from realign_cluster.metrics.citations import CitationFormat, format_agreement, known_by_number, strip_citations
from realign_cluster.metrics.consistency import attribution_consistency
from realign_cluster.metrics.coverage import attribution_coverage
from realign_cluster.metrics.factuality import Fact, JudgedFacts, factscore, supported_or_silent
from realign_cluster.metrics.hallucination import ClaimVerdict, JudgedClaims, hallucination
from realign_cluster.metrics.hedging import ABSTAINS, Answered, hedging, stance
from realign_cluster.metrics.measured import ItemId, MeanOverItems, PooledRatio, SourceId, mean_over_items, pooled_ratio
from realign_cluster.metrics.reading import ReadAnswer, cited_answers, read_answer
from realign_cluster.metrics.verifiers.verdict import Pair
from realign_cluster.workflows.derive import Derived, Inputs, derivation
from realign_cluster.workflows.measured import measurement_of, to_row
from realign_cluster.workflows.special_tokens import has_special_token
from realign_cluster.workflows.verify import label_at

FORMS: Final[Mapping[str, Form]] = {
    "inline": Form.BRACKET,
    "footnote": Form.FOOTNOTE,
    "author-year": Form.AUTHOR_PARENTHESIS,
}
OF_THE_TEXT: Final = frozenset(  # what no verifier has a part in
    {
        "citation_format",
        "attribution_coverage",
        "coverage_by_answer",
        "over_abstention",
        "answers_on_unanswerable",
        "attribution_consistency",
        "answers_cut_off",
        "special_tokens_in_answers",
        "characters_of_cut_answers",
    }
)
Row = dict[str, Any]


@derivation(version=1)
def answer_pairs(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """Of generated rows: "pairs", each (claim, evidence) that a verifier has to judge, once."""
    del parameters
    pairs: dict[str, Pair] = {}
    for row in inputs.rows("generated"):
        for _, text in samples_of(row):
            for query in queries_of(row, text):
                pair = Pair(claim=query.claim, evidence=query.evidence)
                pairs.setdefault(pair.key, pair)
    return Derived(
        rows={
            "pairs": [
                {"pair": key, "claim": each.claim, "evidence": list(each.evidence)} for key, each in pairs.items()
            ]
        },
        value={"pairs": len(pairs)},
    )


@derivation(version=4)
def answer_measurements(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """Of generated rows and the verdicts on their pairs: "measurements", a row a metric with the value of every item,
    and "answers", what was read and found of each, for people to look at.
    """
    verdicts = {row["pair"]: row for row in inputs.rows("verdicts")}
    verifier, dataset = parameters["verifier"], parameters["dataset"]
    threshold = parameters["supported"]
    rows = list(inputs.rows("generated"))
    first = [(row, samples_of(row)[0][1]) for row in rows]
    found = measure_texts(first, verdicts, threshold, parameters["format"])
    found |= endings(rows)
    if inputs.has("again"):
        found["attribution_consistency"] = _consistency(rows, list(inputs.rows("again")))
    measured = [
        to_row(measurement_of(name, each, verifier="" if name in OF_THE_TEXT else verifier, dataset=dataset))
        for name, each in found.items()
    ]
    answers = [answer_row(row, text, verdicts, threshold) for row, text in first]
    return Derived(rows={"measurements": measured, "answers": answers}, value={"answers": len(answers)})


def samples_of(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(id, text) of each sample that was generated for a row."""
    samples = row["scores"]["generate"]["samples"]
    return [(f"{row['id']}/{number}", sample["text"].strip()) for number, sample in enumerate(samples)]


def endings(rows: Sequence[Row]) -> dict[str, MeanOverItems | PooledRatio]:
    """How answers ended: with the last token that they were allowed, or with a special token written out as text."""
    first = [(ItemId(row["id"]), row["scores"]["generate"]["samples"][0]) for row in rows]
    return {
        "answers_cut_off": mean_over_items(
            "answers cut off", "answers that no end token ended / answers",
            ((item, float(sample["finish"] == "length")) for item, sample in first),
        ),
        "special_tokens_in_answers": mean_over_items(
            "special tokens in answers", "answers with a special token as text / answers",
            ((item, float(has_special_token(sample["text"]))) for item, sample in first),
        ),
        "characters_of_cut_answers": pooled_ratio(
            "characters of cut answers", "characters / answers cut off",
            ((item, len(sample["text"].strip()), 1) for item, sample in first if sample["finish"] == "length"),
        ),
    }  # fmt: skip


def measure_texts(
    answers: Sequence[tuple[Row, str]], verdicts: Mapping[str, Row], threshold: float, form: str
) -> dict[str, MeanOverItems | PooledRatio]:
    """Every metric of one answer to each item, by the name that gates use. An abstention makes no claim: it is counted
    by hedging, and undefined in all that asks what was claimed but `supported_or_silent`.
    """
    read = [(row, read_row(row, text)) for row, text in answers if not abstains(text)]

    def entailed(query: quality.Query) -> bool:
        return _supported(verdicts, query, threshold)

    cited = [one for row, answer in read for one in cited_answers([answer], passages_of(row))]
    citation = quality.measure(cited, entailed)
    claims = [(row, answer, claim_verdicts(row, answer, verdicts, threshold)) for row, answer in read]
    hallucinated = hallucination([JudgedClaims(item=answer.item, verdicts=judged) for _, answer, judged in claims])
    facts = {answer.item: tuple(_fact(each) for each in judged) for _, answer, judged in claims}
    judged_facts = [JudgedFacts(item=ItemId(row["id"]), facts=facts.get(ItemId(row["id"]))) for row, _ in answers]
    abstaining = hedging(
        [
            Answered(item=ItemId(row["id"]), answerable=row.get("answerable", True), stance=stance(text))
            for row, text in answers
        ]
    )
    covered = attribution_coverage([answer for _, answer in read])
    in_format = format_agreement([(answer.item, answer.text) for _, answer in read], CitationFormat(form=FORMS[form]))
    return {
        "citation_precision": citation.precision,
        "citation_recall": citation.recall,
        "citation_format": _by_item("citations in the one format", in_format),
        "attribution_coverage": covered,
        "coverage_by_answer": _by_item("coverage by answer", covered),
        "factuality": factscore(judged_facts).score,
        "supported_or_silent": supported_or_silent(judged_facts),
        "hallucination_rate": hallucinated.rate,
        "contradicted_claims": hallucinated.contradicted,
        "unverifiable_claims": hallucinated.unverifiable,
        "over_abstention": abstaining.over_abstention,
        "answers_on_unanswerable": abstaining.answers_on_unanswerable,
    }


def abstains(text: str) -> bool:
    return stance(text) in ABSTAINS


def _by_item(metric: str, found: PooledRatio) -> MeanOverItems:
    """The share within each answer: what a gate can judge and pair without knowing how long an answer may be."""
    shares = (
        (ratio.item, ratio.numerator / ratio.denominator if ratio.denominator else None) for ratio in found.ratios
    )
    return mean_over_items(metric, f"{found.unit}, mean over answers", shares)


def read_row(row: Mapping[str, Any], text: str) -> ReadAnswer:
    known = known_by_number([SourceId(source["id"]) for source in row["sources"]])
    for source in row["sources"]:
        known |= {str(source[name]): SourceId(source["id"]) for name in ("id", "title") if source.get(name)}
    return read_answer(ItemId(row["id"]), text, known)


def passages_of(row: Mapping[str, Any]) -> dict[SourceId, str]:
    return {SourceId(source["id"]): source["text"] for source in row["sources"]}


def queries_of(row: Mapping[str, Any], text: str) -> Iterable[quality.Query]:
    """What has to be known of one answer: of its citations, and of each claim against all of its sources."""
    if abstains(text):
        return ()
    answer = read_row(row, text)
    everything = tuple(source["text"] for source in row["sources"])
    return (
        *quality.queries_of(cited_answers([answer], passages_of(row))),
        *(quality.Query(evidence=everything, claim=claim.text) for claim in answer.claims),
    )


def claim_verdicts(
    row: Mapping[str, Any], answer: ReadAnswer, verdicts: Mapping[str, Row], threshold: float
) -> tuple[ClaimVerdict, ...]:
    """Of each claim against all the sources that the answer was given."""
    everything = tuple(source["text"] for source in row["sources"])
    return tuple(
        _verdict(verdicts, quality.Query(evidence=everything, claim=claim.text), threshold) for claim in answer.claims
    )


def answer_row(row: Mapping[str, Any], text: str, verdicts: Mapping[str, Row], threshold: float) -> Row:
    """One answer as the report shows it: its sentences with what they cite, its claims with what was found of them."""
    answer = read_row(row, text)
    passages = passages_of(row)
    abstaining = abstains(text)
    judged = () if abstaining else claim_verdicts(row, answer, verdicts, threshold)
    sentences = []
    for sentence in answer.sentences:
        known = tuple(passages[source] for source in sentence.sources if source is not None)
        whole = len(known) == len(sentence.sources) and bool(known)
        entails = (
            whole
            and not abstaining
            and _supported(
                verdicts, quality.Query(evidence=tuple(dict.fromkeys(known)), claim=sentence.claim), threshold
            )
        )
        sentences.append(
            {"begin": sentence.begin, "end": sentence.end, "sources": list(sentence.sources), "entailed": entails}
        )
    return {
        "id": row["id"],
        "group": row.get("group", ""),
        "answerable": row.get("answerable", True),
        "prompt": row["prompt"],
        "sources": row["sources"],
        "text": text,
        "abstains": abstaining,
        "sentences": sentences,
        "claims": [
            {
                "text": claim.text,
                "begin": claim.begin,
                "end": claim.end,
                "sources": list(claim.sources),
                "verdict": str(found),
            }
            for claim, found in zip(answer.claims, judged, strict=False)
        ],
    }


def _consistency(rows: Sequence[Row], again: Sequence[Row]) -> MeanOverItems:
    """Of the sources that two answers to the same prompt cite."""
    second = {row["id"]: row for row in again}
    pairs = []
    for row in rows:
        if (other := second.get(row["id"])) is not None:
            one, two = (read_row(row, samples_of(each)[0][1]).cited for each in (row, other))
            pairs.append((ItemId(row["id"]), one, two))
    return attribution_consistency(pairs)


def _supported(verdicts: Mapping[str, Row], query: quality.Query, threshold: float) -> bool:
    found = verdicts[Pair(claim=query.claim, evidence=query.evidence).key]
    return found["supported"] is not None and found["supported"] >= threshold


def _verdict(verdicts: Mapping[str, Row], query: quality.Query, threshold: float) -> ClaimVerdict:
    found = verdicts[Pair(claim=query.claim, evidence=query.evidence).key]
    return ClaimVerdict(label_at(found, threshold) or "unverifiable")


def _fact(verdict: ClaimVerdict) -> Fact:
    return Fact.SUPPORTED if verdict is ClaimVerdict.SUPPORTED else Fact.NOT_SUPPORTED


def with_citations(sentence: str, numbers: Sequence[int]) -> str:
    """The sentence with these numbers in brackets in place of its own marks, before the full stop if those were."""
    bare = strip_citations(sentence)
    if not numbers:
        return bare
    marks = "".join(f"[{number}]" for number in numbers)
    own = find_marks(sentence)
    before_stop = bool(own) and sentence[own[-1].end :].strip() in (".", "!", "?")
    if before_stop and bare[-1:] in ".!?":
        return f"{bare[:-1].rstrip()} {marks}{bare[-1]}"
    return f"{bare} {marks}"
