"""Whatever is wrong with what a user gives: the exit code, a message that names the place and the fix, nothing left."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from realign_cluster.cli.main import run as realign_command
from realign_cluster.coordinator.cluster import connect, open_session
from realign_cluster.coordinator.home import ClusterHome, NodeRequest
from realign_cluster.coordinator.inbox import Connected, Inbox, Incoming
from realign_cluster.domain.job import NO_MODEL, ModelSpec, ScoreJob
from realign_cluster.node.enrolment import install_certificate, request_signature
from realign_cluster.node.identity import load_or_create_identity, local_machine
from realign_cluster.rpc import versions
from realign_cluster.rpc.certificates import CertificateBundle, Role
from realign_cluster.rpc.channel import server_credentials
from realign_cluster.store.run_folder import RunFolder
from tests.cluster.conftest import made_rows
from tests.cluster.kit import TINY_MODEL, CurateCluster, summary, write_rows
from tests.cluster_kit import DaemonProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

LOGLIK = ("--model", str(TINY_MODEL), "--score", "loglik", "--plain")
NOTHING = ("--model", "none", "--score", "noop")
GOOD = b'{"prompt": "p", "response": "r"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    code: int
    out: str
    err: str


Realign = Callable[..., Said]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CurateCluster]:
    """A cluster of one daemon, alpha."""
    made = CurateCluster(tmp_path_factory.mktemp("one"))
    try:
        made.start("alpha")
        yield made
    finally:
        made.close()


@pytest.fixture
def realign(one: CurateCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Realign:
    """The command as `realign` runs it, in this process."""
    monkeypatch.setenv("REALIGN_HOME", str(one.realign_home))

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = realign_command([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Said(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", made_rows(6))


def refused(said: Said, code: int, *messages: str) -> None:
    assert said.code == code, said.err
    for message in messages:
        assert message in said.err
    assert "fix:" in said.err or "Input should be" in said.err  # typer's own message says what would be right
    assert "Traceback" not in said.err


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which names the last process that had it, and what SQLite keeps next to a database."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm", ".lock"))
    }


# --- rows -------------------------------------------------------------------------------------------------------------

TOO_LONG = json.dumps({"prompt": "p", "response": "x" * 10_000_000}).encode()

BAD_ROWS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("the input has no rows: rows.jsonl",)),
    "blank": (b"\n\n  \n", ("the input has no rows: rows.jsonl",)),
    "not JSON": (
        GOOD + b"\n" + GOOD + b'\n{"prompt": "p", \n',
        ("1 of 3 rows cannot be scored", "rows.jsonl:3: not JSON:", "at column", "--on-bad-row quarantine"),
    ),
    "not an object": (GOOD + b"\n[1, 2]\n", ("rows.jsonl:2: expected a JSON object, found a list",)),
    "missing field": (
        GOOD + b'\n{"prompt": "p", "answer": "r"}\n',
        ("rows.jsonl:2: response: missing", "--prompt-field"),
    ),
    "wrong type": (
        b'{"prompt": "p", "response": 7}\n' + GOOD,
        ("rows.jsonl:1: response: is a number, expected a text",),
    ),
    "wrong message": (
        b'{"prompt": [{"role": "user"}], "response": "r"}',
        ("rows.jsonl:1: prompt: message 0 has no 'content'",),
    ),
    "10 MB": (GOOD + b"\n" + TOO_LONG + b"\n", ("rows.jsonl:2: the row has 10,000,", "at most 8,388,608 are allowed")),
    "not UTF-8": (
        GOOD + b'\n{"prompt": "\xff", "response": "r"}\n',
        ("rows.jsonl:2: not UTF-8: byte 0xff at position 12",),
    ),
    "surrogate in UTF-8": (
        GOOD + b'\n{"prompt": "\xed\xa0\x80", "response": "r"}\n',
        ("rows.jsonl:2: not UTF-8: byte 0xed at position 12",),
    ),
    "surrogate escaped": (
        GOOD + b'\n{"prompt": "\\ud800", "response": "r"}\n',
        ("rows.jsonl:2: holds a lone surrogate (\\ud800)",),
    ),
    "NaN": (b'{"prompt": "p", "response": "r", "x": NaN}', ("rows.jsonl:1: holds NaN or Infinity",)),
    "row_id": (
        GOOD + b'\n{"row_id": 1, "prompt": "p", "response": "r"}\n',
        ("rows.jsonl:2: the input has a column 'row_id'", "rename or remove the column 'row_id'"),
    ),
    "scores": (b'{"scores": {}, "prompt": "p", "response": "r"}', ("rows.jsonl:1: the input has a column 'scores'",)),
    "many": (b"{}\n" * 40 + GOOD, ("40 of 41 rows cannot be scored", "rows.jsonl:10: prompt: missing", "and 30 more")),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_bad_rows(what: str, one: CurateCluster, realign: Realign, tmp_path: Path) -> None:
    text, messages = BAD_ROWS[what]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    said = realign("curate", path, "--out", tmp_path / "run", "--hostfile", one.hostfile(), *LOGLIK)
    refused(said, 2, *messages)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl.gz", gzip.compress(GOOD * 1000)[:-20], "rows.jsonl.gz"),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd no frame", "rows.jsonl.zst"),
        ("rows.parquet", b"PAR1 not a table PAR1", "rows.parquet"),
        ("rows.csv", b"prompt,response\n", "rows.csv is of no known input format"),
        (None, b"", "nothing.jsonl does not exist"),
    ],
)
def test_damaged_and_unknown_files(
    name: str | None, content: bytes, message: str, one: CurateCluster, realign: Realign, tmp_path: Path
) -> None:
    path = tmp_path / (name or "nothing.jsonl")
    if name is not None:
        path.write_bytes(content)
    said = realign("curate", path, "--out", tmp_path / "run", "--hostfile", one.hostfile(), *LOGLIK)
    refused(said, 2, message)
    assert not (tmp_path / "run").exists()


def test_what_is_in_the_way_of_a_run_stays(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    said = realign("curate", rows, "--out", theirs, "--hostfile", one.hostfile(), *LOGLIK)
    refused(said, 2, "not empty and not a run: it holds thesis.tex", "--out")
    said = realign("curate", rows, "--out", theirs / "thesis.tex", "--hostfile", one.hostfile(), *LOGLIK)
    refused(said, 2, "is a file, not a run folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    refused(realign("curate", bad, "--out", empty, "--hostfile", one.hostfile(), *LOGLIK), 2, "bad.jsonl:1")
    assert content_of(tmp_path) == {
        "rows.jsonl": rows.read_bytes(),
        "theirs/thesis.tex": b"years of work",
        "bad.jsonl": b"{}\n",
    }
    assert empty.is_dir()


def test_run_folder_that_cannot_be_made(one: CurateCluster, realign: Realign, rows: Path) -> None:
    said = realign("curate", rows, "--out", rows / "run", "--hostfile", one.hostfile(), *LOGLIK)
    refused(said, 2, "cannot be made a run folder: Not a directory", "choose another --out")


def test_disk_that_is_full_before_a_run_starts(
    one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path
) -> None:
    """At whichever file it becomes full: a message, and all of them gone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        pytest.skip("a disk of its own needs root on Linux")
    for files in range(2, 8):  # with one more it gets as far as scoring
        mount = ["mount", "-t", "tmpfs", "-o", f"size=99m,nr_inodes={files}", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, check=False)
        if mounted.returncode != 0:
            pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
        try:
            said = realign("curate", rows, "--out", disk / "run", "--hostfile", one.hostfile(), *NOTHING)
            assert said.code in (1, 2), f"{files} files: {said.err}"
            assert "fix:" in said.err
            assert list(disk.iterdir()) == [], f"{files} files: {said.err}"
        finally:
            subprocess.run(["umount", "-l", disk], check=False)


def test_nobody_on_the_network(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    said = realign("curate", rows, "--out", tmp_path / "run", "--discover", *NOTHING)
    refused(said, 3, "nodes are there, 1 are needed", "realignd run")
    assert not (tmp_path / "run").exists()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (("--score", "logik"), ("there is no kind 'logik'; did you mean 'loglik'?",)),
        (("--score", ""), ("no score kind was given",)),
        (("--score", "loglik,loglik"), ("named twice",)),
        (("--score", "ifd", "--keep-if", "scores.idf.value < 1"), ("idf", "did you mean 'ifd'?")),
        (("--score", "ifd", "--keep-if", "scores.ifd.valu < 1"), ("valu", "did you mean 'value'?")),
        (("--score", "ifd", "--keep-if", "scores.loglik.mean < 1"), ("loglik",)),
        (("--score", "ifd", "--keep-if", "scores.ifd.value <"), ("column",)),
        (("--score", "ifd", "--keep-if", "open('x')"), ("open", "column 1")),
        (("--score", "loglik", "--labels", "yes,no"), ("--labels is for the kind judge only",)),
        (("--score", "judge", "--labels", "yes"), ("--labels needs at least two different labels",)),
        (("--score", "judge", "--template", "{here}/none.txt"), ("none.txt cannot be read",)),
        (("--score", "judge", "--template", "{here}/bad.txt"), ("the judge template has {evidence} 0 times",)),
        (("--score", "loglik", "--template", "{here}/bad.txt"), ("--template is for the kind judge only",)),
        (("--score", "loglik", "--export-trl"), ("TRL", "add preference to --score")),
        (("--score", "loglik", "--format", "csv"), ("'csv' is not one of jsonl, parquet",)),
        (("--score", "loglik", "--truncate", "middle"), ("'middle' is not one of left, right, refuse",)),
        (("--score", "loglik", "--on-bad-row", "skip"), ("'skip' is not one of fail, quarantine",)),
        (("--score", "loglik", "--limit", "0"), ("--limit", "greater than or equal to 1")),
        (("--score", "loglik", "--max-tokens", "1"), ("--max-tokens", "greater than or equal to 2")),
        (("--score", "loglik", "--allow-skew", "protocol"), ("protocol cannot be allowed",)),
        (("--score", "loglik", "--discover"), ("both --hostfile and --discover",)),
    ],
)
def test_bad_options(
    options: tuple[str, ...],
    messages: tuple[str, ...],
    one: CurateCluster,
    realign: Realign,
    rows: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "bad.txt").write_text("Is {claim} so?")
    given = [option.replace("{here}", str(tmp_path)) for option in options]
    said = realign(
        "curate", rows, "--out", tmp_path / "run", "--model", TINY_MODEL, "--hostfile", one.hostfile(), *given
    )
    refused(said, 2, *messages)
    assert not (tmp_path / "run").exists()


def test_usage_errors_are_told_to_scripts_too(realign: Realign, rows: Path, tmp_path: Path) -> None:
    said = realign("curate", rows, "--out", tmp_path / "run", "--model", TINY_MODEL, "--score", "logik", "--json")
    assert said.code == 2
    [line] = said.out.splitlines()
    told = json.loads(line)
    assert (told["event"], told["exit_code"]) == ("summary", 2)
    assert "logik" in told["error"]["message"]
    assert told["error"]["fix"] in said.err
    said = realign("curate", rows, "--json")
    assert (said.code, json.loads(said.out)["event"]) == (2, "summary")
    said = realign("curate", rows, "--out", tmp_path / "run", *LOGLIK, "--json")
    refused(said, 2, "no cluster was named", "--hostfile FILE or --discover")


# --- model ------------------------------------------------------------------------------------------------------------


def spoil_model(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    match what:
        case "no tokenizer":
            for path in (*folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob("merges*")):
                path.unlink()
        case "auto_map":
            (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.py"}}))
        case "model_file":
            (folder / "config.json").write_text(json.dumps(config | {"model_file": "evil.py"}))
        case "no weights":
            for path in folder.glob("*.safetensors"):
                path.unlink()
        case "no config":
            (folder / "config.json").unlink()
        case "config not JSON":
            (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("what", "messages"),
    [
        ("no tokenizer", ("model folder without tokenizer", "copy the tokenizer's files")),
        ("auto_map", ("has 'auto_map': it wants to run Python code of its own",)),
        ("model_file", ("has 'model_file': it wants to run Python code of its own",)),
        ("no weights", ("has no model*.safetensors",)),
        ("no config", ("has no config.json",)),
        ("config not JSON", ("config.json is not JSON",)),
    ],
)
def test_bad_model_folders(
    what: str, messages: tuple[str, ...], one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_MODEL, model)
    spoil_model(model, what)
    said = realign(
        *("curate", rows, "--out", tmp_path / "run", "--model", model, "--score", "loglik"),
        *("--hostfile", one.hostfile()),
    )
    refused(said, 2, *messages)
    assert not (tmp_path / "run").exists()


def test_no_model_there(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    said = realign(
        *("curate", rows, "--out", tmp_path / "run", "--model", tmp_path / "none", "--score", "loglik"),
        *("--hostfile", one.hostfile()),
    )
    refused(said, 2, "there is no model folder")
    assert not (tmp_path / "run").exists()


def test_model_that_does_not_fit(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    """The plan says so, with the arithmetic, before anything is started."""
    hosts = one.hostfile("alpha", limits={"alpha": "64 MB"})
    said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", hosts, *LOGLIK)
    refused(said, 2, "alpha is left out: weights 3.1 MiB + KV cache ", "does not fit, ", "fits on none of alpha")
    assert not (tmp_path / "run").exists()


def test_model_that_mlx_cannot_load(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    """Only the workers find out: what they say is the user's to put right, so it is no matter of missing nodes."""
    model = tmp_path / "model"
    shutil.copytree(TINY_MODEL, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "never_heard_of"}))
    said = realign(
        *("curate", rows, "--out", tmp_path / "run", "--model", model, "--score", "loglik"),
        *("--hostfile", one.hostfile()),
    )
    refused(said, 2, "mlx-lm cannot load model", "never_heard_of")
    assert not (tmp_path / "run").exists()


def test_chat_without_a_chat_template(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_MODEL, model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    said = realign(
        *("curate", rows, "--out", tmp_path / "run", "--model", model, "--score", "loglik", "--chat"),
        *("--hostfile", one.hostfile()),
    )
    refused(said, 2, "has no chat template", "--plain")
    assert not (tmp_path / "run").exists()


# --- hostfile and nodes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (None, ("cannot read the hostfile", "No such file")),
        ("[{", ("hosts.json:1: not JSON",)),
        ("[]", ("hosts.json",)),
        ('[\n {"ssh": "m", "realign": {"prt": 1}}\n]', ("hosts.json:2:", "realign.prt", "did you mean 'port'?")),
        (
            '[\n {"ssh": "m", "realign": {"name": "x"}},\n {"ssh": "n", "realign": {"name": "x"}}\n]',
            ("hosts.json:3:", "'x'"),
        ),
    ],
)
def test_unreadable_hostfiles(
    text: str | None, messages: tuple[str, ...], realign: Realign, rows: Path, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts.json"
    if text is not None:
        hosts.write_text(text)
    said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", hosts, *LOGLIK)
    assert said.code == 2, said.err
    for message in messages:
        assert message in said.err
    assert not (tmp_path / "run").exists()


def hostfile_of(folder: Path, *hosts: dict[str, Any]) -> Path:
    path = folder / "hosts.json"
    listed = [
        {"ssh": host.pop("ssh", "127.0.0.1"), "realign": {"state": f"{folder}/{host['name']}"} | host} for host in hosts
    ]
    path.write_text(json.dumps(listed))
    return path


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def enrol(home: ClusterHome, name: str, folder: Path) -> str:
    """The id of a node that is in the registry, whether or not it ever runs."""
    from realign_cluster.node.state_folder import StateFolder

    state = StateFolder.at(folder)
    identity = load_or_create_identity(state, local_machine(), name)
    asked = request_signature(state, identity)
    home.sign_node(NodeRequest(node_id=identity.node_id, name=name, request_pem=asked.request_pem))
    return identity.node_id


def test_node_that_does_not_run(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    enrol(one.home, "absent", tmp_path / "absent")
    alpha = one.daemons["alpha"]
    hosts = hostfile_of(tmp_path, {"name": "alpha", "port": alpha.port}, {"name": "absent", "port": closed_port()})
    command = ("curate", rows, "--out", tmp_path / "run", "--hostfile", hosts, *NOTHING)
    said = realign(*command)
    refused(said, 3, "1 of 2 nodes are there", "absent: nothing listens at 127.0.0.1", "realign-launch", "--min-nodes")
    assert not (tmp_path / "run").exists()
    said = realign(*command, "--min-nodes", "1")
    assert said.code == 0, said.err
    assert "absent is not there" in said.err
    assert summary(tmp_path / "run")["rows"]["kept"] == 6


def test_unknown_host(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    enrol(one.home, "ghost", tmp_path / "ghost")
    hosts = hostfile_of(tmp_path, {"ssh": "no-such-host.invalid", "name": "ghost"})
    said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", hosts, *NOTHING)
    refused(said, 3, "ghost: no-such-host.invalid is not a known host name")
    assert not (tmp_path / "run").exists()


def test_node_that_was_never_enrolled(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    hosts = hostfile_of(tmp_path, {"name": "stranger", "port": one.daemons["alpha"].port})
    said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", hosts, *NOTHING)
    refused(said, 3, "stranger: it is not enrolled in this cluster", f"realign-launch --hostfile {hosts} up")
    assert not (tmp_path / "run").exists()


def test_other_node_at_this_address(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    node_id = enrol(one.home, "omega", tmp_path / "omega")
    alpha = one.daemons["alpha"]
    hosts = hostfile_of(tmp_path, {"name": "omega", "port": alpha.port})
    said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", hosts, *NOTHING)
    refused(said, 3, f"is {alpha.node_id}, not {node_id}", "correct the address in the hostfile")


def test_something_else_listens_there(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    enrol(one.home, "web", tmp_path / "web")
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
            "while True: c, _ = s.accept(); c.recv(99); c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n'); c.close()",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        hosts = hostfile_of(tmp_path, {"name": "web", "port": int(server.stdout.readline())})
        said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", hosts, *NOTHING)
    finally:
        server.kill()
        server.communicate()
    refused(said, 3, "web: what listens at 127.0.0.1", "is not a realign daemon", "correct the port")


def test_daemon_of_another_cluster(one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path) -> None:
    """Its certificate is by another authority: it is not spoken to, and does not speak to us."""
    other = CurateCluster(tmp_path / "other")
    (tmp_path / "other").mkdir()
    try:
        theirs = other.start("theirs")
        enrol(one.home, "theirs", theirs.folder.root)  # known by name here, and yet not ours
        hosts = hostfile_of(tmp_path, {"name": "theirs", "port": theirs.port})
        said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", hosts, *NOTHING)
    finally:
        other.close()
    refused(said, 3, "theirs: 127.0.0.1", "belongs to another cluster", f"realign-launch --hostfile {hosts} up")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def expired(one: CurateCluster, tmp_path: Path) -> DaemonProcess:
    """A node of this cluster whose certificate ran out 35 days ago."""
    daemon = DaemonProcess(tmp_path / "old", "old")
    identity = load_or_create_identity(daemon.folder, local_machine(), "old")
    asked = request_signature(daemon.folder, identity)
    signed = one.home.sign_node(NodeRequest(node_id=identity.node_id, name="old", request_pem=asked.request_pem))
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400)
    certificate = one.home.ensure_authority().sign(
        asked.request_pem, role=Role.NODE, id=identity.node_id, now=long_ago, days=365
    )
    install_certificate(daemon.folder, identity, certificate, signed.authority_pem)
    return daemon


async def test_expired_certificate(expired: DaemonProcess, one: CurateCluster, rows: Path, tmp_path: Path) -> None:
    """As if it had expired while the daemon ran: what it shows in the handshake is what counts."""
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", server_credentials(CertificateBundle.load(expired.folder.root)))
    await server.start()
    try:
        hosts = hostfile_of(tmp_path, {"name": "old", "port": port})
        done = await asyncio.to_thread(one.run, one.command(rows, tmp_path / "run", *NOTHING, hosts=hosts))
    finally:
        await server.stop(None)
    said = Said(code=done.returncode, out=done.stdout, err=done.stderr)
    refused(
        said, 3, "old: the certificate of", "has expired", "enrol it again: realign-launch --hostfile", "hosts.json up"
    )
    assert not (tmp_path / "run").exists()


def test_daemon_with_an_expired_certificate_does_not_start(expired: DaemonProcess) -> None:
    with pytest.raises(AssertionError, match=r"the certificate of old expired 35 days ago.*enrol it again"):
        expired.start()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Makes this process, the coordinator, one with other versions installed than the daemon has."""

    def installed(**changed: str) -> None:
        for name, version in changed.items():
            distribution = tmp_path / "site" / f"{name}-{version}.dist-info"
            distribution.mkdir(parents=True)
            (distribution / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        importlib.invalidate_caches()
        versions._local.cache_clear()

    yield installed
    monkeypatch.undo()
    importlib.invalidate_caches()
    versions._local.cache_clear()


def test_version_skew(
    one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path, pretend: Callable[..., None]
) -> None:
    pretend(mlx="0.1.2")
    command = ("curate", rows, "--out", tmp_path / "run", "--hostfile", one.hostfile(), *NOTHING)
    refused(realign(*command), 3, "alpha: mlx ", "the cluster has 0.1.2 (refused)", "--install", "--allow-skew mlx")
    assert not (tmp_path / "run").exists()
    refused(realign(*command, "--allow-skew", "mlx-lm"), 3, "(refused)")
    said = realign(*command, "--allow-skew", "mlx")
    assert said.code == 0, said.err
    assert "the cluster has 0.1.2 (allowed)" in said.err
    found = summary(tmp_path / "run")["versions"]
    assert (found["mlx"], found["nodes"]["alpha"]["mlx"] != "0.1.2") == ("0.1.2", True)


def test_wrong_protocol(
    one: CurateCluster,
    realign: Realign,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend: Callable[..., None],
) -> None:
    theirs = versions.PROTOCOL_VERSION
    monkeypatch.setattr(versions, "PROTOCOL_VERSION", 999)
    pretend()
    said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", one.hostfile(), *NOTHING)
    refused(said, 3, f"alpha: protocol {theirs}, the cluster has 999 (refused)", "--install up")
    assert not (tmp_path / "run").exists()


async def test_two_coordinators_on_one_node(one: CurateCluster, rows: Path, tmp_path: Path) -> None:
    """The second waits out what could be a dead coordinator's lease, then says who has the node."""
    job = ScoreJob(kinds=("noop",), kind_versions={"noop": 1}, model=ModelSpec(name=NO_MODEL, hash=NO_MODEL))
    inbox: Inbox = asyncio.Queue()
    async with connect(one.hostfile(), home=one.home) as found:
        holder = open_session(
            *(found.nodes[0].address,),
            **{"run_id": "first", "epoch": 1, "job": job, "measure": "none", "samples": [], "model": None},
            inbox=inbox,
        )
        running = asyncio.create_task(holder.run())
        try:
            while not isinstance(item := await inbox.get(), Incoming) or not isinstance(item.report, Connected):
                pass
            command = one.command(rows, tmp_path / "run", *NOTHING, "--json")
            done = await asyncio.to_thread(one.run, command)
        finally:
            await holder.release("the test is over")
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert done.returncode == 3, done.stderr
    assert "alpha is held by run first of " in done.stderr
    assert f"pid {os.getpid()}" in done.stderr
    assert "wait until that run ends" in done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("summary", 3)
    assert not (tmp_path / "run").exists()


def test_port_in_use(one: CurateCluster, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "realign_cluster.cli.realignd", "run", "--state", str(tmp_path / "second")),
        *("--name", "second", "--host", "127.0.0.1", "--no-advertise", "--port", str(one.daemons["alpha"].port)),
    ]
    enrol_daemon(one, tmp_path / "second", "second")
    done = one.run(command)
    assert done.returncode not in (0, 130), done.stderr
    assert f"{one.daemons['alpha'].port}" in done.stderr
    assert "in use" in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


def enrol_daemon(one: CurateCluster, folder: Path, name: str) -> None:
    daemon = DaemonProcess(folder, name)
    identity = load_or_create_identity(daemon.folder, local_machine(), name)
    asked = request_signature(daemon.folder, identity)
    signed = one.home.sign_node(NodeRequest(node_id=identity.node_id, name=name, request_pem=asked.request_pem))
    install_certificate(daemon.folder, identity, signed.certificate_pem, signed.authority_pem)


# --- run folders ------------------------------------------------------------------------------------------------------


def test_run_folder_that_another_process_holds(
    one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path
) -> None:
    with RunFolder.hold(tmp_path / "run"):
        before = content_of(tmp_path / "run")
        said = realign("curate", rows, "--out", tmp_path / "run", "--hostfile", one.hostfile(), *NOTHING)
        refused(said, 2, "is held by process", "wait until it ends")
        assert content_of(tmp_path / "run") == before


@pytest.fixture(scope="module")
def finished(one: CurateCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows.jsonl and the complete run of it."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_rows(folder / "rows.jsonl", made_rows(6))
    done = one.run(one.command(path, folder / "run", *LOGLIK))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        (("--score", "ifd"), ("score kinds: the run has", "loglik v1", "ifd v1")),
        (("--max-tokens", "100"), ("max tokens: the run has 2048, now it is 100",)),
        (("--keep-if", "scores.loglik.mean > -3"), ("keep-if",)),
        (("--limit", "3"), ("limit",)),
        (("--prompt-field", "group"), ("fields",)),
        (("--chat",), ("chat: the run has", "plain")),
        (("--format", "parquet"), ("format",)),
        (("--reproducible",), ("reproducible",)),
    ],
)
def test_other_recipe_into_a_run(
    changed: tuple[str, ...], messages: tuple[str, ...], one: CurateCluster, realign: Realign, finished: Path
) -> None:
    before = content_of(finished)
    said = realign(
        "curate", finished / "rows.jsonl", "--out", finished / "run", "--hostfile", one.hostfile(), *LOGLIK, *changed
    )
    refused(said, 2, "was made from something else", *messages, "choose another --out")
    assert content_of(finished) == before


def test_other_model_into_a_run(one: CurateCluster, realign: Realign, finished: Path, tmp_path: Path) -> None:
    model = tmp_path / "tiny-model"
    shutil.copytree(TINY_MODEL, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 12345.0}))
    before = content_of(finished)
    said = realign(
        *("curate", finished / "rows.jsonl", "--out", finished / "run", "--hostfile", one.hostfile()),
        *("--model", model, "--score", "loglik", "--plain"),
    )
    refused(said, 2, "model: the run has", "now it is")
    assert content_of(finished) == before


def test_other_input_into_a_run(
    one: CurateCluster, realign: Realign, finished: Path, rows: Path, tmp_path: Path
) -> None:
    before = content_of(finished)
    command = ("--out", finished / "run", "--hostfile", one.hostfile(), *LOGLIK)
    rows.write_bytes(rows.read_bytes() + GOOD + b"\n")
    refused(realign("curate", rows, *command), 2, "rows.jsonl: its size was", "choose another --out")
    other = write_rows(tmp_path / "other.jsonl", made_rows(6))
    said = realign("curate", other, *command)
    refused(said, 2, "rows.jsonl is not there now", "other.jsonl was not there")
    assert content_of(finished) == before


def test_rule_that_does_not_fit_may_be_corrected(
    one: CurateCluster, realign: Realign, rows: Path, tmp_path: Path
) -> None:
    """Everything is scored by then: the scores are kept, and the corrected command only writes."""
    run = tmp_path / "run"
    command = ("curate", rows, "--out", run, "--hostfile", one.hostfile(), *LOGLIK)
    said = realign(*command, "--keep-if", "row.prompt < 1")
    refused(said, 2, "--keep-if", "rows.jsonl:1", "change the expression")
    assert not (run / "output").exists()
    refused(realign(*command, "--keep-if", "row.group == '1'", "--max-tokens", "99"), 2, "max tokens")
    said = realign(*command, "--keep-if", "row.group == '1'")
    assert said.code == 0, said.err
    assert summary(run)["rows"] == {"in": 6, "kept": 2, "dropped": 4, "failed": 0}
    refused(realign(*command, "--keep-if", "row.group == '2'"), 2, "keep-if")
