int ols_pidfd_open(int pid, struct ols_err *reterr);
int ols_ns_fd(int proc_fd, int pid, const char *kind, struct ols_err *reterr);
