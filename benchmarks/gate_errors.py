"""How often gates pass what they should not, and how often they cannot say, beside what Wilson's interval and the
bootstrap would have said of the same answers.

    python benchmarks/gate_errors.py [--runs 20000] [--threshold 0.9] [--parts threshold,looks,truths,orders,speed]

threshold  The truth is the threshold, so every PASS is wrong; 5 % are allowed. Yes/no items are enumerated, not
           simulated. Clustered answers have 1 to 8 claims each (`tests/domain/made_answers.py`); Wilson takes claims as
           independent items, the bootstrap draws whole answers.
looks      The same where items are added until the gate passes.
truths     PASS, FAIL and INSUFFICIENT at other truths.
orders     What the order of the same answers does, and what means over orders would cost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from realign_cluster.domain import betting
from realign_cluster.domain.betting import exceeds, lower_bound, upper_bound
from realign_cluster.domain.exact_bounds import passing_successes, wilson
from realign_cluster.domain.multiplicity import split_alpha
from tests.domain.made_answers import (
    MOST_CLAIMS,
    Answers,
    Making,
    all_or_none,
    bootstrap_passes,
    rare_disasters,
    varying,
    wilson_passes,
)

ALPHA = 0.05
AT_ONCE = 2_000  # runs simulated together
LOOKS = tuple(range(50, 401, 50))  # items at each look of one model
CLUSTERED: tuple[tuple[Making, str], ...] = (
    (varying, "scores"),
    (varying, "ratio"),
    (all_or_none, "scores"),
    (all_or_none, "ratio"),
    (rare_disasters, "ratio"),
)
ORDERS = 20  # of the same answers
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


def in_parts(runs: int, seed: int, judge: Callable[[np.random.Generator, int], dict[str, Flags]]) -> dict[str, float]:
    """Rates of what `judge` finds in so many runs."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[Flags]] = {}
    for start in range(0, runs, AT_ONCE):
        for name, flags in judge(generator, min(AT_ONCE, runs - start)).items():
            found.setdefault(name, []).append(flags)
    return {name: float(np.concatenate(flags).mean()) for name, flags in found.items()}


def passes(answers: Answers, threshold: float, evidence: str, *, alpha: float = ALPHA, fail: bool = False) -> Flags:
    """PASS of "at least `threshold`", or its FAIL, as `gates.judge_gate` makes them."""
    if evidence == "items":
        right = (answers.right > 0).sum(axis=1)
        return np.asarray(right >= passing_successes(answers.right.shape[1], threshold, alpha))
    scores, sizes = amounts(answers, evidence)
    if fail:
        return exceeds(sizes - scores, 1 - threshold, sizes, alpha=alpha)
    return exceeds(scores, threshold, sizes, alpha=alpha)


def amounts(answers: Answers, evidence: str) -> tuple[Numbers, Numbers]:
    """Scores and sizes, as `gates.scaled` makes them."""
    if evidence == "ratio":
        return answers.right / MOST_CLAIMS, answers.claims / MOST_CLAIMS
    return answers.scores, np.ones_like(answers.scores)


def bootstrap(answers: Answers, threshold: float, evidence: str) -> Flags:
    if evidence == "ratio":
        return bootstrap_passes(answers.right, answers.claims, threshold)
    return bootstrap_passes(answers.scores, np.ones_like(answers.scores), threshold)


def at_the_threshold(threshold: float, runs: int) -> None:
    print(f'wrong PASS of "at least {threshold:g}" at a truth of {threshold:g}, %')
    print(f"  {'answers':32} {'evidence':10} {'n':>4} {'ours':>6} {'Wilson':>7} {'bootstrap':>10}")
    for items in (25, 60, 200, 400):
        successes = np.arange(items + 1)
        chance = binom.pmf(successes, items, threshold)
        ours = chance[successes >= passing_successes(items, threshold, ALPHA)].sum()
        by_wilson = chance[wilson(successes, np.full_like(successes, items), 0.9)[0] >= threshold].sum()
        row("independent (enumerated)", "items", items, ours, by_wilson, None)
    for making, evidence in CLUSTERED:
        for answers in (25, 60, 200, 400):

            def judge(
                generator: np.random.Generator,
                part: int,
                making: Making = making,
                answers: int = answers,
                evidence: str = evidence,
            ) -> dict[str, Flags]:
                made = making(generator, threshold, part, answers)
                return {
                    "ours": passes(made, threshold, evidence),
                    "wilson": wilson_passes(made, threshold),
                    "bootstrap": bootstrap(made, threshold, evidence),
                }

            found = in_parts(runs, answers, judge)
            name = making.__name__.replace("_", " ")
            row(name, evidence, answers, found["ours"], found["wilson"], found["bootstrap"])
    looking_again(threshold, runs)


def looking_again(threshold: float, runs: int) -> None:
    """After every answer up to 400: ours is the confidence sequence."""
    at = np.arange(1, 401)
    needed = passing_successes(at, threshold, ALPHA)

    def judge(generator: np.random.Generator, part: int) -> dict[str, Flags]:
        right = (all_or_none(generator, threshold, part, at.size).right > 0).astype(float)
        counted = np.cumsum(right, axis=1).astype(int)
        return {
            "ours": exceeds(right, threshold, alpha=ALPHA, looks="any time"),
            "wilson": (wilson(counted, at, 0.9)[0] >= threshold).any(axis=1),
            "one look": (counted >= needed).any(axis=1),
        }

    found = in_parts(runs, 7, judge)
    row("a look after every item, 400", "items", 400, found["ours"], found["wilson"], None)
    print(f"    the exact bound for one look, used at every look: {100 * found['one look']:.1f}")


def adding_items(threshold: float, runs: int) -> None:
    """A workflow's looks: fifty items are added to one model until its gate passes. `looks` is declared before the
    first and alpha divided by it; a look beyond cannot pass (`gates.of_look`).
    """
    print(f"\nwrong PASS where items are added to one model until it passes: {LOOKS[0]}, {LOOKS[1]} ... {LOOKS[-1]}, %")
    print(f"  {'answers':32} {'evidence':10} {'8 looks declared':>17} {'1 declared':>11} {'all of alpha each':>18}")
    for making, evidence in ((all_or_none, "items"), *CLUSTERED):

        def judge(
            generator: np.random.Generator, part: int, making: Making = making, evidence: str = evidence
        ) -> dict[str, Flags]:
            made = making(generator, threshold, part, LOOKS[-1])
            looks = [Answers(made.right[:, :items], made.claims[:, :items]) for items in LOOKS]
            shared = split_alpha(ALPHA, len(LOOKS))
            return {
                "declared": np.any([passes(each, threshold, evidence, alpha=shared) for each in looks], axis=0),
                "one": passes(looks[0], threshold, evidence),
                "uncorrected": np.any([passes(each, threshold, evidence) for each in looks], axis=0),
            }

        found = {name: 100 * rate for name, rate in in_parts(runs, 17, judge).items()}
        name = making.__name__.replace("_", " ")
        shown = f"{found['declared']:17.1f} {found['one']:11.1f} {found['uncorrected']:18.1f}"
        print(f"  {name:32} {evidence:10} {shown}", flush=True)


def row(name: str, evidence: str, items: int, ours: float, by_wilson: float, bootstrapped: float | None) -> None:
    last = "" if bootstrapped is None else f"{100 * bootstrapped:.1f}"
    print(f"  {name:32} {evidence:10} {items:4} {100 * ours:6.1f} {100 * by_wilson:7.1f} {last:>10}", flush=True)


def at_other_truths(threshold: float, runs: int) -> None:
    truths = [threshold - 0.05, threshold, threshold + 0.03, threshold + 0.05, threshold + 0.08]
    print(f'\n"at least {threshold:g}": PASS / INSUFFICIENT / FAIL, %, by the true value')
    print(f"  {'answers':32} {'evidence':10} {'n':>4} " + " ".join(f"{truth:>14.2f}" for truth in truths))
    for items in (60, 200, 400, 1_000):
        shown = []
        for truth in truths:
            good = np.arange(items + 1)
            chance = binom.pmf(good, items, truth)
            passing = chance[good >= passing_successes(items, threshold, ALPHA)].sum()
            failing = chance[items - good >= passing_successes(items, 1 - threshold, ALPHA)].sum()
            shown.append(three(passing, failing))
        print(f"  {'independent (enumerated)':32} {'items':10} {items:4} " + " ".join(shown))
    for making, evidence in ((varying, "scores"), (varying, "ratio"), (rare_disasters, "ratio")):
        for answers in (60, 200, 400, 1_000):
            shown = []
            for truth in truths:

                def judge(
                    generator: np.random.Generator,
                    part: int,
                    making: Making = making,
                    answers: int = answers,
                    evidence: str = evidence,
                    truth: float = truth,
                ) -> dict[str, Flags]:
                    made = making(generator, truth, part, answers)
                    return {
                        "pass": passes(made, threshold, evidence),
                        "fail": passes(made, threshold, evidence, fail=True),
                    }

                found = in_parts(runs, answers, judge)
                shown.append(three(found["pass"], found["fail"]))
            name = making.__name__.replace("_", " ")
            print(f"  {name:32} {evidence:10} {answers:4} " + " ".join(shown), flush=True)


def other_orders(threshold: float, runs: int) -> None:
    """The same answers in another order may get another verdict. What means over orders, which nobody's order decides,
    would cost: they are not valid for a largest capital, so the mean is taken of last ones (e-values, whose mean is
    one), or twice the mean of p-values (Rueschendorf 1982).
    """
    print(f'\nPASS of "at least {threshold:g}" by one order, and by means over {ORDERS}, %')
    print(f"  {'answers':32} {'evidence':10} {'n':>4} {'truth':>6} {'ours':>6} {'another':>8} {'e-values':>9} {'p':>6}")
    for making, evidence in ((varying, "scores"), (varying, "ratio"), (rare_disasters, "ratio")):
        for answers in (200, 400):
            for truth in (threshold, threshold + 0.03, threshold + 0.05):

                def judge(
                    generator: np.random.Generator,
                    part: int,
                    making: Making = making,
                    answers: int = answers,
                    evidence: str = evidence,
                    truth: float = truth,
                ) -> dict[str, Flags]:
                    scores, sizes = amounts(making(generator, truth, part, answers), evidence)
                    clear = scores.sum(axis=1) >= threshold * sizes.sum(axis=1)
                    e_values, p_values, shown = np.zeros(part), np.zeros(part), []
                    for _ in range(ORDERS):
                        order = generator.permutation(answers)
                        capital = capitals(scores[:, order], sizes[:, order], threshold)
                        largest = np.maximum(capital.max(axis=1), 0.0)
                        shown.append((largest >= -np.log(ALPHA)) & clear)
                        e_values += np.exp(capital[:, -1]) / ORDERS
                        p_values += np.exp(-largest) / ORDERS
                    return {
                        "ours": shown[0],
                        "another": shown[0] != shown[1],
                        "e": (e_values >= 1 / ALPHA) & clear,
                        "p": (2 * p_values <= ALPHA) & clear,
                    }

                found = {name: 100 * rate for name, rate in in_parts(runs, answers, judge).items()}
                name = making.__name__.replace("_", " ")
                print(
                    f"  {name:32} {evidence:10} {answers:4} {truth:6.2f} {found['ours']:6.1f} {found['another']:8.1f}"
                    f" {found['e']:9.1f} {found['p']:6.1f}",
                    flush=True,
                )


def capitals(scores: Numbers, sizes: Numbers, mean: float) -> Numbers:
    """Log of the capital after each item, (runs, items), as `betting` has it."""
    stakes = np.minimum(betting._stakes(scores, sizes, ALPHA, "once"), betting.LARGEST_STAKE / mean)
    return np.asarray(np.cumsum(np.log1p(stakes * (scores - mean * sizes)), axis=1))


def three(passing: float, failing: float) -> str:
    return f"{100 * passing:4.0f}/{100 * (1 - passing - failing):4.0f}/{100 * failing:4.0f}"


def speed() -> None:
    scores = np.random.default_rng(0).beta(9, 1, 10_000)
    start = time.process_time()
    for _ in range(20):
        lower_bound(scores, alpha=ALPHA), upper_bound(scores, alpha=ALPHA)
    print(f"\nboth bounds of 10,000 scores: {(time.process_time() - start) / 20 * 1e3:.0f} ms of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=20_000, help="simulated at the threshold; a tenth at other truths, and of orders"
    )
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--parts", default="threshold,looks,truths,orders,speed")
    arguments = parser.parse_args()
    runs, fewer = arguments.runs, max(1, arguments.runs // 10)
    parts: dict[str, Callable[[], None]] = {
        "threshold": lambda: at_the_threshold(arguments.threshold, runs),
        "looks": lambda: adding_items(arguments.threshold, runs),
        "truths": lambda: at_other_truths(arguments.threshold, fewer),
        "orders": lambda: other_orders(arguments.threshold, fewer),
        "speed": speed,
    }
    for part in arguments.parts.split(","):
        parts[part]()


if __name__ == "__main__":
    main()
