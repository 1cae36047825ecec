"""Whether the input is still what was scanned: cheaply when a run is resumed, completely before its output counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.store.ledger import Ledger, LedgerReader, encode_meta
from realign_cluster.store.readers import Fingerprint, InputFile, content_hash


def register_inputs(
    ledger: Ledger, files: Sequence[InputFile], options: dict[str, Any], tokens_per_byte: float
) -> None:
    """Notes which files the run reads, and with which options."""
    with ledger.writing() as connection:
        for file in files:
            mark = file.fingerprint()
            connection.execute(
                "INSERT INTO file (file_index, name, format, size, mtime_ns, head, tail) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (file.index, file.name, file.format, mark.size, mark.mtime_ns, mark.head, mark.tail),
            )
        connection.executemany(
            "INSERT INTO meta (key, value) VALUES (?, ?)",
            [("scan_options", encode_meta(options)), ("tokens_per_byte", encode_meta(tokens_per_byte))],
        )


def check_inputs(ledger: LedgerReader, files: Sequence[InputFile]) -> None:
    """Raises UsageError, naming the file and what differs, unless the input is the one the run was made from.

    A file that was only written to again (its time differs, its size and ends do not) is read once to be sure.
    """
    recorded = ledger.files()
    names = [file.name for file in files]
    if names != [record.name for record in recorded]:
        gone = [record.name for record in recorded if record.name not in names]
        new = [name for name in names if name not in {record.name for record in recorded}]
        what = [f"{name} is not there now" for name in gone] + [f"{name} was not there" for name in new]
        raise _changed("; ".join(what) or "its order differs")
    for file, record in zip(files, recorded, strict=True):
        if file.format != record.format:
            raise _changed(f"{file.name}: it was {record.format}, now it is {file.format}")
        difference = record.fingerprint.difference(now := file.fingerprint())
        if difference is None:
            continue
        touched = record.fingerprint == Fingerprint(
            size=now.size, mtime_ns=record.fingerprint.mtime_ns, head=now.head, tail=now.tail
        )
        if touched and record.content_hash is not None and content_hash(file.parts) == record.content_hash:
            continue
        raise _changed(f"{file.name}: {difference}")


def _changed(what: str) -> UsageError:
    return UsageError(
        f"the input is not what the run was made from: {what}", "put it back as it was, or choose another --out"
    )


def verify_contents(ledger: LedgerReader, files: Sequence[InputFile]) -> None:
    """Reads every file whole and compares with what was scanned. Raises RunFailed, naming the file that changed."""
    for file, record in zip(files, ledger.files(), strict=True):
        if record.content_hash is not None and content_hash(file.parts) != record.content_hash:
            raise RunFailed(
                f"the input {file.name} was changed while the run was on: scores and rows may not belong together",
                "start the run again in a new folder",
            )
