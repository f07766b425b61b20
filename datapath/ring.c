/* SPDX-License-Identifier: Apache-2.0 */

/* A ring of cells, each with a ticket that says whose turn it is:
 *
 *   ticket == t             free for the producer that holds head ticket t
 *   ticket == t + 1         filled, for the reader at tail t
 *   ticket == t + size      free again, one round later
 *
 * Producers claim a head ticket by compare-and-swap and publish the cell by a release
 * store of its ticket; the reader alone moves the tail.  A producer that is
 * descheduled between the two delays the reader, nobody else, and no other producer.
 *
 * The sequence number is given by the reader: taken plus lost so far.  A number taken by the
 * producers could not agree with the order in the ring without a lock, and what found no
 * room would leave no gap. */

#include "ring.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

struct cell {
    uint64_t ticket;
    uint8_t payload[];
};

static struct cell *cell_at(const struct moat_ring *r, uint64_t ticket)
{
    return (struct cell *)(r->cells + (ticket & r->mask) * r->stride);
}

int moat_ring_init(struct moat_ring *r, uint32_t n, uint32_t cell_size)
{
    if (n < 2 || n & (n - 1))
        return -EINVAL; /* with one cell "filled" and "free again" were the same ticket */
    r->stride = (uint32_t)(sizeof(struct cell) + cell_size + 7) & ~7u;
    r->cells = calloc(n, r->stride);
    if (!r->cells)
        return -ENOMEM;
    r->mask = n - 1;
    for (uint32_t i = 0; i < n; i++)
        cell_at(r, i)->ticket = i;
    r->lost = r->head = r->tail = 0;
    return 0;
}

void moat_ring_destroy(struct moat_ring *r)
{
    free(r->cells);
    r->cells = NULL;
}

void *moat_ring_claim(struct moat_ring *r)
{
    uint64_t head = __atomic_load_n(&r->head, __ATOMIC_RELAXED);

    for (;;) {
        struct cell *c = cell_at(r, head);
        int64_t turn = (int64_t)(__atomic_load_n(&c->ticket, __ATOMIC_ACQUIRE) - head);

        if (turn < 0) { /* last round's is still there */
            __atomic_fetch_add(&r->lost, 1, __ATOMIC_RELAXED);
            return NULL;
        }
        if (turn > 0)
            head = __atomic_load_n(&r->head, __ATOMIC_RELAXED);
        else if (__atomic_compare_exchange_n(&r->head, &head, head + 1, true, __ATOMIC_RELAXED,
                                             __ATOMIC_RELAXED))
            return c->payload;
    }
}

void moat_ring_publish(void *payload)
{
    struct cell *c = (struct cell *)((uint8_t *)payload - offsetof(struct cell, payload));

    /* Its ticket is ours: nobody else writes it until it says so. */
    __atomic_store_n(&c->ticket, c->ticket + 1, __ATOMIC_RELEASE);
}

const void *moat_ring_peek(const struct moat_ring *r)
{
    const struct cell *c = cell_at(r, r->tail);

    return __atomic_load_n(&c->ticket, __ATOMIC_ACQUIRE) == r->tail + 1 ? c->payload : NULL;
}

uint64_t moat_ring_release(struct moat_ring *r)
{
    __atomic_store_n(&cell_at(r, r->tail)->ticket, r->tail + r->mask + 1, __ATOMIC_RELEASE);
    r->tail++;
    return r->tail + __atomic_load_n(&r->lost, __ATOMIC_RELAXED);
}
