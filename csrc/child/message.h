#ifndef OLS_MESSAGE_H
#define OLS_MESSAGE_H
/*
 * Packets on SOCK_SEQPACKET sockets: between the library and the spawner, and between the library and an init. The twin of
 * this file is olsock/spawner.py. Numbers are little endian (the host's own order on every machine we build for), a string
 * is a u32 length and its bytes with a NUL that is counted. A packet is read whole into one buffer and then taken apart in
 * place: nothing is allocated, every length is checked against the end.
 */
#include "../core/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OLS_MAX_PACKET (128 * 1024)
#define OLS_MAX_FDS 64

enum ols_request {
    /* to the spawner */
    OLS_ATTACH = 1,  /* str path; fd: mount the detached tree at path in the spawner's namespace */
    OLS_DETACH = 2,  /* str path: unmount it, and remove the directory */
    OLS_OVERLAY = 3, /* u32 lowers, u32 writable; fds: lowers (detached), then the upper's tree -> a detached overlay */
    /* u64 flags, u32 cgroup?, u32 nested?, u32 n, n x (inside, host, count);
     * fds: channel [, cgroup] [, user, pid, mount namespace of the init to be nested in], tasks... -> pid, pidfd */
    OLS_CLONE = 4,
    /* to an init */
    OLS_SETUP = 10,  /* once, first: see setup.c */
    OLS_SPAWN = 11,  /* run a command: see command.c; fds: stdin, stdout, stderr [, channel] */
    OLS_SIGNAL = 12, /* u32 token, u32 signal */
    OLS_NETNS = 13,  /* -> a new network namespace, by fd */
};

enum ols_reply {
    OLS_DONE = 100,   /* request's answer: u32 token, i32 value (a pid or 0), [fd] */
    OLS_FAILED = 101, /* request's answer: u32 token, struct ols_err */
    /* u32 token (or OLS_NO_TOKEN), u32 pid, i32 status, u64 user usec, u64 system usec, u64 peak KiB */
    OLS_EXITED = 102,
};

#define OLS_NO_TOKEN 0xffffffffu

struct ols_packet {
    char *at, *end;
    bool bad;
    int fds[OLS_MAX_FDS];
    unsigned int n_fds, next_fd;
};

static inline const void *packet_bytes(struct ols_packet *p, size_t size)
{
    if (p->bad || (size_t) (p->end - p->at) < size) {
        p->bad = true;
        return NULL;
    }
    const void *bytes = p->at;
    p->at += size;
    return bytes;
}

static inline uint32_t packet_u32(struct ols_packet *p)
{
    const void *bytes = packet_bytes(p, sizeof(uint32_t));
    uint32_t value = 0;
    if (bytes)
        __builtin_memcpy(&value, bytes, sizeof value);
    return value;
}

static inline uint64_t packet_u64(struct ols_packet *p)
{
    const void *bytes = packet_bytes(p, sizeof(uint64_t));
    uint64_t value = 0;
    if (bytes)
        __builtin_memcpy(&value, bytes, sizeof value);
    return value;
}

/* A blob: its size in `ret_size`. */
static inline const void *packet_blob(struct ols_packet *p, size_t *ret_size)
{
    *ret_size = packet_u32(p);
    return packet_bytes(p, *ret_size);
}

/* A string, NUL included in its length; "" when the packet is bad, so that callers may check once at the end. */
static inline const char *packet_str(struct ols_packet *p)
{
    size_t size;
    const char *s = packet_blob(p, &size);
    if (!s || size == 0 || s[size - 1] != '\0') {
        p->bad = true;
        return "";
    }
    return s;
}

/* The next fd of the packet; it stays the packet's (closed by packet_done) unless taken with packet_steal_fd. */
static inline int packet_fd(struct ols_packet *p)
{
    if (p->next_fd >= p->n_fds) {
        p->bad = true;
        return -1;
    }
    return p->fds[p->next_fd++];
}

struct msghdr;
void packet_take_fds(struct ols_packet *p, struct msghdr *msg);
int packet_receive(int socket, void *buffer, size_t size, struct ols_packet *ret_packet);
void packet_done(struct ols_packet *p);

int reply_done(int socket, uint32_t token, int32_t value, int fd);
int reply_failed(int socket, uint32_t token, const struct ols_err *err);
int send_packet(int socket, const void *data, size_t size, int fd);
#endif
