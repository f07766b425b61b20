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
    union {
        uint64_t point;
        uint16_t at[N_DIMS]; /* the same */
    };
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

/* An address on its way to its class. */
struct class_query {
    uint32_t addr; /* with the top bit turned */
    uint32_t at;   /* block, then place, then class */
};

static void classes_v4(const struct moat_ruleset *rs, struct class_query *q, unsigned n)
{
    const struct block_tree *t = &rs->v4;

    for (uint32_t l = t->n_levels - 1; l > 0; l--)
        for (unsigned i = 0; i < n; i++) {
            __m128i a = _mm_set1_epi32((int32_t)q[i].addr);
            uint32_t b =
                q[i].at * (BLOCK + 1) + count_block(t->level[l] + (size_t)q[i].at * BLOCK, a);

            q[i].at = b < t->blocks[l - 1] ? b : t->blocks[l - 1] - 1;
            __builtin_prefetch(t->level[l - 1] + (size_t)q[i].at * BLOCK);
        }
    for (unsigned i = 0; i < n; i++) {
        __m128i a = _mm_set1_epi32((int32_t)q[i].addr);
        uint32_t k = q[i].at * BLOCK + count_block(t->level[0] + (size_t)q[i].at * BLOCK, a) - 1;

        q[i].at = k < t->n ? k : t->n - 1;
        __builtin_prefetch(&rs->v4_class[q[i].at]);
    }
    for (unsigned i = 0; i < n; i++)
        q[i].at = rs->v4_class[q[i].at];
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

static inline bool matches_query(const struct moat_ruleset *rs, uint32_t rule,
                                 const struct query *q, const struct moat_flow *f)
{
    return matches(rs, &rs->rules[rule], f, q->at[DIM_PEER], q->at[DIM_LOCAL]);
}

/* --- Short lists --- */

/* The first rule from index `from` on. */
static uint32_t find_by_bits(const struct moat_ruleset *rs, const struct query *q,
                             const struct moat_flow *f, uint32_t from)
{
    const struct rule_list *l = q->list;
    struct walk w = {.words = l->words};
    uint32_t pos;

    w.ports = l->port_bits + (size_t)port_bucket(l->port_start, l->n_ports, f->dport) * l->words;
    w.peers =
        l->peer_bits + (l->n_peers > 1 ? (size_t)(q->at[DIM_PEER] % MAX_BUCKETS) * l->words : 0);
    seek(&w, from ? position_of(l, from) : 0);
    while ((pos = next(&w)) != UINT32_MAX)
        if (matches_query(rs, l->rules[pos], q, f))
            return l->rules[pos];
    return UINT32_MAX;
}

/* --- Trees --- */

static inline const struct forest_slot *branch(const struct moat_ruleset *rs,
                                               const struct forest_slot *s, uint64_t point)
{
    uint32_t v = (uint16_t)(point >> s->dim), i = (v > s->base ? v - s->base : 0u) >> s->shift;

    return &rs->forest.slots[s->at + (i < s->last ? i : s->last)];
}

/* Bit i: box i of four holds the packet.  What sticks out anywhere keeps a box's part from being
 * zero, however narrow the words are packed. */
static inline uint32_t compare_four(const struct forest_box *boxes, __m128i x)
{
    const __m128i *p = (const __m128i *)boxes;
    __m128i ab = _mm_packs_epi16(_mm_subs_epu16(p[0], x), _mm_subs_epu16(p[1], x));
    __m128i cd = _mm_packs_epi16(_mm_subs_epu16(p[2], x), _mm_subs_epu16(p[3], x));
    __m128i in = _mm_cmpeq_epi32(_mm_packs_epi16(ab, cd), _mm_setzero_si128());

    return (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(in));
}

/* Bit i: box k + i of a leaf holds the packet, of eight at most. */
static inline uint32_t compare_eight(const struct forest_box *boxes, const struct forest_slot *s,
                                     uint32_t k, __m128i x)
{
    uint32_t hit = compare_four(boxes + k, x) | compare_four(boxes + k + 4, x) << 4;

    return hit & 0xffu >> (s->n - k < 8 ? 8 - (s->n - k) : 0); /* what lies behind is no box */
}

/* The first rule of a leaf from `from` on, if it is below `best`; else `best`. */
static uint32_t scan_leaf(const struct moat_ruleset *rs, const struct forest_slot *s,
                          const struct query *q, const struct moat_flow *f, uint32_t from,
                          uint32_t best)
{
    const struct forest_box *boxes = forest_boxes(&rs->forest, s);
    const uint32_t *ids = (const uint32_t *)(boxes + s->n);

    for (uint32_t k = 0; k < s->n; k += 8) {
        uint32_t hit = compare_eight(boxes, s, k, q->x);

        for (; hit; hit &= hit - 1) {
            uint32_t id = ids[k + (uint32_t)__builtin_ctz(hit)], rule = id & ~FOREST_VERIFY;

            if (rule >= best)
                return best;
            if (rule >= from && (!(id & FOREST_VERIFY) || matches_query(rs, rule, q, f)))
                return rule;
        }
    }
    return best;
}

/* The same from 0 on, for most leaves without a branch that is a coin toss: whether a packet is in
 * one of the first eight boxes. */
static inline uint32_t meet_leaf(const struct moat_ruleset *rs, const struct forest_slot *s,
                                 const struct query *q, const struct moat_flow *f)
{
    const struct forest_box *boxes = forest_boxes(&rs->forest, s);
    const uint32_t *ids = (const uint32_t *)(boxes + s->n);
    uint32_t hit = compare_eight(boxes, s, 0, q->x);
    uint32_t id = ids[__builtin_ctz(hit | 0x100)], any = hit ? UINT32_MAX : 0;

    if (__builtin_expect((id & any & FOREST_VERIFY) || (!any && s->n > 8), 0))
        return scan_leaf(rs, s, q, f, 0, q->best);
    id |= ~any;
    return id < q->best ? id : q->best;
}

static uint32_t find_by_trees(const struct moat_ruleset *rs, const struct query *q,
                              const struct moat_flow *f, uint32_t from)
{
    uint32_t best = UINT32_MAX;

    for (uint32_t t = 0; t < q->list->trees.n_trees; t++) {
        const struct forest_slot *s = &q->list->trees.roots[t];

        while (!forest_is_leaf(s) && s->first < best)
            s = branch(rs, s, q->point);
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

/* All together, step by step: a leaf leads to itself, so nobody is asked whether he is there. */
static void walk_trees(const struct moat_ruleset *rs, struct query *q, const struct moat_flow *f,
                       unsigned n)
{
    struct cursor at[MAX_BURST * FOREST_TREES];
    unsigned n_at = 0, depth = 0;
    bool deeper = true;

    for (unsigned i = 0; i < n; i++) {
        if (!q[i].list)
            continue;
        for (uint32_t t = 0; t < q[i].list->trees.n_trees; t++)
            at[n_at++] = (struct cursor){&q[i].list->trees.roots[t], &q[i]};
        if (q[i].list->trees.depth > depth)
            depth = q[i].list->trees.depth;
    }
    for (; depth && deeper; depth--) {
        deeper = false;
        for (unsigned i = 0; i < n_at; i++) {
            deeper |= !forest_is_leaf(at[i].slot);
            at[i].slot = branch(rs, at[i].slot, at[i].q->point);
            __builtin_prefetch(at[i].slot);
        }
    }
    for (unsigned i = 0; i < n_at; i++) {
        const char *p = (const char *)forest_boxes(&rs->forest, at[i].slot);

        __builtin_prefetch(p);
        __builtin_prefetch(p + 64);
        __builtin_prefetch(p + 128);
        __builtin_prefetch(p + 192);
    }
    for (unsigned i = 0; i < n_at; i++) {
        const struct forest_slot *s = at[i].slot;
        struct query *to = at[i].q;

        if (s->first <= to->best) /* an empty one is no worse than a question */
            to->best = meet_leaf(rs, s, to, &f[to - q]);
    }
}

/* --- A burst --- */

/* The addresses of a burst that have to be looked up.  The first one is no address, its class is
 * 0: for packets whose rules do not ask. */
struct addresses {
    struct class_query q[1 + 2 * MAX_BURST];
    unsigned n;
    unsigned local; /* the last packet's own one, which most share */
};

static inline unsigned ask(struct addresses *a, uint32_t addr)
{
    a->q[a->n] = (struct class_query){addr, 0};
    return a->n++;
}

static inline unsigned ask_local(struct addresses *a, uint32_t addr)
{
    if (!a->local || a->q[a->local].addr != addr)
        a->local = ask(a, addr);
    return a->local;
}

static inline uint32_t turned(const uint8_t *addr)
{
    return load_be32(addr) ^ 0x80000000u;
}

/* Where a packet stands among the boxes; needs the ranks. */
static inline void stand(const struct moat_ruleset *rs, struct query *q, const struct moat_flow *f,
                         uint32_t peer, uint32_t local)
{
    q->point = peer | local << 16 | (uint64_t)rs->rank[f->dport] << 32 | (uint64_t)f->sport << 48;
    q->x = _mm_set_epi64x((int64_t)~q->point, (int64_t)q->point);
}

static void start(const struct moat_ruleset *rs, struct query *q, const struct moat_flow *f,
                  unsigned n)
{
    struct addresses a;                        /* not all of it is needed */
    uint8_t peer[MAX_BURST], local[MAX_BURST]; /* which of them */

    a.n = 1;
    a.local = 0;
    a.q[0].at = 0;
    for (unsigned i = 0; i < n; i++) {
        const struct rule_list *l = list_of(rs, &f[i]);

        q[i].list = l;
        q[i].best = UINT32_MAX;
        peer[i] = local[i] = 0;
        if (!l)
            continue;
        __builtin_prefetch(&rs->rank[f[i].dport]);
        if (f[i].family == MOAT_FAM_IP6)
            continue;
        if (l->n_peers > 1)
            peer[i] = (uint8_t)ask(&a, turned(f[i].remote));
        if (l->locals)
            local[i] = (uint8_t)ask_local(&a, turned(f[i].local));
    }
    classes_v4(rs, a.q + 1, a.n - 1);
    for (unsigned i = 0; i < n; i++) {
        uint32_t p = a.q[peer[i]].at, l = a.q[local[i]].at;

        if (f[i].family == MOAT_FAM_IP6 && q[i].list) {
            p = q[i].list->n_peers > 1 ? class_of_v6(rs, f[i].remote) : 0;
            l = q[i].list->locals ? class_of_v6(rs, f[i].local) : 0;
        }
        stand(rs, &q[i], &f[i], p, l);
    }
}

static uint32_t find(const struct moat_ruleset *rs, const struct query *q,
                     const struct moat_flow *f, uint32_t from)
{
    return q->list->trees.n_trees ? find_by_trees(rs, q, f, from) : find_by_bits(rs, q, f, from);
}

/* UINT32_MAX: the default. */
static inline const struct moat_rule *rule_at(const struct moat_ruleset *rs, uint32_t i)
{
    return i == UINT32_MAX ? &rs->fallback : &rs->rules[i];
}

/* From the first rule that matches to the one that decides. */
static void finish(const struct moat_ruleset *rs, const struct query *q, const struct moat_flow *f,
                   struct moat_match *d)
{
    uint32_t i = q->best, n_rules = rs->body->n_rules;
    const struct moat_rule *r = rule_at(rs, i);

    if (!q->list) { /* not even the default is meant for it */
        *d = (struct moat_match){.verdict = MOAT_DROP, .index = n_rules};
        return;
    }
    d->logged = d->pad = 0;
    d->log_rule = 0;
    while (__builtin_expect(r->action == MOAT_NEXT_TIER || r->action == MOAT_LOG, 0)) {
        if (r->action == MOAT_LOG && !d->logged) {
            d->logged = 1;
            d->log_rule = r->id;
        }
        i = find(rs, q, f, r->action == MOAT_LOG ? i + 1 : r->skip_to);
        r = rule_at(rs, i);
    }
    d->verdict = r->action;
    d->loose = !!(r->flags & MOAT_RULE_F_LOOSE);
    d->index = i < n_rules ? i : n_rules;
    d->rule = r->id;
    if (r->flags & MOAT_RULE_F_LOG && !d->logged) {
        d->logged = 1;
        d->log_rule = r->id;
    }
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
        __builtin_prefetch(rule_at(rs, q[i].best));
    }
    for (unsigned i = 0; i < n; i++)
        finish(rs, &q[i], &f[i], &out[i]);
}

static uint32_t class_of(const struct moat_ruleset *rs, const struct moat_flow *f,
                         const uint8_t *addr)
{
    return f->family == MOAT_FAM_IP6 ? class_of_v6(rs, addr) : class_of_v4(rs, addr);
}

/* One that has nobody to share the passes with; and where no list has trees, there is nothing to
 * wait for together: the processor overlaps their short walks by itself. */
static void judge_alone(const struct moat_ruleset *rs, const struct moat_flow *f,
                        struct moat_match *out)
{
    struct query q;

    q.list = list_of(rs, f);
    q.best = UINT32_MAX;
    if (q.list) {
        uint32_t peer = q.list->n_peers > 1 ? class_of(rs, f, f->remote) : 0;
        uint32_t local = q.list->locals ? class_of(rs, f, f->local) : 0;

        if (q.list->trees.n_trees) {
            stand(rs, &q, f, peer, local);
        } else {
            q.at[DIM_PEER] = (uint16_t)peer;
            q.at[DIM_LOCAL] = (uint16_t)local;
        }
        q.best = find(rs, &q, f, 0);
    }
    finish(rs, &q, f, out);
}

void moat_classify(const struct moat_ruleset *rs, const struct moat_flow *flows, unsigned n,
                   struct moat_match *out)
{
    if (!rs->rank || n == 1) {
        for (unsigned i = 0; i < n; i++)
            judge_alone(rs, &flows[i], &out[i]);
        return;
    }
    for (; n > MAX_BURST; n -= MAX_BURST, flows += MAX_BURST, out += MAX_BURST)
        judge(rs, flows, MAX_BURST, out);
    judge(rs, flows, n, out);
}
