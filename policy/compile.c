/* SPDX-License-Identifier: Apache-2.0 */

/* The rules of a policy as one vNIC needs them.  Each rule becomes, per direction,
 * a pair of address sets, and per service a range of ports; what cannot match at
 * this vNIC is left out.  All rules that come of one have its number and verdict,
 * so their order among each other is free. */

#include "policy/compile.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "policy/ast.h"
#include "policy/identity.h"
#include "policy/member.h"
#include "policy/parse.h"
#include "policy/text.h"

/* Last of the strings of a ruleset of quarantine; not a name, for the tab. */
#define QUARANTINE_MARK "\tquarantine"

/* One thing that a service is, in normal form. */
struct match {
    uint8_t families; /* MOAT_RULE_IP4 | ... */
    uint16_t proto;
    uint16_t dport_lo, dport_hi, sport_lo, sport_hi;
};

struct matches {
    struct match *v;
    uint32_t n, cap;
    uint8_t *seen; /* services that are in already */
};

struct compiler {
    const struct moat_policy *policy;
    struct moat_identity *identity;
    struct moat_program out;
    struct moat_buf strings;
    struct matches matches;
};

/* --- Services ------------------------------------------------------------------------ */

static bool match_add(struct matches *ms, const struct match *m)
{
    if (ms->n == ms->cap) {
        uint32_t cap = ms->cap ? ms->cap * 2 : 8;
        struct match *v = realloc(ms->v, cap * sizeof *v);
        if (!v)
            return false;
        ms->v = v;
        ms->cap = cap;
    }
    ms->v[ms->n++] = *m;
    return true;
}

static bool match_items(struct matches *ms, const struct moat_policy *y,
                        const struct ast_items *items)
{
    for (uint32_t i = 0; i < items->n; i++) {
        const struct ast_item *it = &items->v[i];
        struct match m = {
            MOAT_RULE_IP4 | MOAT_RULE_IP6,
            it->proto,
            it->dport_lo,
            it->dport_hi,
            it->sport_lo,
            it->sport_hi,
        };
        switch (it->kind) {
        case ITEM_SERVICE:
            if (!ms->seen[it->ref]) {
                ms->seen[it->ref] = 1;
                if (!match_items(ms, y, &y->services[it->ref].items))
                    return false;
            }
            continue;
        case ITEM_ICMP:
            m.families = MOAT_RULE_IP4;
            break;
        case ITEM_ICMP6:
            m.families = MOAT_RULE_IP6;
            break;
        case ITEM_ARP:
            m.families = MOAT_RULE_ARP;
            m.proto = MOAT_PROTO_ANY;
            break;
        case ITEM_PORTS:
        case ITEM_PROTO:
            break;
        }
        if (!match_add(ms, &m))
            return false;
    }
    return true;
}

static int by_all_but_dport(const struct match *a, const struct match *b)
{
    if (a->families != b->families)
        return a->families < b->families ? -1 : 1;
    if (a->proto != b->proto)
        return a->proto < b->proto ? -1 : 1;
    if (a->sport_lo != b->sport_lo)
        return a->sport_lo < b->sport_lo ? -1 : 1;
    return a->sport_hi < b->sport_hi ? -1 : a->sport_hi > b->sport_hi;
}

static int by_match(const void *a_, const void *b_)
{
    const struct match *a = a_, *b = b_;
    int order = by_all_but_dport(a, b);
    return order ? order : a->dport_lo < b->dport_lo ? -1 : a->dport_lo > b->dport_lo;
}

/* Joins ranges of ports that overlap or touch. */
static void match_normalise(struct matches *ms)
{
    uint32_t kept = 0;
    if (ms->n < 2)
        return;
    qsort(ms->v, ms->n, sizeof *ms->v, by_match);
    for (uint32_t i = 1; i < ms->n; i++) {
        struct match *last = &ms->v[kept];
        const struct match *m = &ms->v[i];
        if (!by_all_but_dport(last, m) && m->dport_lo <= last->dport_hi + 1) {
            if (m->dport_hi > last->dport_hi)
                last->dport_hi = m->dport_hi;
        } else {
            ms->v[++kept] = *m;
        }
    }
    ms->n = kept + 1;
}

static bool find_matches(struct compiler *c, const struct ast_items *services)
{
    static const struct match anything = {
        MOAT_RULE_IP4 | MOAT_RULE_IP6, MOAT_PROTO_ANY, 0, UINT16_MAX, 0, UINT16_MAX};
    c->matches.n = 0;
    if (services->n == 0)
        return match_add(&c->matches, &anything);
    memset(c->matches.seen, 0, c->policy->n_services + 1);
    if (!match_items(&c->matches, c->policy, services))
        return false;
    match_normalise(&c->matches);
    return true;
}

/* --- Rules ---------------------------------------------------------------------------- */

static bool add_rule(struct compiler *c, const struct moat_rule *r)
{
    struct moat_program *out = &c->out;
    if (out->n_rules == out->cap_rules) {
        uint32_t cap = out->cap_rules ? out->cap_rules * 2 : 32;
        struct moat_rule *v = realloc(out->rules, cap * sizeof *v);
        if (!v)
            return false;
        out->rules = v;
        out->cap_rules = cap;
    }
    out->rules[out->n_rules++] = *r;
    return true;
}

/* The families in which a set has any address. */
static uint8_t set_families(const struct moat_rangeset *s)
{
    return (uint8_t)((s->f[RANGE_V4].n ? MOAT_RULE_IP4 | MOAT_RULE_ARP : 0) |
                     (s->f[RANGE_V6].n ? MOAT_RULE_IP6 : 0));
}

/* A set that is everything in each of the families needs no look-up. */
static uint32_t widen(const struct compiler *c, uint32_t set, uint8_t families)
{
    const struct moat_rangeset *s = moat_identity_ranges(c->identity, set);
    bool full =
        (!(families & (MOAT_RULE_IP4 | MOAT_RULE_ARP)) || moat_rangeset_is_full(s, RANGE_V4)) &&
        (!(families & MOAT_RULE_IP6) || moat_rangeset_is_full(s, RANGE_V6));
    return full ? MOAT_SET_ANY : set;
}

static bool add_matches(struct compiler *c, struct moat_rule r, uint32_t local, uint32_t remote)
{
    uint8_t families = set_families(moat_identity_ranges(c->identity, local)) &
                       set_families(moat_identity_ranges(c->identity, remote));
    for (uint32_t i = 0; i < c->matches.n; i++) {
        const struct match *m = &c->matches.v[i];
        r.families = m->families & families;
        if (!r.families)
            continue;
        r.proto = m->proto;
        r.dport_lo = m->dport_lo;
        r.dport_hi = m->dport_hi;
        r.sport_lo = m->sport_lo;
        r.sport_hi = m->sport_hi;
        r.local_set = widen(c, local, r.families);
        r.peer_set = widen(c, remote, r.families);
        if (!add_rule(c, &r))
            return false;
    }
    return true;
}

static uint32_t add_name(struct compiler *c, const struct ast_rule *a)
{
    uint32_t at = (uint32_t)c->strings.n;
    if (a->name)
        moat_buf_puts(&c->strings, a->name);
    else
        moat_buf_printf(&c->strings, "%s/%u", c->policy->tiers[a->tier].name, a->pos.line);
    moat_buf_add(&c->strings, "", 1);
    return at;
}

static int compile_rule(struct compiler *c, uint32_t index)
{
    const struct ast_rule *a = &c->policy->rules[index];
    struct moat_rule r = {
        .id = index + 1,
        .action = a->action,
        .flags = (uint8_t)((a->log ? MOAT_RULE_F_LOG : 0) | (a->loose ? MOAT_RULE_F_LOOSE : 0)),
        .tier = (uint16_t)a->tier,
    };
    uint32_t local[2], remote[2]; /* by enum moat_dir */
    int err;

    if (!find_matches(c, &a->services))
        return -ENOMEM;
    if ((err = moat_identity_set(c->identity, &a->from, SIDE_LOCAL, &local[MOAT_FROM_VM])) ||
        (err = moat_identity_set(c->identity, &a->to, SIDE_REMOTE, &remote[MOAT_FROM_VM])) ||
        (err = moat_identity_set(c->identity, &a->to, SIDE_LOCAL, &local[MOAT_TO_VM])) ||
        (err = moat_identity_set(c->identity, &a->from, SIDE_REMOTE, &remote[MOAT_TO_VM])))
        return err;

    uint32_t before = c->out.n_rules;
    uint32_t name = add_name(c, a);
    bool both = local[0] == local[1] && remote[0] == remote[1];
    for (unsigned dir = 0; dir < (both ? 1 : 2); dir++) {
        r.dirs = both ? MOAT_RULE_FROM_VM | MOAT_RULE_TO_VM : (uint8_t)(1 << dir);
        r.name = name;
        if (!add_matches(c, r, local[dir], remote[dir]))
            return -ENOMEM;
    }
    if (c->out.n_rules == before && !c->strings.failed)
        c->strings.n = name; /* no rule, no name */
    return 0;
}

static void set_skips(struct moat_program *out)
{
    uint32_t next = out->n_rules; /* first rule of a later tier */
    for (uint32_t i = out->n_rules; i-- > 0;) {
        if (i + 1 < out->n_rules && out->rules[i + 1].tier != out->rules[i].tier)
            next = i + 1;
        if (out->rules[i].action == MOAT_NEXT_TIER)
            out->rules[i].skip_to = next;
    }
}

/* Numbers the sets that rules use, in order of use. */
static int number_sets(struct compiler *c)
{
    struct moat_program *out = &c->out;
    uint32_t most = 2 * out->n_rules, highest = 0;
    for (uint32_t i = 0; i < out->n_rules; i++) {
        uint32_t sets[] = {out->rules[i].peer_set, out->rules[i].local_set};
        for (int k = 0; k < 2; k++)
            if (sets[k] != MOAT_SET_ANY && sets[k] > highest)
                highest = sets[k];
    }
    uint32_t *number = calloc((size_t)highest + 1, sizeof *number); /* + 1; 0: none yet */
    out->sets = calloc(most + 1, sizeof *out->sets);
    if (!number || !out->sets) {
        free(number);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < out->n_rules; i++) {
        uint32_t *sets[] = {&out->rules[i].peer_set, &out->rules[i].local_set};
        for (int k = 0; k < 2; k++) {
            if (*sets[k] == MOAT_SET_ANY)
                continue;
            uint32_t *n = &number[*sets[k]];
            if (!*n) {
                out->sets[out->n_sets++] = moat_identity_ranges(c->identity, *sets[k]);
                *n = out->n_sets;
            }
            *sets[k] = *n - 1;
        }
    }
    free(number);
    return 0;
}

static int compile_rules(struct compiler *c, bool quarantine)
{
    const struct moat_policy *y = c->policy;
    for (uint32_t i = 0; i < y->n_rules; i++) {
        if (quarantine && !y->tiers[y->rules[i].tier].base)
            continue;
        int err = compile_rule(c, i);
        if (err)
            return err;
        /* Too many already: do not go on for ever. */
        if (c->out.n_rules > 4 * (MOAT_RULESET_VNIC_MAX / sizeof(struct moat_rule)))
            break;
    }
    set_skips(&c->out);
    c->out.default_action = quarantine ? MOAT_DROP : y->default_action;
    c->out.default_flags = !quarantine && y->default_log ? MOAT_RULE_F_LOG : 0;
    int err = number_sets(c);
    if (err)
        return err;
    /* Never empty.  A policy may come to the very rules of the base tier; the digest shall still
     * tell one from the other, or putting such a VM in quarantine would publish nothing. */
    moat_buf_puts(&c->strings, quarantine ? QUARANTINE_MARK : "");
    moat_buf_add(&c->strings, "", 1);
    if (c->strings.failed)
        return -ENOMEM;
    c->out.strings_len = (uint32_t)c->strings.n;
    c->out.strings = moat_buf_take(&c->strings);
    return c->out.strings ? 0 : -ENOMEM;
}

static int is_quarantined(const struct moat_policy *y, const struct moat_inventory *inv,
                          unsigned vnic, bool *yes)
{
    struct moat_member m;
    int err = moat_member_init(&m, y, inv);
    if (err)
        return err;
    moat_member_vm(&m, inv->vnics[vnic].vm);
    *yes = moat_member_in_quarantine(&m);
    moat_member_destroy(&m);
    return 0;
}

static void report(struct moat_diags *diags, const struct moat_policy *y, const char *vnic, int err,
                   size_t size, uint32_t n_rules)
{
    static const struct moat_pos whole = {0, 0};
    static const char hint[] = "use fewer or wider groups of addresses, or fewer rules for it";
    if (err == -E2BIG && size)
        moat_diags_add(diags, MOAT_DIAG_ERROR, y->file, whole, hint,
                       "the ruleset of vNIC %s would have %zu bytes (%u rules), the limit is %u",
                       vnic, size, n_rules, MOAT_RULESET_VNIC_MAX);
    else if (err == -E2BIG)
        moat_diags_add(diags, MOAT_DIAG_ERROR, y->file, whole, hint,
                       "the groups of vNIC %s are too intricate", vnic);
    else if (err)
        moat_diags_add(diags, MOAT_DIAG_ERROR, y->file, whole, NULL,
                       "no memory to compile the ruleset of vNIC %s", vnic);
}

int moat_policy_compile(const struct moat_policy *policy, const struct moat_inventory *inv,
                        unsigned vnic, uint64_t generation, uint8_t **blob, size_t *len,
                        struct moat_diags *diags)
{
    struct compiler c = {0};
    struct moat_policy *base = NULL;
    bool quarantine = true;
    int err = -ENOMEM;

    *blob = NULL;
    *len = 0;
    if (vnic >= inv->n_vnics)
        return -EINVAL;
    if (!policy && !(base = moat_policy_base()))
        return -ENOMEM;
    c.policy = policy ? policy : base;
    c.out.generation = generation;
    c.identity = moat_identity_create(c.policy, inv, vnic);
    c.matches.seen = malloc(c.policy->n_services + 1);
    if (!c.identity || !c.matches.seen)
        goto out;
    if ((err = is_quarantined(c.policy, inv, vnic, &quarantine)) ||
        (err = compile_rules(&c, quarantine)))
        goto out;
    err = moat_emit(&c.out, blob, len);
    if (!err && *len > MOAT_RULESET_VNIC_MAX) {
        free(*blob);
        *blob = NULL;
        err = -E2BIG;
    }

out:
    report(diags, c.policy, inv->vnics[vnic].id, err, *len, c.out.n_rules);
    if (err)
        *len = 0;
    free(c.out.rules);
    free(c.out.sets);
    free(c.out.strings);
    free(c.matches.v);
    free(c.matches.seen);
    moat_buf_destroy(&c.strings);
    moat_identity_destroy(c.identity);
    moat_policy_destroy(base);
    return err;
}
