/* A new sandbox: clone3 into its namespaces and cgroup, and the maps of its user namespace, written by the parent. */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>

/* Namespaces that a request may ask for. The network's is made by the child itself: it is the slow one (about half a
 * millisecond), and there it runs while the library goes on with its part. */
#define ALLOWED (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET)

static int write_map(pid_t pid, const char *name, const struct clone_request *request, struct ols_err *reterr)
{
    char path[48], text[16 * 40];
    size_t size = 0;

    for (uint32_t i = 0; i < request->n_maps; i++)
        size += (size_t) snprintf(text + size, sizeof text - size, "%u %u %u\n", request->maps[i].inside,
                                  request->maps[i].host, request->maps[i].count);
    (void) snprintf(path, sizeof path, "%d/%s", pid, name);
    cleanup_fd int fd = openat(base_proc(), path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return ols_fail(reterr, errno, "open", path);
    if (write(fd, text, size) != (ssize_t) size)
        return ols_fail(reterr, errno, "write", path);
    return 0;
}

static int clone_init(const struct clone_request *request, struct init_start *start, int *ret_pidfd,
                      struct ols_err *reterr)
{
    int pidfd = -1;
    struct clone_args args = {
        .flags = (request->flags & ~(uint64_t) CLONE_NEWNET) | CLONE_PIDFD,
        .pidfd = (uint64_t) (uintptr_t) &pidfd,
        .exit_signal = SIGCHLD,
    };

    if (request->cgroup >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t) request->cgroup;
    }
    if (request->inside) { /* the process that calls is about to end */
        args.flags |= CLONE_PARENT;
        args.exit_signal = 0;
    }
    long pid = sys_clone3(&args);
    if (pid == 0)
        init_main(start);
    if (pid < 0)
        return ols_fail(reterr, (int) pid, "clone3", request->cgroup >= 0 ? "into the sandbox's cgroup" : "");

    int r = write_map((pid_t) pid, "uid_map", request, reterr);
    if (r >= 0)
        r = write_map((pid_t) pid, "gid_map", request, reterr);
    if (r < 0) {
        (void) sys_pidfd_send_signal(pidfd, SIGKILL);
        ols_close_fd(&pidfd);
        return r;
    }
    *ret_pidfd = pidfd;
    return (int) pid;
}

struct nested {
    const struct clone_request *request;
    struct init_start *start;
    struct ols_err *err;
    int pidfd, result;
};

/*
 * Whoever may write the maps of a nested user namespace must be in the one above it, and root there; so this process enters
 * that, and the other namespaces of the init in question, makes the new init, and ends. To the kernel it is the host's root
 * still: the new namespace's owner is nobody in the one above, and an init that cannot be dumped has files in /proc that only
 * the host's root may write. It resolves no path but in the spawner's own procfs.
 */
static int clone_inside(void *arg)
{
    static const int types[] = {CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNS};
    struct nested *nested = arg;

    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (setns(nested->request->inside[i], types[i]) < 0) {
            nested->result = ols_fail(nested->err, errno, "setns", "namespaces of the zygote above");
            _exit(1);
        }
    nested->result = clone_init(nested->request, nested->start, &nested->pidfd, nested->err);
    _exit(0);
}

int sandbox_clone(const struct clone_request *request, struct init_start *start, int *ret_pidfd, struct ols_err *reterr)
{
    static char stack[64 * 1024] __attribute__((aligned(16)));
    uint64_t flags = request->flags;

    start->new_netns = flags & CLONE_NEWNET;
    if (flags & ~(uint64_t) ALLOWED || !(flags & CLONE_NEWUSER) || !(flags & CLONE_NEWNS) || !(flags & CLONE_NEWPID))
        return ols_fail(reterr, EINVAL, "clone3", "namespaces");
    if (!request->inside)
        return clone_init(request, start, ret_pidfd, reterr);

    /* In our memory and with our table of files, as vfork(2); we sleep until it has ended. */
    struct nested nested = {.request = request, .start = start, .err = reterr, .pidfd = -1, .result = -EIO};
    int pid = clone(clone_inside, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, &nested);
    if (pid < 0)
        return ols_fail(reterr, errno, "clone", "beside the zygote above");
    if (nested.result >= 0)
        *ret_pidfd = nested.pidfd;
    return nested.result;
}
