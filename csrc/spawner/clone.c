/* A new sandbox: clone3 into its namespaces and cgroup, and the maps of its user namespace, written by the parent. */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <fcntl.h>
#include <stdio.h>

/* Namespaces that a request may ask for. The network's is made by the child itself: it is the slow one (about half a
 * millisecond), and there it runs while the library goes on with its part. */
#define ALLOWED (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET)

static int write_map(pid_t pid, const char *name, const struct id_map *maps, uint32_t n_maps, struct ols_err *reterr)
{
    char path[48], text[16 * 40];
    size_t size = 0;

    for (uint32_t i = 0; i < n_maps; i++)
        size += (size_t) snprintf(text + size, sizeof text - size, "%u %u %u\n", maps[i].inside, maps[i].host,
                                  maps[i].count);
    /* The spawner's own procfs: no sandbox can have put anything in its place. */
    (void) snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return ols_fail(reterr, errno, "open", path);
    if (write(fd, text, size) != (ssize_t) size)
        return ols_fail(reterr, errno, "write", path);
    return 0;
}

int sandbox_clone(uint64_t flags, int cgroup_fd, const struct id_map *maps, uint32_t n_maps, struct init_start *start,
                  int *ret_pidfd, struct ols_err *reterr)
{
    int pidfd = -1;
    struct clone_args args = {
        .flags = (flags & ~(uint64_t) CLONE_NEWNET) | CLONE_PIDFD,
        .pidfd = (uint64_t) (uintptr_t) &pidfd,
        .exit_signal = SIGCHLD,
    };

    start->new_netns = flags & CLONE_NEWNET;
    if (flags & ~(uint64_t) ALLOWED || !(flags & CLONE_NEWUSER) || !(flags & CLONE_NEWNS) || !(flags & CLONE_NEWPID))
        return ols_fail(reterr, EINVAL, "clone3", "namespaces");
    if (cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t) cgroup_fd;
    }
    long pid = sys_clone3(&args);
    if (pid == 0)
        init_main(start);
    if (pid < 0)
        return ols_fail(reterr, (int) pid, "clone3", cgroup_fd >= 0 ? "into the sandbox's cgroup" : "");

    int r = write_map((pid_t) pid, "uid_map", maps, n_maps, reterr);
    if (r >= 0)
        r = write_map((pid_t) pid, "gid_map", maps, n_maps, reterr);
    if (r < 0) {
        (void) sys_pidfd_send_signal(pidfd, SIGKILL);
        ols_close_fd(&pidfd);
        return r;
    }
    *ret_pidfd = pidfd;
    return (int) pid;
}
