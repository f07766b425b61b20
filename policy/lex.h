/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_LEX_H
#define MOAT_POLICY_LEX_H 1

/* Text to tokens.  Tokens point into the text, which must be clean
 * (moat_text_clean) and outlive them. */

#include "policy/diag.h"

enum lex_kind {
    LEX_END,
    LEX_NEWLINE,
    LEX_COMMENT, /* text: what follows the `#`, without blanks at the end */
    LEX_WORD,    /* letters, digits and _ . : / + - */
    LEX_STRING,  /* text: between the quotes, escapes as written */
    LEX_LBRACE,
    LEX_RBRACE,
    LEX_COMMA,
    LEX_EQUALS,
    LEX_SEMICOLON,
    LEX_BAD, /* reported already */
};

struct lex_token {
    enum lex_kind kind;
    struct moat_pos pos;
    const char *text;
    uint32_t len;
};

struct lex {
    const char *p, *end;
    struct moat_pos pos;
    const char *file;
    struct moat_diags *diags;
};

void moat_lex_next(struct lex *, struct lex_token *);

/* Whether text is one LEX_WORD, so that it needs no quotes. */
bool moat_lex_is_word(const char *text);

#endif /* policy/lex.h */
