"""The cluster's home: one authority, a registry that survives several writers, revocation that holds."""

from __future__ import annotations

import datetime
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from realign_cluster.coordinator.home import ClusterHome, NodeRequest, realign_home
from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.rpc.certificates import Authority, CertificateBundle, Role, fingerprint, make_key_and_request


def request(node_id: str = "n-1", name: str = "alpha") -> NodeRequest:
    return NodeRequest(node_id=node_id, name=name, request_pem=make_key_and_request(node_id)[1])


def enrol_many(folder: Path, worker: int) -> None:
    for index in range(5):
        ClusterHome(folder).sign_node(request(f"n-{worker}-{index}", f"w{worker}-{index}"))


@pytest.fixture
def home(tmp_path: Path) -> ClusterHome:
    return ClusterHome(tmp_path / "cluster")


def test_the_home_is_made_once_and_for_its_owner_only(home: ClusterHome) -> None:
    assert not home.exists
    first = home.bundle()
    assert home.exists
    assert home.bundle() == first
    assert first.identity.role is Role.COORDINATOR
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    for key in home.folder.glob("*/*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_realign_home_replaces_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REALIGN_HOME", str(tmp_path / "x"))
    assert ClusterHome().folder == tmp_path / "x" / "cluster"
    monkeypatch.delenv("REALIGN_HOME")
    assert realign_home() == Path.home() / ".realign"


def test_a_signed_node_is_trusted_until_it_is_revoked(home: ClusterHome) -> None:
    signed = home.sign_node(request(), address="10.0.0.1:47100")
    mark = fingerprint(signed.certificate_pem)
    assert home.trusted(mark)
    assert (home.standing("00"), home.trusted("00")) == ("unknown", False)
    assert [entry.node_id for entry in home.revoke("alpha")] == ["n-1"]
    assert (home.standing(mark), home.trusted(mark), home.revoked_fingerprints()) == ("revoked", False, {mark})
    assert home.find("alpha") is None
    with pytest.raises(UsageError, match="was revoked"):
        home.sign_node(request())
    again = home.sign_node(request(), readmit=True)
    assert home.trusted(fingerprint(again.certificate_pem))
    assert not home.trusted(mark)


def test_revoking_somebody_unknown_names_who_is_known(home: ClusterHome) -> None:
    home.sign_node(request())
    with pytest.raises(UsageError, match="alpha"):
        home.revoke("beta")


def test_a_request_for_another_id_is_refused_and_not_entered(home: ClusterHome) -> None:
    with pytest.raises(RealignError):
        home.sign_node(NodeRequest(node_id="n-2", name="beta", request_pem=request("n-1").request_pem))
    assert home.nodes() == ()


def test_of_a_name_the_node_at_that_address_is_found_else_the_newest(home: ClusterHome) -> None:
    home.sign_node(request("n-1"), address="10.0.0.1:1")
    home.sign_node(request("n-2"), address="10.0.0.2:1")
    for address, expected in (("10.0.0.1:1", "n-1"), ("10.0.0.2:1", "n-2"), ("10.0.0.3:1", "n-2")):
        found = home.find("alpha", address)
        assert found is not None
        assert found.node_id == expected
    home.record_address("n-1", "10.0.0.3:1")
    found = home.find("alpha", "10.0.0.3:1")
    assert found is not None
    assert found.node_id == "n-1"


def test_several_writers_lose_no_entry(home: ClusterHome) -> None:
    with ThreadPoolExecutor(3) as pool:  # each takes the lock through a file of its own, as processes would
        list(pool.map(enrol_many, [home.folder] * 3, range(3)))
    assert len(home.nodes()) == 15


def test_a_damaged_registry_is_named_with_the_fix(home: ClusterHome) -> None:
    home.ensure_authority()
    (home.folder / "nodes.json").write_text("[{")
    with pytest.raises(RealignError, match=r"nodes\.json is damaged") as caught:
        home.nodes()
    assert "enrol the nodes again" in caught.value.fix


def test_the_coordinators_certificate_is_renewed_before_it_expires(home: ClusterHome) -> None:
    authority = home.ensure_authority()
    key_pem, request_pem = make_key_and_request("coordinator")
    old = authority.sign(request_pem, role=Role.COORDINATOR, id="coordinator", days=5)
    bundle = CertificateBundle(key_pem=key_pem, certificate_pem=old, authority_pem=authority.certificate_pem)
    bundle.save(home.folder / "coordinator", "coordinator")
    left = home.bundle().not_after - datetime.datetime.now(datetime.UTC)
    assert left > datetime.timedelta(days=300)


def test_a_new_authority_means_a_new_coordinator(home: ClusterHome, tmp_path: Path) -> None:
    before = home.bundle()
    for path in (home.folder / "authority").iterdir():
        path.unlink()
    other = Authority.create(home.folder / "authority")
    after = home.bundle()
    assert after.authority_pem == other.certificate_pem != before.authority_pem
