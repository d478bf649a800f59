"""What a sandbox, a zygote or a function is: typed, checked when it is made, never changed afterwards.

`SandboxSpec.parse(memory="128M", ...)` takes what people write and returns what the code needs. A value that makes no
sense raises `SpecError` with the field, the value and what is accepted; nothing has been done to the host by
then.
"""

from __future__ import annotations

import difflib
import keyword
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

from olsock.errors import SpecError

Size = int | str
Network = Literal["none", "host", "bridge"]
Contract = Literal["auto", "event", "wsgi", "asgi"]
PathLike = str | os.PathLike[str]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
USER = 1000  # the id that an unprivileged user has inside
IDS = 65536  # ids that are mapped into a sandbox: 0 to IDS - 1
NOBODY = 65534
MAX_DESCENDANTS = 1023  # zygotes below a zygote

_LARGEST = (1 << 63) - 1
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1 << 40}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(?:ib)?|b)?\s*", re.IGNORECASE)
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_ROOT_PATH = re.compile(r"(/[!$&-.0-;=@-Z_a-z~%]+)*")
_FILE = re.compile(r"\w[\w-]*")
_HOSTNAME_MAX = 64  # the kernel's __NEW_UTS_LEN
_OWN_MOUNTS = ("/proc", "/dev", "/sys")  # made by us, at or below which nothing of a caller's is mounted


def parse_size(
    value: Size | None, field: str = "size", *, least: int = 0, most: int = _LARGEST, unlimited: bool = True
) -> int | None:
    """Return bytes from an int or text: "128M", "1.5GiB", "65536" (binary units); None is unlimited."""
    accepted = f'bytes as an int, or text like "128M" (K, M, G, T: powers of 1024), {_range(least, most)}'
    if value is None and unlimited:
        return None
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise SpecError(field, value, accepted)
        exact = Fraction(match[1]) * _UNITS[(match[2] or "").lower()]
        if exact.denominator != 1:
            raise SpecError(field, value, "a whole number of bytes")
        number = int(exact)
    elif type(value) is int:
        number = value
    else:
        raise SpecError(field, value, accepted + (", or None for unlimited" if unlimited else ""))
    if not least <= number <= most:
        raise SpecError(field, value, accepted)
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a cgroup is held to; None is unlimited."""

    memory: int | None = None  # bytes
    swap: int | None = None  # bytes of swap beside that memory
    cpus: float | None = None  # how many CPUs' worth of time
    pids: int | None = None  # processes and threads
    oom_group: bool = False  # out of memory kills all of it instead of one process

    def __post_init__(self) -> None:
        # Less than what one process needs in the kernel alone would only show as an obscure failure to start.
        parse_size(_unsized(self.memory, "memory"), "memory", least=MIB)
        parse_size(_unsized(self.swap, "swap"), "swap")
        _number(self.cpus, "cpus", least=0.01, most=4096)
        _integer(self.pids, "pids", least=1, most=4194304, unlimited=True)
        _flag(self.oom_group, "oom_group")


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the host that appears in a sandbox."""

    source: str
    target: str
    writable: bool = False

    @classmethod
    def parse(cls, value: str | Bind) -> Bind:
        """Return a Bind from "source:target", with ":rw" at the end if it may be written."""
        if isinstance(value, Bind):
            return value
        accepted = 'a Bind, or "source:target" with ":rw" or ":ro" behind it'
        if not isinstance(value, str):
            raise SpecError("binds", value, accepted)
        parts = value.split(":")
        mode = parts.pop() if len(parts) == 3 else "ro"
        if len(parts) != 2 or mode not in ("rw", "ro"):
            raise SpecError("binds", value, accepted)
        return cls(os.path.abspath(parts[0]) if parts[0] else "", parts[1], mode == "rw")

    def __post_init__(self) -> None:
        _existing(self.source, "binds", what="path")
        inside_path(self.target, "binds")
        if self.target == "/" or _below_any(self.target, _OWN_MOUNTS):
            raise SpecError("binds", self.target, f"a target other than / and not in {', '.join(_OWN_MOUNTS)}")
        _flag(self.writable, "binds")


@dataclass(frozen=True, slots=True)
class Handler:
    """Where a function begins: an attribute of a module."""

    module: str
    attribute: str

    @classmethod
    def parse(cls, value: str) -> Handler:
        """Return a Handler from "module.sub:function", "module.function" or, as on AWS, "folder/module.function"."""
        accepted = '"module:function", "package.module:function", "module.function" or "folder/module.function"'
        if not isinstance(value, str):
            raise SpecError("handler", value, accepted)
        module, separator, attribute = value.partition(":")
        if not separator:
            module, _, attribute = value.rpartition(".")
        module = module.replace("/", ".")
        # Files and folders with a dash in their names cannot be written in an import statement, but be imported.
        if not (
            all(map(_FILE.fullmatch, module.split("."))) and _dotted(module.replace("-", "_")) and _dotted(attribute)
        ):
            raise SpecError("handler", value, accepted)
        return cls(module, attribute)

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


class _Resources(TypedDict, total=False):
    memory: Size | None
    swap: Size | None
    cpus: float | None
    pids: int | None
    oom_group: bool
    tmpfs_size: Size
    tmpfs_inodes: int
    nofile: int
    fsize: Size | None
    env: Mapping[str, str] | None
    hostname: str
    network: Network
    seccomp: str | PathLike | Mapping[str, Any] | None


class SandboxOptions(_Resources, total=False):
    """What `olsock.Sandbox(...)` takes, as people write it."""

    rootfs: PathLike
    writable: bool | PathLike
    binds: Iterable[str | Bind]
    cwd: str
    user: int | str | None
    time_ns: bool


class FunctionOptions(_Resources, total=False):
    """What `olsock.Function(...)` and `Zygote.fork(...)` take, as people write it."""

    code: PathLike
    handler: str
    packages: Iterable[PathLike]
    python: PathLike | None
    timeout: float | None
    measure: bool
    contract: Contract
    root_path: str
    opt: PathLike | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What every kind of sandbox has. The checks run however a spec is made."""

    memory: int | None = 512 * MIB
    swap: int | None = 0
    cpus: float | None = None
    pids: int | None = 64
    oom_group: bool = False
    tmpfs_size: int = 64 * MIB  # of /tmp and of /dev/shm, each; what is in them also counts as memory
    tmpfs_inodes: int = 16384
    nofile: int = 1024
    fsize: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    hostname: str = "sandbox"
    network: Network = "none"
    seccomp: str | Mapping[str, Any] = "default"  # "off", or the path of a profile, or the profile itself

    def __post_init__(self) -> None:
        _ = self.limits
        for name in ("tmpfs_size", "fsize"):
            value = _unsized(getattr(self, name), name)
            parse_size(value, name, least=4 * KIB, unlimited=name == "fsize")
        _integer(self.tmpfs_inodes, "tmpfs_inodes", least=16, most=1 << 31)
        _integer(self.nofile, "nofile", least=32, most=1 << 20)  # starting a program takes some itself
        _environment(self.env)
        _hostname(self.hostname)
        _choice(self.network, "network", get_args(Network))
        _seccomp(self.seccomp)

    @property
    def limits(self) -> Limits:
        """What the cgroup is held to."""
        return Limits(memory=self.memory, swap=self.swap, cpus=self.cpus, pids=self.pids, oom_group=self.oom_group)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec(Spec):
    """A sandbox in which programs are run."""

    rootfs: str = "host"  # or the absolute path of a directory
    writable: bool | str = False  # True: changes are thrown away; a path: they are kept there
    binds: tuple[Bind, ...] = ()
    cwd: str = "/tmp"
    uid: int = USER
    gid: int = USER
    time_ns: bool = False  # a time namespace of its own

    def __post_init__(self) -> None:
        Spec.__post_init__(self)
        if self.rootfs != "host":
            _existing(self.rootfs, "rootfs", what="directory")
        if not isinstance(self.writable, bool):
            _host_path(self.writable, "writable")
            if os.path.lexists(self.writable) and not os.path.isdir(self.writable):
                raise SpecError("writable", self.writable, "True, False or a directory that keeps the changes")
        inside_path(self.cwd, "cwd")
        targets = [bind.target for bind in self.binds]
        for target in targets:
            if targets.count(target) > 1:
                raise SpecError("binds", target, "each target once")
        for name in ("uid", "gid"):
            _integer(getattr(self, name), name, least=0, most=IDS - 1)
        _flag(self.time_ns, "time_ns")

    @classmethod
    def parse(cls, **options: Unpack[SandboxOptions]) -> Self:
        """Return a spec from what people write: sizes as text, binds as "source:target", user as a name."""
        given = _known(options, SandboxOptions)
        values = _common(given)
        if "rootfs" in given:
            rootfs = _text(given["rootfs"], "rootfs", '"host" or a directory')
            values["rootfs"] = rootfs if rootfs == "host" else os.path.abspath(rootfs)
        if "writable" in given:
            writable = given["writable"]
            accepted = "True, False or a directory that keeps the changes"
            values["writable"] = (
                writable if isinstance(writable, bool) else os.path.abspath(_text(writable, "writable", accepted))
            )
        if "binds" in given:
            binds = _items(given["binds"], "binds", 'a list of "source:target" or Bind')
            values["binds"] = tuple(Bind.parse(bind) for bind in binds)
        if "user" in given:
            values["uid"], values["gid"] = parse_user(given["user"])
        for name in ("cwd", "time_ns"):
            if name in given:
                values[name] = given[name]
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec(Spec):
    """A handler, started from a zygote or from a fresh interpreter."""

    code: str
    handler: Handler
    packages: tuple[str, ...] = ()
    python: str | None = None  # None: the interpreter that runs the library
    timeout: float | None = None  # seconds for the import of the handler; None: the library's default
    measure: bool = True  # have `ready` tell what was imported; a start without takes a fifth of a millisecond less
    contract: Contract = "auto"  # how it is called; "auto": as its parameters say
    root_path: str = ""  # what a web application is mounted at, such as "/run/hello"
    opt: str | None = None  # a directory that appears at /opt; `python` in it is on the path, as of AWS's layers

    def __post_init__(self) -> None:
        Spec.__post_init__(self)
        _existing(self.code, "code", what="directory")
        for package in self.packages:
            _existing(package, "packages", what="directory")
        if self.opt is not None:
            _existing(self.opt, "opt", what="directory")
        _python(self.python)
        _number(self.timeout, "timeout", least=0.001, most=86400.0)
        _flag(self.measure, "measure")
        _choice(self.contract, "contract", get_args(Contract))
        if not isinstance(self.root_path, str) or not _ROOT_PATH.fullmatch(self.root_path):
            raise SpecError("root_path", self.root_path, 'empty, or a path like "/run/hello", percent-encoded')

    @classmethod
    def parse(cls, **options: Unpack[FunctionOptions]) -> Self:
        """Return a spec from what people write."""
        given = _known(options, FunctionOptions)
        for name in ("code", "handler"):
            if name not in given:
                raise SpecError(name, None, "a value: it has no default")
        values = _common(given)
        values["code"] = os.path.abspath(_text(given["code"], "code", "a directory"))
        values["handler"] = Handler.parse(given["handler"])
        values["packages"] = _directories(given.get("packages", ()), "packages")
        values["python"] = given.get("python") and os.path.abspath(_text(given["python"], "python", "a path"))
        values["timeout"] = given.get("timeout")
        values["opt"] = _optional(given.get("opt"), "opt")
        for name in ("measure", "contract", "root_path"):
            if name in given:
                values[name] = given[name]
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteSpec:
    """A process that imports packages and forks handlers."""

    imports: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    python: str | None = None
    memory: int | None = 1 * GIB
    pids: int | None = 64
    env: Mapping[str, str] = field(default_factory=dict)
    network: Network = "none"  # of its handlers: "host" only for a zygote that lives there itself
    skip_bad: bool = False  # leave out what cannot be imported, instead of failing
    spare: int = 1  # sets of a handler's resources that are kept ready
    blanks: int = 0  # handlers that are kept forked, up to their function
    descendants: int = 0  # zygotes that may be forked from it, and from those, at one time
    separate_stderr: bool = False  # of its handlers
    timeout: float = 120.0  # seconds for all imports together
    code: str | None = None  # with `handler`: a zygote of this one function, whose module it imports
    handler: Handler | None = None
    opt: str | None = None  # with `code`: a directory that appears at /opt

    def __post_init__(self) -> None:
        _choice(self.network, "network", get_args(Network))
        for flag in ("skip_bad", "separate_stderr"):
            _flag(getattr(self, flag), flag)
        for name, most in (("spare", 1024), ("blanks", 1024), ("descendants", MAX_DESCENDANTS)):
            _integer(getattr(self, name), name, least=0, most=most)
        if (self.code is None) != (self.handler is None):
            raise SpecError("handler", self.handler, "both code and handler, or neither")
        if self.code is not None:
            _existing(self.code, "code", what="directory")
        if self.opt is not None:
            if self.code is None:
                raise SpecError("opt", self.opt, "code and handler beside it: a zygote of one function")
            _existing(self.opt, "opt", what="directory")
        if self.timeout is None:
            raise SpecError("timeout", None, "a number of seconds")
        _number(self.timeout, "timeout", least=0.001, most=86400.0)
        for name in self.imports:
            if not _dotted(name):
                raise SpecError("imports", name, 'names of modules, like "numpy" or "package.module"')
        for package in self.packages:
            _existing(package, "packages", what="directory")
        _python(self.python)
        _ = self.limits
        _environment(self.env)

    @property
    def limits(self) -> Limits:
        """What the zygote's own cgroup is held to; what it forks is in others."""
        return Limits(memory=self.memory, swap=0, pids=self.pids)

    @classmethod
    def parse(
        cls,
        imports: Iterable[str] = (),
        packages: Iterable[PathLike] = (),
        python: PathLike | None = None,
        memory: Size | None = 1 * GIB,
        pids: int | None = 64,
        env: Mapping[str, str] | None = None,
        network: Network = "none",
        skip_bad: bool = False,
        spare: int = 1,
        blanks: int = 0,
        descendants: int = 0,
        separate_stderr: bool = False,
        timeout: float = 120.0,
        code: PathLike | None = None,
        handler: str | None = None,
        opt: PathLike | None = None,
    ) -> Self:
        """Return a spec from what people write."""
        return cls(
            network=network,
            skip_bad=skip_bad,
            spare=spare,
            blanks=blanks,
            descendants=descendants,
            separate_stderr=separate_stderr,
            timeout=timeout,
            code=None if code is None else os.path.abspath(_text(code, "code", "a directory")),
            handler=None if handler is None else Handler.parse(handler),
            opt=_optional(opt, "opt"),
            imports=tuple(_items(imports, "imports", "a list of module names")),
            packages=_directories(packages, "packages"),
            python=None if python is None else os.path.abspath(_text(python, "python", "a path")),
            memory=parse_size(memory, "memory", least=MIB),
            pids=pids,
            env=_environment({} if env is None else env),
        )


def _optional(value: PathLike | None, name: str) -> str | None:
    return None if value is None else os.path.abspath(_text(value, name, "a directory"))


def parse_user(value: int | str | None) -> tuple[int, int]:
    """Return (uid, gid) inside from None (an ordinary user), an id, "uid:gid", "root" or "nobody"."""
    accepted = f'None, an id from 0 to {IDS - 1}, "uid:gid", "root" or "nobody"'
    names = {None: (USER, USER), "root": (0, 0), "nobody": (NOBODY, NOBODY)}
    if value is None or value in ("root", "nobody"):
        return names[value]
    if type(value) is int:
        ids = [value, value]
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}(:[0-9]{1,5})?", value):
        ids = [int(part) for part in value.split(":")] * 2
    else:
        raise SpecError("user", value, accepted)
    if not all(0 <= number < IDS for number in ids):
        raise SpecError("user", value, accepted)
    return ids[0], ids[1]


def inside_path(path: str, field: str) -> str:
    """Check a path inside a sandbox: absolute and plain, so that it means the same whatever the root is."""
    accepted = "an absolute path inside the sandbox, without . or .. in it"
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > 4095:
        raise SpecError(field, path, accepted)
    if path != "/" and any(part in ("", ".", "..") for part in path[1:].split("/")):
        raise SpecError(field, path, accepted)
    return path


def _common(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the options that every kind of sandbox has."""
    values = {
        name: given[name]
        for name in ("cpus", "pids", "oom_group", "tmpfs_inodes", "nofile", "hostname", "network")
        if name in given
    }
    for name, least in (("memory", MIB), ("swap", 0), ("tmpfs_size", 4 * KIB), ("fsize", 4 * KIB)):
        if name in given:
            values[name] = parse_size(given[name], name, least=least, unlimited=name != "tmpfs_size")
    if given.get("env") is not None:
        values["env"] = _environment(given["env"])
    if "seccomp" in given:
        seccomp = given["seccomp"]
        if seccomp is None:
            seccomp = "off"
        elif isinstance(seccomp, Mapping):
            seccomp = dict(seccomp)
        else:
            seccomp = _text(seccomp, "seccomp", _SECCOMP)
            seccomp = os.path.abspath(seccomp) if os.sep in seccomp else seccomp
        values["seccomp"] = seccomp
    return values


def _known(options: Mapping[str, Any], accepted: Any) -> dict[str, Any]:
    """Refuse names that are no options, and say which was perhaps meant."""
    names = sorted(accepted.__annotations__)
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"{near[0]!r}, perhaps; the options are " if near else "an option: "
            raise SpecError(name, options[name], hint + ", ".join(names))
    return dict(options)


def _range(least: float, most: float) -> str:
    return f"at least {least}" if most == _LARGEST else f"from {least} to {most}"


def _unsized(value: Any, field: str) -> int | None:
    """A spec holds sizes in bytes; text is for `parse`."""
    if value is not None and type(value) is not int:
        raise SpecError(field, value, "bytes as an int here; `parse` takes text")
    return value


def _integer(value: Any, field: str, *, least: int, most: int, unlimited: bool = False) -> None:
    if value is None and unlimited:
        return
    if type(value) is not int or not least <= value <= most:
        raise SpecError(
            field, value, f"an int {_range(least, most)}" + (", or None for unlimited" if unlimited else "")
        )


def _number(value: Any, field: str, *, least: float, most: float) -> None:
    if value is None:
        return
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        raise SpecError(field, value, f"a number {_range(least, most)}, or None")


def _flag(value: Any, field: str) -> None:
    if type(value) is not bool:
        raise SpecError(field, value, "True or False")


def _choice(value: Any, field: str, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise SpecError(field, value, " or ".join(map(repr, choices)))


def _text(value: Any, field: str, accepted: str) -> str:
    """Return a path or name as str."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise SpecError(field, value, accepted)
    return value


def _items(value: Any, field: str, accepted: str) -> list[Any]:
    """A single text is iterable as well, letter by letter, and never what was meant."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise SpecError(field, value, accepted)
    return list(value)


def _directories(value: Any, field: str) -> tuple[str, ...]:
    items = _items(value, field, "a list of directories")
    return tuple(os.path.abspath(_text(item, field, "directories")) for item in items)


def _host_path(path: Any, field: str) -> None:
    if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:
        raise SpecError(field, path, "an absolute path of the host")


def _existing(path: Any, field: str, *, what: Literal["path", "directory"]) -> None:
    _host_path(path, field)
    try:
        fine = os.path.isdir(path) if what == "directory" else os.path.exists(path)
    except ValueError:  # surrogates that no file name can have
        fine = False
    if not fine:
        raise SpecError(field, path, f"a {what} that exists on the host")


def _python(path: str | None) -> None:
    if path is not None:
        _existing(path, "python", what="path")
        if not os.path.isfile(path) or not os.access(path, os.X_OK):
            raise SpecError("python", path, "an interpreter: a file that can be executed")


def _environment(env: Any) -> dict[str, str]:
    accepted = "a mapping of names (not empty, without = and NUL) to text (without NUL)"
    if not isinstance(env, Mapping):
        raise SpecError("env", env, accepted)
    for name, value in env.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise SpecError("env", name, accepted)
        if not isinstance(value, str) or "\0" in value:
            raise SpecError(f"env[{name}]", value, accepted)
    return dict(env)


def _hostname(name: Any) -> None:
    fine = isinstance(name, str) and len(name) <= _HOSTNAME_MAX and all(map(_LABEL.fullmatch, name.split(".")))
    if not fine:
        raise SpecError(
            "hostname", name, f"letters, digits, - and dots between them (RFC 1123), {_HOSTNAME_MAX} at most"
        )


_SECCOMP = '"default", "off" (or None), the path of a profile in JSON (with a / in it), or the profile as a mapping'


def _seccomp(value: Any) -> None:
    if isinstance(value, Mapping) or value in ("default", "off"):
        return
    if not isinstance(value, str) or os.sep not in value:
        raise SpecError("seccomp", value, _SECCOMP)
    if "\0" in value or not os.path.isfile(value):
        raise SpecError("seccomp", value, "a file that exists")


def _dotted(name: Any) -> bool:
    return isinstance(name, str) and all(
        part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")
    )


def _below_any(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(directory + "/") for directory in directories)
