int ols_pidfd_open(int pid, struct ols_err *reterr);
int ols_pidfd_signal(int pidfd, int signal, struct ols_err *reterr);
int ols_close_range(unsigned int first, unsigned int last, struct ols_err *reterr);
int ols_memfd(const char *name, const void *data, unsigned long size, struct ols_err *reterr);
int ols_ns_fd(int proc_fd, int pid, const char *kind, struct ols_err *reterr);
