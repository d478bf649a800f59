/* Processes by pidfd, namespaces by fd, and fd hygiene. */
#define _GNU_SOURCE
#include "olsock.h"

#include "cleanup.h"
#include "syscalls.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

int ols_pidfd_open(int pid, struct ols_err *reterr)
{
    int fd = sys_pidfd_open(pid, 0);
    return fd < 0 ? ols_fail(reterr, fd, "pidfd_open", "") : fd;
}

int ols_pidfd_signal(int pidfd, int signal, struct ols_err *reterr)
{
    int r = sys_pidfd_send_signal(pidfd, signal);
    return r < 0 ? ols_fail(reterr, r, "pidfd_send_signal", "") : 0;
}

int ols_close_range(unsigned int first, unsigned int last, struct ols_err *reterr)
{
    int r = sys_close_range(first, last);
    return r < 0 ? ols_fail(reterr, r, "close_range", "") : 0;
}

int ols_memfd(const char *name, const void *data, unsigned long size, struct ols_err *reterr)
{
    cleanup_fd int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return ols_fail(reterr, errno, "memfd_create", name);
    for (unsigned long done = 0; done < size;) {
        ssize_t n = write(fd, (const char *) data + done, size - done);
        if (n < 0)
            return ols_fail(reterr, errno, "write(memfd)", name);
        done += (unsigned long) n;
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        return ols_fail(reterr, errno, "fcntl(F_ADD_SEALS)", name);
    return steal_fd(&fd);
}

int ols_ns_fd(int proc_fd, int pid, const char *kind, struct ols_err *reterr)
{
    char path[64];
    (void) snprintf(path, sizeof path, "%d/ns/%s", pid, kind);
    int fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? ols_fail(reterr, errno, "open", path) : fd;
}
