/* SPDX-License-Identifier: Apache-2.0 */

/* Life of an entry: free list -> thread's cache -> written, way claimed, `key.tag`
 * stored (live) -> found, updated -> removed: tag zeroed, way freed (control thread) ->
 * limbo until a grace period has passed -> free list.
 *
 * A session that finds both its buckets full moves another one aside (make_room()).  The table is
 * full of sessions at a load of 0.85 of its ways; test_capacity.c fills it.
 *
 * Lock-free readers see a way's tag before or after its index; both orders are checked
 * against the entry's own key. */

#include "session.h"

#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "lines.h"
#include "mapping.h"
#include "qsbr.h"
#include "session_private.h"
#include "spin.h"
#include "state_other.h"
#include "state_tcp.h"

/* How many entries move, at most, to make room for one, besides the one that is in its way. */
#define MOVES 2

/* So many of the entries, at most, wait for readers: at every other turn of ageing. */
#define LIMBO_SHARE 16

/* Digits of pi: a seed that a test chose small still mixes. */
static const uint64_t spread[4] = {0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0,
                                   0x082efa98ec4e6c89};

#define STOCK_SHARE 4096 /* a thread takes one of so many entries at a time: others find enough */
#define BULK_MAX 32      /* keys that are looked up together: a burst */

#define LOAD(P) __atomic_load_n(P, __ATOMIC_RELAXED)
#define STORE(P, V) __atomic_store_n(P, V, __ATOMIC_RELAXED)

struct moat_session_table *moat_session_table_create(struct moat_mapping *m)
{
    struct moat_session_table *t = moat_lines_alloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->head = m->head;
    t->sessions = m->sessions;
    t->cold = m->cold;
    t->addrs6 = m->addrs6;
    t->buckets = m->buckets;
    t->n_sessions = m->head->n_sessions;
    t->first6 = m->head->n_sessions - m->head->n_sessions6;
    t->n_buckets = m->head->n_buckets;
    for (int i = 0; i < 4; i++)
        t->seed.w[i] = m->head->seed[i] ^ spread[i];
    t->stock = t->n_sessions / STOCK_SHARE;
    if (t->stock > MOAT_SESSION_STOCK)
        t->stock = MOAT_SESSION_STOCK;
    t->max_limbo = t->n_sessions / LIMBO_SHARE + 1;
    t->limbo = malloc(t->max_limbo * sizeof *t->limbo);
    if (!t->limbo) {
        moat_session_table_destroy(t);
        return NULL;
    }
    return t;
}

void moat_session_table_destroy(struct moat_session_table *t)
{
    if (t) {
        free(t->limbo);
        free(t);
    }
}

uint32_t moat_session_table_size(const struct moat_session_table *t)
{
    return t->n_sessions;
}

double moat_session_table_bytes(const struct moat_session_table *t, enum moat_family family)
{
    double shared = (double)t->n_buckets * sizeof *t->buckets +
                    (double)t->max_limbo * sizeof *t->limbo + sizeof *t + sizeof *t->head;

    return sizeof *t->sessions + sizeof *t->cold +
           (family == MOAT_FAM_IP6 ? sizeof *t->addrs6 : 0) + shared / t->n_sessions;
}

struct moat_session *moat_session_at(const struct moat_session_table *t, uint32_t index)
{
    return &t->sessions[index];
}

struct moat_session_cold *moat_session_cold(const struct moat_session_table *t,
                                            const struct moat_session *s)
{
    return &t->cold[s - t->sessions];
}

const uint8_t *moat_session_addresses(const struct moat_session_table *t,
                                      const struct moat_session *s)
{
    size_t i = (size_t)(s - t->sessions);

    return s->key.family == MOAT_FAM_IP6 && i >= t->first6 ? t->addrs6[i - t->first6] : NULL;
}

static uint64_t fold6(const struct moat_session_table *t, const uint8_t *a)
{
    uint64_t w[2];

    memcpy(w, a, 16);
    return moat_hash_mum(w[0] ^ t->seed.w[2], w[1] ^ t->seed.w[3]);
}

/* Symmetric in (local, lport) and (remote, rport).  For ICMP only the identifier counts:
 * the other half of the pair differs between the two slots. */
uint64_t moat_session_hash(const struct moat_session_table *t, const struct moat_key *k)
{
    bool icmp = k->proto == 1 || k->proto == 58;

    return moat_session_hash_halves(&t->seed, (uint64_t)k->local << 16 | (icmp ? 0 : k->lport),
                                    (uint64_t)k->remote << 16 | (icmp ? 0 : k->rport),
                                    (uint64_t)k->proto << 48 | (uint64_t)k->family << 40 |
                                        (uint64_t)k->vlan << 16 | (icmp ? k->lport : 0));
}

static inline uint32_t slot_mix(const struct moat_session_table *t, uint64_t hash, uint32_t tag)
{
    return (uint32_t)moat_hash_mum(hash ^ t->seed.w[1], tag ^ t->seed.w[0]);
}

static inline uint32_t second_bucket(const struct moat_session_table *t, uint64_t hash,
                                     uint32_t tag)
{
    return moat_session_scale(t, slot_mix(t, hash, tag));
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
    return moat_session_hash(t, k);
}

static inline uint32_t match_ways(const struct moat_bucket *b, uint16_t tag)
{
    return moat_session_match(b, tag) & ((1u << MOAT_BUCKET_WAYS) - 1);
}

/* Asked when no way of b has shown what is looked for: it may be in its second bucket.  Who moves
 * one there counts it before he takes it out here; x86 loads in order, the compiler is told to. */
static inline bool is_away(const struct moat_bucket *b)
{
    __atomic_signal_fence(__ATOMIC_ACQ_REL);
    return __atomic_load_n(&b->away, __ATOMIC_ACQUIRE);
}

static void count_away(struct moat_bucket *b, int by)
{
    if (b->away != UINT16_MAX)
        __atomic_store_n(&b->away, (uint16_t)(b->away + by), __ATOMIC_RELEASE);
}

static bool addresses_equal(const struct moat_session_table *t, uint32_t index,
                            const uint8_t *local, const uint8_t *remote)
{
    const uint8_t *have = index >= t->first6 ? t->addrs6[index - t->first6] : NULL;

    return have && !memcmp(have, local, 16) && !memcmp(have + 16, remote, 16);
}

/* The entry among `ways` of b that has this key, else MOAT_NO_SESSION. */
static inline uint32_t find_in(const struct moat_session_table *t, const struct moat_bucket *b,
                               uint32_t ways, const struct moat_key *k, const uint8_t *local,
                               const uint8_t *remote)
{
    for (; ways; ways &= ways - 1) {
        uint32_t index = __atomic_load_n(&b->index[__builtin_ctz(ways)], __ATOMIC_RELAXED);

        if (index < t->n_sessions && moat_session_is(&t->sessions[index], k) &&
            (k->family == MOAT_FAM_IP4 || addresses_equal(t, index, local, remote)))
            return index;
    }
    return MOAT_NO_SESSION;
}

static inline uint32_t find_second(const struct moat_session_table *t, const struct moat_key *k,
                                   uint64_t hash, const uint8_t *local, const uint8_t *remote)
{
    const struct moat_bucket *b = &t->buckets[second_bucket(t, hash, k->tag)];

    return find_in(t, b, match_ways(b, moat_session_way(hash, k->tag)), k, local, remote);
}

void moat_session_lookup_bulk(const struct moat_session_table *t, const struct moat_key *keys,
                              const uint64_t *hashes, const struct moat_pkt *const *pkts,
                              enum moat_dir dir, unsigned n, uint32_t *out)
{
    const struct moat_bucket *second[BULK_MAX];
    uint32_t ways[BULK_MAX];

    for (unsigned i = 0; i < n; i++) {
        const struct moat_bucket *b = &t->buckets[moat_session_bucket(t, hashes[i])];

        ways[i] = match_ways(b, moat_session_way(hashes[i], keys[i].tag));
        second[i] = is_away(b) ? &t->buckets[second_bucket(t, hashes[i], keys[i].tag)] : NULL;
        if (ways[i]) {
            uint32_t index = __atomic_load_n(&b->index[__builtin_ctz(ways[i])], __ATOMIC_RELAXED);

            index = index < t->n_sessions ? index : 0;
            __builtin_prefetch(&t->sessions[index], 1);
            if (keys[i].family == MOAT_FAM_IP6 && index >= t->first6)
                __builtin_prefetch(t->addrs6[index - t->first6]);
        } else if (second[i]) {
            __builtin_prefetch(second[i]);
        }
    }
    for (unsigned i = 0; i < n; i++) {
        const struct moat_bucket *b = &t->buckets[moat_session_bucket(t, hashes[i])];
        const struct moat_pkt *p = pkts[i];
        const uint8_t *local = dir == MOAT_FROM_VM ? p->src : p->dst;
        const uint8_t *remote = dir == MOAT_FROM_VM ? p->dst : p->src;

        out[i] = ways[i] ? find_in(t, b, ways[i], &keys[i], local, remote) : MOAT_NO_SESSION;
        /* A way that looked right may be another session's by now, and its own be away since. */
        if (out[i] == MOAT_NO_SESSION && (second[i] || (ways[i] && is_away(b))))
            out[i] = find_second(t, &keys[i], hashes[i], local, remote);
    }
}

static uint32_t lookup_one(const struct moat_session_table *t, uint64_t hash,
                           const struct moat_key *k, const uint8_t *local, const uint8_t *remote)
{
    const struct moat_bucket *b = &t->buckets[moat_session_bucket(t, hash)];
    uint32_t index = find_in(t, b, match_ways(b, moat_session_way(hash, k->tag)), k, local, remote);

    if (index == MOAT_NO_SESSION && is_away(b))
        index = find_second(t, k, hash, local, remote);
    return index;
}

uint32_t moat_session_elsewhere(const struct moat_session_table *t, const struct moat_key *keys,
                                const uint64_t *hashes, uint32_t which, uint32_t *out)
{
    const struct moat_bucket *second[BULK_MAX];
    uint32_t away = 0, maybe = 0, found = 0;

    for (uint32_t w = which; w; w &= w - 1) {
        unsigned i = (unsigned)__builtin_ctz(w);
        const struct moat_bucket *first = &t->buckets[moat_session_bucket(t, hashes[i])];
        uint32_t ways = match_ways(first, moat_session_way(hashes[i], keys[i].tag));

        out[i] = MOAT_NO_SESSION;
        maybe |= (uint32_t)(ways != 0) << i;
        if (is_away(first)) {
            second[i] = &t->buckets[second_bucket(t, hashes[i], keys[i].tag)];
            __builtin_prefetch(second[i]);
            away |= 1u << i;
        }
    }
    for (; away; away &= away - 1) {
        unsigned i = (unsigned)__builtin_ctz(away);
        uint32_t ways = match_ways(second[i], moat_session_way(hashes[i], keys[i].tag));

        if (ways) {
            uint32_t index =
                __atomic_load_n(&second[i]->index[__builtin_ctz(ways)], __ATOMIC_RELAXED);

            __builtin_prefetch(&t->sessions[index < t->n_sessions ? index : 0], 1);
            maybe |= 1u << i;
        }
    }
    for (; maybe; maybe &= maybe - 1) {
        unsigned i = (unsigned)__builtin_ctz(maybe);
        uint32_t index = lookup_one(t, hashes[i], &keys[i], NULL, NULL);

        if (index != MOAT_NO_SESSION) {
            out[i] = index;
            found |= 1u << i;
        }
    }
    return found;
}

uint32_t moat_session_lookup(const struct moat_session_table *t, const struct moat_key *k,
                             uint64_t hash, const struct moat_pkt *p, enum moat_dir dir)
{
    return lookup_one(t, hash, k, dir == MOAT_FROM_VM ? p->src : p->dst,
                      dir == MOAT_FROM_VM ? p->dst : p->src);
}

void moat_session_lock(struct moat_session_table *t, uint64_t hash)
{
    moat_spin_lock(&t->buckets[moat_session_bucket(t, hash)].lock);
}

void moat_session_unlock(struct moat_session_table *t, uint64_t hash)
{
    moat_spin_unlock(&t->buckets[moat_session_bucket(t, hash)].lock);
}

static bool claim_way(struct moat_bucket *b, uint16_t tag, uint32_t index)
{
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++) {
        uint16_t none = 0;

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

/* The entry of way i of bucket `at`, if this is its first choice; its other one then. */
static bool native(const struct moat_session_table *t, uint32_t at, unsigned i, uint16_t *way,
                   uint32_t *index, uint32_t *second)
{
    const struct moat_bucket *b = &t->buckets[at];
    const struct moat_key *k;
    uint64_t hash;
    uint32_t tag;

    *index = __atomic_load_n(&b->index[i], __ATOMIC_RELAXED);
    *way = __atomic_load_n(&b->tag[i], __ATOMIC_ACQUIRE);
    if (*way < 2 || *index >= t->n_sessions)
        return false;
    /* It may be another bucket's, and on its way out: then it does not match. */
    k = &t->sessions[*index].key;
    tag = __atomic_load_n(&k->tag, __ATOMIC_ACQUIRE);
    hash = moat_session_hash(t, k);
    *second = second_bucket(t, hash, tag);
    return moat_session_bucket(t, hash) == at && moat_session_way(hash, tag) == *way &&
           *second != at;
}

/* Makes room in bucket `at` by moving one entry, whose first choice it is, to that entry's
 * second choice.  Never the other way round: a reader looks at the first, then the second, so
 * it cannot miss an entry that moves in this direction and is written before it is cleared.
 * The caller holds the bucket, which is what all entries of this first choice are changed under. */
static bool displace(struct moat_session_table *t, uint32_t at)
{
    uint32_t index, second;
    uint16_t way;

    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++)
        if (native(t, at, i, &way, &index, &second) && claim_way(&t->buckets[second], way, index)) {
            count_away(&t->buckets[at], 1);
            __atomic_store_n(&t->buckets[at].tag[i], 0, __ATOMIC_RELEASE);
            return true;
        }
    return false;
}

/* The same; if need be after one has moved from there to its own second choice, and so on.  A
 * bucket that is busy, or ours further up, is passed over: nobody waits with a lock in hand. */
static bool make_room(struct moat_session_table *t, uint32_t at, unsigned depth)
{
    uint32_t index, second;
    uint16_t way;

    if (displace(t, at))
        return true;
    for (unsigned i = 0; depth && i < MOAT_BUCKET_WAYS; i++) {
        bool done;

        if (!native(t, at, i, &way, &index, &second))
            continue;
        if (!moat_spin_try(&t->buckets[second].lock))
            continue;
        done = make_room(t, second, depth - 1);
        moat_spin_unlock(&t->buckets[second].lock);
        if (done && displace(t, at))
            return true;
    }
    return false;
}

/* The caller holds another bucket; or this one, which then had no room to be made. */
static bool make_room_in(struct moat_session_table *t, uint32_t at)
{
    bool done;

    if (!moat_spin_try(&t->buckets[at].lock))
        return false;
    done = make_room(t, at, MOVES);
    moat_spin_unlock(&t->buckets[at].lock);
    return done;
}

static bool link_entry(struct moat_session_table *t, uint64_t hash, uint32_t tag, uint32_t index)
{
    uint32_t first = moat_session_bucket(t, hash), second = second_bucket(t, hash, tag);
    uint16_t way = moat_session_way(hash, tag);

    if (claim_way(&t->buckets[first], way, index))
        return true;
    if (second != first && claim_way(&t->buckets[second], way, index)) {
        count_away(&t->buckets[first], 1);
        return true;
    }
    if (make_room(t, first, MOVES) && claim_way(&t->buckets[first], way, index))
        return true;
    if (!make_room_in(t, second) || !claim_way(&t->buckets[second], way, index))
        return false;
    count_away(&t->buckets[first], 1);
    return true;
}

/* --- what an entry holds --- */

/* Which upper half of a generation this is.  When there are too many, the last one stands for all:
 * a host has seen fifteen epochs of four billion policies then. */
static uint8_t high_half(struct moat_session_table *t, uint64_t generation)
{
    struct moat_mapping_head *h = t->head;
    uint32_t high = (uint32_t)(generation >> 32), n, i = 0;

    if (!high)
        return 0;
    n = __atomic_load_n(&h->n_generation_high, __ATOMIC_ACQUIRE);
    for (i = 1; i <= n && i < MOAT_GENERATION_HALVES; i++)
        if (__atomic_load_n(&h->generation_high[i], __ATOMIC_RELAXED) == high)
            return (uint8_t)i;
    moat_spin_lock(&t->free_lock);
    n = h->n_generation_high;
    for (i = 1; i <= n && i < MOAT_GENERATION_HALVES && h->generation_high[i] != high; i++)
        ;
    if (i < MOAT_GENERATION_HALVES && i > n) {
        __atomic_store_n(&h->generation_high[i], high, __ATOMIC_RELAXED);
        __atomic_store_n(&h->n_generation_high, i, __ATOMIC_RELEASE);
    }
    moat_spin_unlock(&t->free_lock);
    return (uint8_t)(i < MOAT_GENERATION_HALVES ? i : MOAT_GENERATION_HALVES - 1);
}

uint64_t moat_session_generation(const struct moat_session_table *t, const struct moat_session *s)
{
    uint32_t half = LOAD(&s->marks) >> MOAT_SES_MARK_GEN_SHIFT;

    return (uint64_t)LOAD(&t->head->generation_high[half]) << 32 |
           LOAD(&moat_session_cold(t, s)->generation);
}

void moat_session_counts(const struct moat_session_table *t, const struct moat_session *s,
                         enum moat_dir dir, uint64_t *packets, uint64_t *bytes)
{
    const struct moat_session_cold *c = moat_session_cold(t, s);
    uint32_t tally = LOAD(&s->tally[dir]);

    *packets = (uint64_t)LOAD(&s->wraps[dir]) << 24 |
               (uint64_t)LOAD(&c->packets[dir]) << MOAT_TALLY_PKT_BITS |
               (tally & (MOAT_TALLY_PKT_CARRY - 1));
    *bytes = (uint64_t)LOAD(&c->bytes[dir]) << MOAT_TALLY_BYTE_BITS |
             (tally >> MOAT_TALLY_BYTES & ((1u << MOAT_TALLY_BYTE_BITS) - 1));
}

void moat_session_carry(const struct moat_session_table *t, struct moat_session *s,
                        enum moat_dir dir, uint32_t tally, uint32_t extra)
{
    struct moat_session_cold *c = moat_session_cold(t, s);

    STORE(&s->tally[dir], tally & ~MOAT_TALLY_CARRY);
    if (tally & MOAT_TALLY_PKT_CARRY &&
        __atomic_fetch_add(&c->packets[dir], 1, __ATOMIC_RELAXED) == UINT16_MAX)
        __atomic_fetch_add(&s->wraps[dir], 1, __ATOMIC_RELAXED);
    if (tally & MOAT_TALLY_BYTE_CARRY)
        extra++;
    if (extra)
        __atomic_fetch_add(&c->bytes[dir], extra, __ATOMIC_RELAXED);
}

/* Not the pure sum: packets wrap in the cold part and the top byte. */
static void store_counts(struct moat_session *s, struct moat_session_cold *c, int dir,
                         uint64_t packets, uint64_t bytes)
{
    uint32_t low = (uint32_t)bytes & ((1u << MOAT_TALLY_BYTE_BITS) - 1);

    STORE(&s->tally[dir],
          low << MOAT_TALLY_BYTES | ((uint32_t)packets & (MOAT_TALLY_PKT_CARRY - 1)));
    STORE(&s->wraps[dir], (uint8_t)(packets >> 24));
    STORE(&c->packets[dir], (uint16_t)(packets >> MOAT_TALLY_PKT_BITS));
    STORE(&c->bytes[dir], (uint32_t)(bytes >> MOAT_TALLY_BYTE_BITS));
}

static uint8_t marks_of(struct moat_session_table *t, uint8_t marks, uint64_t generation)
{
    return (uint8_t)((marks & ((1u << MOAT_SES_MARK_GEN_SHIFT) - 1)) |
                     high_half(t, generation) << MOAT_SES_MARK_GEN_SHIFT);
}

void moat_session_admitted(struct moat_session_table *t, struct moat_session *s, uint32_t rule,
                           uint64_t generation, uint32_t serial)
{
    struct moat_session_cold *c = moat_session_cold(t, s);
    uint8_t marks = LOAD(&s->marks), wanted;

    do
        wanted = marks_of(t, marks, generation);
    while (wanted != marks && !__atomic_compare_exchange_n(&s->marks, &marks, wanted, true,
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    STORE(&c->rule, rule);
    STORE(&c->generation, (uint32_t)generation);
    STORE(&s->serial, serial);
    moat_session_touch(t, s);
}

uint8_t moat_session_renew(struct moat_session_table *t, struct moat_session *s,
                           const struct moat_session_whole *w)
{
    struct moat_session_cold *c = moat_session_cold(t, s);
    /* Meanwhile, and for good if the switch dies meanwhile, nobody meets it: who does finds it cut,
     * and waits for the lock to open it himself. */
    uint8_t before = __atomic_exchange_n(&s->flags, MOAT_SES_F_CUT, __ATOMIC_SEQ_CST);

    for (int d = 0; d < 2; d++) {
        STORE(&s->side[d].state, w->s.side[d].state);
        STORE(&s->side[d].seq_lo, w->s.side[d].seq_lo);
        STORE(&s->side[d].seq_hi, w->s.side[d].seq_hi);
        STORE(&s->side[d].max_win, w->s.side[d].max_win);
        STORE(&s->side[d].wscale, w->s.side[d].wscale);
        store_counts(s, c, d, w->packets[d], w->bytes[d]);
    }
    STORE(&c->rule, w->rule);
    STORE(&c->generation, (uint32_t)w->generation);
    STORE(&c->created, w->created);
    STORE(&s->seen, w->s.seen);
    STORE(&s->marks, marks_of(t, w->s.marks, w->generation));
    STORE(&s->serial, w->s.serial);
    __atomic_store_n(&s->flags, w->s.flags, __ATOMIC_RELEASE);
    moat_session_touch(t, s);
    return before;
}

void moat_session_read(const struct moat_session_table *t, const struct moat_session *s,
                       struct moat_session_whole *out)
{
    const struct moat_session_cold *c = moat_session_cold(t, s);
    const uint8_t *addrs6 = moat_session_addresses(t, s);

    memset(out, 0, sizeof *out);
    out->s.key.tag = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE);
    memcpy(&out->s.key.local, &s->key.local, sizeof s->key - sizeof s->key.tag);
    out->s.serial = LOAD(&s->serial);
    out->s.seen = LOAD(&s->seen);
    out->s.flags = LOAD(&s->flags);
    out->s.marks = LOAD(&s->marks) & ((1u << MOAT_SES_MARK_GEN_SHIFT) - 1);
    out->rule = LOAD(&c->rule);
    out->created = LOAD(&c->created);
    out->generation = moat_session_generation(t, s);
    for (int d = 0; d < 2; d++) {
        out->s.side[d].seq_lo = LOAD(&s->side[d].seq_lo);
        out->s.side[d].seq_hi = LOAD(&s->side[d].seq_hi);
        out->s.side[d].max_win = LOAD(&s->side[d].max_win);
        out->s.side[d].wscale = LOAD(&s->side[d].wscale);
        out->s.side[d].state = LOAD(&s->side[d].state);
        moat_session_counts(t, s, (enum moat_dir)d, &out->packets[d], &out->bytes[d]);
    }
    if (addrs6) {
        memcpy(out->local6, addrs6, 16);
        memcpy(out->remote6, addrs6 + 16, 16);
    }
}

/* Writes all but the tag, which is zero: not live yet. */
static void write_entry(struct moat_session_table *t, uint32_t index,
                        const struct moat_session_whole *w)
{
    struct moat_session *s = &t->sessions[index];

    memcpy((uint8_t *)s + sizeof s->key.tag, (const uint8_t *)&w->s + sizeof s->key.tag,
           sizeof *s - sizeof s->key.tag);
    s->marks = marks_of(t, w->s.marks, w->generation);
    t->cold[index].rule = w->rule;
    t->cold[index].created = w->created;
    t->cold[index].generation = (uint32_t)w->generation;
    for (int d = 0; d < 2; d++)
        store_counts(s, &t->cold[index], d, w->packets[d], w->bytes[d]);
    if (w->s.key.family == MOAT_FAM_IP6) {
        memcpy(t->addrs6[index - t->first6], w->local6, 16);
        memcpy(t->addrs6[index - t->first6] + 16, w->remote6, 16);
    }
}

void moat_session_prepare(struct moat_session_table *t, struct moat_thread *thread,
                          const struct moat_key *keys, const uint64_t *hashes, uint32_t which)
{
    unsigned n[2] = {0, 0};

    for (uint32_t w = which; w; w &= w - 1) {
        unsigned k = (unsigned)__builtin_ctz(w);

        const struct moat_bucket *first = &t->buckets[moat_session_bucket(t, hashes[k])];

        if (is_away(first) || !match_ways(first, 0))
            __builtin_prefetch(&t->buckets[second_bucket(t, hashes[k], keys[k].tag)], 1);
        n[keys[k].family == MOAT_FAM_IP6]++;
    }
    moat_session_expect(t, thread, n[0], n[1]);
}

/* --- insert and remove --- */

uint32_t moat_session_insert(struct moat_session_table *t, struct moat_thread *thread,
                             uint64_t hash, const struct moat_session_whole *s, bool *found,
                             enum moat_reason *reason)
{
    const struct moat_key *k = &s->s.key;
    uint32_t index;

    *found = false;
    moat_session_lock(t, hash);
    index = lookup_one(t, hash, k, s->local6, s->remote6);
    if (index != MOAT_NO_SESSION) {
        *found = true;
        goto out;
    }
    index = moat_session_take(t, thread, k->family);
    if (index == MOAT_NO_SESSION) {
        *reason = MOAT_R_TABLE_FULL;
        goto out;
    }
    write_entry(t, index, s);
    if (link_entry(t, hash, k->tag, index)) {
        __atomic_store_n(&t->sessions[index].key.tag, k->tag, __ATOMIC_RELEASE);
        moat_session_touch(t, &t->sessions[index]);
    } else {
        moat_session_untake(t, thread, index);
        index = MOAT_NO_SESSION;
        *reason = MOAT_R_TABLE_FULL;
    }
out:
    moat_session_unlock(t, hash);
    return index;
}

static bool unlink_from(struct moat_bucket *b, uint16_t tag, uint32_t index)
{
    for (unsigned i = 0; i < MOAT_BUCKET_WAYS; i++)
        if (__atomic_load_n(&b->tag[i], __ATOMIC_RELAXED) == tag &&
            __atomic_load_n(&b->index[i], __ATOMIC_RELAXED) == index) {
            __atomic_store_n(&b->tag[i], 0, __ATOMIC_RELEASE);
            return true;
        }
    return false;
}

void moat_session_will_remove(const struct moat_session_table *t, uint32_t index)
{
    const struct moat_key *k = &t->sessions[index].key;
    uint64_t hash = moat_session_hash(t, k);

    __builtin_prefetch(&t->buckets[moat_session_bucket(t, hash)], 1);
}

bool moat_session_remove_if(struct moat_session_table *t, uint32_t index,
                            bool (*over)(void *aux, const struct moat_session *), void *aux)
{
    struct moat_session *s = &t->sessions[index];
    struct moat_bucket *first;
    uint64_t hash;
    uint32_t tag;
    uint16_t way;
    bool gone;

    /* A live entry's key changes under no one's hands but ours. */
    if (t->n_limbo == t->max_limbo || !__atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE) ||
        !over(aux, s))
        return false;
    hash = moat_session_hash(t, &s->key);
    moat_session_lock(t, hash);
    tag = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE);
    way = moat_session_way(hash, tag);
    gone = tag && over(aux, s);
    if (gone) {
        __atomic_store_n(&s->key.tag, 0, __ATOMIC_RELEASE);
        first = &t->buckets[moat_session_bucket(t, hash)];
        if (!unlink_from(first, way, index) &&
            unlink_from(&t->buckets[second_bucket(t, hash, tag)], way, index))
            count_away(first, -1);
        t->limbo[t->n_limbo++] = index;
        moat_session_touch(t, s);
    }
    moat_session_unlock(t, hash);
    return gone;
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

void moat_session_table_watch(struct moat_session_table *t, struct moat_session_watch *w)
{
    __atomic_store_n(&t->watch, w, __ATOMIC_RELEASE);
}

/* --- recovery --- */

static bool entry_sane(const struct moat_session_table *t, uint32_t index)
{
    const struct moat_session *s = &t->sessions[index];

    if ((s->key.family != MOAT_FAM_IP4 && s->key.family != MOAT_FAM_IP6) || s->key.vlan > 4094 ||
        (s->key.family == MOAT_FAM_IP6 && index < t->first6))
        return false;
    return s->key.proto == 6 ? moat_tcp_valid(s->side) : moat_other_valid(s->side);
}

/* Links entry `index` if it is one to be kept. */
static bool recover_entry(struct moat_session_table *t, uint32_t index)
{
    static const uint8_t none[32];
    struct moat_session *s = &t->sessions[index];
    const uint8_t *addrs6 = moat_session_addresses(t, s);
    uint64_t hash = moat_session_hash(t, &s->key);

    if (!addrs6)
        addrs6 = none;
    for (int d = 0; d < 2; d++)
        s->tally[d] &= ~MOAT_TALLY_CARRY;
    return lookup_one(t, hash, &s->key, addrs6, addrs6 + 16) == MOAT_NO_SESSION &&
           link_entry(t, hash, s->key.tag, index);
}

uint32_t moat_session_table_recover(struct moat_session_table *t,
                                    bool (*keep)(void *aux, const struct moat_session *), void *aux)
{
    uint32_t dead[64], n_dead = 0, live = 0;

    memset(t->buckets, 0, (size_t)t->n_buckets * sizeof *t->buckets);
    memset(t->head->free, 0, sizeof t->head->free);
    t->head->index_whole = 0;
    t->head->generation_high[0] = 0;
    if (t->head->n_generation_high >= MOAT_GENERATION_HALVES)
        t->head->n_generation_high = MOAT_GENERATION_HALVES - 1;
    t->n_limbo = t->n_old = 0;
    for (uint32_t i = t->n_sessions; i-- > 0;) {
        struct moat_session *s = &t->sessions[i];

        if (s->key.tag && entry_sane(t, i) && keep && keep(aux, s) && recover_entry(t, i)) {
            live++;
            continue;
        }
        s->key.tag = 0;
        dead[n_dead++] = i;
        if (n_dead == sizeof dead / sizeof *dead) {
            moat_session_give(t, dead, n_dead);
            n_dead = 0;
        }
    }
    moat_session_give(t, dead, n_dead);
    return live;
}
