/* A new sandbox: clone3 into its namespaces and cgroup, and the maps of its user namespace, written by the parent. */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

static int write_maps(pid_t pid, const struct clone_request *request, struct ols_err *reterr)
{
    int r = write_map(pid, "uid_map", request, reterr);
    return r < 0 ? r : write_map(pid, "gid_map", request, reterr);
}

/* Clone the init, with the flags of `args` besides what is asked for. */
static int clone_init(const struct clone_request *request, struct clone_args args, struct init_start *start,
                      int *ret_pidfd, struct ols_err *reterr)
{
    int pidfd = -1;

    args.flags |= (request->flags & ~(uint64_t) CLONE_NEWNET) | CLONE_PIDFD;
    args.pidfd = (uint64_t) (uintptr_t) &pidfd;
    long pid = sys_clone3(&args);
    if (pid == 0)
        init_main(start);
    if (pid < 0)
        return ols_fail(reterr, (int) pid, "clone3", args.flags & CLONE_INTO_CGROUP ? "into the sandbox's cgroup" : "");
    *ret_pidfd = pidfd;
    return (int) pid;
}

static struct clone_args into(int cgroup)
{
    struct clone_args args = {.exit_signal = SIGCHLD};

    if (cgroup >= 0) {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t) cgroup;
    }
    return args;
}

/*
 * An init nested in the namespaces of another. Its parent has to be in the pid namespace above (pid_namespaces(7)), and have
 * an id in the user namespace above; but whoever writes its maps must be in the user namespace above and may open the init's
 * files in /proc, which are the host's root's, as the init cannot be dumped. So one process, born in the init's cgroup,
 * enters and clones a second, born inside, which makes the init; and a third enters as the host's root and writes. They run
 * one after the other while the spawner sleeps, with its table of files, and resolve no path but in its own procfs. The zygote
 * above may see the second, but not touch it: its real and saved ids stay the host's, and those are what kill(2) looks
 * at; a SIGSTOP from there would stop the spawner.
 */
struct nested {
    const struct clone_request *request;
    struct init_start *start;
    pid_t pid; /* the host's */
};

struct outcome {
    int result, pidfd;
    struct ols_err err;
};

typedef void helper(const struct nested *nested, struct outcome *outcome);

/* Run `help` in a process of its own and wait for it; what it leaves in `outcome` comes back by a pipe. */
static int run_beside(helper *help, const struct nested *nested, struct clone_args args, struct outcome *ret_outcome)
{
    struct outcome outcome = {.result = -EIO, .pidfd = -1};
    int ends[2];

    (void) ols_fail(&outcome.err, EIO, "clone3", "a helper ended without a result");
    *ret_outcome = outcome;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return ret_outcome->result = ols_fail(&ret_outcome->err, errno, "pipe2", "");
    args.flags |= CLONE_VFORK | CLONE_FILES;
    long pid = sys_clone3(&args);
    if (pid == 0) {
        help(nested, &outcome);
        (void) !write(ends[1], &outcome, sizeof outcome);
        _exit(0);
    }
    (void) close(ends[1]); /* the helper's copy is the same file: it has ended */
    if (pid < 0)
        ret_outcome->result = ols_fail(&ret_outcome->err, (int) pid, "clone3", "beside the zygote above");
    else if (read(ends[0], &outcome, sizeof outcome) == sizeof outcome)
        *ret_outcome = outcome;
    (void) close(ends[0]);
    return ret_outcome->result;
}

static int enter(const struct nested *nested, size_t n, struct ols_err *reterr)
{
    static const int types[] = {CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNS};

    for (size_t i = 0; i < n; i++)
        if (setns(nested->request->inside[i], types[i]) < 0)
            return ols_fail(reterr, errno, "setns", "namespaces of the zygote above");
    return 0;
}

static void make_init(const struct nested *nested, struct outcome *outcome)
{
    struct clone_args args = {.flags = CLONE_PARENT};
    outcome->result = clone_init(nested->request, args, nested->start, &outcome->pidfd, &outcome->err);
}

static void clone_inside(const struct nested *nested, struct outcome *outcome)
{
    int r = enter(nested, 3, &outcome->err);
    if (r >= 0 && (setresgid((gid_t) -1, 0, (gid_t) -1) < 0 || setresuid((uid_t) -1, 0, (uid_t) -1) < 0))
        r = ols_fail(&outcome->err, errno, "setresuid", "root of the zygote above");
    if (r < 0)
        outcome->result = r;
    else
        (void) run_beside(make_init, nested, (struct clone_args) {.flags = CLONE_PARENT}, outcome);
}

static void map_inside(const struct nested *nested, struct outcome *outcome)
{
    outcome->result = enter(nested, 1, &outcome->err);
    if (outcome->result >= 0)
        outcome->result = write_maps(nested->pid, nested->request, &outcome->err);
}

/* The pid that the host knows a process by: its maker was in another pid namespace. */
static pid_t host_pid(int pidfd, struct ols_err *reterr)
{
    char path[48], text[512];

    (void) snprintf(path, sizeof path, "self/fdinfo/%d", pidfd);
    cleanup_fd int fd = openat(base_proc(), path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n < 0)
        return ols_fail(reterr, errno, "read", path);
    text[n] = '\0';
    const char *line = strstr(text, "\nPid:");
    pid_t pid = line ? (pid_t) strtol(line + sizeof "\nPid:" - 1, NULL, 10) : 0;
    return pid > 0 ? pid : ols_fail(reterr, ESRCH, "read", path);
}

static int clone_nested(const struct clone_request *request, struct init_start *start, int *ret_pidfd,
                        struct ols_err *reterr)
{
    struct nested nested = {.request = request, .start = start};
    struct outcome made, mapped;

    int r = run_beside(clone_inside, &nested, into(request->cgroup), &made);
    *ret_pidfd = made.pidfd;
    if (r < 0) {
        *reterr = made.err;
        return r;
    }
    nested.pid = host_pid(made.pidfd, reterr);
    if (nested.pid < 0)
        return nested.pid;
    r = run_beside(map_inside, &nested, into(-1), &mapped);
    if (r < 0)
        *reterr = mapped.err;
    return r < 0 ? r : nested.pid;
}

static int clone_plain(const struct clone_request *request, struct init_start *start, int *ret_pidfd,
                       struct ols_err *reterr)
{
    int pid = clone_init(request, into(request->cgroup), start, ret_pidfd, reterr);
    int r = pid < 0 ? pid : write_maps(pid, request, reterr);
    return r < 0 ? r : pid;
}

int sandbox_clone(const struct clone_request *request, struct init_start *start, int *ret_pidfd, struct ols_err *reterr)
{
    uint64_t flags = request->flags;
    int pidfd = -1;

    start->new_netns = flags & CLONE_NEWNET;
    if (flags & ~(uint64_t) ALLOWED || !(flags & CLONE_NEWUSER) || !(flags & CLONE_NEWNS) || !(flags & CLONE_NEWPID))
        return ols_fail(reterr, EINVAL, "clone3", "namespaces");
    int pid = (request->inside ? clone_nested : clone_plain)(request, start, &pidfd, reterr);
    if (pid < 0) {
        if (pidfd >= 0)
            (void) sys_pidfd_send_signal(pidfd, SIGKILL);
        ols_close_fd(&pidfd);
        return pid;
    }
    *ret_pidfd = pidfd;
    return pid;
}
