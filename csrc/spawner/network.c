/* Network namespaces as seen from inside a sandbox. Child-side. */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

int network_loopback_up(struct ols_err *reterr)
{
    struct ifreq lo = {.ifr_flags = IFF_UP | IFF_RUNNING};
    cleanup_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return ols_fail(reterr, errno, "socket", "lo");
    memcpy(lo.ifr_name, "lo", sizeof "lo");
    if (ioctl(fd, SIOCSIFFLAGS, &lo) < 0)
        return ols_fail(reterr, errno, "ioctl(SIOCSIFFLAGS)", "lo");
    return 0;
}

/* A namespace for a handler that will be forked later. Only a process of the same user namespace may enter it, so it is
 * made by init, which steps in and out of it. */
int network_create(struct ols_err *reterr)
{
    cleanup_fd int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (own < 0)
        return ols_fail(reterr, errno, "open", "/proc/self/ns/net");
    if (unshare(CLONE_NEWNET) < 0)
        return ols_fail(reterr, errno, "unshare(network namespace)", "");
    int r = network_loopback_up(reterr);
    cleanup_fd int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        r = ols_fail(reterr, errno, "open", "/proc/self/ns/net");
    if (setns(own, CLONE_NEWNET) < 0)
        return ols_fail(reterr, errno, "setns(network namespace)", "");
    return r < 0 ? r : steal_fd(&fd);
}
