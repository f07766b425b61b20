/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_LIVE_H
#define MOAT_DP_LIVE_H 1

/* The straight line of a burst.  For the pipe. */

#include "pipe_private.h"
#include "quick.h"

/* How many of the n packets, from the front, are quick: they have keys and hashes, and names.  If
 * all are, those of live sessions have been judged; bit k of *misses: packet k is not one. */
unsigned moat_live(struct burst *, unsigned n, uint32_t *misses);

/* Packet i, with key k, is quick: what the general way wants to know of it. */
static inline void moat_live_name(struct burst *b, unsigned k, unsigned i)
{
    struct moat_pkt *p = &b->pkts[i];

    b->which[k] = (uint8_t)i;
    b->keyed[k] = p;
    p->quick = true;
    p->by = MOAT_BY_SESSION;
    moat_quick_fill(p);
}

#endif /* datapath/live.h */
