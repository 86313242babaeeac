/* fsync and fdatasync of a disk whose flush takes FLUSH_MS milliseconds. See flush.rs. */
#include <time.h>

static int flush(void) {
  struct timespec rest = {0, FLUSH_MS * 1000000};
  while (nanosleep(&rest, &rest) != 0) {
  }
  return 0;
}

int fsync(int file) {
  (void)file;
  return flush();
}

int fdatasync(int file) {
  (void)file;
  return flush();
}
