#ifndef OLS_ERROR_H
#define OLS_ERROR_H
/*
 * The error contract (csrc/README.md): a fallible function returns 0, an fd or a pid, or a negative errno, and its last
 * argument is a `struct ols_err *` that is written only on failure. Nothing here allocates or touches errno, so that the
 * child side of a clone may use it.
 */
#include "api/error.h"

static inline void ols_copy(char *to, unsigned long size, const char *from)
{
    unsigned long i = 0;
    for (; from && from[i] && i + 1 < size; i++)
        to[i] = from[i];
    to[i] = '\0';
}

static inline int ols_fail(struct ols_err *reterr, int err, const char *step, const char *path)
{
    if (err < 0)
        err = -err;
    if (reterr) {
        reterr->err = err;
        ols_copy(reterr->step, sizeof reterr->step, step);
        ols_copy(reterr->path, sizeof reterr->path, path);
    }
    return -err;
}
#endif
