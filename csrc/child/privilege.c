/* Taking on limits and giving up privilege: cgroups, capabilities, ids, rlimits, the filter. Child-side. */
#define _GNU_SOURCE
#include "privilege.h"

#include "../core/syscalls.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define LAST_POSSIBLE_CAP 63

/*
 * Enter the cgroups of version 1 whose `tasks` files these are; on version 2 a process is born in its cgroup and there are
 * none. Written by the process itself, while it has one thread: the kernel then needs no lock (kernel/cgroup/cgroup.c,
 * cgroup_procs_write_start), where moving somebody else takes one that stops all forks of the host for an RCU
 * grace period, 10 ms and more. The files were opened by root, which is what the kernel checks.
 */
int join_cgroups(const int *tasks_fds, unsigned int n, struct ols_err *reterr)
{
    for (unsigned int i = 0; i < n; i++)
        if (write(tasks_fds[i], "0", 1) != 1)
            return ols_fail(reterr, errno, "write", "tasks");
    return 0;
}

int privilege_set_capabilities(uint64_t effective, uint64_t inheritable, struct ols_err *reterr)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];

    for (int i = 0; i < 2; i++)
        data[i] = (struct __user_cap_data_struct) {
            .effective = (uint32_t) (effective >> (32 * i)),
            .permitted = (uint32_t) (effective >> (32 * i)),
            .inheritable = (uint32_t) (inheritable >> (32 * i)),
        };
    if (syscall(SYS_capset, &header, data) < 0)
        return ols_fail(reterr, errno, "capset", "");
    return 0;
}

/*
 * Empty the bounding and ambient sets, forbid new privileges, keep `keep` as permitted and effective. The bounding set can
 * only be emptied while CAP_SETPCAP is held, so this comes before any other loss. With `root_is_nothing` an execve as uid 0
 * gives no capability (securebits, capabilities(7)); a zygote's interpreter still needs that once, and locks it itself.
 */
int privilege_limit_capabilities(uint64_t keep, bool root_is_nothing, struct ols_err *reterr)
{
    unsigned long bits = SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

    /* What commands shall inherit has to be in the set before the bounding set is empty: nothing can be added to it then. */
    uint64_t inheritable = root_is_nothing ? 0 : keep;
    int r = privilege_set_capabilities(keep | 1ULL << CAP_SETPCAP, inheritable, reterr);
    if (r < 0)
        return r;
    for (unsigned long cap = 0; cap <= LAST_POSSIBLE_CAP; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
            if (errno == EINVAL)
                break; /* past the kernel's last capability */
            return ols_fail(reterr, errno, "prctl(PR_CAPBSET_DROP)", "");
        }
    if (root_is_nothing)
        bits |= SECBIT_NOROOT | SECBIT_NOROOT_LOCKED;
    if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0)
        return ols_fail(reterr, errno, "prctl(PR_SET_SECUREBITS)", "");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return ols_fail(reterr, errno, "prctl(PR_SET_NO_NEW_PRIVS)", "");
    return privilege_set_capabilities(keep, inheritable, reterr);
}

int privilege_clear_groups(struct ols_err *reterr)
{
    return setgroups(0, NULL) < 0 ? ols_fail(reterr, errno, "setgroups", "") : 0;
}

int privilege_become(uid_t uid, gid_t gid, struct ols_err *reterr)
{
    if (setresgid(gid, gid, gid) < 0)
        return ols_fail(reterr, errno, "setresgid", "");
    if (setresuid(uid, uid, uid) < 0)
        return ols_fail(reterr, errno, "setresuid", "");
    return 0;
}

/* u32 n, n x (u32 resource, u64 limit): soft and hard alike. A hard limit that is lower already stands. */
int privilege_set_rlimits(struct ols_packet *p, struct ols_err *reterr)
{
    uint32_t n = packet_u32(p);
    for (uint32_t i = 0; i < n && !p->bad; i++) {
        int resource = (int) packet_u32(p);
        uint64_t value = packet_u64(p);
        struct rlimit now, limit = {value, value};
        if (p->bad)
            break;
        if (getrlimit((__rlimit_resource_t) resource, &now) == 0 && now.rlim_max < value)
            limit = (struct rlimit) {now.rlim_max, now.rlim_max};
        if (setrlimit((__rlimit_resource_t) resource, &limit) < 0)
            return ols_fail(reterr, errno, "setrlimit", "");
    }
    return p->bad ? ols_fail(reterr, EINVAL, "message", "rlimits") : 0;
}

int privilege_load_filter(const void *program, size_t size, struct ols_err *reterr)
{
    struct sock_fprog fprog = {
        .len = (unsigned short) (size / sizeof(struct sock_filter)),
        .filter = (struct sock_filter *) program,
    };
    if (size == 0)
        return 0;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &fprog) < 0)
        return ols_fail(reterr, errno, "seccomp", "");
    return 0;
}
