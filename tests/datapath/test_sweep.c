/* SPDX-License-Identifier: Apache-2.0 */

/* Sessions under a policy that did not admit them, and how they end: re-judging, quarantine,
 * enrolling, timers. */

#include "datapath/sweep.h"

#include <check.h>
#include <string.h>

#include "tests/lib/rig.h"
#include "tests/lib/vm_frame.h"

#define A 0
#define B 1
#define C 2
#define SYN MOAT_TCP_SYN
#define ACK MOAT_TCP_ACK

static const char everything[] = "policy \"t\" version 1\ntier main { allow from any to any }\n";
static const char tcp_only[] =
    "policy \"t\" version 1\ntier main { allow from vm \"a\" to any service tcp }\n";
static const char nothing[] = "policy \"t\" version 1\ntier main { drop from any to any }\n";

static struct rig r;
static struct moat_settings settings;

static void setup(void)
{
    rig_start(&r, NULL, everything);
    moat_settings_init(&settings);
}

static void teardown(void)
{
    rig_destroy(&r);
}

static enum moat_reason push(unsigned slot, enum moat_dir dir, struct frame f)
{
    enum moat_reason reason;

    rig_push(&r, slot, dir, f.data, f.len, &reason);
    return reason;
}

static uint32_t live(unsigned slot)
{
    struct moat_slot_info info;

    ck_assert(moat_slot_info(r.e, slot, &info));
    return info.sessions;
}

static void some_sessions(unsigned slot, unsigned peer)
{
    for (uint16_t p = 1; p <= 50; p++) {
        ck_assert_int_eq(push(slot, MOAT_FROM_VM, vm_udp(slot, peer, p, 1)), MOAT_R_NONE);
        ck_assert_int_eq(push(slot, MOAT_FROM_VM, vm_tcp(slot, peer, p, 80, 100, 0, SYN, 0)),
                         MOAT_R_NONE);
        ck_assert_int_eq(push(slot, MOAT_TO_VM, vm_tcp(peer, slot, 80, p, 500, 101, SYN | ACK, 0)),
                         MOAT_R_NONE);
    }
}

START_TEST(only_the_slot_concerned_judges_again)
{
    some_sessions(A, B);
    some_sessions(C, B);
    rig_publish(&r, A, everything); /* a newer generation of the same rules */
    for (uint16_t p = 1; p <= 50; p++)
        ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_udp(A, B, p, 1)), MOAT_R_NONE);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_REJUDGED), 0);
    rig_publish(&r, A, tcp_only);
    for (uint16_t p = 1; p <= 50; p++) {
        ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_udp(A, B, p, 1)), MOAT_R_POLICY_CHANGE);
        ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_tcp(A, B, p, 80, 101, 501, ACK, 0)), MOAT_R_NONE);
        ck_assert_int_eq(push(A, MOAT_TO_VM, vm_tcp(B, A, 80, p, 501, 101, ACK, 0)), MOAT_R_NONE);
        ck_assert_int_eq(push(C, MOAT_FROM_VM, vm_udp(C, B, p, 1)), MOAT_R_NONE);
    }
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_REJUDGED), 100); /* once each */
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CUT), 50);
    ck_assert_uint_eq(rig_counter(&r, C, MOAT_C_SESSIONS_REJUDGED), 0);
    ck_assert_uint_eq(rig_counter(&r, B, MOAT_C_SESSIONS_REJUDGED), 0);
}
END_TEST

/* By original direction: what B says on A's connection is admitted by a rule about A. */
START_TEST(a_session_is_judged_in_its_own_direction)
{
    some_sessions(A, B);
    rig_publish(&r, A, tcp_only);
    ck_assert_int_eq(push(A, MOAT_TO_VM, vm_tcp(B, A, 80, 1, 501, 101, ACK, 9)), MOAT_R_NONE);
    ck_assert_int_eq(push(A, MOAT_TO_VM, vm_tcp(B, A, 2222, 80, 501, 0, SYN, 0)), MOAT_R_DEFAULT);
}
END_TEST

START_TEST(quarantine_cuts_idle_sessions)
{
    struct moat_event ev;

    some_sessions(A, B);
    some_sessions(C, B);
    settings.quarantine = 1;
    rig_settings(&r, A, &settings);
    rig_publish(&r, A, nothing);
    ck_assert_uint_eq(live(A), 100);
    rig_pass_time(&r, 1000);
    ck_assert(rig_event(&r, MOAT_EV_CUT, &ev));
    ck_assert_int_eq(ev.value, 100);
    ck_assert_str_eq(ev.vnic, rig_vnic[A]);
    ck_assert(!rig_event(&r, MOAT_EV_CUT, &ev));
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CUT), 100);
    ck_assert_uint_eq(rig_counter(&r, C, MOAT_C_SESSIONS_CUT), 0);
    rig_pass_time(&r, 4000);
    ck_assert_uint_eq(live(A), 0);
    ck_assert_uint_eq(live(C), 100);
}
END_TEST

START_TEST(without_quarantine_idle_sessions_wait_for_a_packet)
{
    some_sessions(A, B);
    rig_publish(&r, A, nothing);
    rig_pass_time(&r, 5000);
    ck_assert_uint_eq(live(A), 100);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_REJUDGED), 0);
}
END_TEST

/* What the base tier of quarantine still permits goes on. */
START_TEST(quarantine_spares_what_it_permits)
{
    struct moat_event ev;

    some_sessions(A, B);
    settings.quarantine = 1;
    rig_settings(&r, A, &settings);
    rig_publish(&r, A, tcp_only);
    rig_pass_time(&r, 1000);
    ck_assert(rig_event(&r, MOAT_EV_CUT, &ev));
    ck_assert_int_eq(ev.value, 50);
    rig_pass_time(&r, 4000);
    ck_assert_uint_eq(live(A), 50);
}
END_TEST

/* Two at a time, the second while the first sweep runs. */
START_TEST(sweeps_overlap)
{
    some_sessions(A, B);
    some_sessions(C, B);
    settings.quarantine = 1;
    rig_settings(&r, A, &settings);
    rig_settings(&r, C, &settings);
    rig_publish(&r, A, nothing);
    rig_pass_time(&r, 200);
    rig_publish(&r, C, nothing);
    rig_pass_time(&r, 1000);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CUT), 100);
    ck_assert_uint_eq(rig_counter(&r, C, MOAT_C_SESSIONS_CUT), 100);
}
END_TEST

/* --- enrolling --- */

static void enroll(unsigned slot, uint32_t seconds)
{
    struct moat_ctl_state st = {.state = MOAT_SLOT_ENROLLING, .pickup_s = seconds};
    char err[128];

    memcpy(st.vnic, rig_vnic[slot], strlen(rig_vnic[slot]) + 1);
    ck_assert_int_eq(moat_slot_set_state(r.e, &st, err, sizeof err), 0);
}

START_TEST(enrolling_resets_nothing)
{
    struct moat_event ev;
    struct moat_slot_info info;

    rig_publish(&r, A, tcp_only);
    enroll(A, 30);
    /* Mid-stream, permitted: picked up.  Not permitted: passes and is logged. */
    ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_tcp(A, B, 1000, 80, 5000, 7000, ACK, 10)),
                     MOAT_R_NONE);
    ck_assert_int_eq(push(A, MOAT_TO_VM, vm_tcp(B, A, 80, 1000, 7000, 5010, ACK, 10)), MOAT_R_NONE);
    ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_udp(A, B, 5, 53)), MOAT_R_NONE);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_PICKED_UP), 1);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_WOULD_REFUSE), 1);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_DROP(MOAT_FROM_VM, MOAT_R_DEFAULT)), 0);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_FROM_VM_PKTS), 2);
    ck_assert(rig_event(&r, MOAT_EV_PACKET, &ev));
    ck_assert_uint_eq(ev.reason, MOAT_R_DEFAULT);
    ck_assert_uint_eq(ev.flow.dport, 53);
    ck_assert_ptr_nonnull(strstr(ev.text, "enrolled"));
    ck_assert(moat_slot_info(r.e, A, &info));
    ck_assert_uint_eq(info.state, MOAT_SLOT_ENROLLING);
    ck_assert_uint_eq(info.enroll_left_s, 30);

    /* Then it enforces, and what was picked up lives on. */
    rig_pass_time(&r, 31000);
    ck_assert(rig_event(&r, MOAT_EV_ENROLLED, &ev));
    ck_assert_int_eq(ev.value, 1);
    ck_assert(moat_slot_info(r.e, A, &info));
    ck_assert_uint_eq(info.state, MOAT_SLOT_ACTIVE);
    ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_tcp(A, B, 1000, 80, 5010, 7010, ACK, 10)),
                     MOAT_R_NONE);
    ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_udp(A, B, 5, 53)), MOAT_R_DEFAULT);
    ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_tcp(A, B, 1001, 80, 5000, 7000, ACK, 10)),
                     MOAT_R_TCP_NO_SESSION);
}
END_TEST

/* The time runs from the start of the rings. */
START_TEST(enrolling_waits_for_the_vm)
{
    struct moat_slot_info info;

    moat_port_stopped(r.port[A]);
    enroll(A, 10);
    rig_pass_time(&r, 60000);
    ck_assert(moat_slot_info(r.e, A, &info));
    ck_assert_uint_eq(info.state, MOAT_SLOT_ENROLLING);
    ck_assert_uint_eq(info.enroll_left_s, 0);
    moat_port_started(r.port[A]);
    rig_pass_time(&r, 5000);
    enroll(A, 0); /* said again without a time: it runs on */
    ck_assert(moat_slot_info(r.e, A, &info));
    ck_assert_uint_eq(info.state, MOAT_SLOT_ENROLLING);
    rig_pass_time(&r, 6000);
    ck_assert(moat_slot_info(r.e, A, &info));
    ck_assert_uint_eq(info.state, MOAT_SLOT_ACTIVE);
}
END_TEST

START_TEST(enrolling_answers_nothing)
{
    static const char rejects[] = "policy \"t\" version 1\ntier main { reject from any to any }\n";

    rig_publish(&r, A, rejects);
    enroll(A, 10);
    ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_tcp(A, B, 1000, 80, 5000, 7000, ACK, 10)),
                     MOAT_R_NONE);
    ck_assert_uint_eq(rig_n_injected, 0);
    rig_pass_time(&r, 11000);
    ck_assert_int_eq(push(A, MOAT_FROM_VM, vm_tcp(A, B, 1000, 80, 5000, 7000, ACK, 10)),
                     MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 1);
}
END_TEST

/* --- timers --- */

struct timer_row {
    enum moat_timer timer;
    unsigned kind; /* of conversation */
};

static const struct timer_row timers[] = {
    {MOAT_T_TCP_FIRST, 0},     {MOAT_T_TCP_OPENING, 1},     {MOAT_T_TCP_ESTABLISHED, 2},
    {MOAT_T_TCP_CLOSING, 3},   {MOAT_T_TCP_FIN_WAIT, 4},    {MOAT_T_TCP_CLOSED, 5},
    {MOAT_T_UDP_FIRST, 6},     {MOAT_T_UDP_SINGLE, 7},      {MOAT_T_UDP_MULTIPLE, 8},
    {MOAT_T_ICMP, 9},          {MOAT_T_ICMP_ERROR, 10},     {MOAT_T_OTHER_FIRST, 11},
    {MOAT_T_OTHER_SINGLE, 12}, {MOAT_T_OTHER_MULTIPLE, 13},
};

static void out(struct frame f)
{
    ck_assert_int_eq(push(A, MOAT_FROM_VM, f), MOAT_R_NONE);
}

static void in(struct frame f)
{
    ck_assert_int_eq(push(A, MOAT_TO_VM, f), MOAT_R_NONE);
}

static struct frame gre(unsigned from, unsigned to)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip4(&f, rig_ip4[from], rig_ip4[to], 47);
    frame_data(&f, 20);
    frame_end(&f);
    return f;
}

static void converse(unsigned kind)
{
    struct frame ping = vm_icmp(A, B, 8, 7);

    if (kind <= 5)
        out(vm_tcp(A, B, 1000, 80, 100, 0, SYN, 0));
    if (kind >= 1 && kind <= 5)
        in(vm_tcp(B, A, 80, 1000, 500, 101, SYN | ACK, 0));
    if (kind >= 2 && kind <= 5)
        out(vm_tcp(A, B, 1000, 80, 101, 501, ACK, 0));
    if (kind >= 3 && kind <= 5)
        out(vm_tcp(A, B, 1000, 80, 101, 501, ACK | MOAT_TCP_FIN, 0));
    if (kind == 4 || kind == 5)
        in(vm_tcp(B, A, 80, 1000, 501, 102, ACK | MOAT_TCP_FIN, 0));
    if (kind == 5)
        out(vm_tcp(A, B, 1000, 80, 102, 502, ACK, 0));
    for (unsigned n = 0; kind >= 6 && kind <= 8 && n < kind - 5; n++)
        n % 2 ? in(vm_udp(B, A, 53, 1000)) : out(vm_udp(A, B, 1000, 53));
    if (kind == 8)
        in(vm_udp(B, A, 53, 1000));
    if (kind == 9 || kind == 10)
        out(ping);
    if (kind == 10)
        in(vm_icmp_error(B, A, 3, 1, &ping, 28));
    for (unsigned n = 0; kind >= 11 && n < kind - 10; n++)
        n % 2 ? in(gre(B, A)) : out(gre(A, B));
    if (kind == 13)
        in(gre(B, A));
}

/* Each with its default, and with a value of the VM's own, shorter and longer. */
START_TEST(each_timer_ends_its_sessions)
{
    const struct timer_row *t = &timers[_i];
    const uint32_t own[] = {0, 3, 7 * 86400};

    for (unsigned k = 0; k < 3; k++) {
        uint32_t seconds = own[k] ? own[k] : moat_timer_default(t->timer);

        moat_settings_init(&settings);
        settings.timers[t->timer] = own[k];
        rig_settings(&r, A, &settings);
        converse(t->kind);
        ck_assert_uint_eq(live(A), 1);
        rig_clock_ms += seconds * 1000ull - 4000 * (seconds > 10);
        rig_pass_time(&r, seconds > 10 ? 3500 : 0); /* long enough to look at each once */
        ck_assert_uint_eq(live(A), 1);
        rig_clock_ms += 2000;
        rig_pass_time(&r, 3500);
        ck_assert_uint_eq(live(A), 0);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("sweep");
    TCase *tc = tcase_create("judged again");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, only_the_slot_concerned_judges_again);
    tcase_add_test(tc, a_session_is_judged_in_its_own_direction);
    tcase_add_test(tc, quarantine_cuts_idle_sessions);
    tcase_add_test(tc, without_quarantine_idle_sessions_wait_for_a_packet);
    tcase_add_test(tc, quarantine_spares_what_it_permits);
    tcase_add_test(tc, sweeps_overlap);
    tcase_add_test(tc, enrolling_resets_nothing);
    tcase_add_test(tc, enrolling_waits_for_the_vm);
    tcase_add_test(tc, enrolling_answers_nothing);
    tcase_add_loop_test(tc, each_timer_ends_its_sessions, 0, MOAT_N_TIMERS);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
