/* SPDX-License-Identifier: Apache-2.0 */

/* The statements of a policy.  Newlines end statements; a line goes on after
 * `,`, `=`, `and` and `except`.  Comments and blank lines are collected on the
 * way and handed to the statement that follows. */

#include "policy/parse.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/check.h"
#include "policy/text.h"

/* --- Tokens ------------------------------------------------------------------ */

static void note(struct parser *p, struct ast_notes *notes, const char *line)
{
    if (!line && notes->n && !notes->lines[notes->n - 1])
        return; /* one blank line is enough */
    const char **v = moat_arena_grow(p->arena, notes->lines, notes->n, &notes->cap, sizeof *v);
    if (!v)
        return;
    notes->lines = v;
    v[notes->n++] = line;
}

static const char *comment_text(struct parser *p, const struct lex_token *t)
{
    return moat_arena_strndup(p->arena, t->text, t->len);
}

/* Reads blank lines and comments up to the next token, which goes to `ahead`. */
static void collect(struct parser *p)
{
    bool has_text = false;
    for (;;) {
        moat_lex_next(&p->lex, &p->ahead);
        if (p->ahead.kind == LEX_NEWLINE) {
            if (!has_text)
                note(p, &p->pending, NULL);
            has_text = false;
        } else if (p->ahead.kind == LEX_COMMENT) {
            const char *text = comment_text(p, &p->ahead);
            if (text)
                note(p, &p->pending, text);
            has_text = true;
        } else {
            break;
        }
    }
    p->has_ahead = true;
}

void moat_parse_advance(struct parser *p)
{
    p->last = p->tok.kind;
    if (p->has_ahead) {
        p->tok = p->ahead;
        p->has_ahead = false;
    } else {
        moat_lex_next(&p->lex, &p->tok);
        if (p->tok.kind == LEX_COMMENT) {
            const char *text = comment_text(p, &p->tok);
            if (p->last == LEX_RBRACE && text)
                note(p, &p->pending, text); /* what follows a block belongs to what is next */
            else
                p->trail = text;
            moat_lex_next(&p->lex, &p->tok);
        }
        if (p->tok.kind == LEX_NEWLINE)
            collect(p);
    }
    if (p->tok.kind == LEX_BAD)
        p->errors++;
    if (p->arena->failed) {
        p->stop = true;
        p->tok.kind = LEX_END;
    }
}

void moat_parse_skip_newline(struct parser *p)
{
    if (p->tok.kind != LEX_NEWLINE)
        return;
    if (p->trail)
        note(p, &p->inner, p->trail);
    p->trail = NULL;
    for (uint32_t i = 0; i < p->pending.n; i++)
        if (p->pending.lines[i])
            note(p, &p->inner, p->pending.lines[i]);
    p->pending = (struct ast_notes){0};
    moat_parse_advance(p);
}

bool moat_parse_is(const struct parser *p, const char *word)
{
    return p->tok.kind == LEX_WORD && strlen(word) == p->tok.len &&
           !memcmp(p->tok.text, word, p->tok.len);
}

char *moat_parse_dup(struct parser *p)
{
    return moat_arena_strndup(p->arena, p->tok.text, p->tok.len);
}

bool moat_parse_number(const struct lex_token *t, uint32_t max, uint32_t *out)
{
    uint32_t v = 0;
    if (t->kind != LEX_WORD || t->len == 0 || t->len > 9)
        return false;
    for (uint32_t i = 0; i < t->len; i++) {
        if (t->text[i] < '0' || t->text[i] > '9')
            return false;
        v = v * 10 + (uint32_t)(t->text[i] - '0');
    }
    *out = v;
    return v <= max;
}

/* --- Errors and recovery -------------------------------------------------------- */

bool moat_parse_fail(struct parser *p, struct moat_pos pos, const char *hint, const char *format,
                     ...)
{
    char message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    p->errors++;
    moat_diags_add(p->diags, MOAT_DIAG_ERROR, p->lex.file, pos, hint, "%s", message);
    return false;
}

static const char *describe(const struct lex_token *t, char buf[80])
{
    switch (t->kind) {
    case LEX_END:
        return "the end of the file";
    case LEX_NEWLINE:
        return "the end of the line";
    case LEX_STRING:
        snprintf(buf, 80, "\"%.*s\"", t->len > 60 ? 60 : (int)t->len, t->text);
        /* Never half a character. */
        if (t->len > 60)
            snprintf(buf, 80, "a string");
        return buf;
    default:
        if (t->len > 60)
            snprintf(buf, 80, "`%.*s...`", 60, t->text);
        else
            snprintf(buf, 80, "`%.*s`", (int)t->len, t->text);
        return buf;
    }
}

bool moat_parse_unexpected(struct parser *p, const char *wanted, const char *hint)
{
    char buf[80];
    if (p->tok.kind == LEX_BAD)
        return false;
    return moat_parse_fail(p, p->tok.pos, hint, "expected %s, found %s", wanted,
                           describe(&p->tok, buf));
}

/* To the end of the statement, over whole blocks and lines that go on.  A brace that closes an
 * outer block is left. */
static void sync(struct parser *p)
{
    unsigned depth = 0;
    for (; p->tok.kind != LEX_END; moat_parse_advance(p)) {
        if (p->tok.kind == LEX_LBRACE)
            depth++;
        else if (p->tok.kind == LEX_RBRACE && depth == 0)
            break;
        else if (p->tok.kind == LEX_RBRACE)
            depth--;
        else if (p->tok.kind == LEX_SEMICOLON && depth == 0)
            break;
        else if (p->tok.kind == LEX_NEWLINE && depth == 0 && p->last != LEX_COMMA)
            break;
    }
    p->trail = NULL;
    p->inner = (struct ast_notes){0};
}

bool moat_parse_sync_block(struct parser *p)
{
    while (p->tok.kind != LEX_END && p->tok.kind != LEX_NEWLINE && p->tok.kind != LEX_LBRACE)
        moat_parse_advance(p);
    return p->tok.kind == LEX_LBRACE;
}

/* --- Small parts ------------------------------------------------------------------ */

const char *moat_parse_string(struct parser *p, uint32_t max, const char *what)
{
    if (p->tok.kind != LEX_STRING) {
        moat_parse_unexpected(p, what, "put it between double quotes");
        return NULL;
    }
    char *s = moat_parse_dup(p);
    if (!s)
        return NULL;
    char *to = s;
    for (const char *from = s; *from; from++) {
        if (*from == '\\')
            from++;
        *to++ = *from;
    }
    *to = '\0';
    size_t len = (size_t)(to - s);
    if (len == 0 || len >= max || memchr(s, '\t', len)) {
        moat_parse_fail(p, p->tok.pos, NULL, "%s %s", what,
                        len == 0     ? "is empty"
                        : len >= max ? "is too long"
                                     : "has a tab in it");
        return NULL;
    }
    moat_parse_advance(p);
    return s;
}

const char *moat_parse_name(struct parser *p, const char *what)
{
    if (p->tok.kind != LEX_WORD) {
        moat_parse_unexpected(p, what, NULL);
        return NULL;
    }
    char *s = moat_parse_dup(p);
    if (!s)
        return NULL;
    bool ok = (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z');
    for (const char *c = s; *c; c++)
        ok = ok && *c != ':' && *c != '/' && *c != '+';
    if (!ok) {
        moat_parse_fail(p, p->tok.pos,
                        "a name starts with a letter; letters, digits, _ . and - "
                        "follow",
                        "`%.60s` cannot be %s", s, what);
        return NULL;
    }
    if (p->tok.len >= MOAT_POLICY_MAX_NAME) {
        moat_parse_fail(p, p->tok.pos, "at most 63 characters", "%s is too long", what);
        return NULL;
    }
    if (moat_ast_reserved(s)) {
        moat_parse_fail(p, p->tok.pos, "choose another name",
                        "`%s` is a word of the language and cannot be %s", s, what);
        return NULL;
    }
    moat_parse_advance(p);
    return s;
}

struct ast_notes moat_parse_take_notes(struct parser *p)
{
    struct ast_notes notes = p->pending;
    p->pending = (struct ast_notes){0};
    p->inner = (struct ast_notes){0};
    p->trail = NULL;
    return notes;
}

bool moat_parse_finish(struct parser *p, struct ast_notes *notes)
{
    if (p->tok.kind == LEX_SEMICOLON)
        moat_parse_advance(p);
    else if (p->tok.kind != LEX_NEWLINE && p->tok.kind != LEX_END && p->tok.kind != LEX_RBRACE)
        return moat_parse_unexpected(p, "the end of the line",
                                     "one statement per line, or `;` between them");
    for (uint32_t i = 0; i < p->inner.n; i++)
        note(p, notes, p->inner.lines[i]);
    p->inner = (struct ast_notes){0};
    notes->trail = p->trail;
    p->trail = NULL;
    return true;
}

bool moat_parse_grow(struct parser *p, void **v, uint32_t n, uint32_t *cap, size_t element,
                     uint32_t max, const char *what)
{
    if (n >= max) {
        p->stop = true;
        return moat_parse_fail(p, p->tok.pos, NULL, "more than %u %s", max, what);
    }
    void *more = moat_arena_grow(p->arena, *v, n, cap, element);
    if (!more)
        return false;
    *v = more;
    return true;
}

bool moat_parse_add_stmt(struct parser *p, enum ast_stmt_kind kind, uint32_t index)
{
    if (!MOAT_PARSE_GROW(p, stmts, 4 * MOAT_POLICY_MAX_GROUPS, "statements"))
        return false;
    p->policy->stmts[p->policy->n_stmts++] = (struct ast_stmt){kind, index};
    return true;
}

/* --- policy, group, service, default ----------------------------------------------- */

static bool parse_policy(struct parser *p, struct ast_notes notes)
{
    struct moat_policy *y = p->policy;
    struct moat_pos pos = p->tok.pos;
    uint32_t version;

    moat_parse_advance(p);
    const char *name = moat_parse_string(p, MOAT_POLICY_MAX_NAME, "the policy's name");
    if (y->name)
        return moat_parse_fail(p, pos, NULL, "the policy has a name already");
    y->name = name ? name : "";
    y->policy_pos = pos;
    if (!name)
        return false;
    if (!moat_parse_is(p, "version"))
        return moat_parse_unexpected(p, "`version`", "write: policy \"name\" version 1");
    moat_parse_advance(p);
    if (!moat_parse_number(&p->tok, 1, &version) || version != 1)
        return moat_parse_unexpected(p, "1", "this is version 1 of the language");
    moat_parse_advance(p);
    if (!moat_parse_finish(p, &notes))
        return false;
    if (y->n_stmts)
        return moat_parse_fail(p, pos, NULL, "`policy` must be the first statement");
    y->policy_notes = notes;
    return moat_parse_add_stmt(p, STMT_POLICY, 0);
}

static bool parse_group(struct parser *p, struct ast_notes notes)
{
    struct moat_policy *y = p->policy;

    moat_parse_advance(p);
    struct moat_pos pos = p->tok.pos;
    const char *name = moat_parse_name(p, "the name of a group");
    if (!name || !MOAT_PARSE_GROW(p, groups, MOAT_POLICY_MAX_GROUPS, "groups"))
        return false;
    uint32_t i = y->n_groups++;
    y->groups[i] = (struct ast_group){.name = name, .pos = pos, .broken = true};
    if (p->tok.kind != LEX_EQUALS)
        return moat_parse_unexpected(p, "`=`", "write: group NAME = vms labelled KEY=VALUE");
    moat_parse_advance(p);
    moat_parse_skip_newline(p);
    struct ast_expr expr = {0};
    if (!moat_parse_expr(p, &expr) || !moat_parse_finish(p, &notes))
        return false;
    y->groups[i].expr = expr;
    y->groups[i].notes = notes;
    y->groups[i].broken = false;
    return moat_parse_add_stmt(p, STMT_GROUP, i);
}

static bool parse_service(struct parser *p, struct ast_notes notes)
{
    struct moat_policy *y = p->policy;

    moat_parse_advance(p);
    struct moat_pos pos = p->tok.pos;
    const char *name = moat_parse_name(p, "the name of a service");
    if (!name || !MOAT_PARSE_GROW(p, services, MOAT_POLICY_MAX_GROUPS, "services"))
        return false;
    uint32_t i = y->n_services++;
    y->services[i] = (struct ast_service){.name = name, .pos = pos, .broken = true};
    if (p->tok.kind != LEX_EQUALS)
        return moat_parse_unexpected(p, "`=`", "write: service NAME = tcp 80, udp 53");
    moat_parse_advance(p);
    moat_parse_skip_newline(p);
    struct ast_items items = {0};
    if (!moat_parse_items(p, &items) || !moat_parse_finish(p, &notes))
        return false;
    y->services[i].items = items;
    y->services[i].notes = notes;
    y->services[i].broken = false;
    return moat_parse_add_stmt(p, STMT_SERVICE, i);
}

/* -1: not an action. */
static int parse_action(struct parser *p)
{
    static const uint8_t actions[] = {MOAT_DROP, MOAT_ALLOW, MOAT_REJECT, MOAT_NEXT_TIER, MOAT_LOG};
    for (size_t i = 0; i < sizeof actions; i++) {
        if (moat_parse_is(p, moat_ast_action_name(actions[i]))) {
            moat_parse_advance(p);
            return actions[i];
        }
    }
    return -1;
}

static bool parse_default(struct parser *p, struct ast_notes notes)
{
    struct moat_policy *y = p->policy;
    struct moat_pos pos = p->tok.pos;

    moat_parse_advance(p);
    struct lex_token at = p->tok;
    int action = parse_action(p);
    if (action != MOAT_DROP && action != MOAT_ALLOW && action != MOAT_REJECT) {
        p->tok = action < 0 ? p->tok : at;
        return moat_parse_unexpected(p, "`drop`, `reject` or `allow`", NULL);
    }
    bool log = moat_parse_is(p, "log");
    if (log)
        moat_parse_advance(p);
    if (!moat_parse_finish(p, &notes))
        return false;
    if (y->has_default)
        return moat_parse_fail(p, pos, "a policy has one default", "a second default");
    y->has_default = true;
    y->default_action = (uint8_t)action;
    y->default_log = log;
    y->default_pos = pos;
    y->default_notes = notes;
    return moat_parse_add_stmt(p, STMT_DEFAULT, 0);
}

/* --- Blocks -------------------------------------------------------------------------- */

static bool starts_statement(const struct parser *p)
{
    static const char *const words[] = {"policy", "group",   "service",
                                        "tier",   "default", "settings"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (moat_parse_is(p, words[i]))
            return true;
    return false;
}

bool moat_parse_block(struct parser *p, struct ast_notes *head, struct ast_notes *tail,
                      bool (*line)(struct parser *, struct ast_notes, void *), void *aux)
{
    struct moat_pos open = p->tok.pos;
    bool ok = true;

    moat_parse_advance(p);
    head->trail = p->trail;
    p->trail = NULL;
    while (p->tok.kind != LEX_RBRACE) {
        if (p->tok.kind == LEX_NEWLINE || p->tok.kind == LEX_SEMICOLON) {
            moat_parse_advance(p);
            continue;
        }
        if (p->stop)
            return false;
        if (p->tok.kind == LEX_END)
            return moat_parse_fail(p, open, "close it with `}`", "this block has no end");
        if (p->last == LEX_NEWLINE && starts_statement(p))
            return moat_parse_fail(p, p->tok.pos, "is a `}` missing before this line?",
                                   "`%.*s` cannot stand inside a block", (int)p->tok.len,
                                   p->tok.text);
        if (!line(p, moat_parse_take_notes(p), aux)) {
            sync(p);
            ok = false;
        }
    }
    *tail = moat_parse_take_notes(p);
    moat_parse_advance(p);
    return ok;
}

static bool parse_rule_head(struct parser *p, struct ast_rule *r)
{
    if (moat_parse_is(p, "rule")) {
        moat_parse_advance(p);
        r->name = moat_parse_string(p, MOAT_POLICY_MAX_NAME, "the rule's name");
        if (!r->name)
            return false;
    }
    struct moat_pos pos = p->tok.pos;
    int action = parse_action(p);
    if (action < 0)
        return moat_parse_unexpected(p, "an action",
                                     "a rule starts with allow, drop, reject, log or next-tier");
    r->action = (uint8_t)action;
    while (moat_parse_is(p, "log") || moat_parse_is(p, "loose")) {
        bool *flag = moat_parse_is(p, "log") ? &r->log : &r->loose;
        if (*flag)
            return moat_parse_fail(p, p->tok.pos, NULL, "`%.*s` twice", (int)p->tok.len,
                                   p->tok.text);
        *flag = true;
        moat_parse_advance(p);
    }
    if (r->loose && action != MOAT_ALLOW)
        return moat_parse_fail(p, pos, "it means that TCP sessions may start mid-stream",
                               "only `allow` can be `loose`");
    if (r->log && (action == MOAT_NEXT_TIER || action == MOAT_LOG))
        return moat_parse_fail(p, pos, "put a `log` rule before this one", "`%s` cannot have `log`",
                               moat_ast_action_name(r->action));
    return true;
}

static bool parse_rule(struct parser *p, struct ast_notes notes, void *aux)
{
    struct moat_policy *y = p->policy;
    const uint32_t *tier = aux;
    struct ast_rule r = {.pos = p->tok.pos, .tier = *tier};

    if (!parse_rule_head(p, &r))
        return false;
    if (!moat_parse_is(p, "from"))
        return moat_parse_unexpected(p, "`from`",
                                     "write: allow from GROUP to GROUP service SERVICE");
    moat_parse_advance(p);
    if (!moat_parse_expr(p, &r.from))
        return false;
    if (!moat_parse_is(p, "to"))
        return moat_parse_unexpected(p, "`to`", "write: allow from GROUP to GROUP service SERVICE");
    moat_parse_advance(p);
    if (!moat_parse_expr(p, &r.to))
        return false;
    if (moat_parse_is(p, "service")) {
        moat_parse_advance(p);
        if (!moat_parse_items(p, &r.services))
            return false;
    }
    if (!moat_parse_finish(p, &notes) || !MOAT_PARSE_GROW(p, rules, MOAT_POLICY_MAX_RULES, "rules"))
        return false;
    r.notes = notes;
    y->rules[y->n_rules++] = r;
    y->tiers[*tier].n++;
    return true;
}

static bool parse_tier(struct parser *p, struct ast_notes notes)
{
    struct moat_policy *y = p->policy;

    moat_parse_advance(p);
    struct moat_pos pos = p->tok.pos;
    const char *name = moat_parse_name(p, "the name of a tier");
    bool ok = name != NULL;
    if (ok && p->tok.kind != LEX_LBRACE)
        ok = moat_parse_unexpected(p, "`{`",
                                   "write: tier NAME { and its rules, one per line, and }");
    if (p->stop || (!ok && !moat_parse_sync_block(p)))
        return false;
    if (!MOAT_PARSE_GROW(p, tiers, MOAT_POLICY_MAX_TIERS, "tiers"))
        return false;
    uint32_t i = y->n_tiers++;
    y->tiers[i] = (struct ast_tier){
        .name = name ? name : "",
        .pos = pos,
        .first = y->n_rules,
        .base = name && !strcmp(name, "base"),
    };
    struct ast_notes tail = {0};
    ok = moat_parse_block(p, &notes, &tail, parse_rule, &i) && ok;
    y->tiers[i].notes = notes;
    y->tiers[i].tail = tail;
    return moat_parse_add_stmt(p, STMT_TIER, i) && ok;
}

/* --- The file ---------------------------------------------------------------------------- */

static bool parse_statement(struct parser *p, struct ast_notes notes)
{
    static const struct {
        const char *word;
        bool (*parse)(struct parser *, struct ast_notes);
    } statements[] = {
        {"policy", parse_policy}, {"group", parse_group},     {"service", parse_service},
        {"tier", parse_tier},     {"default", parse_default}, {"settings", moat_parse_settings},
    };
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (moat_parse_is(p, statements[i].word))
            return statements[i].parse(p, notes);

    static const char *const in_tier[] = {"rule", "allow", "drop", "reject", "log", "next-tier"};
    for (size_t i = 0; i < sizeof in_tier / sizeof *in_tier; i++)
        if (moat_parse_is(p, in_tier[i]))
            return moat_parse_fail(p, p->tok.pos, "write: tier NAME { and the rules and }",
                                   "a rule outside of a tier");
    return moat_parse_unexpected(p, "a statement",
                                 "there are policy, group, service, tier, default and settings");
}

static void parser_init(struct parser *p, struct moat_policy *y, const char *text, size_t len,
                        const char *file, struct moat_diags *diags)
{
    *p = (struct parser){
        .lex = {text, text + len, {1, 1}, file, diags},
        .policy = y,
        .arena = &y->arena,
        .diags = diags,
        .tok.kind = LEX_NEWLINE,
    };
    collect(p);
    moat_parse_advance(p);
}

static void parse_file(struct parser *p)
{
    while (p->tok.kind != LEX_END && !p->stop) {
        if (p->tok.kind == LEX_NEWLINE || p->tok.kind == LEX_SEMICOLON) {
            moat_parse_advance(p);
        } else if (p->tok.kind == LEX_RBRACE) {
            moat_parse_fail(p, p->tok.pos, NULL, "`}` closes nothing");
            moat_parse_advance(p);
        } else if (!parse_statement(p, moat_parse_take_notes(p)) &&
                   !(p->last == LEX_NEWLINE && starts_statement(p))) {
            /* The exception: a block was cut short by a statement, which is due now. */
            sync(p);
        }
    }
    p->policy->tail = moat_parse_take_notes(p);
    if (!p->policy->name && !p->stop)
        moat_parse_fail(p, (struct moat_pos){1, 1}, "start with: policy \"name\" version 1",
                        "the policy has no name");
}

/* The library's base tier, behind the tiers of the policy. */
static bool append_base(struct moat_policy *y)
{
    struct parser p;
    const char *text = moat_policy_base_text();
    parser_init(&p, y, text, strlen(text), POLICY_BASE_FILE, NULL);
    uint32_t n_stmts = y->n_stmts;
    if (!parse_tier(&p, moat_parse_take_notes(&p)))
        return false;
    y->n_stmts = n_stmts;
    y->tiers[y->n_tiers - 1].builtin = true;
    return true;
}

static struct moat_policy *policy_new(void)
{
    struct moat_policy *y = calloc(1, sizeof *y);
    if (y) {
        y->arena.limit = MOAT_POLICY_MAX_MEMORY;
        y->default_action = MOAT_DROP;
    }
    return y;
}

struct moat_policy *moat_policy_base(void)
{
    struct moat_policy *y = policy_new();
    if (!y)
        return NULL;
    y->file = POLICY_BASE_FILE;
    y->name = "";
    if (!append_base(y) || moat_check_names(y, NULL)) {
        moat_policy_destroy(y);
        return NULL;
    }
    return y;
}

/* Where the text stops to be clean. */
static void report_unclean(struct moat_diags *diags, const char *file, const char *text, size_t at)
{
    struct moat_pos pos = {1, 1};
    for (size_t i = 0; i < at; i++) {
        if (text[i] == '\n')
            pos = (struct moat_pos){pos.line + 1, 1};
        else if (((unsigned char)text[i] & 0xc0) != 0x80)
            pos.column++;
    }
    moat_diags_add(diags, MOAT_DIAG_ERROR, file, pos,
                   "a policy is UTF-8 without control characters and without marks that change "
                   "the direction of text",
                   "byte 0x%02x cannot stand here", (unsigned char)text[at]);
}

struct moat_policy *moat_policy_parse(const char *text, size_t len, const char *file,
                                      struct moat_diags *diags)
{
    static const struct moat_pos whole = {0, 0};
    if (len > MOAT_POLICY_MAX_TEXT) {
        moat_diags_add(diags, MOAT_DIAG_ERROR, file, whole, NULL,
                       "%zu bytes of text, the limit is %u", len, MOAT_POLICY_MAX_TEXT);
        return NULL;
    }
    size_t clean = moat_text_clean(text, len, true);
    if (clean < len) {
        report_unclean(diags, file, text, clean);
        return NULL;
    }

    struct moat_policy *y = policy_new();
    struct parser p = {0};
    if (!y || !(y->file = moat_arena_strndup(&y->arena, file, strlen(file))))
        goto no_memory;
    parser_init(&p, y, text, len, y->file, diags);
    parse_file(&p);
    if (!y->arena.failed && (y->n_tiers == 0 || !y->tiers[y->n_tiers - 1].base)) {
        /* A base tier that is not the last is an error, which the check reports. */
        if (y->n_tiers >= MOAT_POLICY_MAX_TIERS)
            moat_parse_fail(&p, whole, NULL, "more than %u tiers with the base tier",
                            MOAT_POLICY_MAX_TIERS - 1);
        else if (!append_base(y) && !y->arena.failed)
            moat_parse_fail(&p, whole, NULL, "more than %u rules with the base tier",
                            MOAT_POLICY_MAX_RULES);
    }
    if (y->arena.failed)
        goto no_memory;
    unsigned errors = p.errors + moat_check_names(y, diags);
    moat_diags_sort(diags);
    if (errors || y->arena.failed) {
        if (y->arena.failed)
            goto no_memory;
        moat_policy_destroy(y);
        return NULL;
    }
    return y;

no_memory:
    moat_diags_add(diags, MOAT_DIAG_ERROR, file, whole, NULL, "the policy needs too much memory");
    moat_policy_destroy(y);
    return NULL;
}
