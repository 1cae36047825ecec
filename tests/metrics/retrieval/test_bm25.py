"""The index against BM25 written down again here, its files, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.retrieval.bm25 import Bm25Index, Bm25Parameters, build_bm25_index, terms_of
from realign_cluster.metrics.retrieval.index_folder import DamagedIndex
from realign_cluster.metrics.retrieval.retriever import Passage, Retriever

TEXTS = (
    "The harbour of Velmar was dug in 1,204 by monks.",
    "Monks brewed beer in Velmar, and beer was sold in the harbour.",
    "A lighthouse stands north of the town.",
    "Beer, beer, beer: the town's brewers export 12 kinds.",
)


def passages(*texts: str) -> list[Passage]:
    return [Passage(id=f"p{at}", text=text) for at, text in enumerate(texts)]


def by_hand(texts: tuple[str, ...], query: str, k1: float = 0.9, b: float = 0.4) -> list[float]:
    documents = [Counter(terms_of(text)) for text in texts]
    lengths = [sum(document.values()) for document in documents]
    mean = sum(lengths) / len(lengths)
    scores = [0.0] * len(texts)
    for term in terms_of(query):
        frequency = sum(term in document for document in documents)
        idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
        for at, document in enumerate(documents):
            tf = document[term]
            scores[at] += idf * tf / (tf + k1 * (1 - b + b * lengths[at] / mean))
    return scores


@pytest.mark.parametrize("parameters", [Bm25Parameters(), Bm25Parameters(k1=1.5, b=0.75)])
@pytest.mark.parametrize("query", ["beer of the monks", "harbours dug in 1204", "lighthouse lighthouse town", "twelve"])
def test_scores_are_those_of_the_formula(tmp_path: Path, query: str, parameters: Bm25Parameters):
    index = build_bm25_index(passages(*TEXTS), tmp_path / "index", parameters=parameters)
    expected = {
        f"p{at}": score for at, score in enumerate(by_hand(TEXTS, query, parameters.k1, parameters.b)) if score > 0
    }
    (ranking,) = index.search([query], 10)
    assert dict(zip(ranking.ids, ranking.scores, strict=True)) == pytest.approx(expected, rel=1e-5)
    assert list(ranking.ids) == sorted(expected, key=lambda key: -expected[key])


WORDS = st.sampled_from(["red", "green", "blue", "cyan", "amber", "teal", "plum"])


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8),
    query=st.lists(WORDS, min_size=1, max_size=4).map(" ".join),
    k=st.integers(1, 9),
)
def test_any_small_corpus_is_ranked_by_the_formula(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], query: str, k: int
):
    index = build_bm25_index(passages(*texts), tmp_path_factory.mktemp("any") / "index")
    (ranking,) = index.search([query], k)
    expected = by_hand(tuple(texts), query)
    found = [score for score in sorted(expected, reverse=True) if score > 0][:k]
    assert list(ranking.scores) == pytest.approx(found, rel=1e-5)
    assert [expected[int(name[1:])] for name in ranking.ids] == pytest.approx(list(ranking.scores), rel=1e-5)


def test_equal_scores_keep_the_order_of_the_passages(tmp_path: Path):
    index = build_bm25_index(passages(*["a red stone"] * 7, "a blue stone"), tmp_path / "index")
    assert isinstance(index, Retriever)
    assert index.search(["red"], 4)[0].ids == ("p0", "p1", "p2", "p3")
    assert len(index.search(["red"], 100)[0].ids) == 7


def test_nothing_in_common_is_not_found(tmp_path: Path):
    index = build_bm25_index(passages(*TEXTS), tmp_path / "index")
    assert [ranking.ids for ranking in index.search(["zeppelin", "the of", "", "?!"], 3)] == [()] * 4
    with pytest.raises(ValueError, match="at least 1"):
        index.search(["beer"], 0)


def test_a_passage_of_punctuation_is_never_found(tmp_path: Path):
    index = build_bm25_index(passages("...", "a stone"), tmp_path / "index")
    assert index.search(["stone ..."], 2)[0].ids == ("p1",)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no passages"),
        (passages("...", "?!"), "hold no words"),
        (passages("text", " \n"), r"passage 2 \(p1\) has no text"),
        ([*passages("text"), Passage(id="p0", text="more")], "passage 2 has the id p0"),
    ],
)
def test_sources_that_cannot_be_indexed_are_refused(tmp_path: Path, bad: list[Passage], message: str):
    with pytest.raises(UsageError, match=message):
        build_bm25_index(bad, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_process_builds_the_same_bytes(tmp_path: Path):
    build_bm25_index(passages(*TEXTS), tmp_path / "one")
    code = (
        "import sys; from pathlib import Path\n"
        "from realign_cluster.metrics.retrieval.bm25 import build_bm25_index\n"
        "from realign_cluster.metrics.retrieval.retriever import Passage\n"
        "texts = sys.argv[2:]\n"
        "build_bm25_index([Passage(id=f'p{at}', text=text) for at, text in enumerate(texts)], Path(sys.argv[1]))\n"
    )
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(folder), *TEXTS], check=True, env=environment)
        assert contents(folder) == contents(tmp_path / "one")


def test_an_index_is_opened_again_and_never_replaced_by_another(tmp_path: Path):
    folder = tmp_path / "index"
    first = build_bm25_index(passages(*TEXTS), folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = build_bm25_index(passages(*TEXTS), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.fingerprint() == first.fingerprint() == Bm25Index(folder).fingerprint()
    assert Bm25Index(folder).search(["beer"], 2) == first.search(["beer"], 2)
    with pytest.raises(UsageError, match="other passages or parameters"):
        build_bm25_index(passages(*TEXTS), folder, parameters=Bm25Parameters(k1=1.2))
    with pytest.raises(UsageError, match="other passages or parameters"):
        build_bm25_index(passages(*TEXTS[:3]), folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="is no index"):
        build_bm25_index(passages(*TEXTS), tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_flipped_bit_or_a_missing_file_is_noticed(tmp_path: Path):
    folder = tmp_path / "index"
    build_bm25_index(passages(*TEXTS), folder)
    data = folder / "data.csc.index.npy"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedIndex, match=r"data\.csc\.index\.npy"):
        Bm25Index(folder)
    data.unlink()
    with pytest.raises(DamagedIndex):
        Bm25Index(folder)
    with pytest.raises(UsageError, match="holds no index"):
        Bm25Index(tmp_path / "elsewhere")


def r_precision(ranked: Sequence[str], relevant: set[str]) -> float:
    return len(relevant & set(ranked[: len(relevant)])) / len(relevant)


@pytest.mark.data
def test_it_finds_the_sentences_that_people_marked(tmp_path: Path):
    """WiCE's even rows (parameters were looked at on the others), each claim in its own article: about as good as
    counting shared words, and far from chance.
    """
    folder = Path(os.environ.get("REALIGN_DATA") or Path(__file__).parents[3].parent / "shared" / "data")
    path = folder / "wice_claim_dev.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {folder} (REALIGN_DATA names another folder)")
    ours, plain, chance = [], [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[::8]):
        row = json.loads(line)
        relevant = {str(at) for group in row["supporting_sentences"] for at in group}
        sentences = [Passage(id=str(at), text=text) for at, text in enumerate(row["evidence"]) if text.strip()]
        if not relevant:
            continue
        index = build_bm25_index(sentences, tmp_path / str(number))
        ours.append(r_precision(index.search([row["claim"]], len(sentences))[0].ids, relevant))
        wanted = set(terms_of(row["claim"]))
        by_count = sorted(sentences, key=lambda one: -len(wanted & set(terms_of(one.text))))
        plain.append(r_precision([passage.id for passage in by_count], relevant))
        shuffled = random.Random(number).sample([passage.id for passage in sentences], len(sentences))
        chance.append(r_precision(shuffled, relevant))
    assert len(ours) >= 35
    assert sum(ours) / len(ours) > 0.45
    assert sum(ours) >= sum(plain) - 0.02 * len(plain)
    assert sum(chance) / len(chance) < 0.2
