"""How well verifiers agree with people, and whether intervals corrected for a judge's errors cover what people say.

    python benchmarks/verifier_quality.py [--data FOLDER] [--model FOLDER] [--parts lexical,judge,intervals]

lexical    WiCE (claims against articles): AUROC of the lexical verifier beside plain word overlap; its weights fitted
           again on the odd rows, judged on the even ones; its calibration report.
judge      the same claims judged by a model in chunks, as a scoring job does it.
intervals  ExpertQA (claims against what they cite): 200 labelled and 800 unlabelled claims drawn again and again; how
           often intervals at nominal 95 % hold the share that people call completely supported.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaincinv, stdtrit

from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.judge_error import prediction_powered
from realign_cluster.metrics.verifiers.calibration import calibrate
from realign_cluster.metrics.verifiers.containment import content_words
from realign_cluster.metrics.verifiers.judge import Chunking, JudgeVerifier
from realign_cluster.metrics.verifiers.lexical import LexicalRules, LexicalVerifier
from realign_cluster.metrics.verifiers.report import CalibrationReport, Rate, area_under_roc
from realign_cluster.metrics.verifiers.verdict import Pair, Verifier
from realign_cluster.metrics.verifiers.words import words_of

EXAMPLES = Path(__file__).parents[1] / "examples"
SUPPORTED, PARTLY, NOT = "supported", "partially_supported", "not_supported"
CITATION = re.compile(r"\s*\[\d+\]")
ADDRESS = re.compile(r"^\[\d+\]\s*|\S*https?://\S+")
LEAST_TEXT = 100  # characters of evidence
THRESHOLDS = (0.25, 0.5, 0.75)
LABELLED, UNLABELLED = 200, 800

Labels = np.ndarray[Any, np.dtype[np.float64]]  # (items,), 1 supported, 0 not


def data_folder() -> Path:
    return Path(os.environ.get("REALIGN_DATA") or Path(__file__).parents[2] / "shared" / "data")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wice(folder: Path) -> tuple[list[Pair], list[str]]:
    rows = rows_of(folder / "wice_claim_dev.jsonl")
    return [Pair(claim=row["claim"], evidence=tuple(row["evidence"])) for row in rows], [row["label"] for row in rows]


# --- discrimination


def aurocs(scores: Sequence[float], labels: Sequence[str], *, half: int | None = None) -> tuple[float, float]:
    """Supported against not supported, and against the rest; of the rows of one parity."""
    kept = [at for at in range(len(labels)) if half is None or at % 2 == half]

    def against(*others: str) -> float:
        places = [at for at in kept if labels[at] in (SUPPORTED, *others)]
        found = area_under_roc([scores[at] for at in places], [labels[at] == SUPPORTED for at in places])
        assert found is not None, "the half holds labels of both kinds"
        return found

    return against(NOT), against(NOT, PARTLY)


def show_aurocs(name: str, scores: Sequence[float], labels: Sequence[str]) -> None:
    columns = [aurocs(scores, labels, half=half) for half in (1, 0, None)]
    print(f"{name:44}" + "".join(f"   {no:.3f} {rest:.3f}" for no, rest in columns))


def show_report(report: CalibrationReport) -> None:
    def rate(found: Rate) -> str:
        return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}, n = {found.n})"

    print(f"  verifier {report.verifier}, {report.dataset}, n = {report.n}, {report.unanswered} unanswered")
    print(f"  threshold {report.threshold:.3f}: sensitivity {rate(report.sensitivity)}")
    print(f"  specificity {rate(report.specificity)}, together less one {report.informed:.3f}")
    print(f"  AUROC {report.auroc:.3f}, ECE {report.ece:.3f} (15 equal-mass bins), Brier {report.brier:.3f}")
    for label, counts in report.confusion.items():
        print(f"  people {label}: " + ", ".join(f"{said} {count}" for said, count in counts.items()))


def overlap(pair: Pair) -> float:
    """The plain ranking to beat: share of the claim's content words, as written, anywhere in the evidence."""
    there = {word.text.casefold() for word in words_of(pair.text)}
    wanted = {word.text.casefold() for word in content_words(words_of(pair.claim))}
    return len(wanted & there) / len(wanted)


def refitted(pairs: Sequence[Pair], labels: Sequence[str]) -> tuple[np.ndarray, list[float]]:
    """Constant and weights as `LexicalRules` says they were made, and log odds of all rows by them."""
    found = [LexicalVerifier().containment(pair) for pair in pairs]
    measured = np.array(
        [[one.gathered, one.window, one.numbers_missing, one.names_missing] for one in found if one is not None]
    )
    odd = np.arange(len(pairs)) % 2 == 1
    centre, scale = measured[odd].mean(axis=0), measured[odd].std(axis=0)
    standard = (measured - centre) / scale
    truth = np.array([label == SUPPORTED for label in labels])[odd]

    def loss(weights: np.ndarray) -> float:
        odds = weights[0] + standard[odd] @ weights[1:]
        return float((np.logaddexp(0, odds) - truth * odds).sum() + (weights[1:] ** 2).sum() / 2)

    weights = minimize(loss, np.zeros(5)).x
    plain = weights[1:] / scale
    constant = weights[0] - centre @ plain
    return np.array([constant, *plain]), list(constant + measured @ plain)


def probabilities(verifier: Verifier, pairs: Sequence[Pair]) -> list[float]:
    scores = [verdict.supported for verdict in verifier.score(pairs)]
    assert all(score is not None for score in scores), "every row of these data can be judged"
    return [score for score in scores if score is not None]


def heading(count: int) -> None:
    print(f"WiCE, {count} claims. AUROC: supported against not supported, and against the rest")
    print(f"{'':44}   odd rows      even rows     all rows")


def lexical_part(folder: Path) -> None:
    pairs, labels = wice(folder)
    started = time.process_time()
    scores = probabilities(LexicalVerifier(), pairs)
    seconds = time.process_time() - started
    weights, refit = refitted(pairs, labels)
    heading(len(pairs))
    show_aurocs("plain word overlap", [overlap(pair) for pair in pairs], labels)
    show_aurocs("lexical verifier (weights from odd rows)", scores, labels)
    show_aurocs("  its measurements alone, fitted on odd rows", refit, labels)
    rules = LexicalRules()
    own = (rules.constant, rules.gathered, rules.window, rules.number_missing, rules.name_missing)
    print(f"weights fitted now {np.round(weights, 2).tolist()}, in the rules {list(own)}")
    print(
        f"{seconds / len(pairs) * 1e3:.1f} ms of processor a claim, {np.mean([len(p.text) for p in pairs]):.0f} bytes"
    )
    print("calibrated (Platt) to WiCE, supported or not:")
    truth = [label == SUPPORTED for label in labels]
    report = calibrate(LexicalVerifier(), pairs, labels, truth, dataset="WiCE dev").calibration_report()
    assert report is not None
    show_report(report)


def judge_part(folder: Path, model: Path, characters: int, claims: int | None) -> None:
    from scoring_speed import cut_units, make_scorer

    from realign_cluster.store.model_files import describe_model

    pairs, labels = (column[:claims] for column in wice(folder))
    job = ScoreJob(kinds=("judge",), model=describe_model(model), chat="plain", max_tokens=8192)
    scorer = make_scorer(model, "judge")
    work = {"rows": 0, "tokens": 0}

    def run(rows: Sequence[Any]) -> list[dict[str, Any]]:
        asked = {json.dumps(row).encode(): row for row in rows}
        scored = []
        for unit in cut_units(scorer, list(asked)):
            payload, done = scorer.compute(scorer.prepare(unit))
            work["rows"], work["tokens"] = work["rows"] + len(unit), work["tokens"] + done.tokens
            for raw, line in zip(unit, payload.split(b"\n"), strict=True):
                scored.append({**asked[raw], "scores": json.loads(line)})
        return scored

    judge = JudgeVerifier(job, run, chunking=Chunking(max_characters=characters))
    started = time.perf_counter()
    scores = probabilities(judge, pairs)
    seconds = time.perf_counter() - started
    heading(len(pairs))
    show_aurocs(f"judge {model.name}, chunks of {characters}", scores, labels)
    print(f"fingerprint {judge.fingerprint()}: {work['rows']} rows, {work['tokens']} tokens, {seconds:.0f} s")


# --- intervals that know that the judge errs


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Claims drawn: the judge's labels on those without a human label, its labels and people's on those with one, and
    which draw each came with.
    """

    unlabelled: Labels
    labelled: Labels
    human: Labels
    unlabelled_draws: np.ndarray
    labelled_draws: np.ndarray


def bounded(sample: Sample) -> tuple[float, float]:
    """What the project has: betting bounds, which need no normal approximation (`domain.judge_error`)."""
    _, low, high = prediction_powered(sample.unlabelled, sample.labelled, sample.human, alpha=0.025)
    return low, high


def prediction_powered_by_draw(sample: Sample) -> tuple[float, float]:
    """Angelopoulos et al. 2023, for a mean: the judge's share on the unlabelled, less its mean error on the labelled,
    with the variance of both. Claims that were drawn together are alike: variances are those between draws, Student's t
    has as many degrees as there are draws with labels, less one.
    """
    error = sample.labelled - sample.human
    middle = sample.unlabelled.mean() - error.mean()
    spread = variance_of_mean(sample.unlabelled, sample.unlabelled_draws) + variance_of_mean(
        error, sample.labelled_draws
    )
    half = stdtrit(len(np.unique(sample.labelled_draws)) - 1, 0.975) * math.sqrt(spread)
    return middle - half, middle + half


def variance_of_mean(values: Labels, draws: np.ndarray) -> float:
    """Of a mean over clusters of unequal size, linearised (Cochran 1977, 9A)."""
    _, cluster = np.unique(draws, return_inverse=True)
    sums = np.bincount(cluster, weights=values - values.mean())
    return float((sums**2).sum() / len(values) ** 2 * len(sums) / (len(sums) - 1))


def exact(labels: Labels) -> tuple[float, float]:
    """Clopper and Pearson, two-sided 95 %."""
    count, n = int(labels.sum()), len(labels)
    low = betaincinv(count, n - count + 1, 0.025) if count else 0.0
    return float(low), float(betaincinv(count + 1, n - count, 0.975)) if count < n else 1.0


INTERVALS: dict[str, Callable[[Sample], tuple[float, float]]] = {
    "judge alone": lambda sample: exact(np.concatenate([sample.unlabelled, sample.labelled])),
    "people alone (the labelled)": lambda sample: exact(sample.human),
    "prediction-powered, bounded": bounded,
    "prediction-powered by draws": prediction_powered_by_draw,
}


def expertqa(folder: Path) -> tuple[list[Pair], list[bool], list[int]]:
    """Claims with a judgement of support and evidence that holds text (not addresses alone), whether people called the
    support complete, and whose answer each is of.
    """
    pairs, complete, answers = [], [], []
    for number, answer in enumerate(
        answer for row in rows_of(folder / "expertqa_rand_val.jsonl") for answer in row["answers"].values()
    ):
        for claim in answer["claims"]:
            text = ADDRESS.sub("", "\n".join(claim["evidence"]))
            if len(text) >= LEAST_TEXT and claim["support"] in ("Complete", "Partial", "Incomplete"):
                pairs.append(Pair(claim=CITATION.sub("", claim["claim_string"]), evidence=text))
                complete.append(claim["support"] == "Complete")
                answers.append(number)
    return pairs, complete, answers


def coverage(
    judges: Sequence[Labels], human: Labels, units: Sequence[np.ndarray], resamples: int
) -> dict[tuple[int, str], tuple[float, float]]:
    """Units (claim numbers that belong together) are drawn with replacement until there are enough claims, labelled
    ones first. (judge, interval) -> (share of resamples whose interval holds the share among all, mean width).
    """
    truth, held, widths = float(human.mean()), Counter[tuple[int, str]](), defaultdict[tuple[int, str], float](float)
    for resample in range(resamples):
        drawn = np.random.default_rng(resample).integers(0, len(units), LABELLED + UNLABELLED)
        items = np.concatenate([units[at] for at in drawn])[: LABELLED + UNLABELLED]
        draws = np.repeat(np.arange(len(drawn)), [len(units[at]) for at in drawn])[: LABELLED + UNLABELLED]
        first, rest = items[:LABELLED], items[LABELLED:]
        for number, judge in enumerate(judges):
            sample = Sample(
                unlabelled=judge[rest],
                labelled=judge[first],
                human=human[first],
                unlabelled_draws=draws[LABELLED:],
                labelled_draws=draws[:LABELLED],
            )
            for name, interval in INTERVALS.items():
                low, high = interval(sample)
                held[number, name] += low <= truth <= high
                widths[number, name] += high - low
    return {key: (held[key] / resamples, widths[key] / resamples) for key in widths}


def intervals_part(folder: Path, resamples: int) -> None:
    pairs, complete, answers = expertqa(folder)
    scores = [verdict.supported or 0.0 for verdict in LexicalVerifier().score(pairs)]
    human = np.array(complete, dtype=np.float64)
    claims = [np.array([at]) for at in range(len(pairs))]
    whole_answers = [np.flatnonzero(np.array(answers) == number) for number in sorted(set(answers))]
    print(f"ExpertQA, {len(pairs)} claims of {len(whole_answers)} answers, {human.mean():.4f} completely supported")
    print(f"lexical verifier {LexicalVerifier().fingerprint()}: AUROC {area_under_roc(scores, complete):.3f}")
    print(f"{resamples} resamples of {LABELLED} labelled and {UNLABELLED} unlabelled claims, nominal 95 %")
    judges = [np.array([score >= threshold for score in scores], dtype=np.float64) for threshold in THRESHOLDS]
    judges.append(1.0 - human)  # a judge that is always wrong
    by_claim = coverage(judges, human, claims, resamples)
    by_answer = coverage(judges, human, whole_answers, resamples)
    names = [f"supported from {threshold} on" for threshold in THRESHOLDS] + ["the opposite of what people say"]
    for number, (name, judge) in enumerate(zip(names, judges, strict=True)):
        sensitivity, specificity = judge[human == 1].mean(), 1 - judge[human == 0].mean()
        print(
            f"{name}: {judge.mean():.4f}; sensitivity {sensitivity:.3f}, specificity {specificity:.3f},"
            f" together less one {sensitivity + specificity - 1:.3f}"
        )
        for interval in INTERVALS:
            (share, width), (together, wide) = by_claim[number, interval], by_answer[number, interval]
            print(
                f"  {interval:28} claims drawn: covers {share:.4f}, width {width:.3f};"
                f" whole answers drawn: covers {together:.4f}, width {wide:.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--model", type=Path, default=EXAMPLES / "tiny-model")
    parser.add_argument("--parts", default="lexical,judge,intervals")
    parser.add_argument("--characters", type=int, default=3000, help="of a chunk of evidence")
    parser.add_argument("--claims", type=int, help="judge only so many of the first")
    parser.add_argument("--resamples", type=int, default=4000)
    options = parser.parse_args()
    if not (options.data / "wice_claim_dev.jsonl").is_file():
        print(f"not run: there are no data in {options.data}: name their folder with --data or REALIGN_DATA")
        return
    parts = options.parts.split(",")
    if "judge" in parts:
        from scoring_speed import preload_blas

        preload_blas()
    if "lexical" in parts:
        lexical_part(options.data)
    if "judge" in parts:
        judge_part(options.data, options.model, options.characters, options.claims)
    if "intervals" in parts:
        intervals_part(options.data, options.resamples)


if __name__ == "__main__":
    main()
