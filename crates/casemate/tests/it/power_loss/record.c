/* Writes down what a program does to the files of one folder: names, bytes and flushes, in their order.
 *
 * To be loaded with LD_PRELOAD. RECORD_FOLDER is the folder, RECORD_TO the file to append to. One lock is held over a
 * call and its record, so the order of the records is the order of what happened, and a flush stands behind all that it
 * flushed. Each record is appended by one write, so other processes may append their own in between.
 *
 * A record: kind, length of the name, offset, length of the data (u32, u32, u64, u64, as the machine has them), name, data.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 1, LENGTH, FLUSH, CREATE, REMOVE, RENAME, LINK, FLUSH_NAMES };

#define FILES 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *names[FILES]; /* by descriptor; "" is the folder itself */
static const char *folder;
static size_t folder_length;
static int out = -1;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) {
    fprintf(stderr, "record: there is no %s\n", name);
    abort();
  }
  return found;
}

__attribute__((constructor)) static void begin(void) {
  const char *to = getenv("RECORD_TO");
  folder = getenv("RECORD_FOLDER");
  if (!to || !folder) return;
  folder_length = strlen(folder);
  out = REAL(open)(to, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (out < 0) {
    perror("record");
    abort();
  }
}

/* The name of `path` inside the folder; none if it is elsewhere. SQLite rebuilds `-shm` files after a loss of power. */
static const char *inside(const char *path) {
  if (out < 0 || strncmp(path, folder, folder_length) != 0) return NULL;
  path += folder_length;
  if (*path == '/') path++;
  else if (*path) return NULL;
  size_t length = strlen(path);
  return length >= 4 && strcmp(path + length - 4, "-shm") == 0 ? NULL : path;
}

static const char *name_of(int fd) { return fd >= 0 && fd < FILES ? names[fd] : NULL; }

static void put(enum kind kind, const char *name, uint64_t offset, const void *data, uint64_t length) {
  uint32_t words[2] = {kind, (uint32_t)strlen(name)};
  uint64_t longs[2] = {offset, length};
  size_t size = sizeof words + sizeof longs + words[1] + (data ? length : 0);
  char *record = malloc(size), *at = record;
  if (!record) abort();
  at = mempcpy(at, words, sizeof words);
  at = mempcpy(at, longs, sizeof longs);
  at = mempcpy(at, name, words[1]);
  if (data) memcpy(at, data, length);
  if (REAL(write)(out, record, size) != (ssize_t)size) {
    perror("record");
    abort();
  }
  free(record);
}

static int opened(int fd, const char *name, int flags, int existed) {
  if (fd < 0 || !name) return fd;
  if (fd >= FILES) abort();
  names[fd] = strdup(name);
  if ((flags & O_CREAT) && !existed) put(CREATE, name, 0, NULL, 0);
  if (flags & O_TRUNC) put(LENGTH, name, 0, NULL, 0);
  return fd;
}

#define OPEN(function, ...)                                                              \
  mode_t mode = 0;                                                                       \
  if (flags & (O_CREAT | O_TMPFILE)) {                                                   \
    va_list more;                                                                        \
    va_start(more, flags);                                                               \
    mode = va_arg(more, mode_t);                                                         \
    va_end(more);                                                                        \
  }                                                                                      \
  pthread_mutex_lock(&lock);                                                             \
  const char *name = inside(path);                                                       \
  int existed = access(path, F_OK) == 0;                                                 \
  int fd = opened(REAL(function)(__VA_ARGS__, mode), name, flags, existed);              \
  int error = errno;                                                                     \
  pthread_mutex_unlock(&lock);                                                           \
  errno = error;                                                                         \
  return fd;

int open(const char *path, int flags, ...) { OPEN(open, path, flags) }
int open64(const char *path, int flags, ...) { OPEN(open64, path, flags) }
int openat(int at, const char *path, int flags, ...) { OPEN(openat, at, path, flags) }
int openat64(int at, const char *path, int flags, ...) { OPEN(openat64, at, path, flags) }

int close(int fd) {
  pthread_mutex_lock(&lock);
  if (name_of(fd)) {
    free(names[fd]);
    names[fd] = NULL;
  }
  int outcome = REAL(close)(fd);
  pthread_mutex_unlock(&lock);
  return outcome;
}

/* Runs `call`, which has written to `fd` from `offset` on, and records as much as it says. */
#define WRITTEN(offset_of, call)                                                         \
  if (!name_of(fd)) return call;                                                         \
  pthread_mutex_lock(&lock);                                                             \
  off64_t offset = offset_of;                                                            \
  ssize_t written = call;                                                                \
  int error = errno;                                                                     \
  if (written > 0) put(WRITE, names[fd], (uint64_t)offset, data, (uint64_t)written);     \
  pthread_mutex_unlock(&lock);                                                           \
  errno = error;                                                                         \
  return written;

ssize_t write(int fd, const void *data, size_t length) {
  WRITTEN(REAL(lseek64)(fd, 0, SEEK_CUR), REAL(write)(fd, data, length))
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { WRITTEN(at, REAL(pwrite)(fd, data, length, at)) }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
  WRITTEN(at, REAL(pwrite64)(fd, data, length, at))
}

/* What is not recorded must not happen unseen. */
#define UNSEEN(call)                                                                     \
  if (!name_of(fd)) return call;                                                         \
  fprintf(stderr, "record: %s on %s\n", __func__, names[fd]);                            \
  abort();

ssize_t writev(int fd, const struct iovec *parts, int count) { UNSEEN(REAL(writev)(fd, parts, count)) }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { UNSEEN(REAL(pwritev)(fd, parts, count, at)) }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
  UNSEEN(REAL(pwritev64)(fd, parts, count, at))
}
int fallocate(int fd, int mode, off_t at, off_t length) { UNSEEN(REAL(fallocate)(fd, mode, at, length)) }
int fallocate64(int fd, int mode, off64_t at, off64_t length) { UNSEEN(REAL(fallocate64)(fd, mode, at, length)) }
int posix_fallocate(int fd, off_t at, off_t length) { UNSEEN(REAL(posix_fallocate)(fd, at, length)) }

#define AFTERWARDS(call, record)                                                         \
  pthread_mutex_lock(&lock);                                                             \
  int outcome = call;                                                                    \
  int error = errno;                                                                     \
  if (outcome == 0) record;                                                              \
  pthread_mutex_unlock(&lock);                                                           \
  errno = error;                                                                         \
  return outcome;

static void flushed(int fd) {
  const char *name = name_of(fd);
  if (name) put(*name ? FLUSH : FLUSH_NAMES, name, 0, NULL, 0);
}
int fsync(int fd) { AFTERWARDS(REAL(fsync)(fd), flushed(fd)) }
int fdatasync(int fd) { AFTERWARDS(REAL(fdatasync)(fd), flushed(fd)) }

static void cut(int fd, off64_t length) {
  if (name_of(fd)) put(LENGTH, names[fd], (uint64_t)length, NULL, 0);
}
int ftruncate(int fd, off_t length) { AFTERWARDS(REAL(ftruncate)(fd, length), cut(fd, length)) }
int ftruncate64(int fd, off64_t length) { AFTERWARDS(REAL(ftruncate64)(fd, length), cut(fd, length)) }

static void removed(const char *path) {
  const char *name = inside(path);
  if (name) put(REMOVE, name, 0, NULL, 0);
}
int unlink(const char *path) { AFTERWARDS(REAL(unlink)(path), removed(path)) }

static void named(enum kind kind, const char *from, const char *to) {
  const char *old = inside(from), *new = inside(to);
  if (!old != !new) abort();
  if (old) put(kind, old, 0, new, strlen(new));
}
int rename(const char *from, const char *to) { AFTERWARDS(REAL(rename)(from, to), named(RENAME, from, to)) }
int link(const char *from, const char *to) { AFTERWARDS(REAL(link)(from, to), named(LINK, from, to)) }
int linkat(int at, const char *from, int beside, const char *to, int flags) {
  AFTERWARDS(REAL(linkat)(at, from, beside, to, flags), named(LINK, from, to))
}
