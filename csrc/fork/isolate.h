#ifndef OLS_ISOLATE_H
#define OLS_ISOLATE_H
/* The clone of a handler out of a zygote, and what its child does before it is a sandbox. Knows no Python. */
#include "../child/privilege.h"

pid_t isolate_clone(struct ols_packet *p, struct ols_err *reterr);
void isolate_child(struct ols_packet *p);
#endif
