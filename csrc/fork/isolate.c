/*
 * A handler's sandbox, from inside: the twin of olsock/zygote.py, which packs the request.
 *
 *   fds: channel, log, cgroup [, network namespace], tasks..., trees...
 *   u32 flags, u32 tasks, u32 uid, u32 gid, u32 n + targets of trees, u32 n + masks, u32 n + rlimits, blob filter
 *
 * No pivot_root: the zygote's root, copied by CLONE_NEWNS, already is the handler's; what is the handler's own is mounted
 * over it. Nothing below a mount can be reached again without capabilities.
 */
#define _GNU_SOURCE
#include "isolate.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"
#include "../core/thread_id.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

enum request_flags { NETWORK_GIVEN = 1, NETWORK_SHARED = 2 };

#define CHANNEL 3
#define FAULT_FRAME 7 /* olsock/runtime/wire.py */
#define CLEAR_OF_STDIO 64

static uint32_t flags;

pid_t isolate_clone(struct ols_packet *p, struct ols_err *reterr)
{
    int *tid = thread_id_address();

    flags = packet_u32(p);
    int channel = packet_fd(p), log = packet_fd(p), cgroup = packet_fd(p);
    (void) channel;
    (void) log;
    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "fork");
    if (!tid)
        return ols_fail(reterr, ENOSYS, "thread id",
                        "kernel without CONFIG_CHECKPOINT_RESTORE and an unknown C library");

    struct clone_args args = {
        /* CLONE_PARENT: the sandbox's init, not the zygote, is the one who reaps and knows the exit status. */
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_INTO_CGROUP |
                 CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID,
        .child_tid = (uint64_t) (uintptr_t) tid,
        .cgroup = (uint64_t) cgroup,
    };
    if (!(flags & (NETWORK_GIVEN | NETWORK_SHARED)))
        args.flags |= CLONE_NEWNET;
    long pid = sys_clone3(&args);
    return pid < 0 ? ols_fail(reterr, (int) pid, "clone3", "handler") : (pid_t) pid;
}

static int attach_trees(struct ols_packet *p, struct ols_err *reterr)
{
    uint32_t n = packet_u32(p);
    for (uint32_t i = 0; i < n; i++) {
        const char *target = packet_str(p);
        int tree = packet_fd(p);
        if (p->bad)
            return ols_fail(reterr, EINVAL, "message", "trees");
        int r = sys_move_mount(tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH);
        if (r < 0)
            return ols_fail(reterr, r, "move_mount", target);
    }
    return 0;
}

static int mask(const char *target, struct ols_err *reterr)
{
    struct stat st;
    cleanup_fd int tree = sys_open_tree(AT_FDCWD, "/dev/null", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0)
        return ols_fail(reterr, tree, "open_tree", "/dev/null");
    if (fstat(tree, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))
        return ols_fail(reterr, ENODEV, "mask(not the null device)", "/dev/null");
    int r = sys_move_mount(tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH);
    return r < 0 && r != -ENOENT ? ols_fail(reterr, r, "mask", target) : 0;
}

static int mount_proc(struct ols_packet *p, struct ols_err *reterr)
{
    /* Exactly these flags: the zygote's filter allows no other mount(2). */
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return ols_fail(reterr, errno, "mount(proc)", "/proc");
    uint32_t n = packet_u32(p);
    for (uint32_t i = 0; i < n; i++) {
        const char *target = packet_str(p);
        if (p->bad)
            return ols_fail(reterr, EINVAL, "message", "masks");
        int r = mask(target, reterr);
        if (r < 0)
            return r;
    }
    return 0;
}

/* fd 0 the null device, 1 and 2 the log, 3 the channel, nothing else. */
static int set_fds(int *ret_channel, int log, struct ols_err *reterr)
{
    cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return ols_fail(reterr, errno, "open", "/dev/null");
    int high_log = fcntl(log, F_DUPFD_CLOEXEC, CLEAR_OF_STDIO);
    int high_channel = fcntl(*ret_channel, F_DUPFD_CLOEXEC, CLEAR_OF_STDIO);
    if (high_log < 0 || high_channel < 0)
        return ols_fail(reterr, errno, "fcntl(F_DUPFD)", "channel");
    if (dup2(null, 0) < 0 || dup2(high_log, 1) < 0 || dup2(high_log, 2) < 0 ||
        dup3(high_channel, CHANNEL, O_CLOEXEC) < 0)
        return ols_fail(reterr, errno, "dup2", "stdio");
    *ret_channel = CHANNEL;
    null = -1; /* closed with the rest */
    int r = sys_close_range(CHANNEL + 1, ~0U);
    return r < 0 ? ols_fail(reterr, r, "close_range", "") : 0;
}

static int isolate(struct ols_packet *p, int *ret_channel, struct ols_err *reterr)
{
    int log = p->fds[1], netns = flags & NETWORK_GIVEN ? packet_fd(p) : -1;
    uint32_t n_tasks = packet_u32(p);
    uid_t uid = packet_u32(p);
    gid_t gid = packet_u32(p);
    if (p->bad || n_tasks > p->n_fds - p->next_fd)
        return ols_fail(reterr, EINVAL, "message", "fork");
    int r = join_cgroups(p->fds + p->next_fd, n_tasks, reterr);
    if (r < 0)
        return r;
    p->next_fd += n_tasks;
    if (netns >= 0 && setns(netns, CLONE_NEWNET) < 0)
        return ols_fail(reterr, errno, "setns(network namespace)", "");
    r = attach_trees(p, reterr);
    if (r < 0)
        return r;
    r = mount_proc(p, reterr);
    if (r < 0)
        return r;
    r = set_fds(ret_channel, log, reterr);
    if (r < 0)
        return r;
    /* Only now: with a small RLIMIT_NOFILE and many files open in the zygote, nothing above could open another. */
    r = privilege_set_rlimits(p, reterr);
    if (r < 0)
        return r;
    size_t size;
    const void *program = packet_blob(p, &size);
    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "filter");
    r = privilege_clear_groups(reterr); /* package code may have set some */
    if (r >= 0)
        r = privilege_become(uid, gid, reterr);
    if (r < 0)
        return r;
    r = privilege_set_capabilities(0, 0, reterr);
    if (r < 0)
        return r;
    if (chdir("/tmp") < 0)
        return ols_fail(reterr, errno, "chdir", "/tmp");
    if (prctl(PR_SET_DUMPABLE, 0) < 0)
        return ols_fail(reterr, errno, "prctl(PR_SET_DUMPABLE)", "");
    /* Last: it takes away the calls that the lines above were made of. */
    return privilege_load_filter(program, size, reterr);
}

/* Child-side. A child that could not be isolated says why on its channel and ends: it never runs a line of Python. */
void isolate_child(struct ols_packet *p)
{
    struct {
        uint8_t kind, flags;
        uint16_t zero;
        uint32_t length;
        uint64_t request;
        struct ols_err err;
    } fault = {.kind = FAULT_FRAME, .length = sizeof(struct ols_err)};
    int channel = p->fds[0];

    if (isolate(p, &channel, &fault.err) >= 0)
        return;
    (void) send(channel, &fault, sizeof fault, MSG_NOSIGNAL | MSG_DONTWAIT);
    _exit(1);
}
