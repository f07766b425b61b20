/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_PENDING_H
#define MOAT_DP_PENDING_H 1

/* Frames that the switch shall get as if a VM had sent them: they wait for the next dequeue
 * from the VM's port.  Bounded, copied, in order.
 *
 * Bytes and not mbufs wait here: the buffer is taken from the pool that the switch brings
 * along when it asks, so none is kept across a stop, a deletion or a change of the MTU, which
 * takes the pool away.
 *
 * Threads: any number push and pop.  A packet thread never waits for another one, which may
 * have been descheduled: what cannot have the lock goes without.  All zero is empty. */

#include <stdbool.h>
#include <stdint.h>

#define MOAT_PENDING_FRAME_MAX 2048 /* longer ones are not taken */
#define MOAT_PENDING_BYTES 16384    /* of a port; a power of two */

struct moat_pending {
    uint32_t n;          /* frames; atomic */
    uint32_t busy;       /* the lock */
    uint32_t head, used; /* bytes: where the next frame goes, and how many are taken */
    uint8_t bytes[MOAT_PENDING_BYTES];
};

/* Cheap; may be wrong by the time it is read. */
static inline bool moat_pending_any(const struct moat_pending *q)
{
    return __atomic_load_n(&q->n, __ATOMIC_RELAXED) != 0;
}

/* False: too long, no room, or others are at it. */
bool moat_pending_push(struct moat_pending *, const uint8_t *frame, uint32_t len);

/* Takes the oldest frame: its length, and its bytes into out if they fit `size`; if they do
 * not, the frame is lost.  0: none, or others are at it. */
uint32_t moat_pending_pop(struct moat_pending *, uint8_t *out, uint32_t size);

/* Not a packet thread.  Returns how many frames were dropped. */
uint32_t moat_pending_clear(struct moat_pending *);

#endif /* datapath/pending.h */
