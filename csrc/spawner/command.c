/* A command inside a sandbox: forked from init, so in all of its namespaces, its root and its cgroup by construction. */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#define MAX_STRINGS 4096
#define MAX_STDIO 4 /* stdin, stdout, stderr and one channel */
#define CLEAR_OF_STDIO 16

struct command {
    uint32_t uid, gid;
    uint64_t capabilities;
    const char *cwd;
    char *argv[MAX_STRINGS + 1];
    char *envp[MAX_STRINGS + 1];
    unsigned int n_stdio;
};

static void read_strings(struct ols_packet *p, char **ret_strings)
{
    uint32_t n = packet_u32(p);
    if (n > MAX_STRINGS)
        p->bad = true;
    for (uint32_t i = 0; i < n && !p->bad; i++)
        ret_strings[i] = (char *) packet_str(p);
    ret_strings[p->bad ? 0 : n] = NULL;
}

/* fds 0..n-1 as given, nothing else. */
static int set_stdio(struct ols_packet *p, unsigned int n, struct ols_err *reterr)
{
    int high[MAX_STDIO];

    for (unsigned int i = 0; i < n; i++) {
        high[i] = fcntl(p->fds[i], F_DUPFD_CLOEXEC, CLEAR_OF_STDIO);
        if (high[i] < 0)
            return ols_fail(reterr, errno, "fcntl(F_DUPFD)", "stdio");
    }
    for (unsigned int i = 0; i < n; i++)
        if (dup2(high[i], (int) i) < 0)
            return ols_fail(reterr, errno, "dup2", "stdio");
    return 0;
}

static const char *search_path(char *const *envp)
{
    for (; *envp; envp++)
        if (strncmp(*envp, "PATH=", 5) == 0)
            return *envp + 5;
    return "/usr/local/bin:/usr/bin:/bin";
}

/* As execvpe(3), but by the PATH that the command itself will have. Returns only on failure. */
static int execute(const struct command *command, struct ols_err *reterr)
{
    const char *name = command->argv[0];
    int worst = ENOENT;

    if (strchr(name, '/')) {
        (void) execve(name, command->argv, command->envp);
        return ols_fail(reterr, errno, "execve", name);
    }
    for (const char *at = search_path(command->envp); at;) {
        char path[4096];
        const char *colon = strchr(at, ':');
        int size = colon ? (int) (colon - at) : (int) strlen(at);
        if (size > 0 && snprintf(path, sizeof path, "%.*s/%s", size, at, name) < (int) sizeof path) {
            (void) execve(path, command->argv, command->envp);
            if (errno != ENOENT && errno != ENOTDIR)
                worst = errno;
        }
        at = colon ? colon + 1 : NULL;
    }
    return ols_fail(reterr, worst, "execve", name);
}

/* The error pipe is the only fd above the command's own that is still open at execve, which closes it. */
static int prepare(struct ols_packet *p, const struct command *command, const struct setup *setup, int error_pipe,
                   struct ols_err *reterr)
{
    sigset_t none;
    int r;

    (void) sigemptyset(&none);
    (void) sigprocmask(SIG_SETMASK, &none, NULL);
    (void) setsid();
    r = set_stdio(p, command->n_stdio, reterr);
    if (r < 0)
        return r;
    if (error_pipe != (int) CLEAR_OF_STDIO - 1)
        return ols_fail(reterr, EBADF, "dup2", "error pipe");
    r = sys_close_range(command->n_stdio, CLEAR_OF_STDIO - 2);
    if (r >= 0)
        r = sys_close_range(CLEAR_OF_STDIO, ~0U);
    if (r < 0)
        return ols_fail(reterr, r, "close_range", "");
    r = privilege_become(command->uid, command->gid, reterr);
    if (r < 0)
        return r;
    /* After setresuid: an id's right to a directory is what counts. */
    if (chdir(command->cwd) < 0)
        return ols_fail(reterr, errno, "chdir", command->cwd);
    /* Otherwise execve drops what init had: its securebits make uid 0 nothing, and capset is past the filter. */
    if (command->capabilities) {
        r = privilege_set_capabilities(command->capabilities, command->capabilities, reterr);
        if (r < 0)
            return r;
    }
    return setup->filter ? privilege_load_filter(setup->filter, setup->filter_size, reterr) : 0;
}

struct child {
    struct ols_packet *packet;
    const struct command *command;
    const struct setup *setup;
    int error_pipe;
};

static int run(void *arg)
{
    const struct child *child = arg;
    struct ols_err err = {0};
    int pipe_at = CLEAR_OF_STDIO - 1;

    if (dup3(child->error_pipe, pipe_at, O_CLOEXEC) >= 0 &&
        prepare(child->packet, child->command, child->setup, pipe_at, &err) >= 0)
        (void) execute(child->command, &err);
    (void) !write(pipe_at, &err, sizeof err);
    _exit(127);
}

/*
 * As posix_spawn(3) does: the child runs on a stack of its own in init's memory, and init sleeps until it has executed its
 * program or ended. Copying init's page tables and then page after page of it would cost a third of a whole start. The child
 * cannot be looked into meanwhile, though it has the sandbox's id by then: the memory is not dumpable.
 */
static pid_t start(struct child *child)
{
    static char stack[64 * 1024] __attribute__((aligned(16)));
    pid_t pid = clone(run, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, child);
    return pid < 0 ? -errno : pid;
}

/* u32 uid, u32 gid, u64 capabilities, str cwd, u32 argc + argv, u32 envc + env */
pid_t command_spawn(struct ols_packet *p, const struct setup *setup, struct ols_err *reterr)
{
    static struct command command;
    int ends[2];

    command.uid = packet_u32(p);
    command.gid = packet_u32(p);
    command.capabilities = packet_u64(p);
    command.cwd = packet_str(p);
    read_strings(p, command.argv);
    read_strings(p, command.envp);
    command.n_stdio = p->n_fds;
    if (p->bad || !command.argv[0] || p->n_fds < 3 || p->n_fds > MAX_STDIO)
        return ols_fail(reterr, EINVAL, "message", "command");

    if (pipe2(ends, O_CLOEXEC) < 0)
        return ols_fail(reterr, errno, "pipe2", "");
    cleanup_fd int read_end = ends[0];
    struct child child = {p, &command, setup, ends[1]};
    pid_t pid = start(&child);
    (void) close(ends[1]);
    if (pid < 0)
        return ols_fail(reterr, pid, "clone", command.argv[0]);

    struct ols_err err;
    ssize_t n;
    do
        n = read(read_end, &err, sizeof err);
    while (n < 0 && errno == EINTR);
    if (n == 0)
        return pid; /* closed by execve */
    if (n != sizeof err || err.err == 0)
        err = (struct ols_err) {.err = EIO, .step = "clone"};
    err.step[sizeof err.step - 1] = err.path[sizeof err.path - 1] = '\0';
    return ols_fail(reterr, err.err, err.step, err.path);
}
