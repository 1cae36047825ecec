"""`realign doctor`: what it finds on this machine, and what it reads from the commands of a Mac."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from realign_cluster.cli.checks import cluster, machine, macos
from realign_cluster.cli.checks.finding import Finding
from realign_cluster.cli.main import run as realign
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.hostfile_reader import read_hostfile
from realign_cluster.domain.hostfile import Host
from realign_cluster.rpc.certificates import Authority, Role

HOSTFILES = Path(__file__).parents[2] / "hostfiles"


def levels(findings: list[Finding]) -> set[str]:
    return {finding.level for finding in findings}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterHome:
    monkeypatch.setenv("REALIGN_HOME", str(tmp_path / "home"))
    return ClusterHome()


def test_every_trouble_names_its_fix(home: ClusterHome, capsys: pytest.CaptureFixture[str]):
    realign(["doctor", "--no-mdns", "--json"])
    *findings, last = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert last["event"] == "summary"
    assert sum(last[level] for level in ("ok", "warn", "fail")) == len(findings)
    assert all(finding["fix"] for finding in findings if finding["level"] != "ok")
    topics = {finding["topic"] for finding in findings}
    assert {"python", "versions", "blas", "memory", "disk", "sqlite", "environment", "certificates", "ports"} <= topics


def test_the_exit_code_says_whether_something_fails(
    home: ClusterHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    home.ensure_authority()
    (home.folder / "authority" / "ca.key").chmod(0o644)
    assert realign(["doctor", "--no-mdns"]) == 1
    text = capsys.readouterr().out
    assert "can be read by others" in text
    assert "chmod 600" in text


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]):
    assert realign(["doctor", "--help"]) == 0
    assert "realign doctor --hostfile hostfiles/local.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10, 1), "fail"), ((3, 11, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "warn")]
)
def test_python(version: tuple[int, ...], level: str):
    assert levels(machine.check_python(version)) == {level}


def test_each_variable_that_is_set_is_explained():
    environment = {
        "MLX_METAL_PREALLOCATE": "1", "MLX_METAL_FAST_SYNCH": "1", "TOKENIZERS_PARALLELISM": "false", "PATH": "/bin",
        "OMP_NUM_THREADS": "4",
    }  # fmt: skip
    found = {finding.text.split("=")[0]: finding for finding in machine.check_environment(environment)}
    assert set(found) == {"MLX_METAL_PREALLOCATE", "MLX_METAL_FAST_SYNCH", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"}
    assert "read by nothing" in found["MLX_METAL_PREALLOCATE"].text
    assert found["MLX_METAL_FAST_SYNCH"].level == "warn"
    assert "deadlock" in found["MLX_METAL_FAST_SYNCH"].text
    assert levels(machine.check_environment({})) == {"ok"}


def test_each_variable_of_the_hostfile_is_explained():
    hosts = read_hostfile(HOSTFILES / "m4max-m3ultra-rdma.json").hosts
    found = machine.check_hostfile_environment((hosts[0], replace(hosts[1], env={**hosts[1].env, "MLX_MY_OWN": "2"})))
    assert [finding.level for finding in found] == ["warn", "ok", "ok"]
    assert found[0].text.startswith("MLX_METAL_FAST_SYNCH=1 in the hostfile, for all hosts: makes the CPU and the GPU")
    assert found[1].text.startswith("MLX_MY_OWN=2 in the hostfile, for m3ultra: not known here")
    assert machine.check_hostfile_environment(()) == []


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for free, level in ((10**8, "fail"), (3 * 2**30, "warn"), (2**40, "ok")):
        monkeypatch.setattr(machine, "free_bytes", lambda path, free=free: free)
        assert levels(machine.check_disk(tmp_path)) == {level}


class TestCertificates:
    def test_no_cluster_yet(self, home: ClusterHome, tmp_path: Path):
        (finding,) = cluster.check_certificates(home, tmp_path / "node")
        assert finding.level == "warn"
        assert "realign-launch" in finding.fix

    def test_a_fresh_cluster_is_sound(self, home: ClusterHome, tmp_path: Path):
        home.ensure_authority()
        assert levels(cluster.check_certificates(home, tmp_path / "node")) == {"ok"}

    def test_an_expired_authority_fails(self, home: ClusterHome, tmp_path: Path):
        long_ago = datetime.now(UTC) - timedelta(days=400)
        Authority.create(home.folder / "authority", now=long_ago, days=365)
        found = cluster.check_certificates(home, tmp_path / "node")
        assert any(finding.level == "fail" and "expired" in finding.text for finding in found)

    def test_a_node_whose_key_is_missing_fails(self, home: ClusterHome, tmp_path: Path):
        bundle = home.ensure_authority().issue("n-0123", Role.NODE)
        bundle.save(tmp_path / "node")
        assert "fail" not in levels(cluster.check_certificates(home, tmp_path / "node"))
        (tmp_path / "node" / "node.key").unlink()
        found = cluster.check_certificates(home, tmp_path / "node")
        assert any(finding.level == "fail" and "node.key" in finding.text for finding in found)


class TestPorts:
    def test_free_and_in_use_by_whom(self):
        with socket.socket() as server:
            server.bind(("0.0.0.0", 0))
            server.listen()
            port = server.getsockname()[1]
            (finding,) = cluster.check_ports((), port)
            assert finding.level == "fail"
            assert f"pid {os.getpid()}" in finding.text
        (finding,) = cluster.check_ports((), port)
        assert finding.level == "ok"

    def test_hosts_elsewhere_need_no_port_here(self):
        elsewhere = Host(ssh="mac-7", name="mac-7", address="192.0.2.7")
        assert cluster.check_ports((elsewhere,), 47100) == []


async def test_nodes_that_were_never_enrolled_fail_with_the_command(home: ClusterHome, tmp_path: Path):
    path = tmp_path / "hosts.json"
    path.write_text('[{"ssh": "127.0.0.1", "ips": ["127.0.0.1"], "realign": {"name": "a", "port": 47977}}]')
    (finding,) = await cluster.check_nodes(read_hostfile(path), home)
    assert finding.level == "fail"
    assert "a at 127.0.0.1:47977 is not enrolled" in finding.text
    assert finding.fix == "realign-launch --hostfile FILE up"


class TestMacos:
    """Outputs as the commands document or print them."""

    PMSET = """System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 womp                 1
 autorestart          {autorestart}
 hibernatefile        /var/vm/sleepimage
 disksleep            10
 sleep                {sleep} (sleep prevented by caffeinate, powerd)
 displaysleep         10
"""

    def test_power(self):
        (finding,) = macos.power_findings(self.PMSET.format(autorestart=0, sleep=1))
        assert finding.level == "warn"
        assert "sleep is 1" in finding.text
        assert "disksleep is 10" in finding.text
        assert "autorestart is 0" in finding.text
        assert "womp" not in finding.text
        assert finding.fix.startswith("sudo pmset")
        (finding,) = macos.power_findings(self.PMSET.format(autorestart=1, sleep=0).replace("10\n", "0\n"))
        assert finding.level == "ok"

    def test_wired_limit(self):
        assert "3/4" in macos.wired_limit_findings("0\n")[0].text
        assert "120,000 MB" in macos.wired_limit_findings("120000\n")[0].text
        assert macos.wired_limit_findings("") == []

    def test_rosetta(self):
        assert macos.rosetta_findings("1\n")[0].level == "warn"
        assert macos.rosetta_findings("0\n") == []
        assert macos.rosetta_findings("") == []

    def test_thermal(self):
        key = "com.apple.system.thermalpressurelevel"
        assert macos.thermal_findings(f"{key} 0\n")[0].level == "ok"
        assert macos.thermal_findings(f"{key} 2\n")[0].level == "warn"
        assert macos.thermal_findings("something else") == []

    def test_firewall(self):
        assert macos.firewall_findings("Firewall is disabled. (State = 0)\n")[0].level == "ok"
        assert macos.firewall_findings("Firewall is enabled. (State = 1)\n")[0].level == "warn"
        assert macos.firewall_findings("") == []

    def test_rdma(self):
        devices = "hca_id:\trdma_en2\n\t\tport:\t1\n\t\t\tstate:\t\t\tPORT_ACTIVE (4)\n"
        devices += "hca_id:\trdma_en3\n\t\t\tstate:\tPORT_DOWN (1)\n"
        assert "1 active port" in macos.rdma_findings("enabled\n", devices, "26.2")[0].text
        assert macos.rdma_findings("enabled\n", devices.replace("PORT_ACTIVE", "PORT_DOWN"), "26.2")[0].level == "warn"
        assert "rdma_ctl enable" in macos.rdma_findings("disabled\n", "", "26.3")[0].text
        assert macos.rdma_findings("enabled\n", devices, "15.6") == []

    def test_version(self):
        assert macos.version_finding("13.6").level == "warn"
        assert "26.2" in macos.version_finding("15.5").text
        assert "needs" not in macos.version_finding("26.2").text

    async def test_other_systems_are_not_asked(self):
        async def run(*command: str) -> str:
            raise AssertionError(command)

        assert await macos.check_macos(run, "Linux") == []

    async def test_a_mac_whose_commands_say_nothing(self, monkeypatch: pytest.MonkeyPatch):
        async def run(*command: str) -> str:
            return ""

        monkeypatch.setattr("platform.mac_ver", lambda: ("26.2", ("", "", ""), "arm64"))
        assert [finding.level for finding in await macos.check_macos(run, "Darwin")] == ["ok"]
