/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_RING_H
#define MOAT_DP_RING_H 1

/* Bounded queue of cells of one size, from any number of threads to one.  Putting something in
 * never waits, takes no lock and makes no system call; when it is full, what has no room is
 * lost and counted.  (D. Vyukov's bounded queue.)
 *
 *     cell = moat_ring_claim(r);               any thread; NULL: lost
 *     ... fill it ...
 *     moat_ring_publish(cell);
 *
 *     while ((cell = moat_ring_peek(r))) {     the one reader
 *         ... copy it ...
 *         seq = moat_ring_release(r);
 *     }
 */

#include <stdint.h>

struct moat_ring {
    uint8_t *cells;
    uint32_t mask, stride;
    uint64_t lost;                              /* atomic */
    uint64_t head __attribute__((aligned(64))); /* next ticket to put; atomic */
    uint64_t tail __attribute__((aligned(64))); /* next to take; the reader's own */
};

/* n: a power of two from 2 on.  0, -EINVAL or -ENOMEM. */
int moat_ring_init(struct moat_ring *, uint32_t n, uint32_t cell_size);
void moat_ring_destroy(struct moat_ring *);

/* Room for one, 8-byte aligned and the caller's until it is published; it holds what was in it
 * the last time. */
void *moat_ring_claim(struct moat_ring *);
void moat_ring_publish(void *cell);

/* The oldest one; NULL: there is none.  Stays until it is released. */
const void *moat_ring_peek(const struct moat_ring *);

/* Gives back what peek returned.  Returns its number: those taken plus those lost so far, so that
 * numbers rise by one and a gap means loss. */
uint64_t moat_ring_release(struct moat_ring *);

#endif /* datapath/ring.h */
