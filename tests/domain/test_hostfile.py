"""The hostfile: what it accepts, what it says of what it does not, and that mlx.launch reads the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.hostfile import MOST_HOSTS, Host, HostfileError, parse_hostfile
from realign_cluster.domain.hostfile_fields import DEFAULT_PORT, DEFAULT_STATE, parse_size
from realign_cluster.domain.json_lines import line_of, lines_of

HOSTFILES = Path(__file__).parents[2] / "hostfiles"
SHIPPED = sorted(HOSTFILES.glob("*.json"))


def only(text: str) -> Host:
    (host,) = parse_hostfile(text, "h.json").hosts
    return host


def complaint(data: object) -> str:
    """What is said of a file that is wrong."""
    with pytest.raises(HostfileError) as caught:
        parse_hostfile(data if isinstance(data, str) else json.dumps(data, indent=1), "h.json")
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_bare_list_gets_defaults() -> None:
    host = only('[{"ssh": "curator@mac-1", "ips": ["192.168.0.7", "10.0.0.7"]}]')
    assert (host.name, host.target) == ("mac-1", f"192.168.0.7:{DEFAULT_PORT}")
    assert (host.state, host.python, host.memory_limit_bytes, host.cores) == (DEFAULT_STATE, None, None, None)


def test_without_addresses_the_ssh_name_is_dialled() -> None:
    assert only('[{"ssh": "curator@mac-1"}]').address == "mac-1"


def test_every_field_is_read() -> None:
    own = {
        "name": "a",
        "port": 4000,
        "python": "~/py",
        "state": "$HOME/s",
        "env": {"MLX_A": "2"},
        "memory_limit": "96GB",
        "cores": 3,
        "address": "mac.lan",
    }
    data = {"backend": "ring", "envs": ["MLX_A=1", "MLX_B=x=y"], "hosts": [{"ssh": "m", "realign": own}]}
    host = only(json.dumps(data))
    assert host.target == "mac.lan:4000"
    assert dict(host.env) == {"MLX_A": "2", "MLX_B": "x=y"}
    assert (host.memory_limit_bytes, host.cores, host.python, host.state) == (96_000_000_000, 3, "~/py", "$HOME/s")


def test_keys_that_are_not_ours_are_ignored_as_mlx_does() -> None:
    assert only('{"hosts": [{"ssh": "m", "rank": 7}], "comment": []}').name == "m"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("96GB", 96 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("512mb", 512 * 10**6),
        ("4096", 4096),
        ("1TiB", 1 << 40),
        ("2k", 2000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "12 apples", "-1GB", "1e3"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


def test_an_error_names_file_line_host_and_field() -> None:
    text = '[\n {"ssh": "m1"},\n {"ssh": "m2",\n  "realign": {\n   "port": "x"}}]'
    assert complaint(text) == 'h.json:5: host m2: realign.port: "x" will not do; it should be a TCP port, such as 47100'


def test_an_unknown_field_of_ours_gets_the_nearest_right_name() -> None:
    assert "did you mean 'memory_limit'?" in complaint([{"ssh": "m", "realign": {"memory_limits": 1}}])


def test_every_mistake_is_found_in_one_look_in_the_order_of_lines() -> None:
    text = '{"backend": "rong",\n"envs": ["b"],\n"hosts": [{"ssh": "-oX"},\n{"ssh": "m", "ips": ["1.2.3"]},\n7]}'
    lines = [line.split(":")[1] for line in complaint(text).splitlines()]
    assert lines == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("[1,", "h.json:1: not JSON"),
        ("7", "there is no list of hosts"),
        ('{"host": []}', "there is no list of hosts"),
        ([], "it names no host"),
        ([{"ssh": f"m{i}"} for i in range(MOST_HOSTS + 1)], "at most 16"),
        ([{"ips": ["10.0.0.1"]}], "ssh: missing"),
        ([{"ssh": "a b"}], "'a b' is no host for ssh"),
        ([{"ssh": "-oProxyCommand=x"}], "is no host for ssh"),
        ([{"ssh": "m", "ips": "10.0.0.1"}], "ips: not a list"),
        ([{"ssh": "m", "ips": ["fe80::1"]}], "not an IPv4 address"),
        ([{"ssh": "m", "realign": []}], "realign: not an object"),
        ([{"ssh": "m", "realign": {"state": "relative"}}], "an absolute path or one below ~"),
        ([{"ssh": "m", "realign": {"state": "~/a\nb"}}], "an absolute path or one below ~"),
        ([{"ssh": "m", "realign": {"port": 70000}}], "a TCP port"),
        ([{"ssh": "m", "realign": {"memory_limit": "lots"}}], 'a size such as "96GB"'),
        ([{"ssh": "m", "realign": {"env": {"A B": "x"}}}], "names with strings"),
        ([{"ssh": "m", "realign": {"cores": 0}}], "CPU cores"),
        ([{"ssh": "m", "realign": {"name": "a/b"}}], "letters, digits"),
        ([{"ssh": "m"}, {"ssh": "m", "realign": {"port": 1, "state": "/s"}}], "is called 'm' too"),
        (
            [{"ssh": "m"}, {"ssh": "m", "realign": {"name": "b", "state": "/s"}}],
            "m:47100 is taken by host m",
        ),
        ([{"ssh": "m"}, {"ssh": "m", "realign": {"name": "b", "port": 1}}], "is the state folder of host m"),
        (
            [{"ssh": "localhost"}, {"ssh": "127.0.0.1", "realign": {"name": "b", "port": 1}}],
            "is the state folder of host localhost",
        ),
        ({"backend": "jaccl", "hosts": [{"ssh": "a", "rdma": [None]}, {"ssh": "b"}]}, "needs 2"),
        (
            {"backend": "jaccl", "hosts": [{"ssh": "a", "rdma": ["x", "y"]}, {"ssh": "b", "rdma": ["x", None]}]},
            "its device to itself",
        ),
        (
            {"backend": "jaccl", "hosts": [{"ssh": "a", "rdma": [None, None]}, {"ssh": "b", "rdma": ["x", None]}]},
            "no device towards host b",
        ),
        ({"backend": "jaccl", "hosts": [{"ssh": f"m{i}"} for i in range(9)]}, "at most 8"),
    ],
)
def test_what_is_wrong_is_said(data: object, said: str) -> None:
    assert said in complaint(data)


def test_local_names() -> None:
    assert only('[{"ssh": "127.0.0.1"}]').is_local(frozenset())
    assert only('[{"ssh": "Mac-1"}]').is_local(frozenset({"mac-1"}))
    assert not only('[{"ssh": "me@localhost"}]').is_local(frozenset())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_mlx_reads_the_hostfiles_as_we_do(path: Path) -> None:
    from mlx._distributed_utils.common import Hostfile

    ours, theirs = parse_hostfile(path.read_text(), path.name), Hostfile.from_file(path)
    assert [(h.ssh, list(h.ips)) for h in ours.hosts] == [(h.ssh_hostname, h.ips) for h in theirs.hosts]
    assert (ours.backend, list(ours.envs)) == (theirs.backend, theirs.envs)
    assert [list(h.rdma) for h in ours.hosts] == [h.rdma for h in theirs.hosts]


def test_the_readme_explains_every_hostfile() -> None:
    text = (HOSTFILES / "README.md").read_text()
    assert len(SHIPPED) >= 4
    assert all(f"`{path.name}`" in text for path in SHIPPED)


def test_mlx_launch_runs_ranks_from_our_hostfile(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import mlx.core as mx\n"
        "group = mx.distributed.init(strict=True, backend='ring')\n"
        "total = mx.distributed.all_sum(mx.array(float(group.rank() + 1)), stream=mx.cpu)\n"
        "print('total', total.item(), 'of', group.size(), flush=True)\n"
    )
    launch = [
        Path(sys.executable).with_name("mlx.launch"),
        "--hostfile",
        HOSTFILES / "local.json",
        "--python",
        sys.executable,
    ]
    process = subprocess.Popen(
        [*launch, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.read()  # standard input stays open: a closed one makes mlx.launch spin
    finally:
        process.kill()
        process.wait()
    assert said.count("total 3.0 of 2") == 2, said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.sampled_from([None, 0, 1, 3]))
def test_every_value_has_the_line_it_stands_on(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    lines, rows = lines_of(text), text.split("\n")

    def check(path: tuple[str | int, ...], part: object) -> None:
        assert path in lines
        if path and isinstance(path[-1], str):
            assert json.dumps(path[-1]) in rows[lines[path] - 1]
        children = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, child in children:
            check((*path, key), child)

    check((), value)


@given(JSON)
def test_any_json_is_read_or_refused_with_a_reason(value: object) -> None:
    said = ""
    try:
        parse_hostfile(json.dumps(value), "h.json")
    except HostfileError as error:
        said = str(error)
    assert all(line.startswith("h.json:") for line in said.splitlines())


def test_absurd_nesting_is_refused() -> None:
    assert "too deeply" in complaint("[" * 100_000 + "]" * 100_000)


def test_a_missing_member_stands_where_its_object_does() -> None:
    lines = lines_of('[\n{"a": 1},\n{"b": 2}]')
    assert line_of(lines, (1, "c", "d")) == 3
