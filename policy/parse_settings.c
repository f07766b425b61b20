/* SPDX-License-Identifier: Apache-2.0 */

/* Blocks of settings.  What there is stands in the table of settings.c; here is how
 * values are written. */

#include <stdio.h>
#include <string.h>

#include "policy/parse.h"
#include "policy/settings.h"
#include "policy/text.h"

#define SECOND 1000u
#define DAY (24 * 3600 * SECOND)

/* --- Values ---------------------------------------------------------------------------- */

/* A duration in milliseconds: "800ms", "60s", "2m", "12h", "7d".  False: not one, or above
 * 7 days. */
static bool parse_duration(const struct lex_token *t, uint32_t *ms)
{
    static const struct {
        const char *unit;
        uint32_t ms;
    } units[] = {
        {"ms", 1}, {"s", SECOND}, {"m", 60 * SECOND}, {"h", 3600 * SECOND}, {"d", DAY},
    };
    struct lex_token digits = *t;
    uint32_t v;

    digits.len = 0;
    while (digits.len < t->len && t->text[digits.len] >= '0' && t->text[digits.len] <= '9')
        digits.len++;
    if (t->kind != LEX_WORD || !moat_parse_number(&digits, 7 * DAY, &v))
        return false;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t n = strlen(units[i].unit);
        if (t->len - digits.len == n && !memcmp(t->text + digits.len, units[i].unit, n)) {
            if (v > 7 * DAY / units[i].ms)
                return false;
            *ms = v * units[i].ms;
            return true;
        }
    }
    return false;
}

static bool parse_choice(struct parser *p, const struct setting_def *def, struct ast_setting *s)
{
    for (uint32_t i = 0; i < sizeof def->words / sizeof *def->words && def->words[i]; i++) {
        if (moat_parse_is(p, def->words[i])) {
            s->value = i;
            moat_parse_advance(p);
            return true;
        }
    }
    return moat_parse_unexpected(p, def->wanted, def->hint);
}

static bool parse_fail(struct parser *p, const struct setting_def *def, struct ast_setting *s)
{
    uint32_t ms;

    if (!parse_choice(p, def, s))
        return false;
    if (s->value != MOAT_FAIL_PICKUP || p->tok.kind != LEX_WORD)
        return true;
    if (!parse_duration(&p->tok, &ms) || ms < SECOND || ms > MOAT_PICKUP_MAX * SECOND ||
        ms % SECOND)
        return moat_parse_unexpected(p, "1s to 24 hours in seconds", "write: pickup 60s");
    s->pickup_s = ms / SECOND;
    moat_parse_advance(p);
    return true;
}

static bool parse_time(struct parser *p, const struct setting_def *def, struct ast_setting *s)
{
    if (!parse_duration(&p->tok, &s->value) || s->value < def->min || s->value > def->max ||
        s->value % def->unit)
        return moat_parse_unexpected(p, def->wanted, def->hint);
    moat_parse_advance(p);
    return true;
}

static bool parse_count(struct parser *p, const struct setting_def *def, struct ast_setting *s)
{
    if (!moat_parse_number(&p->tok, def->max, &s->value))
        return moat_parse_unexpected(p, def->wanted, def->hint);
    moat_parse_advance(p);
    return true;
}

/* "0x88cc".  An ethertype in decimal is a mistake more often than not. */
static bool hex16(const struct lex_token *t, uint32_t *out)
{
    *out = 0;
    if (t->kind != LEX_WORD || t->len < 3 || t->len > 6 || t->text[0] != '0' ||
        (t->text[1] | 0x20) != 'x')
        return false;
    for (uint32_t i = 2; i < t->len; i++) {
        char c = t->text[i];
        unsigned digit;
        if (c >= '0' && c <= '9')
            digit = (unsigned)(c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            digit = (unsigned)((c | 0x20) - 'a' + 10);
        else
            return false;
        *out = *out << 4 | digit;
    }
    return true;
}

static bool add_ethertype(struct parser *p, struct ast_setting *s, uint32_t type)
{
    const char *why = moat_setting_bad_ethertype(type);

    if (why)
        return moat_parse_fail(p, p->tok.pos, why, "ethertype 0x%04x cannot be let through", type);
    for (uint32_t i = 0; i < s->value; i++)
        if (s->ethertypes[i] == type)
            return moat_parse_fail(p, p->tok.pos, NULL, "ethertype 0x%04x twice", type);
    if (s->value == MOAT_ETHERTYPES_MAX)
        return moat_parse_fail(p, p->tok.pos, NULL, "more than %d ethertypes", MOAT_ETHERTYPES_MAX);
    s->ethertypes[s->value++] = (uint16_t)type;
    return true;
}

static bool parse_ethertypes(struct parser *p, const struct setting_def *def, struct ast_setting *s)
{
    bool ok = true;
    uint32_t type;

    if (moat_parse_is(p, "none")) {
        moat_parse_advance(p);
        return true;
    }
    for (;;) {
        if (!hex16(&p->tok, &type))
            return moat_parse_unexpected(p, s->value ? "an ethertype" : def->wanted, def->hint);
        ok = add_ethertype(p, s, type) && ok;
        moat_parse_advance(p);
        if (p->tok.kind != LEX_COMMA)
            return ok;
        moat_parse_advance(p);
        moat_parse_skip_newline(p);
    }
}

static bool parse_value(struct parser *p, struct ast_setting *s)
{
    const struct setting_def *def = moat_setting_def(s->key);

    switch (def->kind) {
    case SETTING_CHOICE:
        return parse_choice(p, def, s);
    case SETTING_FAIL:
        return parse_fail(p, def, s);
    case SETTING_TIME:
        return parse_time(p, def, s);
    case SETTING_NUMBER:
        return parse_count(p, def, s);
    case SETTING_ETHER_TYPES:
        return parse_ethertypes(p, def, s);
    }
    return false;
}

/* --- Names ------------------------------------------------------------------------------- */

#define TIMER "timer"

/* What a timer is called behind the word `timer`, another setting as a whole. */
static const char *own_name(enum ast_setting_key key)
{
    return key >= SETTING_TIMERS ? moat_timer_name(key - SETTING_TIMERS)
                                 : moat_ast_setting_name(key);
}

/* The token is none of the names of first to last - 1. */
static bool no_such_name(struct parser *p, const char *wanted, enum ast_setting_key first,
                         enum ast_setting_key last)
{
    char hint[400] = "there are ";
    size_t n = strlen(hint);
    unsigned best = 3;
    const char *word = p->tok.kind == LEX_WORD ? moat_parse_dup(p) : NULL;

    for (enum ast_setting_key k = first; k < last && n < sizeof hint; k++)
        n += (size_t)snprintf(hint + n, sizeof hint - n, "%s%s", own_name(k),
                              k + 1 == last                              ? ""
                              : k + 2 == last && first == SETTING_TIMERS ? " and "
                                                                         : ", ");
    if (first < SETTING_TIMERS && n < sizeof hint)
        snprintf(hint + n, sizeof hint - n, " and " TIMER " NAME");
    for (enum ast_setting_key k = first; word && k < last; k++) {
        unsigned d = moat_text_distance(word, own_name(k));
        if (d < best) {
            best = d;
            snprintf(hint, sizeof hint, "did you mean `%s`?", own_name(k));
        }
    }
    return moat_parse_unexpected(p, wanted, hint);
}

static bool parse_name(struct parser *p, struct ast_setting *s)
{
    bool timer = moat_parse_is(p, TIMER);
    enum ast_setting_key first = timer ? SETTING_TIMERS : 0;
    enum ast_setting_key last = timer ? N_SETTINGS : SETTING_TIMERS;

    if (timer)
        moat_parse_advance(p);
    for (enum ast_setting_key k = first; k < last; k++) {
        if (moat_parse_is(p, own_name(k))) {
            s->key = k;
            moat_parse_advance(p);
            return true;
        }
    }
    for (unsigned t = 0; !timer && t < MOAT_N_TIMERS; t++)
        if (moat_parse_is(p, moat_timer_name(t))) {
            char hint[80];
            snprintf(hint, sizeof hint, "write: " TIMER " %s 90s", moat_timer_name(t));
            return moat_parse_unexpected(p, "a setting", hint);
        }
    return no_such_name(p, timer ? "the name of a timer" : "a setting", first, last);
}

/* --- Blocks ------------------------------------------------------------------------------- */

static bool parse_setting(struct parser *p, struct ast_notes notes, void *aux)
{
    struct ast_settings *block = aux;
    struct ast_setting s = {.pos = p->tok.pos};

    if (!parse_name(p, &s) || !parse_value(p, &s) || !moat_parse_finish(p, &notes))
        return false;
    for (uint32_t i = 0; i < block->n; i++)
        if (block->v[i].key == s.key)
            return moat_parse_fail(p, s.pos, NULL, "`%s` twice in one block",
                                   moat_ast_setting_name(s.key));
    struct ast_setting *v = moat_arena_grow(p->arena, block->v, block->n, &block->cap, sizeof *v);
    if (!v)
        return false;
    s.notes = notes;
    block->v = v;
    v[block->n++] = s;
    return true;
}

bool moat_parse_settings(struct parser *p, struct ast_notes notes)
{
    static const char hint[] = "write: settings for any { tcp strict }";
    struct moat_policy *y = p->policy;
    struct ast_settings s = {.pos = p->tok.pos};
    bool ok = true;

    moat_parse_advance(p);
    if (!moat_parse_is(p, "for")) {
        ok = moat_parse_unexpected(p, "`for`", hint);
    } else {
        moat_parse_advance(p);
        ok = moat_parse_expr(p, &s.vms);
    }
    if (ok && p->tok.kind != LEX_LBRACE)
        ok = moat_parse_unexpected(p, "`{`", hint);
    if (p->stop || (!ok && !moat_parse_sync_block(p)))
        return false;
    p->inner = (struct ast_notes){0};
    ok = moat_parse_block(p, &notes, &s.tail, parse_setting, &s) && ok;
    s.notes = notes;
    if (!ok || !MOAT_PARSE_GROW(p, settings, MOAT_POLICY_MAX_GROUPS, "settings blocks"))
        return false;
    y->settings[y->n_settings++] = s;
    return moat_parse_add_stmt(p, STMT_SETTINGS, y->n_settings - 1);
}
