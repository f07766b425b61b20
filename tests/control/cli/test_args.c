/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments: what is taken, in which form, and what is refused. */

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"

typedef char *check_fn(const char *, char **);

static const struct {
    check_fn *fn;
    const char *in, *out; /* NULL: refused */
} values[] = {
    {arg_mac, "52:54:00:AA:00:01", "52:54:00:aa:00:01"},
    {arg_mac, "52:54:00:aa:00", NULL},
    {arg_mac, "52:54:00:aa:00:01:02", NULL},
    {arg_mac, "52:54:00:aa:00:0x", NULL},
    {arg_mac, "52:54:00:aa:00: 1", NULL},
    {arg_mac, "5:54:00:aa:00:012", NULL},
    {arg_mac, "53:54:00:aa:00:01", NULL}, /* group */
    {arg_mac, "00:00:00:00:00:00", NULL},
    {arg_address, "10.0.0.1", "10.0.0.1"},
    {arg_address, "2001:DB8:0:0::1", "2001:db8::1"},
    {arg_address, "10.0.0.1/32", NULL},
    {arg_address, "10.0.0", NULL},
    {arg_address, "010.0.0.1", NULL},
    {arg_address, "0.0.0.0", NULL},
    {arg_address, "::", NULL},
    {arg_address, "224.0.0.1", NULL},
    {arg_address, "255.255.255.255", NULL},
    {arg_address, "ff02::1", NULL},
    {arg_address, "", NULL},
    {arg_address, "fe80::1%eth0", NULL},
    {arg_address, "1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc", NULL},
    {arg_prefix, "10.0.0.0/8", "10.0.0.0/8"},
    {arg_prefix, "10.0.0.1", "10.0.0.1"},
    {arg_prefix, "10.0.0.1/32", "10.0.0.1"},
    {arg_prefix, "0.0.0.0/0", "0.0.0.0/0"},
    {arg_prefix, "2001:db8::/33", "2001:db8::/33"},
    {arg_prefix, "2001:db8::1/127", NULL},
    {arg_prefix, "10.0.0.0/33", NULL},
    {arg_prefix, "10.0.0.0/", NULL},
    {arg_prefix, "10.0.0.0/ 8", NULL},
    {arg_prefix, "10.0.0.0/-1", NULL},
    {arg_prefix, "10.0.0.0/0008", NULL},
    {arg_prefix, "::/129", NULL},
    {arg_uuid, "11111111-2222-3333-4444-55555555555A", "11111111-2222-3333-4444-55555555555a"},
    {arg_uuid, "11111111-2222-3333-4444-55555555555", NULL},
    {arg_uuid, "11111111-2222-3333-4444-55555555555aa", NULL},
};

START_TEST(test_values)
{
    char *out = NULL, *error = values[_i].fn(values[_i].in, &out);

    ck_assert_msg(!error == !!values[_i].out, "%s: %s", values[_i].in, error ? error : "taken");
    if (!error)
        ck_assert_str_eq(out, values[_i].out);
    free(out);
    free(error);
}
END_TEST

static const struct {
    const char *in;
    bool name, id, label;
} names[] = {
    {"web", true, true, true},
    {"_x.y-1", true, true, true},
    {"a:b", false, true, false},
    {"a/b", false, false, true},
    {"", false, false, false},
    {"-a", false, false, false},
    {".a", false, false, false},
    {"a b", false, false, false},
    {"a\x1b", false, false, false},
    {"gr\xc3\xbcn", false, false, false},
    {"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", true, true, true},
    {"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", false, false, false},
};

static bool is_good(char *error)
{
    bool good = !error;

    free(error);
    return good;
}

START_TEST(test_names)
{
    ck_assert_int_eq(is_good(arg_name(names[_i].in)), names[_i].name);
    ck_assert_int_eq(is_good(arg_vnic_id(names[_i].in)), names[_i].id);
    ck_assert_int_eq(is_good(arg_label(names[_i].in)), names[_i].label);
}
END_TEST

START_TEST(test_contains)
{
    static const uint8_t addr[16] = {10, 1, 2, 3};
    static const struct {
        const char *prefix;
        bool in;
    } rows[] = {{"10.0.0.0/8", true},  {"10.1.2.2/31", true}, {"10.1.2.3", true},
                {"10.1.2.2", false},   {"0.0.0.0/0", true},   {"11.0.0.0/8", false},
                {"10.1.2.0/30", true}, {"::/0", false}};
    struct arg_prefix p;

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ck_assert(prefix_parse(rows[i].prefix, &p));
        ck_assert_msg(prefix_contains(&p, 4, addr) == rows[i].in, "%s", rows[i].prefix);
    }
}
END_TEST

START_TEST(test_split)
{
    const char *value;
    size_t n;

    ck_assert(arg_split("a=b=c", &n, &value) && n == 1 && !strcmp(value, "b=c"));
    ck_assert(arg_split("a=", &n, &value) && !*value);
    ck_assert(!arg_split("=a", &n, &value));
    ck_assert(!arg_split("a", &n, &value));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("args");
    TCase *t = tcase_create("args");

    tcase_add_loop_test(t, test_values, 0, sizeof values / sizeof *values);
    tcase_add_loop_test(t, test_names, 0, sizeof names / sizeof *names);
    tcase_add_test(t, test_contains);
    tcase_add_test(t, test_split);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
