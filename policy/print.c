/* SPDX-License-Identifier: Apache-2.0 */

/* A policy as text, in one way only.  What is printed parses to the same policy
 * and prints as itself: comments and blank lines are kept such that they are
 * found again at the same statement. */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "policy/address.h"
#include "policy/lex.h"
#include "policy/parse.h"
#include "policy/settings.h"
#include "policy/text.h"

static void put_string(struct moat_buf *b, const char *s)
{
    moat_buf_puts(b, "\"");
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            moat_buf_puts(b, "\\");
        moat_buf_add(b, s, 1);
    }
    moat_buf_puts(b, "\"");
}

static void put_label_word(struct moat_buf *b, const char *s)
{
    if (moat_lex_is_word(s))
        moat_buf_puts(b, s);
    else
        put_string(b, s);
}

static void put_term(struct moat_buf *b, const struct ast_term *t)
{
    char text[MOAT_RANGE_TEXT];
    switch (t->kind) {
    case TERM_LABELS:
        moat_buf_puts(b, "vms labelled ");
        for (uint32_t i = 0; i < t->n; i++) {
            moat_buf_puts(b, i ? " and " : "");
            put_label_word(b, t->labels[i].key);
            moat_buf_puts(b, "=");
            put_label_word(b, t->labels[i].value);
        }
        break;
    case TERM_VM_NAME:
        moat_buf_puts(b, "vm ");
        put_string(b, t->text);
        break;
    case TERM_VM_UUID:
        moat_buf_printf(b, "vm uuid %s", t->text);
        break;
    case TERM_ADDRESSES:
        for (uint32_t i = 0; i < t->n; i++) {
            moat_range_format(&t->ranges[i], text);
            moat_buf_printf(b, "%s%s", i ? ", " : "addresses ", text);
        }
        break;
    case TERM_GROUP:
        moat_buf_puts(b, t->text);
        break;
    default:
        moat_buf_puts(b, moat_ast_builtin_name(t->kind));
        break;
    }
}

static void put_terms(struct moat_buf *b, const struct ast_terms *ts)
{
    for (uint32_t i = 0; i < ts->n; i++) {
        moat_buf_puts(b, i ? ", " : "");
        put_term(b, &ts->v[i]);
    }
}

static void put_expr(struct moat_buf *b, const struct ast_expr *e)
{
    put_terms(b, &e->with);
    if (e->except.n) {
        moat_buf_puts(b, " except ");
        put_terms(b, &e->except);
    }
}

static void put_ports(struct moat_buf *b, const char *before, uint16_t lo, uint16_t hi)
{
    moat_buf_printf(b, "%s%u", before, lo);
    if (hi != lo)
        moat_buf_printf(b, "-%u", hi);
}

static void put_icmp(struct moat_buf *b, const struct ast_item *it)
{
    bool v6 = it->kind == ITEM_ICMP6;
    moat_buf_puts(b, v6 ? "icmp6" : "icmp");
    if (!it->has_dport)
        return;
    /* The first name with this type and code, else one with the type. */
    const struct ast_icmp_name *best = NULL;
    for (unsigned i = 0; i < moat_ast_n_icmp_names; i++) {
        const struct ast_icmp_name *n = &moat_ast_icmp_names[i];
        if (n->v6 != v6 || n->type != it->dport_lo)
            continue;
        if (n->code >= 0 ? it->has_sport && n->code == it->sport_lo : !best)
            best = n;
    }
    if (best)
        moat_buf_printf(b, " %s", best->name);
    else
        moat_buf_printf(b, " %u", it->dport_lo);
    if (it->has_sport && !(best && best->code >= 0))
        moat_buf_printf(b, " code %u", it->sport_lo);
}

static void put_item(struct moat_buf *b, const struct ast_item *it)
{
    switch (it->kind) {
    case ITEM_PORTS:
        moat_buf_puts(b, it->proto == 6 ? "tcp" : it->proto == 17 ? "udp" : "sctp");
        if (it->has_dport)
            put_ports(b, " ", it->dport_lo, it->dport_hi);
        if (it->has_sport)
            put_ports(b, " from port ", it->sport_lo, it->sport_hi);
        break;
    case ITEM_PROTO:
        moat_buf_printf(b, "protocol %u", it->proto);
        break;
    case ITEM_ICMP:
    case ITEM_ICMP6:
        put_icmp(b, it);
        break;
    case ITEM_ARP:
        moat_buf_puts(b, "arp");
        break;
    case ITEM_SERVICE:
        moat_buf_puts(b, it->name);
        break;
    }
}

static void put_items(struct moat_buf *b, const struct ast_items *items)
{
    for (uint32_t i = 0; i < items->n; i++) {
        moat_buf_puts(b, i ? ", " : "");
        put_item(b, &items->v[i]);
    }
}

static void put_rule(struct moat_buf *b, const struct ast_rule *r)
{
    if (r->name) {
        moat_buf_puts(b, "rule ");
        put_string(b, r->name);
        moat_buf_puts(b, " ");
    }
    moat_buf_printf(b, "%s%s%s from ", moat_ast_action_name(r->action), r->log ? " log" : "",
                    r->loose ? " loose" : "");
    put_expr(b, &r->from);
    moat_buf_puts(b, " to ");
    put_expr(b, &r->to);
    if (r->services.n) {
        moat_buf_puts(b, " service ");
        put_items(b, &r->services);
    }
}

/* Below two minutes in seconds, as people say it; else in the largest unit that divides it. */
static void put_duration(struct moat_buf *b, uint32_t ms)
{
    static const struct {
        const char *unit;
        uint32_t s;
    } units[] = {{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}};
    uint32_t s = ms / 1000, i = 0;

    if (ms % 1000) {
        moat_buf_printf(b, "%ums", ms);
        return;
    }
    while (s % units[i].s || (s < 120 && units[i].s > 1))
        i++;
    moat_buf_printf(b, "%u%s", s / units[i].s, units[i].unit);
}

static void put_setting(struct moat_buf *b, const struct ast_setting *s)
{
    const struct setting_def *def = moat_setting_def(s->key);

    moat_buf_printf(b, "%s ", def->name);
    switch (def->kind) {
    case SETTING_CHOICE:
        moat_buf_puts(b, def->words[s->value]);
        break;
    case SETTING_FAIL:
        moat_buf_puts(b, def->words[s->value]);
        if (s->pickup_s) {
            moat_buf_puts(b, " ");
            put_duration(b, s->pickup_s * 1000);
        }
        break;
    case SETTING_TIME:
        put_duration(b, s->value);
        break;
    case SETTING_NUMBER:
        moat_buf_printf(b, "%u", s->value);
        break;
    case SETTING_ETHER_TYPES:
        if (!s->value)
            moat_buf_puts(b, "none");
        for (uint32_t i = 0; i < s->value; i++)
            moat_buf_printf(b, "%s0x%04x", i ? ", " : "", s->ethertypes[i]);
        break;
    }
}

/* --- Lines --------------------------------------------------------------------------- */

struct printer {
    struct moat_buf b;
    unsigned depth;
    bool first; /* of its block: no blank line before */
};

static void indent(struct printer *pr)
{
    for (unsigned i = 0; i < pr->depth; i++)
        moat_buf_puts(&pr->b, "    ");
}

static void put_notes(struct printer *pr, const struct ast_notes *notes)
{
    for (uint32_t i = 0; i < notes->n; i++) {
        if (!notes->lines[i]) {
            if (!pr->first)
                moat_buf_puts(&pr->b, "\n");
            continue;
        }
        indent(pr);
        moat_buf_printf(&pr->b, "#%s\n", notes->lines[i]);
        pr->first = false;
    }
}

static void begin(struct printer *pr, const struct ast_notes *notes, bool spaced)
{
    /* `spaced` statements have a blank line before them, with or without notes. */
    if (spaced && !pr->first && !(notes->n && !notes->lines[0]))
        moat_buf_puts(&pr->b, "\n");
    put_notes(pr, notes);
    indent(pr);
    pr->first = false;
}

static void end(struct printer *pr, const struct ast_notes *notes)
{
    if (notes->trail)
        moat_buf_printf(&pr->b, " #%s", notes->trail);
    moat_buf_puts(&pr->b, "\n");
}

/* Blank lines at the end of a block or file are dropped. */
static void put_tail(struct printer *pr, const struct ast_notes *tail)
{
    struct ast_notes t = *tail;
    while (t.n && !t.lines[t.n - 1])
        t.n--;
    put_notes(pr, &t);
}

static void open_block(struct printer *pr, const struct ast_notes *notes)
{
    moat_buf_puts(&pr->b, " {");
    end(pr, notes);
    pr->depth++;
    pr->first = true;
}

static void close_block(struct printer *pr, const struct ast_notes *tail)
{
    put_tail(pr, tail);
    pr->depth--;
    indent(pr);
    moat_buf_puts(&pr->b, "}\n");
    pr->first = false;
}

static void put_tier(struct printer *pr, const struct moat_policy *y, const struct ast_tier *t)
{
    moat_buf_printf(&pr->b, "tier %s", t->name);
    open_block(pr, &t->notes);
    for (uint32_t i = t->first; i < t->first + t->n; i++) {
        begin(pr, &y->rules[i].notes, false);
        put_rule(&pr->b, &y->rules[i]);
        end(pr, &y->rules[i].notes);
    }
    close_block(pr, &t->tail);
}

static void put_settings(struct printer *pr, const struct ast_settings *s)
{
    moat_buf_puts(&pr->b, "settings for ");
    put_expr(&pr->b, &s->vms);
    open_block(pr, &s->notes);
    for (uint32_t i = 0; i < s->n; i++) {
        begin(pr, &s->v[i].notes, false);
        put_setting(&pr->b, &s->v[i]);
        end(pr, &s->v[i].notes);
    }
    close_block(pr, &s->tail);
}

static void put_default(struct moat_buf *b, const struct moat_policy *y)
{
    moat_buf_printf(b, "default %s%s", moat_ast_action_name(y->default_action),
                    y->default_log ? " log" : "");
}

static void put_stmt(struct printer *pr, const struct moat_policy *y, const struct ast_stmt *st,
                     bool spaced)
{
    struct moat_buf *b = &pr->b;
    switch (st->kind) {
    case STMT_POLICY:
        begin(pr, &y->policy_notes, spaced);
        moat_buf_puts(b, "policy ");
        put_string(b, y->name);
        moat_buf_puts(b, " version 1");
        end(pr, &y->policy_notes);
        break;
    case STMT_GROUP: {
        const struct ast_group *g = &y->groups[st->index];
        begin(pr, &g->notes, spaced);
        moat_buf_printf(b, "group %s = ", g->name);
        put_expr(b, &g->expr);
        end(pr, &g->notes);
        break;
    }
    case STMT_SERVICE: {
        const struct ast_service *s = &y->services[st->index];
        begin(pr, &s->notes, spaced);
        moat_buf_printf(b, "service %s = ", s->name);
        put_items(b, &s->items);
        end(pr, &s->notes);
        break;
    }
    case STMT_TIER:
        begin(pr, &y->tiers[st->index].notes, spaced);
        put_tier(pr, y, &y->tiers[st->index]);
        break;
    case STMT_DEFAULT:
        begin(pr, &y->default_notes, spaced);
        put_default(b, y);
        end(pr, &y->default_notes);
        break;
    case STMT_SETTINGS:
        begin(pr, &y->settings[st->index].notes, spaced);
        put_settings(pr, &y->settings[st->index]);
        break;
    }
}

char *moat_policy_print(const struct moat_policy *y)
{
    struct printer pr = {.first = true};
    for (uint32_t i = 0; i < y->n_stmts; i++) {
        enum ast_stmt_kind kind = y->stmts[i].kind;
        enum ast_stmt_kind before = i ? y->stmts[i - 1].kind : kind;
        /* Kinds stand apart, and each block stands alone. */
        bool spaced = kind != before || kind == STMT_TIER || kind == STMT_SETTINGS;
        put_stmt(&pr, y, &y->stmts[i], spaced);
    }
    put_tail(&pr, &y->tail);
    return moat_buf_take(&pr.b);
}

/* --- One rule -------------------------------------------------------------------------- */

static int rule_text(const struct moat_policy *y, uint32_t id, char *buf, size_t size,
                     unsigned *line)
{
    struct moat_buf b = {0};
    unsigned at;

    if (id > y->n_rules)
        return -ENOENT;
    if (id == 0) {
        put_default(&b, y);
        at = y->has_default ? y->default_pos.line : 0;
    } else {
        put_rule(&b, &y->rules[id - 1]);
        at = y->rules[id - 1].pos.line;
    }
    if (b.failed)
        return -ENOMEM;
    int len = snprintf(buf, size, "%s", b.p);
    moat_buf_destroy(&b);
    if (line)
        *line = at;
    return len;
}

int moat_policy_rule_text(const struct moat_policy *y, uint32_t id, char *buf, size_t size,
                          unsigned *line)
{
    if (y)
        return rule_text(y, id, buf, size, line);
    struct moat_policy *base = moat_policy_base();
    if (!base)
        return -ENOMEM;
    int len = rule_text(base, id, buf, size, line);
    moat_policy_destroy(base);
    return len;
}
