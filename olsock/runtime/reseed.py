"""Gives a forked child randomness and a thread id of its own. Runs in the child, between the fork and the user's code.

What is restored: OpenSSL's generators, the hidden instances behind `random` and `numpy.random`, the names
that `tempfile` makes up, and what `uuid` remembers. What cannot be: `random.Random()` and `default_rng()`
objects that a module made while the zygote imported it, the hash seed, the address layout. Modules with
state of their own register `os.register_at_fork(after_in_child=...)`: those hooks have run already when
`restore` does.

Only modules that are loaded are touched: in a child of a bare zygote this costs a few dictionary look-ups.
What a child touches first is copied for it, page by page: `numpy.random.seed`, which goes through half of
numpy, took 160 of those and 0.7 ms. So a zygote finds out where that state lies (`prepare`), and a child
fills it with random bits, which is what a seed would be stretched to anyway.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

MERSENNE = 624 * 4  # bytes of a Mersenne twister's key; the position in it, an int, follows (numpy's _mt19937.pyx)
USED_UP = (624).to_bytes(4, sys.byteorder)  # the next number draws a new block

_mersenne: tuple[Any, memoryview] | None = None  # the generator behind `numpy.random`, and its state


def prepare(window: Callable[[Any, str, int], memoryview]) -> None:
    """Find the state of numpy's hidden generator, in a zygote, after its last import; `window` is of `_fork`."""
    global _mersenne
    _mersenne = None
    numpy = sys.modules.get("numpy.random")
    if numpy is None:
        return
    try:
        numpy.seed()  # also forgets the second of a pair of normal deviates, which siblings would share
        generator = numpy.mtrand._rand._bit_generator
        if type(generator) is not numpy.MT19937:
            return
        state = window(generator.capsule, "BitGenerator", MERSENNE + len(USED_UP))
        _fill(state)
        kind, key, position, *rest = numpy.get_state()
        told = key.tobytes() + int(position).to_bytes(4, sys.byteorder)
        if (kind, told, rest) == ("MT19937", bytes(state), [0, 0.0]):
            _mersenne = generator, state
    except Exception:
        pass  # a numpy that is made otherwise: children seed it by its own means


def _fill(state: memoryview) -> None:
    state[:] = os.urandom(MERSENNE) + USED_UP


def _seed(numpy: Any) -> None:
    """Seed the generator behind `numpy.random`, or give it another where it is of a kind that has no seed."""
    try:
        numpy.seed([int.from_bytes(os.urandom(4), "little") for _ in range(8)])
    except TypeError:
        numpy.set_bit_generator(type(numpy.get_bit_generator())())


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
    # `random` has a hook of its own, which every fork of ours has run.
    numpy = modules.get("numpy.random")
    if _mersenne is not None:
        _fill(_mersenne[1])
    elif numpy is not None:
        _seed(numpy)
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
