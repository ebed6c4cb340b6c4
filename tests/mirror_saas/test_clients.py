"""An address in the audit log is one that somebody we trust has seen."""

from __future__ import annotations

import pytest

from mirror_saas.clients import forwarded_ip
from mirror_saas.env import EnvironmentInvalid, environment_parse
from tests.support.servers import ROOT

PROXIES = ("10.0.0.0/8", "2001:db8::1", "127.0.0.1")


@pytest.mark.parametrize(
    ("peer", "header", "seen"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.2", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.2", "192.0.2.66, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.2", "198.51.100.1, 10.0.0.3", "198.51.100.1"),
        ("10.0.0.2", "10.0.0.4, 10.0.0.3", "10.0.0.4"),
        ("10.0.0.2", "nonsense", "10.0.0.2"),
        ("10.0.0.2", "198.51.100.1, nonsense", "10.0.0.2"),
        ("10.0.0.2", "", "10.0.0.2"),
        ("::ffff:10.0.0.2", "::ffff:198.51.100.1", "198.51.100.1"),
        ("2001:db8::1", "2001:db8::99", "2001:db8::99"),
        ("", "198.51.100.1", ""),
    ],
)
def test_only_what_trusted_proxies_wrote_is_believed(peer: str, header: str, seen: str) -> None:
    assert forwarded_ip(peer, header, PROXIES) == seen
    assert forwarded_ip(peer, header, ()) == peer.removeprefix("::ffff:")


def test_a_proxy_that_is_no_address_is_refused_by_name() -> None:
    with pytest.raises(EnvironmentInvalid, match=r"MIRROR_TRUSTED_PROXIES: cannot use proxy\.local"):
        environment_parse({"MIRROR_TRUSTED_PROXIES": "10.0.0.0/8, proxy.local"}, base_dir=ROOT)


def test_previous_keys_are_a_list_and_each_is_checked_without_being_repeated() -> None:
    keys = "ZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWVlZWU=, YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=\n"
    parsed = environment_parse({"MIRROR_ENCRYPTION_KEY_PREVIOUS": keys}, base_dir=ROOT)
    assert parsed.encryption_keys_previous == (b"e" * 32, b"a" * 32)
    assert "eeee" not in repr(parsed)
    from_file = environment_parse(
        {"MIRROR_ENCRYPTION_KEY_PREVIOUS_FILE": "keys"}, base_dir=ROOT, read_text=lambda path: keys
    )
    assert from_file.encryption_keys_previous == parsed.encryption_keys_previous
    with pytest.raises(EnvironmentInvalid, match="MIRROR_ENCRYPTION_KEY_PREVIOUS: has an entry") as error:
        environment_parse({"MIRROR_ENCRYPTION_KEY_PREVIOUS": keys + ",c2hvcnQ="}, base_dir=ROOT)
    assert "c2hvcnQ" not in str(error.value)
