/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SESSION_PRIVATE_H
#define MOAT_DP_SESSION_PRIVATE_H 1

/* The table's body and the first steps of a look-up, for session.c and session_free.c, and for the
 * live path of the pipe, which has them inline; and who changes sessions says so here.  Nobody
 * else. */

#include <stdint.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "hash.h"
#include "mapping.h"
#include "session.h"
#include "session_watch.h"

/* What packet threads hash with. */
struct moat_hash_seed {
    uint64_t w[4];
};

struct moat_session_table {
    struct moat_session *sessions;
    struct moat_session_cold *cold;
    uint8_t (*addrs6)[32];
    struct moat_bucket *buckets;
    uint32_t n_sessions, n_buckets;
    uint32_t first6; /* of the entries with room for IPv6 addresses */
    struct moat_hash_seed seed;
    uint32_t stock; /* entries that a thread takes at a time */
    struct moat_mapping_head *head;
    struct moat_session_watch *watch; /* atomic; NULL: nobody wants to know what changes */

    /* What is written, on lines that look-ups do not read.  The lock of the free lists, which are
     * in `head`. */
    uint8_t free_lock __attribute__((aligned(64)));
    /* Control thread: removed and waiting, room for max_limbo; [0, n_old) wait for `token`. */
    uint32_t *limbo __attribute__((aligned(64)));
    uint32_t max_limbo, n_limbo, n_old;
    uint64_t token;
};

/* Symmetric: l and r may be swapped. */
static inline uint64_t moat_session_hash_halves(const struct moat_hash_seed *seed, uint64_t l,
                                                uint64_t r, uint64_t rest)
{
    uint64_t lo = l < r ? l : r, hi = l < r ? r : l;

    return moat_hash_mum(moat_hash_mum(lo ^ seed->w[0], hi ^ seed->w[1]) ^ seed->w[2],
                         rest ^ seed->w[3]);
}

/* The number of buckets is any: 32 bits of hash are scaled to it (Lemire, "Fast Random Integer
 * Generation in an Interval", 2019). */
static inline uint32_t moat_session_scale(const struct moat_session_table *t, uint32_t hash)
{
    return (uint32_t)((uint64_t)hash * t->n_buckets >> 32);
}

static inline uint32_t moat_session_bucket(const struct moat_session_table *t, uint64_t hash)
{
    return moat_session_scale(t, (uint32_t)hash);
}

static inline void moat_session_prefetch(const struct moat_session_table *t, uint64_t hash)
{
    __builtin_prefetch(&t->buckets[moat_session_bucket(t, hash)]);
}

/* The tag of a session's way: never 0 (free) or 1 (being written). */
static inline uint16_t moat_session_way(uint64_t hash, uint32_t tag)
{
    uint32_t v = (uint16_t)(hash >> 48 ^ (tag * 0x9e3779b1u) >> 16);

    return (uint16_t)(v < 2 ? v + 2 : v);
}

/* Bit i: way i has this tag.  What the bits behind the last way's say means nothing.  Aligned
 * vector loads are as good as relaxed atomic ones here: a way that changes meanwhile is checked
 * against its entry's key.  The sanitizer gets the plain form. */
static inline uint32_t moat_session_match(const struct moat_bucket *b, uint16_t tag)
{
#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__)
    __m128i want = _mm_set1_epi16((short)tag);
    __m128i lo = _mm_cmpeq_epi16(_mm_load_si128((const __m128i *)(const void *)b), want);
    __m128i hi = _mm_cmpeq_epi16(_mm_load_si128((const __m128i *)(const void *)b + 1), want);

    return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(lo, hi));
#else
    uint32_t bits = 0;

    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++)
        bits |= (uint32_t)(__atomic_load_n(&b->tag[i], __ATOMIC_ACQUIRE) == tag) << i;
    return bits;
#endif
}

/* Where a session with this tag is, if it is in this bucket and has its tag alone there.  Without a
 * branch: if there is none, the last way stands in for it, and the entry that it leads to has
 * another key. */
static inline uint32_t moat_session_candidate(const struct moat_bucket *b, uint16_t tag,
                                              uint32_t n_sessions)
{
    uint64_t ways = moat_session_match(b, tag) | 1u << (MOAT_BUCKET_WAYS - 1);
    uint32_t index = __atomic_load_n(&b->index[(unsigned)__builtin_ctzll(ways)], __ATOMIC_RELAXED);

    return index < n_sessions ? index : 0;
}

/* A session has changed. */
static inline void moat_session_touch(const struct moat_session_table *t,
                                      const struct moat_session *s)
{
    struct moat_session_watch *w = __atomic_load_n(&t->watch, __ATOMIC_ACQUIRE);

    if (__builtin_expect(w != NULL, 0))
        moat_session_watch_set(w, (uint32_t)(s - t->sessions));
}

/* --- session_free.c --- */

/* An entry without a session, from the thread's own; MOAT_NO_SESSION: there is none.  And
 * one more of it that was not used. */
uint32_t moat_session_take(struct moat_session_table *, struct moat_thread *, uint8_t family);
void moat_session_untake(struct moat_session_table *, struct moat_thread *, uint32_t index);

/* So many IPv4 and IPv6 sessions will perhaps be inserted, MOAT_EXPECT_MAX at most of each: entries
 * for them are made ready. */
#define MOAT_EXPECT_MAX 32
void moat_session_expect(struct moat_session_table *, struct moat_thread *, unsigned n4,
                         unsigned n6);

/* Dead entries that nobody looks at any more. */
void moat_session_give(struct moat_session_table *, const uint32_t *indexes, uint32_t n);

#endif /* datapath/session_private.h */
