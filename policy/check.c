/* SPDX-License-Identifier: Apache-2.0 */

/* Two checks: of the names within a policy, at the end of parsing (errors), and of
 * a policy against an inventory (warnings: an inventory changes, and a policy may
 * well speak of VMs to come). */

#include "policy/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/inventory.h"
#include "policy/member.h"
#include "policy/text.h"

struct check {
    struct moat_policy *policy;
    struct moat_diags *diags;
    unsigned errors;
};

#define ERROR(C, POS, HINT, ...)                                                                   \
    ((C)->errors++,                                                                                \
     moat_diags_add((C)->diags, MOAT_DIAG_ERROR, (C)->policy->file, POS, HINT, __VA_ARGS__))

/* --- Names defined twice ------------------------------------------------------------ */

/* One name and where it stands; sorted to find doubles. */
struct named {
    const char *name;
    struct moat_pos pos;
    uint32_t index;
};

static int by_name(const void *a_, const void *b_)
{
    const struct named *a = a_, *b = b_;
    int order = strcmp(a->name, b->name);
    return order ? order : a->index < b->index ? -1 : a->index > b->index;
}

static void find_doubles(struct check *c, struct named *v, uint32_t n, const char *what)
{
    qsort(v, n, sizeof *v, by_name);
    for (uint32_t i = 1; i < n; i++) {
        if (strcmp(v[i - 1].name, v[i].name))
            continue;
        char hint[64];
        uint32_t first = i - 1;
        while (first > 0 && !strcmp(v[first - 1].name, v[i].name))
            first--;
        snprintf(hint, sizeof hint, "the first one is in line %u", v[first].pos.line);
        ERROR(c, v[i].pos, hint, "%s `%s` is defined twice", what, v[i].name);
    }
}

static uint32_t *sorted_indices(struct check *c, const struct named *v, uint32_t n)
{
    uint32_t *index = moat_arena_alloc(&c->policy->arena, (n + 1) * sizeof *index);
    for (uint32_t i = 0; index && i < n; i++)
        index[i] = v[i].index;
    return index;
}

static bool index_names(struct check *c)
{
    struct moat_policy *y = c->policy;
    uint32_t most = y->n_rules > MOAT_POLICY_MAX_GROUPS ? y->n_rules : MOAT_POLICY_MAX_GROUPS;
    struct named *v = malloc(most * sizeof *v);
    if (!v) {
        y->arena.failed = true;
        return false;
    }

    for (uint32_t i = 0; i < y->n_groups; i++)
        v[i] = (struct named){y->groups[i].name, y->groups[i].pos, i};
    find_doubles(c, v, y->n_groups, "group");
    y->group_index = sorted_indices(c, v, y->n_groups);

    for (uint32_t i = 0; i < y->n_services; i++)
        v[i] = (struct named){y->services[i].name, y->services[i].pos, i};
    find_doubles(c, v, y->n_services, "service");
    y->service_index = sorted_indices(c, v, y->n_services);

    for (uint32_t i = 0; i < y->n_tiers; i++)
        v[i] = (struct named){y->tiers[i].name, y->tiers[i].pos, i};
    find_doubles(c, v, y->n_tiers - (y->n_tiers && y->tiers[y->n_tiers - 1].builtin), "tier");

    uint32_t n = 0;
    for (uint32_t i = 0; i < y->n_rules; i++)
        if (y->rules[i].name && !y->tiers[y->rules[i].tier].builtin)
            v[n++] = (struct named){y->rules[i].name, y->rules[i].pos, i};
    find_doubles(c, v, n, "rule");

    free(v);
    return !y->arena.failed;
}

/* --- References ---------------------------------------------------------------------- */

/* The hint for an unknown name: the nearest known one. */
static const char *nearest(const char *name,
                           const char *(*get)(const struct moat_policy *, uint32_t),
                           const struct moat_policy *y, uint32_t n, char *buf, size_t size,
                           const char *otherwise)
{
    unsigned best = 3;
    for (uint32_t i = 0; i < n; i++) {
        unsigned d = moat_text_distance(name, get(y, i));
        if (d < best) {
            best = d;
            snprintf(buf, size, "did you mean `%s`?", get(y, i));
        }
    }
    return best < 3 ? buf : otherwise;
}

static const char *group_name(const struct moat_policy *y, uint32_t i)
{
    if (i < y->n_groups)
        return y->groups[i].name;
    return moat_ast_builtin_name(i - y->n_groups);
}

static const char *service_name(const struct moat_policy *y, uint32_t i)
{
    return y->services[i].name;
}

static void resolve_terms(struct check *c, struct ast_terms *ts)
{
    for (uint32_t i = 0; i < ts->n; i++) {
        struct ast_term *t = &ts->v[i];
        if (t->kind != TERM_GROUP)
            continue;
        int64_t found = moat_ast_find_group(c->policy, t->text);
        if (found >= 0) {
            t->ref = (uint32_t)found;
            continue;
        }
        char buf[MOAT_POLICY_MAX_NAME + 32];
        ERROR(c, t->pos,
              nearest(t->text, group_name, c->policy, c->policy->n_groups + N_BUILTIN_TERMS, buf,
                      sizeof buf, "define it: group NAME = vms labelled KEY=VALUE"),
              "there is no group `%s`", t->text);
    }
}

static void resolve_expr(struct check *c, struct ast_expr *e)
{
    resolve_terms(c, &e->with);
    resolve_terms(c, &e->except);
}

static void resolve_items(struct check *c, struct ast_items *items)
{
    for (uint32_t i = 0; i < items->n; i++) {
        struct ast_item *it = &items->v[i];
        if (it->kind != ITEM_SERVICE)
            continue;
        int64_t found = moat_ast_find_service(c->policy, it->name);
        if (found >= 0) {
            it->ref = (uint32_t)found;
            continue;
        }
        char buf[MOAT_POLICY_MAX_NAME + 32];
        ERROR(c, it->pos,
              nearest(it->name, service_name, c->policy, c->policy->n_services, buf, sizeof buf,
                      "define it: service NAME = tcp PORT"),
              "there is no service `%s`", it->name);
    }
}

/* --- Cycles and depth ------------------------------------------------------------------ */

/* Depth of a group or service: 1 + that of the deepest one in it.  While it is
 * being found, it is BUSY: meeting it then is a cycle.  After an error it is 1,
 * so that one mistake gives one message. */
#define BUSY UINT32_MAX
/* Stops the recursion on the way down. */
#define TOO_DEEP 1000

static uint32_t group_depth(struct check *c, uint32_t i, unsigned level);

static uint32_t terms_depth(struct check *c, const struct ast_terms *ts, unsigned level)
{
    uint32_t deepest = 0;
    for (uint32_t i = 0; i < ts->n; i++) {
        if (ts->v[i].kind != TERM_GROUP)
            continue;
        uint32_t ref = ts->v[i].ref, d = 1;
        if (c->policy->groups[ref].depth == BUSY)
            ERROR(c, ts->v[i].pos, NULL, "group `%s` contains itself", ts->v[i].text);
        else
            d = group_depth(c, ref, level);
        if (d > deepest)
            deepest = d;
    }
    return deepest;
}

static uint32_t group_depth(struct check *c, uint32_t i, unsigned level)
{
    struct ast_group *g = &c->policy->groups[i];
    if (g->depth)
        return g->depth;
    if (level > TOO_DEEP)
        return MOAT_POLICY_MAX_DEPTH;
    g->depth = BUSY;
    uint32_t with = terms_depth(c, &g->expr.with, level + 1);
    uint32_t except = terms_depth(c, &g->expr.except, level + 1);
    g->depth = 1 + (with > except ? with : except);
    if (g->depth > MOAT_POLICY_MAX_DEPTH) {
        char hint[40];
        snprintf(hint, sizeof hint, "at most %d levels", MOAT_POLICY_MAX_DEPTH);
        ERROR(c, g->pos, hint, "group `%s` is nested too deeply", g->name);
        g->depth = 1;
    }
    return g->depth;
}

static uint32_t service_depth(struct check *c, uint32_t i, unsigned level)
{
    struct ast_service *s = &c->policy->services[i];
    if (s->depth)
        return s->depth;
    if (level > TOO_DEEP)
        return MOAT_POLICY_MAX_DEPTH;
    s->depth = BUSY;
    uint32_t deepest = 0;
    for (uint32_t k = 0; k < s->items.n; k++) {
        const struct ast_item *it = &s->items.v[k];
        if (it->kind != ITEM_SERVICE)
            continue;
        uint32_t d = 1;
        if (c->policy->services[it->ref].depth == BUSY)
            ERROR(c, it->pos, NULL, "service `%s` contains itself", it->name);
        else
            d = service_depth(c, it->ref, level + 1);
        if (d > deepest)
            deepest = d;
    }
    s->depth = 1 + deepest;
    if (s->depth > MOAT_POLICY_MAX_DEPTH) {
        char hint[40];
        snprintf(hint, sizeof hint, "at most %d levels", MOAT_POLICY_MAX_DEPTH);
        ERROR(c, s->pos, hint, "service `%s` is nested too deeply", s->name);
        s->depth = 1;
    }
    return s->depth;
}

/* --- What fits where -------------------------------------------------------------------- */

/* Settings are of VMs: a group that names addresses cannot have any.  Marks groups
 * that were looked at; returns the first term that does not fit, or NULL. */
static const struct ast_term *not_a_vm(const struct moat_policy *y, const struct ast_expr *e,
                                       uint8_t *seen)
{
    const struct ast_terms *lists[] = {&e->with, &e->except};
    for (unsigned k = 0; k < 2; k++) {
        for (uint32_t i = 0; i < lists[k]->n; i++) {
            const struct ast_term *t = &lists[k]->v[i];
            if (t->kind == TERM_ANY || moat_ast_term_is_vm(t->kind))
                continue;
            if (t->kind != TERM_GROUP)
                return t;
            if (seen[t->ref])
                continue;
            seen[t->ref] = 1;
            if (not_a_vm(y, &y->groups[t->ref].expr, seen))
                return t;
        }
    }
    return NULL;
}

static bool check_settings(struct check *c)
{
    struct moat_policy *y = c->policy;
    uint8_t *seen = malloc(y->n_groups + 1);
    if (!seen) {
        y->arena.failed = true;
        return false;
    }
    for (uint32_t i = 0; i < y->n_settings; i++) {
        memset(seen, 0, y->n_groups + 1);
        const struct ast_term *t = not_a_vm(y, &y->settings[i].vms, seen);
        if (t)
            ERROR(c, t->pos, "name VMs here: any, vm \"NAME\", vms labelled KEY=VALUE",
                  "settings are for VMs, not for addresses");
    }
    free(seen);
    return true;
}

static void check_tiers(struct check *c)
{
    const struct moat_policy *y = c->policy;
    for (uint32_t i = 0; i + 1 < y->n_tiers; i++)
        if (y->tiers[i].base)
            ERROR(c, y->tiers[i].pos, "it is judged last, so it stands last",
                  "`tier base` is not the last tier");
}

unsigned moat_check_names(struct moat_policy *y, struct moat_diags *diags)
{
    struct check c = {y, diags, 0};

    if (!index_names(&c))
        return 1;
    for (uint32_t i = 0; i < y->n_groups; i++)
        resolve_expr(&c, &y->groups[i].expr);
    for (uint32_t i = 0; i < y->n_services; i++)
        resolve_items(&c, &y->services[i].items);
    for (uint32_t i = 0; i < y->n_rules; i++) {
        resolve_expr(&c, &y->rules[i].from);
        resolve_expr(&c, &y->rules[i].to);
        resolve_items(&c, &y->rules[i].services);
    }
    for (uint32_t i = 0; i < y->n_settings; i++)
        resolve_expr(&c, &y->settings[i].vms);
    check_tiers(&c);
    if (c.errors)
        return c.errors; /* references that lead nowhere are not to be followed */

    for (uint32_t i = 0; i < y->n_groups; i++)
        group_depth(&c, i, 0);
    for (uint32_t i = 0; i < y->n_services; i++)
        service_depth(&c, i, 0);
    if (!c.errors && !check_settings(&c))
        return 1;
    return c.errors;
}

/* --- Against an inventory ------------------------------------------------------------------ */

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

struct stock {
    const struct moat_policy *policy;
    const struct moat_inventory *inv;
    struct moat_diags *diags;
    const char **names, **uuids; /* of all VMs, sorted */
};

static unsigned how_many(const char **v, unsigned n, const char *name)
{
    const char **at = n ? bsearch(&name, v, n, sizeof *v, compare_strings) : NULL;
    if (!at)
        return 0;
    const char **lo = at, **hi = at + 1;
    while (lo > v && !strcmp(lo[-1], name))
        lo--;
    while (hi < v + n && !strcmp(*hi, name))
        hi++;
    return (unsigned)(hi - lo);
}

static bool label_matches_any(const struct moat_inventory *inv, const struct ast_term *t)
{
    for (unsigned i = 0; i < inv->n_vms; i++)
        if (moat_member_term(t, &inv->vms[i]))
            return true;
    return false;
}

static void warn_term(const struct stock *s, const struct ast_term *t)
{
    const char *file = s->policy->file;
    unsigned n;
    switch (t->kind) {
    case TERM_VM_NAME:
        n = how_many(s->names, s->inv->n_vms, t->text);
        if (n == 0)
            moat_diags_add(s->diags, MOAT_DIAG_WARNING, file, t->pos, NULL,
                           "there is no VM named \"%s\"", t->text);
        else if (n > 1)
            moat_diags_add(s->diags, MOAT_DIAG_WARNING, file, t->pos,
                           "to mean one of them, write vm uuid UUID",
                           "%u VMs are named \"%s\", all of them are meant", n, t->text);
        break;
    case TERM_VM_UUID:
        if (!how_many(s->uuids, s->inv->n_vms, t->text))
            moat_diags_add(s->diags, MOAT_DIAG_WARNING, file, t->pos, NULL,
                           "there is no VM with UUID %s", t->text);
        break;
    case TERM_LABELS:
        if (!label_matches_any(s->inv, t))
            moat_diags_add(s->diags, MOAT_DIAG_WARNING, file, t->pos, NULL,
                           "no VM is labelled %s=%s%s", t->labels[0].key, t->labels[0].value,
                           t->n > 1 ? " and the rest" : "");
        break;
    default:
        break;
    }
}

static void warn_expr(const struct stock *s, const struct ast_expr *e)
{
    for (uint32_t i = 0; i < e->with.n; i++)
        warn_term(s, &e->with.v[i]);
    for (uint32_t i = 0; i < e->except.n; i++)
        warn_term(s, &e->except.v[i]);
}

/* Groups of VMs without a member that have not got a warning of their own. */
static void warn_empty_groups(const struct stock *s)
{
    const struct moat_policy *y = s->policy;
    uint8_t *seen = calloc(2, (size_t)y->n_groups + 1);
    struct moat_member m;
    if (!seen || moat_member_init(&m, y, s->inv)) {
        free(seen);
        return;
    }
    uint8_t *full = seen + y->n_groups + 1;
    for (unsigned vm = 0; vm < s->inv->n_vms; vm++) {
        moat_member_vm(&m, vm);
        for (uint32_t g = 0; g < y->n_groups; g++)
            full[g] |= moat_member_group(&m, g);
    }
    for (uint32_t g = 0; g < y->n_groups; g++) {
        const struct ast_expr *e = &y->groups[g].expr;
        memset(seen, 0, y->n_groups + 1);
        /* A single term has been warned of. */
        if (full[g] || not_a_vm(y, e, seen) ||
            (e->with.n == 1 && e->except.n == 0 && e->with.v[0].kind != TERM_GROUP))
            continue;
        moat_diags_add(s->diags, MOAT_DIAG_WARNING, y->file, y->groups[g].pos, NULL,
                       "group `%s` is empty", y->groups[g].name);
    }
    moat_member_destroy(&m);
    free(seen);
}

void moat_policy_check(const struct moat_policy *y, const struct moat_inventory *inv,
                       struct moat_diags *diags)
{
    struct stock s = {y, inv, diags, NULL, NULL};

    s.names = malloc((inv->n_vms + 1) * sizeof *s.names);
    s.uuids = malloc((inv->n_vms + 1) * sizeof *s.uuids);
    if (!s.names || !s.uuids)
        goto out;
    for (unsigned i = 0; i < inv->n_vms; i++) {
        s.names[i] = inv->vms[i].name;
        s.uuids[i] = inv->vms[i].uuid;
    }
    qsort(s.names, inv->n_vms, sizeof *s.names, compare_strings);
    qsort(s.uuids, inv->n_vms, sizeof *s.uuids, compare_strings);
    for (uint32_t i = 0; i < y->n_groups; i++)
        warn_expr(&s, &y->groups[i].expr);
    for (uint32_t i = 0; i < y->n_rules; i++) {
        if (y->tiers[y->rules[i].tier].builtin)
            continue;
        warn_expr(&s, &y->rules[i].from);
        warn_expr(&s, &y->rules[i].to);
    }
    for (uint32_t i = 0; i < y->n_settings; i++)
        warn_expr(&s, &y->settings[i].vms);
    warn_empty_groups(&s);
    moat_diags_sort(diags);

out:
    free(s.names);
    free(s.uuids);
}
