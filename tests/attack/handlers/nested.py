"""A package that means harm to zygotes that fork zygotes: $NESTED says what, and as parent or as child.

What it found is in RESULTS, which every handler of this zygote inherits. Imported in a child it looks for ways to its
parent, its siblings and its init; in a parent it spoils births, or does to its waiting handlers what it is told.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
import time

import probes

RESULTS = {}
NS_GET_USERNS, NS_GET_PARENT = 0xB701, 0xB702
NEST = 16  # csrc/fork/isolate.h
SHARED = "/tmp/shared"


def main():
    how = os.environ.get("NESTED", "")
    if how == "mark":  # a parent that keeps something where a child could look for it
        with open(SHARED, "w") as file:
            file.write("the parent's")
        probes.listen("@nested")
        RESULTS["mark"] = shared(0o1666)
    elif how == "look":
        look()
    elif how:
        module = sys.modules["_olsock_fork"]
        real_fork, real_finish = module.fork, module.finish
        module.fork = lambda request, fds: fork(how, real_fork, request, fds)
        module.finish = lambda channel: finish(how, real_finish, channel)
    if "NESTED_STORM" in os.environ and os.fork() == 0:
        storm(os.getppid(), int(os.environ["NESTED_STORM"]))


def shared(flags=0o666):
    """Whether there is what a parent keeps."""
    return {
        "file": os.path.exists(SHARED),
        "abstract": probes.connect("@nested"),
        "sysv": probes.libc.shmget(0x6F6D, 4096, flags) >= 0,
    }


# -- a child -----------------------------------------------------------------------------------------------------------


def look():
    """What a zygote that was forked from another can reach."""
    RESULTS["status"] = probes.status()
    RESULTS["fds"] = probes.fds()
    RESULTS["pids"] = probes.pids()
    RESULTS["found"] = probes.kill_range(1, 400)
    RESULTS["init"] = probes.spy(1)
    RESULTS["setns"] = {**probes.setns("/proc/1/ns"), "user": user_namespace()}
    RESULTS["parents"] = {name: relation(name) for name in ("user", "pid", "mnt", "net", "ipc", "uts")}
    RESULTS["unshare"] = probes.unshare_each()
    RESULTS["ids"] = {uid: probes.in_child(become, uid) for uid in ids()}
    read_only = [point for point, options, *_ in probes.mounts() if "ro" in options]
    RESULTS["remount"] = probes.remount(read_only)
    RESULTS["shared"] = shared()
    RESULTS["program"] = probes.in_child(lambda: probes.execute("/bin/grep", "CapEff", "/proc/self/status").split()[1])
    RESULTS["keyring"] = probes.keyring()
    RESULTS["cgroup"] = probes.cgroup_files()
    RESULTS["devices"] = probes.mknod("/tmp/node", "c", 1, 1)
    if os.environ.get("NESTED_UMOUNT"):  # last: no handler can be forked afterwards
        said = [probes.libc.umount2(point.encode(), 2) for point in ("/tmp", "/dev/shm")]
        RESULTS["below"] = {"umount": said, "file": probes.opened(SHARED, os.O_WRONLY)}


def ids():
    """Ids that others have: of the parent's handlers, of siblings' cells, of the host."""
    with open("/proc/self/uid_map") as file:
        (inside, _, count) = map(int, file.read().split())
    return [inside + count - 1, inside + count, 65536, 65536 + 4096, 2**31]


def become(uid):
    return probes.outcome(os.setresuid, uid, uid, uid)


def user_namespace():
    """Enter the user namespace of init, which is ours already, and those that lie above."""
    try:
        fd = os.open("/proc/1/ns/user", os.O_RDONLY)
    except OSError as e:
        return probes.errno.errorcode[e.errno]
    return probes.in_child(probes.call, probes.SYS["setns"], fd, probes.CLONE_FLAGS["NEWUSER"])


def relation(name):
    """Ask the kernel for what lies above a namespace of ours: the owner's user namespace, the parent."""
    fd = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
    said = {}
    for call, number in (("owner", NS_GET_USERNS), ("parent", NS_GET_PARENT)):
        said[call] = probes.outcome(lambda number=number: os.close(fcntl.ioctl(fd, number)))
    os.close(fd)
    return said


# -- a parent, and a zygote of handlers that wait -----------------------------------------------------------------------


def storm(zygote, number):
    """Signal whatever comes by in this pid namespace but init and the zygote, without end, and look into it."""
    os.nice(5)
    spared = (1, zygote, os.getpid())
    while True:
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            if pid not in spared:
                probes.outcome(os.kill, pid, number)
                probes.open_each([f"/proc/{pid}/{name}" for name in ("mem", "root/.", "fd", "ns/user")])


def fork(how, real, request, fds):
    flags = struct.unpack_from("<I", request)[0]
    if flags & NEST:
        return bear(how, real, request, fds)
    pid = real(request, fds)
    if pid == -1 and how == "early":  # a handler that is to wait says that it has begun
        say_started(3)
    return pid


def say_started(channel):
    wire = sys.modules["_olsock_wire"]
    os.write(channel, wire.frame(wire.STARTED, 0))


def bear(how, real, request, fds):
    """Fork a zygote, or not."""
    if how == "garbage":
        os.write(fds[0], b"\x07" + b"x" * 100)
    if how in ("hello", "itself"):
        os.write(fds[0], b"\0")  # as one that waits for its orders
    if how == "itself":  # and is in the child's cgroup
        RESULTS["moved"] = probes.outcome(move, fds[2])
        return os.getpid()
    if how in ("nobody", "garbage", "hello"):
        return 4242
    if how == "hang":
        time.sleep(1000)
    if how == "twice" and real(request, fds) <= 0:
        return -2
    kept = os.dup(fds[-6])  # its user namespace
    pid = real(request, fds)
    if how == "keeps" and pid > 0:
        RESULTS["entered"] = probes.in_child(enter, kept)
    return pid


def move(cgroup):
    fd = os.open("cgroup.procs", os.O_WRONLY, dir_fd=cgroup)
    os.write(fd, b"0")


def enter(namespace):
    """What the owner of a namespace may have in it, by the descriptor that it was lent."""
    said = probes.call(probes.SYS["setns"], namespace, probes.CLONE_FLAGS["NEWUSER"])
    return f"{said} {probes.status()['CapEff']}"


def finish(how, real, channel):
    """Be left waiting: capabilities are still there."""
    RESULTS["waiting"] = {"fds": probes.fds(), "status": probes.status(), "pids": probes.pids()}
    if how == "refuse":
        os._exit(3)
    if how == "deaf":
        signal.pause()
    if how == "started":
        say_started(channel)
    if how == "keep":  # takes the function and none of its limits
        import socket

        receiver = socket.socket(fileno=os.dup(channel))
        size = struct.unpack("<I", receiver.recv(4))[0]
        while size:
            size -= len(receiver.recv(size))
        attempts()
        return
    real(channel)
    if how == "again":
        RESULTS["again"] = probes.in_child(real, channel)


def attempts():
    """What a handler can do that kept what a zygote has: no more than the zygote."""
    RESULTS["kept"] = {
        "status": probes.status(),
        "pids": probes.pids(),
        "found": probes.kill_range(1, 400),
        "remount": probes.remount(["/", "/usr", "/var/packages/0"]),
        "setns": probes.setns("/proc/self/ns"),
        "cgroup": probes.cgroup_files(),
        "above": probes.in_child(become, 2**31),
    }


main()
