/* SPDX-License-Identifier: Apache-2.0 */
/* Text for people: what must never reach a terminal, and units. */

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

static const struct {
    const char *in, *plain, *utf8;
} strings[] = {
    {"", "", ""},
    {"plain", "plain", "plain"},
    {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f"},
    {"a\x1b[31mb", "a\\x1b[31mb", "a\x1b[31mb"},
    {"a\nb\tc\r", "a\\nb\\tc\\x0d", "a\nb\tc\r"},
    {"\x7f", "\\x7f", "\x7f"},
    {"\xc2\x9b"
     "31m",
     "\\x9b"
     "31m",
     "\xc2\x9b"
     "31m"},                                                 /* C1 CSI */
    {"\xe2\x80\xae", "\\u202e", "\xe2\x80\xae"},             /* right-to-left override */
    {"\xe2\x80\x8b", "\\u200b", "\xe2\x80\x8b"},             /* zero width */
    {"\xf3\xa0\x81\x81", "\\U000e0041", "\xf3\xa0\x81\x81"}, /* tag character */
    {"\xff", "\\xff", "\xef\xbf\xbd"},                       /* no UTF-8 */
    {"\xc3", "\\xc3", "\xef\xbf\xbd"},                       /* cut off */
    {"\xc0\x80", "\\xc0\\x80", "\xef\xbf\xbd\xef\xbf\xbd"},  /* overlong */
    {"\xed\xa0\x80", "\\xed\\xa0\\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* surrogate */
    {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80",
     "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* beyond Unicode */
};

START_TEST(test_strings)
{
    char *plain = text_plain(strings[_i].in), *utf8 = text_utf8(strings[_i].in);

    ck_assert_str_eq(plain, strings[_i].plain);
    ck_assert_str_eq(utf8, strings[_i].utf8);
    free(plain);
    free(utf8);
}
END_TEST

START_TEST(test_lines)
{
    char *s = text_lines("a\n\tb\x1b\n");

    ck_assert_str_eq(s, "a\n\tb\\x1b\n");
    free(s);
}
END_TEST

static const struct {
    const char *in;
    size_t width;
    const char *out;
} cuts[] = {
    {"abcdef", 6, "abcdef"},
    {"abcdef", 5, "ab..."},
    {"abcdef", 3, "abc"},
    {"abcdef", 0, ""},
    {"\xc3\xbc\xc3\xbc\xc3\xbc\xc3\xbc\xc3\xbc", 4, "\xc3\xbc..."},
};

START_TEST(test_cut)
{
    char *s = text_cut(cuts[_i].in, cuts[_i].width);

    ck_assert_str_eq(s, cuts[_i].out);
    free(s);
}
END_TEST

#define CHECK_TEXT(CALL, WANT)                                                                     \
    do {                                                                                           \
        char *s_ = CALL;                                                                           \
        ck_assert_str_eq(s_, WANT);                                                                \
        free(s_);                                                                                  \
    } while (0)

START_TEST(test_units)
{
    CHECK_TEXT(text_duration(-1), "0s");
    CHECK_TEXT(text_duration(59), "59s");
    CHECK_TEXT(text_duration(125), "2m5s");
    CHECK_TEXT(text_duration(3600), "1h0m");
    CHECK_TEXT(text_duration(90061), "1d1h");
    CHECK_TEXT(text_microseconds(850), "850us");
    CHECK_TEXT(text_microseconds(12400), "12.4ms");
    CHECK_TEXT(text_microseconds(1200000), "1.20s");
    CHECK_TEXT(text_count(9999), "9999");
    CHECK_TEXT(text_count(12345), "12.3K");
    CHECK_TEXT(text_count(999999), "1.00M");
    CHECK_TEXT(text_count(UINT64_MAX), "18.4E");
    CHECK_TEXT(text_time(0), "");
    CHECK_TEXT(text_time(1700000000), "2023-11-14T22:13:20Z");
    CHECK_TEXT(text_time(INT64_MAX), "");
    CHECK_TEXT(text_time_us(1700000000000001), "2023-11-14T22:13:20.000001Z");
    CHECK_TEXT(text_proto(6), "tcp");
    CHECK_TEXT(text_proto(200), "200");
}
END_TEST

START_TEST(test_addresses)
{
    static const uint8_t v4[16] = {10, 0, 0, 1}, v6[16] = {0x20, 1, 0xd, 0xb8, [15] = 1};

    CHECK_TEXT(text_address(4, v4, -1), "10.0.0.1");
    CHECK_TEXT(text_address(4, v4, 80), "10.0.0.1:80");
    CHECK_TEXT(text_address(6, v6, -1), "2001:db8::1");
    CHECK_TEXT(text_address(6, v6, 443), "[2001:db8::1]:443");
    CHECK_TEXT(text_hex(v4, 4), "0a000001");
    CHECK_TEXT(text_field("abcd", 2), "ab");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("text");
    TCase *t = tcase_create("text");

    tcase_add_loop_test(t, test_strings, 0, sizeof strings / sizeof *strings);
    tcase_add_test(t, test_lines);
    tcase_add_loop_test(t, test_cut, 0, sizeof cuts / sizeof *cuts);
    tcase_add_test(t, test_units);
    tcase_add_test(t, test_addresses);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
