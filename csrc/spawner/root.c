/*
 * A sandbox's root: a copy of a base tree (or a tree that came by fd), what is mounted over it, and pivot_root. Child-side.
 *
 * The copy matters: the base tree was mounted before this sandbox's user namespace existed, so the flags of its mounts
 * are locked here and stay locked in a copy, while those of a detached tree made outside would not be.
 */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define NEW_ROOT "/n"

enum mount_kind { TREE = 1, TMPFS = 2, PROC = 3, MASK = 4 };

/* Never through a symbolic link: the root may be one that somebody else prepared. */
static int open_target(int root, const char *target, struct ols_err *reterr)
{
    int fd = sys_openat2(root, target[0] == '/' ? target + 1 : target, O_PATH | O_CLOEXEC, 0,
                         RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
    return fd < 0 ? ols_fail(reterr, fd, "openat2(mount point)", target) : fd;
}

static int attach(int tree, int root, const char *target, struct ols_err *reterr)
{
    cleanup_fd int at = open_target(root, target, reterr);
    if (at < 0)
        return at;
    int r = sys_move_mount(tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    return r < 0 ? ols_fail(reterr, r, "move_mount", target) : 0;
}

struct option {
    const char *key, *value;
};

static int mount_new(const char *type, const struct option *options, unsigned int attributes, int root,
                     const char *target, struct ols_err *reterr)
{
    cleanup_fd int fs = sys_fsopen(type, FSOPEN_CLOEXEC);
    if (fs < 0)
        return ols_fail(reterr, fs, "fsopen", type);
    for (; options && options->key; options++) {
        int r = sys_fsconfig(fs, FSCONFIG_SET_STRING, options->key, options->value, 0);
        if (r < 0)
            return ols_fail(reterr, r, "fsconfig", options->key);
    }
    int r = sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    if (r < 0)
        return ols_fail(reterr, r, "fsconfig(create)", type);
    cleanup_fd int tree = sys_fsmount(fs, FSMOUNT_CLOEXEC, attributes | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    if (tree < 0)
        return ols_fail(reterr, tree, "fsmount", type);
    return attach(tree, root, target, reterr);
}

static int mount_tmpfs(struct ols_packet *p, int root, const char *target, struct ols_err *reterr)
{
    const char *size = packet_str(p), *inodes = packet_str(p), *mode = packet_str(p);
    const struct option options[] = {{"size", size}, {"nr_inodes", inodes}, {"mode", mode}, {NULL, NULL}};
    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "tmpfs");
    return mount_new("tmpfs", options, 0, root, target, reterr);
}

/* Hide a file behind /dev/null, a directory behind an empty one. The null device is checked by what it is, not by its
 * name (CVE-2025-31133). What does not exist on this kernel needs no mask. */
static int mask(int root, const char *target, struct ols_err *reterr)
{
    struct stat st;
    cleanup_fd int at = open_target(root, target, NULL);
    if (at == -ENOENT)
        return 0;
    if (at < 0 || fstat(at, &st) < 0)
        return ols_fail(reterr, at < 0 ? at : errno, "mask", target);
    if (S_ISDIR(st.st_mode)) {
        const struct option options[] = {{"nr_inodes", "1"}, {"mode", "555"}, {NULL, NULL}};
        return mount_new("tmpfs", options, MOUNT_ATTR_RDONLY, root, target, reterr);
    }
    cleanup_fd int null = open_target(root, "/dev/null", reterr);
    if (null < 0)
        return null;
    if (fstat(null, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3))
        return ols_fail(reterr, ENODEV, "mask(not the null device)", "/dev/null");
    cleanup_fd int tree = sys_open_tree(null, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (tree < 0)
        return ols_fail(reterr, tree, "open_tree", "/dev/null");
    int r = sys_move_mount(tree, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    return r < 0 ? ols_fail(reterr, r, "mask", target) : 0;
}

/* u32 kind, str target, and what the kind needs */
static int mount_one(struct ols_packet *p, int root, struct ols_err *reterr)
{
    uint32_t kind = packet_u32(p);
    const char *target = packet_str(p);
    int tree;

    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "mount");
    switch (kind) {
    case TREE:
        tree = packet_fd(p);
        return p->bad ? ols_fail(reterr, EINVAL, "message", target) : attach(tree, root, target, reterr);
    case TMPFS:
        return mount_tmpfs(p, root, target, reterr);
    case PROC:
        return mount_new("proc", NULL, MOUNT_ATTR_NOEXEC, root, target, reterr);
    case MASK:
        return mask(root, target, reterr);
    default:
        return ols_fail(reterr, EINVAL, "message", "mount kind");
    }
}

static int enter(int root, struct ols_err *reterr)
{
    char cwd[8];

    if (fchdir(root) < 0)
        return ols_fail(reterr, errno, "fchdir", NEW_ROOT);
    int r = sys_pivot_root(".", ".");
    if (r < 0)
        return ols_fail(reterr, r, "pivot_root", NEW_ROOT);
    if (umount2(".", MNT_DETACH) < 0)
        return ols_fail(reterr, errno, "umount2", "the old root");
    if (chdir("/") < 0)
        return ols_fail(reterr, errno, "chdir", "/");
    /* The kernel says "(unreachable)..." for a directory outside the root (CVE-2024-21626). */
    if (!getcwd(cwd, sizeof cwd) || cwd[0] != '/' || cwd[1])
        return ols_fail(reterr, EXDEV, "getcwd", "/");
    return 0;
}

static int mount_all(struct ols_packet *p, int root, struct ols_err *reterr)
{
    uint32_t n = packet_u32(p);
    for (uint32_t i = 0; i < n; i++) {
        int r = mount_one(p, root, reterr);
        if (r < 0)
            return r;
    }
    return p->bad ? ols_fail(reterr, EINVAL, "message", "mounts") : 0;
}

/* An init inside another's namespaces has that one's root already, a copy in which every mount is locked. */
static int root_keep(struct ols_packet *p, struct ols_err *reterr)
{
    cleanup_fd int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return ols_fail(reterr, errno, "open", "/");
    return mount_all(p, root, reterr);
}

/* str base ("": the first fd is the root's tree; "/": the root that there is), u32 n, n mounts */
int root_enter(struct ols_packet *p, struct ols_err *reterr)
{
    const char *base = packet_str(p);
    cleanup_fd int copy = -1;
    int tree;

    if (base[0] == '/' && !base[1])
        return root_keep(p, reterr);
    if (!p->bad && base[0]) {
        tree = copy = sys_open_tree(AT_FDCWD, base, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
        if (tree < 0)
            return ols_fail(reterr, tree, "open_tree", base);
    } else {
        tree = packet_fd(p);
    }
    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "root");
    int r = sys_move_mount(tree, "", AT_FDCWD, NEW_ROOT, MOVE_MOUNT_F_EMPTY_PATH);
    if (r < 0)
        return ols_fail(reterr, r, "move_mount", "root");
    cleanup_fd int root = open(NEW_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return ols_fail(reterr, errno, "open", NEW_ROOT);
    r = mount_all(p, root, reterr);
    return r < 0 ? r : enter(root, reterr);
}
