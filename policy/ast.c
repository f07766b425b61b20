/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/ast.h"

#include <stdlib.h>
#include <string.h>

#include "policy/settings.h"

#define CHUNK (16u << 10)

struct moat_arena_chunk {
    struct moat_arena_chunk *next;
    size_t used, size;
    max_align_t data[];
};

void *moat_arena_alloc(struct moat_arena *a, size_t size)
{
    size = (size + 15) & ~(size_t)15;
    if (a->failed || size > a->limit - a->used)
        goto fail;
    struct moat_arena_chunk *c = a->chunks;
    if (!c || c->size - c->used < size) {
        size_t want = size > CHUNK ? size : CHUNK;
        c = malloc(sizeof *c + want);
        if (!c)
            goto fail;
        *c = (struct moat_arena_chunk){.next = a->chunks, .size = want};
        a->chunks = c;
    }
    void *p = (char *)c->data + c->used;
    c->used += size;
    a->used += size;
    return memset(p, 0, size);

fail:
    a->failed = true;
    return NULL;
}

char *moat_arena_strndup(struct moat_arena *a, const char *s, size_t len)
{
    char *p = moat_arena_alloc(a, len + 1);
    if (p)
        memcpy(p, s, len);
    return p;
}

void *moat_arena_grow(struct moat_arena *a, void *v, uint32_t n, uint32_t *cap, size_t element)
{
    if (n < *cap)
        return v;
    uint32_t more = *cap ? *cap * 2 : 2;
    void *p = moat_arena_alloc(a, more * element);
    if (!p)
        return NULL;
    if (n)
        memcpy(p, v, n * element);
    *cap = more;
    return p;
}

void moat_arena_destroy(struct moat_arena *a)
{
    while (a->chunks) {
        struct moat_arena_chunk *c = a->chunks;
        a->chunks = c->next;
        free(c);
    }
}

void moat_policy_destroy(struct moat_policy *p)
{
    if (!p)
        return;
    struct moat_arena arena = p->arena;
    moat_arena_destroy(&arena);
    free(p);
}

const char *moat_policy_name(const struct moat_policy *p)
{
    return p->name;
}

unsigned moat_policy_n_rules(const struct moat_policy *p)
{
    return p->n_rules;
}

const char *moat_ast_builtin_name(enum ast_term_kind kind)
{
    static const char *const names[N_BUILTIN_TERMS] = {
        [TERM_ANY] = "any",         [TERM_VMS] = "vms",           [TERM_OUTSIDE] = "outside",
        [TERM_UNKNOWN] = "unknown", [TERM_GATEWAY] = "gateway",   [TERM_ROUTER] = "router",
        [TERM_DHCP] = "dhcp",       [TERM_METADATA] = "metadata", [TERM_MULTICAST] = "multicast",
    };
    return kind < N_BUILTIN_TERMS ? names[kind] : NULL;
}

const char *moat_ast_action_name(unsigned verdict)
{
    static const char *const names[] = {
        [MOAT_DROP] = "drop",           [MOAT_ALLOW] = "allow", [MOAT_REJECT] = "reject",
        [MOAT_NEXT_TIER] = "next-tier", [MOAT_LOG] = "log",
    };
    return verdict < sizeof names / sizeof *names ? names[verdict] : NULL;
}

const char *moat_ast_setting_name(enum ast_setting_key key)
{
    const struct setting_def *def = moat_setting_def(key);
    return def ? def->name : NULL;
}

bool moat_ast_reserved(const char *word)
{
    static const char *const words[] = {
        "addresses", "allow",   "and",      "any",      "arp",      "code",     "default",
        "dhcp",      "drop",    "except",   "for",      "from",     "gateway",  "group",
        "icmp",      "icmp6",   "labelled", "log",      "loose",    "metadata", "multicast",
        "next-tier", "outside", "policy",   "port",     "protocol", "reject",   "router",
        "rule",      "sctp",    "service",  "settings", "tcp",      "tier",     "to",
        "udp",       "unknown", "uuid",     "version",  "vm",       "vms",
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(words[i], word))
            return true;
    return false;
}

/* Where two fit, the printer takes the first. */
const struct ast_icmp_name moat_ast_icmp_names[] = {
    {"echo-reply", 0, 0, -1},
    {"fragmentation-needed", 0, 3, 4},
    {"unreachable", 0, 3, -1},
    {"redirect", 0, 5, -1},
    {"echo-request", 0, 8, -1},
    {"time-exceeded", 0, 11, -1},
    {"parameter-problem", 0, 12, -1},
    {"timestamp-request", 0, 13, -1},
    {"timestamp-reply", 0, 14, -1},
    {"unreachable", 1, 1, -1},
    {"packet-too-big", 1, 2, -1},
    {"time-exceeded", 1, 3, -1},
    {"parameter-problem", 1, 4, -1},
    {"echo-request", 1, 128, -1},
    {"echo-reply", 1, 129, -1},
    {"mld-query", 1, 130, -1},
    {"mld-report", 1, 131, -1},
    {"mld-done", 1, 132, -1},
    {"router-solicitation", 1, 133, -1},
    {"router-advertisement", 1, 134, -1},
    {"neighbor-solicitation", 1, 135, -1},
    {"neighbor-advertisement", 1, 136, -1},
    {"redirect", 1, 137, -1},
    {"mld2-report", 1, 143, -1},
};
const unsigned moat_ast_n_icmp_names = sizeof moat_ast_icmp_names / sizeof *moat_ast_icmp_names;

/* The index is sorted by name, and holds the first of equal names first. */
int64_t moat_ast_find_group(const struct moat_policy *p, const char *name)
{
    uint32_t lo = 0, hi = p->n_groups;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (strcmp(p->groups[p->group_index[mid]].name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo < p->n_groups && !strcmp(p->groups[p->group_index[lo]].name, name))
        return p->group_index[lo];
    return -1;
}

int64_t moat_ast_find_service(const struct moat_policy *p, const char *name)
{
    uint32_t lo = 0, hi = p->n_services;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (strcmp(p->services[p->service_index[mid]].name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo < p->n_services && !strcmp(p->services[p->service_index[lo]].name, name))
        return p->service_index[lo];
    return -1;
}
