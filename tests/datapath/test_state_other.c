/* SPDX-License-Identifier: Apache-2.0 */

/* Who has spoken, and how often: one row per sequence of packets, from the end that opens
 * ('>') and from the other ('<'). */

#include "datapath/state_other.h"

#include <check.h>
#include <string.h>

enum { ICMP = 1, UDP = 17, GRE = 47, ICMP6 = 58 };

static const struct {
    const char *packets;
    uint8_t opener, other; /* states */
    uint8_t udp, rest;     /* timers */
} rows[] = {
    {">", 1, 0, MOAT_T_UDP_FIRST, MOAT_T_OTHER_FIRST},
    {">>", 2, 0, MOAT_T_UDP_FIRST, MOAT_T_OTHER_FIRST},
    {">>>>>", 2, 0, MOAT_T_UDP_FIRST, MOAT_T_OTHER_FIRST},
    {"><", 1, 1, MOAT_T_UDP_SINGLE, MOAT_T_OTHER_SINGLE},
    {"><<", 1, 2, MOAT_T_UDP_SINGLE, MOAT_T_OTHER_SINGLE},
    {">><", 2, 1, MOAT_T_UDP_SINGLE, MOAT_T_OTHER_SINGLE},
    {"><><", 2, 2, MOAT_T_UDP_MULTIPLE, MOAT_T_OTHER_MULTIPLE},
    {"><<<>>", 2, 2, MOAT_T_UDP_MULTIPLE, MOAT_T_OTHER_MULTIPLE},
};

START_TEST(conversation)
{
    for (unsigned opener = 0; opener < 2; opener++) {
        struct moat_ses_side side[2];

        memset(side, 0xff, sizeof side); /* of whoever was there before */
        moat_other_open(side, opener);
        ck_assert(moat_other_valid(side));
        for (const char *p = rows[_i].packets + 1; *p; p++) {
            moat_other_track(side, *p == '>' ? opener : !opener);
            ck_assert(moat_other_valid(side));
        }
        ck_assert_uint_eq(side[opener].state, rows[_i].opener);
        ck_assert_uint_eq(side[!opener].state, rows[_i].other);
        ck_assert_int_eq(moat_other_timer(side, MOAT_FAM_IP4, UDP), rows[_i].udp);
        ck_assert_int_eq(moat_other_timer(side, MOAT_FAM_IP6, UDP), rows[_i].udp);
        ck_assert_int_eq(moat_other_timer(side, MOAT_FAM_IP4, GRE), rows[_i].rest);
        ck_assert_int_eq(moat_other_timer(side, MOAT_FAM_IP4, ICMP), MOAT_T_ICMP);
        ck_assert_int_eq(moat_other_timer(side, MOAT_FAM_IP6, ICMP6), MOAT_T_ICMP);
    }
}
END_TEST

START_TEST(valid_states)
{
    for (unsigned a = 0; a < 256; a++) {
        for (unsigned b = 0; b < 256; b++) {
            struct moat_ses_side side[2] = {{.state = (uint8_t)a}, {.state = (uint8_t)b}};

            ck_assert_int_eq(moat_other_valid(side), a <= 2 && b <= 2 && a + b > 0);
        }
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("state_other");
    TCase *tc = tcase_create("other");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(tc, conversation, 0, (int)(sizeof rows / sizeof *rows));
    tcase_add_test(tc, valid_states);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
