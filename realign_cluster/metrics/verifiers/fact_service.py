"""An outside fact-checking service or citation database as a verifier, over HTTP.

A service that speaks another language needs a small server before it that speaks this one:

    POST url    {"pairs": [{"claim": "...", "evidence": "..."}, ...]}
    200         {"version": "2026-11", "verdicts": [{"supported": 0.93, "label": "supported", "span": [0, 41]}, ...]}

`supported` is a probability or null; `label` (supported, contradicted, unverifiable) and `span` (characters of the
evidence) may be left out. A service with sources of its own may be asked without evidence. Asked with no pairs it gives
its version and no verdicts. What it answers another time may differ, so wrap it in `Cached`, with a request's pairs as
batch: the first answer is then kept under its address and version, also when a later request fails. A service whose
version is not the one that was configured is not used, for its verdicts would count as another's.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from realign_cluster.domain.errors import RealignError
from realign_cluster.metrics.verifiers.report import CalibrationReport
from realign_cluster.metrics.verifiers.verdict import (
    EVEN_ODDS,
    Label,
    Pair,
    Span,
    Verdict,
    fingerprint_of,
    undefined,
)

PROTOCOL_VERSION = 1
LARGEST_ANSWER_BYTES = 8 * 1024 * 1024
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
_TO_BE_TRIED_AGAIN = {408, 429, 500, 502, 503, 504}


class FactServiceError(RealignError):
    """The service was not reached, refused, or answered something else."""


class _PerhapsLater(FactServiceError):
    """Worth another try."""


class FactServiceSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    version: str = Field(min_length=1)  # what the service must call itself
    timeout_seconds: float = Field(default=20.0, gt=0)  # of one request, all of it
    attempts: int = Field(default=3, ge=1)
    pairs_per_request: int = Field(default=16, ge=1)
    token_variable: str = ""  # the environment variable that holds a bearer token

    @field_validator("url")
    @classmethod
    def _private(cls, url: str) -> str:
        parts = urllib.parse.urlsplit(url)
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _is_here(parts.hostname))):
            raise ValueError(f"{url} is not https, nor http to this machine: claims would travel in the open")
        if parts.username or parts.password:
            raise ValueError("a name or password in it would be written down: token_variable names what is secret")
        return url


class _Answer(BaseModel):
    supported: float | None = Field(ge=0.0, le=1.0)
    label: Label | None = None
    span: tuple[int, int] | None = None


class _Answers(BaseModel):
    version: str
    verdicts: list[_Answer]


def fact_service_facts(settings: FactServiceSettings) -> dict[str, Any]:
    """All that its verdicts depend on besides the pair, as far as can be known here."""
    return {
        "verifier": "fact service",
        "protocol": PROTOCOL_VERSION,
        "url": settings.url,
        "version": settings.version,
    }


class FactService:
    def __init__(self, settings: FactServiceSettings) -> None:
        """Asks nothing yet. Raises FactServiceError for a token variable that is not set."""
        self._url, self._settings = settings.url, settings
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if settings.token_variable:
            token = os.environ.get(settings.token_variable, "")
            if not token:
                raise FactServiceError(f"{settings.token_variable} is not set", f"export {settings.token_variable}=...")
            self._headers["Authorization"] = f"Bearer {token}"
        here = _is_here(urllib.parse.urlsplit(self._url).hostname or "")
        direct = [urllib.request.ProxyHandler({})] if here else []
        self._opener = urllib.request.build_opener(_NoRedirects, *direct)

    def reach(self) -> None:
        """Raises FactServiceError where there is nobody, or another version."""
        self._answers(self._send(_body([])), 0)

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Raises FactServiceError when a request fails for good; wrapped in `Cached`, what was answered is kept."""
        verdicts: list[Verdict] = []
        size = self._settings.pairs_per_request
        for at in range(0, len(pairs), size):
            verdicts.extend(self._ask(pairs[at : at + size]))
        return verdicts

    def facts(self) -> Mapping[str, Any]:
        return fact_service_facts(self._settings)

    def fingerprint(self) -> str:
        return fingerprint_of(self.facts())

    def calibration_report(self) -> CalibrationReport | None:
        return None

    def _ask(self, pairs: Sequence[Pair]) -> list[Verdict]:
        asked = [pair for pair in pairs if pair.claim.strip()]
        answers: list[_Answer] = []
        if asked:
            answers = self._answers(self._send(_body(asked)), len(asked))
        remaining = iter(answers)
        return [
            _verdict(pair, next(remaining)) if pair.claim.strip() else undefined("the claim is empty") for pair in pairs
        ]

    def _answers(self, body: bytes, count: int) -> list[_Answer]:
        try:
            answers = _Answers.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FactServiceError(f"{self._url} answered something else: {where}: {first['msg']}") from None
        if answers.version != self._settings.version:
            raise FactServiceError(
                f"{self._url} is version {answers.version!r}, {self._settings.version!r} was configured",
                "configure the new version: verdicts of the old one are not reused",
            )
        if len(answers.verdicts) != count:
            raise FactServiceError(f"{self._url} gave {len(answers.verdicts)} verdicts on {count} pairs")
        return answers.verdicts

    def _send(self, body: bytes) -> bytes:
        for attempt in range(1, self._settings.attempts):
            try:
                return self._send_once(body)
            except _PerhapsLater:
                time.sleep(min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS))
        return self._send_once(body)

    def _send_once(self, body: bytes) -> bytes:
        deadline = time.monotonic() + self._settings.timeout_seconds
        request = urllib.request.Request(self._url, data=body, headers=self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._settings.timeout_seconds) as answer:
                return _read(answer, self._url, deadline)
        except urllib.error.HTTPError as error:
            with error:
                kind = _PerhapsLater if error.code in _TO_BE_TRIED_AGAIN else FactServiceError
                raise kind(f"{self._url} answered {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _PerhapsLater(f"{self._url} was not reached: {reason or type(error).__name__}") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Claims and token go to the address that was configured, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _read(answer: http.client.HTTPResponse, url: str, deadline: float) -> bytes:
    """All of it, unless it is too long or drips: the socket's own timeout starts again with each byte."""
    parts, size = [], 0
    while part := answer.read1(65536):
        parts.append(part)
        size += len(part)
        if size > LARGEST_ANSWER_BYTES:
            raise FactServiceError(f"{url} answers more than {LARGEST_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _PerhapsLater(f"{url} did not answer in time")
    return b"".join(parts)


def _body(pairs: Sequence[Pair]) -> bytes:
    return orjson.dumps({"pairs": [{"claim": pair.claim, "evidence": pair.text} for pair in pairs]})


def _verdict(pair: Pair, answer: _Answer) -> Verdict:
    if answer.supported is None:
        return undefined("the service has no answer")
    label = answer.label or ("supported" if answer.supported >= EVEN_ODDS else "unverifiable")
    span = None
    if answer.span is not None and 0 <= answer.span[0] < answer.span[1] <= len(pair.text):
        span = Span(start=answer.span[0], end=answer.span[1])
    return Verdict(supported=answer.supported, label=label, span=span)


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
