"""The waits on cgroup.events against files that only look like it: deadlines, signals, and what a failure leaves."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from olsock._core import cgroup
from olsock.errors import DeadlineError, KernelError

pytestmark = pytest.mark.unit


class File:
    """A file whose content a test decides. Unlike the kernel's it announces no change, so waits on it time out."""

    def __init__(self, text: str) -> None:
        self.fd = os.memfd_create("events")
        self.say(text)

    def say(self, text: str) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text.encode(), 0)

    def text(self) -> str:
        return os.pread(self.fd, 100, 0).decode()


@pytest.fixture
def control() -> Iterator[File]:
    file = File("")
    yield file
    os.close(file.fd)


@pytest.fixture
def events() -> Iterator[File]:
    file = File("populated 1\nfrozen 0\n")
    yield file
    os.close(file.fd)


def test_a_confirmed_freeze_returns(control: File, events: File) -> None:
    events.say("populated 1\nfrozen 1\n")
    cgroup.freeze(control.fd, events.fd, True, 5)
    assert control.text() == "1"


def test_an_unconfirmed_freeze_is_taken_back(control: File, events: File) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match="not frozen"):
        cgroup.freeze(control.fd, events.fd, True, 0.05)
    assert time.monotonic() - begun >= 0.05
    assert control.text() == "0"


def test_an_unconfirmed_thaw_is_not_turned_into_a_freeze(control: File, events: File) -> None:
    events.say("populated 1\nfrozen 1\n")
    with pytest.raises(DeadlineError, match="not thawed"):
        cgroup.freeze(control.fd, events.fd, False, 0.01)
    assert control.text() == "0"


def test_a_signal_is_handled_at_once_and_the_wait_goes_on(control: File, events: File) -> None:
    """A handler runs while the C code waits, and may raise: nobody has to sit a wait out to press Ctrl-C."""
    seen: list[float] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(time.monotonic()))
    timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    try:
        timer.start()
        begun = time.monotonic()
        assert not cgroup.wait_empty(events.fd, 0.5)
        ended = time.monotonic()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert len(seen) == 1 and seen[0] < ended - 0.1 and ended - begun >= 0.5


def test_a_handler_that_raises_ends_the_wait(events: File) -> None:
    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, refuse)
    timer = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            cgroup.wait_empty(events.fd, 60)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_empty_at_once_even_without_time(events: File) -> None:
    events.say("populated 0\nfrozen 0\n")
    assert cgroup.wait_empty(events.fd, 0)


@pytest.mark.parametrize("text", ["", "nonsense\n", "frozen 1\n"])
def test_a_file_without_the_word_is_an_error_not_an_answer(events: File, text: str) -> None:
    events.say(text)
    with pytest.raises(KernelError) as caught:
        cgroup.wait_empty(events.fd, 1)
    assert caught.value.errno == errno.ENOMSG


def test_reading_grows_with_the_file(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    try:
        for size in (0, 1, 4095, 4096, 4097, 100_000):
            (tmp_path / "file").write_text("x" * size)
            assert cgroup.read(directory, "file") == "x" * size
    finally:
        os.close(directory)


def test_writing_and_reading_follow_no_links(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("before")
    (tmp_path / "link").symlink_to("target")
    directory = os.open(tmp_path, os.O_PATH)
    try:
        cgroup.write(directory, "target", "after!")
        for act in (lambda: cgroup.write(directory, "link", "x"), lambda: cgroup.read(directory, "link")):
            with pytest.raises(KernelError) as caught:
                act()
            assert (caught.value.errno, caught.value.step, caught.value.path) == (errno.ELOOP, "open", "link")
    finally:
        os.close(directory)
    assert (tmp_path / "target").read_text() == "after!"


def test_an_ordinary_directory_is_no_cgroup(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(KernelError) as caught:
            cgroup.version(directory)
        assert caught.value.errno == errno.EXDEV
    finally:
        os.close(directory)
