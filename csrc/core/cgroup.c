/*
 * Control groups: the few operations that wait, or that are on the path of every start. Where directories lie, which
 * limits go into which file and what to do on failure is decided in Python (olsock/cgroups.py).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "olsock.h"

#define SPIN_US 200
#define RECHECK_MS 1

/* The value of `key` ("frozen " or "populated ") in cgroup.events: 0 or 1, or -errno. */
static int read_event(int events_fd, const char *key)
{
    char text[128];
    ssize_t n;

    do
        n = pread(events_fd, text, sizeof text - 1, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    text[n] = '\0';

    const char *at = strstr(text, key);
    if (!at)
        return -ENOMSG;
    return at[strlen(key)] == '1';
}

static long long now_us(void)
{
    struct timespec t;
    (void) clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/*
 * Wait until `key` of cgroup.events is `wanted`.
 *
 * The kernel tells pollers of a change at most once in 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV in kernel/cgroup/cgroup-internal.h):
 * a thaw soon after a freeze would look as if it took that long. What is waited for usually takes 5 to 50 us, so the file
 * is read for a moment first, the processor being offered to others in between, and every millisecond after that, should
 * no notice come. The kernel keeps "changed since the last read" in the open file: reading before polling loses no change,
 * but two waiters need an fd each.
 */
static int wait_event(int events_fd, const char *key, int wanted, int timeout_ms, struct ols_err *reterr)
{
    long long start = now_us(), deadline = start + (long long) timeout_ms * 1000;

    for (;;) {
        int value = read_event(events_fd, key);
        if (value < 0)
            return ols_fail(reterr, value, "read cgroup.events", key);
        if (value == wanted)
            return 0;

        long long now = now_us();
        if (now >= deadline)
            return ols_fail(reterr, ETIMEDOUT, "wait for cgroup.events", key);
        if (now - start < SPIN_US) {
            (void) sched_yield();
            continue;
        }
        struct pollfd changed = {.fd = events_fd, .events = POLLPRI};
        long long left_ms = (deadline - now + 999) / 1000;
        /* EINTR goes up: Python runs its signal handlers and calls again with what is left of the time. */
        if (poll(&changed, 1, left_ms < RECHECK_MS ? (int) left_ms : RECHECK_MS) < 0)
            return ols_fail(reterr, errno, "poll cgroup.events", key);
    }
}

/*
 * Freeze (or thaw) and wait until the kernel says that every process has stopped (or that one may run again): the write
 * alone only asks for it. A freeze that is not confirmed in time is taken back, so that a failure leaves nothing half frozen.
 */
int ols_cgroup_freeze(int freeze_fd, int events_fd, int frozen, int timeout_ms, struct ols_err *reterr)
{
    if (pwrite(freeze_fd, frozen ? "1" : "0", 1, 0) != 1)
        return ols_fail(reterr, errno, "write cgroup.freeze", frozen ? "1" : "0");

    int r = wait_event(events_fd, "frozen ", !!frozen, timeout_ms, reterr);
    if (r == -ETIMEDOUT && frozen && pwrite(freeze_fd, "0", 1, 0) != 1)
        return ols_fail(reterr, errno, "write cgroup.freeze", "0");
    return r;
}

int ols_cgroup_wait_empty(int events_fd, int timeout_ms, struct ols_err *reterr)
{
    return wait_event(events_fd, "populated ", 0, timeout_ms, reterr);
}

/*
 * Write one control file. One call for open, write and close: the interpreter lock is given up and taken back once, not three
 * times, which is what a start costs most when other threads are busy. The text must go in with a single write(2).
 */
int ols_cgroup_write(int dirfd, const char *path, const char *text, struct ols_err *reterr)
{
    cleanup_fd int fd = openat(dirfd, path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return ols_fail(reterr, errno, "open", path);

    ssize_t n;
    do
        n = write(fd, text, strlen(text));
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return ols_fail(reterr, errno, "write", path);
    return 0;
}

/* Read one control file whole; return its length without the NUL that is put behind it, -EMSGSIZE if it does not fit. */
int ols_cgroup_read(int dirfd, const char *path, char *ret_text, unsigned long size, struct ols_err *reterr)
{
    cleanup_fd int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return ols_fail(reterr, errno, "open", path);

    unsigned long length = 0;
    for (;;) {
        ssize_t n = read(fd, ret_text + length, size - length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ols_fail(reterr, errno, "read", path);
        length += (unsigned long) n;
        if (length == size)
            return ols_fail(reterr, EMSGSIZE, "read", path);
        if (n == 0)
            break;
    }
    ret_text[length] = '\0';
    return (int) length;
}

/* Which cgroup file system an open directory lies in: 2, 1, or -EXDEV when it is something else. */
int ols_cgroup_version(int dirfd, struct ols_err *reterr)
{
    struct statfs fs;
    if (fstatfs(dirfd, &fs) < 0)
        return ols_fail(reterr, errno, "fstatfs", "");
    if (fs.f_type == CGROUP2_SUPER_MAGIC)
        return 2;
    if (fs.f_type == CGROUP_SUPER_MAGIC)
        return 1;
    return ols_fail(reterr, EXDEV, "check for a cgroup file system", "");
}
