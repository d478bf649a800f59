/* Packets with file descriptors (unix(7), SCM_RIGHTS). */
#define _GNU_SOURCE
#include "message.h"

#include "../core/cleanup.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* Make the fds that came with a message the packet's. */
void packet_take_fds(struct ols_packet *p, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(p->fds, CMSG_DATA(c), count * sizeof(int));
        p->n_fds = (unsigned int) count;
    }
}

/* Receive one packet: its size, 0 at the end of the stream, or -errno. A packet that did not fit is refused whole. */
int packet_receive(int socket, void *buffer, size_t size, struct ols_packet *ret_packet)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * OLS_MAX_FDS)];
    } control;
    struct iovec iov = {.iov_base = buffer, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n;

    do
        n = recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;

    *ret_packet = (struct ols_packet) {.at = buffer, .end = (char *) buffer + n};
    packet_take_fds(ret_packet, &msg);
    if (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        packet_done(ret_packet);
        return -EMSGSIZE;
    }
    return (int) n;
}

/* Close the fds that came with a packet and were not taken (set to -1 by who took them). */
void packet_done(struct ols_packet *p)
{
    for (unsigned int i = 0; i < p->n_fds; i++)
        ols_close_fd(&p->fds[i]);
    p->n_fds = 0;
}

int send_packet(int socket, const void *data, size_t size, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *) data, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (fd >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof control;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    do
        n = sendmsg(socket, &msg, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

int reply_done(int socket, uint32_t token, int32_t value, int fd)
{
    struct {
        uint32_t kind, token;
        int32_t value;
    } reply = {OLS_DONE, token, value};
    return send_packet(socket, &reply, sizeof reply, fd);
}

int reply_failed(int socket, uint32_t token, const struct ols_err *err)
{
    struct {
        uint32_t kind, token;
        struct ols_err err;
    } reply = {OLS_FAILED, token, *err};
    return send_packet(socket, &reply, sizeof reply, -1);
}
