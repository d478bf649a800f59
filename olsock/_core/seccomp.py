"""System call filters: profiles are JSON in `olsock/data/seccomp`, compiled once a process to bytes of BPF.

A profile says what happens `otherwise`, to calls `newer` than its list and to `foreign` ABIs, and gives rules by name:

    {"action": "allow", "names": ["socket"], "when": [{"arg": 0, "mask": "0xffffffff", "in": {"AF_UNIX": 1}}]}
    {"action": "allow", "names": ["ioctl"], "unless": [{"arg": 1, "in": {"TIOCSTI": "0x5412"}, "action": "EPERM"}]}

An action is `allow`, `kill`, or the name of an errno. All conditions of `when` must hold, or the call falls to
`otherwise`; `in` lists values of `argument & mask`, its keys are documentation. `extends` starts from another profile,
whose rules for every name that this one mentions are replaced as a whole.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from olsock._core._olsock import ffi, lib
from olsock._core.check import call
from olsock.errors import KernelError, SpecError, UnsupportedError

ALLOW = 0x7FFF0000  # SECCOMP_RET_*
KILL = 0x80000000
_ERRNO = 0x00050000
_ALL_BITS = (1 << 64) - 1
_PROGRAM_ROOM = 4096 * 8  # BPF_MAXINSNS instructions of 8 bytes


@dataclass(frozen=True, slots=True)
class Test:
    """`(args[arg] & mask) in values`."""

    arg: int
    mask: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an otherwise allowed call gets when `test` holds."""

    test: Test
    action: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One verdict on one call: when all of `when` hold, and none of `unless`."""

    name: str
    action: int
    when: tuple[Test, ...] = ()
    unless: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """A validated profile, before it knows which machine it will be compiled for."""

    otherwise: int
    newer: int
    foreign: int
    rules: tuple[Rule, ...]

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Profile:
        """Read a profile: the name of one of ours, a path, or the content itself."""
        return _parse(_content(source), {})


def compile(profile: str | Path | Mapping[str, Any] | Profile) -> bytes:
    """Return the BPF program of `profile`, an array of `struct sock_filter`. Compiled once a process."""
    if isinstance(profile, str) and os.sep not in profile:
        return _shipped(profile)
    return _program(profile if isinstance(profile, Profile) else Profile.load(profile))


def names() -> list[str]:
    """Profiles that ship with olsock."""
    return sorted(entry.name[:-5] for entry in _data().iterdir() if entry.name not in ("numbers.json",))


@functools.cache
def number(name: str) -> int | None:
    """Return the number of a system call on this machine; None where it has none. Unknown everywhere: SpecError."""
    table = _numbers()
    found = table["numbers"].get(name, table["only"].get(_machine(), {}).get(name))
    if found is not None:
        return int(found)
    if any(name in only for only in table["only"].values()):
        return None
    try:
        return call(lib.ols_seccomp_number, name.encode())
    except KernelError as failure:
        if failure.errno == errno.EOPNOTSUPP:
            return None
        raise SpecError("seccomp.names", name, "the name of a system call") from None


@functools.cache
def _shipped(name: str) -> bytes:
    return _program(Profile.load(name))


@functools.lru_cache(maxsize=32)
def _program(profile: Profile) -> bytes:
    policy = ffi.new("struct ols_seccomp_policy *")
    policy.otherwise, policy.newer, policy.foreign = profile.otherwise, profile.newer, profile.foreign
    policy.newest = _newest()
    rules = [entry for rule in profile.rules for entry in _entries(rule, profile.otherwise)]
    refusals = [entry for rule in profile.rules for entry in _refusals(rule)]
    program = ffi.new("char[]", _PROGRAM_ROOM)
    length = call(
        lib.ols_seccomp_compile,
        policy,
        ffi.new("struct ols_seccomp_rule[]", refusals),
        len(refusals),
        ffi.new("struct ols_seccomp_rule[]", rules),
        len(rules),
        program,
        _PROGRAM_ROOM,
    )
    return bytes(ffi.buffer(program, length))


def _entries(rule: Rule, otherwise: int) -> Iterator[dict[str, Any]]:
    """One C rule for every combination of accepted values; none for what happens anyway, which libseccomp refuses."""
    found = number(rule.name)
    if found is None or rule.action == otherwise:
        return
    for values in itertools.product(*(test.values for test in rule.when)):
        yield _entry(found, rule.action, [(t.arg, t.mask, v) for t, v in zip(rule.when, values, strict=True)])


def _refusals(rule: Rule) -> Iterator[dict[str, Any]]:
    found = number(rule.name)
    if found is None:
        return
    for refusal in rule.unless:
        for value in refusal.test.values:
            yield _entry(found, refusal.action, [(refusal.test.arg, refusal.test.mask, value)])


def _entry(number_: int, action: int, tests: list[tuple[int, int, int]]) -> dict[str, Any]:
    return {"number": number_, "action": action, "tests": len(tests), "test": tests}


# Reading.


def _data() -> Any:
    return resources.files("olsock") / "data" / "seccomp"


@functools.cache
def _numbers() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((_data() / "numbers.json").read_text(encoding="utf-8"))
    return table


def _machine() -> str:
    machine = platform.machine()
    # A 32-bit Python on a 64-bit kernel makes the calls of another ABI than uname says.
    if machine not in _numbers()["newest"] or ffi.sizeof("long") != 8:
        known = " and ".join(_numbers()["newest"])
        raise UnsupportedError(f"seccomp: no profile for {machine}: system call numbers are known for 64-bit {known}")
    return machine


def _newest() -> int:
    return int(_numbers()["newest"][_machine()])


def _content(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    if isinstance(source, str) and os.sep not in source:
        if source not in names():
            raise SpecError("seccomp", source, f"one of {', '.join(names())}, a path to a JSON file, or a mapping")
        text = (_data() / f"{source}.json").read_text(encoding="utf-8")
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise SpecError("seccomp", str(source), f"a readable JSON file ({failure})") from failure
    try:
        content = json.loads(text)
    except ValueError as failure:
        raise SpecError("seccomp", str(source), f"JSON ({failure})") from failure
    if not isinstance(content, dict):
        raise SpecError("seccomp", str(source), "a JSON object")
    return content


def _parse(content: Mapping[str, Any], seen: dict[str, None]) -> Profile:
    _known_keys("seccomp", content, {"why", "extends", "otherwise", "newer", "foreign", "rules"})
    actions: dict[str, int] = {}
    rules: dict[str, list[Rule]] = {}
    base = content.get("extends")
    if base is not None:
        if not isinstance(base, str) or os.sep in base or base in seen:
            raise SpecError("seccomp.extends", base, f"one of {', '.join(names())}, not itself")
        parent = _parse(_content(base), {**seen, base: None})
        actions = {"otherwise": parent.otherwise, "newer": parent.newer, "foreign": parent.foreign}
        for rule in parent.rules:
            rules.setdefault(rule.name, []).append(rule)
    for field in ("otherwise", "newer", "foreign"):
        if field in content or base is None:
            actions[field] = _action(f"seccomp.{field}", content.get(field))
    own: dict[str, list[Rule]] = {}
    for rule in _rules(content.get("rules")):
        own.setdefault(rule.name, []).append(rule)
    for name, entries in own.items():
        _consistent(name, entries)
    rules.update(own)
    return Profile(rules=tuple(rule for entries in rules.values() for rule in entries), **actions)


def _rules(content: object) -> Iterator[Rule]:
    if not isinstance(content, list):
        raise SpecError("seccomp.rules", content, "a list of rules")
    for index, entry in enumerate(content):
        where = f"seccomp.rules[{index}]"
        if not isinstance(entry, Mapping):
            raise SpecError(where, entry, "an object with action and names")
        _known_keys(where, entry, {"why", "action", "names", "when", "unless"})
        action = _action(f"{where}.action", entry.get("action"))
        when = tuple(_test(f"{where}.when", test) for test in _list(f"{where}.when", entry.get("when", [])))
        unless = tuple(
            _refusal(f"{where}.unless", refusal) for refusal in _list(f"{where}.unless", entry.get("unless", []))
        )
        if unless and (when or action != ALLOW):
            raise SpecError(f"{where}.unless", entry["unless"], "only beside the action allow, and without when")
        if len({test.arg for test in when}) < len(when):
            raise SpecError(f"{where}.when", entry["when"], "one condition an argument")
        for name in _list(f"{where}.names", entry.get("names")):
            if not isinstance(name, str):
                raise SpecError(f"{where}.names", name, "the name of a system call")
            number(name)  # refuses a name that nobody knows
            yield Rule(name, action, when, unless)


def _consistent(name: str, rules: list[Rule]) -> None:
    """Several rules for one call must agree on the action and be conditional: nothing orders them."""
    if len(rules) > 1 and (len({rule.action for rule in rules}) > 1 or not all(rule.when for rule in rules)):
        raise SpecError("seccomp.rules", name, "rules for one call that have the same action and each a `when`")


def _refusal(field: str, entry: object) -> Refusal:
    if not isinstance(entry, Mapping):
        raise SpecError(field, entry, "an object with arg, in and action")
    action = _action(f"{field}.action", entry.get("action"))
    return Refusal(_test(field, {key: value for key, value in entry.items() if key != "action"}), action)


def _test(field: str, entry: object) -> Test:
    if not isinstance(entry, Mapping):
        raise SpecError(field, entry, "an object with arg and in")
    _known_keys(field, entry, {"arg", "mask", "in"})
    values = entry.get("in")
    if not isinstance(values, Mapping) or not values:
        raise SpecError(f"{field}.in", values, "an object of names and values")
    arg = _integer(f"{field}.arg", entry.get("arg"), 5)
    mask = _integer(f"{field}.mask", entry.get("mask", _ALL_BITS), _ALL_BITS)
    if not mask:
        raise SpecError(f"{field}.mask", mask, "a mask with at least one bit")
    # Sorted and without repeats: the same profile always gives the same program.
    numbers = sorted({_integer(f"{field}.in", value, _ALL_BITS) for value in values.values()})
    for value in numbers:
        if value & ~mask:
            raise SpecError(f"{field}.in", hex(value), f"values inside the mask {mask:#x}")
    return Test(arg, mask, tuple(numbers))


def _integer(field: str, value: object, highest: int) -> int:
    """JSON has no hexadecimal numbers, so a string may carry one."""
    try:
        parsed = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        parsed = None
    if not isinstance(parsed, int) or isinstance(parsed, bool) or not 0 <= parsed <= highest:
        raise SpecError(field, value, f"an integer from 0 to {highest:#x}, or a string with one")
    return parsed


def _action(field: str, value: object) -> int:
    if value == "allow":
        return ALLOW
    if value == "kill":
        return KILL
    known = getattr(errno, value, None) if isinstance(value, str) and value.startswith("E") else None
    if not isinstance(known, int):
        raise SpecError(field, value, "allow, kill, or the name of an errno such as EPERM")
    return _ERRNO | known


def _list(field: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise SpecError(field, value, "a list")
    return value


def _known_keys(field: str, content: Mapping[str, Any], known: set[str]) -> None:
    for key in content:
        if key not in known:
            raise SpecError(f"{field}.{key}", content[key], f"one of the keys {', '.join(sorted(known))}")
