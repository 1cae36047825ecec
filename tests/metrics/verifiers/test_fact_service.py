"""The adapter against a real server on this machine that answers, stalls, drips, fails and lies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from realign_cluster.metrics.verifiers.cache import Cached, VerdictCache
from realign_cluster.metrics.verifiers.fact_service import (
    FactService,
    FactServiceError,
    FactServiceSettings,
)
from realign_cluster.metrics.verifiers.verdict import Pair, Span, Verifier
from tests.metrics.verifiers.fact_server import Handler, Service, honest, serving

PAIRS = [Pair(claim=f"claim {at}", evidence=f"evidence {at}") for at in range(5)]


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as server:
        yield server


def adapter(service: Service, **options: Any) -> FactService:
    return FactService(FactServiceSettings(url=service.url, version="7", **{"attempts": 1, **options}))


def test_it_is_reached_or_not(service: Service):
    found = adapter(service)
    assert isinstance(found, Verifier)
    found.reach()
    assert [body for _, body in service.requests] == [{"pairs": []}]
    with pytest.raises(FactServiceError, match="version '7', '8' was configured"):
        FactService(FactServiceSettings(url=service.url, version="8", attempts=1)).reach()


@pytest.mark.parametrize("url", ["http://example.org/check", "ftp://127.0.0.1/", "file:///etc/hosts", "nonsense", ""])
def test_claims_do_not_travel_in_the_open(url: str):
    with pytest.raises(ValidationError, match="is not https"):
        FactServiceSettings(url=url, version="7")
    with pytest.raises(ValidationError, match="token_variable"):
        FactServiceSettings(url="https://me:secret@example.org/check", version="7")
    assert FactServiceSettings(url="https://example.org/check", version="7").url == "https://example.org/check"


def test_verdicts_come_in_order_a_request_at_a_time(service: Service):
    verdicts = adapter(service, pairs_per_request=2).score([*PAIRS, Pair(claim=" ", evidence="x")])
    assert [verdict.supported for verdict in verdicts] == [0.0, 0.25, 0.5, 0.75, 1.0, None]
    assert [verdict.label for verdict in verdicts] == ["unverifiable"] * 2 + ["supported"] * 3 + [None]
    assert verdicts[0].span == Span(start=0, end=10)
    assert [len(body["pairs"]) for _, body in service.requests] == [2, 2, 1]
    assert service.requests[0][1]["pairs"][0] == {"claim": "claim 0", "evidence": "evidence 0"}


def test_it_may_be_asked_without_evidence(service: Service):
    service.answer = lambda handler, body: handler.reply(
        {"version": "7", "verdicts": [{"supported": 0.1, "label": "contradicted", "span": [3, 9]}, {"supported": None}]}
    )
    known, unknown = adapter(service).score([Pair(claim="claim 1", evidence=""), Pair(claim="claim 2", evidence=())])
    assert (known.label, known.span) == ("contradicted", None)  # a span of nothing
    assert unknown.reason == "the service has no answer"


def test_the_token_is_sent_and_must_be_there(service: Service, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FactServiceError, match="FACTS_OF_A_TEST is not set"):
        adapter(service, token_variable="FACTS_OF_A_TEST")
    monkeypatch.setenv("FACTS_OF_A_TEST", "secret")
    found = adapter(service, token_variable="FACTS_OF_A_TEST")
    found.score(PAIRS[:1])
    assert service.requests[0][0]["Authorization"] == "Bearer secret"
    assert "secret" not in json.dumps(found.facts())


def test_redirects_are_not_followed(service: Service):
    service.answer = lambda handler, body: handler.reply(b"", 307, Location=service.url)
    with pytest.raises(FactServiceError, match="answered 307"):
        adapter(service).score(PAIRS[:1])
    assert len(service.requests) == 1


def test_it_is_tried_again_when_that_may_help(service: Service):
    def second_time(handler: Handler, body: dict[str, Any]) -> None:
        if len(service.requests) < 2:
            handler.reply({"error": "busy"}, 503)
        else:
            honest(handler, body)

    service.answer = second_time
    assert adapter(service, attempts=3).score(PAIRS[:1])[0].supported == 0.0
    assert len(service.requests) == 2


def test_and_not_when_it_will_not(service: Service):
    service.answer = lambda handler, body: handler.reply({"error": "no"}, 403)
    with pytest.raises(FactServiceError, match="answered 403"):
        adapter(service, attempts=3).score(PAIRS[:1])
    assert len(service.requests) == 1


def test_a_service_that_stalls_or_drips_is_left(service: Service):
    left = threading.Event()

    def stall(handler: Handler, body: dict[str, Any]) -> None:
        left.wait(10)

    def drip(handler: Handler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not left.is_set():
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    for answer, message in ((stall, "timed out"), (drip, "did not answer in time")):
        service.answer = answer
        started = time.monotonic()
        with pytest.raises(FactServiceError, match=message):
            adapter(service, timeout_seconds=0.3).score(PAIRS[:1])
        assert time.monotonic() - started < 5
    left.set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "answered something else"),
        ({"version": "7"}, "verdicts: Field required"),
        ({"version": "7", "verdicts": [{"supported": 1.5}]}, r"verdicts\.0\.supported"),
        ({"version": "7", "verdicts": [{"supported": 0.5, "label": "true"}]}, r"verdicts\.0\.label"),
        ({"version": "7", "verdicts": []}, "0 verdicts on 1 pairs"),
        ({"version": "8", "verdicts": [{"supported": 0.5}]}, "version '8', '7' was configured"),
        (b" " * (9 * 1024 * 1024), "more than 8388608 bytes"),
    ],
)
def test_other_answers_are_refused(service: Service, content: Any, message: str):
    service.answer = lambda handler, body: handler.reply(content)
    with pytest.raises(FactServiceError, match=message):
        adapter(service).score(PAIRS[:1])


def test_nobody_there():
    silent = Service()
    url = silent.url
    silent.server_close()
    with pytest.raises(FactServiceError, match="was not reached"):
        FactService(FactServiceSettings(url=url, version="7", attempts=2)).score(PAIRS[:1])


def test_answers_are_kept_under_its_address_and_version(service: Service, tmp_path: Path):
    def dies_after_two(handler: Handler, body: dict[str, Any]) -> None:
        handler.reply({}, 500) if len(service.requests) > 2 else honest(handler, body)

    with VerdictCache(tmp_path / "verdicts.sqlite") as cache:
        service.answer = dies_after_two
        with pytest.raises(FactServiceError, match="answered 500"):
            Cached(adapter(service, pairs_per_request=2), cache, batch=2).score(PAIRS)
        service.answer = honest
        service.requests.clear()
        found = Cached(adapter(service, pairs_per_request=2), cache, batch=2)
        assert [verdict.supported for verdict in found.score(PAIRS)] == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert [pair["claim"] for _, body in service.requests for pair in body["pairs"]] == ["claim 4"]
    newer = FactService(FactServiceSettings(url=service.url, version="8"))
    assert newer.fingerprint() != found.fingerprint()
