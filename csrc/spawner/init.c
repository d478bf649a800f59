/*
 * Pid 1 of a sandbox: sets it up, runs commands on request, reaps everything, reports who left and how. When its channel
 * is closed it leaves, and the kernel ends every process of its pid namespace with it: a sandbox cannot outlive its owner.
 * It never reads a byte that a process of the sandbox wrote.
 */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define CHANNEL 3
#define MAX_COMMANDS 1024

struct command_entry {
    uint32_t token;
    pid_t pid; /* 0: free */
};

static struct command_entry commands[MAX_COMMANDS];
static char buffer[OLS_MAX_PACKET];

static struct command_entry *find_command(pid_t pid)
{
    for (size_t i = 0; i < MAX_COMMANDS; i++)
        if (commands[i].pid == pid)
            return &commands[i];
    return NULL;
}

static int do_spawn(struct ols_packet *p, uint32_t token, const struct setup *setup, struct ols_err *reterr)
{
    struct command_entry *entry = find_command(0);
    if (!entry)
        return ols_fail(reterr, EAGAIN, "fork", "too many commands at once");
    pid_t pid = command_spawn(p, setup, reterr);
    if (pid > 0)
        *entry = (struct command_entry) {.token = token, .pid = pid};
    return pid;
}

/* Only init reaps, so the pid of a command that is still in the table is that command's. */
static int do_signal(struct ols_packet *p, struct ols_err *reterr)
{
    uint32_t token = packet_u32(p);
    int number = (int) packet_u32(p);

    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "signal");
    for (size_t i = 0; i < MAX_COMMANDS; i++)
        if (commands[i].pid && commands[i].token == token)
            return kill(-commands[i].pid, number) < 0 ? ols_fail(reterr, errno, "kill", "") : 0;
    return ols_fail(reterr, ESRCH, "kill", "");
}

static void serve(struct ols_packet *p, const struct setup *setup)
{
    struct ols_err err = {0};
    uint32_t kind = packet_u32(p), token = packet_u32(p);
    cleanup_fd int fd = -1;
    int r;

    switch (kind) {
    case OLS_SPAWN:
        r = do_spawn(p, token, setup, &err);
        break;
    case OLS_SIGNAL:
        r = do_signal(p, &err);
        break;
    case OLS_NETNS:
        r = fd = network_create(&err);
        break;
    default:
        r = ols_fail(&err, EINVAL, "message", "unknown request");
    }
    (void) (r < 0 ? reply_failed(CHANNEL, token, &err) : reply_done(CHANNEL, token, r, fd));
}

static void report_exit(pid_t pid, int status, const struct rusage *usage)
{
    struct command_entry *entry = find_command(pid);
    struct {
        uint32_t kind, token, pid;
        int32_t status;
        uint64_t user, system, peak;
    } report = {
        .kind = OLS_EXITED,
        .token = entry ? entry->token : OLS_NO_TOKEN,
        .pid = (uint32_t) pid,
        .status = status,
        .user = (uint64_t) usage->ru_utime.tv_sec * 1000000 + (uint64_t) usage->ru_utime.tv_usec,
        .system = (uint64_t) usage->ru_stime.tv_sec * 1000000 + (uint64_t) usage->ru_stime.tv_usec,
        .peak = (uint64_t) usage->ru_maxrss,
    };

    if (entry)
        entry->pid = 0;
    /* An orphan's report may be dropped: a sandbox that makes orphans faster than anybody reads must not stop its init. */
    (void) send(CHANNEL, &report, sizeof report, MSG_NOSIGNAL | (entry ? 0 : MSG_DONTWAIT));
}

static void reap(int signals)
{
    struct signalfd_siginfo info;
    struct rusage usage;
    int status;
    pid_t pid;

    (void) !read(signals, &info, sizeof info);
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        report_exit(pid, status, &usage);
}

static int receive_setup(struct setup *ret_setup)
{
    struct ols_packet packet;
    struct ols_err err = {0};

    int n = packet_receive(CHANNEL, buffer, sizeof buffer, &packet);
    if (n <= 0)
        return -1;
    uint32_t kind = packet_u32(&packet), token = packet_u32(&packet);
    int r = kind == OLS_SETUP ? setup_sandbox(&packet, ret_setup, &err) : ols_fail(&err, EINVAL, "message", "setup");
    packet_done(&packet);
    if (r < 0)
        (void) reply_failed(CHANNEL, token, &err);
    else
        (void) reply_done(CHANNEL, token, 0, -1);
    return r;
}

static int prepare(const struct init_start *start, struct ols_err *reterr)
{
    int r = join_cgroups(start->tasks, start->n_tasks, reterr);
    if (r < 0)
        return r;
    if (start->channel != CHANNEL && dup3(start->channel, CHANNEL, O_CLOEXEC) < 0)
        return ols_fail(reterr, errno, "dup3", "channel");
    r = sys_close_range(CHANNEL + 1, ~0U);
    if (r < 0)
        return ols_fail(reterr, r, "close_range", "");
    (void) prctl(PR_SET_DUMPABLE, 0);
    (void) prctl(PR_SET_NAME, "olsock-init");
    /* The caller's session keyring would be everybody's below: the filter denies keyctl, but a filter can be turned off. */
    r = (int) sys_join_session_keyring();
    if (r < 0 && r != -ENOSYS)
        return ols_fail(reterr, r, "keyctl(session keyring)", "");
    if (start->new_netns && unshare(CLONE_NEWNET) < 0)
        return ols_fail(reterr, errno, "unshare(network namespace)", "");
    return 0;
}

_Noreturn void init_main(const struct init_start *start)
{
    struct setup setup = {0};
    struct ols_err err = {0};
    struct ols_packet packet;
    struct sigaction default_action = {.sa_handler = SIG_DFL};
    sigset_t mask;

    /* The spawner ignores some, and so would every program that has not heard of it; and with its setting of SIGCHLD the
     * kernel would reap for us, and exit statuses would be lost. */
    for (int number = 1; number <= SIGRTMAX; number++)
        (void) sigaction(number, &default_action, NULL);
    (void) sigemptyset(&mask);
    (void) sigaddset(&mask, SIGCHLD);
    (void) sigprocmask(SIG_BLOCK, &mask, NULL);
    if (prepare(start, &err) < 0) {
        (void) reply_failed(start->channel, 0, &err);
        _exit(1);
    }
    if (receive_setup(&setup) < 0)
        _exit(1);
    int signals = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0)
        _exit(1);

    struct pollfd fds[] = {{.fd = CHANNEL, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    for (;;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            _exit(1);
        if (fds[1].revents)
            reap(signals);
        if (!fds[0].revents)
            continue;
        int n = packet_receive(CHANNEL, buffer, sizeof buffer, &packet);
        if (n == 0 || (n < 0 && n != -EMSGSIZE))
            _exit(0);
        if (n > 0)
            serve(&packet, &setup);
        packet_done(&packet);
    }
}
