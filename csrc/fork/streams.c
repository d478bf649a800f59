/* The descriptors that a zygote's child is left with, and how it says that it could not be made. Child-side. */
#define _GNU_SOURCE
#include "isolate.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define FAULT_FRAME 7 /* olsock/runtime/wire.py */
#define CLEAR_OF_STDIO 64

/* fd 0 the null device, 1 the log, 2 the log or a pipe of its own, 3 the channel, nothing else. */
int streams_set(const struct streams *streams, int *ret_channel, struct ols_err *reterr)
{
    cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return ols_fail(reterr, errno, "open", "/dev/null");
    int log = fcntl(streams->log, F_DUPFD_CLOEXEC, CLEAR_OF_STDIO);
    int errors = fcntl(streams->errors, F_DUPFD_CLOEXEC, CLEAR_OF_STDIO);
    int channel = fcntl(streams->channel, F_DUPFD_CLOEXEC, CLEAR_OF_STDIO);
    if (log < 0 || errors < 0 || channel < 0)
        return ols_fail(reterr, errno, "fcntl(F_DUPFD)", "channel");
    if (dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(errors, 2) < 0 || dup3(channel, CHANNEL, O_CLOEXEC) < 0)
        return ols_fail(reterr, errno, "dup2", "stdio");
    *ret_channel = CHANNEL;
    null = -1; /* closed with the rest */
    int r = sys_close_range(CHANNEL + 1, ~0U);
    return r < 0 ? ols_fail(reterr, r, "close_range", "") : 0;
}

/* A child that could not be made says why on its channel and ends: it never runs a line of Python. */
_Noreturn void report_fault(int channel, const struct ols_err *err)
{
    struct {
        uint8_t kind, flags;
        uint16_t zero;
        uint32_t length;
        uint64_t request;
        struct ols_err err;
    } fault = {.kind = FAULT_FRAME, .length = sizeof(struct ols_err), .err = *err};

    (void) send(channel, &fault, sizeof fault, MSG_NOSIGNAL | MSG_DONTWAIT);
    _exit(1);
}
