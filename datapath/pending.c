/* SPDX-License-Identifier: Apache-2.0 */

/* A ring of bytes.  Each frame has its length in front, two bytes, high one first:
 *
 *   bytes  .... | len | frame ...... | len | frame .. | ....
 *                ^ head - used                         ^ head
 *
 * head and used count modulo 2^32; the ring's size divides that. */

#include "pending.h"

#include <sched.h>
#include <string.h>

#define LENGTH 2
#define MASK (MOAT_PENDING_BYTES - 1)
#define TRIES 256 /* of a lock that is held for the copying of one frame */

_Static_assert((MOAT_PENDING_BYTES & MASK) == 0, "a ring");
_Static_assert(MOAT_PENDING_FRAME_MAX <= UINT16_MAX, "two bytes of length");

static bool lock(struct moat_pending *q)
{
    for (unsigned i = 0; i < TRIES; i++) {
        if (!__atomic_exchange_n(&q->busy, 1, __ATOMIC_ACQUIRE))
            return true;
        __builtin_ia32_pause();
    }
    return false;
}

static void unlock(struct moat_pending *q)
{
    __atomic_store_n(&q->busy, 0, __ATOMIC_RELEASE);
}

static void set_n(struct moat_pending *q, uint32_t n)
{
    __atomic_store_n(&q->n, n, __ATOMIC_RELAXED);
}

/* How many of n bytes come before the ring's end. */
static uint32_t in_one_piece(uint32_t at, uint32_t n)
{
    uint32_t to_end = MOAT_PENDING_BYTES - (at & MASK);

    return n < to_end ? n : to_end;
}

static void put(struct moat_pending *q, const uint8_t *from, uint32_t n)
{
    uint32_t first = in_one_piece(q->head, n);

    memcpy(q->bytes + (q->head & MASK), from, first);
    memcpy(q->bytes, from + first, n - first);
    q->head += n;
    q->used += n;
}

static void get(struct moat_pending *q, uint8_t *to, uint32_t n)
{
    uint32_t at = q->head - q->used, first = in_one_piece(at, n);

    memcpy(to, q->bytes + (at & MASK), first);
    memcpy(to + first, q->bytes, n - first);
    q->used -= n;
}

bool moat_pending_push(struct moat_pending *q, const uint8_t *frame, uint32_t len)
{
    const uint8_t length[LENGTH] = {(uint8_t)(len >> 8), (uint8_t)len};
    bool room;

    if (!len || len > MOAT_PENDING_FRAME_MAX || !lock(q))
        return false;
    room = q->used + LENGTH + len <= MOAT_PENDING_BYTES;
    if (room) {
        put(q, length, LENGTH);
        put(q, frame, len);
        set_n(q, q->n + 1);
    }
    unlock(q);
    return room;
}

uint32_t moat_pending_pop(struct moat_pending *q, uint8_t *out, uint32_t size)
{
    uint8_t length[LENGTH];
    uint32_t len = 0;

    if (!lock(q))
        return 0;
    if (q->n) {
        get(q, length, LENGTH);
        len = (uint32_t)length[0] << 8 | length[1];
        if (len <= size)
            get(q, out, len);
        else
            q->used -= len;
        set_n(q, q->n - 1);
    }
    unlock(q);
    return len;
}

uint32_t moat_pending_clear(struct moat_pending *q)
{
    uint32_t n;

    while (!lock(q))
        sched_yield();
    n = q->n;
    q->used = 0;
    set_n(q, 0);
    unlock(q);
    return n;
}
