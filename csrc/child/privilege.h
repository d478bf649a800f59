#ifndef OLS_PRIVILEGE_H
#define OLS_PRIVILEGE_H
/* Taking on limits and giving up privilege, for an init and for a handler forked from a zygote alike. Child-side, error contract as elsewhere. */
#include "message.h"

#include <sys/types.h>

int join_cgroups(const int *tasks_fds, unsigned int n, struct ols_err *reterr);
int privilege_limit_capabilities(uint64_t keep, bool root_is_nothing, struct ols_err *reterr);
int privilege_set_capabilities(uint64_t effective, uint64_t inheritable, struct ols_err *reterr);
int privilege_clear_groups(struct ols_err *reterr);
int privilege_become(uid_t uid, gid_t gid, struct ols_err *reterr);
int privilege_set_rlimits(struct ols_packet *p, struct ols_err *reterr);
int privilege_load_filter(const void *program, size_t size, struct ols_err *reterr);
#endif
