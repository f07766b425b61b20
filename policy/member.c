/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/member.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int moat_member_init(struct moat_member *m, const struct moat_policy *y,
                     const struct moat_inventory *inv)
{
    *m = (struct moat_member){.policy = y, .inv = inv};
    m->memo = malloc(y->n_groups + 1);
    m->vnics = calloc(inv->n_vnics + 1, sizeof *m->vnics);
    m->first = calloc(inv->n_vms + 2, sizeof *m->first);
    if (!m->memo || !m->vnics || !m->first) {
        moat_member_destroy(m);
        return -ENOMEM;
    }
    /* Counting sort by VM: first[] runs one ahead until all are placed. */
    for (uint32_t i = 0; i < inv->n_vnics; i++)
        m->first[inv->vnics[i].vm + 2]++;
    for (uint32_t vm = 0; vm < inv->n_vms; vm++)
        m->first[vm + 1] += m->first[vm];
    for (uint32_t i = 0; i < inv->n_vnics; i++)
        m->vnics[m->first[inv->vnics[i].vm + 1]++] = i;
    memset(m->memo, -1, y->n_groups + 1);
    return 0;
}

void moat_member_destroy(struct moat_member *m)
{
    free(m->memo);
    free(m->vnics);
    free(m->first);
    *m = (struct moat_member){0};
}

void moat_member_vm(struct moat_member *m, unsigned vm)
{
    m->vm = vm;
    memset(m->memo, -1, m->policy->n_groups + 1);
}

static bool has_label(const struct inv_vm *vm, const struct ast_label *l)
{
    for (uint32_t i = 0; i < vm->n_labels; i++)
        if (!strcmp(vm->labels[i].key, l->key) && !strcmp(vm->labels[i].value, l->value))
            return true;
    return false;
}

bool moat_member_term(const struct ast_term *t, const struct inv_vm *vm)
{
    switch (t->kind) {
    case TERM_VMS:
        return true;
    case TERM_VM_NAME:
        return !strcmp(vm->name, t->text);
    case TERM_VM_UUID:
        return !strcmp(vm->uuid, t->text);
    case TERM_LABELS:
        for (uint32_t i = 0; i < t->n; i++)
            if (!has_label(vm, &t->labels[i]))
                return false;
        return true;
    default:
        return false;
    }
}

static bool in_ranges(const struct ast_term *t, const struct moat_addr *a)
{
    for (uint32_t i = 0; i < t->n; i++) {
        const struct ast_range *r = &t->ranges[i];
        if (r->family == a->family && memcmp(r->lo, a->addr, 16) <= 0 &&
            memcmp(a->addr, r->hi, 16) <= 0)
            return true;
    }
    return false;
}

/* A prefix counts by its first address. */
static bool owns_one_of(const struct moat_member *m, const struct ast_term *t)
{
    for (uint32_t i = m->first[m->vm]; i < m->first[m->vm + 1]; i++) {
        const struct inv_addrs *addrs = &m->inv->vnics[m->vnics[i]].addrs;
        for (uint32_t k = 0; k < addrs->n; k++)
            if (in_ranges(t, &addrs->v[k]))
                return true;
    }
    return false;
}

static bool terms_name(struct moat_member *m, const struct ast_terms *ts)
{
    for (uint32_t i = 0; i < ts->n; i++) {
        const struct ast_term *t = &ts->v[i];
        bool yes;
        if (t->kind == TERM_GROUP)
            yes = moat_member_group(m, t->ref);
        else if (t->kind == TERM_ADDRESSES)
            yes = owns_one_of(m, t);
        else
            yes = t->kind == TERM_ANY || moat_member_term(t, &m->inv->vms[m->vm]);
        if (yes)
            return true;
    }
    return false;
}

bool moat_member_expr(struct moat_member *m, const struct ast_expr *e)
{
    return terms_name(m, &e->with) && !terms_name(m, &e->except);
}

bool moat_member_group(struct moat_member *m, uint32_t g)
{
    if (m->memo[g] < 0)
        m->memo[g] = moat_member_expr(m, &m->policy->groups[g].expr);
    return m->memo[g];
}

bool moat_member_in_quarantine(struct moat_member *m)
{
    const struct moat_policy *y = m->policy;

    if (m->inv->vms[m->vm].quarantine)
        return true;
    for (uint32_t i = 0; i < y->n_rules; i++) {
        const struct ast_rule *r = &y->rules[i];
        if (y->tiers[r->tier].base || r->action == MOAT_LOG || r->action == MOAT_NEXT_TIER)
            continue;
        if (moat_member_expr(m, &r->from) || moat_member_expr(m, &r->to))
            return false;
    }
    return true;
}
