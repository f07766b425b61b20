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

/* --- the engine is exchanged --- */

#define EXCHANGE RUN "FAKE_REPLACE=" ENGINE " "
#define STAYS                                                                                      \
    "engine dequeue 5 1 32\nvhost dequeue 5 1 32\n= 31\n"                                          \
    "engine enqueue 5 0 32\nvhost enqueue 5 0 32\n= 30\n"                                          \
    "engine port /b\nvhost register /b\n= 0\n"
#define NEXT                                                                                       \
    "next dequeue 5 1 32\nvhost dequeue 5 1 32\n= 31\n"                                            \
    "next enqueue 5 0 32\nvhost enqueue 5 0 32\n= 30\n"                                            \
    "next port /b\nvhost register /b\n= 0\n"

/* What the engines say comes from two threads; only the switch's own lines have a fixed place.  It
 * takes `tries` at least: more if the other thread was not given the processor in time. */
static void expect_exchange(const char *command, const char *const *said, unsigned tries,
                            const char *end)
{
    static const char at[] = "replaced by version next at try ";
    char out[8192];

    ck_assert_int_eq(run(command, out, sizeof out), 0);
    if (tries) {
        ck_assert_msg(strstr(out, at) != NULL, "%s", out);
        ck_assert_int_ge(atoi(strstr(out, at) + strlen(at)), (int)tries);
    }
    for (; *said; said++)
        ck_assert_msg(strstr(out, *said) != NULL, "%s: not in\n%s", *said, out);
    ck_assert_msg(strlen(out) >= strlen(end) && !strcmp(out + strlen(out) - strlen(end), end), "%s",
                  out);
}

START_TEST(another_engine_takes_over)
{
    static const char *const said[] = {"next takes over\n", "next serves\n", "engine destroyed\n",
                                       NULL};

    expect_exchange(EXCHANGE SWITCH " exchange 2 2>/dev/null", said, 1, NEXT);
    expect_exchange(EXCHANGE "FAKE_NEXT=reluctant " SWITCH " exchange 2 2>/dev/null", said, 3,
                    NEXT);
    /* The file that the switch starts with. */
    expect_exchange(RUN "FAKE_REPLACE= " SWITCH " exchange 2 2>/dev/null", said, 1, NEXT);
}
END_TEST

static void expect_stays(const char *settings, const char *why)
{
    const char *const said[] = {"not replaced: ", why, NULL};
    char command[1024];

    snprintf(command, sizeof command, RUN "%s " SWITCH " exchange 1 2>/dev/null", settings);
    expect_exchange(command, said, 0, STAYS);
}

START_TEST(engines_that_do_not_take_over)
{
    char dir[] = "/tmp/moat-test-XXXXXX", command[512], out[512];

    expect_stays("FAKE_REPLACE=" ENGINE " FAKE_NEXT=broken", "the mapping is damaged");
    expect_stays("FAKE_REPLACE=" ENGINE " FAKE_NEXT=old", "it has interface ");
    expect_stays("FAKE_REPLACE=" ENGINE " FAKE_NEXT=stubborn", "it does not want to");
    expect_stays("FAKE_REPLACE=/nonexistent", "/nonexistent: No such file");
    expect_stays("FAKE_REPLACE=/bin/true", "/bin/true: it is not a Moat engine");
    expect_stays("FAKE_REPLACE=/etc/passwd", "/etc/passwd: it is not a Moat engine");
    expect_stays("FAKE_REPLACE=" LOADER, "it is not a Moat engine");
    expect_stays("FAKE_REPLACE=/dev/null", "must be a plain file");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(command, sizeof command, "cp %s %s/engine && chmod 666 %s/engine", ENGINE, dir, dir);
    ck_assert_int_eq(run(command, out, sizeof out), 0);
    snprintf(command, sizeof command, "FAKE_REPLACE=%s/engine", dir);
    expect_stays(command, "nobody else may write to");
    snprintf(command, sizeof command, "rm -r %s", dir);
    run(command, out, sizeof out);
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
    tcase_add_test(t, another_engine_takes_over);
    tcase_add_test(t, engines_that_do_not_take_over);
    tcase_add_test(t, switches_that_it_does_not_fit);
    tcase_add_test(t, other_programs);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
