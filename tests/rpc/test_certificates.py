from __future__ import annotations

import stat
from pathlib import Path

import pytest

from realign_cluster.rpc.certificates import (
    Authority,
    CertificateBundle,
    CertificateError,
    PeerIdentity,
    Role,
    identity_of,
    make_key_and_request,
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority")


def test_a_certificate_says_who_and_in_which_role(authority: Authority) -> None:
    for role in Role:
        assert authority.issue("n-1", role).identity == PeerIdentity(role=role, id="n-1")


def test_an_authority_is_the_same_when_loaded_and_is_never_replaced(authority: Authority, tmp_path: Path) -> None:
    again = Authority.load(tmp_path / "authority")
    assert again.certificate_pem == authority.certificate_pem
    again.issue("n-1", Role.NODE).check()
    with pytest.raises(CertificateError, match="already"):
        Authority.create(tmp_path / "authority")


def test_keys_are_for_their_owner_only(authority: Authority, tmp_path: Path) -> None:
    bundle = authority.issue("n-1", Role.NODE)
    bundle.save(tmp_path / "node")
    assert CertificateBundle.load(tmp_path / "node") == bundle
    for path in [*(tmp_path / "node").iterdir(), *(tmp_path / "authority").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_request_cannot_choose_its_name_or_role(authority: Authority) -> None:
    _, request = make_key_and_request("n-1")
    with pytest.raises(CertificateError, match="n-2"):
        authority.sign(request, role=Role.NODE, id="n-2")
    assert identity_of(authority.sign(request, role=Role.NODE, id="n-1")).role is Role.NODE


@pytest.mark.parametrize("id", ["", "N-1", "a.b", "-a", "a" * 64, "a/b"])
def test_an_id_must_be_a_plain_dns_label(authority: Authority, id: str) -> None:
    with pytest.raises(CertificateError, match="DNS"):
        authority.issue(id, Role.NODE)


def test_what_is_no_request_is_refused(authority: Authority) -> None:
    with pytest.raises(CertificateError, match="signing request"):
        authority.sign(b"hello", role=Role.NODE, id="n-1")


def test_a_bundle_of_parts_that_do_not_fit_is_refused(authority: Authority, tmp_path: Path) -> None:
    one, two = authority.issue("n-1", Role.NODE), authority.issue("n-1", Role.NODE)
    other = Authority.create(tmp_path / "other")
    for key, ca, match in ((two.key_pem, one.authority_pem, "key"), (one.key_pem, other.certificate_pem, "signed")):
        bundle = CertificateBundle(key_pem=key, certificate_pem=one.certificate_pem, authority_pem=ca)
        with pytest.raises(CertificateError, match=match):
            bundle.check()
