/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_FRAGMENT_H
#define MOAT_DP_FRAGMENT_H 1

/* Datagrams in fragments: one verdict for the whole.
 *
 * The first fragment has all headers (RFC 1858, RFC 7112; the parser saw to that) and is
 * judged as any packet; what was said about it holds for the others.  A fragment that
 * overlaps another one, lies behind the end or makes the datagram too long condemns the
 * datagram (RFC 5722, RFC 3128, RFC 8200): nothing of it passes any more, so that what
 * passed before is never reassembled.  An exact duplicate is refused alone.
 *
 * Fragments that come before the first one are held as copies, few per slot, and given back
 * when it has been admitted.
 *
 * The table belongs to an engine and is not in the mapping.  Each slot has a quota of datagrams
 * under way; one slot cannot use up another's.  A datagram is forgotten MOAT_FRAGMENT_S seconds
 * after its first packet (RFC 8200: 60 s; RFC 791: 15 s at least).
 *
 * Threads: any packet thread; the fragments of one datagram may come on several.  A short
 * lock per bucket.  Knows no clock: time comes in.  Nothing is allocated after create. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/flow.h"

#include "parse.h"
#include "session.h"

#define MOAT_FRAGMENT_S 30            /* seconds that a datagram may take */
#define MOAT_FRAGMENT_HELD 4          /* held fragments of one datagram */
#define MOAT_FRAGMENT_HELD_BYTES 2048 /* longer frames are not held */

struct moat_fragments;

struct moat_fragment_conf {
    uint32_t n_slots;     /* slot indexes are below this */
    uint32_t n_datagrams; /* under way at once, over all slots; 0: 4096 */
    uint32_t n_held;      /* held fragments, over all slots; 0: 256 */
    uint64_t seed[2];     /* salt of the hash */
};

/* NULL with errno. */
struct moat_fragments *moat_fragments_create(const struct moat_fragment_conf *);
void moat_fragments_destroy(struct moat_fragments *);

/* Which datagram a fragment belongs to. */
struct moat_fragment_ctx {
    uint32_t slot;   /* index */
    uint32_t tag;    /* of the slot's view: an incarnation's datagrams die with it */
    uint32_t serial; /* of the slot's ruleset: a newer one condemns what is under way */
    uint32_t limit;  /* the slot's quota of datagrams */
    uint32_t now_s;
    enum moat_dir dir;
};

/* What is to be done with a fragment. */
enum moat_fragment_say {
    MOAT_FRAGMENT_JUDGE,  /* the first one: judge it, then say so to moat_fragment_judged() */
    MOAT_FRAGMENT_PASS,   /* a later one of an admitted datagram */
    MOAT_FRAGMENT_HOLD,   /* was copied: refuse it without counting it as a drop */
    MOAT_FRAGMENT_REFUSE, /* *reason says why */
};

/* The session of a datagram, for its later fragments. */
struct moat_fragment_session {
    bool has_key; /* false: it needs none (multicast) */
    struct moat_key key;
    uint64_t hash;
    uint32_t seq;    /* TCP: sequence number at the start of the fragmentable part, were it data */
    bool fin;        /* TCP: the segment ends with a FIN */
    uint32_t ticket; /* JUDGE sets it, moat_fragment_judged() asks for it */
};

/* A fragment (p->frag != 0) has come and passed all checks of its own.  JUDGE sets
 * session->ticket, PASS all of *session; HOLD and REFUSE set *reason. */
enum moat_fragment_say moat_fragment_in(struct moat_fragments *, const struct moat_fragment_ctx *,
                                        const struct moat_pkt *p,
                                        struct moat_fragment_session *session,
                                        enum moat_reason *reason);

/* One held fragment that may go now.  Its bytes are valid during the call; `end` is where they end
 * in the fragmentable part, `last`: that is the end of all. */
typedef void moat_fragment_release_fn(void *aux, const uint8_t *frame, uint32_t len, uint32_t end,
                                      bool last);

/* The first fragment was judged: it passed or not.  The held ones are released or dropped; returns
 * how many were released.  Nothing happens if the datagram has gone or was condemned
 * meanwhile: the ticket ties the verdict to the datagram that asked for it. */
unsigned moat_fragment_judged(struct moat_fragments *, const struct moat_fragment_ctx *,
                              const struct moat_pkt *p, const struct moat_fragment_session *session,
                              bool passed, moat_fragment_release_fn *, void *aux);

/* Housekeeping, control thread: forgets a slice of the datagrams that took too long; held fragments
 * are dropped with them.  Returns how many of those. */
unsigned moat_fragments_age(struct moat_fragments *, uint32_t now_s);

/* How many datagrams of a slot are under way; all slots if slot is UINT32_MAX. */
uint32_t moat_fragments_used(const struct moat_fragments *, uint32_t slot);

/* How many held fragments there are, over all slots. */
uint32_t moat_fragments_held(const struct moat_fragments *);

#endif /* datapath/fragment.h */
