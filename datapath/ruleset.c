/* SPDX-License-Identifier: Apache-2.0 */

/* The check and the index of a compiled policy.
 *
 * The check trusts nothing, not even a good checksum: head, then integrity, then the
 * section table, then what each section holds.  Offsets and counts are multiplied and
 * added in 64 bits; none of them can overflow once n_classes has been checked.  Whoever
 * comes after it may follow any offset and any number in the blob.
 *
 * The index is built once per publication, by the control thread: deal the rules into
 * lists (private header), share equal ones, size everything, allocate once, fill. */

#include "ruleset.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "ruleset_private.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the blob is read in place");

#define CACHE_LINE 64

/* --- Check ------------------------------------------------------------------- */

struct checker {
    const struct moat_ruleset_head *head;
    const struct moat_ruleset_body *body;
    char *err;
    size_t err_size;
};

__attribute__((format(printf, 2, 3))) static int refuse(const struct checker *c, const char *fmt,
                                                        ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (c->err_size)
        vsnprintf(c->err, c->err_size, fmt, ap);
    va_end(ap);
    return -EINVAL;
}

static bool all_zero(const void *p, size_t n)
{
    const uint8_t *b = p;
    uint8_t any = 0;

    while (n--)
        any |= *b++;
    return !any;
}

static int check_head(const struct checker *c, size_t len)
{
    const struct moat_ruleset_head *h = c->head;

    if (len < sizeof *h + sizeof *c->body)
        return refuse(c, "%zu bytes, too short for a ruleset", len);
    if (len > MOAT_RULESET_MAX_SIZE)
        return refuse(c, "%zu bytes, at most %u", len, MOAT_RULESET_MAX_SIZE);
    if ((uintptr_t)h % 8)
        return refuse(c, "not at an 8-byte boundary in memory");
    if (h->magic != MOAT_RULESET_MAGIC)
        return refuse(c, "magic 0x%08x, not a ruleset", h->magic);
    if (h->version != MOAT_RULESET_VERSION)
        return refuse(c, "version %u, not %u", h->version, MOAT_RULESET_VERSION);
    if (h->head_size != sizeof *h)
        return refuse(c, "head_size %u, not %zu", h->head_size, sizeof *h);
    if (h->size != len)
        return refuse(c, "size %u, but %zu bytes are here", h->size, len);
    if (!all_zero(h->reserved, sizeof h->reserved))
        return refuse(c, "head.reserved is not zero");
    return 0;
}

static int check_integrity(const struct checker *c)
{
    const size_t at = offsetof(struct moat_ruleset_head, checksum);
    const uint8_t *p = (const uint8_t *)c->head;
    const uint32_t zero = 0;
    XXH128_canonical_t digest;
    XXH32_state_t state;
    uint32_t sum;

    XXH32_reset(&state, 0);
    XXH32_update(&state, p, at);
    XXH32_update(&state, &zero, sizeof zero);
    XXH32_update(&state, p + at + sizeof zero, c->head->size - at - sizeof zero);
    sum = XXH32_digest(&state);
    if (sum != c->head->checksum)
        return refuse(c, "checksum 0x%08x, but 0x%08x by content", c->head->checksum, sum);

    XXH128_canonicalFromHash(&digest,
                             XXH3_128bits(p + sizeof *c->head, c->head->size - sizeof *c->head));
    if (memcmp(digest.digest, c->head->digest, sizeof c->head->digest))
        return refuse(c, "digest is not that of the content");
    return 0;
}

static int check_section(const struct checker *c, const char *name, uint32_t off, uint64_t n,
                         uint64_t entry)
{
    if (off % 8)
        return refuse(c, "%s_off %u is not 8-byte aligned", name, off);
    if (off < sizeof *c->head + sizeof *c->body)
        return refuse(c, "%s_off %u lies in the head", name, off);
    if (off > c->head->size || n * entry > c->head->size - off)
        return refuse(c, "%s: %llu bytes at %u, beyond the size of %u", name,
                      (unsigned long long)(n * entry), off, c->head->size);
    return 0;
}

static int check_body(const struct checker *c)
{
    const struct moat_ruleset_body *b = c->body;
    int rc;

    if (!b->n_classes || b->n_classes > 65536)
        return refuse(c, "n_classes %u, not 1 to 65536", b->n_classes);
    if (b->set_words != (b->n_classes + 63) / 64)
        return refuse(c, "set_words %u do not fit n_classes %u", b->set_words, b->n_classes);
    if (!b->n_v4)
        return refuse(c, "n_v4 is 0");
    if (!b->n_v6)
        return refuse(c, "n_v6 is 0");
    if (b->default_action != MOAT_DROP && b->default_action != MOAT_ALLOW &&
        b->default_action != MOAT_REJECT)
        return refuse(c, "default_action %u is no verdict", b->default_action);
    if (b->default_flags & ~(MOAT_RULE_F_LOG | MOAT_RULE_F_LOOSE))
        return refuse(c, "default_flags 0x%02x has unknown bits", b->default_flags);
    if (!all_zero(b->pad, sizeof b->pad))
        return refuse(c, "body.pad is not zero");
    if (!all_zero(b->reserved, sizeof b->reserved))
        return refuse(c, "body.reserved is not zero");

    rc = check_section(c, "rules", b->rules_off, b->n_rules, sizeof(struct moat_rule));
    if (!rc)
        rc = check_section(c, "sets", b->sets_off, (uint64_t)b->n_sets * b->set_words, 8);
    if (!rc)
        rc = check_section(c, "v4_start", b->v4_start_off, b->n_v4, sizeof(uint32_t));
    if (!rc)
        rc = check_section(c, "v4_class", b->v4_class_off, b->n_v4, sizeof(uint16_t));
    if (!rc)
        rc = check_section(c, "v6_start", b->v6_start_off, b->n_v6, 16);
    if (!rc)
        rc = check_section(c, "v6_class", b->v6_class_off, b->n_v6, sizeof(uint16_t));
    if (!rc)
        rc = check_section(c, "strings", b->strings_off, b->strings_len, 1);
    return rc;
}

/* A bit beyond the last class would name an identity that does not exist. */
static int check_sets(const struct checker *c)
{
    const struct moat_ruleset_body *b = c->body;
    const uint64_t *sets = moat_ruleset_at(c->head, b->sets_off);
    unsigned used = b->n_classes % 64;

    for (uint32_t i = 0; used && i < b->n_sets; i++)
        if (sets[(size_t)(i + 1) * b->set_words - 1] >> used)
            return refuse(c, "set %u has classes from %u on", i, b->n_classes);
    return 0;
}

static int check_classes(const struct checker *c, const char *name, uint32_t off, uint32_t n)
{
    const uint16_t *class = moat_ruleset_at(c->head, off);

    for (uint32_t i = 0; i < n; i++)
        if (class[i] >= c->body->n_classes)
            return refuse(c, "%s[%u] is %u, n_classes %u", name, i, class[i],
                          c -> body -> n_classes);
    return 0;
}

static int check_partitions(const struct checker *c)
{
    const struct moat_ruleset_body *b = c->body;
    const uint32_t *v4 = moat_ruleset_at(c->head, b->v4_start_off);
    const uint8_t(*v6)[16] = moat_ruleset_at(c->head, b->v6_start_off);
    int rc;

    if (v4[0])
        return refuse(c, "v4_start[0] is not 0");
    for (uint32_t i = 1; i < b->n_v4; i++)
        if (v4[i] <= v4[i - 1])
            return refuse(c, "v4_start[%u] does not rise", i);
    if (!all_zero(v6[0], 16))
        return refuse(c, "v6_start[0] is not 0");
    for (uint32_t i = 1; i < b->n_v6; i++)
        if (memcmp(v6[i], v6[i - 1], 16) <= 0)
            return refuse(c, "v6_start[%u] does not rise", i);
    rc = check_classes(c, "v4_class", b->v4_class_off, b->n_v4);
    return rc ? rc : check_classes(c, "v6_class", b->v6_class_off, b->n_v6);
}

static int check_rule(const struct checker *c, uint32_t i, const struct moat_rule *r)
{
    const struct moat_ruleset_body *b = c->body;

    if (!r->id)
        return refuse(c, "rule %u: id 0 is the default's", i);
    if (!r->dirs || r->dirs & ~(MOAT_RULE_FROM_VM | MOAT_RULE_TO_VM))
        return refuse(c, "rule %u: dirs 0x%02x", i, r->dirs);
    if (!r->families || r->families & ~(MOAT_RULE_IP4 | MOAT_RULE_IP6 | MOAT_RULE_ARP))
        return refuse(c, "rule %u: families 0x%02x", i, r->families);
    if (r->action > MOAT_LOG)
        return refuse(c, "rule %u: action %u", i, r->action);
    if (r->flags & ~(MOAT_RULE_F_LOG | MOAT_RULE_F_LOOSE))
        return refuse(c, "rule %u: flags 0x%02x", i, r->flags);
    if (r->proto > UINT8_MAX && r->proto != MOAT_PROTO_ANY)
        return refuse(c, "rule %u: proto %u", i, r->proto);
    if (r->sport_lo > r->sport_hi)
        return refuse(c, "rule %u: sport %u-%u", i, r->sport_lo, r->sport_hi);
    if (r->dport_lo > r->dport_hi)
        return refuse(c, "rule %u: dport %u-%u", i, r->dport_lo, r->dport_hi);
    if (r->peer_set >= b->n_sets && r->peer_set != MOAT_SET_ANY)
        return refuse(c, "rule %u: peer_set %u, n_sets %u", i, r->peer_set, b->n_sets);
    if (r->local_set >= b->n_sets && r->local_set != MOAT_SET_ANY)
        return refuse(c, "rule %u: local_set %u, n_sets %u", i, r->local_set, b->n_sets);
    if (r->action == MOAT_NEXT_TIER && (r->skip_to <= i || r->skip_to > b->n_rules))
        return refuse(c, "rule %u: skip_to %u, not %u to %u", i, r->skip_to, i + 1, b->n_rules);
    if (r->action != MOAT_NEXT_TIER && r->skip_to)
        return refuse(c, "rule %u: skip_to %u, but it goes nowhere", i, r->skip_to);
    if (r->name >= b->strings_len)
        return refuse(c, "rule %u: name at %u, strings_len %u", i, r->name, b->strings_len);
    return 0;
}

/* One NUL at the end of all strings ends each of them. */
static int check_rules(const struct checker *c)
{
    const struct moat_ruleset_body *b = c->body;
    const struct moat_rule *rules = moat_ruleset_at(c->head, b->rules_off);
    const char *strings = moat_ruleset_at(c->head, b->strings_off);

    if (b->strings_len && strings[b->strings_len - 1])
        return refuse(c, "strings do not end with a NUL");
    for (uint32_t i = 0; i < b->n_rules; i++) {
        int rc = check_rule(c, i, &rules[i]);

        if (rc)
            return rc;
        if (i && rules[i].tier < rules[i - 1].tier)
            return refuse(c, "rule %u: tier %u comes after tier %u", i, rules[i].tier,
                          rules[i - 1].tier);
    }
    return 0;
}

int moat_ruleset_check(const void *blob, size_t len, char *err, size_t err_size)
{
    const struct checker c = {
        .head = blob,
        .body = (const void *)((const uint8_t *)blob + sizeof(struct moat_ruleset_head)),
        .err = err,
        .err_size = err_size,
    };
    int rc;

    rc = check_head(&c, len);
    if (!rc)
        rc = check_integrity(&c);
    if (!rc)
        rc = check_body(&c);
    if (!rc)
        rc = check_sets(&c);
    if (!rc)
        rc = check_partitions(&c);
    return rc ? rc : check_rules(&c);
}

/* --- Index ------------------------------------------------------------------- */

/* A list while the index is made. */
struct draft {
    uint32_t *rules, n;
    const struct rule_list *twin; /* an earlier list of the same rules */
    uint32_t n_ports, n_peers;
    uint16_t port_start[MAX_BUCKETS];
    bool locals, planted;
};

struct workshop {
    struct draft drafts[N_LISTS];
    uint64_t edges[65536 / 64]; /* ports where some rule's range begins, or has just ended */
    uint32_t *rules;            /* of all drafts */
    uint64_t *folds;            /* per set: bit k: it has a class that is k modulo 64 */
};

static bool belongs(const struct moat_rule *r, unsigned list)
{
    unsigned dir = list / N_FAMILY_LISTS, rest = list % N_FAMILY_LISTS;

    if (!(r->dirs & 1u << dir))
        return false;
    if (rest == 2 * N_KINDS)
        return r->families & MOAT_RULE_ARP;
    if (!(r->families & (rest < N_KINDS ? MOAT_RULE_IP4 : MOAT_RULE_IP6)))
        return false;
    return r->proto == MOAT_PROTO_ANY || rule_kind((uint8_t)r->proto) == rest % N_KINDS;
}

/* All rules of a list with a protocol have the list's. */
static bool settles_proto(unsigned list)
{
    unsigned rest = list % N_FAMILY_LISTS;

    return rest < 2 * N_KINDS && rest % N_KINDS != KIND_OTHER;
}

/* Counts first, so that one array holds all drafts. */
static int deal(struct workshop *w, const struct moat_ruleset *rs)
{
    size_t total = 0;
    uint32_t *p;

    for (unsigned l = 0; l < N_LISTS; l++) {
        for (uint32_t i = 0; i < rs->body->n_rules; i++)
            w->drafts[l].n += belongs(&rs->rules[i], l);
        total += w->drafts[l].n;
    }
    p = w->rules = malloc((total + 1) * sizeof *w->rules);
    if (!p)
        return -ENOMEM;
    for (unsigned l = 0; l < N_LISTS; l++) {
        w->drafts[l].rules = p;
        for (uint32_t i = 0; i < rs->body->n_rules; i++)
            if (belongs(&rs->rules[i], l))
                *p++ = i;
    }
    return 0;
}

static int fold_sets(struct workshop *w, const struct moat_ruleset *rs)
{
    const uint64_t *word = rs->sets;

    w->folds = calloc((size_t)rs->body->n_sets + 1, sizeof *w->folds);
    if (!w->folds)
        return -ENOMEM;
    for (uint32_t i = 0; i < rs->body->n_sets; i++)
        for (uint32_t j = 0; j < rs->body->set_words; j++)
            w->folds[i] |= *word++;
    return 0;
}

/* Port buckets begin where ranges begin or end; with too many of those, at every k-th. */
static void draw_ports(struct workshop *w, struct draft *d, const struct moat_rule *rules)
{
    uint32_t n = 0, step, seen = 0;

    memset(w->edges, 0, sizeof w->edges);
    w->edges[0] = 1;
    for (uint32_t i = 0; i < d->n; i++) {
        const struct moat_rule *r = &rules[d->rules[i]];
        uint32_t end = r->dport_hi + 1u;

        w->edges[r->dport_lo / 64] |= UINT64_C(1) << r->dport_lo % 64;
        if (end < 65536)
            w->edges[end / 64] |= UINT64_C(1) << end % 64;
    }
    for (uint32_t i = 0; i < 65536 / 64; i++)
        n += (uint32_t)__builtin_popcountll(w->edges[i]);
    step = (n + MAX_BUCKETS - 1) / MAX_BUCKETS;
    for (uint32_t i = 0; i < 65536 / 64; i++)
        for (uint64_t x = w->edges[i]; x; x &= x - 1)
            if (seen++ % step == 0)
                d->port_start[d->n_ports++] = (uint16_t)(i * 64 + (uint32_t)__builtin_ctzll(x));
}

static void draw(struct workshop *w, struct moat_ruleset *rs, unsigned l)
{
    uint32_t n_classes = rs->body->n_classes;
    struct draft *d = &w->drafts[l];

    for (unsigned k = 0; k < l; k++)
        if (w->drafts[k].n == d->n &&
            !memcmp(w->drafts[k].rules, d->rules, d->n * sizeof(uint32_t))) {
            d->twin = &rs->lists[k];
            return;
        }
    draw_ports(w, d, rs->rules);
    d->n_peers = 1;
    for (uint32_t i = 0; i < d->n; i++) {
        const struct moat_rule *r = &rs->rules[d->rules[i]];

        if (r->peer_set != MOAT_SET_ANY)
            d->n_peers = n_classes < MAX_BUCKETS ? n_classes : MAX_BUCKETS;
        d->locals |= r->local_set != MOAT_SET_ANY;
    }
}

static size_t padded(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

static size_t draft_size(const struct draft *d)
{
    if (d->twin || d->planted)
        return 0;
    return (size_t)(d->n_ports + d->n_peers) * ((d->n + 63) / 64) * 8 +
           padded(d->n * sizeof(uint32_t)) + padded(d->n_ports * sizeof(uint16_t));
}

static void *carve(uint8_t **p, size_t n)
{
    uint8_t *at = *p;

    *p += padded(n);
    return at;
}

static void fill_tables(struct rule_list *out, const struct workshop *w, const struct draft *d,
                        const struct moat_ruleset *rs, uint8_t **at)
{
    uint32_t words = (d->n + 63) / 64;
    uint64_t *port_bits = carve(at, (size_t)d->n_ports * words * 8);
    uint64_t *peer_bits = carve(at, (size_t)d->n_peers * words * 8);
    uint32_t *rules = carve(at, d->n * sizeof *rules);
    uint16_t *port_start = carve(at, d->n_ports * sizeof *port_start);

    memcpy(rules, d->rules, d->n * sizeof *rules);
    memcpy(port_start, d->port_start, d->n_ports * sizeof *port_start);
    for (uint32_t i = 0; i < d->n; i++) {
        const struct moat_rule *r = &rs->rules[rules[i]];
        uint64_t peers = r->peer_set == MOAT_SET_ANY ? UINT64_MAX : w->folds[r->peer_set];
        uint64_t bit = UINT64_C(1) << i % 64;
        uint32_t last = port_bucket(port_start, d->n_ports, r->dport_hi);

        for (uint32_t b = port_bucket(port_start, d->n_ports, r->dport_lo); b <= last; b++)
            port_bits[(size_t)b * words + i / 64] |= bit;
        for (uint32_t b = 0; b < d->n_peers; b++)
            if (peers >> b & 1)
                peer_bits[(size_t)b * words + i / 64] |= bit;
    }
    *out = (struct rule_list){
        .port_bits = port_bits,
        .peer_bits = peer_bits,
        .port_start = port_start,
        .rules = rules,
        .n = d->n,
        .words = words,
        .n_ports = d->n_ports,
        .n_peers = d->n_peers,
        .locals = d->locals,
    };
}

static void fill(struct rule_list *out, const struct workshop *w, const struct draft *d,
                 const struct moat_ruleset *rs, uint8_t **at)
{
    if (d->planted) { /* its trees have been made */
        out->n = d->n;
        out->n_peers = d->n_peers;
        out->locals = d->locals;
        return;
    }
    fill_tables(out, w, d, rs, at);
}

/* Ranks of ports, for all lists: the number of edges up to each. */
static uint16_t *rank_ports(struct workshop *w, const struct moat_ruleset *rs)
{
    uint16_t *rank = malloc(65536 * sizeof *rank);
    uint32_t n = 0;

    if (!rank)
        return NULL;
    memset(w->edges, 0, sizeof w->edges);
    for (uint32_t i = 0; i < rs->body->n_rules; i++) {
        uint32_t lo = rs->rules[i].dport_lo, end = rs->rules[i].dport_hi + 1u;

        w->edges[lo / 64] |= UINT64_C(1) << lo % 64;
        if (end < 65536)
            w->edges[end / 64] |= UINT64_C(1) << end % 64;
    }
    w->edges[0] &= ~UINT64_C(1); /* rank 0 begins at 0 anyway */
    for (uint32_t port = 0; port < 65536; port++) {
        n += w->edges[port / 64] >> port % 64 & 1;
        rank[port] = (uint16_t)n;
    }
    return rank;
}

/* Trees for the long lists.  Where memory or a bound does not suffice, bit tables serve. */
static void plant(struct workshop *w, struct moat_ruleset *plan)
{
    const struct moat_ruleset_head *h = plan->head;
    struct forest_maker *m = NULL;

    for (unsigned l = 0; l < N_LISTS; l++) {
        struct draft *d = &w->drafts[l];

        if (d->twin || d->n < FOREST_MIN)
            continue;
        if (!plan->rank)
            plan->rank = rank_ports(w, plan);
        if (!m && plan->rank)
            m = forest_maker_create(h, plan->rank);
        if (!m)
            break;
        forest_plant(m, &plan->forest, d->rules, d->n, settles_proto(l), &plan->lists[l].trees);
        d->planted = plan->lists[l].trees.n_trees > 0;
    }
    forest_maker_destroy(m);
    forest_trim(&plan->forest);
}

/* --- The partition as a tree of blocks --- */

static void plan_blocks(struct block_tree *t, uint32_t n)
{
    t->n = n;
    t->n_levels = 0;
    do {
        n = (n + BLOCK - 1) / BLOCK;
        t->blocks[t->n_levels++] = n;
        n = n > 1 ? (n + BLOCK) / (BLOCK + 1) * BLOCK : 0;
    } while (n);
}

static size_t blocks_size(const struct block_tree *t)
{
    size_t n = 0;

    for (uint32_t l = 0; l < t->n_levels; l++)
        n += t->blocks[l];
    return n * BLOCK * sizeof(int32_t);
}

static void fill_blocks(struct block_tree *t, const uint32_t *start, uint8_t *at)
{
    uint64_t below = 1; /* starts under one block of the level below */

    for (uint32_t l = 0; l < t->n_levels; l++) {
        int32_t *to = (int32_t *)at;

        t->level[l] = to;
        for (uint64_t b = 0; b < t->blocks[l]; b++)
            for (uint64_t k = 0; k < BLOCK; k++) {
                uint64_t i = l ? (b * (BLOCK + 1) + k + 1) * below : b * BLOCK + k;

                *to++ = i < t->n ? (int32_t)(start[i] ^ 0x80000000u) : INT32_MAX;
            }
        at = (uint8_t *)to;
        below *= l ? BLOCK + 1 : BLOCK;
    }
}

static void view(struct moat_ruleset *rs, const struct moat_ruleset_head *h)
{
    rs->head = h;
    rs->body = moat_ruleset_body(h);
    rs->rules = moat_ruleset_at(h, rs->body->rules_off);
    rs->sets = moat_ruleset_at(h, rs->body->sets_off);
    rs->v4_start = moat_ruleset_at(h, rs->body->v4_start_off);
    rs->v4_class = moat_ruleset_at(h, rs->body->v4_class_off);
    rs->v6_start = moat_ruleset_at(h, rs->body->v6_start_off);
    rs->v6_class = moat_ruleset_at(h, rs->body->v6_class_off);
    rs->fallback =
        (struct moat_rule){.action = rs->body->default_action, .flags = rs->body->default_flags};
}

struct moat_ruleset *moat_ruleset_create(const void *blob)
{
    struct moat_ruleset plan = {0}, *rs = NULL;
    struct workshop *w = calloc(1, sizeof *w);
    size_t size, blocks_at, lists_at, hits_at;
    uint8_t *at;

    if (!w)
        return NULL;
    view(&plan, blob);
    if (deal(w, &plan) || fold_sets(w, &plan))
        goto out;

    for (unsigned l = 0; l < N_LISTS; l++)
        draw(w, &plan, l);
    plant(w, &plan);
    plan_blocks(&plan.v4, plan.body->n_v4);
    blocks_at = (sizeof *rs + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
    lists_at = size = blocks_at + blocks_size(&plan.v4);
    for (unsigned l = 0; l < N_LISTS; l++)
        size += draft_size(&w->drafts[l]);
    hits_at = (size + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
    size = hits_at + ((size_t)plan.body->n_rules + 1) * sizeof(uint64_t);
    size = (size + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
    rs = aligned_alloc(CACHE_LINE, size);
    if (!rs)
        goto out;
    memset(rs, 0, size);
    *rs = plan;
    rs->hits = (uint64_t *)((uint8_t *)rs + hits_at);
    fill_blocks(&rs->v4, rs->v4_start, (uint8_t *)rs + blocks_at);
    at = (uint8_t *)rs + lists_at;
    for (unsigned l = 0; l < N_LISTS; l++) {
        const struct rule_list *twin = w->drafts[l].twin;

        if (twin)
            rs->lists[l] = rs->lists[twin - plan.lists];
        else
            fill(&rs->lists[l], w, &w->drafts[l], rs, &at);
    }
out:
    free(w->folds);
    free(w->rules);
    free(w);
    if (!rs) {
        forest_clear(&plan.forest);
        free(plan.rank);
        errno = ENOMEM;
    }
    return rs;
}

void moat_ruleset_destroy(struct moat_ruleset *rs)
{
    if (!rs)
        return;
    forest_clear(&rs->forest);
    free(rs->rank);
    free(rs);
}

const struct moat_ruleset_head *moat_ruleset_head(const struct moat_ruleset *rs)
{
    return rs->head;
}

uint64_t *moat_ruleset_hits(const struct moat_ruleset *rs)
{
    return rs->hits;
}
