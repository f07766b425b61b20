/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/lex.h"

#include <string.h>

static bool word_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c != '\0' && strchr("_.:/+-", c));
}

bool moat_lex_is_word(const char *text)
{
    if (!*text)
        return false;
    for (; *text; text++)
        if (!word_char(*text))
            return false;
    return true;
}

/* A column is a character, not a byte. */
static void step(struct lex *l)
{
    char c = *l->p++;
    if (c == '\n') {
        l->pos.line++;
        l->pos.column = 1;
    } else if (((unsigned char)c & 0xc0) != 0x80) {
        l->pos.column++;
    }
}

static void comment(struct lex *l, struct lex_token *t)
{
    step(l);
    t->kind = LEX_COMMENT;
    t->text = l->p;
    while (l->p < l->end && *l->p != '\n')
        step(l);
    t->len = (uint32_t)(l->p - t->text);
    while (t->len && strchr(" \t\r", t->text[t->len - 1]))
        t->len--;
}

static void string(struct lex *l, struct lex_token *t)
{
    step(l);
    t->kind = LEX_STRING;
    t->text = l->p;
    while (l->p < l->end && *l->p != '\n' && *l->p != '"') {
        if (*l->p == '\\') {
            if (l->end - l->p < 2 || (l->p[1] != '"' && l->p[1] != '\\')) {
                moat_diags_add(l->diags, MOAT_DIAG_ERROR, l->file, l->pos,
                               "only \\\" and \\\\ have a meaning", "bad escape in a string");
                t->kind = LEX_BAD;
            } else {
                step(l);
            }
        }
        step(l);
    }
    t->len = (uint32_t)(l->p - t->text);
    if (l->p == l->end || *l->p != '"') {
        if (t->kind != LEX_BAD)
            moat_diags_add(l->diags, MOAT_DIAG_ERROR, l->file, t->pos,
                           "a string ends on the line where it starts", "string without an end");
        t->kind = LEX_BAD;
        return;
    }
    step(l);
}

static void bad(struct lex *l, struct lex_token *t)
{
    const char *start = l->p;
    step(l);
    while (l->p < l->end && ((unsigned char)*l->p & 0xc0) == 0x80)
        step(l);
    moat_diags_add(l->diags, MOAT_DIAG_ERROR, l->file, t->pos,
                   "put text with signs or accents between double quotes",
                   "unexpected character `%.*s`", (int)(l->p - start), start);
    t->kind = LEX_BAD;
}

void moat_lex_next(struct lex *l, struct lex_token *t)
{
    static const struct {
        char c;
        enum lex_kind kind;
    } signs[] = {{'\n', LEX_NEWLINE}, {'{', LEX_LBRACE}, {'}', LEX_RBRACE},
                 {',', LEX_COMMA},    {'=', LEX_EQUALS}, {';', LEX_SEMICOLON}};

    while (l->p < l->end && (*l->p == ' ' || *l->p == '\t' || *l->p == '\r'))
        step(l);
    *t = (struct lex_token){.kind = LEX_END, .pos = l->pos, .text = l->p};
    if (l->p == l->end)
        return;
    if (*l->p == '#') {
        comment(l, t);
        return;
    }
    if (*l->p == '"') {
        string(l, t);
        return;
    }
    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) {
        if (*l->p == signs[i].c) {
            step(l);
            t->kind = signs[i].kind;
            t->len = 1;
            return;
        }
    }
    if (!word_char(*l->p)) {
        bad(l, t);
        return;
    }
    t->kind = LEX_WORD;
    while (l->p < l->end && word_char(*l->p))
        step(l);
    t->len = (uint32_t)(l->p - t->text);
}
