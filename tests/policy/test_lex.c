/* SPDX-License-Identifier: Apache-2.0 */
#include "test_policy.h"

#include "policy/lex.h"
#include "policy/text.h"

/* Kinds as letters: Word String Newline Comment { } , = ; Bad. */
static const char letters[] = {
    [LEX_NEWLINE] = 'N',   [LEX_COMMENT] = 'C', [LEX_WORD] = 'W',  [LEX_STRING] = 'S',
    [LEX_LBRACE] = '{',    [LEX_RBRACE] = '}',  [LEX_COMMA] = ',', [LEX_EQUALS] = '=',
    [LEX_SEMICOLON] = ';', [LEX_BAD] = 'B'};

static const struct {
    const char *text, *kinds, *last; /* text of the last token */
} rows[] = {
    {"", "", NULL},
    {"group web = vms", "WW=W", "vms"},
    {"a,b;{}", "W,W;{}", "}"},
    {"10.0.0.0/8", "W", "10.0.0.0/8"},
    {"2001:db8::1-2001:db8::9", "W", "2001:db8::1-2001:db8::9"},
    {"role=web#x", "W=WC", "x"},
    {"# a comment  \r\n", "CN", "\n"},
    {"#tail \t", "C", "tail"},
    {"\"a b\"", "S", "a b"},
    {"\"a \\\" \\\\ b\"", "S", "a \\\" \\\\ b"},
    {"\"no end", "B", NULL},
    {"\"no end\nx", "BNW", "x"},
    {"\"bad \\n\"", "B", NULL},
    {"\"end \\", "B", NULL},
    {"a ! b", "WBW", "b"},
    {"\xc3\xa9 b", "BW", "b"},
    {"\"\xc3\xa9\"", "S", "\xc3\xa9"},
    {"app.io/name+x_1", "W", "app.io/name+x_1"},
};

START_TEST(tokens)
{
    struct lex l = {rows[_i].text, rows[_i].text + strlen(rows[_i].text), {1, 1}, "t", NULL};
    struct lex_token t, last = {0};
    char kinds[32];
    unsigned n = 0;
    for (moat_lex_next(&l, &t); t.kind != LEX_END; moat_lex_next(&l, &t)) {
        kinds[n++] = letters[t.kind];
        last = t;
    }
    kinds[n] = '\0';
    ck_assert_str_eq(kinds, rows[_i].kinds);
    if (rows[_i].last) {
        ck_assert_uint_eq(last.len, strlen(rows[_i].last));
        ck_assert_int_eq(memcmp(last.text, rows[_i].last, last.len), 0);
    }
}
END_TEST

START_TEST(columns_count_characters)
{
    static const char text[] = "\"\xc3\xa9\xe2\x82\xac\" x\n  y";
    struct lex l = {text, text + strlen(text), {1, 1}, "t", NULL};
    struct lex_token t;
    moat_lex_next(&l, &t);
    moat_lex_next(&l, &t);
    ck_assert_uint_eq(t.pos.line, 1);
    ck_assert_uint_eq(t.pos.column, 6);
    moat_lex_next(&l, &t);
    moat_lex_next(&l, &t);
    ck_assert_uint_eq(t.pos.line, 2);
    ck_assert_uint_eq(t.pos.column, 3);
}
END_TEST

static const struct {
    const char *text;
    size_t clean;
} utf8[] = {
    {"plain\ttext\n", 11},
    {"\xc3\xa9", 2},
    {"\xe2\x82\xac", 3},
    {"\xf0\x9f\x98\x80", 4},
    {"a\xff", 1},
    {"a\xc3", 1},             /* cut */
    {"a\xc0\xaf", 1},         /* overlong */
    {"a\xed\xa0\x80", 1},     /* surrogate */
    {"a\xf4\x90\x80\x80", 1}, /* above U+10FFFF */
    {"a\x01", 1},
    {"a\x7f", 1},
    {"a\xc2\x85", 1},     /* C1 */
    {"a\xe2\x80\xae", 1}, /* right-to-left override */
    {"a\xe2\x81\xa6", 1}, /* isolate */
};

START_TEST(clean_text)
{
    ck_assert_uint_eq(moat_text_clean(utf8[_i].text, strlen(utf8[_i].text), true), utf8[_i].clean);
}
END_TEST

TCase *lex_tests(void)
{
    TCase *tc = tcase_create("lex");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, tokens, 0, sizeof rows / sizeof *rows);
    tcase_add_test(tc, columns_count_characters);
    tcase_add_loop_test(tc, clean_text, 0, sizeof utf8 / sizeof *utf8);
    return tc;
}
