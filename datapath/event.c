/* SPDX-License-Identifier: Apache-2.0 */

#include "event.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

int moat_events_init(struct moat_events *q, uint32_t size)
{
    int rc = moat_ring_init(&q->ring, size, sizeof(struct moat_event));

    if (rc)
        return rc;
    q->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->wake_fd < 0) {
        rc = -errno;
        moat_ring_destroy(&q->ring);
    }
    return rc;
}

void moat_events_destroy(struct moat_events *q)
{
    if (q->ring.cells) {
        close(q->wake_fd);
        moat_ring_destroy(&q->ring);
    }
}

static uint64_t realtime_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void wake(const struct moat_events *q)
{
    uint64_t one = 1;

    /* It can fail only if it is readable anyway. */
    if (write(q->wake_fd, &one, sizeof one) < 0)
        return;
}

static bool put(struct moat_events *q, const struct moat_event *ev, uint64_t time_us)
{
    struct moat_event *cell = moat_ring_claim(&q->ring);

    if (cell) {
        *cell = *ev;
        cell->time_us = time_us;
        moat_ring_publish(cell);
    }
    return cell != NULL;
}

bool moat_event_post(struct moat_events *q, const struct moat_event *ev, bool urgent)
{
    bool done = put(q, ev, realtime_us());

    if (urgent)
        wake(q);
    return done;
}

bool moat_event_put(struct moat_events *q, const struct moat_event *ev)
{
    return put(q, ev, ev->time_us);
}

bool moat_event_take(struct moat_events *q, struct moat_event *out)
{
    const struct moat_event *cell = moat_ring_peek(&q->ring);

    if (!cell)
        return false;
    *out = *cell;
    out->seq = moat_ring_release(&q->ring);
    return true;
}
