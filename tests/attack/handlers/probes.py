"""What an attacker tries, as small functions whose outcome can be told as JSON: standard library only.

Runs as a handler (`f` gets {"probe": name, "args": [...]}), as a program (the same event on stdin), and outside any
sandbox, where each attempt has to succeed: that is the control. An attempt's outcome is "ok" or the name of the errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading

libc = ctypes.CDLL(None, use_errno=True)

CLONE_FLAGS = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
SYS = {"clone": 56, "mknodat": 259, "unshare": 272, "setns": 308, "clone3": 435, "mount_setattr": 442}
SYS_NAME_TO_HANDLE_AT, SYS_OPEN_BY_HANDLE_AT = 303, 304
if os.uname().machine == "aarch64":
    SYS = {"clone": 220, "mknodat": 33, "unshare": 97, "setns": 268, "clone3": 435, "mount_setattr": 442}
    SYS_NAME_TO_HANDLE_AT, SYS_OPEN_BY_HANDLE_AT = 264, 265
AT_FDCWD = -100
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_NOSUID, MS_NODEV = 1, 32, 4096, 2, 4


def outcome(action, *args):
    """Do it; say "ok" or why not."""
    try:
        action(*args)
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e.errno))
    return "ok"


def call(number, *args):
    """Make a system call; its outcome."""
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]


def mount(source, target, kind, flags, data=None):
    """mount(2); its outcome."""
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    result = libc.mount(*texts, ctypes.c_ulong(flags), data)
    return "ok" if result == 0 else errno.errorcode[ctypes.get_errno()]


def touch(path):
    """Create a file and remove it again; the outcome."""

    def attempt():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)

    return outcome(attempt)


def opened(path, flags=os.O_RDONLY):
    """Open and close; the outcome."""
    return outcome(lambda: os.close(os.open(path, flags)))


# -- what a process can see of itself ----------------------------------------------------------------------------------


def status():
    """/proc/self/status as a dictionary, the host name, the ids."""
    with open("/proc/self/status") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    fields["uids"] = list(os.getresuid())
    fields["gids"] = list(os.getresgid())
    fields["groups"] = os.getgroups()
    fields["securebits"] = libc.prctl(27, 0, 0, 0, 0)
    fields["dumpable"] = libc.prctl(3, 0, 0, 0, 0)
    return fields


def mounts():
    """[mount point, options, type, super block's options] of every mount, in order."""
    with open("/proc/self/mountinfo") as file:
        lines = [line.split(" - ") for line in file]
    return [[a.split()[4], a.split()[5].split(","), b.split()[0], b.split()[2].split(",")] for a, b in lines]


def fds():
    """{fd: kind} of every open file."""
    kinds = {}
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            st = os.fstat(number)
        except OSError:  # the directory just listed
            continue
        kinds[str(number)] = {
            stat.S_IFDIR: "directory",
            stat.S_IFREG: "file",
            stat.S_IFIFO: "pipe",
            stat.S_IFSOCK: "socket",
            stat.S_IFCHR: f"device {os.major(st.st_rdev)}:{os.minor(st.st_rdev)}",
        }.get(stat.S_IFMT(st.st_mode), os.readlink(f"/proc/self/fd/{number}"))
    return kinds


def cwd():
    return os.getcwd()


def environment():
    return dict(os.environ)


def limits(*names):
    """Both values of resource limits."""
    import resource

    return {name: list(resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))) for name in names}


def pids():
    """The processes that /proc shows."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def link(path):
    """Where a symbolic link leads."""
    return os.readlink(path)


def read(path):
    """The beginning of a file, or the errno's name."""
    try:
        with open(path, "rb") as file:
            return file.read(4096).decode(errors="replace")
    except OSError as e:
        return errno.errorcode[e.errno]


def listing(path):
    return sorted(os.listdir(path))


# -- 1, 2: out of the root ---------------------------------------------------------------------------------------------


def chroot_escape(first=None):
    """The classic way out of a chroot (into `first`, to begin with): what chroot said, what is in / afterwards."""
    if first:
        os.chroot(first)
        os.chdir("/")
    os.makedirs("/tmp/deeper", exist_ok=True)
    above = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    said = outcome(os.chroot, "/tmp/deeper")
    os.fchdir(above)
    for _ in range(64):
        os.chdir("..")
    outcome(os.chroot, ".")
    return {"chroot": said, "root": sorted(os.listdir("."))}


def open_each(paths, flags=os.O_RDONLY):
    return {path: opened(path, flags) for path in paths}


# -- 5, 34: sockets that others could share ----------------------------------------------------------------------------


def listen(name):
    """Listen on a unix socket for as long as this process lives ("@name" is an abstract one)."""
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0" + name[1:] if name.startswith("@") else name)
    server.listen()
    globals().setdefault("kept", []).append(server)
    return "ok"


def connect(name):
    with socket.socket(socket.AF_UNIX) as client:
        return outcome(client.connect, "\0" + name[1:] if name.startswith("@") else name)


def connect_tcp(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(2)
        try:
            return outcome(client.connect, (address, port))
        except TimeoutError:
            return "ETIMEDOUT"


def send_directory():
    """Pass a directory on every socket that we have, as a handler that means to reach its host would."""
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    sockets = [int(fd) for fd, kind in fds().items() if kind == "socket"]
    for fd in sockets:
        channel = socket.socket(fileno=os.dup(fd))
        for _ in range(20):
            # One byte has to go with it, and condemns us: what matters is what becomes of the descriptors.
            socket.send_fds(channel, [b"x"], [directory, directory])
        channel.close()
    return len(sockets)


# -- 8, 9: writing what is shared --------------------------------------------------------------------------------------


def overwrite(paths):
    return {path: opened(path, os.O_WRONLY) for path in paths}


def map_files():
    """Open for writing what is mapped here."""
    found = os.listdir("/proc/self/map_files")
    return sorted({opened(f"/proc/self/map_files/{name}", os.O_WRONLY) for name in found})


def touch_each(directories):
    return {path: touch(f"{path}/olsock-was-here") for path in directories}


def remount(points, flags=MS_BIND):
    """Make each mount writable, by both calls there are: the outcomes, and whether a file can be made there then."""
    found = {}
    for point in points:
        attributes = struct.pack("QQQQ", 0, MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0)
        found[point] = [
            mount(None, point, None, MS_REMOUNT | flags),
            call(SYS["mount_setattr"], AT_FDCWD, point.encode(), 0, attributes, len(attributes)),
            touch(f"{point}/olsock-was-here"),
        ]
    return found


# -- 16, 18: setuid, devices -------------------------------------------------------------------------------------------


def execute(*argv):
    """Run a program and return what it prints."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip()


def mknod(path, kind, major, minor):
    mode = {"b": stat.S_IFBLK, "c": stat.S_IFCHR}[kind] | 0o666
    return outcome(os.mknod, path, mode, os.makedev(major, minor))


def devices():
    """Every device node that can be reached, as numbers; /usr is the host's, and a look at it takes a second."""
    found = {}
    for directory, names, files in os.walk("/"):
        if directory == "/":
            names[:] = [name for name in names if name not in ("proc", "usr")]
        for name in files:
            st = os.lstat(os.path.join(directory, name))
            if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
                found[os.path.join(directory, name)] = f"{os.major(st.st_rdev)}:{os.minor(st.st_rdev)}"
    return found


# -- 21, 22: handles and namespaces ------------------------------------------------------------------------------------


def open_by_handle(path):
    """What name_to_handle_at and open_by_handle_at say (with a handle that only the second would look at)."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    name = call(SYS_NAME_TO_HANDLE_AT, AT_FDCWD, path.encode(), handle, ctypes.byref(mount_id), 0)
    if name != "ok":
        handle = ctypes.create_string_buffer(struct.pack("IiQ", 8, 1, 2) + bytes(120))  # the root directory's, on ext4
    directory = os.open(path, os.O_RDONLY)
    try:
        return [name, call(SYS_OPEN_BY_HANDLE_AT, directory, handle, os.O_RDONLY)]
    finally:
        os.close(directory)


def unshare_each():
    """unshare(2) of each kind, each in a child of its own."""
    return {name: in_child(lambda flag=flag: call(SYS["unshare"], flag)) for name, flag in CLONE_FLAGS.items()}


def clone_each():
    """clone(2) and clone3(2) of each kind."""
    found = {}
    for name, flag in CLONE_FLAGS.items():
        found[name] = [in_child(clone, SYS["clone"], flag), in_child(clone3, flag)]
    return found


def clone(number, flag):
    return _cloned(libc.syscall(ctypes.c_long(number), ctypes.c_ulong(flag | signal.SIGCHLD), None, None, None, None))


def clone3(flag):
    args = struct.pack("8Q", flag, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    return _cloned(libc.syscall(ctypes.c_long(SYS["clone3"]), args, ctypes.c_size_t(len(args))))


def _cloned(pid):
    if pid == 0:
        os._exit(0)
    return "ok" if pid > 0 else errno.errorcode[ctypes.get_errno()]


def in_child(action, *args):
    """What `action` returns in a fork of this process."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(into, str(action(*args)).encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out) as file:
        said = file.read()
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
    return said


def setns(path):
    """Enter each namespace of a process again: its own would succeed with the right to."""
    found = {}
    for name in ("mnt", "net", "pid", "uts", "ipc", "cgroup"):
        try:
            fd = os.open(f"{path}/{name}", os.O_RDONLY)
        except OSError as e:
            found[name] = errno.errorcode[e.errno]
            continue
        found[name] = in_child(call, SYS["setns"], fd, 0)
        os.close(fd)
    return found


def threads_and_children_work():
    """What must still work: a thread, a child, a pipe between them."""
    made = []
    thread = threading.Thread(target=lambda: made.append(threading.get_native_id()))
    thread.start()
    thread.join()
    child = subprocess.run([sys.executable, "-S", "-c", "print(6*7)"], capture_output=True, check=True)
    return [len(made), child.stdout.decode().strip()]


# -- 24: control groups ------------------------------------------------------------------------------------------------


def cgroup_files():
    """Every file below /sys/fs/cgroup that can be opened for writing, and where we are."""
    found = [
        os.path.join(directory, name)
        for directory, _, names in os.walk("/sys/fs/cgroup")
        for name in names
        if opened(os.path.join(directory, name), os.O_WRONLY) == "ok"
    ]
    return {"writable": found, "self": read("/proc/self/cgroup")}


# -- 32, 33: other processes -------------------------------------------------------------------------------------------


def kill_each(numbers):
    """What signalling each of these processes says."""
    return {str(pid): outcome(os.kill, pid, signal.SIGUSR2) for pid in numbers}


def kill_range(first, last):
    """Which of these numbers are processes other than this one that a signal finds, and what it said."""
    said = kill_each(number for number in range(first, last) if number != os.getpid())
    return {pid: outcome for pid, outcome in said.items() if outcome != "ESRCH"}


def kill_everybody():
    return outcome(os.kill, -1, signal.SIGKILL)


def spy(pid):
    """Open what /proc has of another process, and attach to it."""
    said = {name: opened(f"/proc/{pid}/{name}") for name in ("mem", "environ", "maps", "fd", "root")}
    said["ptrace"] = "ok" if libc.ptrace(16, pid, None, None) == 0 else errno.errorcode[ctypes.get_errno()]
    if said["ptrace"] == "ok":
        os.waitpid(pid, 0)
        libc.ptrace(17, pid, None, None)
    return said


# -- 38: state that two could share ------------------------------------------------------------------------------------


def leave(text):
    """Leave a mark in every place that somebody later could read."""
    marks = {}
    for path in ("/tmp/mark", "/dev/shm/mark"):
        with open(path, "w") as file:
            file.write(text)
        marks[path] = text
    marks["sysv"] = libc.shmget(0x6F6C, 4096, 0o1666) >= 0
    return marks


def find():
    """Look for the marks."""
    return {
        "/tmp/mark": read("/tmp/mark"),
        "/dev/shm/mark": read("/dev/shm/mark"),
        "sysv": libc.shmget(0x6F6C, 4096, 0o666) >= 0,
    }


# -- 43: secrets -------------------------------------------------------------------------------------------------------


def search_memory(parts):
    """Whether a text, given in two parts so that this very event does not count, is anywhere in our memory."""
    needle = bytearray(parts[0].encode())
    needle += parts[1].encode()
    own = ctypes.addressof(ctypes.c_char.from_buffer(needle))
    with open("/proc/self/maps") as file:
        regions = [line.split()[0].split("-") for line in file if line.split()[1].startswith("rw")]
    found = 0
    for start, end in ((int(a, 16), int(b, 16)) for a, b in regions):
        content = ctypes.string_at(start, end - start)
        at = content.find(needle)
        while at >= 0:
            found += start + at != own
            at = content.find(needle, at + 1)
        del content
    return found


# -- 61, 62: too much --------------------------------------------------------------------------------------------------


def forks(kind, most):
    """Make `most` children or threads that stay, and say how many there were and what stopped it."""
    out, into = os.pipe()
    made, why = 0, "enough"
    while made < most:
        try:
            if kind == "fork":
                if os.fork() == 0:
                    os.close(into)
                    os.read(out, 1)
                    os._exit(0)
            elif kind == "spawn":  # vfork underneath
                os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
            else:
                threading.Thread(target=os.read, args=(out, 1), daemon=True).start()
        except OSError as e:
            why = errno.errorcode[e.errno]
            break
        except RuntimeError:  # how threading says EAGAIN
            why = "EAGAIN"
            break
        made += 1
    return [made, why]


def bomb():
    """Fork without end, children and all."""
    while True:
        try:
            os.fork()
        except OSError:
            pass


def swallow(kind, mib):
    """Take memory in one of several ways until it is enough."""
    size = mib << 20
    if kind == "bytes":
        kept = bytearray()
        while len(kept) < size:
            kept += b"x" * (1 << 20)
    elif kind == "mmap":
        kept = mmap.mmap(-1, size)
        for at in range(0, size, 4096):
            kept[at] = 1
    elif kind == "children":
        for _ in range(4):
            if os.fork() == 0:
                bytes(bytearray(b"x") * (size // 2))
                signal.pause()
        swallow("bytes", mib)
    elif kind in ("/tmp", "/dev/shm"):
        with open(f"{kind}/swallow", "wb") as file:
            for _ in range(mib):
                file.write(b"x" * (1 << 20))
    elif kind == "memfd":
        fd = os.memfd_create("swallow")
        for _ in range(mib):
            os.write(fd, b"x" * (1 << 20))
    return "ok"


def swallow_outcome(kind, mib):
    """`swallow` for a kind that ends in an error rather than death."""
    return outcome(swallow, kind, mib)


def open_many(most):
    """Open files until it is enough; how many there were and what stopped it."""
    kept, why = [], "enough"
    while len(kept) < most:
        try:
            kept.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as e:
            why = errno.errorcode[e.errno]
            break
    for fd in kept:
        os.close(fd)
    return [len(kept), why]


def make_files(directory, most):
    """Make empty files until it is enough; how many there were and what stopped it."""
    for made in range(most):
        try:
            os.close(os.open(f"{directory}/{made}", os.O_CREAT | os.O_WRONLY))
        except OSError as e:
            return [made, errno.errorcode[e.errno]]
    return [most, "enough"]


# -- 70: not coming back -----------------------------------------------------------------------------------------------


def hang(kind):
    """Do not answer, in one of several ways."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind == "daemon" and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                signal.pause()
        os._exit(0)
    if kind == "stopped" and os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "print":
        while True:
            print("x" * 4096)
    while True:
        if kind != "busy":
            signal.pause()


def trace_child():
    """Leave a child of ours in a ptrace stop, and wait for ever."""
    pid = os.fork()
    if pid == 0:
        libc.ptrace(0, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
    signal.pause()


# -- 71: ending --------------------------------------------------------------------------------------------------------


def end(kind):
    """End this process, in one of the ways there are."""
    if kind.startswith("exit"):
        os._exit(int(kind[4:]))
    elif kind == "sys.exit":
        sys.exit(3)
    elif kind == "segv":
        ctypes.string_at(0)
    elif kind == "abort":
        os.abort()
    elif kind == "illegal":
        code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\x0f\x0b" if os.uname().machine == "x86_64" else bytes(4))
        ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    elif kind == "recursion":
        sys.setrecursionlimit(1 << 30)
        eval("(lambda f: f(f))(lambda f: [f(f) for _ in (1,)])")
    elif kind == "stack":
        libc.qsort.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
        compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        values = (ctypes.c_int * 2)(2, 1)

        def again(a, b):
            libc.qsort(values, 2, 4, keep)
            return 0

        keep = compare(again)
        sys.setrecursionlimit(1 << 30)
        again(None, None)
    else:
        os.kill(os.getpid(), int(kind))


# -- 92: frames --------------------------------------------------------------------------------------------------------


def forge(frames):
    """Write bytes (given as hex) to the channel by ourselves, then answer as if nothing had been."""
    (fd,) = [int(fd) for fd, kind in fds().items() if kind == "socket"]
    os.write(fd, bytes.fromhex(frames))
    return "answered"


def forge_later(frames):
    """The same from a thread, once the answer is out."""
    reply_sent = threading.Timer(0.02, forge, [frames])
    reply_sent.daemon = True
    reply_sent.start()
    return "answered"


def channel():
    (fd,) = [int(fd) for fd, kind in fds().items() if kind == "socket"]
    return fd


def long_reply(size):
    return "x" * size


def request_id():
    """The id of the request that is being answered, from the runtime's frames on the stack."""
    frame = sys._getframe()
    while "request" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["request"]


def answer_raw(body):
    """Answer this very request by ourselves, with anything."""
    meta = b'{"status":200,"content_type":"application/json"}'
    payload = struct.pack("<I", len(meta)) + meta + body.encode()
    os.write(channel(), struct.pack("<BBHIQ", 5, 0, 0, len(payload), request_id()) + payload)
    signal.pause()


def close_channel():
    os.close(channel())
    signal.pause()


def trickle():
    """Send an answer that never ends, byte by byte."""
    os.write(channel(), struct.pack("<BBHIQ", 5, 0, 0, 1 << 20, request_id()))
    while True:
        os.write(channel(), b"x")
        select.poll().poll(1)


# -- thread ids --------------------------------------------------------------------------------------------------------


def recursive_mutex():
    """Lock a recursive mutex here and try it in a new thread: "EBUSY" unless the two have one thread id."""
    attribute, mutex = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    libc.pthread_mutexattr_init(attribute)
    libc.pthread_mutexattr_settype(attribute, 1)  # PTHREAD_MUTEX_RECURSIVE
    libc.pthread_mutex_init(mutex, attribute)
    libc.pthread_mutex_lock(mutex)
    said = []
    thread = threading.Thread(target=lambda: said.append(libc.pthread_mutex_trylock(mutex)))
    thread.start()
    thread.join()
    return errno.errorcode.get(said[0], "owned")


def lock_file(path):
    """Take a file's lock and keep it; the outcome."""
    fd = os.open(path, os.O_RDONLY)
    globals().setdefault("kept", []).append(fd)
    return outcome(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def hostile(name):
    """What hostile.py found while a zygote imported it."""
    return sys.modules["hostile"].RESULTS[name]


def nested(name):
    """What nested.py found or kept."""
    return sys.modules["nested"].RESULTS.get(name)


def keyring():
    """Ask for the session's keyring, which is inherited: who can name it can read it."""
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
    return call(number, 0, -3, 0)  # keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0)


def f(event):
    """The handler."""
    return globals()[event["probe"]](*event.get("args", ()))


if __name__ == "__main__":
    print(json.dumps(f(json.load(sys.stdin))))
