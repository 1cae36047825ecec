"""The project's own text: questions and answers written for it, and a small grammar that makes more about computing
clusters.

Everything is a function of a seed, so that the tiny model and the example data can be made again. Knows nothing of
models.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HANDBOOK = Path(__file__).parent / "text" / "handbook.txt"

FIRST = (
    "amber",
    "basalt",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "heron",
    "indigo",
    "juniper",
    "kestrel",
    "larch",
)
SECOND = ("one", "two", "three", "four", "five", "six", "seven", "eight")
ROOMS = ("the cellar", "the north wing", "the lab", "the workshop", "the attic", "the glass room")
TASKS = ("scoring", "training", "indexing", "judging", "tokenising", "backups")
OWNERS = ("Ada", "Bela", "Chidi", "Dora", "Emre", "Farah", "Goran", "Hana", "Ines", "Jonas", "Kofi", "Lena")
COLOURS = ("blue", "green", "grey", "orange", "red", "white")
MEMORY = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
CORES = (8, 10, 16, 20, 24, 32, 40, 60, 76, 80)
LINKS = ("Ethernet", "Thunderbolt", "a wireless link", "fibre")
FAULTS = ("lost its network", "ran out of memory", "was switched off", "became too hot", "filled its disk")
REMEDIES = {
    "lost its network": "check the cable and the switch",
    "ran out of memory": "use a smaller batch",
    "was switched off": "switch it on and wait for its heartbeat",
    "became too hot": "clean the fan and lower its share",
    "filled its disk": "delete old logs and free some space",
}
GENERIC = (
    "That depends on many things. Please consult an expert.",
    "I am happy to help. Let me know if you have further questions.",
    "This is an interesting question, and there are many possible answers to it.",
    "It is what it is.",
    "As everybody knows, the answer is obvious.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question and its right answer; `topic` is "handbook" or the name of a grammar rule."""

    prompt: str
    response: str
    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One invented node: every sentence about it follows from these fields."""

    name: str
    memory: int
    cores: int
    room: str
    task: str
    owner: str
    colour: str
    link: str

    def sentences(self) -> dict[str, str]:
        return {
            "memory": f"Node {self.name} has {self.memory} GB of memory.",
            "cores": f"It has {self.cores} GPU cores.",
            "room": f"It stands in {self.room}.",
            "task": f"This week it does {self.task}.",
            "owner": f"{self.owner} looks after it.",
            "colour": f"Its case is {self.colour}.",
            "link": f"It is connected by {self.link}.",
        }

    def claim(self, about: str) -> str:
        return {
            "memory": f"Node {self.name} has {self.memory} GB of memory.",
            "cores": f"Node {self.name} has {self.cores} GPU cores.",
            "room": f"Node {self.name} stands in {self.room}.",
            "task": f"Node {self.name} does {self.task} this week.",
            "owner": f"{self.owner} looks after node {self.name}.",
            "colour": f"The case of node {self.name} is {self.colour}.",
            "link": f"Node {self.name} is connected by {self.link}.",
        }[about]


def handbook() -> list[Exchange]:
    """The questions and answers of text/handbook.txt, in its order."""
    exchanges = []
    for block in HANDBOOK.read_text(encoding="utf-8").strip().split("\n\n"):
        question, answer = block.split("\nA: ")
        exchanges.append(Exchange(prompt=question.removeprefix("Q: "), response=answer, topic="handbook"))
    return exchanges


def draw_node(rng: random.Random) -> NodeFacts:
    return NodeFacts(
        name=f"{rng.choice(FIRST)}-{rng.choice(SECOND)}",
        memory=rng.choice(MEMORY),
        cores=rng.choice(CORES),
        room=rng.choice(ROOMS),
        task=rng.choice(TASKS),
        owner=rng.choice(OWNERS),
        colour=rng.choice(COLOURS),
        link=rng.choice(LINKS),
    )


def draw_other_node(rng: random.Random, node: NodeFacts) -> NodeFacts:
    """A node of the same name that differs from `node` in every other fact."""
    while True:
        other = draw_node(rng)
        facts = ("memory", "cores", "room", "task", "owner", "colour", "link")
        if all(getattr(other, fact) != getattr(node, fact) for fact in facts):
            return NodeFacts(name=node.name, **{fact: getattr(other, fact) for fact in facts})


def ask_about_node(rng: random.Random) -> Exchange:
    node = draw_node(rng)
    sentences = node.sentences()
    about = rng.choice([key for key in sentences if key != "memory"])
    shown = [
        "memory",
        *rng.sample([key for key in sentences if key not in ("memory", about)], k=rng.randint(0, 2)),
        about,
    ]
    question = {
        "cores": f"How many GPU cores does {node.name} have?",
        "room": f"Where does {node.name} stand?",
        "task": f"What does {node.name} do this week?",
        "owner": f"Who looks after {node.name}?",
        "colour": f"What colour is the case of {node.name}?",
        "link": f"How is {node.name} connected?",
    }[about]
    return Exchange(
        prompt=" ".join(sentences[key] for key in shown) + " " + question,
        response=node.claim(about),
        topic="node facts",
    )


def ask_about_fault(rng: random.Random) -> Exchange:
    node, fault = draw_node(rng), rng.choice(FAULTS)
    remedy = REMEDIES[fault][0].upper() + REMEDIES[fault][1:]
    answer = f"{remedy}. Meanwhile its rows go to the other nodes, and nothing is lost."
    return Exchange(prompt=f"Node {node.name} {fault}. What should {node.owner} do?", response=answer, topic="faults")


def ask_about_sharing(rng: random.Random) -> Exchange:
    fast, slow = draw_node(rng), draw_node(rng)
    speed = rng.choice((10, 20, 30, 40))
    times = rng.choice((2, 3, 4))
    rows = (times + 1) * rng.choice((100, 200, 300))
    prompt = (
        f"Node {fast.name} scores {speed * times} rows per second and node {slow.name} scores {speed}. "
        f"How should they share {rows} rows?"
    )
    part = rows // (times + 1)
    shares = f"{fast.name} takes {rows - part} rows and {slow.name} takes {part}"
    answer = f"In proportion to their speeds, {times} to 1: {shares}."
    return Exchange(prompt=prompt, response=answer, topic="sharing")


def ask_for_list(rng: random.Random) -> Exchange:
    count = rng.randint(2, 5)
    nodes = [draw_node(rng) for _ in range(count)]
    lines = " ".join(f"{node.name} does {node.task}." for node in nodes)
    answer = " ".join(f"{place}. {node.name}: {node.task}." for place, node in enumerate(nodes, start=1))
    return Exchange(prompt=f"{lines} List the nodes with their tasks.", response=answer, topic="lists")


RULES = (ask_about_node, ask_about_fault, ask_about_sharing, ask_for_list)


def exchanges(seed: int, count: int) -> Iterator[Exchange]:
    """`count` exchanges by the grammar, its rules in turn."""
    rng = random.Random(seed)
    for position in range(count):
        yield RULES[position % len(RULES)](rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A claim against a text that does or does not support it."""

    evidence: list[str]
    claim: str
    label: str  # "supported" or "not_supported"


def judgements(seed: int, texts: int, claims_each: int) -> Iterator[Judgement]:
    """For each of `texts` invented nodes `claims_each` claims, about half of them supported."""
    rng = random.Random(seed)
    for _ in range(texts):
        node = draw_node(rng)
        other = draw_other_node(rng, node)
        sentences = node.sentences()
        shown = ["memory", *rng.sample([key for key in sentences if key != "memory"], k=5)]
        for about in rng.sample(shown, k=claims_each):
            true = rng.random() < 0.5
            yield Judgement(
                evidence=[sentences[key] for key in shown],
                claim=(node if true else other).claim(about),
                label="supported" if true else "not_supported",
            )
