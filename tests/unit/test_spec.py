"""What is accepted as a sandbox, a function or a zygote, what it becomes, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from olsock.errors import SpecError
from olsock.spec import (
    GIB,
    KIB,
    MIB,
    Bind,
    FunctionSpec,
    Handler,
    Limits,
    SandboxSpec,
    ZygoteSpec,
    inside_path,
    parse_size,
    parse_user,
)

pytestmark = pytest.mark.unit

NONSENSE = [True, False, 1.5, math.nan, b"1", [], {}, object()]  # never a size, a count, a name or a path


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("0", 0),
            ("65536", 65536),
            ("17b", 17),
            ("1k", KIB),
            ("1K", KIB),
            ("128M", 128 * MIB),
            ("128 MiB", 128 * MIB),
            (" 2g ", 2 * GIB),
            ("1.5GiB", GIB + GIB // 2),
            ("0.5k", 512),
            ("1T", 1 << 40),
            (4096, 4096),
            (None, None),
        ],
    )
    def test_accepted(self, text: Any, size: int | None) -> None:
        assert parse_size(text) == size

    @pytest.mark.parametrize(
        "text",
        [
            *("", " ", "M", "-1", "-1M", "+1M", "1KB", "1e3", "1_000", "0x10", "1..5M", ".5M", "1 M B", "12X", "1.5"),
            *("0.3k", "1M\n1", "१M", "9" * 20, -1, *NONSENSE),
        ],
    )
    def test_refused(self, text: Any) -> None:
        with pytest.raises(SpecError) as caught:
            parse_size(text, "memory")
        assert caught.value.field == "memory" and caught.value.value is text

    def test_none_only_where_unlimited_makes_sense(self) -> None:
        with pytest.raises(SpecError):
            parse_size(None, unlimited=False)

    @given(st.integers(0, 2**50), st.sampled_from(["", "b", "k", "K", "KiB", "m", "MIB", "g", "GiB", "t", "TiB"]))
    def test_units_are_powers_of_1024(self, number: int, unit: str) -> None:
        power = " kmgt".index(unit[0].lower()) if unit and unit != "b" else 0
        expected = number * 1024**power
        if expected < 2**63:
            assert parse_size(f"{number}{unit}") == expected
        else:
            with pytest.raises(SpecError):
                parse_size(f"{number}{unit}")

    @given(st.text(max_size=12))
    @example("1\0")
    @example("1M\n")
    def test_any_text_is_a_size_or_refused(self, text: str) -> None:
        try:
            size = parse_size(text)
        except SpecError:
            return
        assert type(size) is int and 0 <= size < 2**63

    @given(st.integers(-(2**70), 2**70), st.integers(0, 2**20), st.integers(2**20, 2**40))
    def test_bounds_hold(self, number: int, least: int, most: int) -> None:
        if least <= number <= most:
            assert parse_size(number, least=least, most=most) == number
        else:
            with pytest.raises(SpecError, match=f"from {least} to {most}"):
                parse_size(number, least=least, most=most)


class TestSandbox:
    def test_defaults_have_every_layer_on(self) -> None:
        spec = SandboxSpec.parse()
        assert spec == SandboxSpec()
        assert (spec.rootfs, spec.writable, spec.network, spec.seccomp) == ("host", False, "none", "default")
        assert spec.limits == Limits(memory=512 * MIB, swap=0, cpus=None, pids=64, oom_group=False)
        assert (spec.uid, spec.gid) == (1000, 1000)
        assert (spec.tmpfs_size, spec.nofile) == (64 * MIB, 1024)

    def test_everything_at_once(self, tmp_path: Path) -> None:
        profile = tmp_path / "profile.json"
        profile.write_text("{}")
        spec = SandboxSpec.parse(
            rootfs=tmp_path,
            writable=tmp_path / "kept",
            binds=["/etc:/mnt/etc", "/etc/passwd:/mnt/passwd:rw", Bind("/usr", "/mnt/usr")],
            env={"A": "b=c", "EMPTY": ""},
            cwd="/mnt/etc",
            user="5:6",
            hostname="a-1.example",
            network="host",
            seccomp=os.fspath(profile),
            tmpfs_size="1M",
            tmpfs_inodes=64,
            memory="1G",
            swap=None,
            cpus=2,
            pids=None,
            nofile=64,
            fsize="10M",
            oom_group=True,
            time_ns=True,
        )
        assert spec.rootfs == os.fspath(tmp_path) and spec.writable == os.fspath(tmp_path / "kept")
        assert spec.binds[1] == Bind("/etc/passwd", "/mnt/passwd", writable=True)
        assert spec.limits == Limits(memory=GIB, swap=None, cpus=2, pids=None, oom_group=True)
        assert (spec.uid, spec.gid, spec.fsize, spec.tmpfs_size) == (5, 6, 10 * MIB, MIB)

    def test_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            SandboxSpec().memory = 1  # type: ignore[misc]

    def test_what_was_given_can_change_without_changing_the_spec(self) -> None:
        env = {"A": "1"}
        spec = SandboxSpec.parse(env=env)
        env["A"] = "2"
        assert spec.env == {"A": "1"}

    @pytest.mark.parametrize(
        ("field", "values"),
        [
            ("memory", ["64K", 1, 2**63, "lots"]),
            ("swap", [-1, "-1M"]),
            ("cpus", [0, -1, 0.001, math.inf, -math.inf, "1", 5000]),
            ("pids", [0, -1, 2**23, "8", 1.0]),
            ("oom_group", [None, 1, "yes"]),
            ("tmpfs_size", [None, 0, "1"]),
            ("tmpfs_inodes", [None, 0, -5, "10"]),
            ("nofile", [None, 0, 3, 2**21]),
            ("fsize", [0, -1, "1"]),
            ("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {1: "x"}, "A=1", [("A", "1")]]),
            ("cwd", ["", "tmp", "../x", "/a/../b", "/a/./b", "/a//b", "/a/", "/\0", "/" + "a" * 5000]),
            ("user", [-1, 65536, "", "alice", "1:2:3", "1:", "99999", " 1", "1:65536"]),
            (
                "hostname",
                ["", "-a", "a-", "a_b", "a..b", ".a", "a" * 64, "é", "a b", ("a" * 30 + ".") * 3 + "a", "a\n"],
            ),
            ("network", ["", "None", "bridge "]),
            ("seccomp", ["", "strict", "off ", "/nonexistent/profile.json", "/", 7]),
            ("rootfs", ["", "/nonexistent", "/etc/passwd", "a\0b"]),
            ("writable", ["", "/etc/passwd", "a\0b", 1]),
            (
                "binds",
                ["/etc:/x", ["/etc"], ["/etc:x"], ["/etc:/x:ro:y"], ["/etc:/x:wr"], [":/x"], ["/nonexistent:/x"]],
            ),
            (
                "binds",
                [["/etc:/"], ["/etc:/proc"], ["/etc:/dev/shm"], ["/etc:/a/../proc"], ["/etc:/a", "/usr:/a"], [1]],
            ),
            ("time_ns", [None, 1]),
        ],
    )
    def test_nonsense_is_refused_by_name(self, field: str, values: list[Any]) -> None:
        accepted = {"cpus": {1.5}, "oom_group": {True, False}, "time_ns": {True, False}, "writable": {True, False}}
        for value in [*values, *NONSENSE]:
            if (type(value) in (bool, float) and value in accepted.get(field, set())) or (
                value == {} and field in _MAPPINGS
            ):
                continue
            if value == [] and field == "binds":
                continue
            with pytest.raises(SpecError) as caught:
                SandboxSpec.parse(**{field: value})
            assert caught.value.field.startswith(field), value
            assert str(caught.value).startswith(f"{field}") and "expected" in str(caught.value)
            assert len(caught.value.accepted) > 5

    def test_an_unknown_option_is_named_with_what_was_perhaps_meant(self) -> None:
        with pytest.raises(SpecError, match="memroy.*'memory', perhaps"):
            SandboxSpec.parse(memroy="1G")  # type: ignore[call-arg]
        with pytest.raises(SpecError, match="xyzzy.*rootfs"):
            SandboxSpec.parse(xyzzy=1)  # type: ignore[call-arg]

    def test_made_directly_it_is_checked_as_well(self) -> None:
        for wrong in ({"memory": 5}, {"memory": "1G"}, {"uid": -1}, {"cwd": "x"}, {"hostname": "_"}, {"rootfs": "rel"}):
            with pytest.raises(SpecError):
                SandboxSpec(**wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("given_", "stored"), [(None, "off"), ("off", "off"), ("default", "default")])
    def test_seccomp_is_off_only_when_asked(self, given_: str | None, stored: str) -> None:
        assert SandboxSpec.parse(seccomp=given_).seccomp == stored

    def test_relative_paths_of_the_host_are_made_absolute_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "data").mkdir()
        monkeypatch.chdir(tmp_path)
        spec = SandboxSpec.parse(binds=["data:/mnt"], rootfs="data")
        monkeypatch.chdir("/")
        assert spec.binds[0].source == spec.rootfs == os.fspath(tmp_path / "data")

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                name: st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
                for name in ("memory", "swap", "cpus", "pids", "nofile", "fsize", "cwd", "user", "hostname", "network")
            },
        )
    )
    def test_whatever_is_given_it_is_a_spec_or_a_spec_error(self, options: dict[str, Any]) -> None:
        try:
            spec = SandboxSpec.parse(**options)
        except SpecError as error:
            assert error.field in options
            return
        assert spec.limits.memory is None or spec.limits.memory >= MIB
        assert 0 <= spec.uid < 65536 and 0 <= spec.gid < 65536
        assert spec.limits.cpus is None or 0 < spec.limits.cpus < math.inf
        assert spec.cwd.startswith("/")


_MAPPINGS = ("env", "seccomp")


class TestParts:
    @pytest.mark.parametrize(
        ("value", "ids"),
        [
            (None, (1000, 1000)),
            ("root", (0, 0)),
            ("nobody", (65534, 65534)),
            (7, (7, 7)),
            ("7", (7, 7)),
            ("7:8", (7, 8)),
        ],
    )
    def test_users(self, value: int | str | None, ids: tuple[int, int]) -> None:
        assert parse_user(value) == ids

    @given(st.text(max_size=20))
    def test_an_inside_path_never_leads_up(self, path: str) -> None:
        try:
            inside_path(path, "cwd")
        except SpecError:
            return
        assert os.path.normpath(path) == path and os.path.isabs(path)

    @pytest.mark.parametrize(
        ("text", "handler"),
        [
            ("f:f", Handler("f", "f")),
            ("f.f", Handler("f", "f")),
            ("pkg.mod:func", Handler("pkg.mod", "func")),
            ("pkg.mod.func", Handler("pkg.mod", "func")),
            ("mod:obj.method", Handler("mod", "obj.method")),
            ("folder/mod.func", Handler("folder.mod", "func")),
            ("folder/sub/mod:func", Handler("folder.sub.mod", "func")),
            ("my-app/in-dex.func", Handler("my-app.in-dex", "func")),
        ],
    )
    def test_handlers(self, text: str, handler: Handler) -> None:
        assert Handler.parse(text) == handler
        assert Handler.parse(str(handler)) == handler

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "f",
            ":f",
            "f:",
            "a:b:c",
            "a b:c",
            "/b:c",
            "a//b:c",
            "../b:c",
            "-a:f",
            "a:b-c",
            "1:f",
            "class:f",
            "..f",
            "f:f()",
            5,
        ],
    )
    def test_no_handlers(self, text: Any) -> None:
        with pytest.raises(SpecError, match="handler"):
            Handler.parse(text)


class TestFunction:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("contract", "stream"),
            ("contract", None),
            ("root_path", "run"),
            ("root_path", "/run/"),
            ("root_path", "/a b"),
            ("root_path", "/a\r\nb"),
            ("root_path", "/é"),
            ("root_path", None),
        ],
    )
    def test_contracts_that_there_are_not(self, tmp_path: Path, field: str, value: Any) -> None:
        with pytest.raises(SpecError, match=field):
            FunctionSpec.parse(code=tmp_path, handler="f:f", **{field: value})  # type: ignore[misc]

    def test_what_it_becomes(self, tmp_path: Path) -> None:
        spec = FunctionSpec.parse(
            code=tmp_path, handler="f.f", packages=[tmp_path], python=sys.executable, memory="64M"
        )
        assert spec.code == os.fspath(tmp_path) and spec.handler == Handler("f", "f")
        assert spec.packages == (os.fspath(tmp_path),) and spec.limits.memory == 64 * MIB

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("code", "/nonexistent"),
            ("code", "/etc/passwd"),
            ("handler", "nothing"),
            ("packages", "/usr"),
            ("packages", ["/nonexistent"]),
            ("python", "/nonexistent"),
            ("python", "/etc/passwd"),
            ("timeout", 0),
            ("timeout", math.nan),
            ("rootfs", "/"),
        ],
    )
    def test_nonsense(self, tmp_path: Path, field: str, value: Any) -> None:
        options: dict[str, Any] = {"code": tmp_path, "handler": "f:f", field: value}
        with pytest.raises(SpecError) as caught:
            FunctionSpec.parse(**options)
        assert caught.value.field == field

    @pytest.mark.parametrize("missing", ["code", "handler"])
    def test_what_has_no_default_must_be_given(self, tmp_path: Path, missing: str) -> None:
        options: dict[str, Any] = {"code": tmp_path, "handler": "f:f"}
        del options[missing]
        with pytest.raises(SpecError, match=f"{missing}.*no default"):
            FunctionSpec.parse(**options)


class TestZygote:
    def test_what_it_becomes(self, tmp_path: Path) -> None:
        spec = ZygoteSpec.parse(["numpy", "os.path"], packages=[tmp_path], memory="256M")
        assert spec.imports == ("numpy", "os.path") and spec.limits.memory == 256 * MIB and spec.limits.swap == 0

    @pytest.mark.parametrize("imports", ["numpy", ["num py"], ["os;"], [""], [".os"], [5], [None]])
    def test_imports_that_are_no_names(self, imports: Any) -> None:
        with pytest.raises(SpecError, match="imports"):
            ZygoteSpec.parse(imports)
