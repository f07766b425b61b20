/* SPDX-License-Identifier: Apache-2.0 */
#include "test_policy.h"

#include <errno.h>
#include <stddef.h>

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

#define BEHIND(FIELD)                                                                              \
    offsetof(struct moat_settings, FIELD), sizeof((struct moat_settings *)0)->FIELD

/* Settings and what they change against the defaults: up to 5 fields. */
static const struct {
    const char *text;
    struct {
        size_t at, size;
        uint32_t value;
    } field[5];
} changes[] = {
    {"anti-spoofing learn-once", {{BEHIND(spoof), MOAT_SPOOF_LEARN}}},
    {"anti-spoofing strict", {{BEHIND(spoof), MOAT_SPOOF_STRICT}}},
    {"vlan inspect", {{BEHIND(vlan), MOAT_VLAN_INSPECT}}},
    {"vlan block", {{BEHIND(vlan), MOAT_VLAN_BLOCK}}},
    {"ra-guard off", {{BEHIND(ra_guard), 0}}},
    {"dhcp-guard off", {{BEHIND(dhcp_guard), 0}}},
    {"ra-guard on; dhcp-guard on", {{0}}},
    {"ethertypes 0x88cc", {{BEHIND(n_ethertypes), 1}, {BEHIND(ethertypes[0]), 0x88cc}}},
    {"ethertypes 0x600, 0xFFFF,\n 0x88F7, 0x8863",
     {{BEHIND(n_ethertypes), 4},
      {BEHIND(ethertypes[0]), 0x0600},
      {BEHIND(ethertypes[1]), 0xffff},
      {BEHIND(ethertypes[2]), 0x88f7},
      {BEHIND(ethertypes[3]), 0x8863}}},
    {"ethertypes none", {{0}}},
    /* A list is one field: a later one takes its place as a whole. */
    {"ethertypes 0x88cc, 0x88f7\n}\nsettings for any { ethertypes none", {{0}}},
    {"ethertypes 0x88cc, 0x88f7\n}\nsettings for any { ethertypes 0x8863",
     {{BEHIND(n_ethertypes), 1}, {BEHIND(ethertypes[0]), 0x8863}}},
    {"enroll 10m", {{BEHIND(enroll_s), 600}}},
    {"enroll 1h", {{BEHIND(enroll_s), 3600}}},
    {"enroll 1000ms", {{BEHIND(enroll_s), 1}}},
    {"enroll 5m\n}\nsettings for any { enroll 0s", {{BEHIND(enroll_s), 0}}},
    {"max-half-open 1; max-new-sessions 2; max-fragments 3; max-logs 4; max-sessions 100000000",
     {{BEHIND(max_half_open), 1},
      {BEHIND(max_new), 2},
      {BEHIND(max_fragments), 3},
      {BEHIND(max_logs), 4},
      {BEHIND(max_sessions), 100000000}}},
    {"timer tcp-established 2h", {{BEHIND(timers[MOAT_T_TCP_ESTABLISHED]), 7200}}},
    {"timer tcp-first 1s; timer other-multiple 7d; timer udp-single 30s; timer icmp 2m",
     {{BEHIND(timers[MOAT_T_TCP_FIRST]), 1},
      {BEHIND(timers[MOAT_T_OTHER_MULTIPLE]), 604800},
      {BEHIND(timers[MOAT_T_UDP_SINGLE]), 30},
      {BEHIND(timers[MOAT_T_ICMP]), 120}}},
    {"timer icmp 9s; timer udp-first 8s\n}\nsettings for vm \"web1\" { timer icmp 7s",
     {{BEHIND(timers[MOAT_T_ICMP]), 7}, {BEHIND(timers[MOAT_T_UDP_FIRST]), 8}}},
    {"timer icmp 5s\n}\nsettings for vm \"db\" { timer icmp 7s",
     {{BEHIND(timers[MOAT_T_ICMP]), 5}}},
    {"hold 1ms; on-missing-state pickup 1h",
     {{BEHIND(hold_ms), 1}, {BEHIND(on_missing_state), 2}, {BEHIND(pickup_s), 3600}}},
};

START_TEST(changed_fields)
{
    struct moat_inventory *inv = shop();
    struct moat_settings want, got;
    char text[400];

    moat_settings_init(&want);
    want.quarantine = 1;
    for (unsigned i = 0; i < 5 && changes[_i].field[i].size; i++) {
        unsigned char *at = (unsigned char *)&want + changes[_i].field[i].at;
        if (changes[_i].field[i].size == 4)
            memcpy(at, &changes[_i].field[i].value, 4);
        else if (changes[_i].field[i].size == 2)
            memcpy(at, &(uint16_t){(uint16_t)changes[_i].field[i].value}, 2);
        else
            *at = (uint8_t)changes[_i].field[i].value;
    }
    snprintf(text, sizeof text, P "settings for any { %s }\n", changes[_i].text);
    struct moat_policy *p = must_parse(text);
    ck_assert_int_eq(moat_policy_settings(p, inv, WEB1, &got), 0);
    ck_assert_msg(!memcmp(&want, &got, sizeof want), "%s", text);
    moat_policy_destroy(p);
    moat_inventory_destroy(inv);
}
END_TEST

/* Each timer there is: as it is written, and printed. */
START_TEST(every_timer)
{
    struct moat_inventory *inv = shop();
    struct moat_settings s;
    char text[200];

    snprintf(text, sizeof text, P "\nsettings for any {\n    timer %s 90s\n}\n",
             moat_timer_name((unsigned)_i));
    struct moat_policy *p = must_parse(text);
    ck_assert_int_eq(moat_policy_settings(p, inv, WEB1, &s), 0);
    for (int t = 0; t < MOAT_N_TIMERS; t++)
        ck_assert_uint_eq(s.timers[t], t == _i ? 90 : 0);
    char *printed = moat_policy_print(p);
    ck_assert_str_eq(printed, text);
    free(printed);
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

/* An operator's word: this VM alone, whatever the policy says of it. */
START_TEST(quarantine_by_operator)
{
    struct moat_policy *p = must_parse(P "tier a {\n allow from any to any\n}\n"
                                         "settings for any {\n tcp loose\n}\n");
    for (int who = -1; who < 5; who++) {
        struct moat_inventory *inv = shop_quarantining(who);
        for (int vm = 0; vm < 5; vm++) {
            struct moat_settings s;
            ck_assert_int_eq(moat_policy_settings(p, inv, (unsigned)vm, &s), 0);
            ck_assert_uint_eq(s.quarantine, vm == who);
            ck_assert_uint_eq(s.tcp_loose, 1);
        }
        moat_inventory_destroy(inv);
    }
    moat_policy_destroy(p);
}
END_TEST

TCase *settings_tests(void)
{
    TCase *tc = tcase_create("settings");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, settings, 0, sizeof rows / sizeof *rows);
    tcase_add_loop_test(tc, changed_fields, 0, sizeof changes / sizeof *changes);
    tcase_add_loop_test(tc, every_timer, 0, MOAT_N_TIMERS);
    tcase_add_test(tc, quarantine_by_operator);
    tcase_add_loop_test(tc, quarantine, 0, sizeof named / sizeof *named);
    return tc;
}
