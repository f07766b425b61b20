/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_PARSE_H
#define MOAT_POLICY_PARSE_H 1

/* Inside of the parser, shared by parse.c (statements), parse_term.c (the lists
 * within them) and parse_settings.c (blocks of settings).  Recursive descent on one token.  A
 * function that returns false has reported why (or met a token that the lexer reported); the
 * statement is then given up and parsing goes on after it, so that one run tells all. */

#include "policy/ast.h"
#include "policy/lex.h"

struct parser {
    struct lex lex;
    struct lex_token tok, ahead; /* the current one; the one after a newline */
    bool has_ahead;
    struct moat_policy *policy;
    struct moat_arena *arena; /* the policy's */
    struct moat_diags *diags;
    unsigned errors;
    bool stop;                /* a limit was hit: no use in going on */
    struct ast_notes pending; /* comments before the statement to come */
    struct ast_notes inner;   /* comments within the current one */
    const char *trail;        /* comment at the end of the current line */
    enum lex_kind last;       /* kind of the token before */
};

#define POLICY_BASE_FILE "<base>"

/* parse.c */
void moat_parse_advance(struct parser *);
void moat_parse_skip_newline(struct parser *);
bool moat_parse_is(const struct parser *, const char *word);
bool moat_parse_fail(struct parser *, struct moat_pos, const char *hint, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
bool moat_parse_unexpected(struct parser *, const char *wanted, const char *hint);
const char *moat_parse_string(struct parser *, uint32_t max, const char *what);
const char *moat_parse_name(struct parser *, const char *what);
char *moat_parse_dup(struct parser *); /* the token's text */
bool moat_parse_number(const struct lex_token *, uint32_t max, uint32_t *);

/* Comments before the statement that begins now. */
struct ast_notes moat_parse_take_notes(struct parser *);
/* Ends a statement: nothing may be left on the line but a comment. */
bool moat_parse_finish(struct parser *, struct ast_notes *);
/* To the brace that opens the block of a statement whose head is wrong.  False:
 * there is none on the line. */
bool moat_parse_sync_block(struct parser *);
/* What stands between braces: `line` for each statement, at most `tail` behind. */
bool moat_parse_block(struct parser *, struct ast_notes *head, struct ast_notes *tail,
                      bool (*line)(struct parser *, struct ast_notes, void *), void *aux);
bool moat_parse_add_stmt(struct parser *, enum ast_stmt_kind, uint32_t index);

/* Makes room for one more in a list of the policy. */
#define MOAT_PARSE_GROW(P, LIST, MAX, WHAT)                                                        \
    moat_parse_grow(P, (void **)&(P)->policy->LIST, (P)->policy->n_##LIST,                         \
                    &(P)->policy->cap_##LIST, sizeof *(P)->policy->LIST, MAX, WHAT)
bool moat_parse_grow(struct parser *, void **v, uint32_t n, uint32_t *cap, size_t element,
                     uint32_t max, const char *what);

/* parse_term.c */
bool moat_parse_expr(struct parser *, struct ast_expr *);
bool moat_parse_items(struct parser *, struct ast_items *);

/* parse_settings.c */
bool moat_parse_settings(struct parser *, struct ast_notes);

/* A policy that is nothing but the built-in base tier; NULL: no memory. */
struct moat_policy *moat_policy_base(void);

#endif /* policy/parse.h */
