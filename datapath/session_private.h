/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SESSION_PRIVATE_H
#define MOAT_DP_SESSION_PRIVATE_H 1

/* The table's body and the first steps of a look-up, for session.c and session_free.c, and for the
 * live path of the pipe, which has them inline; and who changes sessions says so here.  Nobody
 * else. */

#include <stdint.h>

#include "hash.h"
#include "mapping.h"
#include "session.h"
#include "session_watch.h"

#define MOAT_SESSION_STRIPES 1024

struct moat_session_table {
    struct moat_session *sessions;
    struct moat_session_cold *cold;
    uint8_t (*addrs6)[32];
    struct moat_bucket *buckets;
    uint32_t n_sessions, n_buckets;
    uint32_t first6; /* of the entries with room for IPv6 addresses */
    uint64_t seed[4];
    struct moat_mapping_head *head; /* the free lists are there, under free_lock */
    uint8_t free_lock;
    struct moat_session_watch *watch; /* atomic; NULL: nobody wants to know what changes */

    /* Control thread: removed and waiting, room for max_limbo; [0, n_old) wait for `token`. */
    uint32_t *limbo, max_limbo, n_limbo, n_old;
    uint64_t token;

    uint8_t stripes[MOAT_SESSION_STRIPES]; /* insert locks, by first bucket */
};

static inline uint64_t moat_session_hash_halves(const struct moat_session_table *t, uint64_t l,
                                                uint64_t r, uint64_t rest)
{
    uint64_t lo = l < r ? l : r, hi = l < r ? r : l;

    return moat_hash_mum(moat_hash_mum(lo ^ t->seed[0], hi ^ t->seed[1]) ^ t->seed[2],
                         rest ^ t->seed[3]);
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

/* Hash of an IPv4 TCP or UDP key: the same as moat_session_key() returns. */
static inline uint64_t moat_session_hash4(const struct moat_session_table *t,
                                          const struct moat_key *k)
{
    return moat_session_hash_halves(t, (uint64_t)k->local << 16 | k->lport,
                                    (uint64_t)k->remote << 16 | k->rport,
                                    (uint64_t)k->proto << 48 | (uint64_t)MOAT_FAM_IP4 << 40);
}

static inline void moat_session_prefetch(const struct moat_session_table *t, uint64_t hash)
{
    __builtin_prefetch(&t->buckets[moat_session_bucket(t, hash)]);
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
