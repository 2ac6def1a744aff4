/* Counts this process's file-system calls under one directory, and kills it before one of them; or
   has some of them fail; or moves the wall clock.

   cc -shared -fPIC -O1 -o killer.so killer.c -ldl;  LD_PRELOAD=killer.so python ...

   killer_arm(directory, n, trace) starts the count. Call number n (from 1) is never executed:
   the process gets SIGKILL before it. n = 0 only counts. Every call is a line of the file
   `trace` (NULL: of none), with its number, name and path. killer_count() is the calls so far.

   killer_fail(directory, names, part, error) has every call under the directory fail with this
   errno whose name is one of `names` (" write rename ") and whose path contains `part`; error = 0
   ends it. killer_move_clock(seconds) moves what this process is told of the time of day.

   Counted are all calls that change something, and those that open or read a file. Where a
   descriptor points is asked of /proc each time: nothing has to be remembered over dup and close.
   stat, readdir and mmap are not counted: they change nothing. Nor is what does without the C
   library: the safetensors package names its temporary file by a system call of its own. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#undef open
#undef open64
#undef openat
#undef openat64
#undef creat64
#undef pread64
#undef pwrite64
#undef ftruncate64
#undef sendfile64

static char directory[PATH_MAX];
static size_t directory_size;
static atomic_int armed = 0;
static int trace = -1;
static long target = 0;
static atomic_long calls = 0;

/* Runs in the one thread of a child, before others may look. */
void killer_arm(const char *path, long n, const char *trace_path) {
    directory_size = strlen(path);
    memcpy(directory, path, directory_size + 1);
    target = n;
    atomic_store(&calls, 0);
    trace = -1;
    if (trace_path) {
        int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC;
        trace = (int)syscall(SYS_openat, AT_FDCWD, trace_path, flags, 0644);
    }
    atomic_store(&armed, 1);
}

static char failing_names[64], failing_part[PATH_MAX];
static atomic_int failing = 0;

void killer_fail(const char *path, const char *names, const char *part, int error) {
    atomic_store(&failing, 0);
    directory_size = strlen(path);
    memcpy(directory, path, directory_size + 1);
    snprintf(failing_names, sizeof failing_names, "%s", names);
    snprintf(failing_part, sizeof failing_part, "%s", part);
    target = -1;
    trace = -1;
    atomic_store(&failing, error);
    atomic_store(&armed, error != 0);
}

long killer_count(void) { return atomic_load(&calls); }

static int is_ours(const char *path) {
    return strncmp(path, directory, directory_size) == 0 &&
           (path[directory_size] == '/' || path[directory_size] == '\0');
}

/* The call that is about to happen to an absolute path: whether it must fail, errno being set. */
static int count(const char *name, const char *path) {
    if (!is_ours(path)) return 0;
    int error = atomic_load(&failing);
    if (error) {
        char word[32];
        snprintf(word, sizeof word, " %s ", name);
        if (!strstr(failing_names, word) || !strstr(path, failing_part)) return 0;
        errno = error;
        return 1;
    }
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (trace >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%ld %s %s\n", number, name, path);
        if (size > 0 && (size_t)size < sizeof line) syscall(SYS_write, trace, line, (size_t)size);
    }
    if (number == target) {
        kill(getpid(), SIGKILL);
        for (;;) pause(); /* not one instruction of the call may run */
    }
    return 0;
}

/* Where a descriptor points, or "". */
static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size > 0 ? size : 0] = '\0';
}

static int count_fd(const char *name, int fd) {
    if (!atomic_load(&armed)) return 0;
    char path[PATH_MAX];
    path_of(fd, path);
    return count(name, path);
}

static int count_at(const char *name, int dirfd, const char *given) {
    if (!atomic_load(&armed) || !given) return 0;
    if (given[0] == '/') return count(name, given);
    char base[PATH_MAX], path[2 * PATH_MAX];
    if (dirfd != AT_FDCWD)
        path_of(dirfd, base);
    else if (!getcwd(base, sizeof base))
        return 0;
    snprintf(path, sizeof path, "%s/%s", base, given);
    return count(name, path);
}

/* The next definition of the function that we stand before. */
#define REAL(name) \
    static __typeof__(name) *real = NULL; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OPEN_MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

static const char *open_name(int flags) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    return writes ? "create" : "open";
}

#define DEFINE_OPEN(name) \
    int name(const char *path, int flags, ...) { \
        OPEN_MODE(flags) \
        REAL(name); \
        if (count_at(open_name(flags), AT_FDCWD, path)) return -1; \
        return real(path, flags, mode); \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_OPENAT(name) \
    int name(int dirfd, const char *path, int flags, ...) { \
        OPEN_MODE(flags) \
        REAL(name); \
        if (count_at(open_name(flags), dirfd, path)) return -1; \
        return real(dirfd, path, flags, mode); \
    }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

/* What a fortified caller comes by; without O_CREAT. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
#define DEFINE_OPEN_2(name) \
    int name(const char *path, int flags) { \
        REAL(name); \
        if (count_at(open_name(flags), AT_FDCWD, path)) return -1; \
        return real(path, flags); \
    }
DEFINE_OPEN_2(__open_2)
DEFINE_OPEN_2(__open64_2)

#define DEFINE_CREAT(name) \
    int name(const char *path, mode_t mode) { \
        REAL(name); \
        if (count_at("create", AT_FDCWD, path)) return -1; \
        return real(path, mode); \
    }
DEFINE_CREAT(creat)
DEFINE_CREAT(creat64)

/* The C library opens and writes the files of stdio by calls of its own. */
#define DEFINE_FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        if (count_at(strpbrk(mode, "wa+") ? "create" : "open", AT_FDCWD, path)) return NULL; \
        return real(path, mode); \
    }
DEFINE_FOPEN(fopen)
DEFINE_FOPEN(fopen64)

size_t fwrite(const void *data, size_t size, size_t number, FILE *file) {
    REAL(fwrite);
    if (count_fd("write", fileno(file))) return 0;
    return real(data, size, number, file);
}

#define DEFINE_FD(name, shown, parameters, arguments, fd, result) \
    result name parameters { \
        REAL(name); \
        if (count_fd(shown, fd)) return -1; \
        return real arguments; \
    }
DEFINE_FD(write, "write", (int fd, const void *data, size_t size), (fd, data, size), fd, ssize_t)
DEFINE_FD(pwrite, "write", (int fd, const void *data, size_t size, off_t at), (fd, data, size, at),
          fd, ssize_t)
DEFINE_FD(pwrite64, "write", (int fd, const void *data, size_t size, off64_t at),
          (fd, data, size, at), fd, ssize_t)
DEFINE_FD(writev, "write", (int fd, const struct iovec *parts, int number), (fd, parts, number), fd,
          ssize_t)
DEFINE_FD(pwritev, "write", (int fd, const struct iovec *parts, int number, off_t at),
          (fd, parts, number, at), fd, ssize_t)
DEFINE_FD(sendfile, "write", (int fd, int from, off_t *at, size_t size), (fd, from, at, size), fd,
          ssize_t)
DEFINE_FD(sendfile64, "write", (int fd, int from, off64_t *at, size_t size), (fd, from, at, size),
          fd, ssize_t)
DEFINE_FD(copy_file_range, "write",
          (int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags),
          (from, at, fd, to, size, flags), fd, ssize_t)
DEFINE_FD(read, "read", (int fd, void *data, size_t size), (fd, data, size), fd, ssize_t)
DEFINE_FD(pread, "read", (int fd, void *data, size_t size, off_t at), (fd, data, size, at), fd,
          ssize_t)
DEFINE_FD(pread64, "read", (int fd, void *data, size_t size, off64_t at), (fd, data, size, at), fd,
          ssize_t)
DEFINE_FD(fsync, "fsync", (int fd), (fd), fd, int)
DEFINE_FD(fdatasync, "fsync", (int fd), (fd), fd, int)
DEFINE_FD(ftruncate, "truncate", (int fd, off_t size), (fd, size), fd, int)
DEFINE_FD(ftruncate64, "truncate", (int fd, off64_t size), (fd, size), fd, int)
DEFINE_FD(posix_fallocate, "truncate", (int fd, off_t at, off_t size), (fd, at, size), fd, int)
DEFINE_FD(posix_fallocate64, "truncate", (int fd, off64_t at, off64_t size), (fd, at, size), fd,
          int)

/* A rename or link is shown by the new name, which is what appears. */
#define DEFINE_PATH(name, shown, parameters, arguments, dirfd, path) \
    int name parameters { \
        REAL(name); \
        if (count_at(shown, dirfd, path)) return -1; \
        return real arguments; \
    }
DEFINE_PATH(rename, "rename", (const char *from, const char *to), (from, to), AT_FDCWD, to)
DEFINE_PATH(renameat, "rename", (int a, const char *from, int b, const char *to), (a, from, b, to),
            b, to)
DEFINE_PATH(renameat2, "rename", (int a, const char *from, int b, const char *to, unsigned flags),
            (a, from, b, to, flags), b, to)
DEFINE_PATH(link, "link", (const char *from, const char *to), (from, to), AT_FDCWD, to)
DEFINE_PATH(linkat, "link", (int a, const char *from, int b, const char *to, int flags),
            (a, from, b, to, flags), b, to)
DEFINE_PATH(symlink, "link", (const char *from, const char *to), (from, to), AT_FDCWD, to)
DEFINE_PATH(symlinkat, "link", (const char *from, int b, const char *to), (from, b, to), b, to)
DEFINE_PATH(mkdir, "mkdir", (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
DEFINE_PATH(mkdirat, "mkdir", (int fd, const char *path, mode_t mode), (fd, path, mode), fd, path)
DEFINE_PATH(rmdir, "rmdir", (const char *path), (path), AT_FDCWD, path)
DEFINE_PATH(unlink, "unlink", (const char *path), (path), AT_FDCWD, path)
DEFINE_PATH(unlinkat, "unlink", (int fd, const char *path, int flags), (fd, path, flags), fd, path)
DEFINE_PATH(truncate, "truncate", (const char *path, off_t size), (path, size), AT_FDCWD, path)

static atomic_long moved = 0;

void killer_move_clock(long seconds) { atomic_store(&moved, seconds); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += atomic_load(&moved);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int failed = real(now, zone);
    if (!failed) now->tv_sec += atomic_load(&moved);
    return failed;
}

time_t time(time_t *now) {
    REAL(time);
    time_t found = real(NULL) + atomic_load(&moved);
    if (now) *now = found;
    return found;
}
