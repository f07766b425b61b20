/* SPDX-License-Identifier: Apache-2.0 */

/* Life of an entry: free list -> thread's cache -> written, way claimed, `key.tag`
 * stored (live) -> found, updated -> removed: tag zeroed, way freed (control thread) ->
 * limbo until a grace period has passed -> free list.
 *
 * A session that finds both its buckets full moves another one aside (displace()); at the
 * table's load of at most one half this always succeeds in practice.
 *
 * Lock-free readers see a way's tag before or after its index; both orders are checked
 * against the entry's own key. */

#include "session.h"

#include <stdlib.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "engine.h"
#include "mapping.h"
#include "qsbr.h"
#include "session_private.h"
#include "spin.h"
#include "state_other.h"
#include "state_tcp.h"

#define CACHE_REFILL 32

/* Digits of pi: a seed that a test chose small still mixes. */
static const uint64_t spread[4] = {0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0,
                                   0x082efa98ec4e6c89};

struct moat_session_table *moat_session_table_create(struct moat_mapping *m)
{
    struct moat_session_table *t = calloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->sessions = m->sessions;
    t->buckets = m->buckets;
    t->n_sessions = m->head->n_sessions;
    t->bucket_mask = m->head->n_buckets - 1;
    for (int i = 0; i < 4; i++)
        t->seed[i] = m->head->seed[i] ^ spread[i];
    t->free = malloc(t->n_sessions * sizeof *t->free);
    t->limbo = malloc(t->n_sessions * sizeof *t->limbo);
    if (!t->free || !t->limbo) {
        moat_session_table_destroy(t);
        return NULL;
    }
    return t;
}

void moat_session_table_destroy(struct moat_session_table *t)
{
    if (t) {
        free(t->free);
        free(t->limbo);
        free(t);
    }
}

uint32_t moat_session_table_size(const struct moat_session_table *t)
{
    return t->n_sessions;
}

uint32_t moat_session_table_used(const struct moat_session_table *t)
{
    return t->n_sessions - __atomic_load_n(&t->n_free, __ATOMIC_RELAXED);
}

struct moat_session *moat_session_at(const struct moat_session_table *t, uint32_t index)
{
    return &t->sessions[index];
}

static uint64_t fold6(const struct moat_session_table *t, const uint8_t *a)
{
    uint64_t w[2];

    memcpy(w, a, 16);
    return moat_hash_mum(w[0] ^ t->seed[2], w[1] ^ t->seed[3]);
}

/* Symmetric in (local, lport) and (remote, rport).  For ICMP only the identifier counts:
 * the other half of the pair differs between the two slots. */
static uint64_t tuple_hash(const struct moat_session_table *t, const struct moat_key *k)
{
    bool icmp = k->proto == 1 || k->proto == 58;

    return moat_session_hash_halves(t, (uint64_t)k->local << 16 | (icmp ? 0 : k->lport),
                                    (uint64_t)k->remote << 16 | (icmp ? 0 : k->rport),
                                    (uint64_t)k->proto << 48 | (uint64_t)k->family << 40 |
                                        (uint64_t)k->vlan << 16 | (icmp ? k->lport : 0));
}

static inline uint32_t slot_mix(const struct moat_session_table *t, uint64_t hash, uint32_t tag)
{
    return (uint32_t)moat_hash_mum(hash ^ t->seed[1], tag ^ t->seed[0]);
}

/* Way tag: never 0 (free) or 1 (being written). */
static inline uint32_t way_tag(uint64_t hash, uint32_t tag)
{
    uint32_t v = (uint32_t)(hash >> 32) ^ tag * 0x9e3779b1u;

    return v < 2 ? v + 2 : v;
}

uint64_t moat_session_key(const struct moat_session_table *t, const struct moat_pkt *p,
                          enum moat_dir dir, uint32_t tag, struct moat_key *k)
{
    const uint8_t *local = dir == MOAT_FROM_VM ? p->src : p->dst;
    const uint8_t *remote = dir == MOAT_FROM_VM ? p->dst : p->src;

    k->tag = tag;
    k->vlan = p->vlan;
    k->proto = p->proto;
    k->family = p->family;
    if (p->family == MOAT_FAM_IP4) {
        memcpy(&k->local, local, 4);
        memcpy(&k->remote, remote, 4);
    } else {
        k->local = (uint32_t)fold6(t, local);
        k->remote = (uint32_t)fold6(t, remote);
    }
    if (p->kind == MOAT_PKT_ICMP_QUERY) {
        /* Who asked: the direction of the request. */
        unsigned asked = p->icmp_reply ? !dir : dir;

        k->lport = p->icmp_id;
        k->rport = (uint16_t)(p->icmp_base << 1 | asked);
    } else {
        k->lport = dir == MOAT_FROM_VM ? p->sport : p->dport;
        k->rport = dir == MOAT_FROM_VM ? p->dport : p->sport;
    }
    return tuple_hash(t, k);
}

/* Bit i: way i has this tag.  Aligned vector loads are as good as relaxed atomic ones here:
 * a way that changes meanwhile is checked against its entry's key.  The sanitizer gets the
 * plain form. */
static inline uint32_t match_ways(const struct moat_bucket *b, uint32_t tag)
{
#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__)
    __m128i want = _mm_set1_epi32((int)tag);
    __m128i lo = _mm_cmpeq_epi32(_mm_load_si128((const __m128i *)&b->tag[0]), want);
    __m128i hi = _mm_cmpeq_epi32(_mm_load_si128((const __m128i *)&b->tag[4]), want);

    return (uint32_t)_mm_movemask_epi8(
        _mm_packs_epi16(_mm_packs_epi32(lo, hi), _mm_setzero_si128()));
#else
    uint32_t bits = 0;

    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++)
        bits |= (uint32_t)(__atomic_load_n(&b->tag[i], __ATOMIC_ACQUIRE) == tag) << i;
    return bits;
#endif
}

static bool addresses_equal(const struct moat_session *s, const uint8_t *local,
                            const uint8_t *remote)
{
    return !memcmp(s->local6, local, 16) && !memcmp(s->remote6, remote, 16);
}

/* The entry among `ways` of b that has this key, else MOAT_NO_SESSION. */
static inline uint32_t find_in(const struct moat_session_table *t, const struct moat_bucket *b,
                               uint32_t ways, const struct moat_key *k, const uint8_t *local,
                               const uint8_t *remote)
{
    for (; ways; ways &= ways - 1) {
        uint32_t index = __atomic_load_n(&b->index[__builtin_ctz(ways)], __ATOMIC_RELAXED);

        if (index < t->n_sessions && moat_session_is(&t->sessions[index], k) &&
            (k->family == MOAT_FAM_IP4 || addresses_equal(&t->sessions[index], local, remote)))
            return index;
    }
    return MOAT_NO_SESSION;
}

static uint32_t find_second(const struct moat_session_table *t, const struct moat_key *k,
                            uint64_t hash, const uint8_t *local, const uint8_t *remote)
{
    const struct moat_bucket *b = &t->buckets[slot_mix(t, hash, k->tag) & t->bucket_mask];

    return find_in(t, b, match_ways(b, way_tag(hash, k->tag)), k, local, remote);
}

/* Without a branch: an index that means nothing leads to an entry whose key differs. */
void moat_session_candidates(const struct moat_session_table *t, const struct moat_key *keys,
                             const uint64_t *hashes, unsigned n, uint32_t *out)
{
    for (unsigned i = 0; i < n; i++) {
        const struct moat_bucket *b = &t->buckets[moat_session_bucket(t, hashes[i])];
        uint32_t ways = match_ways(b, way_tag(hashes[i], keys[i].tag));
        uint32_t index = __atomic_load_n(
            &b->index[__builtin_ctz(ways | 1u << (MOAT_BUCKET_WAYS - 1))], __ATOMIC_RELAXED);

        out[i] = index < t->n_sessions ? index : 0;
        __builtin_prefetch(&t->sessions[out[i]], 1);
        __builtin_prefetch(t->sessions[out[i]].local6, 1); /* the counters */
    }
}

void moat_session_lookup_bulk(const struct moat_session_table *t, const struct moat_key *keys,
                              const uint64_t *hashes, const struct moat_pkt *const *pkts,
                              enum moat_dir dir, unsigned n, uint32_t *out)
{
    uint32_t ways[32];

    for (unsigned i = 0; i < n; i++) {
        const struct moat_bucket *b = &t->buckets[moat_session_bucket(t, hashes[i])];

        ways[i] = match_ways(b, way_tag(hashes[i], keys[i].tag));
        if (ways[i]) {
            uint32_t index = __atomic_load_n(&b->index[__builtin_ctz(ways[i])], __ATOMIC_RELAXED);

            /* Both lines: the second holds the counters. */
            __builtin_prefetch(&t->sessions[index < t->n_sessions ? index : 0], 1);
            __builtin_prefetch(t->sessions[index < t->n_sessions ? index : 0].local6, 1);
        } else {
            __builtin_prefetch(&t->buckets[slot_mix(t, hashes[i], keys[i].tag) & t->bucket_mask]);
        }
    }
    for (unsigned i = 0; i < n; i++) {
        const struct moat_pkt *p = pkts[i];
        const uint8_t *local = dir == MOAT_FROM_VM ? p->src : p->dst;
        const uint8_t *remote = dir == MOAT_FROM_VM ? p->dst : p->src;

        out[i] = MOAT_NO_SESSION;
        if (ways[i])
            out[i] = find_in(t, &t->buckets[moat_session_bucket(t, hashes[i])], ways[i], &keys[i],
                             local, remote);
        if (out[i] == MOAT_NO_SESSION)
            out[i] = find_second(t, &keys[i], hashes[i], local, remote);
    }
}

uint32_t moat_session_lookup(const struct moat_session_table *t, const struct moat_key *k,
                             uint64_t hash, const struct moat_pkt *p, enum moat_dir dir)
{
    const struct moat_bucket *b = &t->buckets[moat_session_bucket(t, hash)];
    const uint8_t *local = dir == MOAT_FROM_VM ? p->src : p->dst;
    const uint8_t *remote = dir == MOAT_FROM_VM ? p->dst : p->src;
    uint32_t index = find_in(t, b, match_ways(b, way_tag(hash, k->tag)), k, local, remote);

    return index != MOAT_NO_SESSION ? index : find_second(t, k, hash, local, remote);
}

void moat_session_lock(struct moat_session_table *t, uint64_t hash)
{
    moat_spin_lock(&t->stripes[moat_session_bucket(t, hash) % MOAT_SESSION_STRIPES]);
}

void moat_session_unlock(struct moat_session_table *t, uint64_t hash)
{
    moat_spin_unlock(&t->stripes[moat_session_bucket(t, hash) % MOAT_SESSION_STRIPES]);
}

static uint32_t lookup_one(const struct moat_session_table *t, uint64_t hash,
                           const struct moat_session *s)
{
    const struct moat_bucket *b = &t->buckets[moat_session_bucket(t, hash)];
    uint32_t index =
        find_in(t, b, match_ways(b, way_tag(hash, s->key.tag)), &s->key, s->local6, s->remote6);

    return index != MOAT_NO_SESSION ? index : find_second(t, &s->key, hash, s->local6, s->remote6);
}

/* --- free entries --- */

static uint32_t take_free(struct moat_session_table *t, struct moat_thread *thread)
{
    if (!thread->n_free) {
        moat_spin_lock(&t->free_lock);
        uint32_t n = t->n_free < CACHE_REFILL ? t->n_free : CACHE_REFILL;
        memcpy(thread->free, t->free + t->n_free - n, n * sizeof *t->free);
        __atomic_store_n(&t->n_free, t->n_free - n, __ATOMIC_RELAXED);
        moat_spin_unlock(&t->free_lock);
        thread->n_free = n;
    }
    return thread->n_free ? thread->free[--thread->n_free] : MOAT_NO_SESSION;
}

static void give_free(struct moat_session_table *t, const uint32_t *indexes, uint32_t n)
{
    moat_spin_lock(&t->free_lock);
    memcpy(t->free + t->n_free, indexes, n * sizeof *indexes);
    __atomic_store_n(&t->n_free, t->n_free + n, __ATOMIC_RELAXED);
    moat_spin_unlock(&t->free_lock);
}

void moat_session_thread_flush(struct moat_session_table *t, struct moat_thread *thread)
{
    give_free(t, thread->free, thread->n_free);
    thread->n_free = 0;
}

/* --- insert and remove --- */

static bool claim_way(struct moat_bucket *b, uint32_t tag, uint32_t index)
{
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) {
        uint32_t none = 0;

        if (!__atomic_load_n(&b->tag[i], __ATOMIC_RELAXED) &&
            __atomic_compare_exchange_n(&b->tag[i], &none, 1, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED)) {
            __atomic_store_n(&b->index[i], index, __ATOMIC_RELAXED);
            __atomic_store_n(&b->tag[i], tag, __ATOMIC_RELEASE);
            return true;
        }
    }
    return false;
}

/* Makes room in bucket `at` by moving one entry, whose first choice it is, to that entry's
 * second choice (one step of cuckoo hashing).  Never the other way round: a reader looks at
 * the first, then the second, so it cannot miss an entry that moves in this direction and
 * is written before it is cleared.  All entries with this first choice share the stripe
 * that the caller holds. */
static bool displace(struct moat_session_table *t, uint32_t at)
{
    struct moat_bucket *b = &t->buckets[at];

    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) {
        uint32_t index = __atomic_load_n(&b->index[i], __ATOMIC_RELAXED);
        uint32_t way = __atomic_load_n(&b->tag[i], __ATOMIC_ACQUIRE);
        const struct moat_key *k;
        uint64_t hash;
        uint32_t tag, second;

        if (way < 2 || index >= t->n_sessions)
            continue;
        /* It may be another stripe's, and on its way out: then it does not match. */
        k = &t->sessions[index].key;
        tag = __atomic_load_n(&k->tag, __ATOMIC_ACQUIRE);
        hash = tuple_hash(t, k);
        second = slot_mix(t, hash, tag) & t->bucket_mask;
        if (moat_session_bucket(t, hash) == at && way_tag(hash, tag) == way && second != at &&
            claim_way(&t->buckets[second], way, index)) {
            __atomic_store_n(&b->tag[i], 0, __ATOMIC_RELEASE);
            return true;
        }
    }
    return false;
}

static bool link_entry(struct moat_session_table *t, uint64_t hash, uint32_t tag, uint32_t index)
{
    uint32_t way = way_tag(hash, tag), at = moat_session_bucket(t, hash);

    return claim_way(&t->buckets[at], way, index) ||
           claim_way(&t->buckets[slot_mix(t, hash, tag) & t->bucket_mask], way, index) ||
           (displace(t, at) && claim_way(&t->buckets[at], way, index));
}

/* Writes all but the tag, which is zero: not live yet. */
static void write_entry(struct moat_session *to, const struct moat_session *from)
{
    memcpy((uint8_t *)to + sizeof to->key.tag, (const uint8_t *)from + sizeof from->key.tag,
           sizeof *to - sizeof to->key.tag);
}

uint32_t moat_session_insert(struct moat_session_table *t, struct moat_thread *thread,
                             uint64_t hash, const struct moat_session *s, bool *found,
                             enum moat_reason *reason)
{
    uint32_t index;

    *found = false;
    moat_session_lock(t, hash);
    index = lookup_one(t, hash, s);
    if (index != MOAT_NO_SESSION) {
        *found = true;
        goto out;
    }
    index = take_free(t, thread);
    if (index == MOAT_NO_SESSION) {
        *reason = MOAT_R_TABLE_FULL;
        goto out;
    }
    write_entry(&t->sessions[index], s);
    if (link_entry(t, hash, s->key.tag, index)) {
        __atomic_store_n(&t->sessions[index].key.tag, s->key.tag, __ATOMIC_RELEASE);
    } else {
        thread->free[thread->n_free++] = index;
        index = MOAT_NO_SESSION;
        *reason = MOAT_R_TABLE_FULL;
    }
out:
    moat_session_unlock(t, hash);
    return index;
}

static bool unlink_from(struct moat_bucket *b, uint32_t tag, uint32_t index)
{
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++)
        if (__atomic_load_n(&b->tag[i], __ATOMIC_RELAXED) == tag &&
            __atomic_load_n(&b->index[i], __ATOMIC_RELAXED) == index) {
            __atomic_store_n(&b->tag[i], 0, __ATOMIC_RELEASE);
            return true;
        }
    return false;
}

bool moat_session_remove_if(struct moat_session_table *t, uint32_t index,
                            bool (*over)(void *aux, const struct moat_session *), void *aux)
{
    struct moat_session *s = &t->sessions[index];
    uint64_t hash;
    uint32_t tag, way;
    bool gone;

    /* A live entry's key changes under no one's hands but ours. */
    if (!__atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE) || !over(aux, s))
        return false;
    hash = tuple_hash(t, &s->key);
    moat_session_lock(t, hash);
    tag = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE);
    way = way_tag(hash, tag);
    gone = tag && over(aux, s);
    if (gone) {
        __atomic_store_n(&s->key.tag, 0, __ATOMIC_RELEASE);
        if (!unlink_from(&t->buckets[moat_session_bucket(t, hash)], way, index))
            unlink_from(&t->buckets[slot_mix(t, hash, tag) & t->bucket_mask], way, index);
        t->limbo[t->n_limbo++] = index;
    }
    moat_session_unlock(t, hash);
    return gone;
}

void moat_session_reclaim(struct moat_session_table *t, struct moat_qsbr *q)
{
    if (t->n_old && moat_qsbr_passed(q, t->token)) {
        give_free(t, t->limbo, t->n_old);
        memmove(t->limbo, t->limbo + t->n_old, (t->n_limbo - t->n_old) * sizeof *t->limbo);
        t->n_limbo -= t->n_old;
        t->n_old = 0;
    }
    if (!t->n_old && t->n_limbo) {
        t->n_old = t->n_limbo;
        t->token = moat_qsbr_token(q);
    }
}

enum moat_timer moat_session_timer(const struct moat_session *s)
{
    if (s->key.proto == 6)
        return moat_tcp_timer(s->side);
    if (__atomic_load_n(&s->marks, __ATOMIC_RELAXED) & MOAT_SES_MARK_ERROR &&
        (s->key.proto == 1 || s->key.proto == 58))
        return MOAT_T_ICMP_ERROR;
    return moat_other_timer(s->side, s->key.family, s->key.proto);
}

/* --- recovery --- */

static bool entry_sane(const struct moat_session *s)
{
    if ((s->key.family != MOAT_FAM_IP4 && s->key.family != MOAT_FAM_IP6) || s->dir > 1 ||
        s->key.vlan > 4094)
        return false;
    return s->key.proto == 6 ? moat_tcp_valid(s->side) : moat_other_valid(s->side);
}

uint32_t moat_session_table_recover(struct moat_session_table *t,
                                    bool (*keep)(void *aux, const struct moat_session *), void *aux)
{
    uint32_t live = 0;

    memset(t->buckets, 0, ((size_t)t->bucket_mask + 1) * sizeof *t->buckets);
    t->n_free = t->n_limbo = t->n_old = 0;
    for (uint32_t i = t->n_sessions; i-- > 0;) {
        struct moat_session *s = &t->sessions[i];

        if (s->key.tag && entry_sane(s) && keep && keep(aux, s)) {
            uint64_t hash = tuple_hash(t, &s->key);

            if (lookup_one(t, hash, s) == MOAT_NO_SESSION && link_entry(t, hash, s->key.tag, i)) {
                live++;
                continue;
            }
        }
        s->key.tag = 0;
        t->free[t->n_free++] = i;
    }
    return live;
}
