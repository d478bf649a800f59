/*
 * Which features this kernel has and lets us use, found by using them: a version number says nothing of backports,
 * configuration, security modules or a container's filter. A probe leaves nothing behind: what it mounts is detached and
 * ends with its fd, and what it would change about the process it changes in a child.
 */
#define _GNU_SOURCE
#include "olsock.h"

#include "cleanup.h"
#include "syscalls.h"
#include "thread_id.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#endif

/*
 * Run `check` in a child made with `flags`, and return what it returns. No exit signal: a caller's SIGCHLD handler and
 * wait(-1) never see this child. Not CLONE_VM: other threads may hold locks, so `check` makes system calls only.
 */
static int in_child(uint64_t flags, int (*check)(void))
{
    int pidfd = -1;
    struct clone_args args = {.flags = flags | CLONE_PIDFD, .pidfd = (uint64_t) (uintptr_t) &pidfd};
    long pid = sys_clone3(&args);

    if (pid < 0)
        return (int) pid;
    if (pid == 0)
        _exit(-check());
    siginfo_t info = {0};
    int r;
    do
        r = waitid(P_PIDFD, (id_t) pidfd, &info, WEXITED | __WALL);
    while (r < 0 && errno == EINTR);
    int failure = errno;
    (void) close(pidfd);
    if (r < 0)
        return -failure;
    return info.si_code == CLD_EXITED ? -info.si_status : -ECHILD;
}

/* child-side */
static int nothing(void)
{
    return 0;
}

/* A new, detached tmpfs: needs fsopen, fsconfig and fsmount. */
static int detached_tmpfs(void)
{
    cleanup_fd int fs = sys_fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0)
        return fs;
    int r = sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    return r < 0 ? r : sys_fsmount(fs, FSMOUNT_CLOEXEC, 0);
}

static int probe_clone3(void)
{
    return in_child(0, nothing);
}

/* The fd is looked at before anything is made: EBADF means that the flag is known. */
static int probe_clone_into_cgroup(void)
{
    struct clone_args args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = 0x7fffffff};
    long r = sys_clone3(&args);
    if (r == 0)
        _exit(0); /* not reached: a kernel that takes this fd for a cgroup is no kernel */
    return r == -EBADF ? 0 : (int) r;
}

static int probe_pidfd(void)
{
    cleanup_fd int fd = sys_pidfd_open(getpid(), 0);
    return fd < 0 ? fd : 0;
}

static int probe_openat2(void)
{
    cleanup_fd int fd = sys_openat2(AT_FDCWD, "/", O_PATH | O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    return fd < 0 ? fd : 0;
}

static int probe_fsmount(void)
{
    cleanup_fd int fd = detached_tmpfs();
    return fd < 0 ? fd : 0;
}

static int probe_open_tree(void)
{
    cleanup_fd int fd = sys_open_tree(AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    return fd < 0 ? fd : 0;
}

static int probe_mount_setattr(void)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    cleanup_fd int fd = detached_tmpfs();
    return fd < 0 ? fd : sys_mount_setattr(fd, "", AT_EMPTY_PATH, &attr);
}

/* child-side, in a mount namespace of its own */
static int attach_somewhere(void)
{
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return -errno;
    int fd = detached_tmpfs();
    return fd < 0 ? fd : sys_move_mount(fd, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH);
}

static int probe_move_mount(void)
{
    return in_child(CLONE_NEWNS, attach_somewhere);
}

static int probe_attach_detached(void)
{
    cleanup_fd int below = detached_tmpfs(), above = detached_tmpfs();
    if (below < 0 || above < 0)
        return below < 0 ? below : above;
    return sys_move_mount(above, "", below, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

/* Two lower layers and no upper one: what attaches a directory as a root that nobody can remount writable. */
static int probe_overlay(void)
{
    cleanup_fd int fs = sys_fsopen("overlay", FSOPEN_CLOEXEC);
    if (fs < 0)
        return fs;
    int r = sys_fsconfig(fs, FSCONFIG_SET_STRING, "lowerdir", "/etc:/usr", 0);
    if (r < 0 || (r = sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0)) < 0)
        return r;
    cleanup_fd int fd = sys_fsmount(fs, FSMOUNT_CLOEXEC, 0);
    return fd < 0 ? fd : 0;
}

/* child-side: a namespace may be made and still be worthless, if a security module takes its capabilities away */
static int use_capabilities(void)
{
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ? -errno : 0;
}

static int probe_userns(void)
{
    return in_child(CLONE_NEWUSER | CLONE_NEWNS, use_capabilities);
}

static int probe_namespaces(void)
{
    return in_child(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP, nothing);
}

static int probe_netns(void)
{
    return in_child(CLONE_NEWNET, nothing);
}

static int probe_timens(void)
{
    return in_child(CLONE_NEWTIME, nothing);
}

/* child-side: refused where something is mounted over a part of the /proc that is visible here */
static int mount_proc(void)
{
    return mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0 ? -errno : 0;
}

static int probe_proc(void)
{
    return in_child(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID, mount_proc);
}

/* Open the user namespace of a child whose root is ours. The namespace lives as long as the fd. */
static int mapped_userns(void)
{
    int gate[2], r;
    if (pipe2(gate, O_CLOEXEC) < 0)
        return -errno;
    cleanup_fd int reading = gate[0], writing = gate[1], pidfd = -1, ns = -1;
    struct clone_args args = {.flags = CLONE_NEWUSER | CLONE_PIDFD, .pidfd = (uint64_t) (uintptr_t) &pidfd};
    long pid = sys_clone3(&args);
    if (pid < 0)
        return (int) pid;
    if (pid == 0) {
        char byte;
        (void) close(writing);
        _exit(read(reading, &byte, 1) != 0); /* until the parent is done with us, or gone */
    }

    static const char *const maps[] = {"uid_map", "gid_map"};
    char path[64];
    for (int i = r = 0; i < 2 && !r; i++) {
        (void) snprintf(path, sizeof path, "/proc/%ld/%s", pid, maps[i]);
        cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, "0 0 1", 5) < 0)
            r = -errno;
    }
    (void) snprintf(path, sizeof path, "/proc/%ld/ns/user", pid);
    if (!r && (ns = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        r = -errno;
    (void) close(steal_fd(&writing));
    siginfo_t info;
    while (waitid(P_PIDFD, (id_t) pidfd, &info, WEXITED | __WALL) < 0 && errno == EINTR)
        ;
    return r < 0 ? r : steal_fd(&ns);
}

static int probe_idmap(void)
{
    cleanup_fd int ns = mapped_userns();
    if (ns < 0)
        return ns;
    cleanup_fd int tree = sys_open_tree(AT_FDCWD, "/usr", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0)
        return tree;
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t) ns};
    return sys_mount_setattr(tree, "", AT_EMPTY_PATH, &attr);
}

/* child-side */
static int load_filter(void)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = 1, .filter = &allow};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return (int) sys_result(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static int probe_seccomp(void)
{
    return in_child(0, load_filter);
}

static int probe_tid_address(void)
{
    /* Asked of the main thread, as a zygote would: in another one the id is not the process's. */
    return syscall(SYS_gettid) != getpid() || thread_id_address() ? 0 : -ENOSYS;
}

static int probe_close_range(void)
{
    return sys_close_range(~0U, ~0U);
}

static int probe_memfd(void)
{
    cleanup_fd int fd = memfd_create("olsock-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd < 0 ? -errno : 0;
}

/* The version of its interface, which is at least 1. */
static int probe_landlock(void)
{
    return (int) sys_result(syscall(SYS_landlock_create_ruleset, NULL, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */));
}

static const struct {
    const char *name;
    int (*run)(void);
} probes[] = {
    {"clone3", probe_clone3},
    {"clone_into_cgroup", probe_clone_into_cgroup},
    {"pidfd", probe_pidfd},
    {"openat2", probe_openat2},
    {"fsmount", probe_fsmount},
    {"open_tree", probe_open_tree},
    {"move_mount", probe_move_mount},
    {"mount_setattr", probe_mount_setattr},
    {"attach_detached", probe_attach_detached},
    {"idmap", probe_idmap},
    {"overlay", probe_overlay},
    {"userns", probe_userns},
    {"namespaces", probe_namespaces},
    {"netns", probe_netns},
    {"timens", probe_timens},
    {"proc", probe_proc},
    {"seccomp", probe_seccomp},
    {"tid_address", probe_tid_address},
    {"close_range", probe_close_range},
    {"memfd", probe_memfd},
    {"landlock", probe_landlock},
};

/* Try one feature: 0 or a number that says more where it works, a negative errno where it does not. */
int ols_probe(const char *feature, struct ols_err *reterr)
{
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++)
        if (!strcmp(feature, probes[i].name)) {
            int r = probes[i].run();
            return r < 0 ? ols_fail(reterr, r, "probe", feature) : r;
        }
    return ols_fail(reterr, ENOENT, "probe", feature);
}
