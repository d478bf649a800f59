/* Processes by pidfd, namespaces by fd. */
#define _GNU_SOURCE
#include "olsock.h"

#include "syscalls.h"

#include <fcntl.h>
#include <stdio.h>

int ols_pidfd_open(int pid, struct ols_err *reterr)
{
    int fd = sys_pidfd_open(pid, 0);
    return fd < 0 ? ols_fail(reterr, fd, "pidfd_open", "") : fd;
}

int ols_ns_fd(int proc_fd, int pid, const char *kind, struct ols_err *reterr)
{
    char path[64];
    (void) snprintf(path, sizeof path, "%d/ns/%s", pid, kind);
    int fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? ols_fail(reterr, errno, "open", path) : fd;
}
