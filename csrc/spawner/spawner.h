#ifndef OLS_SPAWNER_H
#define OLS_SPAWNER_H
/* What the parts of the spawner offer one another. Error contract as in csrc/README.md. */
#include "../child/message.h"
#include "../child/privilege.h"

#include <sys/types.h>

/* namespace.c: the spawner's own mount namespace, and the trees that are kept in it */
int base_create(const char *directory, struct ols_err *reterr);
int base_proc(void); /* its procfs, which no sandbox can have put anything in the place of */
int base_attach(int tree_fd, const char *path, struct ols_err *reterr);
int base_detach(const char *path, struct ols_err *reterr);

/* overlay.c */
int overlay_create(struct ols_packet *p, struct ols_err *reterr);

/* clone.c */
struct id_map {
    uint32_t inside, host, count;
};
struct clone_request {
    uint64_t flags;
    int cgroup; /* -1: the spawner's */
    const struct id_map *maps;
    uint32_t n_maps;
    const int *inside; /* user, pid and mount namespace of another init to be made inside of; NULL: the host's */
};
struct init_start {
    int channel;
    const int *tasks; /* of cgroups of version 1 to enter */
    unsigned int n_tasks;
    bool new_netns;
};
int sandbox_clone(const struct clone_request *request, struct init_start *start, int *ret_pidfd,
                  struct ols_err *reterr);

/* init.c: pid 1 of a sandbox; child-side, never returns */
_Noreturn void init_main(const struct init_start *start);

/* setup.c: what init does before the first command; child-side */
struct setup {
    const void *filter; /* loaded by each command unless `filter_init` */
    size_t filter_size;
    uint64_t capabilities; /* kept by init */
};
int setup_sandbox(struct ols_packet *p, struct setup *ret_setup, struct ols_err *reterr);

/* network.c; child-side */
int network_loopback_up(struct ols_err *reterr);
int network_create(struct ols_err *reterr);

/* root.c; child-side */
int root_enter(struct ols_packet *p, struct ols_err *reterr);

/* command.c; child-side */
pid_t command_spawn(struct ols_packet *p, const struct setup *setup, struct ols_err *reterr);
#endif
