"""What this host can do for sandboxes: which layers will be on, what is missing, and what to do about each gap.

`examine` looks and tries, and leaves nothing behind; `render` and `to_json` show what it found.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from olsock import hierarchies, identity
from olsock._core import probe, seccomp
from olsock._core.probe import Feature
from olsock.cgroups import Tree
from olsock.errors import OlsockError

_LIMITS = ("memory", "pids", "cpu")
_FILES = {"cgroup.kill": "kernel 5.14", "cgroup.freeze": "kernel 5.2"}


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where control groups of ours will be, and what they can do there."""

    mode: str | None  # "unified", "hybrid", or None where there is no place for them
    controllers: tuple[str, ...]
    paths: tuple[str, ...]
    gaps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a default sandbox."""

    name: str
    on: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Something missing. `blocking`: a sandbox with default options will not start."""

    what: str
    advice: str
    blocking: bool


@dataclass(frozen=True, slots=True)
class Ids:
    """Host ids that sandboxes are given, in blocks."""

    first: int
    last: int
    block: int
    free: int  # blocks that no line of /etc/subuid or /etc/subgid claims


@dataclass(frozen=True, slots=True)
class Report:
    """What `examine` found."""

    kernel: str
    machine: str
    root: bool
    cgroups: Cgroups
    ids: Ids
    features: tuple[Feature, ...]
    layers: tuple[Layer, ...]
    gaps: tuple[Gap, ...]

    @property
    def usable(self) -> bool:
        """Whether a sandbox with default options will start."""
        return not any(gap.blocking for gap in self.gaps)


def examine() -> Report:
    """Look at this host as a sandbox would find it. As root it also makes, and removes, a cgroup of its own."""
    features = probe.features()
    groups, group_gaps = _cgroups()
    program = _program()
    layers = tuple(_layers(features, groups, program))
    gaps = [*_gaps(features), *group_gaps, *_program_gaps(program), *_host_gaps()]
    system = os.uname()
    return Report(
        kernel=system.release,
        machine=system.machine,
        root=os.geteuid() == 0,
        cgroups=groups,
        ids=_ids(),
        features=tuple(features.values()),
        layers=layers,
        gaps=tuple(sorted(gaps, key=lambda gap: not gap.blocking)),
    )


def render(report: Report) -> str:
    """The report as text for a terminal."""
    verdict = "sandboxes with every default layer will start" if report.usable else "sandboxes will not start"
    cgroups = report.cgroups
    lines = [
        f"olsock on Linux {report.kernel} {report.machine}: {verdict}",
        "",
        "Control groups",
        f"  mode          {cgroups.mode or 'none'}",
        f"  controllers   {', '.join(cgroups.controllers) or 'none'}",
        *(f"  below         {path}" for path in cgroups.paths),
        "",
        "Layers of a default sandbox",
        *_table((layer.on, layer.name, layer.detail) for layer in report.layers),
        "",
        "Kernel",
        *_table((f.ok, f.name, f"{f.what}: {f.detail}") for f in report.features),
        "",
        "Ids",
        f"  {report.ids.free} blocks of {report.ids.block} from {report.ids.first} to {report.ids.last}",
    ]
    if report.gaps:
        lines += ["", "What to do"]
    for gap in report.gaps:
        lines.append(f"  {'must' if gap.blocking else 'note'}  {gap.what}")
        lines.append(f"        {gap.advice}")
    return "\n".join(lines) + "\n"


def to_json(report: Report) -> str:
    """The report as JSON, with the same names as its fields."""
    return json.dumps({**dataclasses.asdict(report), "usable": report.usable}, indent=2) + "\n"


def _table(rows: Iterable[tuple[bool, str, str]]) -> list[str]:
    return [f"  {'on ' if on else 'off'}  {name:<18} {detail}" for on, name, detail in rows]


# Control groups.


def _cgroups() -> tuple[Cgroups, list[Gap]]:
    nowhere = Cgroups(None, (), (), ())
    try:
        layout = hierarchies.find()
    except (OlsockError, OSError) as failure:
        return nowhere, [Gap("no control groups", str(failure), True)]
    parents = (layout.v2.parent, *(hierarchy.parent for hierarchy in layout.v1))
    if os.geteuid() != 0:
        found = Cgroups(layout.mode, tuple(sorted(layout.controllers)), parents, ())
        return found, [Gap("not root: whether control groups can be made here was not tried", "run as root", True)]
    try:
        with Tree.create(f"{os.getpid()}-doctor") as tree:
            missing = [name for name in _FILES if not Path(tree.paths[0], name).exists()]
            found = Cgroups(tree.mode, tuple(sorted(tree.controllers)), parents, tree.gaps)
    except (OlsockError, OSError) as failure:
        found = Cgroups(layout.mode, tuple(sorted(layout.controllers)), parents, ())
        return found, [Gap("no control group can be made", str(failure), True)]
    gaps = [Gap(f"control groups without {name}", _FILES[name], True) for name in missing]
    gaps += [
        Gap(
            f"no {name} controller: a sandbox refuses to start with a limit on it, and by default has one",
            f"give it to {parents[0]} (Delegate=yes in a systemd unit), or boot with cgroup_enable={name}",
            name != "cpu",  # the only one without a default limit
        )
        for name in _LIMITS
        if name not in found.controllers
    ]
    gaps += [Gap(text, _mode_advice(found.mode), False) for text in found.gaps if "refused" not in text]
    return found, gaps


def _mode_advice(mode: str | None) -> str:
    if mode == "hybrid":
        return "everything works, this a little worse; cgroup_no_v1=all at boot puts all controllers on version 2"
    return "everything else works"


# Filters.


def _program() -> int | str:
    """Length of the default filter in instructions, or why there is none."""
    try:
        return len(seccomp.compile("default")) // 8
    except OlsockError as failure:
        return str(failure)


def _program_gaps(program: int | str) -> list[Gap]:
    if isinstance(program, int):
        return []
    return [Gap("the default system call filter does not compile", program, True)]


# Layers.


def _layers(features: dict[str, Feature], groups: Cgroups, program: int | str) -> list[Layer]:
    def needs(name: str, detail: str, *wanted: str) -> Layer:
        missing = [features[feature].name for feature in wanted if not features[feature].ok]
        return Layer(name, not missing, f"missing: {', '.join(missing)}" if missing else detail)

    def limit(name: str, controller: str, detail: str) -> Layer:
        on = groups.mode is not None and controller in groups.controllers
        return Layer(name, on, detail if on else f"missing: the {controller} controller")

    filtered = features["seccomp"].ok and isinstance(program, int)
    return [
        needs("user", "a user namespace and host ids that nobody else has", "userns"),
        needs("namespaces", "mount, pid, ipc, uts and cgroup of its own", "namespaces", "clone3"),
        needs("network", "an empty network namespace", "netns"),
        needs(
            "root",
            "pivoted, read-only, nosuid, nodev",
            *("fsmount", "open_tree", "move_mount", "mount_setattr", "openat2"),
        ),
        needs("proc", "its own processes only, masked", "proc"),
        Layer("capabilities", True, "all sets empty, the bounding set included; no_new_privs"),
        Layer(
            "seccomp",
            filtered,
            f"default-deny, {program} instructions" if filtered else "missing: seccomp, or a filter for this machine",
        ),
        needs("files", "nothing inherited but stdio and one channel", "close_range"),
        limit("memory", "memory", "memory and swap are limited"),
        limit("pids", "pids", "processes and threads are limited"),
        limit("cpu", "cpu", "CPU time can be limited"),
        Layer(
            "freezing",
            groups.mode is not None,
            "pausing and killing as a whole" if groups.mode is not None else "missing: cgroup version 2",
        ),
        needs("zygotes", "forked with a right thread id, born in their cgroup", "tid_address", "clone_into_cgroup"),
    ]


def _gaps(features: dict[str, Feature]) -> list[Gap]:
    return [
        Gap(f"{feature.what}: {feature.detail}", feature.advice, feature.required)
        for feature in features.values()
        if not feature.ok
    ]


# The rest of the host.


def _host_gaps() -> list[Gap]:
    gaps = []
    pattern = _read("/proc/sys/kernel/core_pattern")
    if pattern.startswith("|"):
        gaps.append(
            Gap(
                f"crashes are piped to {pattern[1:].split(' ')[0]}, which a core limit of 0 does not stop",
                "handlers are not dumpable and are spared; for commands, sysctl kernel.core_pattern=core",
                False,
            )
        )
    if _read("/sys/kernel/mm/ksm/run") == "1":
        gaps.append(
            Gap(
                "the kernel merges equal pages (KSM), by which one sandbox may guess what another's memory holds",
                "echo 2 > /sys/kernel/mm/ksm/run",
                False,
            )
        )
    return gaps


def _ids() -> Ids:
    taken: set[int] = {0}  # kept for the worker's front
    for path in ("/etc/subuid", "/etc/subgid"):
        taken |= identity.reserved(_read(path))
    return Ids(identity.FIRST, identity.LAST, identity.SIZE, identity.COUNT - len(taken))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
