/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_FRAGMENT_H
#define MOAT_DP_FRAGMENT_H 1

/* Datagrams in fragments: one verdict for the whole.
 *
 * The first fragment has all headers (RFC 1858, RFC 7112; the parser saw to that) and is
 * judged as any packet; what was said about it holds for the others:
 *
 *             a later one                  the first one              yes
 *   (none) ---------------> waiting ------------------------> judged ------> admitted
 *      |                       |                                |               |
 *      |     the first one     |            what condemns, no   |               | complete
 *      +--------------> judged +------------> condemned <-------+---------------+--> (none)
 *
 * What condemns a datagram: fragments that overlap (RFC 5722), lie behind its end, disagree
 * about the end or make it longer than 65535 bytes (RFC 8200, section 4.5), more than
 * MOAT_FRAGMENT_RANGES disjoint pieces, a "no" about the first one, or a ruleset that is newer
 * than the one that said yes.  Nothing of it passes any more, so that what passed before is never
 * reassembled, until it is forgotten.  An exact duplicate is refused alone (RFC 8200 allows it).
 *
 * Fragments that come before the first one are held as copies, few per slot, and given back
 * when it has been admitted.  What cannot be held is refused and leaves no trace.
 *
 * The table belongs to an engine and is not in the mapping.  Each slot has a quota of datagrams
 * under way, counted exactly, condemned ones too, and at most a quarter of the held
 * fragments; if the quotas are together no more than n_datagrams, no slot can use up
 * another's.  A datagram is forgotten when it is complete, or MOAT_FRAGMENT_S seconds after its
 * first packet (RFC 8200: 60 s; RFC 791: 15 s at least): look-ups no longer find it from that
 * second on, it is given back by moat_fragments_age() within 20 calls.
 *
 * Threads: any packet thread; the fragments of one datagram may come on several.  A short
 * lock per bucket, never held over a call back.  Knows no clock: time comes in.  Nothing is
 * allocated after create. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/flow.h"

#include "parse.h"
#include "session.h"

#define MOAT_FRAGMENT_S 60            /* seconds that a datagram may take */
#define MOAT_FRAGMENT_RANGES 16       /* disjoint pieces of one datagram */
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

/* Which datagram a fragment belongs to: with addresses, identification, VLAN, and for IPv4 the
 * protocol, of the packet itself. */
struct moat_fragment_ctx {
    uint32_t slot;   /* index */
    uint32_t tag;    /* of the slot's view: an incarnation's datagrams die with it */
    uint32_t serial; /* of the slot's ruleset; rises */
    uint32_t limit;  /* the slot's quota of datagrams */
    uint32_t now_s;
    enum moat_dir dir;
};

/* What is to be done with a fragment. */
enum moat_fragment_say {
    MOAT_FRAGMENT_JUDGE,  /* the first one: judge it, then say so to moat_fragment_judged() */
    MOAT_FRAGMENT_PASS,   /* a later one of an admitted datagram */
    MOAT_FRAGMENT_HOLD,   /* was copied: refuse it without counting it as a drop */
    MOAT_FRAGMENT_REFUSE, /* `reason` says why */
};

/* What goes with it. */
struct moat_fragment_answer {
    enum moat_reason reason; /* REFUSE */
    unsigned dropped;        /* held fragments that will never go: their datagram was condemned
                              * by this one, or took too long */
    uint64_t datagram;       /* JUDGE, PASS: for moat_fragment_judged(), with */
    uint32_t bucket;
    bool has_key; /* PASS: the first one has a session, and it is this: */
    struct moat_key key;
    uint64_t hash;
    /* JUDGE and PASS of a TCP segment: the segment as far as its fragments have come, for the
     * state machine; `len` reaches to the last byte known (of held ones too), FIN is set
     * only when the end is known.  With each later fragment it is the first one again, longer. */
    struct moat_tcp_seg tcp;
};

/* A fragment (p->frag != 0) has come and passed all checks of its own. */
enum moat_fragment_say moat_fragment_in(struct moat_fragments *, const struct moat_fragment_ctx *,
                                        const struct moat_pkt *p, struct moat_fragment_answer *);

/* One held fragment that may go now.  Bytes are valid during the call. */
typedef void moat_fragment_release_fn(void *aux, const uint8_t *frame, uint32_t len);

/* The first fragment was judged; *a is what moat_fragment_in() said about it.  key NULL: it needs
 * no session (multicast).  Held ones are released if `passed`, else dropped; returns how
 * many of them.  If the datagram has gone or was condemned meanwhile, nothing happens.
 * May be said of a later one that was to PASS too: passed == false condemns (its session is gone);
 * true says nothing new.  release may be NULL if !passed. */
unsigned moat_fragment_judged(struct moat_fragments *, const struct moat_fragment_answer *a,
                              bool passed, const struct moat_key *key, uint64_t hash,
                              moat_fragment_release_fn *release, void *aux);

/* Housekeeping, control thread: forgets a slice of the datagrams that took too long; held fragments
 * of those are dropped.  Returns how many held ones were. */
unsigned moat_fragments_age(struct moat_fragments *, uint32_t now_s);

/* How many datagrams of a slot are under way; all slots if slot is UINT32_MAX. */
uint32_t moat_fragments_used(const struct moat_fragments *, uint32_t slot);

/* How many fragments of a slot are held; all slots if slot is UINT32_MAX. */
uint32_t moat_fragments_held(const struct moat_fragments *, uint32_t slot);

#endif /* datapath/fragment.h */
