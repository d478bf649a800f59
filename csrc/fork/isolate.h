#ifndef OLS_ISOLATE_H
#define OLS_ISOLATE_H
/* What a zygote's child does before a line of Python runs in it. Error contract as in csrc/README.md. */
#include "../child/privilege.h"

enum request_flags {
    NETWORK_GIVEN = 1,   /* a network namespace to enter comes along */
    NETWORK_SHARED = 2,  /* the zygote's own is kept */
    SEPARATE_ERRORS = 4, /* stderr is a pipe of its own */
    WAITING = 8,         /* the function's part comes later, by the channel: `isolate_finish` */
    NEST = 16,           /* a zygote, in the namespaces of another init: nest.c */
};

#define CHANNEL 3

struct streams {
    int channel, log, errors;
};

enum child { FINISHED = 0, HALF_MADE = -1, ZYGOTE = -2 };

/* isolate.c: the clone, which is 0 in the child; and what the child does then, which returns only if all is in place */
int *thread_id(void); /* where the C library keeps it; NULL: unknown */
pid_t isolate_clone(struct ols_packet *p, struct ols_err *reterr);
enum child isolate_child(struct ols_packet *p);
void isolate_finish(int channel);

/* nest.c; child-side */
int nest(struct ols_packet *p, const struct streams *streams, int *ret_channel, struct ols_err *reterr);

/* streams.c; child-side */
int streams_set(const struct streams *streams, int *ret_channel, struct ols_err *reterr);
_Noreturn void report_fault(int channel, const struct ols_err *err);
#endif
