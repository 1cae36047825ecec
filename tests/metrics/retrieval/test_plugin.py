"""Code of the user's that retrieves: what it must have, and what is said of what has it not."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.metrics.retrieval.choice import UsersCode, build_index, open_index, pinned_code
from realign_cluster.metrics.retrieval.index_folder import DamagedIndex
from realign_cluster.metrics.retrieval.retriever import Passage, Ranking, Retriever

PASSAGES = [Passage(id=f"p{at}", text=f"text {at}") for at in range(3)]
OWN = '''
import json
from pathlib import Path
from realign_cluster.metrics.retrieval.retriever import Ranking

class Newest:
    """The last passages first, whatever is asked."""
    def fingerprint(self):
        return Path(__file__).with_name("method").read_text()
    def build(self, passages, folder):
        (folder / "parts").mkdir()
        (folder / "parts" / "ids.json").write_text(json.dumps([passage.id for passage in passages]))
    def search(self, folder, queries, k):
        ids = json.loads((folder / "parts" / "ids.json").read_text())[::-1][:k]
        return [Ranking(ids=tuple(ids), scores=tuple(range(len(ids), 0, -1))) for _ in queries]

class Twice(Newest):
    def search(self, folder, queries, k):
        return super().search(folder, queries, k) * 2

class Broken(Newest):
    def build(self, passages, folder):
        raise ValueError("no room for an index")


def unfinished():
    raise OSError("the weights are not there")

class Vectors:
    def fingerprint(self):
        return "vectors"
    def embed(self, texts):
        raise MemoryError("too many texts")
'''


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with a module, found by its own name in each test session."""
    (tmp_path / "own_retriever_of_a_test.py").write_text(OWN)
    (tmp_path / "method").write_text("newest 1")
    return tmp_path


@pytest.fixture(autouse=True)
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module and no folder of one test is there in the next."""
    import sys

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_retriever_of_a_test", raising=False)


def test_what_the_page_shows_can_be_used(tmp_path: Path):
    page = (Path(__file__).parents[3] / "docs" / "workflows" / "source-data.md").read_text(encoding="utf-8")
    (shown,) = [block.split("```")[0] for block in page.split("```python\n")[1:] if "class Newest" in block]
    (tmp_path / "own_retriever_of_a_test.py").write_text(shown)
    index = build_index(pinned(tmp_path), PASSAGES, tmp_path / "index")
    assert index.search(["anything"], 2) == [Ranking(ids=("p2", "p1"), scores=(2, 1))]


def pinned(beside: Path, name: str = "Newest") -> UsersCode:
    return pinned_code("own", f"own_retriever_of_a_test:{name}", beside)


def test_it_builds_once_and_is_opened_again(beside: Path):
    choice = pinned(beside)
    built = build_index(choice, PASSAGES, beside / "index")
    assert isinstance(built, Retriever)
    opened = open_index(choice, beside / "index")
    assert opened.search(["anything", "else"], 2) == [Ranking(ids=("p2", "p1"), scores=(2, 1))] * 2
    assert opened.fingerprint() == built.fingerprint()
    with pytest.raises(UsageError, match="other passages"):
        build_index(choice, PASSAGES[:2], beside / "index")
    (beside / "index" / "parts" / "ids.json").write_text('["p9"]')
    with pytest.raises(DamagedIndex):
        open_index(choice, beside / "index")


def test_another_fingerprint_is_another_index(beside: Path):
    first = pinned(beside)
    built = build_index(first, PASSAGES, beside / "index")
    (beside / "method").write_text("newest 2")
    second = pinned(beside)
    with pytest.raises(UsageError, match="indexed by newest 1, not by newest 2"):
        open_index(second, beside / "index")
    with pytest.raises(UsageError, match="was newest 1, and is newest 2"):
        open_index(first, beside / "index")
    assert build_index(second, PASSAGES, beside / "other").fingerprint() != built.fingerprint()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("own_retriever_of_a_test:Oldest", "AttributeError: .*Oldest"),
        ("no_such_module_anywhere:Newest", "ModuleNotFoundError: .*no_such_module_anywhere"),
        ("own_retriever_of_a_test:unfinished", "OSError: the weights are not there"),
        ("own_retriever_of_a_test:Vectors", "gave a Vectors that has not all of: fingerprint, build, search"),
        ("json:dumps", "TypeError"),
    ],
)
def test_what_is_not_there_or_fails_is_said_at_once(beside: Path, code: str, said: str):
    with pytest.raises(UsageError, match=f"^{code}:? {said}"):
        pinned_code("own", code, beside)


def test_what_it_raises_later_is_said_with_its_name(beside: Path):
    with pytest.raises(RealignError, match="own_retriever_of_a_test:Broken: ValueError: no room for an index"):
        build_index(pinned(beside, "Broken"), PASSAGES, beside / "index")
    assert not (beside / "index").exists()
    vectors = pinned_code("vectors", "own_retriever_of_a_test:Vectors", beside)
    with pytest.raises(RealignError, match="own_retriever_of_a_test:Vectors: MemoryError: too many texts"):
        build_index(vectors, PASSAGES, beside / "index")
    with pytest.raises(RealignError, match="no list of 1 rankings"):
        build_index(pinned(beside, "Twice"), PASSAGES, beside / "index").search(["anything"], 2)
