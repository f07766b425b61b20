/* SPDX-License-Identifier: Apache-2.0 */
#include "test_policy.h"

#include <errno.h>

#define P "policy \"p\" version 1\n"

/* `text` is a body of settings; the first VM is web1.  A row's values are all fields
 * in the order of struct moat_settings, quarantine aside. */
static const struct {
    const char *text;
    unsigned policy, state, host, loose, spoof, transfer, pickup, hold, sessions;
} rows[] = {
    {"", 0, 0, 0, 0, 0, 1, 120, 1000, 0},
    {"settings for any { on-missing-policy allow }", 1, 0, 0, 0, 0, 1, 120, 1000, 0},
    {"settings for any { on-missing-state allow }", 0, 1, 0, 0, 0, 1, 120, 1000, 0},
    {"settings for any { on-missing-state pickup }", 0, 2, 0, 0, 0, 1, 120, 1000, 0},
    {"settings for any { on-missing-state pickup 2m }", 0, 2, 0, 0, 0, 1, 120, 1000, 0},
    {"settings for any { on-missing-state pickup 60s }", 0, 2, 0, 0, 0, 1, 60, 1000, 0},
    {"settings for any { on-unprotected-host allow }", 0, 0, 1, 0, 0, 1, 120, 1000, 0},
    {"settings for any { tcp loose }", 0, 0, 0, 1, 0, 1, 120, 1000, 0},
    {"settings for any { anti-spoofing off }", 0, 0, 0, 0, 1, 1, 120, 1000, 0},
    {"settings for any { transfer-sessions off }", 0, 0, 0, 0, 0, 0, 120, 1000, 0},
    {"settings for any { hold 800ms }", 0, 0, 0, 0, 0, 1, 120, 800, 0},
    {"settings for any { hold 2s; max-sessions 5 }", 0, 0, 0, 0, 0, 1, 120, 2000, 5},
    /* Field by field, later blocks win. */
    {"settings for any { tcp loose; hold 5ms }\nsettings for vm \"web1\" { tcp strict }", 0, 0, 0,
     0, 0, 1, 120, 5, 0},
    {"settings for vm \"web1\" { tcp strict }\nsettings for any { tcp loose }", 0, 0, 0, 1, 0, 1,
     120, 1000, 0},
    {"settings for any { on-missing-state pickup 9s }\nsettings for any { on-missing-state block }",
     0, 0, 0, 0, 0, 1, 9, 1000, 0},
    /* Who is meant. */
    {"settings for vm \"db\" { tcp loose }", 0, 0, 0, 0, 0, 1, 120, 1000, 0},
    {"settings for vms labelled role=web and env=prod { tcp loose }", 0, 0, 0, 1, 0, 1, 120, 1000,
     0},
    {"settings for vms labelled role=web and env=test { tcp loose }", 0, 0, 0, 0, 0, 1, 120, 1000,
     0},
    {"settings for vms except vm \"web1\" { tcp loose }", 0, 0, 0, 0, 0, 1, 120, 1000, 0},
    {"group g = vm uuid 6C9F0C1E-0000-4000-8000-000000000000\nsettings for g { tcp loose }", 0, 0,
     0, 1, 0, 1, 120, 1000, 0},
};

START_TEST(settings)
{
    struct moat_inventory *inv = shop();
    char text[400];
    struct moat_settings s;
    snprintf(text, sizeof text, P "%s\n", rows[_i].text);
    struct moat_policy *p = must_parse(text);
    ck_assert_int_eq(moat_policy_settings(p, inv, WEB1, &s), 0);
    ck_assert_uint_eq(s.on_missing_policy, rows[_i].policy);
    ck_assert_uint_eq(s.on_missing_state, rows[_i].state);
    ck_assert_uint_eq(s.on_unprotected_host, rows[_i].host);
    ck_assert_uint_eq(s.tcp_loose, rows[_i].loose);
    ck_assert_uint_eq(s.spoof, rows[_i].spoof);
    ck_assert_uint_eq(s.transfer_sessions, rows[_i].transfer);
    ck_assert_uint_eq(s.pickup_s, rows[_i].pickup);
    ck_assert_uint_eq(s.hold_ms, rows[_i].hold);
    ck_assert_uint_eq(s.max_sessions, rows[_i].sessions);
    ck_assert_uint_eq(s.quarantine, 1);
    ck_assert_int_eq(moat_policy_settings(p, inv, 99, &s), -EINVAL);
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

/* Who has a policy: "1" per VM that is in quarantine, web1 web2 db lone red. */
static const struct {
    const char *text, *quarantine;
} named[] = {
    {"", "11111"},
    {"tier a {\n allow from any to any\n}", "00000"},
    {"tier a {\n allow from any to vm \"db\"\n}", "00000"},
    {"tier a {\n allow from outside to vm \"db\"\n}", "11011"},
    {"tier a {\n reject from vms labelled role=web to vm \"db\"\n}", "00011"},
    {"tier a {\n drop from vms except vm \"lone\" to outside\n}", "00010"},
    {"tier a {\n log from any to any\n next-tier from any to any\n}", "11111"},
    {"tier a {\n drop from addresses 10.0.0.16/28 to gateway\n}", "11001"},
    {"tier base {\n allow from any to any\n}", "11111"},
    {"group g = vm \"db\"\ntier a {\n allow from g to dhcp\n}\ndefault allow", "11011"},
};

START_TEST(quarantine)
{
    struct moat_inventory *inv = shop();
    char text[400], got[6] = "";
    struct moat_settings s;
    snprintf(text, sizeof text, P "%s\n", named[_i].text);
    struct moat_policy *p = must_parse(text);
    for (unsigned vm = 0; vm < 5; vm++) {
        ck_assert_int_eq(moat_policy_settings(p, inv, vm, &s), 0);
        got[vm] = s.quarantine ? '1' : '0';
    }
    ck_assert_str_eq(got, named[_i].quarantine);
    ck_assert_int_eq(moat_policy_settings(NULL, inv, 0, &s), 0);
    ck_assert_uint_eq(s.quarantine, 1);
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

TCase *settings_tests(void)
{
    TCase *tc = tcase_create("settings");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, settings, 0, sizeof rows / sizeof *rows);
    tcase_add_loop_test(tc, quarantine, 0, sizeof named / sizeof *named);
    return tc;
}
