/*
 * olsock.runtime._fork: a zygote's fork. The child comes back to Python inside a finished sandbox.
 *
 * The only C that knows Python, and it holds the GIL from beginning to end: PyOS_BeforeFork, clone3 and PyOS_AfterFork_*
 * have to be one step for the interpreter. Limited API, so that any CPython >= 3.9 can load it; nothing else is needed there.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "isolate.h"

#include <errno.h>
#include <linux/securebits.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define WRITABLE 0x200 /* PyBUF_WRITE, which the limited API names from 3.11 on */

static PyObject *raise_error(const struct ols_err *err)
{
    errno = err->err;
    char what[sizeof err->step + sizeof err->path + 2];
    PyOS_snprintf(what, sizeof what, "%s %s", err->step, err->path);
    return PyErr_SetFromErrnoWithFilename(PyExc_OSError, what);
}

/* harden(capabilities): the first thing a zygote does, before any code of a package runs. */
static PyObject *harden(PyObject *self, PyObject *args)
{
    unsigned long long keep;
    struct ols_err err;
    unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
                         SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    (void) self;

    if (!PyArg_ParseTuple(args, "K", &keep))
        return NULL;
    /* Not dumpable: /proc/<zygote>/mem is closed to everybody without CAP_SYS_PTRACE over this namespace. */
    if (prctl(PR_SET_DUMPABLE, 0) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    /* From here on an execve as uid 0 gives nothing: a program that a package starts has no capability. CAP_SETPCAP was
     * left for this line; it is not among those kept. */
    if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (privilege_set_capabilities(keep, 0, &err) < 0)
        return raise_error(&err);
    Py_RETURN_NONE;
}

/* threads(): how many threads this process has; more than one must not fork (fork(2), CPython issue 100228). */
static PyObject *threads(PyObject *self, PyObject *args)
{
    (void) self;
    (void) args;
    struct stat st;
    if (stat("/proc/self/task", &st) < 0)
        return PyErr_SetFromErrnoWithFilename(PyExc_OSError, "/proc/self/task");
    /* A directory has a link for itself, one from above and one for each directory in it (fs/proc/base.c,
     * proc_task_getattr); reading it would cost ten times as much, and this is asked before every fork. */
    return PyLong_FromLong((long) st.st_nlink - 2);
}

static int take_fds(PyObject *list, struct ols_packet *p)
{
    Py_ssize_t n = PyList_Size(list);
    if (n < 0 || n > OLS_MAX_FDS) {
        PyErr_SetString(PyExc_ValueError, "too many file descriptors");
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        long fd = PyLong_AsLong(PyList_GetItem(list, i));
        if (fd == -1 && PyErr_Occurred())
            return -1;
        p->fds[i] = (int) fd;
    }
    p->n_fds = (unsigned int) n;
    return 0;
}

/*
 * fork(request, fds) -> pid in the zygote, whose the fds stay. In the child, which is isolated by then: 0, or if that is
 * still to be finished -1, or if it is a zygote itself -2.
 */
static PyObject *fork_sandbox(PyObject *self, PyObject *args)
{
    static char request[OLS_MAX_PACKET];
    struct ols_packet packet = {.at = request};
    struct ols_err err = {0};
    const char *bytes;
    Py_ssize_t size;
    PyObject *list;
    (void) self;

    if (!PyArg_ParseTuple(args, "y#O", &bytes, &size, &list) || take_fds(list, &packet) < 0)
        return NULL;
    if ((size_t) size > sizeof request)
        return PyErr_Format(PyExc_ValueError, "request too long");
    memcpy(request, bytes, (size_t) size);
    packet.end = request + size;

    PyOS_BeforeFork();
    pid_t pid = isolate_clone(&packet, &err);
    if (pid == 0) {
        enum child kind = isolate_child(&packet); /* does not return unless everything is in place */
        PyOS_AfterFork_Child();
        return PyLong_FromLong(kind);
    }
    PyOS_AfterFork_Parent();
    if (pid < 0)
        return raise_error(&err);
    return PyLong_FromLong(pid);
}

/* finish(channel): wait for the function's part of a sandbox that `fork` left waiting, and take it on. */
static PyObject *finish(PyObject *self, PyObject *args)
{
    int channel;
    (void) self;

    if (!PyArg_ParseTuple(args, "i", &channel))
        return NULL;
    isolate_finish(channel); /* does not return unless everything is in place */
    Py_RETURN_NONE;
}

/*
 * window(capsule, name, size): the first `size` bytes of what the first word of a capsule's structure points to, to read and
 * to write. For the state of numpy's generators: a bitgen_t begins with a pointer to it (numpy/random/bitgen.h). The caller
 * keeps the capsule's owner alive, and sees to it that the state is that long.
 */
static PyObject *window(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    const char *name;
    Py_ssize_t size;
    (void) self;

    if (!PyArg_ParseTuple(args, "Osn", &capsule, &name, &size))
        return NULL;
    void **structure = PyCapsule_GetPointer(capsule, name);
    if (!structure)
        return NULL;
    if (!*structure || size < 0)
        return PyErr_Format(PyExc_ValueError, "no state");
    return PyMemoryView_FromMemory(*structure, size, WRITABLE);
}

static PyMethodDef methods[] = {
    {"harden", harden, METH_VARARGS, "harden(capabilities): give up all else that a zygote does not need"},
    {"threads", threads, METH_NOARGS, "threads(): number of threads of this process"},
    {"fork", fork_sandbox, METH_VARARGS, "fork(request, fds): clone a sandbox; not above 0 in the child"},
    {"finish", finish, METH_VARARGS, "finish(channel): wait for the rest of a sandbox that was half made"},
    {"window", window, METH_VARARGS, "window(capsule, name, size): memory that a capsule's structure begins with"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_fork", .m_doc = "A zygote's fork.", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__fork(void)
{
    return PyModule_Create(&module);
}
