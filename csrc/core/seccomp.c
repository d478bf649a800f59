/*
 * From a table of rules to BPF bytes. libseccomp does the bulk, as a binary tree (a linear list of 280 calls takes three
 * times as long to load); a short prologue of ours goes first, for what libseccomp cannot say in a default-deny filter:
 *
 *   - a number above the newest we decided on gets its own answer (ENOSYS), so that libraries probing for a call younger
 *     than this list fall back as they would on an older kernel. x32's numbers, which share x86_64's audit arch, are
 *     all above it;
 *   - "allowed, unless an argument has this value" on the bits that the kernel looks at: ioctl and prctl truncate their
 *     command to 32 bits, and libseccomp's not-equal compares all 64 (flatpak's CVE-2019-10063).
 *
 * Jumps in BPF are relative, so putting instructions in front of a finished program changes nothing in it.
 */
#define _GNU_SOURCE
#include "olsock.h"
#include "cleanup.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define OLS_SECCOMP_PROLOGUE_MAX 512
#define OLS_SECCOMP_TESTS_MAX 6

struct prologue {
    struct sock_filter code[OLS_SECCOMP_PROLOGUE_MAX];
    unsigned int length;
};

static void release_context(const scmp_filter_ctx *context)
{
    if (*context)
        seccomp_release(*context);
}

static void emit(struct prologue *p, struct sock_filter instruction)
{
    p->code[p->length++] = instruction;
}

static void emit_load(struct prologue *p, size_t offset)
{
    emit(p, (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t) offset));
}

static void emit_return(struct prologue *p, unsigned int action)
{
    emit(p, (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, action));
}

/* Where one 32-bit half of an argument lies in `struct seccomp_data`. */
static size_t half_offset(unsigned int arg, int high)
{
    int second = (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) ? high : !high;
    return offsetof(struct seccomp_data, args) + arg * sizeof(uint64_t) + (second ? sizeof(uint32_t) : 0);
}

static unsigned int half_length(uint32_t mask)
{
    return mask ? 3 : 0;
}

static unsigned int tests_length(const struct ols_seccomp_rule *rule, unsigned int from)
{
    unsigned int length = 0;
    for (unsigned int i = from; i < rule->tests; i++)
        length += half_length((uint32_t) rule->test[i].mask) + half_length((uint32_t) (rule->test[i].mask >> 32));
    return length;
}

/* Jump `left` instructions ahead unless the half matches; `left` counts what remains of this refusal after the jump. */
static void emit_half(struct prologue *p, size_t offset, uint32_t mask, uint32_t value, unsigned int left)
{
    if (!mask)
        return;
    emit_load(p, offset);
    emit(p, (struct sock_filter) BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask));
    emit(p, (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, (uint8_t) left));
}

/* The number is in the accumulator before, and again after, whichever way the refusal goes on. */
static void emit_refusal(struct prologue *p, const struct ols_seccomp_rule *rule)
{
    unsigned int body = tests_length(rule, 0) + 2; /* the tests, the return, and the load that restores the number */

    emit(p, (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t) rule->number, 0, (uint8_t) body));
    for (unsigned int i = 0; i < rule->tests; i++) {
        const struct ols_seccomp_test *test = &rule->test[i];
        uint32_t low = (uint32_t) test->mask, high = (uint32_t) (test->mask >> 32);
        unsigned int after = tests_length(rule, i + 1) + 1; /* + the return */

        emit_half(p, half_offset(test->arg, 0), low, (uint32_t) test->value, half_length(high) + after);
        emit_half(p, half_offset(test->arg, 1), high, (uint32_t) (test->value >> 32), after);
    }
    emit_return(p, rule->action);
    emit_load(p, offsetof(struct seccomp_data, nr));
}

static int write_prologue(struct prologue *p, const struct ols_seccomp_policy *policy,
                          const struct ols_seccomp_rule *refusals, int count, struct ols_err *reterr)
{
    emit_load(p, offsetof(struct seccomp_data, arch));
    emit(p, (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, seccomp_arch_native(), 1, 0));
    emit_return(p, policy->foreign);
    emit_load(p, offsetof(struct seccomp_data, nr));
    emit(p, (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, policy->newest, 0, 1));
    emit_return(p, policy->newer);
    for (int i = 0; i < count; i++) {
        if (p->length + 3 + 6 * OLS_SECCOMP_TESTS_MAX > OLS_SECCOMP_PROLOGUE_MAX)
            return ols_fail(reterr, E2BIG, "seccomp refusals", "");
        emit_refusal(p, &refusals[i]);
    }
    return 0;
}

/* Every argument index and test count comes from a caller's data: nothing below indexes by them unchecked. */
static int check_rules(const struct ols_seccomp_rule *rules, int count, struct ols_err *reterr)
{
    for (int i = 0; i < count; i++) {
        if (rules[i].number < 0 || rules[i].tests > OLS_SECCOMP_TESTS_MAX)
            return ols_fail(reterr, EINVAL, "seccomp rule", "");
        for (unsigned int k = 0; k < rules[i].tests; k++)
            if (rules[i].test[k].arg > 5 || !rules[i].test[k].mask || (rules[i].test[k].value & ~rules[i].test[k].mask))
                return ols_fail(reterr, EINVAL, "seccomp rule", "argument test");
    }
    return 0;
}

static int add_rule(const scmp_filter_ctx context, const struct ols_seccomp_rule *rule, struct ols_err *reterr)
{
    struct scmp_arg_cmp compare[OLS_SECCOMP_TESTS_MAX] = {0};

    for (unsigned int i = 0; i < rule->tests; i++)
        compare[i] = (struct scmp_arg_cmp) {
            .arg = rule->test[i].arg,
            .op = SCMP_CMP_MASKED_EQ,
            .datum_a = rule->test[i].mask,
            .datum_b = rule->test[i].value,
        };
    int r = seccomp_rule_add_exact_array(context, rule->action, rule->number, rule->tests, compare);
    if (r < 0) {
        cleanup_free char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, rule->number);
        return ols_fail(reterr, r, "seccomp rule", name ? name : "");
    }
    return 0;
}

/* libseccomp writes programs to a file only; a memfd is one without a path. */
static long export_program(const scmp_filter_ctx context, char *to, unsigned long room, struct ols_err *reterr)
{
    cleanup_fd int fd = memfd_create("olsock-seccomp", MFD_CLOEXEC);
    if (fd < 0)
        return ols_fail(reterr, errno, "memfd_create", "seccomp");
    int r = seccomp_export_bpf(context, fd);
    if (r < 0)
        return ols_fail(reterr, r, "seccomp_export_bpf", "");
    struct stat st;
    if (fstat(fd, &st) < 0)
        return ols_fail(reterr, errno, "fstat", "seccomp program");
    unsigned long length = (unsigned long) st.st_size;
    if (length > room)
        return ols_fail(reterr, E2BIG, "seccomp program", "");
    for (unsigned long done = 0; done < length;) {
        ssize_t n = pread(fd, to + done, length - done, (off_t) done);
        if (n <= 0)
            return ols_fail(reterr, n < 0 ? errno : EIO, "pread", "seccomp program");
        done += (unsigned long) n;
    }
    return (long) length;
}

/* The number of a system call here. -EOPNOTSUPP: this architecture has none of that name; -ENOENT: nobody knows it. */
int ols_seccomp_number(const char *name, struct ols_err *reterr)
{
    int number = seccomp_syscall_resolve_name_arch(SCMP_ARCH_NATIVE, name);
    if (number == __NR_SCMP_ERROR)
        return ols_fail(reterr, ENOENT, "system call", name);
    if (number < 0)
        return ols_fail(reterr, EOPNOTSUPP, "system call", name);
    return number;
}

/*
 * Compile into `ret_program` an array of struct sock_filter, and return its size in bytes. `refusals` are looked at
 * before `rules`, in order, and may narrow a call that a rule allows outright. Rules of one number must not contradict
 * each other: libseccomp promises no order among them.
 */
int ols_seccomp_compile(const struct ols_seccomp_policy *policy, const struct ols_seccomp_rule *refusals,
                        int refusal_count, const struct ols_seccomp_rule *rules, int rule_count, void *ret_program,
                        unsigned long size, struct ols_err *reterr)
{
    int r = check_rules(refusals, refusal_count, reterr);
    if (r < 0 || (r = check_rules(rules, rule_count, reterr)) < 0)
        return r;

    struct prologue prologue = {.length = 0};
    if ((r = write_prologue(&prologue, policy, refusals, refusal_count, reterr)) < 0)
        return r;
    unsigned long head = prologue.length * sizeof(struct sock_filter);
    if (head > size)
        return ols_fail(reterr, E2BIG, "seccomp program", "");

    __attribute__((cleanup(release_context))) scmp_filter_ctx context = seccomp_init(policy->otherwise);
    if (!context)
        return ols_fail(reterr, EINVAL, "seccomp_init", "");
    if ((r = seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, policy->foreign)) < 0)
        return ols_fail(reterr, r, "seccomp_attr_set", "bad architecture");
    if ((r = seccomp_attr_set(context, SCMP_FLTATR_CTL_NNP, 0)) < 0)
        return ols_fail(reterr, r, "seccomp_attr_set", "no_new_privs");
    if ((r = seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2)) < 0)
        return ols_fail(reterr, r, "seccomp_attr_set", "optimize");
    for (int i = 0; i < rule_count; i++)
        if ((r = add_rule(context, &rules[i], reterr)) < 0)
            return r;

    long body = export_program(context, (char *) ret_program + head, size - head, reterr);
    if (body < 0)
        return (int) body;
    if ((head + (unsigned long) body) / sizeof(struct sock_filter) > BPF_MAXINSNS)
        return ols_fail(reterr, E2BIG, "seccomp program", "");
    memcpy(ret_program, prologue.code, head);
    return (int) (head + (unsigned long) body);
}
