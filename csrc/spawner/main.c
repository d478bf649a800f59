/*
 * olsock-spawner: a small root process that makes sandboxes for one library process.
 *
 * Why a process of its own: clone3 copies the caller's page tables and mount namespace, so it is called from a process
 * that has next to none of either; the trees that sandboxes are made of are mounted here before any user namespace, so
 * that their flags are locked for every sandbox (mount_namespaces(7)); and when it ends, however it ends, its mounts are
 * gone. It reads nothing but its socket (given as fd 0), which only the library holds, and leaves when that is closed.
 */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SOCKET 3

static char buffer[OLS_MAX_PACKET];

static int do_attach(struct ols_packet *p, struct ols_err *reterr)
{
    const char *path = packet_str(p);
    int tree = packet_fd(p);
    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "attach");
    return base_attach(tree, path, reterr);
}

static int do_detach(struct ols_packet *p, struct ols_err *reterr)
{
    const char *path = packet_str(p);
    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "detach");
    return base_detach(path, reterr);
}

static int do_clone(struct ols_packet *p, int *ret_pidfd, struct ols_err *reterr)
{
    struct clone_request request = {.flags = packet_u64(p), .cgroup = -1};
    bool into_cgroup = packet_u32(p), nested = packet_u32(p);

    request.n_maps = packet_u32(p);
    request.maps = packet_bytes(p, (request.n_maps & 0xffff) * sizeof *request.maps);
    int channel = packet_fd(p);
    if (into_cgroup)
        request.cgroup = packet_fd(p);
    if (nested && !p->bad) {
        request.inside = p->fds + p->next_fd;
        for (int i = 0; i < 3; i++)
            (void) packet_fd(p);
    }
    if (p->bad || request.n_maps == 0 || request.n_maps > 16)
        return ols_fail(reterr, EINVAL, "message", "clone");
    struct init_start start = {
        .channel = channel,
        .tasks = p->fds + p->next_fd,
        .n_tasks = p->n_fds - p->next_fd,
    };
    return sandbox_clone(&request, &start, ret_pidfd, reterr);
}

static void serve(struct ols_packet *p)
{
    struct ols_err err = {0};
    uint32_t kind = packet_u32(p), token = packet_u32(p);
    cleanup_fd int fd = -1;
    int r;

    switch (kind) {
    case OLS_ATTACH:
        r = do_attach(p, &err);
        break;
    case OLS_DETACH:
        r = do_detach(p, &err);
        break;
    case OLS_OVERLAY:
        r = fd = overlay_create(p, &err);
        break;
    case OLS_CLONE:
        r = do_clone(p, &fd, &err);
        break;
    default:
        r = ols_fail(&err, EINVAL, "message", "unknown request");
    }
    (void) (r < 0 ? reply_failed(SOCKET, token, &err) : reply_done(SOCKET, token, r, fd));
}

/* The socket to where no sandbox will look for it, the null device where a sandbox may inherit it, nothing else. */
static int set_fds(struct ols_err *reterr)
{
    if (dup3(0, SOCKET, O_CLOEXEC) < 0)
        return ols_fail(reterr, errno, "dup3", "socket");
    cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0)
        return ols_fail(reterr, errno, "open", "/dev/null");
    for (int fd = 0; fd < SOCKET; fd++)
        if (dup2(null, fd) < 0)
            return ols_fail(reterr, errno, "dup2", "/dev/null");
    if (null > SOCKET)
        (void) close(steal_fd(&null));
    int r = sys_close_range(SOCKET + 1, ~0U);
    return r < 0 ? ols_fail(reterr, r, "close_range", "") : 0;
}

int main(int argc, char **argv)
{
    struct ols_err err = {0};
    struct ols_packet packet;
    struct sigaction ignore = {.sa_handler = SIG_IGN, .sa_flags = SA_NOCLDWAIT};

    /* Children are reaped by the kernel; whoever wants their status has their channel and pidfd. */
    (void) sigaction(SIGCHLD, &ignore, NULL);
    (void) sigaction(SIGPIPE, &ignore, NULL);
    (void) sigaction(SIGINT, &ignore, NULL); /* Ctrl-C is the library's to handle: it closes the socket */
    (void) prctl(PR_SET_DUMPABLE, 0);
    (void) prctl(PR_SET_NAME, "olsock-spawner");

    if (argc != 2 || set_fds(&err) < 0 || base_create(argv[1], &err) < 0) {
        (void) reply_failed(SOCKET, 0, &err);
        return 1;
    }
    (void) reply_done(SOCKET, 0, 0, -1);
    for (;;) {
        int n = packet_receive(SOCKET, buffer, sizeof buffer, &packet);
        if (n == 0 || (n < 0 && n != -EMSGSIZE))
            return 0;
        if (n > 0)
            serve(&packet);
        packet_done(&packet);
    }
}
