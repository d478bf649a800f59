#ifndef OLSOCK_H
#define OLSOCK_H
/*
 * The public C API. Each api/X.h holds plain prototypes without directives, so that csrc/build_ffi.py gives the same text
 * to cffi: the declaration that Python sees and the one that the compiler checks cannot drift apart.
 */
#include "error.h"
#include "api/mount.h"
#include "api/process.h"
#include "api/cgroup.h"
#include "api/seccomp.h"
#include "api/probe.h"
#endif
