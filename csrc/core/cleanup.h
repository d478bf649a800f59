#ifndef OLS_CLEANUP_H
#define OLS_CLEANUP_H
/* Scope-bound ownership: `cleanup_fd int fd = -1;` closes on every return; `steal_fd(&fd)` hands the fd on. */
#include <stdlib.h>
#include <unistd.h>

static inline void ols_close_fd(const int *fd)
{
    if (*fd >= 0)
        (void) close(*fd);
}

static inline void ols_free_ptr(void *p)
{
    free(*(void **) p);
}

static inline int steal_fd(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

#define cleanup_fd __attribute__((cleanup(ols_close_fd)))
#define cleanup_free __attribute__((cleanup(ols_free_ptr)))
#endif
