/* What went wrong: the step that failed, the path it was given, and errno. Fixed size, so that it crosses pipes. */
struct ols_err {
    int err;
    char step[32];
    char path[220];
};
