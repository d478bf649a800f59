/*
 * A zygote forked from a zygote: the twin of olsock/forks.py. It has its parent's memory, and everything else of another
 * init: a user namespace below its parent's, with ids of its own, a pid namespace, mounts, a network. Child-side.
 *
 *   fds: control, log, cgroup, tasks..., namespaces...
 *   u32 flags, u32 tasks, u32 n + types of namespaces (the user namespace first), u64 capabilities
 *
 * The namespaces were opened by root: to open them here would take rights over their init that no zygote has. Whoever enters
 * a user namespace has every capability in it, so what a zygote does not need is given up again, as after an execve.
 */
#define _GNU_SOURCE
#include "isolate.h"

#include "../core/syscalls.h"

#include <linux/securebits.h>
#include <sched.h>
#include <sys/prctl.h>
#include <unistd.h>

static int enter(struct ols_packet *p, struct ols_err *reterr)
{
    uint32_t n = packet_u32(p);
    for (uint32_t i = 0; i < n; i++) {
        int type = (int) packet_u32(p), namespace = packet_fd(p);
        if (p->bad)
            return ols_fail(reterr, EINVAL, "message", "namespaces");
        if (setns(namespace, type) < 0)
            return ols_fail(reterr, errno, "setns", "namespace of the new zygote's init");
    }
    return 0;
}

/* One enters a pid namespace by being born in it. In between is a process that does nothing but that. */
static int be_born_again(struct ols_err *reterr)
{
    struct clone_args args = {
        .flags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID,
        .child_tid = (uint64_t) (uintptr_t) thread_id(),
    };
    long pid = sys_clone3(&args);
    if (pid > 0)
        _exit(0);
    return pid < 0 ? ols_fail(reterr, (int) pid, "clone3", "zygote") : 0;
}

static int give_up(uint64_t keep, struct ols_err *reterr)
{
    int r = privilege_clear_groups(reterr);
    if (r >= 0)
        r = privilege_become(0, 0, reterr);
    if (r >= 0)
        r = privilege_limit_capabilities(keep, true, reterr);
    if (r < 0)
        return r;
    if (prctl(PR_SET_DUMPABLE, 0) < 0)
        return ols_fail(reterr, errno, "prctl(PR_SET_DUMPABLE)", "");
    return chdir("/") < 0 ? ols_fail(reterr, errno, "chdir", "/") : 0;
}

int nest(struct ols_packet *p, const struct streams *streams, int *ret_channel, struct ols_err *reterr)
{
    uint32_t n_tasks = packet_u32(p);
    if (p->bad || n_tasks > p->n_fds - p->next_fd)
        return ols_fail(reterr, EINVAL, "message", "nest");
    int r = join_cgroups(p->fds + p->next_fd, n_tasks, reterr);
    if (r < 0)
        return r;
    p->next_fd += n_tasks;
    r = enter(p, reterr);
    uint64_t keep = packet_u64(p);
    if (r >= 0 && p->bad)
        r = ols_fail(reterr, EINVAL, "message", "nest");
    if (r >= 0)
        r = be_born_again(reterr);
    if (r >= 0)
        r = streams_set(streams, ret_channel, reterr);
    return r < 0 ? r : give_up(keep, reterr);
}
