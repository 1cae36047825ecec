"""Verdicts are found again by content, by any process, and survive one that is killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.errors import RealignError
from realign_cluster.metrics.verifiers.cache import Cached, VerdictCache
from realign_cluster.metrics.verifiers.lexical import LexicalRules, LexicalVerifier
from realign_cluster.metrics.verifiers.verdict import LABELS, Pair, Span, Verdict, Verifier, undefined
from tests.metrics.verifiers.made import Chosen, by_number

PAIRS = [Pair(claim=f"0.{at}", evidence=f"text {at}") for at in range(1, 8)]


def test_only_what_is_not_known_is_asked(tmp_path: Path):
    with VerdictCache(tmp_path / "home" / "verdicts.sqlite") as cache:
        first = Chosen(by_number)
        assert isinstance(Cached(first, cache), Verifier)
        once = Cached(first, cache).score([*PAIRS[:3], PAIRS[0]])
        assert first.asked == PAIRS[:3]
        assert once == [by_number(pair) for pair in (*PAIRS[:3], PAIRS[0])]
    with VerdictCache(tmp_path / "home" / "verdicts.sqlite") as cache:
        second = Chosen(by_number)
        assert Cached(second, cache).score(PAIRS) == [by_number(pair) for pair in PAIRS]
        assert second.asked == PAIRS[3:]
        assert Cached(Chosen(by_number, name="another"), cache).fingerprint() != second.fingerprint()
        another = Chosen(by_number, name="another")
        Cached(another, cache).score(PAIRS)
        assert another.asked == PAIRS


def test_evidence_in_one_piece_or_in_several_is_the_same_pair():
    assert Pair(claim="c", evidence=("a", "b")).key == Pair(claim="c", evidence="a\nb").key
    assert len({Pair(claim=c, evidence=e).key for c, e in [("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", "")]}) == 4


def test_that_there_was_no_answer_is_kept_too(tmp_path: Path):
    with VerdictCache(tmp_path / "verdicts.sqlite") as cache:
        silent = Chosen(lambda pair: undefined("no answer"))
        for _ in range(2):
            assert Cached(silent, cache).score(PAIRS[:1]) == [undefined("no answer")]
        assert silent.asked == PAIRS[:1]


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path):
    def answer(pair: Pair) -> Verdict:
        if pair == PAIRS[5]:
            raise OSError("the line is dead")
        return by_number(pair)

    with VerdictCache(tmp_path / "verdicts.sqlite") as cache:
        with pytest.raises(OSError, match="dead"):
            Cached(Chosen(answer), cache, batch=2).score(PAIRS)
        again = Chosen(by_number)
        Cached(again, cache, batch=2).score(PAIRS)
        assert again.asked == PAIRS[4:]


SPANS = st.none() | st.tuples(st.integers(0, 9), st.integers(10, 99)).map(lambda ends: Span(start=ends[0], end=ends[1]))
VERDICTS = st.builds(
    Verdict, supported=st.floats(0, 1), label=st.sampled_from(LABELS), span=SPANS, reason=st.text(max_size=9)
)


@given(verdict=VERDICTS)
def test_verdicts_come_back_as_they_were(verdict: Verdict):
    with VerdictCache(Path(":memory:")) as cache:
        cache.add("f", {"key": verdict})
        cache.add("f", {"key": Verdict(supported=0.0, label="unverifiable")})  # the first stays
        assert cache.find("f", ["key", "other"]) == {"key": verdict}
        assert cache.find("g", ["key"]) == {}


def test_more_keys_than_a_statement_takes(tmp_path: Path):
    pairs = [Pair(claim="0.5", evidence=f"text {at}") for at in range(1201)]
    with VerdictCache(tmp_path / "verdicts.sqlite") as cache:
        Cached(Chosen(by_number), cache).score(pairs)
        silent = Chosen(by_number)
        Cached(silent, cache).score(pairs)
        assert silent.asked == []


def test_a_file_that_is_none_is_named(tmp_path: Path):
    path = tmp_path / "verdicts.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(RealignError, match=r"verdicts\.sqlite.*\n.*rm "):
        VerdictCache(path)


WRITER = """
import sys
from pathlib import Path
from realign_cluster.metrics.verifiers.cache import Cached, VerdictCache
from realign_cluster.metrics.verifiers.lexical import LexicalVerifier
from realign_cluster.metrics.verifiers.verdict import Pair
first, last = int(sys.argv[2]), int(sys.argv[3])
with VerdictCache(Path(sys.argv[1])) as cache:
    for at in range(first, last):
        Cached(LexicalVerifier(), cache, batch=8).score(
            [Pair(claim=f"stone {n} is grey", evidence=f"Stone {n} is grey.") for n in range(at * 8, at * 8 + 8)]
        )
        print(at, flush=True)
"""


def stone(number: int) -> Pair:
    return Pair(claim=f"stone {number} is grey", evidence=f"Stone {number} is grey.")


def test_several_processes_write_and_one_is_killed(tmp_path: Path):
    path = tmp_path / "verdicts.sqlite"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(first), str(last)], stdout=subprocess.PIPE, text=True
        )
        for first, last in ((0, 20), (10, 30), (100, 100_000))
    ]
    victim = writers[2]
    assert victim.stdout is not None
    committed = [int(victim.stdout.readline()) for _ in range(5)]
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    for writer in writers[:2]:
        assert writer.communicate(timeout=60)
        assert writer.returncode == 0
    started = time.monotonic()
    with VerdictCache(path) as cache:
        pairs = [stone(number) for at in (*range(30), *committed) for number in range(at * 8, at * 8 + 8)]
        fingerprint = LexicalVerifier().fingerprint()
        known = cache.find(fingerprint, [pair.key for pair in pairs])
        assert [known[pair.key] for pair in pairs] == LexicalVerifier().score(pairs)
        cache.add(LexicalVerifier(LexicalRules(kin=0.5)).fingerprint(), known)
    assert time.monotonic() - started < 20  # no lock was left behind
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
