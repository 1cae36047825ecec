"""The preflight of RDMA over Thunderbolt: what it reads from a Mac's commands, and what it says of Macs wired wrong."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.cli.checks import rdma, rdma_output
from realign_cluster.cli.checks.finding import Finding
from realign_cluster.cli.checks.rdma_output import Interface, RdmaState, Socket
from realign_cluster.domain.hostfile import Hostfile, parse_hostfile
from tests.cli.macs import Mac, mesh, put_up

MACOS = Path(__file__).parents[1] / "fixtures" / "macos"
CONFIG = Path(sys.executable).with_name("mlx.distributed_config")


def said(name: str) -> str:
    return (MACOS / name).read_text()


class TestOutput:
    def test_devices(self) -> None:
        assert rdma_output.parse_devices(said("ibv_devices.txt")) == ("rdma_en2", "rdma_en3", "rdma_en5")
        assert rdma_output.parse_devices(said("ibv_devices_none.txt")) == ()
        assert rdma_output.parse_devices("") == ()

    def test_port_states(self) -> None:
        states = {"rdma_en2": "PORT_ACTIVE", "rdma_en3": "PORT_DOWN", "rdma_en5": "PORT_ACTIVE"}
        assert rdma_output.parse_port_states(said("ibv_devinfo.txt")) == states
        assert rdma_output.parse_port_states("No IB devices found\n") == {}

    def test_hardware_ports(self) -> None:
        ports = rdma_output.parse_hardware_ports(said("networksetup.txt"))
        assert {name: device for name, device in ports.items() if name.startswith("Thunderbolt ")} == {
            "Thunderbolt 1": "en2", "Thunderbolt 2": "en3", "Thunderbolt 3": "en5", "Thunderbolt Bridge": "bridge0",
        }  # fmt: skip

    def test_interfaces(self) -> None:
        interfaces = rdma_output.parse_interfaces(said("ifconfig.txt"))
        assert interfaces["en2"] == Interface(up=True)
        assert interfaces["en5"] == Interface(up=True, addresses=("192.168.0.1",))
        assert interfaces["bridge0"] == Interface(up=True, members=("en2", "en3"))
        assert RdmaState(system="Darwin", interfaces=interfaces).bridged == ("en2", "en3")
        down = said("ifconfig.txt").replace("bridge0: flags=8863<UP,", "bridge0: flags=8822<")
        assert RdmaState(system="Darwin", interfaces=rdma_output.parse_interfaces(down)).bridged == ()

    def test_sockets(self) -> None:
        ports = rdma_output.parse_hardware_ports(said("networksetup.txt"))
        assert rdma_output.parse_sockets(said("thunderbolt.json"), ports) == (
            Socket(
                name="Thunderbolt 1", interface="en2", gigabits=80,
                domain="00000000-0000-0000-0000-0000000000A1", peer_domain="00000000-0000-0000-0000-0000000000B1",
            ),
            Socket(
                name="Thunderbolt 2", interface="en3", gigabits=120, domain="00000000-0000-0000-0000-0000000000A2"
            ),
            Socket(name="Thunderbolt 3", interface="en5", gigabits=80, domain="00000000-0000-0000-0000-0000000000A3"),
        )  # fmt: skip
        assert rdma_output.parse_sockets("", ports) == rdma_output.parse_sockets("{}", ports) == ()

    def test_the_script_tells_commands_apart_in_a_real_shell(self) -> None:
        commands = {"macos": "echo 26.2", "rdma_ctl": "no-such-command status", "ibv_devices": "printf 'no line end'"}
        script = rdma_output.script(commands)
        assert "\n" not in script
        ran = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
        assert ran.stderr == ""
        found = {name: text.strip() for name, text in rdma_output.sections(ran.stdout).items()}
        assert found == {"macos": "26.2", "rdma_ctl": "", "ibv_devices": "no line end"}


def hostfile_of(macs: list[Mac], backend: str = "jaccl") -> Hostfile:
    """As its author believes the cables to be."""
    hosts = []
    for mac in macs:
        towards = {peer: f"rdma_{mac.interface(socket)}" for socket, (peer, _) in mac.cables.items()}
        hosts.append({"ssh": mac.name, "rdma": [towards.get(peer.name) for peer in macs]})
    return parse_hostfile(json.dumps({"backend": backend, "hosts": hosts}), "macs.json")


async def findings(hostfile: Hostfile, macs: list[Mac], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    monkeypatch.setenv("PATH", put_up(folder, macs))
    for mac in macs:  # as they are once they are set up
        (folder / "macs" / mac.name / "bridge-down").touch()
        for socket in range(1, mac.sockets + 1):
            (folder / "macs" / mac.name / f"address-{mac.interface(socket)}").write_text(f"192.168.{socket}.1\n")
    return await rdma.check_rdma(hostfile)


async def test_what_mlx_configures_passes_and_before_it_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: Macs out of the box, the findings, the command that they name, run by MLX itself."""
    macs = mesh("alpha", "beta", "gamma")
    monkeypatch.setenv("PATH", put_up(tmp_path, macs))
    before = await rdma.check_rdma(hostfile_of(macs))
    assert {finding.level for finding in before} == {"fail", "ok"}
    texts = "\n".join(finding.text for finding in before)
    assert "alpha: the Thunderbolt Bridge (bridge0) has taken rdma_en2, rdma_en3" in texts
    assert "beta: en3 has no IPv4 address, and MLX finds the way of rdma_en3 towards gamma by it" in texts
    named = next(finding.fix.split("for all hosts: ")[1] for finding in before if "for all hosts" in finding.fix)
    command = shlex.split(named.replace("NEW.json", str(tmp_path / "new.json")))
    assert command[0] == CONFIG.name
    configured = await asyncio.create_subprocess_exec(CONFIG, *command[1:], stdout=subprocess.DEVNULL)
    assert await configured.wait() == 0
    written = parse_hostfile((tmp_path / "new.json").read_text(), "new.json")
    after = await rdma.check_rdma(written)
    assert [(finding.level, finding.text) for finding in after] == [
        ("ok", "alpha: macOS 26.2, RDMA is enabled, active: rdma_en2 to beta, rdma_en3 to gamma"),
        ("ok", "beta: macOS 26.2, RDMA is enabled, active: rdma_en2 to alpha, rdma_en3 to gamma"),
        ("ok", "gamma: macOS 26.2, RDMA is enabled, active: rdma_en2 to alpha, rdma_en3 to beta"),
        ("ok", "the cables make a full mesh of 3 Macs, as the hostfile says"),
    ]


@pytest.mark.parametrize(
    ("parts", "text", "fix"),
    [
        ({"macos": "26.1"}, "beta: macOS 26.1, RDMA over Thunderbolt needs 26.2", "on beta: sudo softwareupdate"),
        ({"rdma_ctl": "disabled"}, "beta: RDMA is not enabled (rdma_ctl status: disabled)", "Recovery"),
        ({"gigabits": 40}, "beta: its Thunderbolt makes 40 Gb/s at most, RDMA needs Thunderbolt 5", "--backend ring"),
        ({"inactive": {1}}, "beta: rdma_en2 towards alpha (Thunderbolt 1) is PORT_DOWN", "ibv_devinfo -d rdma_en2"),
        ({"mlx": "0.30.1"}, "beta: MLX 0.30.1, jaccl as it is used here needs 0.32", "--install up"),
        ({"mlx": ""}, "beta: no MLX there", "--install up"),
    ],
)
async def test_one_mac_is_not_ready(
    parts: dict[str, Any], text: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    macs = mesh("alpha", "beta")
    hostfile = hostfile_of(macs)
    for name, value in parts.items():
        setattr(macs[1], name, value)
    failed = [one for one in await findings(hostfile, macs, tmp_path, monkeypatch) if one.level != "ok"]
    assert [one.text for one in failed] == [text]
    assert fix in failed[0].fix


async def test_cables_that_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    macs = mesh("alpha", "beta", "gamma")
    hostfile = hostfile_of(macs)
    macs[0].cables = {1: ("gamma", 1), 2: ("beta", 1)}  # alpha's two cables are swapped
    macs[1].cables[1], macs[2].cables[1] = ("alpha", 2), ("alpha", 1)
    found = await findings(hostfile, macs, tmp_path, monkeypatch)
    assert "alpha: rdma_en2 is cabled to rdma_en2 of gamma, the hostfile says rdma_en2 of beta" in [
        finding.text for finding in found
    ]
    assert all("--hosts alpha,beta,gamma" in finding.fix for finding in found if finding.level == "fail")
    assert not any("full mesh" in finding.text for finding in found)


async def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    macs = mesh("alpha", "beta")
    hosts = [{"ssh": "alpha", "rdma": [None, "rdma_en9"]}, {"ssh": "beta", "rdma": ["rdma_en2", None]}]
    hostfile = parse_hostfile(json.dumps({"backend": "jaccl", "hosts": hosts}), "macs.json")
    found = await findings(hostfile, macs, tmp_path, monkeypatch)
    assert "alpha has no rdma_en9 towards beta: it has rdma_en2, rdma_en3, rdma_en4" in [one.text for one in found]


async def test_a_ring_uses_its_neighbours_cables_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    macs = mesh("alpha", "beta", "gamma", "delta")
    del macs[0].cables[2], macs[2].cables[1]  # none between alpha and gamma, which are no neighbours
    found = await findings(hostfile_of(macs, "jaccl-ring"), macs, tmp_path, monkeypatch)
    assert {finding.level for finding in found} == {"ok"}
    assert found[-1].text == "the cables make a ring of 4 Macs, as the hostfile says"
    assert found[0].text.endswith("rdma_en2 to beta, rdma_en4 to delta")


async def test_a_host_that_does_not_answer_and_one_that_is_no_mac(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = [{"ssh": "nowhere", "rdma": [None, "rdma_en2"]}, {"ssh": "127.0.0.1", "rdma": ["rdma_en2", None]}]
    hostfile = parse_hostfile(json.dumps({"hosts": hosts}), "macs.json")
    found = await findings(hostfile, [], tmp_path, monkeypatch)
    assert found[0].text == "nowhere: unknown host: ssh cannot resolve nowhere"
    assert sys.platform == "darwin" or found[1].text == "127.0.0.1 runs Linux: jaccl is for Macs"
    assert all(finding.level == "fail" and finding.fix for finding in found)


async def test_hostfiles_without_rdma_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ssh
    hosts = [{"ssh": "mac-1", "rdma": [None, "rdma_en2"]}, {"ssh": "mac-2", "rdma": [None, None]}]
    assert await rdma.check_rdma(parse_hostfile(json.dumps({"backend": "ring", "hosts": hosts}), "h.json")) == []
    (finding, *_) = await rdma.check_rdma(parse_hostfile(json.dumps(hosts), "h.json"))
    assert finding.text == "h.json: mac-2 has no device towards mac-1"
