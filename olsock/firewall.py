"""What bridged sandboxes may send where, as nftables rules in the host's network namespace.

Two tables of our own, both called `olsock`: `ip` decides about everything that comes off the bridge, and `netdev`
holds one chain for each sandbox, at the host's end of its cable, through which nothing passes that does not carry
the hardware and IP address of that sandbox. Rules are spoken over netlink, so that no `nft` program is needed.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from olsock.errors import KernelError, OlsockError, UnsupportedError

TABLE = "olsock"
LINK_LOCAL = IPv4Network("169.254.0.0/16")  # where clouds answer with credentials of the machine

Expression = dict[str, Any]
Rule = list[Expression]

_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_*
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_REQUEST, _ACK, _EXCL, _CREATE, _APPEND = 0x1, 0x4, 0x200, 0x400, 0x800  # NLM_F_*
_NEWTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN, _NEWRULE = 0, 2, 3, 4, 5, 6
_IPV4, _NETDEV = 2, 5  # NFPROTO_*
_INGRESS, _INPUT, _FORWARD, _POSTROUTING = 0, 1, 2, 4  # hooks, the first of netdev
_FILTER, _SOURCE_NAT = 0, 100  # priorities
_DROP, _ACCEPT = 0, 1

# Keys of `meta`, `ct` and headers of `payload`.
_PROTOCOL, _IIFNAME, _OIFNAME = 1, 6, 7
_STATE, _STATUS = 0, 2
_LINK, _NETWORK = 0, 1
_SOURCE, _DESTINATION = 12, 16  # offsets in an IPv4 header

_EQUAL, _OTHER = 0, 1
_ESTABLISHED, _RELATED = 2, 4  # bits of a connection's state
_REDIRECTED = 1 << 5  # IPS_DST_NAT: the host has rewritten where the connection goes


def _expression(name: str, **attributes: Any) -> Expression:
    prefix = f"NFTA_{name.upper()}_"
    data = {"attrs": [(prefix + key.upper(), value) for key, value in attributes.items()]}
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", data)]}


def _value(data: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}


def _compare(data: bytes, operator: int = _EQUAL) -> Expression:
    return _expression("cmp", sreg=1, op=operator, data=_value(data))


def _mask(mask: bytes) -> Expression:
    zeros = _value(bytes(len(mask)))
    return _expression("bitwise", sreg=1, dreg=1, len=len(mask), mask=_value(mask), xor=zeros)


def _verdict(code: int) -> Expression:
    verdict = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]}
    return _expression("immediate", dreg=0, data=verdict)


def _interface(key: int, name: str, operator: int = _EQUAL) -> Rule:
    return [_expression("meta", key=key, dreg=1), _compare(name.encode().ljust(16, b"\0"), operator)]


def _protocol(ethertype: int) -> Rule:
    return [_expression("meta", key=_PROTOCOL, dreg=1), _compare(struct.pack("!H", ethertype))]


def _header(base: int, offset: int, data: bytes, operator: int = _EQUAL) -> Rule:
    load = _expression("payload", dreg=1, base=base, offset=offset, len=len(data))
    return [load, _compare(data, operator)]


def _within(offset: int, network: IPv4Network, operator: int = _EQUAL) -> Rule:
    load = _expression("payload", dreg=1, base=_NETWORK, offset=offset, len=4)
    return [load, _mask(network.netmask.packed), _compare(network.network_address.packed, operator)]


def _connection(key: int, bits: int, operator: int = _OTHER) -> Rule:
    """Match a connection that has any of `bits`; with `_EQUAL`, none of them. The kernel keeps these in host order."""
    return [_expression("ct", key=key, dreg=1), _mask(struct.pack("=I", bits)), _compare(bytes(4), operator)]


def bridge_rules(bridge: str, subnet: IPv4Network, guarded: Iterable[str]) -> dict[str, list[Rule]]:
    """Return the rules of each chain of the bridge's table.

    `guarded` are interfaces on which forwarding was turned on for the bridge alone: nobody else may use it.
    """
    coming, going = _interface(_IIFNAME, bridge), _interface(_OIFNAME, bridge)
    drop, accept = [_verdict(_DROP)], [_verdict(_ACCEPT)]
    answers = _connection(_STATE, _ESTABLISHED | _RELATED)
    return {
        # The host's own addresses, every port of them: loopback services, the worker, its control interface.
        "input": [coming + drop],
        "forward": [
            coming + going + drop,
            coming + _within(_SOURCE, subnet, _OTHER) + drop,
            coming + _within(_DESTINATION, LINK_LOCAL) + drop,
            # A port that the host publishes for somebody else: asked for under the host's address, so the host's.
            coming + _connection(_STATUS, _REDIRECTED) + drop,
            coming + accept,
            going + answers + accept,
            going + drop,
            *(
                _interface(_IIFNAME, name) + _connection(_STATE, _ESTABLISHED | _RELATED, _EQUAL) + drop
                for name in guarded
            ),
        ],
        "postrouting": [
            _within(_SOURCE, subnet) + _interface(_OIFNAME, bridge, _OTHER) + [_expression("masq")],
        ],
    }


def port_rules(mac: bytes, address: IPv4Address) -> list[Rule]:
    """Return what a sandbox's port lets through: ARP and IPv4 with its own addresses; the chain drops the rest.

    The rest includes IPv6, for which sandboxes have no addresses and the host's table has no rules.
    """
    own = _header(_LINK, 6, mac)
    arp = _header(_NETWORK, 8, mac) + _header(_NETWORK, 14, address.packed)  # who the sender says that it is
    return [
        own + _protocol(0x0806) + arp + [_verdict(_ACCEPT)],
        own + _protocol(0x0800) + _header(_NETWORK, _SOURCE, address.packed) + [_verdict(_ACCEPT)],
    ]


class _Batch:
    """Changes that the kernel takes all together or not at all."""

    def __init__(self, family: int) -> None:
        self._family = family
        self._messages: list[Any] = []

    def add(self, kind: int, flags: int, **attributes: Any) -> None:
        from pyroute2.netlink.nfnetlink import nftsocket

        kinds = {_NEWTABLE: "table", _DELTABLE: "table", _NEWRULE: "rule"}
        message = getattr(nftsocket, f"nft_{kinds.get(kind, 'chain')}_msg")()
        message["attrs"] = [[message.name2nla(key), value] for key, value in attributes.items()]
        message["header"]["type"] = _SUBSYSTEM << 8 | kind
        message["header"]["flags"] = _REQUEST | _ACK | flags
        message["nfgen_family"] = self._family
        self._messages.append(message)

    def table(self) -> None:
        self.add(_NEWTABLE, _CREATE, name=TABLE)

    def chain(self, name: str, type: str, hook: dict[str, Any], policy: int, flags: int = 0) -> None:
        attributes = {"hook": hook, "type": type, "policy": policy}
        self.add(_NEWCHAIN, _CREATE | flags, table=TABLE, name=name, **attributes)

    def rule(self, chain: str, rule: Rule) -> None:
        self.add(_NEWRULE, _CREATE | _APPEND, table=TABLE, chain=chain, expressions=rule)

    def send(self, step: str, absent: bool = False) -> None:
        """Send it. With `absent`, it is all right if what is to be removed is not there."""
        from pyroute2.netlink.exceptions import NetlinkError
        from pyroute2.netlink.nfnetlink.nftsocket import NFTSocket

        try:
            with NFTSocket(nfgen_family=self._family) as netlink:
                netlink.nlm_request_batch([_edge(_BEGIN), *self._messages, _edge(_END)])
        except (NetlinkError, OSError) as error:
            number = error.code if isinstance(error, NetlinkError) else error.errno
            if not (absent and number in (errno.ENOENT, errno.ENODEV)):
                raise _failure(step, number) from None


def _edge(kind: int) -> Any:
    from pyroute2.netlink.nfnetlink import nfgen_msg

    message = nfgen_msg()
    message["res_id"] = _SUBSYSTEM
    message["header"]["type"] = kind
    message["header"]["flags"] = _REQUEST
    return message


def _failure(step: str, number: int | None) -> OlsockError:
    if number in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL):
        wanted = "CONFIG_NF_TABLES_IPV4, _NETDEV, NFT_CT, NFT_MASQ and NFT_NAT"
        return UnsupportedError(f'network="bridge" needs nftables in the kernel ({wanted}): {step} failed')
    return KernelError(step, TABLE, number or errno.EIO, "rules of bridged sandboxes; needs CAP_NET_ADMIN")


def _hook(number: int, priority: int) -> dict[str, Any]:
    return {"attrs": [["NFTA_HOOK_HOOKNUM", number], ["NFTA_HOOK_PRIORITY", priority]]}


def guard_bridge(bridge: str, subnet: IPv4Network, guarded: Iterable[str]) -> None:
    """Put the bridge's rules in force, in place of those that were; there is no moment without."""
    batch = _Batch(_IPV4)
    batch.table()
    batch.add(_DELTABLE, 0, name=TABLE)
    batch.table()
    batch.chain("input", "filter", _hook(_INPUT, _FILTER), _ACCEPT)
    batch.chain("forward", "filter", _hook(_FORWARD, _FILTER), _ACCEPT)
    batch.chain("postrouting", "nat", _hook(_POSTROUTING, _SOURCE_NAT), _ACCEPT)
    for chain, rules in bridge_rules(bridge, subnet, guarded).items():
        for rule in rules:
            batch.rule(chain, rule)
    batch.send("nftables: rules of the bridge")


def guard_port(interface: str, mac: bytes, address: IPv4Address) -> None:
    """Let only this sandbox's own addresses in at `interface`. To be called while the interface is down."""
    unguard_port(interface)  # newer kernels (6.18 does) keep a chain whose interface is gone
    hook = _hook(_INGRESS, _FILTER)
    hook["attrs"].append(["NFTA_HOOK_DEV", interface])
    batch = _Batch(_NETDEV)
    batch.table()
    batch.chain(interface, "filter", hook, _DROP, _EXCL)
    for rule in port_rules(mac, address):
        batch.rule(interface, rule)
    batch.send(f"nftables: rules of {interface}")


def unguard_port(interface: str) -> None:
    """Remove the rules of an interface that is gone or not yet up."""
    batch = _Batch(_NETDEV)
    batch.add(_DELCHAIN, 0, table=TABLE, name=interface)
    batch.send(f"nftables: remove the rules of {interface}", absent=True)


def guarded_ports() -> list[str]:
    """Return the interfaces that have rules, those that are gone included."""
    from pyroute2.netlink import nfnetlink
    from pyroute2.netlink.nfnetlink.nftsocket import NFTSocket

    with NFTSocket(nfgen_family=_NETDEV) as netlink:
        found = netlink.request_get(nfnetlink.nfgen_msg(), _GETCHAIN)
    return [chain.get_attr("NFTA_CHAIN_NAME") for chain in found if chain.get_attr("NFTA_CHAIN_TABLE") == TABLE]


def remove() -> None:
    """Remove both tables."""
    for family in (_IPV4, _NETDEV):
        batch = _Batch(family)
        batch.add(_DELTABLE, 0, name=TABLE)
        batch.send("nftables: remove the table", absent=True)
