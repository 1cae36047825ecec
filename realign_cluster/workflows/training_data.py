"""What stages train on: mixed, aimed at measured gaps; and pairs made from judged samples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from realign_cluster.curation.citation_faults import FAULTS, CitedSentence, judge_citations, with_fault
from realign_cluster.curation.deduplicate import deduplicate
from realign_cluster.curation.mix import Source, mix
from realign_cluster.curation.pair_checks import check_pairs, find_leaks
from realign_cluster.curation.pair_report import PairLimits
from realign_cluster.curation.preference_pairs import JudgedItem, JudgedSample, make_pairs
from realign_cluster.curation.words import plain_text, words_of
from realign_cluster.metrics.measured import SourceId
from realign_cluster.workflows import answers
from realign_cluster.workflows.cleaning import QUESTIONS, held_out_prompts, held_out_sets
from realign_cluster.workflows.derive import Derived, Inputs, derivation

Row = dict[str, Any]


@derivation(version=1)
def mixed_rows(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "rows": task and general data by ratio, interleaved; as many of the task's as there are."""
    task = [_bare(row) for row in inputs.rows("task")]
    general = [_bare(row) for row in inputs.rows("general")] if inputs.has("general") else []
    share = parameters["general"] if general else 0.0
    if not share:
        return Derived(rows={"rows": task}, value={"task": len(task), "general": 0})
    wanted = round(len(task) / (1.0 - share))
    found = mix(
        [
            Source(kind="task", rows=len(task), weight=1.0 - share),
            Source(kind="general", rows=len(general), weight=share),
        ],
        total=wanted,
        repeat=True,
        seed=parameters["seed"],
    )
    of = {"task": task, "general": general}
    rows = [of[taken.kind][taken.row] for taken in found.rows]
    return Derived(rows={"rows": rows}, value={each.kind: each.taken for each in found.kinds} | {"text": found.text()})


@derivation(version=1)
def measured_gaps(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """What a model still does wrong, by group of its questions: value {group: {"items", "wrong", "rate"}}."""
    del parameters
    items: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for row in inputs.rows("answers"):
        group = str(row.get("group") or "all")
        items[group] += 1
        wrong[group] += not good_answer(row)
    gaps = {g: {"items": n, "wrong": wrong[g], "rate": wrong[g] / n} for g, n in sorted(items.items())}
    return Derived(value=gaps)


@derivation(version=1)
def targeted_rows(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "rows": practice questions with their completions, drawn from groups in proportion to how often each goes wrong
    (plus a part of all, so that what works is not forgotten).
    """
    gaps: Mapping[str, Mapping[str, float]] = parameters["gaps"]
    by_group: dict[str, list[Row]] = defaultdict(list)
    for row in inputs.rows("practice"):
        by_group[str(row.get("group") or "all")].append({"prompt": row["prompt"], "completion": row["completion"]})
    rates = {group: gaps.get(group, {}).get("rate", 0.0) for group in by_group}
    base = max(0.1 * max(rates.values(), default=0.0), 1e-3)
    sources = [
        Source(kind=group, rows=len(rows), weight=rates[group] + base) for group, rows in sorted(by_group.items())
    ]
    found = mix(sources, total=parameters["rows"], repeat=True, seed=parameters["seed"])
    return Derived(
        rows={"rows": [by_group[taken.kind][taken.row] for taken in found.rows]},
        value={each.kind: each.taken for each in found.kinds},
    )


@derivation(version=4)
def preference_rows(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "pairs" from judged samples, for training; the value says what was made, and what the checks found of them. A
    question that is asked in a held-out set too gives no pair: "leaked" counts them by set. With "unseen_words" a
    sample that says a word which only the questions of "items" and "sealed" have is left out.
    """
    verdicts = {row["pair"]: row for row in inputs.rows("verdicts")}
    threshold = parameters["supported"]
    asked = list(inputs.rows("generated"))
    splits = held_out_prompts(inputs)
    leaks = find_leaks([{"prompt": row["prompt"]} for row in asked], splits, "group")
    leaked = {leak.row - 1 for leak in leaks}
    unseen = _words_held_out(splits, asked) if parameters["unseen_words"] else frozenset()
    saying_unseen = 0
    items = []
    scores: dict[str, float] = {}
    for row in (row for at, row in enumerate(asked) if at not in leaked):
        samples = []
        for name, text in answers.samples_of(row):
            if not unseen.isdisjoint(words_of(text)):
                saying_unseen += 1
                continue
            sample = _judged(row, name, text, verdicts, threshold)
            samples.append(sample)
            scores[name] = _score(sample, row)
        samples += _with_faults(row, samples, verdicts, threshold, parameters["seed"], scores)
        items.append(
            JudgedItem(
                id=row["id"],
                prompt=row["prompt"],
                answerable=row.get("answerable", True),
                samples=tuple(samples),
                group=str(row["id"]),
            )
        )
    shares = _shares(items, parameters["abstention"])
    made = make_pairs(items, per_reason=1, shares=shares, seed=parameters["seed"])
    texts = [f"{plain_text(pair.item.prompt)}\n{pair.chosen.text}\n{pair.rejected.text}" for pair in made.pairs]
    doubled = {each.index for each in deduplicate(texts, near=False).duplicates}
    pairs = [pair for at, pair in enumerate(made.pairs) if at not in doubled]
    rows = [pair.row() for pair in pairs]
    gaps = [scores[pair.chosen.id] - scores[pair.rejected.id] for pair in pairs]
    report = check_pairs(
        rows,
        gaps=gaps,
        scorer=parameters["verifier"],
        evaluation_sets=held_out_sets(inputs, validation=False),
        other_splits=splits,
        limits=PairLimits(gap=parameters["gap"], pairs=parameters["least_pairs"]),
    )
    checks = [
        {
            "name": each.name,
            "status": each.status,
            "reason": each.reason,
            "value": each.value,
            "threshold": each.threshold,
        }
        for each in report.checks
    ]
    return Derived(
        rows={"pairs": rows},
        value={
            "pairs": len(rows),
            "doubled": len(doubled),
            "leaked": dict(Counter(leak.split for leak in leaks)),
            "saying unseen words": saying_unseen,
            "taken": dict(made.taken),
            "possible": dict(made.possible),
            "checks": checks,
        },
    )


def _words_held_out(splits: Mapping[str, Sequence[Row]], asked: Sequence[Row]) -> frozenset[str]:
    """Of the questions of "items" and "sealed", those that none of the `asked` has."""

    def words(rows: Sequence[Row]) -> set[str]:
        return {word for row in rows for word in words_of(plain_text(row["prompt"]) or "")}

    return frozenset().union(*(words(splits[name]) for name in QUESTIONS if name in splits)) - words(asked)


def good_answer(row: Mapping[str, Any]) -> bool:
    """Of an answers row: every claim supported, every sentence entailed by what it cites; or rightly not answered."""
    if row["abstains"] or not row["answerable"]:
        return bool(row["abstains"] and not row["answerable"])
    return (
        bool(row["sentences"])
        and all(each["entailed"] for each in row["sentences"])
        and all(each["verdict"] == "supported" for each in row["claims"])
    )


def _judged(row: Row, name: str, text: str, verdicts: Mapping[str, Row], threshold: float) -> JudgedSample:
    if answers.abstains(text):
        return JudgedSample(id=name, text=text, abstains=True)
    found = answers.answer_row(row, text, verdicts, threshold)
    support = (
        "supported" if found["claims"] and all(c["verdict"] == "supported" for c in found["claims"]) else "hallucinated"
    )
    cited = _cited(found)
    return JudgedSample(
        id=name,
        text=text,
        citation=judge_citations(cited) if cited else "missing",
        support=support,  # type: ignore[arg-type]
    )


def _cited(found: Row) -> list[CitedSentence]:
    """Each sentence with what it cites; what it cites supports it if the verifier said that it does."""
    sentences = []
    for each in found["sentences"]:
        cites = tuple(source for source in each["sources"] if source is not None)
        unknown = len(cites) < len(each["sources"])
        supported = frozenset(cites) if each["entailed"] else frozenset()
        text = found["text"][each["begin"] : each["end"]]
        sentences.append(
            CitedSentence(text=text, cites=(*cites, *(("unknown",) if unknown else ())), supported_by=supported)
        )
    return sentences


def _with_faults(
    row: Row,
    samples: Sequence[JudgedSample],
    verdicts: Mapping[str, Row],
    threshold: float,
    seed: int,
    scores: dict[str, float],
) -> list[JudgedSample]:
    """The first right answer with each fault that it can have, where the model made none by itself."""
    right = next((each for each in samples if each.good and each.citation == "right"), None)
    if right is None or not row.get("answerable", True):
        return []
    found = answers.answer_row(row, right.text, verdicts, threshold)
    cited = _cited(found)
    numbers = {source["id"]: at for at, source in enumerate(row["sources"], 1)}
    made = []
    have = {each.citation for each in samples}
    for fault in FAULTS:
        if fault in have:
            continue
        broken = with_fault(cited, fault, [source["id"] for source in row["sources"]], seed=seed, name=right.id)
        if broken is None:
            continue
        text = _rewritten(found, broken, numbers)
        name = f"{right.id}:{fault}"
        made.append(JudgedSample(id=name, text=text, citation=fault, support=right.support, made_from=right.id))
        scores[name] = 0.0
    return made


def _rewritten(found: Row, sentences: Sequence[CitedSentence], numbers: Mapping[str, int]) -> str:
    """The answer's text with each sentence's own markers taken out and others put where the first one stood."""
    text, at, out = found["text"], 0, []
    for each, wanted in zip(found["sentences"], sentences, strict=True):
        out.append(text[at : each["begin"]])
        out.append(
            answers.with_citations(
                text[each["begin"] : each["end"]], [numbers[SourceId(s)] for s in wanted.cites if s in numbers]
            )
        )
        at = each["end"]
    return "".join([*out, text[at:]]).strip()


def _score(sample: JudgedSample, row: Row) -> float:
    """1 for what is right, 0 for what is not: an answer that cites rightly and claims what is so, or an abstention in
    its place.
    """
    if sample.abstains or not row.get("answerable", True):
        return float(sample.abstains and not row.get("answerable", True))
    return float(sample.good and sample.citation == "right")


def _shares(items: Sequence[JudgedItem], abstention: float) -> dict[Any, float] | None:
    """Families in proportion, of those of which a pair can be made: so that no family undoes what another teaches."""
    possible = make_pairs(items).possible
    families = {
        "citation": sum(possible[r] for r in possible if r.startswith("right citation")),
        "support": possible["supported over hallucinated"],
        "answer": possible["answer over abstention"],
        "abstention": possible["abstention over hallucination"],
    }
    there = [name for name, count in families.items() if count]
    if "abstention" not in there or len(there) == 1 or not abstention:
        return None
    others = [name for name in there if name != "abstention"]
    return {**{name: (1 - abstention) / len(others) for name in others}, "abstention": abstention}


def _bare(row: Row) -> Row:
    """What training reads of a row: files with more fields mix with files that have fewer."""
    kept = ("prompt", "completion", "response", "messages", "text")
    return {name: row[name] for name in kept if name in row}
