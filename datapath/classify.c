/* SPDX-License-Identifier: Apache-2.0 */

/* First match, without meeting most rules.  The packet's direction, family and kind of protocol
 * choose a list; the list's trees (forest.h) or, if it is short, the AND of one row of its two
 * bit tables (ruleset_private.h) give the few rules that are compared.
 *
 * A burst goes in passes, each of which asks for the memory that the next one reads: classes of
 * all addresses, block by block; all trees of all packets, cut by cut; leaves; rules.  Rules that
 * only log, or send to another tier, are followed one packet at a time: what they go on with is
 * in the cache by then. */

#include "classify.h"

#include <emmintrin.h>
#include <string.h>

#include "ruleset_private.h"

#define MAX_BURST 32

/* A packet on its way through a burst. */
struct query {
    __m128i x; /* the packet as a point, and its complement: struct forest_box */
    uint16_t key[N_DIMS];
    const struct rule_list *list; /* NULL: no such direction or family */
    uint32_t best;                /* the first rule that matches, so far; UINT32_MAX: none */
};

/* Where the walk through a list stands: `bits` are the candidates left in word `word`. */
struct walk {
    const uint64_t *ports, *peers;
    uint32_t word, words;
    uint64_t bits;
};

static void seek(struct walk *w, uint32_t pos)
{
    w->word = pos / 64;
    w->bits = 0;
    if (w->word < w->words)
        w->bits = w->ports[w->word] & w->peers[w->word] & UINT64_MAX << pos % 64;
}

/* Position of the next candidate, or UINT32_MAX. */
static inline uint32_t next(struct walk *w)
{
    uint32_t pos;

    while (!w->bits) {
        if (++w->word >= w->words)
            return UINT32_MAX;
        w->bits = w->ports[w->word] & w->peers[w->word];
    }
    pos = w->word * 64 + (uint32_t)__builtin_ctzll(w->bits);
    w->bits &= w->bits - 1;
    return pos;
}

/* Position of the first rule of a list from index `rule` on; n if there is none. */
static uint32_t position_of(const struct rule_list *l, uint32_t rule)
{
    uint32_t lo = 0, hi = l->n;

    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;

        if (l->rules[mid] < rule)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static uint64_t load_be64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
    return __builtin_bswap64(v);
}

static __uint128_t load_be128(const uint8_t *p)
{
    return (__uint128_t)load_be64(p) << 64 | load_be64(p + 8);
}

static uint32_t load_be32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof v);
    return __builtin_bswap32(v);
}

/* --- Classes --- */

/* How many starts of a block are not above a. */
static inline uint32_t count_block(const int32_t *block, __m128i a)
{
    const __m128i *p = (const __m128i *)block;
    __m128i lo = _mm_packs_epi32(_mm_cmpgt_epi32(p[0], a), _mm_cmpgt_epi32(p[1], a));
    __m128i hi = _mm_packs_epi32(_mm_cmpgt_epi32(p[2], a), _mm_cmpgt_epi32(p[3], a));
    uint32_t above = (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(lo, hi));

    return (uint32_t)__builtin_ctz(above | 1u << BLOCK); /* starts rise: they are the last ones */
}

struct class_query {
    uint32_t addr, block;
    uint16_t *out;
};

static void classes_v4(const struct moat_ruleset *rs, struct class_query *q, unsigned n)
{
    const struct block_tree *t = &rs->v4;

    for (uint32_t l = t->n_levels - 1; l > 0; l--)
        for (unsigned i = 0; i < n; i++) {
            __m128i a = _mm_set1_epi32((int32_t)(q[i].addr ^ 0x80000000u));
            uint32_t b =
                q[i].block * (BLOCK + 1) + count_block(t->level[l] + (size_t)q[i].block * BLOCK, a);

            q[i].block = b < t->blocks[l - 1] ? b : t->blocks[l - 1] - 1;
            __builtin_prefetch(t->level[l - 1] + (size_t)q[i].block * BLOCK);
        }
    for (unsigned i = 0; i < n; i++) {
        __m128i a = _mm_set1_epi32((int32_t)(q[i].addr ^ 0x80000000u));
        uint32_t k =
            q[i].block * BLOCK + count_block(t->level[0] + (size_t)q[i].block * BLOCK, a) - 1;

        q[i].block = k < t->n ? k : t->n - 1;
        __builtin_prefetch(&rs->v4_class[q[i].block]);
    }
    for (unsigned i = 0; i < n; i++)
        *q[i].out = rs->v4_class[q[i].block];
}

/* The searches step by a conditional move: which half holds an address is a coin toss. */
static uint32_t class_of_v4(const struct moat_ruleset *rs, const uint8_t *addr)
{
    uint32_t a = load_be32(addr), base = 0, n = rs->body->n_v4;

    while (n > 1) {
        uint32_t half = n / 2;

        base = rs->v4_start[base + half] <= a ? base + half : base;
        n -= half;
    }
    return rs->v4_class[base];
}

static uint32_t class_of_v6(const struct moat_ruleset *rs, const uint8_t *addr)
{
    uint32_t base = 0, n = rs->body->n_v6;
    __uint128_t a = load_be128(addr);

    while (n > 1) {
        uint32_t half = n / 2;

        base = load_be128(rs->v6_start[base + half]) <= a ? base + half : base;
        n -= half;
    }
    return rs->v6_class[base];
}

static uint16_t class_of(const struct moat_ruleset *rs, const struct moat_flow *f,
                         const uint8_t *addr)
{
    return (uint16_t)(f->family == MOAT_FAM_IP6 ? class_of_v6(rs, addr) : class_of_v4(rs, addr));
}

static inline bool in_set(const struct moat_ruleset *rs, uint32_t set, uint32_t class)
{
    if (set == MOAT_SET_ANY)
        return true;
    return rs->sets[(size_t)set * rs->body->set_words + class / 64] >> class % 64 & 1;
}

/* The list has settled direction and family, and protocols that have a list of their own. */
static inline bool matches(const struct moat_ruleset *rs, const struct moat_rule *r,
                           const struct moat_flow *f, uint32_t peer, uint32_t local)
{
    return (r->proto == MOAT_PROTO_ANY || r->proto == f->proto) && f->dport >= r->dport_lo &&
           f->dport <= r->dport_hi && f->sport >= r->sport_lo && f->sport <= r->sport_hi &&
           in_set(rs, r->peer_set, peer) && in_set(rs, r->local_set, local);
}

/* NULL: no such direction or family. */
static const struct rule_list *list_of(const struct moat_ruleset *rs, const struct moat_flow *f)
{
    unsigned list = f->dir * N_FAMILY_LISTS;

    if (f->dir > MOAT_TO_VM)
        return NULL;
    switch (f->family) {
    case MOAT_FAM_IP4:
        return &rs->lists[list + rule_kind(f->proto)];
    case MOAT_FAM_IP6:
        return &rs->lists[list + N_KINDS + rule_kind(f->proto)];
    case MOAT_FAM_ARP:
        return &rs->lists[list + 2 * N_KINDS];
    default:
        return NULL;
    }
}

static void decide(struct moat_match *d, uint8_t verdict, uint8_t flags, uint32_t index,
                   uint32_t rule)
{
    d->verdict = verdict;
    d->loose = !!(flags & MOAT_RULE_F_LOOSE);
    d->index = index;
    d->rule = rule;
    if (flags & MOAT_RULE_F_LOG && !d->logged) {
        d->logged = 1;
        d->log_rule = rule;
    }
}

/* --- Short lists --- */

/* The first rule from index `from` on. */
static uint32_t find_by_bits(const struct moat_ruleset *rs, const struct query *q,
                             const struct moat_flow *f, uint32_t from)
{
    const struct rule_list *l = q->list;
    uint32_t peer = q->key[DIM_PEER], pos;
    struct walk w = {.words = l->words};

    w.ports = l->port_bits + (size_t)port_bucket(l->port_start, l->n_ports, f->dport) * l->words;
    w.peers = l->peer_bits + (l->n_peers > 1 ? (size_t)(peer % MAX_BUCKETS) * l->words : 0);
    seek(&w, from ? position_of(l, from) : 0);
    while ((pos = next(&w)) != UINT32_MAX)
        if (matches(rs, &rs->rules[l->rules[pos]], f, peer, q->key[DIM_LOCAL]))
            return l->rules[pos];
    return UINT32_MAX;
}

/* --- Trees --- */

static inline const struct forest_slot *branch(const struct moat_ruleset *rs,
                                               const struct forest_slot *s, const uint16_t *key)
{
    uint32_t v = key[s->dim], i = (v > s->base ? v - s->base : 0u) >> s->shift;

    return &rs->forest.slots[s->at + (i < s->last ? i : s->last)];
}

/* Bit i: box i of four holds the packet. */
static inline uint32_t compare_four(const struct forest_box *boxes, __m128i x)
{
    const __m128i *p = (const __m128i *)boxes, zero = _mm_setzero_si128();
    __m128i a = _mm_cmpeq_epi16(_mm_subs_epu16(p[0], x), zero);
    __m128i b = _mm_cmpeq_epi16(_mm_subs_epu16(p[1], x), zero);
    __m128i c = _mm_cmpeq_epi16(_mm_subs_epu16(p[2], x), zero);
    __m128i d = _mm_cmpeq_epi16(_mm_subs_epu16(p[3], x), zero);
    uint32_t ab = (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(a, b));
    uint32_t cd = (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(c, d));

    return ((ab & 0xff) == 0xff) | (ab >> 8 == 0xff) << 1 | ((cd & 0xff) == 0xff) << 2 |
           (cd >> 8 == 0xff) << 3;
}

/* The first rule of a leaf from `from` on, if it is below `best`; else `best`. */
static uint32_t scan_leaf(const struct moat_ruleset *rs, const struct forest_slot *s,
                          const struct query *q, const struct moat_flow *f, uint32_t from,
                          uint32_t best)
{
    const struct forest_box *boxes = &rs->forest.leaves[s->at];
    const uint32_t *ids = (const uint32_t *)(boxes + s->n);

    for (uint32_t k = 0; k < s->n; k += 4) {
        uint32_t hit = compare_four(boxes + k, q->x);

        if (s->n - k < 4)
            hit &= (1u << (s->n - k)) - 1;
        for (; hit; hit &= hit - 1) {
            uint32_t id = ids[k + (uint32_t)__builtin_ctz(hit)], rule = id & ~FOREST_VERIFY;

            if (rule >= best)
                return best;
            if (rule >= from &&
                (!(id & FOREST_VERIFY) ||
                 matches(rs, &rs->rules[rule], f, q->key[DIM_PEER], q->key[DIM_LOCAL])))
                return rule;
        }
    }
    return best;
}

static uint32_t find_by_trees(const struct moat_ruleset *rs, const struct query *q,
                              const struct moat_flow *f, uint32_t from)
{
    uint32_t best = UINT32_MAX;

    for (uint32_t t = 0; t < q->list->trees.n_trees; t++) {
        const struct forest_slot *s = &q->list->trees.roots[t];

        while (s->dim != FOREST_LEAF && s->first < best)
            s = branch(rs, s, q->key);
        if (s->first < best)
            best = scan_leaf(rs, s, q, f, from, best);
    }
    return best;
}

/* Where a packet stands in one tree. */
struct cursor {
    const struct forest_slot *slot;
    struct query *q;
};

static void walk_trees(const struct moat_ruleset *rs, struct query *q, const struct moat_flow *f,
                       unsigned n)
{
    struct cursor at[MAX_BURST * FOREST_TREES], leaf[MAX_BURST * FOREST_TREES];
    unsigned n_at = 0, n_leaf = 0;

    for (unsigned i = 0; i < n; i++)
        for (uint32_t t = 0; q[i].list && t < q[i].list->trees.n_trees; t++)
            at[n_at++] = (struct cursor){&q[i].list->trees.roots[t], &q[i]};
    while (n_at) {
        unsigned left = 0;

        for (unsigned i = 0; i < n_at; i++) {
            struct cursor c = at[i];

            if (c.slot->dim != FOREST_LEAF) {
                c.slot = branch(rs, c.slot, c.q->key);
                __builtin_prefetch(c.slot);
                at[left++] = c;
            } else if (c.slot->n) {
                const char *p = (const char *)&rs->forest.leaves[c.slot->at];

                for (uint32_t k = 0; k < c.slot->n * 20u && k < 256; k += 64)
                    __builtin_prefetch(p + k);
                leaf[n_leaf++] = c;
            }
        }
        n_at = left;
    }
    for (unsigned i = 0; i < n_leaf; i++) {
        const struct forest_slot *s = leaf[i].slot;
        struct query *to = leaf[i].q;

        if (s->first < to->best)
            to->best = scan_leaf(rs, s, to, &f[to - q], 0, to->best);
    }
}

/* --- A burst --- */

static void start(const struct moat_ruleset *rs, struct query *q, const struct moat_flow *f,
                  unsigned n)
{
    struct class_query v4[2 * MAX_BURST];
    unsigned n_v4 = 0;

    for (unsigned i = 0; i < n; i++) {
        const struct rule_list *l = list_of(rs, &f[i]);

        q[i].list = l;
        q[i].best = UINT32_MAX;
        q[i].key[DIM_PEER] = q[i].key[DIM_LOCAL] = 0;
        if (!l)
            continue;
        if (l->trees.n_trees)
            __builtin_prefetch(&rs->rank[f[i].dport]);
        if (f[i].family == MOAT_FAM_IP6) {
            if (l->n_peers > 1)
                q[i].key[DIM_PEER] = (uint16_t)class_of_v6(rs, f[i].remote);
            if (l->locals)
                q[i].key[DIM_LOCAL] = (uint16_t)class_of_v6(rs, f[i].local);
            continue;
        }
        if (l->n_peers > 1)
            v4[n_v4++] = (struct class_query){load_be32(f[i].remote), 0, &q[i].key[DIM_PEER]};
        if (l->locals)
            v4[n_v4++] = (struct class_query){load_be32(f[i].local), 0, &q[i].key[DIM_LOCAL]};
    }
    classes_v4(rs, v4, n_v4);
    for (unsigned i = 0; i < n; i++) {
        uint16_t *k = q[i].key;
        int64_t point;

        if (!q[i].list || !q[i].list->trees.n_trees)
            continue;
        k[DIM_DPORT] = rs->rank[f[i].dport];
        k[DIM_SPORT] = f[i].sport;
        memcpy(&point, k, sizeof point);
        q[i].x = _mm_set_epi64x(~point, point);
    }
}

static uint32_t find(const struct moat_ruleset *rs, const struct query *q,
                     const struct moat_flow *f, uint32_t from)
{
    return q->list->trees.n_trees ? find_by_trees(rs, q, f, from) : find_by_bits(rs, q, f, from);
}

/* From the first rule that matches to the one that decides. */
static void finish(const struct moat_ruleset *rs, const struct query *q, const struct moat_flow *f,
                   struct moat_match *d)
{
    uint32_t i = q->best;

    *d = (struct moat_match){.verdict = MOAT_DROP, .index = rs->body->n_rules};
    if (!q->list)
        return; /* not even the default is meant for it */
    while (i != UINT32_MAX) {
        const struct moat_rule *r = &rs->rules[i];

        if (r->action == MOAT_NEXT_TIER) {
            i = find(rs, q, f, r->skip_to);
        } else if (r->action == MOAT_LOG) {
            if (!d->logged)
                d->log_rule = r->id;
            d->logged = 1;
            i = find(rs, q, f, i + 1);
        } else {
            decide(d, r->action, r->flags, i, r->id);
            return;
        }
    }
    decide(d, rs->body->default_action, rs->body->default_flags, rs->body->n_rules, 0);
}

static void judge(const struct moat_ruleset *rs, const struct moat_flow *f, unsigned n,
                  struct moat_match *out)
{
    struct query q[MAX_BURST];

    start(rs, q, f, n);
    walk_trees(rs, q, f, n);
    for (unsigned i = 0; i < n; i++) {
        if (q[i].list && !q[i].list->trees.n_trees)
            q[i].best = find_by_bits(rs, &q[i], &f[i], 0);
        if (q[i].best != UINT32_MAX) {
            __builtin_prefetch(&rs->rules[q[i].best]);
            __builtin_prefetch((const char *)(&rs->rules[q[i].best] + 1) - 1);
        }
    }
    for (unsigned i = 0; i < n; i++)
        finish(rs, &q[i], &f[i], &out[i]);
}

/* Without trees the packets of a burst have nothing to wait for together: the processor overlaps
 * their short walks by itself. */
static void judge_alone(const struct moat_ruleset *rs, const struct moat_flow *f,
                        struct moat_match *out)
{
    struct query q = {.list = list_of(rs, f), .best = UINT32_MAX};

    if (q.list) {
        if (q.list->n_peers > 1)
            q.key[DIM_PEER] = class_of(rs, f, f->remote);
        if (q.list->locals)
            q.key[DIM_LOCAL] = class_of(rs, f, f->local);
        q.best = find_by_bits(rs, &q, f, 0);
    }
    finish(rs, &q, f, out);
}

void moat_classify(const struct moat_ruleset *rs, const struct moat_flow *flows, unsigned n,
                   struct moat_match *out)
{
    if (!rs->rank) {
        for (unsigned i = 0; i < n; i++)
            judge_alone(rs, &flows[i], &out[i]);
        return;
    }
    for (; n > MAX_BURST; n -= MAX_BURST, flows += MAX_BURST, out += MAX_BURST)
        judge(rs, flows, MAX_BURST, out);
    judge(rs, flows, n, out);
}
