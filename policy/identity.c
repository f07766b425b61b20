/* SPDX-License-Identifier: Apache-2.0 */

/* First the network's address space is cut into segments by owner (the vNICs with
 * the longest prefix).  Then each expression becomes a set of ranges, each group
 * once per side.  Equal sets are kept once. */

#include "policy/identity.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "policy/address.h"
#include "policy/member.h"

#define MAX_RANGES (4u << 20) /* in all sets of one identity */

/* A prefix of a vNIC of the network. */
struct owned {
    moat_u128 lo, hi;
    uint32_t vm;
};

/* The owners of lo..hi are owned[first] .. owned[first + n - 1]. */
struct segment {
    moat_u128 lo, hi;
    uint32_t first, n;
};

struct owners {
    struct owned *owned;
    struct segment *seg;
    uint32_t n_owned, n_seg;
};

struct moat_identity {
    const struct moat_policy *policy;
    const struct moat_inventory *inv;
    const struct inv_network *network;
    const struct inv_vm *vm;
    struct owners owners[N_RANGE_FAMILIES];
    struct moat_rangeset builtin[N_BUILTIN_TERMS];

    struct moat_rangeset *sets; /* each different from the others */
    uint64_t *hashes;
    uint32_t n_sets, cap_sets;
    uint32_t *bucket, n_buckets; /* by hash: set + 1 */
    size_t n_ranges;
    uint32_t *memo[N_SIDES]; /* by group: set + 1 */
};

/* --- Owners ----------------------------------------------------------------------------- */

/* By first address, the wider prefix first: a prefix follows those that hold it. */
static int by_place(const void *a_, const void *b_)
{
    const struct owned *a = a_, *b = b_;
    if (a->lo != b->lo)
        return a->lo < b->lo ? -1 : 1;
    return a->hi > b->hi ? -1 : a->hi < b->hi;
}

static void add_segment(struct owners *o, moat_u128 lo, const struct segment *run, moat_u128 hi)
{
    if (lo <= hi)
        o->seg[o->n_seg++] = (struct segment){lo, hi, run->first, run->n};
}

/* Prefixes nest or are apart, so a stack of those that are open tells the owner. */
static void cut_segments(struct owners *o)
{
    struct segment open[130];
    unsigned depth = 0;
    moat_u128 at = 0;

    for (uint32_t i = 0, n; i <= o->n_owned; i += n) {
        bool last = i == o->n_owned;
        n = 1;
        while (!last && i + n < o->n_owned && !by_place(&o->owned[i], &o->owned[i + n]))
            n++;
        while (depth && (last || open[depth - 1].hi < o->owned[i].lo)) {
            const struct segment *top = &open[--depth];
            add_segment(o, at, top, top->hi);
            at = top->hi + 1;
            /* What ends at the very last address ends all that it is in. */
            if (at == 0)
                depth = 0;
        }
        if (last)
            break;
        if (depth && at < o->owned[i].lo)
            add_segment(o, at, &open[depth - 1], o->owned[i].lo - 1);
        at = o->owned[i].lo;
        open[depth++] = (struct segment){at, o->owned[i].hi, i, n};
    }
}

static void link_local(const uint8_t mac[6], uint8_t out[16])
{
    const uint8_t eui[16] = {0xfe,          0x80,   0,      0,    0,    0,      0,      0,
                             mac[0] ^ 0x02, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]};
    memcpy(out, eui, sizeof eui);
}

static bool find_owners(struct moat_identity *id, uint32_t network)
{
    const struct moat_inventory *inv = id->inv;
    size_t n = 0;
    for (uint32_t i = 0; i < inv->n_vnics; i++)
        if (inv->vnics[i].network == network)
            n += inv->vnics[i].addrs.n + 1;
    for (int f = 0; f < N_RANGE_FAMILIES; f++) {
        id->owners[f].owned = calloc(n + 1, sizeof *id->owners[f].owned);
        /* Each prefix opens one segment and may go on after another. */
        id->owners[f].seg = calloc(2 * n + 1, sizeof *id->owners[f].seg);
        if (!id->owners[f].owned || !id->owners[f].seg)
            return false;
    }
    for (uint32_t i = 0; i < inv->n_vnics; i++) {
        const struct inv_vnic *c = &inv->vnics[i];
        static const uint8_t no_mac[6];
        uint8_t lo[16], hi[16];
        if (c->network != network)
            continue;
        for (uint32_t k = 0; k < c->addrs.n; k++) {
            const struct moat_addr *a = &c->addrs.v[k];
            int f = moat_range_family(a->family);
            struct owners *o = &id->owners[f];
            if (a->plen == 0)
                continue;
            moat_prefix_bounds(a->addr, f == RANGE_V4 ? 32 : 128, a->plen, lo, hi);
            o->owned[o->n_owned++] =
                (struct owned){moat_range_addr(f, lo), moat_range_addr(f, hi), c->vm};
        }
        if (memcmp(c->mac, no_mac, sizeof no_mac)) {
            struct owners *o = &id->owners[RANGE_V6];
            link_local(c->mac, lo);
            moat_u128 a = moat_range_addr(RANGE_V6, lo);
            o->owned[o->n_owned++] = (struct owned){a, a, c->vm};
        }
    }
    for (int f = 0; f < N_RANGE_FAMILIES; f++) {
        qsort(id->owners[f].owned, id->owners[f].n_owned, sizeof *id->owners[f].owned, by_place);
        cut_segments(&id->owners[f]);
    }
    return true;
}

/* --- Built-in groups ---------------------------------------------------------------------- */

static void add_prefix(struct moat_rangeset *s, unsigned family, const uint8_t addr[16],
                       unsigned plen)
{
    int f = moat_range_family(family);
    uint8_t lo[16], hi[16];
    moat_prefix_bounds(addr, f == RANGE_V4 ? 32 : 128, plen, lo, hi);
    moat_rangeset_add(s, f, moat_range_addr(f, lo), moat_range_addr(f, hi));
}

static void add_list(struct moat_rangeset *s, const struct inv_addrs *list)
{
    for (uint32_t i = 0; i < list->n; i++)
        add_prefix(s, list->v[i].family, list->v[i].addr, list->v[i].plen);
}

static void add_multicast(struct moat_rangeset *s, const struct inv_network *w)
{
    moat_rangeset_add(s, RANGE_V4, 0xe0000000, 0xefffffff);
    moat_rangeset_add(s, RANGE_V4, 0xffffffff, 0xffffffff);
    moat_rangeset_add(s, RANGE_V6, (moat_u128)0xff << 120, ~(moat_u128)0);
    for (uint32_t i = 0; i < w->subnets.n; i++) {
        /* The broadcast address of a subnet; /31 and /32 have none (RFC 3021). */
        const struct moat_addr *a = &w->subnets.v[i];
        uint8_t lo[16], hi[16];
        if (a->family != MOAT_FAM_IP4 || a->plen > 30)
            continue;
        moat_prefix_bounds(a->addr, 32, a->plen, lo, hi);
        moat_u128 last = moat_range_addr(RANGE_V4, hi);
        moat_rangeset_add(s, RANGE_V4, last, last);
    }
}

/* What can only be a neighbour: on the link, or nowhere at all. */
static void add_near(struct moat_rangeset *s, const struct inv_network *w)
{
    add_list(s, &w->subnets);
    moat_rangeset_add(s, RANGE_V4, 0x00000000, 0x00ffffff);
    moat_rangeset_add(s, RANGE_V4, 0x7f000000, 0x7fffffff);
    moat_rangeset_add(s, RANGE_V4, 0xa9fe0000, 0xa9feffff);
    moat_rangeset_add(s, RANGE_V6, 0, 1);
    moat_rangeset_add(s, RANGE_V6, (moat_u128)0xfe80 << 112, ((moat_u128)0xfec0 << 112) - 1);
}

static bool find_builtins(struct moat_identity *id)
{
    const struct inv_network *w = id->network;
    struct moat_rangeset *b = id->builtin, known = {0};

    moat_rangeset_add_all(&b[TERM_ANY]);
    for (int f = 0; f < N_RANGE_FAMILIES; f++)
        for (uint32_t i = 0; i < id->owners[f].n_seg; i++)
            moat_rangeset_add(&b[TERM_VMS], f, id->owners[f].seg[i].lo, id->owners[f].seg[i].hi);
    add_list(&b[TERM_GATEWAY], &w->gateways);
    add_list(&b[TERM_ROUTER], &w->routers);
    add_list(&b[TERM_DHCP], &w->dhcp_servers);
    add_list(&b[TERM_METADATA], &w->metadata_servers);
    add_multicast(&b[TERM_MULTICAST], w);
    for (int t = 0; t < N_BUILTIN_TERMS; t++) {
        moat_rangeset_normalise(&b[t]);
        if (t != TERM_ANY)
            moat_rangeset_append(&known, &b[t]);
    }
    moat_rangeset_normalise(&known);

    add_near(&b[TERM_UNKNOWN], w);
    moat_rangeset_normalise(&b[TERM_UNKNOWN]);
    moat_rangeset_subtract(&b[TERM_UNKNOWN], &known);

    moat_rangeset_append(&known, &b[TERM_UNKNOWN]);
    moat_rangeset_normalise(&known);
    moat_rangeset_add_all(&b[TERM_OUTSIDE]);
    moat_rangeset_subtract(&b[TERM_OUTSIDE], &known);

    bool failed = known.failed;
    for (int t = 0; t < N_BUILTIN_TERMS; t++)
        failed = failed || b[t].failed;
    moat_rangeset_destroy(&known);
    return !failed;
}

/* --- Life ------------------------------------------------------------------------------------ */

struct moat_identity *moat_identity_create(const struct moat_policy *y,
                                           const struct moat_inventory *inv, unsigned vnic)
{
    struct moat_identity *id = calloc(1, sizeof *id);
    if (!id)
        return NULL;
    id->policy = y;
    id->inv = inv;
    id->network = &inv->networks[inv->vnics[vnic].network];
    id->vm = &inv->vms[inv->vnics[vnic].vm];
    bool ok = true;
    for (int side = 0; side < N_SIDES; side++) {
        id->memo[side] = calloc(y->n_groups + 1, sizeof **id->memo);
        ok = ok && id->memo[side];
    }
    if (!ok || !find_owners(id, inv->vnics[vnic].network) || !find_builtins(id)) {
        moat_identity_destroy(id);
        return NULL;
    }
    return id;
}

void moat_identity_destroy(struct moat_identity *id)
{
    if (!id)
        return;
    for (int f = 0; f < N_RANGE_FAMILIES; f++) {
        free(id->owners[f].owned);
        free(id->owners[f].seg);
    }
    for (int t = 0; t < N_BUILTIN_TERMS; t++)
        moat_rangeset_destroy(&id->builtin[t]);
    for (uint32_t i = 0; i < id->n_sets; i++)
        moat_rangeset_destroy(&id->sets[i]);
    for (int side = 0; side < N_SIDES; side++)
        free(id->memo[side]);
    free(id->sets);
    free(id->hashes);
    free(id->bucket);
    free(id);
}

/* --- Sets --------------------------------------------------------------------------------------
 */

static uint64_t hash_set(const struct moat_rangeset *s)
{
    uint64_t h = 0;
    for (int f = 0; f < N_RANGE_FAMILIES; f++)
        h = XXH3_64bits_withSeed(s->f[f].v ? (const void *)s->f[f].v : "",
                                 s->f[f].n * sizeof *s->f[f].v, h + s->f[f].n);
    return h;
}

static bool grow_sets(struct moat_identity *id)
{
    if (id->n_sets < id->cap_sets)
        return true;
    uint32_t cap = id->cap_sets ? id->cap_sets * 2 : 16;
    struct moat_rangeset *sets = realloc(id->sets, cap * sizeof *sets);
    if (!sets)
        return false;
    id->sets = sets;
    uint64_t *hashes = realloc(id->hashes, cap * sizeof *hashes);
    if (!hashes)
        return false;
    id->hashes = hashes;
    uint32_t *bucket = calloc(cap * 2, sizeof *bucket);
    if (!bucket)
        return false;
    free(id->bucket);
    id->bucket = bucket;
    id->n_buckets = cap * 2;
    id->cap_sets = cap;
    for (uint32_t i = 0; i < id->n_sets; i++) {
        uint32_t b = (uint32_t)id->hashes[i] & (id->n_buckets - 1);
        while (bucket[b])
            b = (b + 1) & (id->n_buckets - 1);
        bucket[b] = i + 1;
    }
    return true;
}

/* Takes the set's memory. */
static int intern(struct moat_identity *id, struct moat_rangeset *s, uint32_t *out)
{
    if (s->failed || !grow_sets(id)) {
        moat_rangeset_destroy(s);
        return -ENOMEM;
    }
    uint64_t h = hash_set(s);
    uint32_t b = (uint32_t)h & (id->n_buckets - 1);
    for (; id->bucket[b]; b = (b + 1) & (id->n_buckets - 1)) {
        uint32_t i = id->bucket[b] - 1;
        if (id->hashes[i] == h && moat_rangeset_equal(&id->sets[i], s)) {
            moat_rangeset_destroy(s);
            *out = i;
            return 0;
        }
    }
    id->n_ranges += (size_t)s->f[RANGE_V4].n + s->f[RANGE_V6].n;
    if (id->n_ranges > MAX_RANGES) {
        moat_rangeset_destroy(s);
        return -E2BIG;
    }
    id->bucket[b] = id->n_sets + 1;
    id->hashes[id->n_sets] = h;
    id->sets[id->n_sets] = *s;
    *out = id->n_sets++;
    return 0;
}

static void add_owned_by(struct moat_identity *id, const struct ast_term *t,
                         struct moat_rangeset *s)
{
    for (int f = 0; f < N_RANGE_FAMILIES; f++) {
        const struct owners *o = &id->owners[f];
        for (uint32_t i = 0; i < o->n_seg; i++) {
            const struct segment *g = &o->seg[i];
            for (uint32_t k = g->first; k < g->first + g->n; k++) {
                if (moat_member_term(t, &id->inv->vms[o->owned[k].vm])) {
                    moat_rangeset_add(s, f, g->lo, g->hi);
                    break;
                }
            }
        }
    }
}

/* The set of a group, found once. */
static int group_set(struct moat_identity *id, uint32_t group, enum identity_side side,
                     uint32_t *set)
{
    uint32_t *memo = &id->memo[side][group];
    if (!*memo) {
        int err = moat_identity_set(id, &id->policy->groups[group].expr, side, set);
        if (err)
            return err;
        *memo = *set + 1;
    }
    *set = *memo - 1;
    return 0;
}

static int add_term(struct moat_identity *id, const struct ast_term *t, enum identity_side side,
                    struct moat_rangeset *s)
{
    if (moat_ast_term_is_vm(t->kind) && side == SIDE_LOCAL) {
        if (moat_member_term(t, id->vm))
            moat_rangeset_add_all(s);
    } else if (t->kind < N_BUILTIN_TERMS) {
        moat_rangeset_append(s, &id->builtin[t->kind]);
    } else if (t->kind == TERM_ADDRESSES) {
        for (uint32_t i = 0; i < t->n; i++) {
            int f = moat_range_family(t->ranges[i].family);
            moat_rangeset_add(s, f, moat_range_addr(f, t->ranges[i].lo),
                              moat_range_addr(f, t->ranges[i].hi));
        }
    } else if (t->kind == TERM_GROUP) {
        uint32_t set;
        int err = group_set(id, t->ref, side, &set);
        if (err)
            return err;
        moat_rangeset_append(s, &id->sets[set]);
    } else {
        add_owned_by(id, t, s);
    }
    return s->failed ? -ENOMEM : 0;
}

static int add_terms(struct moat_identity *id, const struct ast_terms *ts, enum identity_side side,
                     struct moat_rangeset *s)
{
    for (uint32_t i = 0; i < ts->n; i++) {
        int err = add_term(id, &ts->v[i], side, s);
        if (err)
            return err;
        if ((size_t)s->f[RANGE_V4].n + s->f[RANGE_V6].n > MAX_RANGES / 4)
            moat_rangeset_normalise(s);
        if ((size_t)s->f[RANGE_V4].n + s->f[RANGE_V6].n > MAX_RANGES / 2)
            return -E2BIG;
    }
    moat_rangeset_normalise(s);
    return 0;
}

int moat_identity_set(struct moat_identity *id, const struct ast_expr *e, enum identity_side side,
                      uint32_t *set)
{
    if (e->with.n == 1 && e->with.v[0].kind == TERM_GROUP && e->except.n == 0)
        return group_set(id, e->with.v[0].ref, side, set);
    struct moat_rangeset with = {0}, except = {0};
    int err = add_terms(id, &e->with, side, &with);
    if (!err)
        err = add_terms(id, &e->except, side, &except);
    if (!err)
        moat_rangeset_subtract(&with, &except);
    moat_rangeset_destroy(&except);
    if (err) {
        moat_rangeset_destroy(&with);
        return err;
    }
    return intern(id, &with, set);
}

const struct moat_rangeset *moat_identity_ranges(const struct moat_identity *id, uint32_t set)
{
    return &id->sets[set];
}
