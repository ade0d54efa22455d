/* Preloaded before libc: counts calls of each kind below a folder, and makes the n-th one fail or kill its process. The
   orders are in a block of shared memory (struct control; _fault_injection.py has the same fields), so that a process
   and its children count together, and the counts outlive a killed process. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, CREATE, READ, WRITE, SYNC, RENAME, UNLINK, LINK, MKDIR, TRUNCATE, MMAP, MSYNC, STAT, LIST, KINDS };
enum action { NOTHING, FAIL, KILL_BEFORE, KILL_AFTER, KILL_WITHIN, UNREADABLE };

struct control {
    int64_t action, kinds, error, lasting; /* kinds: one bit per kind; lasting: every later call fails as well */
    int64_t at;                            /* the number of the call, from 1, among calls of these kinds */
    int64_t matched, struck;
    int64_t calls[KINDS];
    char folder[1024], where[1024]; /* where: the file that the fault hit */
};

static struct control *control;
static __thread char named[1024]; /* the file of the current call */

void faults_control(struct control *block) { control = block; }

static int below(const char *path) {
    snprintf(named, sizeof named, "%s", path);
    size_t length = strlen(control->folder);
    return strncmp(path, control->folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length <= 0) return 0;
    path[length] = 0;
    return below(path);
}

/* A process under test has the folder as its working directory. */
static int path_below(int directory, const char *path) {
    if (path == NULL || control == NULL) return 0;
    if (path[0] == '/') return below(path);
    int inside = directory == AT_FDCWD || fd_below(directory);
    snprintf(named, sizeof named, "%s", path);
    return inside;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count a call. Returns the action if this is the chosen call; KILL_BEFORE dies here. */
static int strike(enum kind kind, int inside) {
    if (!inside) return NOTHING;
    __atomic_add_fetch(&control->calls[kind], 1, __ATOMIC_SEQ_CST);
    if (control->action == UNREADABLE && control->struck && strcmp(named, control->where) == 0) {
        errno = EIO; /* for any way of reading the file */
        return kind == READ ? FAIL : kind == MMAP ? UNREADABLE : NOTHING;
    }
    if (control->action == NOTHING || !(control->kinds >> kind & 1)) return NOTHING;
    int64_t number = __atomic_add_fetch(&control->matched, 1, __ATOMIC_SEQ_CST);
    if (number != control->at && !(control->lasting && number > control->at)) return NOTHING;
    __atomic_add_fetch(&control->struck, 1, __ATOMIC_SEQ_CST);
    memcpy(control->where, named, sizeof named);
    if (control->action == KILL_BEFORE) die();
    if (control->action == FAIL) errno = (int)control->error;
    return (int)control->action;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define AROUND(type, kind, inside, failed, call) \
    int action = strike(kind, control != NULL && (inside)); \
    if (action == FAIL) return failed; \
    type result = call; \
    if (action == KILL_AFTER || action == KILL_WITHIN) die(); \
    return result

#define OPEN_AT(name, directory, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        AROUND(int, flags & O_CREAT ? CREATE : OPEN, path_below(directory, path), -1, real arguments); \
    }
OPEN_AT(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN_AT(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN_AT(openat, directory, (int directory, const char *path, int flags, ...), (directory, path, flags, mode))
OPEN_AT(openat64, directory, (int directory, const char *path, int flags, ...), (directory, path, flags, mode))

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        AROUND(FILE *, mode[0] == 'r' ? OPEN : CREATE, path_below(AT_FDCWD, path), NULL, real(path, mode)); \
    }
FOPEN(fopen)
FOPEN(fopen64)

DIR *opendir(const char *path) {
    REAL(opendir);
    AROUND(DIR *, LIST, path_below(AT_FDCWD, path), NULL, real(path));
}

DIR *fdopendir(int fd) {
    REAL(fdopendir);
    AROUND(DIR *, LIST, fd_below(fd), NULL, real(fd));
}

#define ON_FD(type, name, kind, parameters, arguments) \
    type name parameters { \
        REAL(name); \
        AROUND(type, kind, fd_below(fd), -1, real arguments); \
    }
ON_FD(ssize_t, read, READ, (int fd, void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, pread, READ, (int fd, void *data, size_t size, off_t offset), (fd, data, size, offset))
ON_FD(ssize_t, pread64, READ, (int fd, void *data, size_t size, off64_t offset), (fd, data, size, offset))
ON_FD(ssize_t, readv, READ, (int fd, const struct iovec *parts, int count), (fd, parts, count))
ON_FD(ssize_t, writev, WRITE, (int fd, const struct iovec *parts, int count), (fd, parts, count))
#define VECTOR(name, kind, offset_type) \
    ON_FD(ssize_t, name, kind, (int fd, const struct iovec *parts, int count, offset_type at), (fd, parts, count, at)) \
    ON_FD(ssize_t, name##2, kind, (int fd, const struct iovec *parts, int count, offset_type at, int how), \
          (fd, parts, count, at, how))
#define preadv642 preadv64v2
#define pwritev642 pwritev64v2
VECTOR(preadv, READ, off_t)
VECTOR(preadv64, READ, off64_t)
VECTOR(pwritev, WRITE, off_t)
VECTOR(pwritev64, WRITE, off64_t)
ON_FD(ssize_t, sendfile, WRITE, (int fd, int from, off_t *offset, size_t size), (fd, from, offset, size))
ON_FD(ssize_t, sendfile64, WRITE, (int fd, int from, off64_t *offset, size_t size), (fd, from, offset, size))
ON_FD(ssize_t, copy_file_range, WRITE,
      (int from, off64_t *start, int fd, off64_t *offset, size_t size, unsigned how),
      (from, start, fd, offset, size, how))
ON_FD(int, fsync, SYNC, (int fd), (fd))
ON_FD(int, fdatasync, SYNC, (int fd), (fd))
ON_FD(int, syncfs, SYNC, (int fd), (fd))
ON_FD(int, ftruncate, TRUNCATE, (int fd, off_t size), (fd, size))
ON_FD(int, ftruncate64, TRUNCATE, (int fd, off64_t size), (fd, size))

/* These return the number of the error. */
#define ALLOCATE(name, offset_type) \
    int name(int fd, offset_type offset, offset_type size) { \
        REAL(name); \
        AROUND(int, TRUNCATE, fd_below(fd), (int)control->error, real(fd, offset, size)); \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

/* A process may be killed when half of what it writes is written. */
#define WRITE_TO(name, parameters, arguments) \
    ssize_t name parameters { \
        REAL(name); \
        int action = strike(WRITE, control != NULL && fd_below(fd)); \
        if (action == FAIL) return -1; \
        if (action == KILL_WITHIN) size /= 2; \
        ssize_t result = real arguments; \
        if (action == KILL_AFTER || action == KILL_WITHIN) die(); \
        return result; \
    }
WRITE_TO(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITE_TO(pwrite, (int fd, const void *data, size_t size, off_t offset), (fd, data, size, offset))
WRITE_TO(pwrite64, (int fd, const void *data, size_t size, off64_t offset), (fd, data, size, offset))

#define ON_PATH(name, kind, directory, path, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        AROUND(int, kind, path_below(directory, path), -1, real arguments); \
    }
ON_PATH(rename, RENAME, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(renameat, RENAME, there, to, (int here, const char *from, int there, const char *to), (here, from, there, to))
ON_PATH(renameat2, RENAME, there, to, (int here, const char *from, int there, const char *to, unsigned how),
        (here, from, there, to, how))
ON_PATH(link, LINK, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(linkat, LINK, there, to, (int here, const char *from, int there, const char *to, int how),
        (here, from, there, to, how))
ON_PATH(symlink, LINK, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(unlink, UNLINK, AT_FDCWD, path, (const char *path), (path))
ON_PATH(unlinkat, UNLINK, directory, path, (int directory, const char *path, int how), (directory, path, how))
ON_PATH(rmdir, UNLINK, AT_FDCWD, path, (const char *path), (path))
ON_PATH(mkdir, MKDIR, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(mkdirat, MKDIR, directory, path, (int directory, const char *path, mode_t mode), (directory, path, mode))
ON_PATH(truncate, TRUNCATE, AT_FDCWD, path, (const char *path, off_t size), (path, size))
ON_PATH(truncate64, TRUNCATE, AT_FDCWD, path, (const char *path, off64_t size), (path, size))
ON_PATH(stat, STAT, AT_FDCWD, path, (const char *path, struct stat *found), (path, found))
ON_PATH(lstat, STAT, AT_FDCWD, path, (const char *path, struct stat *found), (path, found))
ON_PATH(stat64, STAT, AT_FDCWD, path, (const char *path, struct stat64 *found), (path, found))
ON_PATH(lstat64, STAT, AT_FDCWD, path, (const char *path, struct stat64 *found), (path, found))
ON_PATH(fstatat, STAT, directory, path, (int directory, const char *path, struct stat *found, int how),
        (directory, path, found, how))
ON_PATH(fstatat64, STAT, directory, path, (int directory, const char *path, struct stat64 *found, int how),
        (directory, path, found, how))

/* Touching a page that the disk cannot read raises SIGBUS. Pages beyond the end of a file do the same here. */
static void *unreadable(void *pages, size_t size, int protection) {
    int empty = memfd_create("unreadable", MFD_CLOEXEC);
    void *result = mmap(pages, size, protection, MAP_SHARED | MAP_FIXED, empty, 0);
    close(empty);
    return result;
}

#define MAP(name, offset_type) \
    void *name(void *where, size_t size, int protection, int flags, int fd, offset_type offset) { \
        REAL(name); \
        int action = strike(MMAP, control != NULL && fd >= 0 && fd_below(fd)); \
        if (action == FAIL) return MAP_FAILED; \
        void *result = real(where, size, protection, flags, fd, offset); \
        if (action == KILL_AFTER || action == KILL_WITHIN) die(); \
        if (action == UNREADABLE && result != MAP_FAILED) return unreadable(result, size, protection); \
        return result; \
    }
MAP(mmap, off_t)
MAP(mmap64, off64_t)

/* Only files are synced this way; which file it is, is not looked up. */
int msync(void *pages, size_t size, int flags) {
    REAL(msync);
    named[0] = 0;
    AROUND(int, MSYNC, 1, -1, real(pages, size, flags));
}
