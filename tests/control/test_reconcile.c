/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <string.h>

#include "reconcile.h"

static struct moat_slot_conf conf;
static struct moat_slot_info slot;
static struct reconcile_want want;

static void setup(void)
{
    memset(&conf, 0, sizeof conf);
    strcpy(conf.vnic, "v");
    strcpy(conf.vm, "db");
    strcpy(conf.path, "/run/v");
    conf.n_addrs = 1;
    conf.addrs[0] = (struct moat_addr){.family = 4, .plen = 32, .addr = {10}};
    moat_settings_init(&conf.settings);
    memset(&slot, 0, sizeof slot);
    slot.conf = conf;
    slot.state = MOAT_SLOT_ACTIVE;
    slot.has_ruleset = 1;
    slot.generation = 4;
    memset(slot.digest, 7, sizeof slot.digest);
    memset(&want, 0, sizeof want);
    want.conf = &conf;
    want.ruleset = true;
    want.generation = 4;
    memset(want.digest, 7, sizeof want.digest);
    want.state = MIG_HOLDING;
}

START_TEST(same)
{
    ck_assert_uint_eq(reconcile_compare(&want, &slot), 0);
    slot.conf.epoch = 9;                   /* is the state machine's */
    slot.conf.state = MOAT_SLOT_ARRIVING; /* what it was claimed as */
    ck_assert_uint_eq(reconcile_compare(&want, &slot), 0);
}
END_TEST

START_TEST(each_difference)
{
    char text[200];

    ck_assert_uint_eq(reconcile_compare(&want, NULL), DIFF_MISSING);
#define DIFFERS(CHANGE, DIFF)                                                                      \
    setup();                                                                                       \
    CHANGE;                                                                                        \
    ck_assert_uint_eq(reconcile_compare(&want, &slot), DIFF);                                      \
    reconcile_text(DIFF, &want, &slot, text, sizeof text);                                         \
    ck_assert(text[0])
    DIFFERS(slot.digest[15] = 8, DIFF_RULESET);
    DIFFERS(slot.generation = 3, DIFF_RULESET);
    DIFFERS(slot.has_ruleset = 0, DIFF_RULESET);
    DIFFERS(slot.conf.mac[5] = 1, DIFF_CONF);
    DIFFERS(slot.conf.n_addrs = 0, DIFF_CONF);
    DIFFERS(slot.conf.addrs[0].addr[3] = 1, DIFF_CONF);
    DIFFERS(slot.conf.settings.tcp_loose = 1, DIFF_CONF);
    DIFFERS(strcpy(slot.conf.path, "/run/w"), DIFF_CONF);
    DIFFERS(slot.state = MOAT_SLOT_BLOCKED, DIFF_STATE);
    DIFFERS(slot.state = MOAT_SLOT_DEPARTED, DIFF_STATE);
    DIFFERS(want.state = MIG_WAITING, DIFF_STATE);
    DIFFERS(want.state = MIG_GONE, DIFF_STATE);
    DIFFERS(slot.conf.settings.quarantine = 1, DIFF_CONF);
    DIFFERS(slot.conf.settings.timers[MOAT_N_TIMERS - 1] = 1, DIFF_CONF);
    /* An enrolment that the settings do not ask for, or that came before quarantine. */
    DIFFERS(slot.state = MOAT_SLOT_ENROLLING, DIFF_STATE);
    DIFFERS((slot.state = MOAT_SLOT_ENROLLING, conf.settings.enroll_s = 60,
             conf.settings.quarantine = 1, slot.conf = conf),
            DIFF_STATE);
}
END_TEST

START_TEST(enrolling)
{
    slot.state = MOAT_SLOT_ENROLLING;
    conf.settings.enroll_s = 60;
    slot.conf = conf;
    for (want.state = MIG_HOLDING; want.state <= MIG_FEEDING; want.state++) {
        ck_assert_uint_eq(reconcile_compare(&want, &slot), 0);
        ck_assert(!reconcile_enrolls_too_long(&want, &slot));
    }
    want.state = MIG_HOLDING;
    conf.settings.enroll_s = 0;
    ck_assert(reconcile_enrolls_too_long(&want, &slot));
    ck_assert_uint_eq(reconcile_compare(&want, &slot), DIFF_STATE | DIFF_CONF);
    want.conf = NULL; /* nothing is known: it goes on */
    ck_assert_uint_eq(reconcile_compare(&want, &slot), 0);
    slot.state = MOAT_SLOT_ACTIVE;
    want.conf = &conf;
    ck_assert(!reconcile_enrolls_too_long(&want, &slot));
}
END_TEST

START_TEST(what_leaves_is_left_alone)
{
    want.state = MIG_GONE;
    slot.state = MOAT_SLOT_DEPARTED;
    slot.digest[0] = 0;
    slot.conf.mac[0] = 1;
    ck_assert_uint_eq(reconcile_compare(&want, &slot), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("reconcile");
    TCase *t = tcase_create("compare");

    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, same);
    tcase_add_test(t, each_difference);
    tcase_add_test(t, enrolling);
    tcase_add_test(t, what_leaves_is_left_alone);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
