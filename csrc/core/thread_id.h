#ifndef OLS_THREAD_ID_H
#define OLS_THREAD_ID_H
#include "syscalls.h"

#include <stddef.h>
#include <sys/prctl.h>

/*
 * Where the C library keeps this thread's id. After a raw clone it would still be the zygote's there, and the child's first
 * own thread, which really gets that id, would own main's recursive mutexes; so the kernel is asked to correct it in the
 * child. It was told the address when the thread was made (prctl(2), PR_GET_TID_ADDRESS). A kernel without
 * CONFIG_CHECKPOINT_RESTORE does not say; glibc's struct pthread has the id 16 bytes before the robust list's head
 * (nptl/descr.h: pid_t tid, pid_t pid_ununused, void *robust_prev), which is believed only if the id is there.
 */
static inline int *thread_id_address(void)
{
    int *tid = NULL;
    char *head = NULL;
    size_t size = 0;

    if (prctl(PR_GET_TID_ADDRESS, &tid, 0, 0, 0) == 0)
        return tid;
    if (syscall(SYS_get_robust_list, 0, &head, &size) < 0 || !head)
        return NULL;
    tid = (int *) (void *) (head - 16);
    return *tid == (int) syscall(SYS_gettid) && *tid == getpid() ? tid : NULL;
}
#endif
