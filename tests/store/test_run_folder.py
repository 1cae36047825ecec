"""One process holds a run; what is not a run is left alone; a run that never began leaves nothing."""

import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.errors import UsageError
from realign_cluster.store.durable import durable_file, write_durably
from realign_cluster.store.ledger import Ledger
from realign_cluster.store.run_folder import RunFolder, to_toml


def test_a_run_is_held_once_and_the_holder_is_named(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom realign_cluster.store.run_folder import RunFolder\n"
            f"run = RunFolder.hold({str(tmp_path / 'run')!r})\nprint('held', flush=True)\nsys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"held by process {holder.pid} on "):
            RunFolder.hold(tmp_path / "run")
        holder.kill()
        holder.wait()
        with RunFolder.hold(tmp_path / "run") as run:
            assert run.fresh
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_is_given_back(tmp_path):
    RunFolder.hold(tmp_path / "run").close()
    with RunFolder.hold(tmp_path / "run"):
        pass


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match=r"not a run: it holds thesis\.tex"):
        RunFolder.hold(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="is a file"):
        RunFolder.hold(tmp_path / "thesis.tex")
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder.read(tmp_path)


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    run = RunFolder.hold(tmp_path / "run")
    Ledger.create(run.ledger, {}).close()
    run.write_run_toml({"a": 1})
    run.input_cache.mkdir()
    (run.input_cache / "x").write_text("x")
    run.abandon()
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "empty").mkdir()
    RunFolder.hold(tmp_path / "empty").abandon()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_run_that_is_resumed_is_never_removed(tmp_path):
    with RunFolder.hold(tmp_path / "run") as run:
        Ledger.create(run.ledger, {}).close()
    run = RunFolder.hold(tmp_path / "run")
    assert not run.fresh
    run.abandon()
    assert run.ledger.exists()
    assert not RunFolder.read(tmp_path / "run").fresh


TOML = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), TOML, max_size=5))
def test_toml_reads_back_as_it_was(values):
    assert tomllib.loads(to_toml(values)) == values


def test_run_toml_round_trip(tmp_path):
    values = {
        "command": "curate",
        "none": None,
        "input": {"files": ["a b.jsonl"], "field": {"prompt": 'q"\\\n'}},
        "limit": 3,
    }
    with RunFolder.hold(tmp_path / "run") as run:
        run.write_run_toml(values)
        assert run.read_run_toml() == {key: value for key, value in values.items() if value is not None}
        run.run_toml.write_text("= nonsense")
        with pytest.raises(UsageError, match=r"run\.toml cannot be read"):
            run.read_run_toml()


def test_a_durable_file_is_whole_or_absent(tmp_path):
    write_durably(tmp_path / "f", b"old")

    def fail():
        with durable_file(tmp_path / "f") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
