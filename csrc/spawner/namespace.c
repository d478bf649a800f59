/*
 * The spawner's private mount namespace: a tmpfs with
 *   /proc   an unmasked procfs, which the kernel wants to see before it lets a user namespace mount one of its own
 *   /b/N    base trees (made by the library as detached trees, attached here), copied by each sandbox
 *   /s      scratch places for layers of an overlay
 *   /n      where a sandbox, in its own copy of this namespace, assembles its root
 */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>

static int proc = -1;

int base_proc(void)
{
    return proc;
}

int base_create(const char *directory, struct ols_err *reterr)
{
    static const char *const places[] = {"proc", "b", "s", "n"};

    if (unshare(CLONE_NEWNS) < 0)
        return ols_fail(reterr, errno, "unshare(mount namespace)", "");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return ols_fail(reterr, errno, "mount(private)", "/");
    if (mount("olsock", directory, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=1m") < 0)
        return ols_fail(reterr, errno, "mount(tmpfs)", directory);
    if (chdir(directory) < 0)
        return ols_fail(reterr, errno, "chdir", directory);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (mkdir(places[i], 0755) < 0)
            return ols_fail(reterr, errno, "mkdir", places[i]);
    if (mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return ols_fail(reterr, errno, "mount(proc)", directory);
    if (sys_pivot_root(".", ".") < 0)
        return ols_fail(reterr, errno, "pivot_root", directory);
    if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return ols_fail(reterr, errno, "umount2", "the host's root");
    proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return proc < 0 ? ols_fail(reterr, errno, "open", "/proc") : 0;
}

int base_attach(int tree_fd, const char *path, struct ols_err *reterr)
{
    /* Mount points inside a tree were made with it; only the place of a tree itself is made here. */
    if (mkdirat(AT_FDCWD, path, 0755) < 0 && errno != EEXIST && errno != EROFS)
        return ols_fail(reterr, errno, "mkdir", path);
    cleanup_fd int at = sys_openat2(AT_FDCWD, path, O_PATH | O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS);
    if (at < 0)
        return ols_fail(reterr, at, "openat2(mount point)", path);
    int r = sys_move_mount(tree_fd, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
    return r < 0 ? ols_fail(reterr, r, "move_mount", path) : 0;
}

int base_detach(const char *path, struct ols_err *reterr)
{
    if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
        return ols_fail(reterr, errno, "umount2", path);
    (void) rmdir(path);
    return 0;
}
