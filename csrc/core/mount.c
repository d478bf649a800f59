/* The new mount API: detached trees, their attributes, and where they are attached. See mount_setattr(2), open_tree(2). */
#define _GNU_SOURCE
#include "olsock.h"

#include "cleanup.h"
#include "syscalls.h"

#include <fcntl.h>

int ols_open_tree(int dirfd, const char *path, unsigned int flags, struct ols_err *reterr)
{
    int fd = sys_open_tree(dirfd, path, flags | OPEN_TREE_CLOEXEC);
    return fd < 0 ? ols_fail(reterr, fd, "open_tree", path) : fd;
}

int ols_move_mount(int from_fd, int to_dirfd, const char *to_path, struct ols_err *reterr)
{
    unsigned int flags = MOVE_MOUNT_F_EMPTY_PATH | (to_path[0] ? 0 : MOVE_MOUNT_T_EMPTY_PATH);
    int r = sys_move_mount(from_fd, "", to_dirfd, to_path, flags);
    return r < 0 ? ols_fail(reterr, r, "move_mount", to_path) : 0;
}

int ols_mount_setattr(int dirfd, const char *path, int recursive, unsigned long set, unsigned long clear,
                      unsigned long propagation, int userns_fd, struct ols_err *reterr)
{
    struct mount_attr attr = {.attr_set = set, .attr_clr = clear, .propagation = propagation};
    unsigned int flags = (path[0] ? 0 : AT_EMPTY_PATH) | (recursive ? AT_RECURSIVE : 0);

    if (userns_fd >= 0) {
        attr.attr_set |= MOUNT_ATTR_IDMAP;
        attr.userns_fd = (uint64_t) userns_fd;
    }
    int r = sys_mount_setattr(dirfd, path, flags, &attr);
    return r < 0 ? ols_fail(reterr, r, userns_fd >= 0 ? "mount_setattr(idmap)" : "mount_setattr", path) : 0;
}

int ols_fs_mount(const char *type, const char *const *keys, const char *const *values, int count,
                 unsigned int attributes, struct ols_err *reterr)
{
    cleanup_fd int fs = sys_fsopen(type, FSOPEN_CLOEXEC);
    if (fs < 0)
        return ols_fail(reterr, fs, "fsopen", type);
    for (int i = 0; i < count; i++) {
        int r = sys_fsconfig(fs, values[i] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, keys[i], values[i], 0);
        if (r < 0)
            return ols_fail(reterr, r, "fsconfig", keys[i]);
    }
    int r = sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    if (r < 0)
        return ols_fail(reterr, r, "fsconfig(create)", type);
    int fd = sys_fsmount(fs, FSMOUNT_CLOEXEC, attributes);
    return fd < 0 ? ols_fail(reterr, fd, "fsmount", type) : fd;
}

int ols_openat2(int dirfd, const char *path, unsigned long flags, unsigned long mode, unsigned long resolve,
                struct ols_err *reterr)
{
    int fd = sys_openat2(dirfd, path, flags | O_CLOEXEC, mode, resolve);
    return fd < 0 ? ols_fail(reterr, fd, "openat2", path) : fd;
}
