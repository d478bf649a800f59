/* A 32-bit program without a C library (cc -m32 -nostdlib -static): prints "ok" through int 0x80 and exits. */
static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

void _start(void)
{
    static const char text[] = "ok\n";
    call(4, 1, (long) text, 3);
    call(1, 0, 0, 0);
    __builtin_unreachable();
}
