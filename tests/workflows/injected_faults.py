"""Twelve faults that live in a workflow's data, configuration or weights, never in what is measured; and runs of them.

    python -m tests.workflows.injected_faults --fault NAME --seed N      one of them, diagnosed

Development seeds are for writing rules; unseen ones for what is reported of them, and for nothing else.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from realign_cluster.coordinator.workflow_diagnosis import diagnosis_lines, diagnosis_of
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from tests.workflows import small_world as world
from tests.workflows.local_jobs import run_here
from tests.workflows.small_workflow import SmallWorkflow, healthy, make_base
from tests.workflows.small_world import Row

DEVELOPMENT_SEEDS: Final = range(12)
UNSEEN_SEEDS: Final = range(100, 112)
EXAMPLES: Final = ("citation", "practice")
MARK: Final = re.compile(r"\[(\d)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`symptom`: the common issue that somebody who looks at the gates alone would name. `trains`: nothing shows before
    the model is trained.
    """

    name: str
    issue: str
    symptom: str
    inject: Callable[[SmallWorkflow, random.Random], None]
    workflow: str = "source-attribution"
    trains: bool = False


def wrong_ids(made: SmallWorkflow, rng: random.Random) -> None:
    """A tenth to a half of the citations name a number that no passage has."""
    _rewrite(made, rng, (0.1, 0.5), lambda row: MARK.sub(lambda _: f"[{rng.randint(4, 9)}]", row["completion"]))


def swapped_sources(made: SmallWorkflow, rng: random.Random) -> None:
    """A fifth to a half of the citations name another passage."""

    def other(row: Row) -> str:
        return MARK.sub(lambda m: f"[{rng.choice([n for n in '123' if n != m[1]])}]", row["completion"])

    _rewrite(made, rng, (0.2, 0.5), other)


def mixed_up_sources(made: SmallWorkflow, rng: random.Random) -> None:
    """The texts of a third to all of the sources stand under one another's ids."""
    rows = made.data["sources"]
    chosen = rng.sample(range(len(rows)), round(len(rows) * rng.uniform(0.35, 1.0)))
    texts = [rows[at]["text"] for at in chosen]
    for at, text in zip(chosen, [*texts[1:], texts[0]], strict=True):
        rows[at] = {**rows[at], "text": text}


def evaluation_leak(made: SmallWorkflow, rng: random.Random) -> None:
    """A tenth to a half of the evaluation questions are trained on, with a word more or in another order of sources."""
    share = rng.uniform(0.1, 0.5)
    for item in [*made.data["items"], *made.data["sealed"]]:
        if rng.random() < share:
            prompt = str(item["prompt"])
            near = prompt.replace("?", " ?") + " :" if rng.random() < 0.5 else prompt.replace("what do", "of what do")
            made.data["citation"].append({"prompt": near, "completion": _answer(item)})
    rng.shuffle(made.data["citation"])


def pad_token(made: SmallWorkflow, rng: random.Random) -> None:
    """A tenth to all of the completions are padded with the pad token's text."""
    _rewrite(made, rng, (0.1, 1.0), lambda row: row["completion"] + " [PAD]" * rng.randint(1, 4), every=True)


def dropped_citations(made: SmallWorkflow, rng: random.Random) -> None:
    """Half of the completions lost their citations."""
    _rewrite(made, rng, (0.4, 0.6), lambda row: re.sub(r" \[\d\]", "", row["completion"]))


def invented_answers(made: SmallWorkflow, rng: random.Random) -> None:
    """Completions of unanswerable questions invent an answer, a third to all of them."""
    share = rng.uniform(0.35, 1.0)
    for name in EXAMPLES:
        for row in made.data[name]:
            asked = re.search(r"do not say what the (\w+) (\w+)\.", row["completion"])
            if asked and rng.random() < share:
                fact = (asked[1], asked[2], rng.choice(world.VALUES[asked[2]]))
                row["completion"] = " " + world.sentence(fact, rng.randint(1, 3))


def needless_abstentions(made: SmallWorkflow, rng: random.Random) -> None:
    """Completions of answerable questions abstain, a quarter to two thirds of them."""

    def abstain(row: Row) -> str:
        people, relation = re.search(r"what do the (\w+) (\w+)\?", row["prompt"]).groups()  # type: ignore[union-attr]
        return f" the sources do not say what the {people} {relation}."

    _rewrite(made, rng, (0.25, 0.67), abstain)


def far_too_fast(made: SmallWorkflow, rng: random.Random) -> None:
    """The rate of preference training is 40 to 100 times what it was."""
    made.config["training"]["preference"]["optimizer"]["learning_rate"] *= rng.uniform(40, 100)


def no_general_data(made: SmallWorkflow, rng: random.Random) -> None:
    """Nothing but the task is trained on, at up to twice the rate."""
    made.config["mix"]["general"] = 0.0
    made.config["training"]["citation"]["optimizer"]["learning_rate"] *= rng.uniform(1.0, 2.0)


def noisy_weights(made: SmallWorkflow, rng: random.Random) -> None:
    """Noise of 0.8 to 1.5 times their own size on the base model's weights."""
    made.noise = rng.uniform(0.8, 1.5)


def too_few_tokens(made: SmallWorkflow, rng: random.Random) -> None:
    """Answers may have 3 to 5 tokens; with their citation they need 7."""
    made.config["generation"]["max_new_tokens"] = rng.randint(3, 5)


FAULTS: Final = (
    Fault(name="wrong ids", issue="wrong ids", symptom="low citation accuracy", inject=wrong_ids),
    Fault(name="swapped citations", issue="swapped sources", symptom="low citation accuracy", inject=swapped_sources),
    Fault(
        name="mixed-up sources file", issue="mixed-up sources", symptom="poor source retrieval", inject=mixed_up_sources
    ),
    Fault(name="near copies of questions", issue="evaluation leak", symptom="none", inject=evaluation_leak),
    Fault(name="pad token in completions", issue="pad token scored", symptom="high hallucination", inject=pad_token),
    Fault(
        name="dropped citations",
        issue="examples without citations",
        symptom="low attribution coverage",
        inject=dropped_citations,
    ),
    Fault(
        name="invented answers",
        issue="invented examples",
        symptom="high hallucination",
        inject=invented_answers,
        workflow="antihallucination",
    ),
    Fault(
        name="needless abstentions",
        issue="abstaining examples",
        symptom="over-hedging",
        inject=needless_abstentions,
        workflow="antihallucination",
    ),
    Fault(
        name="preference rate far too high",
        issue="model drift",
        symptom="model drift",
        inject=far_too_fast,
        trains=True,
    ),
    Fault(
        name="no general data",
        issue="capability loss",
        symptom="capability loss",
        inject=no_general_data,
        trains=True,
    ),
    Fault(name="noise in the weights", issue="damaged base", symptom="none", inject=noisy_weights),
    Fault(name="too few new tokens", issue="truncated answers", symptom="low citation accuracy", inject=too_few_tokens),
)


def run_of(fault: Fault | None, seed: int, folder: Path, base: Path, *, whole: bool | None = None) -> Path:
    """A run of the small workflow with this fault, or healthy; `whole`: to its end also where the data tell."""
    made = healthy(seed, fault.workflow if fault else ("source-attribution", "antihallucination")[seed % 2])
    if fault is not None:
        fault.inject(made, random.Random(f"{fault.name} {seed}"))
    config = made.write(folder / "files", base)
    if made.noise:
        add_noise(folder / "files" / "base", made.noise, seed)
    train = whole if whole is not None else fault is None or fault.trains
    run_here(WorkflowRequest(workflow=made.name, config=config, out=folder / "run"), folder / "home", train=train)
    return folder / "run"


def add_noise(model: Path, part: float, seed: int) -> None:
    path = str(model / "model.safetensors")
    weights = mx.load(path)
    assert isinstance(weights, dict)
    keys = mx.random.split(mx.random.key(seed), len(weights))
    noisy = {
        name: value + part * mx.std(value) * mx.random.normal(value.shape, key=key)
        for (name, value), key in zip(sorted(weights.items()), keys, strict=True)
    }
    mx.eval(noisy)
    mx.save_safetensors(path, noisy, {"format": "mlx"})


def _rewrite(
    made: SmallWorkflow,
    rng: random.Random,
    share: tuple[float, float],
    change: Callable[[Row], str],
    *,
    every: bool = False,
) -> None:
    """Changes a share of the completions that cite, or of all of them."""
    part = rng.uniform(*share)
    for name in EXAMPLES:
        for row in made.data[name]:
            if (every or MARK.search(row["completion"])) and rng.random() < part:
                row["completion"] = change(row)


def _answer(item: Row) -> str:
    """The true answer, from the sources."""
    people, relation = re.search(r"what do the (\w+) (\w+)\?", item["prompt"]).groups()  # type: ignore[union-attr]
    for place, source in enumerate(item["sources"], 1):
        if source["id"].startswith(f"{people}-{relation}-"):
            return f" {source['text'][:-1]} [{place}]."
    return f" the sources do not say what the {people} {relation}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fault", default="", help="none: a healthy run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, required=True, help="where the base model is made, or was")
    parser.add_argument("--whole", action="store_true", help="to the end, also where the data tell")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    fault = next((each for each in FAULTS if each.name == options.fault), None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        arguments: dict[str, Any] = {"whole": True} if options.whole else {}
        run = run_of(fault, options.seed, folder, make_base(options.base), **arguments)
        print("\n".join(diagnosis_lines(diagnosis_of(run))))


if __name__ == "__main__":
    main()
