/* Gives the programs of a sandbox node a clock of their own: that of the machine below, moved by what /etc/sandbox/clock
 * says (nanoseconds, eight bytes). Loaded by /etc/ld.so.preload, so it covers every dynamically linked program that
 * reads the clock through the C library, sshd and systemd included. Setting the clock writes the file, so `date -s` and
 * time daemons work as on a server, and the machine below is never touched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define FILE_NAME "/etc/sandbox/clock"
#define SECOND INT64_C(1000000000)
/* No machine runs for thirty years: times beyond are of the wall clock, below of the monotonic one. */
#define WALL_CLOCK_BEGINS 946684800

static volatile int64_t *ahead;
static int writable;

__attribute__((constructor)) static void map(void) {
  int file = open(FILE_NAME, O_RDWR | O_CLOEXEC);
  writable = file >= 0;
  if (!writable)
    file = open(FILE_NAME, O_RDONLY | O_CLOEXEC);
  if (file < 0)
    return;
  void *found = mmap(NULL, sizeof *ahead, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (found != MAP_FAILED)
    ahead = found;
}

static int is_wall(clockid_t id) { return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI; }

static void move(struct timespec *when, int64_t by) {
  int64_t nanoseconds = when->tv_nsec + by % SECOND;
  when->tv_sec += by / SECOND + (nanoseconds >= SECOND) - (nanoseconds < 0);
  when->tv_nsec = nanoseconds + (nanoseconds < 0) * SECOND - (nanoseconds >= SECOND) * SECOND;
}

static int machine(clockid_t id, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real)
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  return real ? real(id, now) : (int)syscall(SYS_clock_gettime, id, now);
}

/* A deadline that a program reckoned by our clock, as the kernel has to see it. */
static struct timespec deadline(const struct timespec *when) {
  struct timespec result = *when;
  if (ahead && when->tv_sec >= WALL_CLOCK_BEGINS)
    move(&result, -*ahead);
  return result;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  int result = machine(id, now);
  if (!result && ahead && is_wall(id))
    move(now, *ahead);
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &exact))
    return -1;
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec exact;
  if (clock_gettime(CLOCK_REALTIME, &exact))
    return -1;
  if (now)
    *now = exact.tv_sec;
  return exact.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
  return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

int clock_settime(clockid_t id, const struct timespec *wanted) {
  struct timespec now;
  if (id != CLOCK_REALTIME || wanted->tv_nsec < 0 || wanted->tv_nsec >= SECOND) {
    errno = EINVAL;
    return -1;
  }
  if (!ahead || !writable) {
    errno = EPERM;
    return -1;
  }
  if (machine(CLOCK_REALTIME, &now))
    return -1;
  *ahead = (wanted->tv_sec - now.tv_sec) * SECOND + (wanted->tv_nsec - now.tv_nsec);
  return 0;
}

int settimeofday(const struct timeval *wanted, const struct timezone *zone) {
  struct timespec exact;
  (void)zone;
  if (!wanted)
    return 0;
  exact.tv_sec = wanted->tv_sec;
  exact.tv_nsec = wanted->tv_usec * 1000;
  return clock_settime(CLOCK_REALTIME, &exact);
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *wanted, struct timespec *left) {
  static int (*real)(clockid_t, int, const struct timespec *, struct timespec *);
  struct timespec moved = flags & TIMER_ABSTIME && is_wall(id) ? deadline(wanted) : *wanted;
  if (!real)
    real = (int (*)(clockid_t, int, const struct timespec *, struct timespec *))dlsym(RTLD_NEXT, "clock_nanosleep");
  return real(id, flags, &moved, left);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
  static int (*real)(sem_t *, const struct timespec *);
  struct timespec moved = deadline(until);
  if (!real)
    real = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
  return real(semaphore, &moved);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
  static int (*real)(pthread_mutex_t *, const struct timespec *);
  struct timespec moved = deadline(until);
  if (!real)
    real = (int (*)(pthread_mutex_t *, const struct timespec *))dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
  return real(mutex, &moved);
}

#ifdef __x86_64__
#define CONDITION_VERSION "GLIBC_2.3.2"
#else
#define CONDITION_VERSION "GLIBC_2.17"
#endif

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  /* There are two; an unversioned look-up may find the one of 1999. */
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  struct timespec moved = deadline(until);
  if (!real)
    real = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))dlvsym(
        RTLD_NEXT, "pthread_cond_timedwait", CONDITION_VERSION);
  return real(condition, mutex, &moved);
}
