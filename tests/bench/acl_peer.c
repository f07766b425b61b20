/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/bench/acl_peer.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_acl.h>
#include <rte_eal.h>
#include <rte_vect.h>

enum { F_PROTO, F_SRC, F_DST, F_SPORT, F_DPORT, N_FIELDS };

RTE_ACL_RULE_DEF(acl_rule, N_FIELDS);

struct acl_peer {
    struct rte_acl_ctx *ctx;
    uint32_t n_rules;
    double build_s;
};

static const struct {
    enum rte_acl_classify_alg alg;
    const char *name;
} methods[ACL_PEER_METHODS] = {
    {RTE_ACL_CLASSIFY_SSE, "SSE"},
    {RTE_ACL_CLASSIFY_AVX2, "AVX2"},
    {RTE_ACL_CLASSIFY_AVX512X16, "AVX512X16"},
    {RTE_ACL_CLASSIFY_AVX512X32, "AVX512X32"},
};

static const struct rte_acl_field_def fields[N_FIELDS] = {
    {RTE_ACL_FIELD_TYPE_BITMASK, 1, F_PROTO, 0, offsetof(struct acl_key, proto)},
    {RTE_ACL_FIELD_TYPE_MASK, 4, F_SRC, 1, offsetof(struct acl_key, src)},
    {RTE_ACL_FIELD_TYPE_MASK, 4, F_DST, 2, offsetof(struct acl_key, dst)},
    {RTE_ACL_FIELD_TYPE_RANGE, 2, F_SPORT, 3, offsetof(struct acl_key, sport)},
    {RTE_ACL_FIELD_TYPE_RANGE, 2, F_DPORT, 3, offsetof(struct acl_key, dport)},
};

/* Hugepages if there are any left, as in a switch. */
static bool start_eal(void)
{
    static char *const argv[] = {
        "bench",         "--in-memory", "--no-pci", "--no-telemetry",
        "--log-level=3", "--lcores",    "0@1",      "--force-max-simd-bitwidth=512"};
    char *copy[8];

    memcpy(copy, argv, sizeof argv);
    return rte_eal_init(8, copy) >= 0;
}

static const struct rules_prefix all[1];
static const struct rules_set any = {(struct rules_prefix *)all, 1};

static int add(struct acl_peer *p, const struct rules_rule *r, uint32_t index,
               const struct rules_prefix *src, const struct rules_prefix *dst)
{
    struct acl_rule a = {
        .data = {.category_mask = 1,
                 .priority = RTE_ACL_MAX_PRIORITY - (int32_t)index,
                 .userdata = index + 1},
    };

    a.field[F_PROTO].value.u8 = r->proto == MOAT_PROTO_ANY ? 0 : (uint8_t)r->proto;
    a.field[F_PROTO].mask_range.u8 = r->proto == MOAT_PROTO_ANY ? 0 : 0xff;
    a.field[F_SRC].value.u32 = src->addr;
    a.field[F_SRC].mask_range.u32 = src->len;
    a.field[F_DST].value.u32 = dst->addr;
    a.field[F_DST].mask_range.u32 = dst->len;
    a.field[F_SPORT].value.u16 = r->sport_lo;
    a.field[F_SPORT].mask_range.u16 = r->sport_hi;
    a.field[F_DPORT].value.u16 = r->dport_lo;
    a.field[F_DPORT].mask_range.u16 = r->dport_hi;
    return rte_acl_add_rules(p->ctx, (const struct rte_acl_rule *)&a, 1);
}

static uint32_t pairs(const struct rules *g, const struct rules_rule *r)
{
    return (r->peer == MOAT_SET_ANY ? 1 : g->sets[r->peer].n) *
           (r->local == MOAT_SET_ANY ? 1 : g->sets[r->local].n);
}

static int add_all(struct acl_peer *p, const struct rules *g)
{
    for (uint32_t i = 0; i < g->n_rules; i++) {
        const struct rules_rule *r = &g->rules[i];
        const struct rules_set *src = r->peer == MOAT_SET_ANY ? &any : &g->sets[r->peer];
        const struct rules_set *dst = r->local == MOAT_SET_ANY ? &any : &g->sets[r->local];

        for (uint32_t s = 0; s < src->n; s++)
            for (uint32_t d = 0; d < dst->n; d++) {
                int rc = add(p, r, i, &src->v[s], &dst->v[d]);

                if (rc)
                    return rc;
            }
    }
    return 0;
}

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct acl_peer *acl_peer_create(const struct rules *g, const char **why)
{
    static bool started;
    struct acl_peer *p = calloc(1, sizeof *p);
    struct rte_acl_param param = {
        .name = "peer", .socket_id = -1, .rule_size = RTE_ACL_RULE_SZ(N_FIELDS)};
    struct rte_acl_config conf = {.num_categories = 1, .num_fields = N_FIELDS};
    int rc;

    *why = "no EAL";
    if (!p || (!started && !start_eal()))
        goto fail;
    started = true;
    for (uint32_t i = 0; i < g->n_rules; i++)
        p->n_rules += pairs(g, &g->rules[i]);
    param.max_rule_num = p->n_rules;
    memcpy(conf.defs, fields, sizeof fields);
    *why = "rte_acl: no memory for the rules";
    p->ctx = rte_acl_create(&param);
    if (!p->ctx)
        goto fail;
    rc = add_all(p, g);
    *why = "rte_acl refuses a rule";
    if (rc)
        goto fail;
    p->build_s = seconds();
    rc = rte_acl_build(p->ctx, &conf);
    p->build_s = seconds() - p->build_s;
    *why = rc == -ENOMEM ? "rte_acl_build: out of memory" : "rte_acl_build fails";
    if (rc)
        goto fail;
    return p;
fail:
    acl_peer_destroy(p);
    return NULL;
}

void acl_peer_destroy(struct acl_peer *p)
{
    if (p)
        rte_acl_free(p->ctx);
    free(p);
}

uint32_t acl_peer_rules(const struct acl_peer *p)
{
    return p->n_rules;
}

double acl_peer_build_s(const struct acl_peer *p)
{
    return p->build_s;
}

void acl_key_make(struct acl_key *k, const struct moat_flow *f)
{
    *k = (struct acl_key){.proto = f->proto, .sport = htons(f->sport), .dport = htons(f->dport)};
    memcpy(&k->src, f->remote, 4);
    memcpy(&k->dst, f->local, 4);
}

void acl_peer_classify(struct acl_peer *p, const struct acl_key *keys, uint32_t n, uint32_t *out)
{
    const uint8_t *at[64];

    for (uint32_t i = 0; i < n; i++)
        at[i] = (const uint8_t *)&keys[i];
    rte_acl_classify(p->ctx, at, out, n, 1);
}

bool acl_peer_method(struct acl_peer *p, unsigned method)
{
    return method < ACL_PEER_METHODS && !rte_acl_set_ctx_classify(p->ctx, methods[method].alg);
}

const char *acl_peer_method_name(unsigned method)
{
    return methods[method].name;
}
