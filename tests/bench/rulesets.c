/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/bench/rulesets.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/compile.h"

const char *const rules_kinds[N_RULES_KINDS] = {"sg", "acl", "fw", "ipc"};

static void die(const char *what)
{
    fprintf(stderr, "rulesets: %s\n", what);
    abort();
}

static void *need(void *p)
{
    if (!p)
        die("out of memory");
    return p;
}

/* --- Chance ---------------------------------------------------------------------- */

static uint32_t draw(struct rules *g)
{
    uint64_t z = g->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)((z ^ z >> 31) >> 32);
}

static uint32_t below(struct rules *g, uint32_t n)
{
    return (uint32_t)((uint64_t)draw(g) * n >> 32);
}

/* Low numbers often, high ones seldom: an eighth of them gets half. */
static uint32_t skewed(struct rules *g, uint32_t n)
{
    double u = (double)draw(g) / 4294967296.0;

    return (uint32_t)(u * u * u * n);
}

static uint32_t weighted(struct rules *g, const uint8_t *weights, unsigned n)
{
    uint32_t sum = 0, x, i;

    for (i = 0; i < n; i++)
        sum += weights[i];
    x = below(g, sum);
    for (i = 0; x >= weights[i]; i++)
        x -= weights[i];
    return i;
}

/* --- Sets ------------------------------------------------------------------------- */

static uint32_t mask_of(uint8_t len)
{
    return len ? UINT32_MAX << (32 - len) : 0;
}

static uint32_t add_set(struct rules *g, const struct rules_prefix *v, uint32_t n)
{
    struct rules_set *s;

    g->sets = need(realloc(g->sets, (g->n_sets + 1) * sizeof *g->sets));
    s = &g->sets[g->n_sets];
    s->n = n;
    s->v = need(malloc(n * sizeof *v));
    memcpy(s->v, v, n * sizeof *v);
    return g->n_sets++;
}

static uint32_t random_network(struct rules *g)
{
    switch (below(g, 4)) {
    case 0:
        return 0x0a000000 | draw(g) >> 8; /* 10/8 */
    case 1:
        return 0xac100000 | draw(g) >> 12; /* 172.16/12 */
    default:
        return 0x0b000000 + below(g, 0xd0000000u);
    }
}

/* --- Ports and protocols ------------------------------------------------------------ */

static const uint16_t services[] = {
    80,   443, 53,   22,   25,   123,  3306, 5432, 8080, 8443, 161,   162,   389,  636,   445,
    139,  137, 1433, 1521, 6379, 9200, 9300, 2181, 9092, 5672, 11211, 27017, 3389, 5900,  110,
    143,  993, 995,  21,   20,   23,   69,   111,  2049, 514,  6443,  2379,  2380, 10250, 4789,
    6081, 500, 4500, 1812, 1813, 179,  88,   464,  49,   5060, 5061,  1194,  3128, 8000,  9090,
};

#define N_SERVICES (sizeof services / sizeof *services)

enum { PORT_ANY, PORT_HIGH, PORT_LOW, PORT_RANGE, PORT_EXACT, N_PORT_SHAPES };

static void draw_ports(struct rules *g, const uint8_t *weights, uint16_t *lo, uint16_t *hi)
{
    *lo = 0;
    *hi = UINT16_MAX;
    switch (weighted(g, weights, N_PORT_SHAPES)) {
    case PORT_HIGH:
        *lo = 1024;
        break;
    case PORT_LOW:
        *hi = 1023;
        break;
    case PORT_RANGE:
        *lo = (uint16_t)(1 + below(g, 60000));
        *hi = (uint16_t)(*lo + 1 + below(g, below(g, 2) ? 16 : 4000));
        break;
    case PORT_EXACT:
        *lo = below(g, 8) ? services[skewed(g, N_SERVICES)] : (uint16_t)(1 + below(g, 65535));
        *hi = *lo;
        break;
    }
}

/* --- Prefix rules --------------------------------------------------------------------- */

#define N_LENS 9

struct profile {
    uint8_t any_peer, any_local; /* of 100 rules */
    uint8_t peer_lens[N_LENS], local_lens[N_LENS];
    uint8_t protos[5]; /* TCP, UDP, ICMP, any, another */
    uint8_t sport[N_PORT_SHAPES], dport[N_PORT_SHAPES];
};

static const uint8_t lens[N_LENS] = {8, 12, 16, 20, 23, 24, 27, 30, 32};

static const struct profile profiles[N_RULES_KINDS] = {
    [RULES_ACL] = {.any_peer = 8,
                   .any_local = 1,
                   .peer_lens = {1, 1, 4, 6, 6, 18, 14, 12, 38},
                   .local_lens = {1, 1, 3, 5, 6, 22, 14, 14, 34},
                   .protos = {74, 14, 3, 8, 1},
                   .sport = {98, 1, 0, 0, 1},
                   .dport = {18, 5, 1, 12, 64}},
    [RULES_FW] = {.any_peer = 28,
                  .any_local = 18,
                  .peer_lens = {4, 3, 8, 4, 3, 20, 6, 6, 46},
                  .local_lens = {4, 3, 8, 4, 3, 20, 6, 6, 46},
                  .protos = {62, 20, 4, 12, 2},
                  .sport = {72, 14, 1, 2, 11},
                  .dport = {32, 9, 1, 8, 50}},
    [RULES_IPC] = {.any_peer = 9,
                   .any_local = 9,
                   .peer_lens = {2, 2, 8, 8, 5, 20, 8, 9, 38},
                   .local_lens = {2, 2, 8, 8, 5, 20, 8, 9, 38},
                   .protos = {54, 24, 5, 15, 2},
                   .sport = {70, 9, 1, 4, 16},
                   .dport = {38, 8, 1, 9, 44}},
};

/* Half of the prefixes lie within an earlier one. */
static void make_pool(struct rules *g, const uint8_t *weights, uint32_t n)
{
    uint32_t first = g->n_sets;

    while (g->n_sets - first < n) {
        struct rules_prefix p = {.len = lens[weighted(g, weights, N_LENS)]};
        uint32_t outer = g->n_sets - first;
        bool twice = false;

        p.addr = random_network(g);
        if (outer && below(g, 2)) {
            const struct rules_prefix *o = &g->sets[first + skewed(g, outer)].v[0];

            if (o->len < p.len)
                p.addr = o->addr | (draw(g) & ~mask_of(o->len));
        }
        p.addr &= mask_of(p.len);
        for (uint32_t i = first; i < g->n_sets && !twice; i++)
            twice = g->sets[i].v[0].addr == p.addr && g->sets[i].v[0].len == p.len;
        if (!twice)
            add_set(g, &p, 1);
    }
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void draw_prefix_rule(struct rules *g, struct rules_rule *r, uint32_t n_peers)
{
    static const uint8_t protos[5] = {6, 17, 1, 0, 47};
    const struct profile *p = &profiles[g->kind];
    uint32_t proto = weighted(g, p->protos, 5);

    *r = (struct rules_rule){.sport_hi = UINT16_MAX, .dport_hi = UINT16_MAX};
    r->peer = below(g, 100) < p->any_peer ? MOAT_SET_ANY : skewed(g, n_peers);
    r->local =
        below(g, 100) < p->any_local ? MOAT_SET_ANY : n_peers + skewed(g, g->n_sets - n_peers);
    r->proto = proto == 3 ? MOAT_PROTO_ANY : protos[proto];
    if (proto < 2) {
        draw_ports(g, p->sport, &r->sport_lo, &r->sport_hi);
        draw_ports(g, p->dport, &r->dport_lo, &r->dport_hi);
    }
    r->action = below(g, 4) ? MOAT_ALLOW : MOAT_DROP;
}

/* --- Security groups --------------------------------------------------------------------- */

static void make_groups(struct rules *g, uint32_t n_rules)
{
    uint32_t n_groups = smaller(20 + n_rules / 20, 4000), n_ids = smaller(200 + n_rules / 4, 12000);
    struct rules_prefix *ids = need(calloc(n_ids, sizeof *ids)), v[64];

    for (uint32_t i = 0; i < n_ids; i++)
        ids[i] = (struct rules_prefix){0x0a000000 | below(g, 64) << 18 | below(g, 4096), 32};
    for (uint32_t i = 0; i < n_groups; i++) {
        uint32_t n = 1;

        if (below(g, 10) < 6) {
            v[0].len = (uint8_t)(16 + below(g, 13));
            v[0].addr = random_network(g) & mask_of(v[0].len);
        } else {
            n = 2 + skewed(g, skewed(g, 62));
            for (uint32_t k = 0; k < n; k++)
                v[k] = ids[below(g, n_ids)];
        }
        add_set(g, v, n);
    }
    free(ids);
}

static void draw_group_rule(struct rules *g, struct rules_rule *r)
{
    static const uint8_t weights[4] = {72, 16, 4, 8};
    static const uint8_t ports[N_PORT_SHAPES] = {10, 2, 1, 7, 80};
    static const uint16_t protos[4] = {6, 17, 1, MOAT_PROTO_ANY};
    uint32_t proto = weighted(g, weights, 4);

    *r = (struct rules_rule){
        .peer = skewed(g, g->n_sets), .local = MOAT_SET_ANY, .proto = protos[proto]};
    r->sport_hi = r->dport_hi = UINT16_MAX;
    if (proto < 2)
        draw_ports(g, ports, &r->dport_lo, &r->dport_hi);
    r->action = below(g, 8) ? MOAT_ALLOW : MOAT_DROP;
}

/* --- A set of rules ------------------------------------------------------------------------ */

static bool same_match(const struct rules_rule *a, const struct rules_rule *b)
{
    return a->peer == b->peer && a->local == b->local && a->proto == b->proto &&
           a->sport_lo == b->sport_lo && a->sport_hi == b->sport_hi && a->dport_lo == b->dport_lo &&
           a->dport_hi == b->dport_hi;
}

static uint64_t hash_of(const struct rules_rule *r)
{
    uint64_t h = r->peer * UINT64_C(0x9e3779b97f4a7c15) ^ r->local;

    h = h * UINT64_C(0xbf58476d1ce4e5b9) ^ r->proto ^ (uint64_t)r->sport_lo << 16;
    h = h * UINT64_C(0x94d049bb133111eb) ^ r->sport_hi ^ (uint64_t)r->dport_lo << 16;
    h = (h ^ r->dport_hi) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 31;
}

/* How narrow a rule's addresses are: narrow ones stand first, or most would never match. */
static int weight_of(const struct rules *g, const struct rules_rule *r)
{
    return (r->peer == MOAT_SET_ANY ? 0 : g->sets[r->peer].v[0].len) +
           (r->local == MOAT_SET_ANY ? 0 : g->sets[r->local].v[0].len);
}

static const struct rules *sorted;

static int by_weight(const void *a_, const void *b_)
{
    const struct rules_rule *a = a_, *b = b_;
    int wa = weight_of(sorted, a), wb = weight_of(sorted, b);
    uint64_t ha = hash_of(a), hb = hash_of(b);

    return wa != wb ? wb - wa : (ha > hb) - (ha < hb);
}

struct rules *rules_create(enum rules_kind kind, uint32_t n_rules, uint64_t seed)
{
    struct rules *g = need(calloc(1, sizeof *g));
    uint32_t n_peers = 0, size = 64, *seen;

    g->kind = kind;
    g->random = seed ^ (uint64_t)kind << 32;
    g->rules = need(calloc(n_rules, sizeof *g->rules));
    while (size < n_rules * 2)
        size *= 2;
    seen = need(calloc(size, sizeof *seen)); /* rule + 1 */
    if (kind == RULES_SG) {
        make_groups(g, n_rules);
    } else {
        make_pool(g, profiles[kind].peer_lens, smaller(16 + n_rules / 4, 3000));
        n_peers = g->n_sets;
        make_pool(g, profiles[kind].local_lens, smaller(16 + n_rules / 3, 4500));
    }
    while (g->n_rules < n_rules) {
        struct rules_rule *r = &g->rules[g->n_rules];
        uint32_t at;

        if (kind == RULES_SG)
            draw_group_rule(g, r);
        else
            draw_prefix_rule(g, r, n_peers);
        at = (uint32_t)hash_of(r) & (size - 1);
        while (seen[at] && !same_match(&g->rules[seen[at] - 1], r))
            at = (at + 1) & (size - 1);
        if (!seen[at])
            seen[at] = ++g->n_rules;
    }
    free(seen);
    if (kind != RULES_SG) {
        sorted = g;
        qsort(g->rules, n_rules, sizeof *g->rules, by_weight);
    }
    return g;
}

void rules_destroy(struct rules *g)
{
    if (!g)
        return;
    for (uint32_t i = 0; i < g->n_sets; i++)
        free(g->sets[i].v);
    free(g->sets);
    free(g->rules);
    free(g);
}

/* --- As a blob, as text ------------------------------------------------------------------------
 */

static struct moat_rangeset ranges_of(const struct rules_set *s)
{
    struct moat_rangeset out = {0};

    for (uint32_t i = 0; i < s->n; i++)
        moat_rangeset_add(&out, RANGE_V4, s->v[i].addr, s->v[i].addr | ~mask_of(s->v[i].len));
    moat_rangeset_normalise(&out);
    if (out.failed)
        die("out of memory");
    return out;
}

uint8_t *rules_blob(const struct rules *g, size_t *len)
{
    static char name[] = "it";
    struct moat_rangeset *ranges = need(calloc(g->n_sets + 1, sizeof *ranges));
    struct moat_program out = {
        .rules = need(calloc(g->n_rules, sizeof *out.rules)),
        .n_rules = g->n_rules,
        .sets = need(calloc(g->n_sets + 1, sizeof *out.sets)),
        .n_sets = g->n_sets,
        .strings = name,
        .strings_len = sizeof name,
        .generation = 1,
    };
    uint8_t *blob;

    for (uint32_t i = 0; i < g->n_sets; i++) {
        ranges[i] = ranges_of(&g->sets[i]);
        out.sets[i] = &ranges[i];
    }
    for (uint32_t i = 0; i < g->n_rules; i++) {
        const struct rules_rule *r = &g->rules[i];

        out.rules[i] = (struct moat_rule){
            .id = i + 1,
            .dirs = MOAT_RULE_TO_VM,
            .families = MOAT_RULE_IP4,
            .action = r->action,
            .proto = r->proto,
            .sport_lo = r->sport_lo,
            .sport_hi = r->sport_hi,
            .dport_lo = r->dport_lo,
            .dport_hi = r->dport_hi,
            .peer_set = r->peer,
            .local_set = r->local,
        };
    }
    if (moat_emit(&out, &blob, len))
        die("the rules do not fit into a ruleset");
    for (uint32_t i = 0; i < g->n_sets; i++)
        moat_rangeset_destroy(&ranges[i]);
    free(ranges);
    free(out.sets);
    free(out.rules);
    return blob;
}

static void print_service(FILE *f, const struct rules_rule *r)
{
    if (r->proto == MOAT_PROTO_ANY)
        return;
    fprintf(f, " service %s", r->proto == 1 ? "icmp" : r->proto == 6 ? "tcp" : "udp");
    if (r->dport_hi - r->dport_lo == UINT16_MAX)
        return;
    fprintf(f, " %u", r->dport_lo);
    if (r->dport_hi != r->dport_lo)
        fprintf(f, "-%u", r->dport_hi);
}

char *rules_text(const struct rules *g)
{
    char *text = NULL;
    size_t len;
    FILE *f = need(open_memstream(&text, &len));

    fprintf(f, "policy \"p\" version 1\n");
    for (uint32_t i = 0; i < g->n_sets; i++) {
        fprintf(f, "group g%u = addresses ", i);
        for (uint32_t k = 0; k < g->sets[i].n; k++) {
            const struct rules_prefix *p = &g->sets[i].v[k];

            fprintf(f, "%s%u.%u.%u.%u", k ? ", " : "", p->addr >> 24, p->addr >> 16 & 255,
                    p->addr >> 8 & 255, p->addr & 255);
            if (p->len < 32)
                fprintf(f, "/%u", p->len);
        }
        fprintf(f, "\n");
    }
    fprintf(f, "tier t {\n");
    for (uint32_t i = 0; i < g->n_rules; i++) {
        fprintf(f, "%s from g%u to vm \"b\"", g->rules[i].action == MOAT_ALLOW ? "allow" : "drop",
                g->rules[i].peer);
        print_service(f, &g->rules[i]);
        fprintf(f, "\n");
    }
    fprintf(f, "}\n");
    if (fclose(f))
        die("out of memory");
    return text;
}

/* --- A trace
 * --------------------------------------------------------------------------------------- */

static uint32_t address_in(struct rules *g, uint32_t set)
{
    const struct rules_prefix *p;

    if (set == MOAT_SET_ANY)
        return random_network(g);
    p = &g->sets[set].v[below(g, g->sets[set].n)];
    return p->addr | (draw(g) & ~mask_of(p->len));
}

void rules_trace(struct rules *g, struct moat_flow *flows, uint32_t n)
{
    static const struct rules_rule anything = {
        MOAT_SET_ANY, MOAT_SET_ANY, MOAT_PROTO_ANY, 0, UINT16_MAX, 0, UINT16_MAX, 0};

    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = i % 2 ? skewed(g, g->n_rules) : below(g, g->n_rules);
        const struct rules_rule *r = below(g, 10) ? &g->rules[k] : &anything;
        uint32_t remote = __builtin_bswap32(address_in(g, r->peer));
        uint32_t local = __builtin_bswap32(address_in(g, r->local));
        struct moat_flow f = {.dir = MOAT_TO_VM, .family = MOAT_FAM_IP4, .proto = 6};

        if (r->proto != MOAT_PROTO_ANY)
            f.proto = (uint8_t)r->proto;
        else if (!below(g, 4))
            f.proto = 17;
        if (f.proto == 6 || f.proto == 17) {
            f.sport = (uint16_t)(r->sport_lo + below(g, r->sport_hi - r->sport_lo + 1u));
            f.dport = (uint16_t)(r->dport_lo + below(g, r->dport_hi - r->dport_lo + 1u));
        }
        memcpy(f.remote, &remote, sizeof remote);
        memcpy(f.local, &local, sizeof local);
        flows[i] = f;
    }
}
