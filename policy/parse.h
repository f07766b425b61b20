/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_PARSE_H
#define MOAT_POLICY_PARSE_H 1

/* Inside of the parser, shared by parse.c (statements) and parse_term.c (the
 * lists within them).  Recursive descent on one token.  A function that returns
 * false has reported why (or met a token that the lexer reported); the statement
 * is then given up and parsing goes on after it, so that one run tells all. */

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

/* parse_term.c */
bool moat_parse_expr(struct parser *, struct ast_expr *);
bool moat_parse_items(struct parser *, struct ast_items *);

/* A policy that is nothing but the built-in base tier; NULL: no memory. */
struct moat_policy *moat_policy_base(void);

#endif /* policy/parse.h */
