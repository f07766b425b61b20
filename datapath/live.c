/* SPDX-License-Identifier: Apache-2.0 */

/* A burst of nothing but packets that the straight line takes (quick.h), of live sessions: what
 * nearly all bursts are.  Three loops: what the packet is, and the bucket is prefetched; where its
 * session may be, and that is prefetched; the session's state.  Nothing is written but hashes,
 * places and what the sessions themselves are told.  Each packet counts a hundred
 * instructions or so, so what loops need lies in locals: the compiler must assume that
 * anything that is stored changes everything that is pointed to.
 *
 * Whatever is not so simple about a packet is done by the pipe's general functions, which want to
 * know more of it: name().
 *
 * Order: packets of one session stay in order, as all of them are judged in the third loop or none.
 * Those of a session in its second bucket or without one are all left for later, in order.  A
 * session that is over for one of them is over for those behind it: it has been cut, or idle for
 * too long. (What else ends one, a SYN that opens a new connection on its tuple, is no quick
 * packet.) */

#include "live.h"

#include "quick.h"

struct front {
    __m128i key[MOAT_BURST_MAX]; /* from `local` on */
    const struct moat_bucket *bucket[MOAT_BURST_MAX];
};

/* Packet k, which has key k. */
static void name(struct burst *b, const struct front *f, unsigned k)
{
    b->keys[k].tag = b->view->tag;
    memcpy(&b->keys[k].local, &f->key[k], sizeof f->key[k]);
    moat_live_name(b, k, k);
}

/* --- first loop --- */

/* How many packets, from the front, are quick. */
STRAIGHT unsigned take(struct burst *b, struct front *f, unsigned n, const enum moat_dir dir)
{
    const struct moat_session_table *t = b->engine->sessions;
    const struct moat_hash_seed seed = t->seed;
    const struct moat_bucket *buckets = t->buckets, *bucket;
    const struct moat_pkt *p = b->pkts;
    uint64_t n_buckets = t->n_buckets, hash;
    struct moat_quick q;
    __m128i key;
    unsigned i;

    moat_quick_begin(&q, b->view, dir);
    if (!q.any)
        return 0;
    for (i = 0; i < n; i++, p++) {
        if (__builtin_expect(!moat_quick(&q, p, dir, false, &key), 0))
            break;
        f->key[i] = key;
        hash = moat_quick_hash(&seed, key, p->data[MOAT_Q_PROTO]);
        b->hashes[i] = hash;
        bucket = &buckets[(uint32_t)hash * n_buckets >> 32];
        f->bucket[i] = bucket;
        __builtin_prefetch(bucket);
    }
    return i;
}

/* --- second loop --- */

STRAIGHT void find(struct burst *b, const struct front *f, unsigned n)
{
    const struct moat_session_table *t = b->engine->sessions;
    const struct moat_session *sessions = t->sessions;
    uint32_t n_sessions = t->n_sessions, tag = b->view->tag;

    for (unsigned i = 0; i < n; i++) {
        uint32_t index =
            moat_session_candidate(f->bucket[i], moat_session_way(b->hashes[i], tag), n_sessions);

        b->found[i] = index;
        __builtin_prefetch(&sessions[index], 1);
    }
}

/* --- third loop --- */

enum met { PASSED, JUDGED, OTHER, OVER };

static __attribute__((noinline)) enum met meet_slowly(struct burst *b, const struct front *f,
                                                      unsigned k, struct moat_session *s)
{
    name(b, f, k);
    if (moat_pipe_is_over(b, s, &b->pkts[k]))
        return OVER;
    moat_pipe_track(b, k, s);
    return JUDGED;
}

STRAIGHT bool tracks_tcp(struct moat_session *s, const uint8_t *d, const enum moat_dir dir)
{
    const uint8_t *t = d + MOAT_Q_L4;
    uint32_t len = moat_quick_be16(d + MOAT_Q_TOTAL) - 20 - moat_quick_tcp_header(d);

    return moat_tcp_straight(s->side, dir, moat_quick_be32(t + 4) + len, moat_quick_be32(t + 8),
                             (uint16_t)moat_quick_be16(t + 14));
}

STRAIGHT bool tracks(struct moat_session *s, const struct moat_pkt *p, const enum moat_dir dir)
{
    return s->key.proto == 6 ? tracks_tcp(s, p->data, dir) : moat_other_straight(s->side, dir);
}

/* A burst's constants. */
struct now {
    uint32_t tag, serial, now_s, shortest;
};

/* What moat_pipe_track() does, where nothing but the usual is to be done. */
STRAIGHT enum met meet(struct burst *b, const struct front *f, const struct now *now, unsigned k,
                       struct moat_session *s, const struct moat_pkt *p, const enum moat_dir dir)
{
    const uint8_t odd = MOAT_SES_F_CUT | MOAT_SES_F_HALF_OPEN | MOAT_SES_F_WAIT_FROM_VM |
                        MOAT_SES_F_WAIT_TO_VM; /* lenient windows: not moat_tcp_straight()'s */
    __m128i is;
    uint32_t seen, tally;
    uint8_t flags;

    if (__builtin_expect(__atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE) != now->tag, 0))
        return OTHER;
    is = _mm_loadu_si128((const __m128i *)(const void *)&s->key.local);
    is = _mm_xor_si128(is, f->key[k]);
    if (__builtin_expect(!_mm_testz_si128(is, is), 0))
        return OTHER;
    flags = LOAD(&s->flags);
    seen = LOAD(&s->seen);
    if (__builtin_expect((flags & odd) || LOAD(&s->serial) != now->serial, 0) ||
        (!(flags & MOAT_SES_F_REPLIED) && dir != moat_session_dir(s)) ||
        __builtin_expect(now->now_s - seen > now->shortest, 0) ||
        __builtin_expect(!tracks(s, p, dir), 0))
        return meet_slowly(b, f, k, s);
    if (__builtin_expect(seen != now->now_s, 0))
        STORE(&s->seen, now->now_s);
    tally = LOAD(&s->tally[dir]) + 1 + (p->total << MOAT_TALLY_BYTES);
    if (__builtin_expect(tally & MOAT_TALLY_CARRY, 0))
        moat_session_carry(b->engine->sessions, s, dir, tally, 0);
    else
        STORE(&s->tally[dir], tally);
    return PASSED;
}

/* Those in their second bucket, or whose way shares its tag with another. */
static __attribute__((noinline)) uint32_t meet_elsewhere(struct burst *b, const struct front *f,
                                                         uint32_t others)
{
    uint32_t found;

    for (uint32_t m = others; m; m &= m - 1)
        name(b, f, (unsigned)__builtin_ctz(m));
    found = moat_session_elsewhere(b->engine->sessions, b->keys, b->hashes, others, b->found);
    others &= ~found;
    for (; found; found &= found - 1) {
        unsigned k = (unsigned)__builtin_ctz(found);

        if (meet_slowly(b, f, k, moat_session_at(b->engine->sessions, b->found[k])) == OVER)
            others |= 1u << k;
    }
    return others;
}

STRAIGHT uint32_t meet_all(struct burst *b, const struct front *f, unsigned n,
                           const enum moat_dir dir)
{
    struct moat_session *sessions = b->engine->sessions->sessions;
    const struct now now = {b->view->tag, b->view->serial, b->thread->now_s,
                            b->view->timers.shortest};
    const struct moat_pkt *p = b->pkts;
    uint32_t rest = 0, others = 0, over = 0;
    uint64_t bytes = 0;

    for (unsigned k = 0; k < n; k++, p++) {
        enum met met = meet(b, f, &now, k, &sessions[b->found[k]], p, dir);

        bytes += p->total;
        if (__builtin_expect(met != PASSED, 0)) {
            bytes -= p->total;
            rest |= 1u << k;
            others |= (uint32_t)(met == OTHER) << k;
            over |= (uint32_t)(met == OVER) << k;
        }
    }
    b->straight = (uint32_t)((1ull << n) - 1) & ~rest;
    b->passed |= b->straight;
    b->bytes += bytes;
    if (__builtin_expect(others, 0))
        others = meet_elsewhere(b, f, others);
    return others | over;
}

STRAIGHT unsigned live(struct burst *b, unsigned n, uint32_t *misses, const enum moat_dir dir)
{
    struct front f;
    unsigned front = take(b, &f, n, dir);

    b->n = front;
    if (__builtin_expect(front < n, 0)) {
        for (unsigned k = 0; k < front; k++)
            name(b, &f, k);
        return front;
    }
    find(b, &f, n);
    *misses = meet_all(b, &f, n, dir);
    return n;
}

unsigned moat_live(struct burst *b, unsigned n, uint32_t *misses)
{
    return b->dir == MOAT_FROM_VM ? live(b, n, misses, MOAT_FROM_VM)
                                  : live(b, n, misses, MOAT_TO_VM);
}
