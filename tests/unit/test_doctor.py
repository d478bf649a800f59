"""`olsock doctor`: what it says is what the host has, gaps come with advice, and looking changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from olsock import doctor, hierarchies
from olsock._core import probe
from olsock._core.probe import Feature
from olsock.errors import UnsupportedError

pytestmark = pytest.mark.unit


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> doctor.Report:
    """A report of this host, less some features."""
    found = dict(probe.features())
    for name in names:
        found[name] = dataclasses.replace(found[name], ok=False, detail="ENOSYS", advice=f"get {name}")
    monkeypatch.setattr(probe, "features", lambda: found)
    return doctor.examine()


def layer(report: doctor.Report, name: str) -> doctor.Layer:
    (found,) = (layer for layer in report.layers if layer.name == name)
    return found


def test_says_what_the_host_is() -> None:
    report = doctor.examine()
    assert report.kernel == os.uname().release
    assert report.root == (os.geteuid() == 0)
    assert {feature.name for feature in report.features} == set(probe.features())
    assert report.cgroups.mode in ("unified", "hybrid", None)
    assert report.ids.last - report.ids.first + 1 >= report.ids.free * report.ids.block > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make sandboxes")
def test_every_layer_is_on_here() -> None:
    """On a host that runs this suite as root: nothing blocks, so the verdict is what the other tests rely on."""
    report = doctor.examine()
    assert report.usable, report.gaps
    lacking = [] if probe.features()["tid_address"].ok else ["zygotes"]
    assert [layer.name for layer in report.layers if not layer.on] == lacking


@pytest.mark.parametrize(
    ("feature", "name"),
    [
        ("userns", "user"),
        ("netns", "network"),
        ("mount_setattr", "root"),
        ("seccomp", "seccomp"),
    ],
)
def test_a_missing_feature_turns_its_layer_off(monkeypatch: pytest.MonkeyPatch, feature: str, name: str) -> None:
    report = without(monkeypatch, feature)
    assert not layer(report, name).on
    assert not report.usable
    assert any(gap.blocking and gap.advice == f"get {feature}" for gap in report.gaps)
    assert "will not start" in doctor.render(report)


def test_an_optional_feature_blocks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blocking = [gap for gap in doctor.examine().gaps if gap.blocking]
    report = without(monkeypatch, "timens", "landlock", "attach_detached")
    assert [gap for gap in report.gaps if gap.blocking] == blocking
    assert len([gap for gap in report.gaps if gap.advice.startswith("get ")]) == 3


def test_zygotes_need_a_feature_that_sandboxes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = doctor.examine().usable
    report = without(monkeypatch, "tid_address")
    assert not layer(report, "zygotes").on
    assert report.usable == usable
    assert any(gap.advice == "get tid_address" and not gap.blocking for gap in report.gaps)


def test_no_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(parent: str | None = None) -> hierarchies.Layout:
        raise UnsupportedError("no cgroup v2 file system")

    monkeypatch.setattr(hierarchies, "find", find)
    report = doctor.examine()
    assert report.cgroups.mode is None
    assert not layer(report, "memory").on
    assert not layer(report, "freezing").on
    assert not report.usable


def test_no_filter_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(profile: str) -> bytes:
        raise UnsupportedError("seccomp: no profile for pdp11")

    monkeypatch.setattr(doctor.seccomp, "compile", compile)
    report = doctor.examine()
    assert not layer(report, "seccomp").on
    assert any("pdp11" in gap.advice and gap.blocking for gap in report.gaps)


def test_what_the_host_does_with_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/sys/kernel/core_pattern": "|/usr/lib/systemd/systemd-coredump %P", "/sys/kernel/mm/ksm/run": "1"}
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(path, ""))
    whats = [gap.what for gap in doctor.examine().gaps]
    assert any("systemd-coredump" in what for what in whats)
    assert any("KSM" in what for what in whats)


def test_ids_leave_out_what_subuid_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_read", lambda path: "")
    free = doctor.examine().ids.free
    first = doctor.examine().ids.first
    monkeypatch.setattr(doctor, "_read", lambda path: f"joe:{first + 65536}:131072" if path == "/etc/subuid" else "")
    assert doctor.examine().ids.free == free - 2


def test_json_carries_everything() -> None:
    report = doctor.examine()
    data = json.loads(doctor.to_json(report))
    assert data["usable"] == report.usable
    assert {key for key in data if key != "usable"} == {field.name for field in dataclasses.fields(report)}
    assert data["features"][0] == dataclasses.asdict(report.features[0])


def test_text_names_each_layer_feature_and_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    report = without(monkeypatch, "openat2")
    text = doctor.render(report)
    for name in [*(layer.name for layer in report.layers), *(feature.name for feature in report.features)]:
        assert name in text
    assert "get openat2" in text
    assert max(len(line) for line in doctor.render(doctor.examine()).splitlines()) < 320


def test_examining_leaves_no_cgroup() -> None:
    doctor.examine()
    layout = hierarchies.find()
    for parent in (layout.v2.parent, *(hierarchy.parent for hierarchy in layout.v1)):
        assert not Path(parent, f"olsock-{os.getpid()}-doctor").exists()


def test_features_are_named_for_humans() -> None:
    for feature in doctor.examine().features:
        assert isinstance(feature, Feature)
        assert feature.what[0].isalpha() and not feature.what.endswith(".")
