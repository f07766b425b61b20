/* SPDX-License-Identifier: Apache-2.0 */

/* libmoat.so preloaded into programs of straw: who is called, and in which order. */

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define RUN "LD_PRELOAD=" LOADER " MOAT_ENGINE=" ENGINE " "

/* Runs a command line, standard error included if it wants that; exit status. */
static int run(const char *command, char *out, size_t size)
{
    FILE *f = popen(command, "r");
    size_t n;
    int rc;

    ck_assert_ptr_nonnull(f);
    n = fread(out, 1, size - 1, f);
    out[n] = 0;
    rc = pclose(f);
    ck_assert_msg(WIFEXITED(rc), "%s", out);
    return WEXITSTATUS(rc);
}

static void expect(const char *command, const char *wanted)
{
    char out[8192];

    ck_assert_int_eq(run(command, out, sizeof out), 0);
    ck_assert_str_eq(out, wanted);
}

static void expect_refused(const char *command, const char *why)
{
    char out[8192];

    ck_assert_int_ne(run(command, out, sizeof out), 0);
    ck_assert_msg(strstr(out, why) != NULL, "%s", out);
    ck_assert_ptr_null(strstr(out, "= ")); /* it has not done anything yet */
    ck_assert_ptr_null(strstr(out, "taking traffic"));
}

START_TEST(order_of_calls)
{
    expect(RUN SWITCH " full 2>/dev/null",
           "engine port /a\nvhost register /a\n= 0\n"
           "engine port /refused\n= -1\n"
           "engine connected 5\nswitch new_connection 5\n= 0\n"
           "engine started 5\nswitch new_device 5\n= 0\n"
           "switch vring_state_changed 5 1 1\n= 0\n"
           "engine logging 5 1\nswitch features_changed 5 4000001\n= 0\n"
           "engine logging 5 0\nswitch features_changed 5 1\n= 0\n"
           "switch guest_notified 5\n"
           "switch destroy_device 5\nengine stopped 5\n"
           "switch destroy_connection 5\nengine disconnected 5\n"
           "engine dequeue 5 1 32\nvhost dequeue 5 1 32\n= 31\n"
           "engine enqueue 5 0 32\nvhost enqueue 5 0 32\n= 30\n"
           "= -1\n"); /* another driver's port */
}
END_TEST

START_TEST(callbacks_that_are_not_there)
{
    expect(RUN SWITCH " some 2>/dev/null", "engine port /a\nvhost register /a\n= 0\n"
                                           "engine port /refused\n= -1\n"
                                           "engine connected 5\n= 0\n"
                                           "engine started 5\nswitch new_device 5\n= 0\n"
                                           "= 0\n"
                                           "engine logging 5 1\n= 0\n"
                                           "engine logging 5 0\n= 0\n"
                                           "switch destroy_device 5\nengine stopped 5\n"
                                           "engine disconnected 5\n"
                                           "engine dequeue 5 1 32\nvhost dequeue 5 1 32\n= 31\n"
                                           "engine enqueue 5 0 32\nvhost enqueue 5 0 32\n= 30\n"
                                           "= -1\n");
}
END_TEST

START_TEST(a_switch_that_refuses_the_device)
{
    char out[8192];

    ck_assert_int_eq(run(RUN SWITCH " stubborn 2>/dev/null", out, sizeof out), 0);
    ck_assert_ptr_nonnull(
        strstr(out, "engine started 5\nswitch new_device 5\nengine stopped 5\n= -1\n"));
}
END_TEST

#define WITHOUT_ENGINE                                                                             \
    "vhost register /a\n= 0\nvhost register /refused\n= 0\n= 0\nswitch new_device 5\n= 0\n"        \
    "= 0\n= 0\n= 0\nswitch destroy_device 5\n"
#define BLOCKED WITHOUT_ENGINE "= 0\n= 32\n= -1\n"
#define PASSED WITHOUT_ENGINE "vhost dequeue 5 1 32\n= 31\nvhost enqueue 5 0 32\n= 30\n= -1\n"

START_TEST(no_engine_means_what_the_host_says)
{
    expect(RUN "FAKE_ENGINE=broken " SWITCH " some 2>/dev/null", BLOCKED);
    expect(RUN "FAKE_ENGINE=broken MOAT_ON_DAMAGED=block " SWITCH " some 2>/dev/null", BLOCKED);
    expect(RUN "FAKE_ENGINE=broken MOAT_ON_DAMAGED=ALLOW " SWITCH " some 2>/dev/null", BLOCKED);
    expect(RUN "FAKE_ENGINE=broken MOAT_ON_DAMAGED=allow " SWITCH " some 2>/dev/null", PASSED);
    expect(RUN "FAKE_ENGINE=old " SWITCH " some 2>/dev/null", BLOCKED);
    expect(RUN "MOAT_ENGINE=/nonexistent " SWITCH " some 2>/dev/null", BLOCKED);
    expect(RUN "MOAT_ENGINE=/bin/true " SWITCH " some 2>/dev/null", BLOCKED);
}
END_TEST

START_TEST(it_says_so)
{
    char out[8192];

    run(RUN "FAKE_ENGINE=broken " SWITCH " some 2>&1", out, sizeof out);
    ck_assert_ptr_nonnull(strstr(out, "the mapping is damaged"));
    ck_assert_ptr_nonnull(strstr(out, "nothing passes"));
    run(RUN "MOAT_BYPASS=1 " SWITCH " some 2>&1", out, sizeof out);
    ck_assert_ptr_nonnull(strstr(out, "UNPROTECTED"));
}
END_TEST

START_TEST(bypass)
{
    expect(RUN "MOAT_BYPASS=1 " SWITCH " some 2>/dev/null", PASSED);
    expect(RUN "MOAT_BYPASS=0 FAKE_ENGINE=broken " SWITCH " some 2>/dev/null", BLOCKED);
}
END_TEST

START_TEST(switches_that_it_does_not_fit)
{
    expect_refused(RUN "FAKE_VERSION='DPDK 23.11.1' " SWITCH " some 2>&1", "DPDK 23.11.1");
    expect_refused(RUN WITHOUT " 2>&1", "librte_vhost");
}
END_TEST

/* LD_PRELOAD is inherited: other programs must not notice, whatever they call. */
START_TEST(other_programs)
{
    expect(RUN OTHER " some 2>&1", /* the real calls, all three registrations */
           "vhost register /a\n= 0\nvhost register /refused\n= 0\nswitch new_device 5\n= 0\n"
           "switch destroy_device 5\nvhost dequeue 5 1 32\n= 31\nvhost enqueue 5 0 32\n= 30\n"
           "vhost register /b\n= 0\n");
    expect(RUN "sh -c 'echo hello; ls -d /' 2>&1", "hello\n/\n");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("loader");
    TCase *t = tcase_create("preloaded");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_test(t, order_of_calls);
    tcase_add_test(t, callbacks_that_are_not_there);
    tcase_add_test(t, a_switch_that_refuses_the_device);
    tcase_add_test(t, no_engine_means_what_the_host_says);
    tcase_add_test(t, it_says_so);
    tcase_add_test(t, bypass);
    tcase_add_test(t, switches_that_it_does_not_fit);
    tcase_add_test(t, other_programs);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
