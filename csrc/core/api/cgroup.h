int ols_cgroup_freeze(int freeze_fd, int events_fd, int frozen, int timeout_ms, struct ols_err *reterr);
int ols_cgroup_wait_empty(int events_fd, int timeout_ms, struct ols_err *reterr);
int ols_cgroup_write(int dirfd, const char *path, const char *text, struct ols_err *reterr);
int ols_cgroup_read(int dirfd, const char *path, char *ret_text, unsigned long size, struct ols_err *reterr);
int ols_cgroup_version(int dirfd, struct ols_err *reterr);
