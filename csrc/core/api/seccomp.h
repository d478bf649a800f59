/* One condition on an argument: (args[arg] & mask) == value. */
struct ols_seccomp_test {
    unsigned int arg;
    unsigned long long mask;
    unsigned long long value;
};
/* `action` (a SECCOMP_RET_* value) for `number` when the first `tests` conditions all hold. */
struct ols_seccomp_rule {
    int number;
    unsigned int action;
    unsigned int tests;
    struct ols_seccomp_test test[6];
};
/* What no rule decides: a foreign ABI, a number above `newest` (x32's among them), and everything else. */
struct ols_seccomp_policy {
    unsigned int otherwise;
    unsigned int foreign;
    unsigned int newer;
    unsigned int newest;
};
int ols_seccomp_number(const char *name, struct ols_err *reterr);
int ols_seccomp_compile(const struct ols_seccomp_policy *policy, const struct ols_seccomp_rule *refusals,
                        int refusal_count, const struct ols_seccomp_rule *rules, int rule_count, void *ret_program,
                        unsigned long size, struct ols_err *reterr);
