/* SPDX-License-Identifier: Apache-2.0 */

/* The oracle.  Asks each rule in turn, as a reader of the policy would, with the
 * inventory beside it.  Slow on purpose; takes nothing from member, identity,
 * range or compile, so that a mistake there shows. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "policy/ast.h"
#include "policy/inventory.h"
#include "policy/parse.h"

struct eval {
    const struct moat_policy *policy;
    const struct moat_inventory *inv;
    const struct inv_vnic *vnic;
    const struct inv_network *network;
    const struct moat_flow *flow;
};

/* What is asked about a group. */
enum question {
    IS_LOCAL,  /* does it hold the flow's local side? */
    IS_REMOTE, /* does it hold the flow's remote side? */
    NAMES_VM,  /* does it name the vNIC's VM? */
    N_QUESTIONS
};

/* Answers about groups, so that groups of groups are asked once. */
struct answers {
    signed char *known[N_QUESTIONS];
};

/* --- Addresses -------------------------------------------------------------------------- */

/* ARP speaks of IPv4 addresses. */
static unsigned address_family(const struct moat_flow *f)
{
    return f->family == MOAT_FAM_IP6 ? MOAT_FAM_IP6 : MOAT_FAM_IP4;
}

static bool same_prefix(const uint8_t *a, const uint8_t *b, unsigned plen)
{
    for (unsigned bit = 0; bit < plen; bit++)
        if ((a[bit / 8] ^ b[bit / 8]) >> (7 - bit % 8) & 1)
            return false;
    return true;
}

static bool in_prefix(unsigned family, const uint8_t *addr, const struct moat_addr *p)
{
    return p->family == family && same_prefix(addr, p->addr, p->plen);
}

static bool in_list(unsigned family, const uint8_t *addr, const struct inv_addrs *list)
{
    for (uint32_t i = 0; i < list->n; i++)
        if (in_prefix(family, addr, &list->v[i]))
            return true;
    return false;
}

/* How long the longest prefix is with which a vNIC claims an address; 0: it does not. */
static unsigned claim(const struct inv_vnic *c, unsigned family, const uint8_t *addr)
{
    unsigned longest = 0;
    for (uint32_t i = 0; i < c->addrs.n; i++)
        if (in_prefix(family, addr, &c->addrs.v[i]) && c->addrs.v[i].plen > longest)
            longest = c->addrs.v[i].plen;
    const uint8_t *m = c->mac;
    if (family == MOAT_FAM_IP6 && (m[0] | m[1] | m[2] | m[3] | m[4] | m[5])) {
        const uint8_t own[16] = {0xfe,     0x80, 0,    0,    0,    0,    0,    0,
                                 m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]};
        if (!memcmp(addr, own, 16))
            longest = 128;
    }
    return longest;
}

static unsigned best_claim(const struct eval *e, const uint8_t *addr)
{
    unsigned best = 0;
    for (uint32_t i = 0; i < e->inv->n_vnics; i++) {
        const struct inv_vnic *c = &e->inv->vnics[i];
        unsigned n = c->network == e->vnic->network ? claim(c, address_family(e->flow), addr) : 0;
        if (n > best)
            best = n;
    }
    return best;
}

static bool is_multicast(const struct eval *e, unsigned family, const uint8_t *a)
{
    static const uint8_t ones[4] = {255, 255, 255, 255};
    if (family == MOAT_FAM_IP6)
        return a[0] == 0xff;
    if (a[0] >= 224 && a[0] <= 239)
        return true;
    if (!memcmp(a, ones, 4))
        return true;
    for (uint32_t i = 0; i < e->network->subnets.n; i++) {
        const struct moat_addr *s = &e->network->subnets.v[i];
        bool last = in_prefix(family, a, s) && s->plen <= 30;
        for (unsigned bit = s->plen; last && bit < 32; bit++)
            last = a[bit / 8] >> (7 - bit % 8) & 1;
        if (last)
            return true;
    }
    return false;
}

static bool is_near(const struct eval *e, unsigned family, const uint8_t *a)
{
    static const uint8_t loopback[16] = {[15] = 1}, unspecified[16];
    if (in_list(family, a, &e->network->subnets))
        return true;
    if (family == MOAT_FAM_IP4)
        return a[0] == 0 || a[0] == 127 || (a[0] == 169 && a[1] == 254);
    return (a[0] == 0xfe && (a[1] & 0xc0) == 0x80) || !memcmp(a, loopback, 16) ||
           !memcmp(a, unspecified, 16);
}

static bool is_builtin(const struct eval *e, enum ast_term_kind kind, const uint8_t *a)
{
    unsigned family = address_family(e->flow);
    const struct inv_network *w = e->network;
    switch (kind) {
    case TERM_ANY:
        return true;
    case TERM_VMS:
        return best_claim(e, a) > 0;
    case TERM_GATEWAY:
        return in_list(family, a, &w->gateways);
    case TERM_ROUTER:
        return in_list(family, a, &w->routers);
    case TERM_DHCP:
        return in_list(family, a, &w->dhcp_servers);
    case TERM_METADATA:
        return in_list(family, a, &w->metadata_servers);
    case TERM_MULTICAST:
        return is_multicast(e, family, a);
    case TERM_OUTSIDE:
    case TERM_UNKNOWN:
        for (enum ast_term_kind k = TERM_GATEWAY; k <= TERM_MULTICAST; k++)
            if (is_builtin(e, k, a))
                return false;
        return best_claim(e, a) == 0 && is_near(e, family, a) == (kind == TERM_UNKNOWN);
    default:
        return false;
    }
}

/* --- Groups --------------------------------------------------------------------------------- */

static bool describes(const struct ast_term *t, const struct inv_vm *vm)
{
    if (t->kind == TERM_VMS)
        return true;
    if (t->kind == TERM_VM_NAME)
        return strcmp(t->text, vm->name) == 0;
    if (t->kind == TERM_VM_UUID)
        return strcmp(t->text, vm->uuid) == 0;
    if (t->kind != TERM_LABELS)
        return false;
    uint32_t found = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        bool has = false;
        for (uint32_t k = 0; k < vm->n_labels; k++)
            has = has || (!strcmp(t->labels[i].key, vm->labels[k].key) &&
                          !strcmp(t->labels[i].value, vm->labels[k].value));
        found += has;
    }
    return found == t->n;
}

static bool in_written_range(unsigned family, const uint8_t *a, const struct ast_range *r)
{
    size_t n = family == MOAT_FAM_IP6 ? 16 : 4;
    return r->family == family && memcmp(a, r->lo, n) >= 0 && memcmp(a, r->hi, n) <= 0;
}

static bool in_written(unsigned family, const uint8_t *a, const struct ast_term *t)
{
    for (uint32_t i = 0; i < t->n; i++)
        if (in_written_range(family, a, &t->ranges[i]))
            return true;
    return false;
}

static bool group_holds(const struct eval *, struct answers *, uint32_t group, enum question);

static bool remote_is_owned_by(const struct eval *e, const struct ast_term *t)
{
    unsigned best = best_claim(e, e->flow->remote);
    for (uint32_t i = 0; best && i < e->inv->n_vnics; i++) {
        const struct inv_vnic *c = &e->inv->vnics[i];
        if (c->network == e->vnic->network && describes(t, &e->inv->vms[c->vm]) &&
            claim(c, address_family(e->flow), e->flow->remote) == best)
            return true;
    }
    return false;
}

static bool vm_owns_written(const struct eval *e, const struct ast_term *t)
{
    for (uint32_t i = 0; i < e->inv->n_vnics; i++) {
        const struct inv_vnic *c = &e->inv->vnics[i];
        for (uint32_t k = 0; c->vm == e->vnic->vm && k < c->addrs.n; k++)
            if (in_written(c->addrs.v[k].family, c->addrs.v[k].addr, t))
                return true;
    }
    return false;
}

static bool term_holds(const struct eval *e, struct answers *ans, const struct ast_term *t,
                       enum question q)
{
    const struct inv_vm *vm = &e->inv->vms[e->vnic->vm];
    const uint8_t *addr = q == IS_LOCAL ? e->flow->local : e->flow->remote;

    if (t->kind == TERM_GROUP)
        return group_holds(e, ans, t->ref, q);
    if (q == NAMES_VM) {
        if (t->kind == TERM_ADDRESSES)
            return vm_owns_written(e, t);
        return t->kind == TERM_ANY || describes(t, vm);
    }
    if (t->kind == TERM_ADDRESSES)
        return in_written(address_family(e->flow), addr, t);
    if (q == IS_LOCAL && (t->kind == TERM_VMS || t->kind >= N_BUILTIN_TERMS))
        return describes(t, vm);
    if (t->kind < N_BUILTIN_TERMS)
        return is_builtin(e, t->kind, addr);
    return remote_is_owned_by(e, t);
}

static bool expr_holds(const struct eval *e, struct answers *ans, const struct ast_expr *x,
                       enum question q)
{
    bool in = false;
    for (uint32_t i = 0; i < x->with.n && !in; i++)
        in = term_holds(e, ans, &x->with.v[i], q);
    for (uint32_t i = 0; i < x->except.n && in; i++)
        in = !term_holds(e, ans, &x->except.v[i], q);
    return in;
}

static bool group_holds(const struct eval *e, struct answers *ans, uint32_t group, enum question q)
{
    signed char *known = &ans->known[q][group];
    if (*known < 0)
        *known = expr_holds(e, ans, &e->policy->groups[group].expr, q);
    return *known;
}

/* --- Services ------------------------------------------------------------------------------- */

static bool item_holds(const struct eval *e, const struct ast_item *it, unsigned char *asked);

static bool items_hold(const struct eval *e, const struct ast_items *items, unsigned char *asked)
{
    for (uint32_t i = 0; i < items->n; i++)
        if (item_holds(e, &items->v[i], asked))
            return true;
    return false;
}

/* `asked`: services that said no already. */
static bool item_holds(const struct eval *e, const struct ast_item *it, unsigned char *asked)
{
    const struct moat_flow *f = e->flow;
    switch (it->kind) {
    case ITEM_SERVICE:
        if (asked[it->ref])
            return false;
        asked[it->ref] = 1;
        return items_hold(e, &e->policy->services[it->ref].items, asked);
    case ITEM_ARP:
        return f->family == MOAT_FAM_ARP;
    case ITEM_PROTO:
        return f->family != MOAT_FAM_ARP && f->proto == it->proto;
    case ITEM_ICMP:
        if (f->family != MOAT_FAM_IP4)
            return false;
        break;
    case ITEM_ICMP6:
        if (f->family != MOAT_FAM_IP6)
            return false;
        break;
    case ITEM_PORTS:
        if (f->family == MOAT_FAM_ARP)
            return false;
        break;
    }
    return f->proto == it->proto &&
           (!it->has_dport || (f->dport >= it->dport_lo && f->dport <= it->dport_hi)) &&
           (!it->has_sport || (f->sport >= it->sport_lo && f->sport <= it->sport_hi));
}

/* --- Rules ----------------------------------------------------------------------------------- */

static bool rule_holds(const struct eval *e, struct answers *ans, unsigned char *asked,
                       const struct ast_rule *r)
{
    bool from_vm = e->flow->dir == MOAT_FROM_VM;
    if (!expr_holds(e, ans, &r->from, from_vm ? IS_LOCAL : IS_REMOTE) ||
        !expr_holds(e, ans, &r->to, from_vm ? IS_REMOTE : IS_LOCAL))
        return false;
    if (r->services.n == 0)
        return e->flow->family != MOAT_FAM_ARP;
    memset(asked, 0, e->policy->n_services);
    return items_hold(e, &r->services, asked);
}

static bool in_quarantine(const struct eval *e, struct answers *ans)
{
    if (e->inv->vms[e->vnic->vm].quarantine)
        return true;
    for (uint32_t i = 0; i < e->policy->n_rules; i++) {
        const struct ast_rule *r = &e->policy->rules[i];
        bool decides =
            r->action == MOAT_ALLOW || r->action == MOAT_DROP || r->action == MOAT_REJECT;
        if (decides && strcmp(e->policy->tiers[r->tier].name, "base") &&
            (expr_holds(e, ans, &r->from, NAMES_VM) || expr_holds(e, ans, &r->to, NAMES_VM)))
            return false;
    }
    return true;
}

static void decide(struct moat_decision *d, unsigned verdict, uint32_t rule, bool log, bool loose)
{
    d->verdict = (uint8_t)verdict;
    d->rule = rule;
    d->loose = loose;
    if (log && !d->logged)
        d->log_rule = rule;
    d->logged = d->logged || log;
}

static void judge(const struct eval *e, struct answers *ans, unsigned char *asked,
                  struct moat_decision *d)
{
    const struct moat_policy *y = e->policy;
    bool quarantine = in_quarantine(e, ans);

    for (uint32_t t = 0; t < y->n_tiers; t++) {
        if (quarantine && strcmp(y->tiers[t].name, "base"))
            continue;
        for (uint32_t i = y->tiers[t].first; i < y->tiers[t].first + y->tiers[t].n; i++) {
            const struct ast_rule *r = &y->rules[i];
            if (!rule_holds(e, ans, asked, r))
                continue;
            if (r->action == MOAT_NEXT_TIER)
                break;
            if (r->action == MOAT_LOG) {
                if (!d->logged)
                    d->log_rule = i + 1;
                d->logged = true;
                continue;
            }
            decide(d, r->action, i + 1, r->log, r->loose);
            return;
        }
    }
    if (quarantine)
        decide(d, MOAT_DROP, 0, false, false);
    else
        decide(d, y->default_action, 0, y->default_log, false);
}

int moat_policy_eval(const struct moat_policy *policy, const struct moat_inventory *inv,
                     unsigned vnic, const struct moat_flow *flow, struct moat_decision *out)
{
    *out = (struct moat_decision){.verdict = MOAT_DROP};
    if (vnic >= inv->n_vnics)
        return -EINVAL;
    struct moat_policy *base = NULL;
    if (!policy && !(base = moat_policy_base()))
        return -ENOMEM;

    struct eval e = {
        .policy = policy ? policy : base,
        .inv = inv,
        .vnic = &inv->vnics[vnic],
        .network = &inv->networks[inv->vnics[vnic].network],
        .flow = flow,
    };
    size_t n_groups = e.policy->n_groups, n_services = e.policy->n_services;
    unsigned char *memory = malloc(N_QUESTIONS * n_groups + n_services + 1);
    if (memory) {
        struct answers ans;
        memset(memory, -1, N_QUESTIONS * n_groups + 1);
        for (int q = 0; q < N_QUESTIONS; q++)
            ans.known[q] = (signed char *)memory + (size_t)q * n_groups;
        judge(&e, &ans, memory + N_QUESTIONS * n_groups, out);
    }
    moat_policy_destroy(base);
    int err = memory ? 0 : -ENOMEM;
    free(memory);
    return err;
}
