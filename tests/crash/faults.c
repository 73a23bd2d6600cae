/* Preloaded into a worker: kills it, or makes a call fail, at one named file-system call below one folder.

   strace can do the like, but it counts calls for each thread by itself, so the calls of the threads that store and
   run could never be reached by number; and it costs a second a run. Here a call is named by what it does:

     FAULTS_ROOT    only calls on paths below this folder count
     FAULTS_TRACE   append each counted call to this file, a line each: `unlinkat tasks/marie/.claims/HEX/a~1-0.json`
     FAULTS_AT      the call to hit, as such a line and its number, `unlinkat tasks/... 1`; the hit is told in the trace
                    as a line that begins with `!`
     FAULTS_DO      `kill`: SIGKILL before the call takes place; a number: the call fails with this errno
     FAULTS_TIMES   so many such calls in a row fail (1)
     FAULTS_CLOCK   a file that holds a double: seconds that the wall clock is off, read at each look at the clock

   What differs from run to run is replaced in the names: an incarnation, or another hash of twelve digits or more, by
   HEX, a long number by NUM. The kill stands for one at any moment since the call before: between two calls nothing
   changes on disk. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char root[PATH_MAX], at[PATH_MAX + 100];
static const char *trace;
static const double *clock_offset;
static long wanted, times = 1, seen;
static int fault;
static size_t root_size;

__attribute__((constructor)) static void begin(void)
{
    const char *value = getenv("FAULTS_ROOT");
    if (value && realpath(value, root))
        root_size = strlen(root);
    trace = getenv("FAULTS_TRACE");
    if ((value = getenv("FAULTS_TIMES")))
        times = atol(value);
    if ((value = getenv("FAULTS_DO")) && strcmp(value, "kill"))
        fault = atoi(value);
    if ((value = getenv("FAULTS_AT"))) {
        snprintf(at, sizeof at, "%s", value);
        char *space = strrchr(at, ' ');
        if (space) {
            wanted = atol(space + 1);
            *space = 0;
        }
    }
    if ((value = getenv("FAULTS_CLOCK"))) {
        int fd = syscall(SYS_openat, AT_FDCWD, value, O_RDONLY | O_CLOEXEC);
        void *page = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
        clock_offset = page == MAP_FAILED ? NULL : page;
        syscall(SYS_close, fd);
    }
}

static void tell(const char *mark, const char *name)
{
    char line[PATH_MAX + 110];
    if (!trace)
        return;
    int n = snprintf(line, sizeof line, "%s%s\n", mark, name);
    int fd = syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    syscall(SYS_write, fd, line, n);
    syscall(SYS_close, fd);
}

/* Replace what differs from run to run. */
static void plain(char *out, size_t size, const char *in)
{
    char *end = out + size - 8;
    while (*in && out < end) {
        size_t hex = strspn(in, "0123456789abcdef"), number = strspn(in, "0123456789");
        size_t taken = hex >= 32 ? 32 : hex >= 12 ? hex : number >= 5 ? number : 0;
        if (taken) {
            out = stpcpy(out, hex >= 12 ? "HEX" : "NUM"); /* one hash in 300 has only digits */
            in += taken;
        } else {
            size_t run = hex > 0 ? hex : 1;
            while (run-- && out < end)
                *out++ = *in++;
        }
    }
    *out = 0;
}

/* Whether this call must fail; does not come back when it is the one to be killed at. */
static int hit(const char *call, const char *path)
{
    char name[PATH_MAX + 100];
    if (!root_size || strncmp(path, root, root_size) || path[root_size] != '/')
        return 0;
    int n = snprintf(name, sizeof name, "%s ", call);
    plain(name + n, sizeof name - n, path + root_size + 1);
    tell("", name);
    if (!wanted || strcmp(name, at))
        return 0;
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (number < wanted || number >= wanted + times)
        return 0;
    tell("! ", name);
    if (!fault) {
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
    errno = fault;
    return 1;
}

static void of_fd(int fd, char *out)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlink, link, out, PATH_MAX - 1);
    out[n > 0 ? n : 0] = 0;
}

static void of_path(int folder, const char *path, char *out)
{
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, out, PATH_MAX) < 0)
            out[0] = 0;
    } else
        of_fd(folder, out);
    size_t size = strlen(out);
    snprintf(out + size, PATH_MAX - size, "/%s", path);
}

static int hit_path(const char *call, int folder, const char *path)
{
    char whole[PATH_MAX];
    int before = errno;
    if (!root_size)
        return 0;
    of_path(folder, path, whole);
    if (hit(call, whole))
        return 1;
    errno = before;
    return 0;
}

static int hit_fd(const char *call, int fd)
{
    char whole[PATH_MAX];
    int before = errno;
    if (!root_size)
        return 0;
    of_fd(fd, whole);
    if (hit(call, whole))
        return 1;
    errno = before;
    return 0;
}

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) \
        next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define ON_PATH(type, name, parameters, folder, path, arguments) \
    type name parameters \
    { \
        NEXT(name); \
        return hit_path(#name, folder, path) ? (type)-1 : next arguments; \
    }

#define ON_FD(type, name, parameters, fd, arguments) \
    type name parameters \
    { \
        NEXT(name); \
        return hit_fd(#name, fd) ? (type)-1 : next arguments; \
    }

#define OPEN(name, parameters, folder, arguments) \
    int name parameters \
    { \
        NEXT(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        const char *call = flags & O_CREAT ? "create" : flags & O_DIRECTORY ? "opendir" : "open"; \
        return hit_path(call, folder, path) ? -1 : next arguments; \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPEN(openat, (int folder, const char *path, int flags, ...), folder, (folder, path, flags, mode))
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, (folder, path, flags, mode))

/* Renames and links are named by their source; the target follows from it. */
ON_PATH(int, rename, (const char *old, const char *new), AT_FDCWD, old, (old, new))
ON_PATH(int, renameat, (int a, const char *old, int b, const char *new), a, old, (a, old, b, new))
ON_PATH(int, renameat2, (int a, const char *old, int b, const char *new, unsigned f), a, old, (a, old, b, new, f))
ON_PATH(int, link, (const char *old, const char *new), AT_FDCWD, old, (old, new))
ON_PATH(int, linkat, (int a, const char *old, int b, const char *new, int f), a, old, (a, old, b, new, f))
ON_PATH(int, unlink, (const char *path), AT_FDCWD, path, (path))
ON_PATH(int, unlinkat, (int folder, const char *path, int flags), folder, path, (folder, path, flags))
ON_PATH(int, rmdir, (const char *path), AT_FDCWD, path, (path))
ON_PATH(int, mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
ON_PATH(int, mkdirat, (int folder, const char *path, mode_t mode), folder, path, (folder, path, mode))
ON_PATH(int, utimensat, (int folder, const char *path, const struct timespec t[2], int f), folder, path, (folder, path, t, f))
ON_PATH(int, stat64, (const char *path, struct stat64 *s), AT_FDCWD, path, (path, s))
ON_PATH(int, lstat64, (const char *path, struct stat64 *s), AT_FDCWD, path, (path, s))
ON_PATH(int, fstatat64, (int folder, const char *path, struct stat64 *s, int f), folder, path, (folder, path, s, f))
ON_PATH(int, access, (const char *path, int mode), AT_FDCWD, path, (path, mode))

ON_FD(int, fsync, (int fd), fd, (fd))
ON_FD(int, fdatasync, (int fd), fd, (fd))
ON_FD(int, syncfs, (int fd), fd, (fd))
ON_FD(int, flock, (int fd, int operation), fd, (fd, operation))
ON_FD(int, ftruncate64, (int fd, off64_t size), fd, (fd, size))
ON_FD(ssize_t, write, (int fd, const void *data, size_t size), fd, (fd, data, size))
ON_FD(ssize_t, read, (int fd, void *data, size_t size), fd, (fd, data, size))
ON_FD(int, fstat64, (int fd, struct stat64 *s), fd, (fd, s))
ON_FD(int, fstatvfs64, (int fd, struct statvfs64 *s), fd, (fd, s))

int flock(int fd, int operation);

DIR *fdopendir(int fd)
{
    NEXT(fdopendir);
    return hit_fd("list", fd) ? NULL : next(fd);
}

DIR *opendir(const char *path)
{
    NEXT(opendir);
    return hit_path("list", AT_FDCWD, path) ? NULL : next(path);
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    NEXT(clock_gettime);
    int result = next(id, t);
    if (clock_offset && id == CLOCK_REALTIME && !result)
        t->tv_sec += (time_t)*(volatile const double *)clock_offset;
    return result;
}

time_t time(time_t *out)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}
