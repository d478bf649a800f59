/* From a freshly cloned process to a sandbox: the order matters, each step needs what the next one gives up. Child-side. */
#define _GNU_SOURCE
#include "spawner.h"

#include "../core/syscalls.h"

#include <sched.h>
#include <string.h>

enum setup_flags { NEW_CGROUP = 1, OWN_NETWORK = 2, FILTER_INIT = 4, NEW_TIME = 8 };

/*
 * u32 flags, str hostname, u64 capabilities, u32 n + rlimits, blob filter, then the root (root.c)
 *
 * The filter is in place before the first command in either form: loaded here, where every command inherits it, or kept
 * for commands to load, for an init that still has to make network namespaces for a zygote.
 */
int setup_sandbox(struct ols_packet *p, struct setup *ret_setup, struct ols_err *reterr)
{
    static unsigned char filter[64 * 1024];
    uint32_t flags = packet_u32(p);
    const char *hostname = packet_str(p);
    uint64_t capabilities = packet_u64(p);
    int r;

    if (p->bad)
        return ols_fail(reterr, EINVAL, "message", "setup");
    /* Until the maps were written this process was nobody in its own namespace; now it becomes its root. */
    r = privilege_clear_groups(reterr);
    if (r >= 0)
        r = privilege_become(0, 0, reterr);
    if (r < 0)
        return r;
    if (flags & NEW_CGROUP && unshare(CLONE_NEWCGROUP) < 0)
        return ols_fail(reterr, errno, "unshare(cgroup namespace)", "");
    if (flags & NEW_TIME && unshare(CLONE_NEWTIME) < 0)
        return ols_fail(reterr, errno, "unshare(time namespace)", "");
    if (hostname[0] && sethostname(hostname, strlen(hostname)) < 0)
        return ols_fail(reterr, errno, "sethostname", hostname);
    if (flags & OWN_NETWORK) {
        r = network_loopback_up(reterr);
        if (r < 0)
            return r;
    }
    r = privilege_set_rlimits(p, reterr);
    if (r < 0)
        return r;
    size_t size;
    const void *program = packet_blob(p, &size);
    if (p->bad || size > sizeof filter)
        return ols_fail(reterr, EINVAL, "message", "filter");
    r = root_enter(p, reterr);
    if (r < 0)
        return r;
    r = privilege_limit_capabilities(capabilities, flags & FILTER_INIT, reterr);
    if (r < 0)
        return r;

    *ret_setup = (struct setup) {.capabilities = capabilities};
    if (flags & FILTER_INIT)
        return privilege_load_filter(program, size, reterr);
    memcpy(filter, program, size);
    ret_setup->filter = filter;
    ret_setup->filter_size = size;
    return 0;
}
