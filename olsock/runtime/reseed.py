"""Gives a forked child randomness and a thread id of its own. Runs in the child, between the fork and the user's code.

What is restored: OpenSSL's generators, the hidden instances behind `random` and `numpy.random`, the names
that `tempfile` makes up, and what `uuid` remembers. What cannot be: `random.Random()` and `default_rng()`
objects that a module made while the zygote imported it, the hash seed, the address layout. Modules with
state of their own register `os.register_at_fork(after_in_child=...)`: those hooks have run already when
`restore` does.

Only modules that are loaded are touched: in a child of a bare zygote this costs a few dictionary look-ups.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def restore() -> None:
    """Reseed every loaded generator that siblings would otherwise share."""
    modules: dict[str, Any] = sys.modules  # private names are reached into, for want of others
    threading = modules.get("threading")
    if threading is not None:
        # After a fork it has the zygote's still, which is what the child's first own thread will get.
        threading.main_thread()._set_native_id()
    ssl = modules.get("_ssl")
    if ssl is not None:
        # OpenSSL knows a fork by a changed getpid() only, and each of our children is pid 1: without
        # this, siblings draw the same bytes and the same private keys.
        ssl.RAND_add(os.urandom(32), 32.0)
    random = modules.get("random")
    if random is not None:
        random.seed()  # its own at-fork hook has done so; this holds for a fork that ran no hooks
    numpy = modules.get("numpy.random")
    if numpy is not None:
        numpy.seed([int.from_bytes(os.urandom(4), "little") for _ in range(8)])
    tempfile = modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None  # the next name draws a new generator
    uuid = modules.get("uuid")
    if uuid is not None:
        uuid._last_timestamp = None
        # A random node per child, as the cached one (a MAC address, or random bits) would be the same in
        # all of them.
        uuid._node = int.from_bytes(os.urandom(6), "big") | (1 << 40)
        uuid._generate_time_safe = None  # libuuid keeps the clock sequence in a variable that a fork copies
