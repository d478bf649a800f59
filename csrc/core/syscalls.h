#ifndef OLS_SYSCALLS_H
#define OLS_SYSCALLS_H
/*
 * Raw system calls, as -errno, so that every caller speaks one language. Only this file knows that glibc lacks or wraps
 * them. All are async-signal-safe: the child side of a clone may use each of them.
 */
#include <errno.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* Newer than the oldest headers that we build with. */
#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif
#ifndef MOUNT_ATTR_IDMAP
#define MOUNT_ATTR_IDMAP 0x00100000
#endif

static inline long sys_result(long value)
{
    return value < 0 ? -errno : value;
}

static inline long sys_join_session_keyring(void)
{
    return sys_result(syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL));
}

static inline long sys_clone3(struct clone_args *args)
{
    return sys_result(syscall(SYS_clone3, args, sizeof *args));
}

static inline int sys_pidfd_open(pid_t pid, unsigned int flags)
{
    return (int) sys_result(syscall(SYS_pidfd_open, pid, flags));
}

static inline int sys_pidfd_send_signal(int pidfd, int signal)
{
    return (int) sys_result(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

static inline int sys_close_range(unsigned int first, unsigned int last)
{
    return (int) sys_result(syscall(SYS_close_range, first, last, 0));
}

static inline int sys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    return (int) sys_result(syscall(SYS_openat2, dirfd, path, &how, sizeof how));
}

static inline int sys_open_tree(int dirfd, const char *path, unsigned int flags)
{
    return (int) sys_result(syscall(SYS_open_tree, dirfd, path, flags));
}

static inline int sys_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned int flags)
{
    return (int) sys_result(syscall(SYS_move_mount, from, from_path, to, to_path, flags));
}

static inline int sys_fsopen(const char *type, unsigned int flags)
{
    return (int) sys_result(syscall(SYS_fsopen, type, flags));
}

static inline int sys_fsconfig(int fd, unsigned int command, const char *key, const void *value, int aux)
{
    return (int) sys_result(syscall(SYS_fsconfig, fd, command, key, value, aux));
}

static inline int sys_fsmount(int fd, unsigned int flags, unsigned int attributes)
{
    return (int) sys_result(syscall(SYS_fsmount, fd, flags, attributes));
}

static inline int sys_mount_setattr(int dirfd, const char *path, unsigned int flags, struct mount_attr *attr)
{
    return (int) sys_result(syscall(SYS_mount_setattr, dirfd, path, flags, attr, sizeof *attr));
}

static inline int sys_pivot_root(const char *new_root, const char *put_old)
{
    return (int) sys_result(syscall(SYS_pivot_root, new_root, put_old));
}
#endif
