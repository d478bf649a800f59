"""Cgroups: every limit bites, freezing is confirmed, killing is final, and nothing is left. The same on both modes."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from olsock.cgroups import Leaf, Tree
from olsock.errors import DeadlineError, KernelError, SpecError, UnsupportedError
from olsock.spec import MIB, Limits
from support.children import Child, clone_into, counting, run_in
from support.eventually import eventually, passes

pytestmark = [pytest.mark.system, pytest.mark.cgroup]

SLEEPER = "import signal\nsignal.pause()"


@pytest.fixture
def tree() -> Iterator[Tree]:
    with Tree.create(f"{os.getpid()}-test") as made:
        yield made


@pytest.fixture
def leaf(tree: Tree) -> Leaf:
    return tree.leaf("leaf")


def exists(path: str) -> bool:
    return Path(path).is_dir()


def placed(pid: int) -> dict[str, str]:
    """Return the cgroup of a process for each controller, and for version 2 under ""."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return {name: path for _, names, path in lines for name in names.split(",")}


class TestDirectories:
    def test_made_in_every_hierarchy_and_removed_from_all(self, tree: Tree) -> None:
        leaf = tree.leaf("leaf")
        paths = (*tree.paths, *leaf.paths)
        assert all(map(exists, paths))
        leaf.remove()
        assert not any(map(exists, leaf.paths)) and all(map(exists, tree.paths))
        tree.close()
        assert not any(map(exists, paths))

    def test_removing_twice_is_fine(self, tree: Tree, leaf: Leaf) -> None:
        leaf.remove()
        leaf.remove()
        tree.close()
        tree.close()

    def test_a_removed_leaf_says_so(self, leaf: Leaf) -> None:
        leaf.set(Limits(pids=5))
        leaf.remove()
        leaf.kill()  # there is nobody left to kill
        with pytest.raises(KernelError) as caught:
            leaf.set(Limits(pids=6))
        assert caught.value.errno == errno.ENOENT and leaf.paths[0].split("/")[-1] in str(caught.value)

    def test_a_name_is_taken_once(self, tree: Tree, leaf: Leaf) -> None:
        with pytest.raises(KernelError) as caught:
            tree.leaf("leaf")
        assert caught.value.errno == errno.EEXIST
        assert all(map(exists, leaf.paths)), "a failed attempt must not remove somebody else's"

    def test_a_failure_half_way_leaves_nothing(self, tree: Tree) -> None:
        if len(tree.paths) == 1:
            pytest.skip("one hierarchy only: there is no half-way")
        obstacle = Path(tree.paths[-1], "half")
        obstacle.mkdir()
        with pytest.raises(KernelError):
            tree.leaf("half")
        assert not any(Path(path, "half").exists() for path in tree.paths[:-1])
        obstacle.rmdir()

    @pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "..", "-x", "a" * 129, "a\n", "\0"])
    def test_names_that_lead_elsewhere_are_refused(self, tree: Tree, name: str) -> None:
        with pytest.raises(SpecError):
            tree.leaf(name)

    def test_closing_the_tree_ends_all_that_is_below(self, tree: Tree) -> None:
        domain = tree.domain("tenant")
        with Child(SLEEPER) as one, Child(SLEEPER) as two:
            domain.leaf("a").adopt(one.pid)
            tree.leaf("b").adopt(two.pid)
            tree.close()
            assert (one.wait(10), two.wait(10)) == (-signal.SIGKILL, -signal.SIGKILL)
        assert not any(map(exists, tree.paths))

    def test_who_went_with_the_level_above_has_nobody_to_kill(self, tree: Tree) -> None:
        domain = tree.domain("tenant")
        leaf = domain.leaf("a")
        domain.remove()
        assert not exists(leaf.paths[0])
        leaf.kill()
        leaf.remove()

    def test_leaves_outlived_by_their_domain_can_still_be_removed(self, tree: Tree) -> None:
        domain = tree.domain("tenant")
        leaf = domain.leaf("a")
        domain.remove()
        leaf.remove()
        assert not any(map(exists, domain.paths))

    def test_a_fork_does_not_take_its_parents_tree_down(self, tree: Tree, leaf: Leaf) -> None:
        with Child(SLEEPER) as child:
            leaf.adopt(child.pid)
            pid = os.fork()
            if pid == 0:
                try:
                    leaf.remove()
                    tree.close()
                finally:
                    os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert leaf.pids() == [child.pid] and child.poll() is None

    def test_no_fd_is_kept(self, tree: Tree) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(3):
            leaf = tree.leaf(f"n{number}")
            leaf.set(Limits(memory=64 * MIB, swap=0, pids=8))
            _ = leaf.fd
            leaf.freeze()
            leaf.thaw()
            leaf.stats()
            leaf.remove()
        assert len(os.listdir("/proc/self/fd")) == before


class TestPlacing:
    def test_adopt_reaches_every_controller(self, tree: Tree, leaf: Leaf) -> None:
        with Child(SLEEPER) as child:
            leaf.adopt(child.pid)
            where = placed(child.pid)
            used = ["", *(tree.controllers if tree.mode == "hybrid" else ())]
            assert all(where[name].endswith(f"olsock-{os.getpid()}-test/leaf") for name in used), where
            assert leaf.pids() == [child.pid]

    def test_attach_all_reaches_processes_that_a_child_made_before(self, tree: Tree, leaf: Leaf) -> None:
        family = "import os\nfor _ in range(3): os.fork()\nprint('up', flush=True)\nimport signal\nsignal.pause()"
        with Child(family) as child:
            # Into the version 2 directory alone, as if it had been born there.
            Path(leaf.paths[0], "cgroup.procs").write_text(str(child.pid))
            child.go()
            assert eventually(lambda: len(leaf.pids()) == 8)
            leaf.attach_all()
            for controller in tree.controllers if tree.mode == "hybrid" else ():
                assert all(placed(pid)[controller].endswith("-test/leaf") for pid in leaf.pids()), controller
            leaf.remove()

    def test_a_process_can_be_born_in_a_leaf(self, leaf: Leaf) -> None:
        pid = clone_into(leaf.fd, ["/bin/sleep", "60"])
        try:
            assert placed(pid)[""].endswith("-test/leaf")
            leaf.kill()
        finally:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def test_attaching_a_process_that_is_gone_fails(self, tree: Tree, leaf: Leaf) -> None:
        with Child("pass") as child:
            child.go()
            child.wait(30)
        if tree.mode == "unified":
            pytest.skip("nothing is moved where processes are born in place")
        with pytest.raises(KernelError) as caught:
            leaf.attach(child.pid)
        assert caught.value.errno == errno.ESRCH


class TestLimits:
    TOUCH = "block = bytearray(96 << 20)\nblock[::4096] = b'x' * len(block[::4096])\nprint('fits')"

    def test_memory_beyond_the_limit_is_killed(self, leaf: Leaf) -> None:
        leaf.set(Limits(memory=48 * MIB, swap=0))
        status, output = run_in(leaf, self.TOUCH)
        assert (status, output) == (-signal.SIGKILL, "")
        assert leaf.oom_kills() == leaf.stats().oom_kills == 1
        peak = leaf.stats().memory_peak_bytes
        assert peak is None or 40 * MIB < peak <= 48 * MIB

    def test_memory_within_the_limit_is_not(self, leaf: Leaf) -> None:
        leaf.set(Limits(memory=192 * MIB, swap=0))
        assert run_in(leaf, self.TOUCH) == (0, "fits\n")
        assert leaf.oom_kills() == 0

    def test_swap_does_not_extend_memory(self, tree: Tree, leaf: Leaf) -> None:
        swap = Path("/proc/swaps").read_text().splitlines()[1:]
        if not swap:
            pytest.skip("no swap is on: nothing could be swapped out anyway")
        leaf.set(Limits(memory=48 * MIB, swap=0))
        assert run_in(leaf, self.TOUCH)[0] == -signal.SIGKILL
        generous = tree.leaf("generous")
        generous.set(Limits(memory=48 * MIB, swap=96 * MIB))
        assert run_in(generous, self.TOUCH) == (0, "fits\n")

    def test_oom_group_takes_all(self, tree: Tree, leaf: Leaf) -> None:
        if tree.mode == "hybrid":
            with pytest.raises(UnsupportedError, match="oom_group"):
                leaf.set(Limits(memory=48 * MIB, oom_group=True))
            return
        for group, bystander_lives in ((False, True), (True, False)):
            each = tree.leaf(f"group-{group}")
            each.set(Limits(memory=48 * MIB, swap=0, oom_group=group))
            with Child(SLEEPER) as bystander:
                each.adopt(bystander.pid)
                assert run_in(each, self.TOUCH)[0] == -signal.SIGKILL
                assert (
                    eventually(lambda b=bystander: b.poll() is not None, 0.5 if bystander_lives else 10)
                    != bystander_lives
                )

    FORKS = """
import os, signal
made = 0
try:
    while made < 20:
        if os.fork() == 0:
            signal.pause()
        made += 1
except BlockingIOError:
    pass
print(made, flush=True)
"""

    @pytest.mark.parametrize(("limit", "made"), [(6, "5"), (64, "20"), (None, "20")])
    def test_pids(self, leaf: Leaf, limit: int | None, made: str) -> None:
        leaf.set(Limits(pids=limit))
        with Child(self.FORKS) as child:
            leaf.adopt(child.pid)
            child.go()
            assert child.stdout is not None
            assert child.stdout.readline().strip().decode() == made
            assert leaf.stats().pids in (int(made), int(made) + 1)  # the one that counted may have left
            leaf.remove()

    def test_cpu_ceiling(self, tree: Tree, tmp_path: Path) -> None:
        """By the kernel's own count of how often a process was held back, not by a clock."""
        for cpus, held_back in ((0.1, True), (None, False)):
            leaf = tree.leaf(f"cpu-{held_back}")
            leaf.set(Limits(cpus=cpus))
            with counting(tmp_path / "counter", leaf):
                assert eventually(lambda leaf=leaf: leaf.stats().cpu_usec > 60_000, 30)
                # 60 ms of time at 10 ms in each 100 is five periods at least that ended early.
                assert (self.throttled(leaf) >= 4) is held_back
            leaf.remove()

    @staticmethod
    def throttled(leaf: Leaf) -> int:
        """How often the kernel ended a period early: in cpu.stat of whichever hierarchy has the controller."""
        files = [Path(path, "cpu.stat") for path in leaf.paths]
        lines = [line.split() for file in files if file.exists() for line in file.read_text().splitlines()]
        return max((int(value) for name, value in lines if name == "nr_throttled"), default=0)

    def test_limits_can_be_changed_and_taken_away(self, tree: Tree, leaf: Leaf) -> None:
        for limits in (
            Limits(memory=64 * MIB, swap=0, pids=10, cpus=0.5),
            Limits(memory=256 * MIB, swap=MIB, pids=20, cpus=2.0),
            Limits(memory=32 * MIB, swap=0, pids=5, cpus=0.01),
            Limits(),
        ):
            leaf.set(limits)
            assert self.read_back(tree, leaf) == (limits.memory, limits.pids, limits.cpus)

    @staticmethod
    def read_back(tree: Tree, leaf: Leaf) -> tuple[int | None, int | None, float | None]:
        def read(*names: str) -> str:
            (path,) = [Path(path, name) for path in leaf.paths for name in names if Path(path, name).exists()]
            return path.read_text().strip()

        memory, pids = read("memory.max", "memory.limit_in_bytes"), read("pids.max")
        quota = read("cpu.max", "cpu.cfs_quota_us").split()[0]
        return (
            None if memory == "max" or int(memory) > 1 << 60 else int(memory),
            None if pids == "max" else int(pids),
            None if quota in ("max", "-1") else int(quota) / 100_000,
        )

    def test_a_domain_is_held_to_limits_too(self, tree: Tree) -> None:
        domain = tree.domain("tenant")
        domain.set(Limits(memory=48 * MIB, swap=0))
        assert run_in(domain.leaf("a"), self.TOUCH)[0] == -signal.SIGKILL

    def test_weight_is_a_no_op_or_works(self, tree: Tree, leaf: Leaf) -> None:
        files = [Path(path, name) for path in leaf.paths for name in ("cpu.weight", "cpu.shares")]
        (file,) = [file for file in files if file.exists()]
        usual = int(file.read_text())
        leaf.weight(high=True)
        assert int(file.read_text()) > 10 * usual
        leaf.weight(high=False)
        assert int(file.read_text()) == usual


class TestFreezing:
    def test_a_frozen_process_makes_no_progress(self, leaf: Leaf, tmp_path: Path) -> None:
        with counting(tmp_path / "counter", leaf) as counter:
            assert eventually(lambda: counter.value() > 1000)
            leaf.freeze()
            reached = counter.value()
            passes(0.05)
            assert counter.value() == reached
            leaf.thaw()
            assert eventually(lambda: counter.value() > reached + 1000)

    def test_the_control_counts_on_while_time_passes(self, leaf: Leaf, tmp_path: Path) -> None:
        with counting(tmp_path / "counter", leaf) as counter:
            assert eventually(lambda: counter.value() > 1000)
            reached = counter.value()
            passes(0.05)
            assert eventually(lambda: counter.value() > reached)

    def test_a_frozen_process_can_be_killed(self, leaf: Leaf) -> None:
        with Child(SLEEPER) as child:
            leaf.adopt(child.pid)
            leaf.freeze()
            leaf.kill()
            assert leaf.wait_empty(10)
            assert child.wait(10) == -signal.SIGKILL

    def test_an_empty_leaf_freezes(self, leaf: Leaf) -> None:
        leaf.freeze()
        leaf.thaw()

    def test_freezing_is_idempotent(self, leaf: Leaf) -> None:
        with Child(SLEEPER) as child:
            leaf.adopt(child.pid)
            for act in (leaf.freeze, leaf.freeze, leaf.thaw, leaf.thaw):
                act()
            child.terminate()
            assert child.wait(10) == -signal.SIGTERM

    def test_a_domain_freezes_what_is_below(self, tree: Tree, tmp_path: Path) -> None:
        domain = tree.domain("tenant")
        with counting(tmp_path / "counter", domain.leaf("a")) as counter:
            assert eventually(lambda: counter.value() > 1000)
            domain.freeze()
            reached = counter.value()
            passes(0.05)
            assert counter.value() == reached
            domain.thaw()

    def test_fds_handed_out_do_the_same(self, leaf: Leaf) -> None:
        freeze, kill, events = leaf.open_freeze(), leaf.open_kill(), leaf.open_events()
        try:
            with Child(SLEEPER) as child:
                leaf.adopt(child.pid)
                os.pwrite(freeze, b"1", 0)
                assert eventually(lambda: b"frozen 1" in os.pread(events, 256, 0))
                os.write(kill, b"1")
                assert child.wait(10) == -signal.SIGKILL
                assert eventually(lambda: b"populated 0" in os.pread(events, 256, 0))
        finally:
            for fd in (freeze, kill, events):
                os.close(fd)

    def test_memory_events_where_there_are_any(self, tree: Tree, leaf: Leaf) -> None:
        fd = leaf.open_memory_events()
        if tree.mode == "hybrid":
            assert fd is None
            return
        assert fd is not None
        try:
            leaf.set(Limits(memory=48 * MIB, swap=0))
            assert b"oom_kill 0" in os.pread(fd, 4096, 0)
            run_in(leaf, TestLimits.TOUCH)
            assert b"oom_kill 1" in os.pread(fd, 4096, 0)
        finally:
            os.close(fd)

    def test_what_is_charged_is_read_again_and_again_from_one_file(self, leaf: Leaf) -> None:
        fd = leaf.open_memory()
        assert fd is not None
        try:
            leaf.set(Limits(memory=256 * MIB, swap=0))
            before = int(os.pread(fd, 64, 0))
            with Child("block = b'x' * (32 << 20)\n" + SLEEPER) as child:
                leaf.adopt(child.pid)
                child.go()
                assert eventually(lambda: int(os.pread(fd, 64, 0)) - before >= 32 * MIB)
            assert eventually(lambda: int(os.pread(fd, 64, 0)) - before < 16 * MIB)
            with pytest.raises(OSError):
                os.pwrite(fd, b"0", 0)
        finally:
            os.close(fd)


class TestEnding:
    def test_waiting_for_an_empty_leaf(self, leaf: Leaf) -> None:
        assert leaf.wait_empty(0)
        with Child(SLEEPER) as child:
            leaf.adopt(child.pid)
            assert not leaf.wait_empty(0.02)
            killer = threading.Timer(0.05, child.kill)
            killer.start()
            assert leaf.wait_empty(30)
            killer.join()

    def test_many_may_wait_at_once(self, leaf: Leaf) -> None:
        """Each on an open file of its own, or the read of one would take the news from another."""
        with Child(SLEEPER) as child, ThreadPoolExecutor(8) as pool:
            leaf.adopt(child.pid)
            waits = [pool.submit(leaf.wait_empty, 30) for _ in range(8)]
            leaf.freeze()
            leaf.thaw()
            leaf.kill()
            assert all(wait.result(60) for wait in waits)

    def test_a_throttled_process_ends_soon(self, leaf: Leaf, tmp_path: Path) -> None:
        leaf.set(Limits(cpus=0.01))
        with counting(tmp_path / "counter", leaf):
            assert eventually(lambda: leaf.stats().cpu_usec > 2_000, 30)
            leaf.remove(deadline=10)
        assert not any(map(exists, leaf.paths))

    def test_a_removal_that_cannot_end_says_who_is_left_and_can_be_repeated(
        self, leaf: Leaf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Child(SLEEPER) as child:
            leaf.adopt(child.pid)
            with monkeypatch.context() as patch:
                patch.setattr(Leaf, "kill", lambda self: None)
                with pytest.raises(DeadlineError, match=str(child.pid)):
                    leaf.remove(deadline=0.1)
            assert all(map(exists, leaf.paths)) and child.poll() is None
            leaf.remove()
            assert child.wait(10) == -signal.SIGKILL

    def test_stats_count(self, tree: Tree, leaf: Leaf, tmp_path: Path) -> None:
        with counting(tmp_path / "counter", leaf):
            assert eventually(lambda: leaf.stats().cpu_usec > 20_000)
            stats = leaf.stats()
            assert stats.user_usec <= stats.cpu_usec and stats.pids == 1 and stats.oom_kills == 0
            assert stats.memory_bytes is not None
        assert tree.leaf("idle").stats().cpu_usec == 0


class TestHandingOver:
    def test_delegating_hands_over_cgroup_procs_and_nothing_else(self, tree: Tree, leaf: Leaf) -> None:
        leaf.delegate(1879048192)
        owners = {path.name: path.stat().st_uid for path in Path(leaf.paths[0]).iterdir()}
        assert [name for name, uid in owners.items() if uid] == ["cgroup.procs"]
        assert Path(leaf.paths[0]).stat().st_uid == 0
        for path in leaf.paths[1:]:
            assert not any(entry.stat().st_uid for entry in Path(path).iterdir())

    def test_nothing_lies_above_a_detached_fd(self, tree: Tree, leaf: Leaf) -> None:
        """`..` from an ordinary fd reaches siblings and the host; from a detached one it stays where it is."""
        tree.leaf("sibling")
        detached = leaf.detached_fd()
        try:
            assert self.above(leaf.fd) == "the tree", "the naive fd must lead out, or this test shows nothing"
            assert self.above(detached) == "itself"
            assert os.stat("cgroup.procs", dir_fd=detached).st_ino == os.stat("cgroup.procs", dir_fd=leaf.fd).st_ino
        finally:
            os.close(detached)

    @staticmethod
    def above(fd: int) -> str:
        for steps in ("..", "../..", "../../../../.."):
            up = os.open(steps, os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
            try:
                if os.path.samestat(os.fstat(up), os.fstat(fd)):
                    continue
                os.stat("sibling/cgroup.procs", dir_fd=up)
                return "the tree"
            finally:
                os.close(up)
        return "itself"

    def test_a_process_can_be_born_through_a_detached_fd(self, leaf: Leaf) -> None:
        detached = leaf.detached_fd()
        try:
            pid = clone_into(detached, ["/bin/sleep", "60"])
        finally:
            os.close(detached)
        assert placed(pid)[""].endswith("-test/leaf")
        leaf.kill()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def test_a_detached_fd_is_a_plain_directory_that_cannot_be_mounted(self, leaf: Leaf) -> None:
        from olsock._core import mounts

        detached = leaf.detached_fd()
        try:
            assert stat.S_ISDIR(os.fstat(detached).st_mode)
            target = os.open("/mnt", os.O_PATH | os.O_DIRECTORY)
            try:
                with pytest.raises(KernelError):
                    mounts.attach(detached, target)
            finally:
                os.close(target)
        finally:
            os.close(detached)


class TestThreads:
    def test_leaves_come_and_go_in_many_threads(self, tree: Tree) -> None:
        def cycle(number: int) -> None:
            for round_ in range(10):
                with tree.leaf(f"t{number}-{round_}") as leaf:
                    leaf.set(Limits(memory=64 * MIB, swap=0, pids=10))
                    leaf.freeze()
                    leaf.thaw()
                    leaf.stats()

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(cycle, range(6)))
        assert not [entry for path in tree.paths for entry in Path(path).iterdir() if entry.is_dir()]


class TestSupervisor:
    """On version 2 a cgroup with processes cannot give controllers to children: the process alone in it steps aside."""

    CODE = """
import os, sys
from pathlib import Path
from olsock.cgroups import Tree
from olsock.spec import Limits
sys.stdin.buffer.read(1)
with Tree.create(f"{os.getpid()}-inner") as tree:
    print(Path("/proc/self/cgroup").read_text().strip())
    leaf = tree.leaf("x")
    leaf.set(Limits(memory=64 << 20, pids=5))
    leaf.remove()
print(Path("/proc/self/cgroup").read_text().strip())
"""

    @pytest.fixture
    def service(self, tree: Tree) -> Iterator[Leaf]:
        """A cgroup such as systemd makes for a service, with controllers of its own."""
        if tree.mode != "unified":
            pytest.skip("hybrid host: version 2 has no controllers to give")
        yield tree.leaf("service")

    def start(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != "OLSOCK_CGROUP"}
        return subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip

    def test_alone_it_moves_aside_and_back(self, service: Leaf) -> None:
        with self.start() as process:
            service.adopt(process.pid)
            output, errors = process.communicate(b"x", timeout=60)
        inside, after = output.decode().splitlines()
        assert inside.endswith("/service/olsock-supervisor"), errors
        assert after.endswith("/service") and process.returncode == 0
        assert not [entry for entry in Path(service.paths[0]).iterdir() if entry.is_dir()]

    def test_beside_others_it_refuses_and_moves_nobody(self, service: Leaf) -> None:
        with self.start() as process, Child(SLEEPER) as other:
            service.adopt(process.pid)
            service.adopt(other.pid)
            _, errors = process.communicate(b"x", timeout=60)
            assert process.returncode == 1 and b"Delegate=yes" in errors, errors
            assert service.pids() == [other.pid]
