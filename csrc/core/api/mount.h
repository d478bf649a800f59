int ols_open_tree(int dirfd, const char *path, unsigned int flags, struct ols_err *reterr);
int ols_move_mount(int from_fd, int to_dirfd, const char *to_path, struct ols_err *reterr);
int ols_mount_setattr(int dirfd, const char *path, int recursive, unsigned long set, unsigned long clear,
                      unsigned long propagation, int userns_fd, struct ols_err *reterr);
int ols_fs_mount(const char *type, const char *const *keys, const char *const *values, int count,
                 unsigned int attributes, struct ols_err *reterr);
int ols_openat2(int dirfd, const char *path, unsigned long flags, unsigned long mode, unsigned long resolve,
                struct ols_err *reterr);
