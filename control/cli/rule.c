/* SPDX-License-Identifier: Apache-2.0 */
/* moatctl rule: which rules decided how often on this host. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "openvswitch/dynamic-string.h"
#include "engine.h"
#include "out.h"
#include "policy/policy.h"
#include "text.h"
#include "util.h"

static const struct out_column columns[] = {
    {"rule", "RULE", OUT_RIGHT},  {"line", "LINE", OUT_RIGHT}, {"hits", "HITS", OUT_RIGHT},
    {"vnics", "VNICS", OUT_FLEX}, {"text", "TEXT", OUT_FLEX},  {"generation", NULL, 0},
    {"builtin", NULL, 0},         {"hits_by_vnic", NULL, 0},
};

/* One rule's hits at one slot. */
struct hit {
    uint64_t generation;
    uint32_t rule;
    uint64_t hits;
    const char *vnic;
};

struct hits {
    struct hit *all;
    size_t n, allocated;
};

static void add(struct hits *h, const struct moat_slot_info *slot, uint32_t rule, uint64_t hits)
{
    if (h->n >= h->allocated)
        h->all = x2nrealloc(h->all, &h->allocated, sizeof *h->all);
    h->all[h->n++] = (struct hit){slot->generation, rule, hits, slot->conf.vnic};
}

/* By generation, then in policy order: the default, 0, is last. */
static int compare(const void *a, const void *b)
{
    const struct hit *x = a, *y = b;
    uint32_t rx = x->rule - 1, ry = y->rule - 1;

    if (x->generation != y->generation)
        return x->generation < y->generation ? -1 : 1;
    if (rx != ry)
        return rx < ry ? -1 : 1;
    return strcmp(x->vnic, y->vnic);
}

static bool collect(const struct cli *cli, struct moat_ctl *c, const struct moat_slot_info *slots,
                    size_t n, struct hits *h)
{
    for (size_t i = 0; i < n; i++) {
        struct moat_rule_hit *hits;
        size_t n_hits;

        if (!slots[i].has_ruleset)
            continue;
        if (moat_ctl_rule_hits(c, slots[i].conf.vnic, &hits, &n_hits)) {
            engine_say(cli, c);
            return false;
        }
        for (size_t k = 0; k < n_hits; k++)
            add(h, &slots[i], hits[k].rule, hits[k].hits);
        free(hits);
    }
    return true;
}

/* Rules of the policy that no slot has counted are listed too: with 0. */
static void add_silent(const struct rulebook *book, const struct moat_slot_info *slots, size_t n,
                       struct hits *h)
{
    static const struct moat_slot_info nowhere;
    struct moat_slot_info here = nowhere;
    bool in_force = false;

    for (size_t i = 0; i < n; i++)
        in_force |= slots[i].has_ruleset && slots[i].generation == book->generation;
    if (!book->policy || !in_force)
        return;
    here.generation = book->generation;
    for (uint32_t r = 0; r <= moat_policy_n_rules(book->policy); r++) {
        bool found = false;

        for (size_t i = 0; i < h->n && !found; i++)
            found = h->all[i].rule == r && h->all[i].generation == book->generation;
        if (!found) {
            add(h, &here, r, 0);
            h->all[h->n - 1].vnic = "";
        }
    }
}

/* One row for hits [from, to) of one rule. */
static void put_rule(struct out *o, const struct hits *h, size_t from, size_t to,
                     struct rulebook *book)
{
    const struct hit *first = &h->all[from];
    struct json *by_vnic = json_object_create();
    struct ds vnics = DS_EMPTY_INITIALIZER;
    uint64_t sum = 0;
    unsigned line;
    bool is_builtin;

    for (size_t i = from; i < to; i++) {
        const struct hit *x = &h->all[i];

        sum += x->hits;
        if (!*x->vnic || !x->hits)
            continue;
        json_object_put_nocopy(by_vnic, text_utf8(x->vnic),
                               json_integer_create((long long)MIN(x->hits, (uint64_t)INT64_MAX)));
        ds_put_format(&vnics, "%s%s=%" PRIu64, vnics.length ? ", " : "", x->vnic, x->hits);
    }
    const char *text = rulebook_text(book, first->generation, first->rule, &line, &is_builtin);

    out_row(o);
    out_value(o, "rule", json_integer_create(first->rule), first->rule ? NULL : xstrdup("default"));
    out_value(o, "line", line ? json_integer_create(line) : json_null_create(),
              line ? xasprintf("%s%u", is_builtin ? "base:" : "", line) : xstrdup(""));
    out_bool(o, "builtin", is_builtin);
    out_count(o, "hits", sum);
    out_value(o, "vnics", NULL, ds_steal_cstr(&vnics));
    out_value(o, "hits_by_vnic", by_vnic, NULL);
    out_integer(o, "generation", (int64_t)first->generation);
    if (text)
        out_string(o, "text", text);
    else
        out_value(o, "text", json_null_create(),
                  xasprintf("(of generation %" PRIu64 ")", first->generation));
}

static void print_rules(const struct cli *cli, struct hits *h, struct rulebook *book)
{
    struct out *o = out_create(columns, ARRAY_SIZE(columns), cli->json ? OUT_JSON : OUT_TABLE);

    if (h->n)
        qsort(h->all, h->n, sizeof *h->all, compare);
    for (size_t i = 0, next; i < h->n; i = next) {
        for (next = i + 1; next < h->n && h->all[next].rule == h->all[i].rule &&
                           h->all[next].generation == h->all[i].generation;
             next++)
            continue;
        put_rule(o, h, i, next, book);
    }
    out_end(o, stdout);
    out_destroy(o);
}

static int list_rules(const struct cli *cli)
{
    struct moat_slot_info *slots = NULL;
    struct hits h = {.n = 0};
    struct rulebook book;
    struct moat_ctl *c;
    bool ok = false;
    size_t n;

    if (!engine_open(cli, &c))
        return CLI_FAILED;
    if (engine_slots(cli, c, cli->opts[CLI_OPT_VNIC], cli->opts[CLI_OPT_VM], &slots, &n) &&
        (ok = collect(cli, c, slots, n, &h))) {
        rulebook_open(&book, cli);
        if (!book.policy && h.n)
            cli_error("the texts of rules are not known: the Moat database at %s: %s",
                      cli->db_remote, book.why);
        add_silent(&book, slots, n, &h);
        print_rules(cli, &h, &book);
        rulebook_close(&book);
    }
    free(h.all);
    free(slots);
    moat_ctl_close(c);
    return ok ? CLI_OK : CLI_FAILED;
}

const struct cli_command rule_commands[] = {
    {"rule list", "", "list rules with their hits on this host",
     "In policy order, the default last. HITS are packets that the rule decided: new\n"
     "sessions and refusals, summed over this host's vNICs; VNICS says of which. LINE is\n"
     "where the rule stands in the policy (moatctl policy show), or in the built-in base tier\n"
     "(moatctl policy base).",
     CLI_O(VM) | CLI_O(VNIC), 0, 0, true, list_rules},
    {.name = NULL},
};
