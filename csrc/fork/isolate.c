/*
 * A handler's sandbox, from inside: the twin of olsock/forks.py, which packs the request.
 *
 *   fds: channel, log [, errors], cgroup [, network namespace], tasks..., trees...
 *   u32 flags, u32 tasks, u32 n + targets of trees, u32 n + masks
 *   and the function's own part, at once or, if it is to wait for that, later and by its channel:
 *   u32 n + targets of trees, u32 uid, u32 gid, u32 n + rlimits, blob filter
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
#include <unistd.h>

static uint32_t flags;
static struct streams streams;
static int *tid_address;

/* Found once: a child has it at the same place, but there the kernel no longer knows of the robust list. */
int *thread_id(void)
{
    if (!tid_address)
        tid_address = thread_id_address();
    return tid_address;
}

pid_t isolate_clone(struct ols_packet *p, struct ols_err *reterr)
{
    int *tid = thread_id();

    flags = packet_u32(p);
    streams.channel = packet_fd(p);
    streams.log = packet_fd(p);
    streams.errors = flags & SEPARATE_ERRORS ? packet_fd(p) : streams.log;
    int cgroup = packet_fd(p);
    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "fork");
    if (!tid)
        return ols_fail(reterr, ENOSYS, "thread id",
                        "kernel without CONFIG_CHECKPOINT_RESTORE and an unknown C library");

    struct clone_args args = {
        /* CLONE_PARENT: the sandbox's init, not the zygote, is the one who reaps and knows the exit status. */
        .flags = CLONE_INTO_CGROUP | CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID,
        .child_tid = (uint64_t) (uintptr_t) tid,
        .cgroup = (uint64_t) cgroup,
    };
    if (!(flags & NEST)) {
        args.flags |= CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
        if (!(flags & (NETWORK_GIVEN | NETWORK_SHARED)))
            args.flags |= CLONE_NEWNET;
    }
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

/* What is the same for every function. */
static int isolate(struct ols_packet *p, struct ols_err *reterr)
{
    int netns = flags & NETWORK_GIVEN ? packet_fd(p) : -1;
    uint32_t n_tasks = packet_u32(p);
    if (p->bad || n_tasks > p->n_fds - p->next_fd)
        return ols_fail(reterr, EINVAL, "message", "fork");
    int r = join_cgroups(p->fds + p->next_fd, n_tasks, reterr);
    if (r < 0)
        return r;
    p->next_fd += n_tasks;
    if (netns >= 0 && setns(netns, CLONE_NEWNET) < 0)
        return ols_fail(reterr, errno, "setns(network namespace)", "");
    r = attach_trees(p, reterr);
    return r < 0 ? r : mount_proc(p, reterr);
}

/* What is the function's own, and the end of all privilege. */
static int become(struct ols_packet *p, struct ols_err *reterr)
{
    uid_t uid = packet_u32(p);
    gid_t gid = packet_u32(p);
    int r = privilege_set_rlimits(p, reterr);
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

static int make(struct ols_packet *p, int *ret_channel, struct ols_err *reterr)
{
    if (flags & NEST)
        return nest(p, &streams, ret_channel, reterr);
    int r = isolate(p, reterr);
    if (r >= 0 && !(flags & WAITING))
        r = attach_trees(p, reterr);
    /* Before the limits: with few open files allowed and many open in the zygote, nothing could open another. */
    if (r >= 0)
        r = streams_set(&streams, ret_channel, reterr);
    if (r >= 0 && !(flags & WAITING))
        r = become(p, reterr);
    return r;
}

enum child isolate_child(struct ols_packet *p)
{
    struct ols_err err = {0};
    int channel = streams.channel;

    if (make(p, &channel, &err) < 0)
        report_fault(channel, &err);
    return flags & NEST ? ZYGOTE : flags & WAITING ? HALF_MADE : FINISHED;
}

/* The function's part, with its fds on the first byte: u32 size, then that many bytes. */
static int receive_part(int channel, char *buffer, size_t capacity, struct ols_packet *ret_packet,
                        struct ols_err *reterr)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * OLS_MAX_FDS)];
    } control;
    uint32_t size = 0;
    struct iovec iov = {.iov_base = &size, .iov_len = sizeof size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n;

    do
        n = recvmsg(channel, &msg, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    while (n < 0 && errno == EINTR);
    if (n == 0)
        _exit(0); /* nobody needs it any more */
    if (n != sizeof size || size > capacity)
        return ols_fail(reterr, EPROTO, "message", "function");
    *ret_packet = (struct ols_packet) {.at = buffer, .end = buffer + size};
    packet_take_fds(ret_packet, &msg);
    for (size_t got = 0; got < size; got += (size_t) n) {
        do
            n = read(channel, buffer + got, size - got);
        while (n < 0 && errno == EINTR);
        if (n <= 0)
            _exit(0);
    }
    return 0;
}

void isolate_finish(int channel)
{
    static char buffer[OLS_MAX_PACKET];
    struct ols_packet packet;
    struct ols_err err = {0};

    int r = receive_part(channel, buffer, sizeof buffer, &packet, &err);
    if (r >= 0)
        r = attach_trees(&packet, &err);
    if (r >= 0) {
        packet_done(&packet);
        r = become(&packet, &err);
    }
    if (r < 0)
        report_fault(channel, &err);
}
