"""Subnets, addresses and rules of bridged sandboxes, without a bridge."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network

import pytest

from olsock import firewall, network
from olsock.errors import KernelError, SpecError, UnsupportedError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("text", ["10.9.0.0/16", "192.168.7.0/29", "172.16.0.0/12"])
def test_a_private_network_can_be_configured(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(network.SUBNET_VARIABLE, text)
    assert network._configured_subnet() == IPv4Network(text)


@pytest.mark.parametrize(
    "text",
    ["8.8.8.0/24", "10.0.0.0/30", "10.0.0.1/8", "127.0.0.0/8", "169.254.0.0/16", "fd00::/64", "bridge", "10.0.0.1"],
)
def test_any_other_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(network.SUBNET_VARIABLE, text)
    with pytest.raises(SpecError, match=network.SUBNET_VARIABLE):
        network._configured_subnet()


def test_none_is_configured_unless_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv(network.SUBNET_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(network.SUBNET_VARIABLE, value)
        assert network._configured_subnet() is None


def test_every_address_but_three_is_given_once() -> None:
    subnet = IPv4Network("10.0.0.0/29")
    assert sorted(network._candidates(subnet)) == [IPv4Address(f"10.0.0.{last}") for last in range(2, 7)]


def test_not_more_addresses_are_tried_than_can_be_taken() -> None:
    found = list(network._candidates(IPv4Network("10.0.0.0/8")))
    assert len(found) == len(set(found)) == 1024


def test_names_of_interfaces_fit() -> None:
    assert len(f"{network.PREFIX}{int(IPv4Address('255.255.255.255')):08x}") == 15


def test_hardware_addresses_are_local_and_of_one_station() -> None:
    for _ in range(200):
        assert int(network._random_mac()[:2], 16) & 3 == 2


def test_default_subnets_are_private_and_apart() -> None:
    subnets = [IPv4Network(text) for text in network.SUBNETS]
    assert all(subnet.is_private for subnet in subnets)
    assert not any(a.overlaps(b) for a in subnets for b in subnets if a is not b)


def test_guarded_interfaces_get_a_rule_each() -> None:
    subnet = IPv4Network("10.177.0.0/16")
    without = firewall.bridge_rules("olsock0", subnet, [])
    with_two = firewall.bridge_rules("olsock0", subnet, ["eth0", "eth1"])
    assert len(with_two["forward"]) == len(without["forward"]) + 2
    assert [with_two[chain] for chain in ("input", "postrouting")] == [
        without[chain] for chain in ("input", "postrouting")
    ]


@pytest.mark.parametrize(("alias", "instances", "left"), [
    (["olsock", "1-a", "s-1"], {"1-a"}, True),
    (["olsock", "1-a", "s-1"], {"2-b"}, False),
    (["olsock", "1-a", "s-1"], None, True),
    (["olsock", "1-a", "s-1"], set(), False),
    (["other"], None, False),
    ([], set(), True),
])  # fmt: skip
def test_whose_cables_are_left(alias: list[str], instances: set[str] | None, left: bool) -> None:
    assert network._left(alias, instances) is left


def test_errors_of_the_kernel_say_what_is_missing() -> None:
    assert isinstance(firewall._failure("step", 95), UnsupportedError)
    error = network._typed(PermissionError(1, "no"))
    assert isinstance(error, KernelError)
    assert "CAP_NET_ADMIN" in str(error)


def test_the_netlink_library_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, olsock.network; assert not any(name.startswith('pyroute2') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
