/*
 * Overlays are mounted here and not by the library: before 6.15 the kernel takes layers only from mounts that are
 * attached in the caller's own namespace. The overlay keeps private clones of its layers, so they are detached again at once.
 */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/cleanup.h"
#include "../core/syscalls.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define MAX_LAYERS 16

static int attach_layers(struct ols_packet *p, unsigned int layers, struct ols_err *reterr)
{
    for (unsigned int i = 0; i < layers; i++) {
        char path[16];
        (void) snprintf(path, sizeof path, "/s/%u", i);
        int r = base_attach(p->fds[i], path, reterr);
        if (r < 0)
            return r;
    }
    return 0;
}

static void detach_layers(unsigned int layers)
{
    for (unsigned int i = 0; i < layers; i++) {
        char path[16];
        (void) snprintf(path, sizeof path, "/s/%u", i);
        (void) base_detach(path, NULL);
    }
}

static int mount_overlay(unsigned int lowers, bool writable, struct ols_err *reterr)
{
    char lowerdir[MAX_LAYERS * 16] = "", upper[32], work[32];
    size_t at = 0;

    for (unsigned int i = 0; i < lowers; i++)
        at += (size_t) snprintf(lowerdir + at, sizeof lowerdir - at, "%s/s/%u", i ? ":" : "", i);
    (void) snprintf(upper, sizeof upper, "/s/%u/upper", lowers);
    (void) snprintf(work, sizeof work, "/s/%u/work", lowers);

    cleanup_fd int fs = sys_fsopen("overlay", FSOPEN_CLOEXEC);
    if (fs < 0)
        return ols_fail(reterr, fs, "fsopen", "overlay");
    int r = sys_fsconfig(fs, FSCONFIG_SET_STRING, "lowerdir", lowerdir, 0);
    if (r < 0)
        return ols_fail(reterr, r, "fsconfig(lowerdir)", lowerdir);
    if (writable) {
        r = sys_fsconfig(fs, FSCONFIG_SET_STRING, "upperdir", upper, 0);
        if (r >= 0)
            r = sys_fsconfig(fs, FSCONFIG_SET_STRING, "workdir", work, 0);
        if (r < 0)
            return ols_fail(reterr, r, "fsconfig(upperdir)", upper);
    }
    r = sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    if (r < 0)
        return ols_fail(reterr, r, "fsconfig(create)", "overlay");
    unsigned int attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (writable ? 0 : MOUNT_ATTR_RDONLY);
    int fd = sys_fsmount(fs, FSMOUNT_CLOEXEC, attributes);
    return fd < 0 ? ols_fail(reterr, fd, "fsmount", "overlay") : fd;
}

int overlay_create(struct ols_packet *p, struct ols_err *reterr)
{
    unsigned int lowers = packet_u32(p);
    bool writable = packet_u32(p);
    unsigned int layers = lowers + writable;
    if (p->bad || lowers == 0 || layers > MAX_LAYERS || layers != p->n_fds)
        return ols_fail(reterr, EINVAL, "message", "overlay");

    int r = attach_layers(p, layers, reterr);
    if (r >= 0)
        r = mount_overlay(lowers, writable, reterr);
    detach_layers(layers);
    return r;
}
