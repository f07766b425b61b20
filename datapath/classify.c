/* SPDX-License-Identifier: Apache-2.0 */

/* First match, without meeting most rules: choose the list of the packet's direction,
 * family and kind of protocol; find the address classes that this list asks for; then
 * walk the AND of one row of its two bit tables (ruleset_private.h) and compare the few
 * candidates in full.
 *
 * One flow at a time: the searches of a burst have no common data to share, and the
 * processor overlaps them by itself.  Packets without a session are few. */

#include "classify.h"

#include <string.h>

#include "ruleset_private.h"

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

static uint32_t class_of(const struct moat_ruleset *rs, const struct moat_flow *f,
                         const uint8_t *addr)
{
    return f->family == MOAT_FAM_IP6 ? class_of_v6(rs, addr) : class_of_v4(rs, addr);
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

static void judge(const struct moat_ruleset *rs, const struct moat_flow *f, struct moat_match *d)
{
    const struct rule_list *l = list_of(rs, f);
    uint32_t peer = 0, local = 0, pos;
    struct walk w;

    *d = (struct moat_match){.verdict = MOAT_DROP, .index = rs->body->n_rules};
    if (!l)
        return; /* not even the default is meant for it */
    if (l->n_peers > 1)
        peer = class_of(rs, f, f->remote);
    if (l->locals)
        local = class_of(rs, f, f->local);

    w.words = l->words;
    w.ports = l->port_bits + (size_t)port_bucket(l->port_start, l->n_ports, f->dport) * l->words;
    w.peers = l->peer_bits + (size_t)(peer % MAX_BUCKETS) * l->words;
    seek(&w, 0);
    while ((pos = next(&w)) != UINT32_MAX) {
        uint32_t i = l->rules[pos];
        const struct moat_rule *r = &rs->rules[i];

        if (!matches(rs, r, f, peer, local))
            continue;
        if (r->action == MOAT_NEXT_TIER) {
            seek(&w, position_of(l, r->skip_to));
        } else if (r->action == MOAT_LOG) {
            if (!d->logged)
                d->log_rule = r->id;
            d->logged = 1;
        } else {
            decide(d, r->action, r->flags, i, r->id);
            return;
        }
    }
    decide(d, rs->body->default_action, rs->body->default_flags, rs->body->n_rules, 0);
}

void moat_classify(const struct moat_ruleset *rs, const struct moat_flow *flows, unsigned n,
                   struct moat_match *out)
{
    for (unsigned i = 0; i < n; i++)
        judge(rs, &flows[i], &out[i]);
}
