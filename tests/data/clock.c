/* A clock that is wrong by CLOCK_SHIFT seconds, for a process that has this preloaded and all its children.
 * With CLOCK_SYNCHRONISED the kernel vouches for it. With CLOCK_SET, the name of a FIFO, it is right until somebody
 * writes there, is set then, and a timer that is to be cancelled by that becomes readable. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

static int set = -1, was_set;

static int is_set(void)
{
    int waiting = 0;
    return !getenv("CLOCK_SET") || (set >= 0 && !ioctl(set, FIONREAD, &waiting) && (was_set |= waiting > 0));
}

int timerfd_create(int clock, int flags)
{
    const char *name = getenv("CLOCK_SET");
    return name ? (set = open(name, O_RDWR | flags)) : syscall(SYS_timerfd_create, clock, flags);
}

int timerfd_settime(int timer, int flags, const struct itimerspec *next, struct itimerspec *before)
{
    return timer == set ? 0 : syscall(SYS_timerfd_settime, timer, flags, next, before);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    const char *shift = is_set() ? getenv("CLOCK_SHIFT") : 0;
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += atoll(shift);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *there)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (there)
        *there = now.tv_sec;
    return now.tv_sec;
}

int adjtimex(struct timex *state)
{
    return getenv("CLOCK_SYNCHRONISED") ? TIME_OK : syscall(SYS_adjtimex, state);
}
