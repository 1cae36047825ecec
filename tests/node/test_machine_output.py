"""Parsers against what the commands print. The macOS samples are shortened."""

from __future__ import annotations

import pytest

from realign_cluster.node.machine_output import (
    parse_cpu_model,
    parse_gpu_cores,
    parse_memory_cgroups,
    parse_thermal_pressure,
)

DISPLAYS = """{
  "SPDisplaysDataType" : [
    {
      "_name" : "Apple M4 Max",
      "spdisplays_mtlgpufamilysupport" : "spdisplays_metal4",
      "spdisplays_ndrvs" : [ { "_name" : "Color LCD", "_spdisplays_pixels" : "3456 x 2234" } ],
      "spdisplays_vendor" : "sppci_vendor_Apple",
      "sppci_bus" : "spdisplays_builtin",
      "sppci_cores" : "40",
      "sppci_device_type" : "spdisplays_gpu",
      "sppci_model" : "Apple M4 Max"
    }
  ]
}"""


def test_gpu_cores() -> None:
    assert parse_gpu_cores(DISPLAYS) == 40
    assert parse_gpu_cores('{"SPDisplaysDataType" : []}') == 0
    for wrong in ("", "{}", '{"SPDisplaysDataType" : [{"sppci_cores": "many"}]}'):
        with pytest.raises(ValueError):
            parse_gpu_cores(wrong)


@pytest.mark.parametrize(("level", "name"), [(0, "nominal"), (2, "heavy"), (4, "sleeping"), (9, "unknown")])
def test_thermal_pressure(level: int, name: str) -> None:
    assert parse_thermal_pressure(f"com.apple.system.thermalpressurelevel {level}\n") == name


def test_thermal_pressure_of_something_else() -> None:
    with pytest.raises(ValueError):
        parse_thermal_pressure("usage: notifyutil")


def test_cpu_model() -> None:
    assert parse_cpu_model("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n") == "AMD EPYC"
    assert parse_cpu_model("processor : 0\nBogoMIPS : 48.00\n") == ""


def test_memory_limits_of_both_cgroup_versions() -> None:
    assert parse_memory_cgroups("0::/user.slice/a.scope\n") == [
        "user.slice/a.scope/memory.max",
        "user.slice/memory.max",
        "memory.max",
    ]
    assert parse_memory_cgroups("5:cpu,cpuacct:/x\n4:memory:/bed/m3\n") == [
        "memory/bed/m3/memory.limit_in_bytes",
        "memory/bed/memory.limit_in_bytes",
        "memory/memory.limit_in_bytes",
    ]
