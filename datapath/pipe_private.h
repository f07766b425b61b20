/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_PIPE_PRIVATE_H
#define MOAT_DP_PIPE_PRIVATE_H 1

/* A burst on its way through the passes, for pipe.c (the straight line of live sessions) and
 * open.c (everything else).  Nobody else. */

#include <stdbool.h>
#include <stdint.h>

#include "classify.h"
#include "engine.h"
#include "pipe.h"
#include "rejudge.h"
#include "session_private.h"
#include "slot.h"
#include "state_other.h"
#include "state_tcp.h"

struct burst {
    struct moat_thread *thread;
    struct moat_engine *engine;
    struct moat_port *port;
    const struct moat_view *view;
    uint64_t *counters;
    struct moat_pkt *pkts;
    enum moat_dir dir;
    uint32_t passed;    /* bit i: packet i */
    uint64_t bytes;     /* of those */
    uint32_t stateless; /* to be judged by the rules alone */
    uint32_t errors;    /* ICMP errors */
    uint32_t fragments;
    uint32_t straight; /* passed, and nothing of them is set but what the caller has set */
    /* Of the slot's counts of sessions, reserved for what may still open (open.c). */
    uint32_t may_open, room, room_half_open;
    unsigned n; /* with a key: */
    uint8_t which[MOAT_BURST_MAX];
    struct moat_key keys[MOAT_BURST_MAX];
    uint64_t hashes[MOAT_BURST_MAX];
    struct moat_pkt *keyed[MOAT_BURST_MAX];
    uint32_t found[MOAT_BURST_MAX];
};

/* One copy of the live path per direction: `dir` is a constant in each. */
#define STRAIGHT static inline __attribute__((always_inline))

#define LOAD(P) __atomic_load_n(P, __ATOMIC_RELAXED)
#define STORE(P, V) __atomic_store_n(P, V, __ATOMIC_RELAXED)

/* pipe.c: a packet is refused, and why; counted. */
void moat_pipe_refuse(struct burst *, unsigned i, enum moat_by, enum moat_reason);

static inline void moat_pipe_pass(struct burst *b, unsigned i)
{
    b->passed |= 1u << i;
    b->bytes += b->pkts[i].total;
}

/* Does this packet make or belong to a session of its own?  Where only a session can tell what fits
 * (TCP, replies), a frame to a group of MACs with one VM's address (clusters share a MAC) is no
 * way around it.  What else comes so may be for the subnet's broadcast address, and is judged by
 * the rules alone. */
static inline bool moat_pipe_makes_sessions(const struct moat_pkt *p)
{
    if (p->ip_multicast)
        return false;
    if (p->kind == MOAT_PKT_TCP || p->kind == MOAT_PKT_ICMP_QUERY)
        return true;
    return (p->kind == MOAT_PKT_UDP || p->kind == MOAT_PKT_IP_OTHER) && p->cast == MOAT_UNICAST;
}

STRAIGHT void moat_pipe_account(const struct burst *b, struct moat_session *s,
                                const struct moat_pkt *p, const enum moat_dir dir)
{
    const uint32_t all = (1u << MOAT_TALLY_BYTE_BITS) - 1;
    uint32_t tally = LOAD(&s->tally[dir]) + 1 + ((p->total & all) << MOAT_TALLY_BYTES);

    if (LOAD(&s->seen) != b->thread->now_s)
        STORE(&s->seen, b->thread->now_s);
    if (__builtin_expect(tally & MOAT_TALLY_CARRY || p->total > all, 0))
        moat_session_carry(b->engine->sessions, s, dir, tally, p->total >> MOAT_TALLY_BYTE_BITS);
    else
        STORE(&s->tally[dir], tally);
}

/* pipe.c: packet i meets the live session s. */
void moat_pipe_track(struct burst *, unsigned i, struct moat_session *s);
bool moat_pipe_is_over(const struct burst *, const struct moat_session *, const struct moat_pkt *);

/* open.c: the packets of these keys have no live session, or not where it was looked for, or come
 * behind such a one.  b->found[k] is MOAT_NO_SESSION if it was looked for everywhere. */
void moat_open(struct burst *, uint32_t misses);

/* open.c: packets without a session of their own. */
void moat_open_stateless(struct burst *, unsigned i);
void moat_open_error(struct burst *, unsigned i);
void moat_open_fragment(struct burst *, unsigned i);

/* open.c: an event about a packet, if the slot may log now. */
void moat_pipe_log(struct burst *, const struct moat_pkt *, const struct moat_flow *,
                   const struct moat_match *, enum moat_reason, const char *text);

#endif /* datapath/pipe_private.h */
