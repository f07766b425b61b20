/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <string.h>

#include "arrive.h"

struct row {
    bool policy;
    enum mig_open why;
    enum moat_fail on_missing_policy, on_missing_state;
    enum arrive_from from;
    bool decided;
    uint32_t pickup_s;
    const char *by;
};

#define B MOAT_FAIL_BLOCK
#define A MOAT_FAIL_ALLOW
#define P MOAT_FAIL_PICKUP

static const struct row rows[] = {
    /* everything came: no setting decides, whatever the settings are */
    {true, MIG_OPEN_COMPLETE, B, B, FROM_DATABASE, false, 0, "none"},
    {true, MIG_OPEN_COMPLETE, A, A, FROM_DATABASE, false, 0, "none"},
    {true, MIG_OPEN_COMPLETE, B, P, FROM_HAND_OVER, false, 0, "none"},
    /* no sessions */
    {true, MIG_OPEN_NO_SESSIONS, A, B, FROM_DATABASE, true, 0, "on-missing-state=block (database)"},
    {true, MIG_OPEN_NO_SESSIONS, B, P, FROM_HAND_OVER, true, 77, "on-missing-state=pickup (hand-over)"},
    {true, MIG_OPEN_EXPIRED, B, B, FROM_DATABASE, true, 0, "on-missing-state=block (database)"},
    {true, MIG_OPEN_EXPIRED, B, A, FROM_DATABASE, true, ARRIVE_FOREVER_S, "on-missing-state=allow (database)"},
    {true, MIG_OPEN_EXPIRED, B, P, FROM_DATABASE, true, 77, "on-missing-state=pickup (database)"},
    {true, MIG_OPEN_NO_SOURCE, A, B, FROM_HOST_FILE, true, 0, "on-missing-state=block (host file)"},
    /* no policy: decides first, and never picks up */
    {false, MIG_OPEN_COMPLETE, B, A, FROM_DATABASE, true, 0, "on-missing-policy=block (database)"},
    {false, MIG_OPEN_EXPIRED, B, P, FROM_HOST_FILE, true, 0, "on-missing-policy=block (host file)"},
    {false, MIG_OPEN_EXPIRED, A, P, FROM_HOST_FILE, true, 0, "on-missing-policy=allow (host file)"},
    {false, MIG_OPEN_NO_SOURCE, B, B, FROM_NOWHERE, true, 0, "on-missing-policy=block (default)"},
};

START_TEST(decisions)
{
    const struct row *r = &rows[_i];
    struct moat_settings s;
    struct arrive_out out;

    moat_settings_init(&s);
    s.on_missing_policy = (uint8_t)r->on_missing_policy;
    s.on_missing_state = (uint8_t)r->on_missing_state;
    s.pickup_s = 77;
    arrive_decide(&(struct arrive_in){r->policy, &s, r->from, r->why}, &out);
    ck_assert_str_eq(out.by, r->by);
    ck_assert_int_eq(out.decided, r->decided);
    ck_assert_uint_eq(out.pickup_s, r->pickup_s);
}
END_TEST

struct host_row {
    const char *db, *file;
    enum moat_fail fail;
    enum arrive_from from;
};

static const struct host_row host_rows[] = {
    {NULL, NULL, B, FROM_NOWHERE},      {NULL, "allow", A, FROM_HOST_FILE},
    {NULL, "block", B, FROM_HOST_FILE}, {"block", "allow", B, FROM_DATABASE},
    {"allow", "block", A, FROM_DATABASE}, {"alow", NULL, B, FROM_NOWHERE},
    {"alow", "allow", A, FROM_HOST_FILE}, {"", "pickup", B, FROM_NOWHERE},
};

START_TEST(host_settings)
{
    const struct host_row *r = &host_rows[_i];
    enum arrive_from from;

    ck_assert_int_eq(arrive_host_setting(r->db, r->file, &from), r->fail);
    ck_assert_int_eq(from, r->from);
}
END_TEST

START_TEST(taps)
{
    ck_assert(!arrive_tap_down(NULL, NULL)); /* others' devices: only when asked for */
    ck_assert(!arrive_tap_down("allow", "block"));
    ck_assert(!arrive_tap_down("report", NULL));
    ck_assert(arrive_tap_down("block", NULL));
    ck_assert(arrive_tap_down(NULL, "block"));
}
END_TEST

START_TEST(orphans)
{
    struct moat_settings s;

    arrive_orphan(MOAT_FAIL_BLOCK, &s);
    ck_assert_int_eq(s.on_missing_policy, MOAT_FAIL_BLOCK);
    ck_assert_int_eq(s.quarantine, 1);
    arrive_orphan(MOAT_FAIL_ALLOW, &s);
    ck_assert_int_eq(s.on_missing_policy, MOAT_FAIL_ALLOW);
    ck_assert_int_eq(s.on_missing_state, MOAT_FAIL_BLOCK);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("arrive");
    TCase *t = tcase_create("decisions");

    tcase_add_loop_test(t, decisions, 0, sizeof rows / sizeof *rows);
    tcase_add_loop_test(t, host_settings, 0, sizeof host_rows / sizeof *host_rows);
    tcase_add_test(t, taps);
    tcase_add_test(t, orphans);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
