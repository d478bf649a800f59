/*
 * Makes the system calls it is told to and says how each went. Lines on stdin: an ABI (native, x32, i386), a number and
 * up to six arguments, each a number or the word `page` (the address of a zeroed, writable page). For each it prints
 * "<result> <errno>". The program of a seccomp filter, named by argv[1..], is loaded first; several are stacked in order.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int load(const char *path)
{
    static struct sock_filter code[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, code, sizeof code);
    if (size <= 0)
        return -1;
    close(fd);
    struct sock_fprog program = {.len = (unsigned short) ((size_t) size / sizeof code[0]), .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return (int) syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

static long i386_call(long number, const unsigned long *a)
{
#ifdef __x86_64__
    long result;
    /* The old gate: the kernel takes eax and the low halves of ebx, ecx, edx, esi, edi whatever mode the caller is in. */
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                     : "memory", "r8", "r9", "r10", "r11");
    if (result < 0 && result > -4096) {
        errno = (int) -result;
        return -1;
    }
    return result;
#else
    (void) number, (void) a;
    errno = EOPNOTSUPP;
    return -1;
#endif
}

int main(int argc, char **argv)
{
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char line[512];

    if (page == MAP_FAILED)
        return 3;
    for (int i = 1; i < argc; i++)
        if (load(argv[i]) < 0) {
            perror(argv[i]);
            return 2;
        }
    while (fgets(line, sizeof line, stdin)) {
        unsigned long a[6] = {0};
        char *save = NULL, *abi = strtok_r(line, " \n", &save), *word = strtok_r(NULL, " \n", &save);
        if (!abi || !word)
            return 3;
        long number = strtol(word, NULL, 0);
        for (int i = 0; i < 6 && (word = strtok_r(NULL, " \n", &save)); i++)
            a[i] = strcmp(word, "page") ? strtoul(word, NULL, 0) : (unsigned long) (uintptr_t) page;
        memset(page, 0, 4096);
        errno = 0;
        long result = strcmp(abi, "i386")
                        ? syscall(strcmp(abi, "x32") ? number : number | 0x40000000, a[0], a[1], a[2], a[3], a[4], a[5])
                        : i386_call(number, a);
        int failure = result == -1 ? errno : 0;
        printf("%ld %d\n", result, failure);
        fflush(stdout);
    }
    return 0;
}
