/* Delays every open of a path that begins with SLOW_OPEN_PREFIX by SLOW_OPEN_MS milliseconds, as a slow file system. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

static void wait_for(const char *path) {
    const char *prefix = getenv("SLOW_OPEN_PREFIX"), *milliseconds = getenv("SLOW_OPEN_MS");
    if (!prefix || !milliseconds || !path || strncmp(path, prefix, strlen(prefix))) return;
    long count = atol(milliseconds);
    struct timespec pause = {count / 1000, count % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

#define OPEN(name)                                                                    \
    int name(const char *path, int flags, ...) {                                      \
        va_list arguments;                                                            \
        va_start(arguments, flags);                                                   \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;  \
        va_end(arguments);                                                            \
        int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);                \
        wait_for(path);                                                               \
        return next(path, flags, mode);                                               \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                  \
    int name(int folder, const char *path, int flags, ...) {                          \
        va_list arguments;                                                            \
        va_start(arguments, flags);                                                   \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;  \
        va_end(arguments);                                                            \
        int (*next)(int, const char *, int, ...) = dlsym(RTLD_NEXT, #name);           \
        wait_for(path);                                                               \
        return next(folder, path, flags, mode);                                       \
    }
OPENAT(openat)
OPENAT(openat64)
