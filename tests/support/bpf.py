"""Classic BPF as seccomp runs it, interpreted: what a program answers to a system call, without asking a kernel."""

from __future__ import annotations

import operator
import struct

ALLOW = 0x7FFF0000
KILL = 0x80000000
ERRNO = 0x00050000

X86_64 = 0xC000003E
I386 = 0x40000003
AARCH64 = 0xC00000B7
ARM = 0x40000028
X32_BIT = 0x40000000

_WORD = 0xFFFFFFFF


def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    """Decode an array of `struct sock_filter`: (code, jump if true, jump if false, constant)."""
    return list(struct.iter_unpack("<HBBI", program))


def run(code: list[tuple[int, int, int, int]], arch: int, nr: int, args: tuple[int, ...] = ()) -> int:
    """Return the SECCOMP_RET_* value for one call. Anything seccomp would not accept in a program is an error here."""
    padded = [*args, *[0] * (6 - len(args))]
    data = struct.pack("<IIQ6Q", nr & _WORD, arch, 0, *(value & (1 << 64) - 1 for value in padded))
    at = accumulator = index = 0
    scratch = [0] * 16
    while True:
        op, yes, no, k = code[at]
        at += 1
        match op & 0x07:
            case 0x00:  # BPF_LD
                mode = op & 0xE0
                if mode == 0x20:
                    if k % 4 or k > 60:
                        raise ValueError(f"load of {k} at {at - 1}")
                    accumulator = struct.unpack_from("<I", data, k)[0]
                elif mode == 0x60:
                    accumulator = scratch[k]
                else:
                    accumulator = k
            case 0x01:  # BPF_LDX
                index = scratch[k] if op & 0xE0 == 0x60 else k
            case 0x02:
                scratch[k] = accumulator
            case 0x03:
                scratch[k] = index
            case 0x04:  # BPF_ALU
                accumulator = _alu(op & 0xF0, accumulator, index if op & 0x08 else k)
            case 0x05:  # BPF_JMP
                at += _jump(op & 0xF0, accumulator, index if op & 0x08 else k, yes, no)
            case 0x06:
                return accumulator if op & 0x18 == 0x10 else k
            case _:
                accumulator, index = (index, index) if op & 0x80 else (accumulator, accumulator)


def stacked(results: list[int]) -> int:
    """What the kernel makes of several filters' answers, the youngest first: the gravest, the younger on a tie."""
    order = [KILL, 0x00000000, 0x00030000, ERRNO, 0x7FC00000, 0x7FF00000, 0x7FFC0000, ALLOW]
    return min(results, key=lambda value: order.index(value & 0xFFFF0000))


def _alu(op: int, a: int, b: int) -> int:
    # Functions, not results: a shift by a mask would be a number of gigabits.
    return _ALU[op](a, b) & _WORD


_ALU = {
    0x00: operator.add,
    0x10: operator.sub,
    0x40: operator.or_,
    0x50: operator.and_,
    0x60: operator.lshift,
    0x70: operator.rshift,
    0xA0: operator.xor,
}


def _jump(op: int, a: int, b: int, yes: int, no: int) -> int:
    if op == 0x00:
        return b
    taken = {0x10: a == b, 0x20: a > b, 0x30: a >= b, 0x40: bool(a & b)}[op]
    return yes if taken else no
