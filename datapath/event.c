/* SPDX-License-Identifier: Apache-2.0 */

/* A ring of cells, each with a ticket that says whose turn it is:
 *
 *   ticket == t             free for the producer that holds head ticket t
 *   ticket == t + 1         filled, for the consumer at tail t
 *   ticket == t + size      free again, one round later
 *
 * Producers claim a head ticket by compare-and-swap and publish the cell by a release
 * store of its ticket; the consumer alone moves the tail.  A producer that is
 * descheduled between the two delays the consumer, nobody else, and no other producer.
 *
 * The sequence number is given by the consumer: events taken plus events lost so far.
 * A number taken by the producers could not agree with the order in the ring without
 * a lock, and an event that found no room would leave no gap. */

#include "event.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct moat_event_cell {
    uint64_t ticket;
    struct moat_event event;
};

int moat_events_init(struct moat_events *q, uint32_t size)
{
    if (size < 2 || size & (size - 1))
        return -EINVAL; /* with one cell "filled" and "free again" were the same ticket */
    q->cells = calloc(size, sizeof *q->cells);
    if (!q->cells)
        return -ENOMEM;
    q->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->wake_fd < 0) {
        int rc = -errno;

        free(q->cells);
        q->cells = NULL;
        return rc;
    }
    for (uint32_t i = 0; i < size; i++)
        q->cells[i].ticket = i;
    q->mask = size - 1;
    q->lost = q->head = q->tail = 0;
    return 0;
}

void moat_events_destroy(struct moat_events *q)
{
    if (q->cells) {
        close(q->wake_fd);
        free(q->cells);
        q->cells = NULL;
    }
}

/* The cell for the caller's event, with its ticket; NULL if the ring is full. */
static struct moat_event_cell *claim_cell(struct moat_events *q, uint64_t *ticket)
{
    uint64_t head = __atomic_load_n(&q->head, __ATOMIC_RELAXED);

    for (;;) {
        struct moat_event_cell *c = &q->cells[head & q->mask];
        int64_t turn = (int64_t)(__atomic_load_n(&c->ticket, __ATOMIC_ACQUIRE) - head);

        if (turn < 0)
            return NULL; /* last round's event is still there */
        if (turn > 0) {
            head = __atomic_load_n(&q->head, __ATOMIC_RELAXED);
        } else if (__atomic_compare_exchange_n(&q->head, &head, head + 1, true, __ATOMIC_RELAXED,
                                               __ATOMIC_RELAXED)) {
            *ticket = head;
            return c;
        }
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

bool moat_event_post(struct moat_events *q, const struct moat_event *ev, bool urgent)
{
    uint64_t ticket;
    struct moat_event_cell *c = claim_cell(q, &ticket);

    if (c) {
        c->event = *ev;
        c->event.time_us = realtime_us();
        __atomic_store_n(&c->ticket, ticket + 1, __ATOMIC_RELEASE);
    } else {
        __atomic_fetch_add(&q->lost, 1, __ATOMIC_RELAXED);
    }
    if (urgent)
        wake(q);
    return c != NULL;
}

bool moat_event_take(struct moat_events *q, struct moat_event *out)
{
    struct moat_event_cell *c = &q->cells[q->tail & q->mask];

    if (__atomic_load_n(&c->ticket, __ATOMIC_ACQUIRE) != q->tail + 1)
        return false;
    *out = c->event;
    __atomic_store_n(&c->ticket, q->tail + q->mask + 1, __ATOMIC_RELEASE);
    q->tail++;
    out->seq = q->tail + __atomic_load_n(&q->lost, __ATOMIC_RELAXED);
    return true;
}
