/* SPDX-License-Identifier: Apache-2.0 */

/* Packets through the whole filter core: what passes, what does not, and why. */

#include "datapath/pipe.h"

#include <check.h>
#include <stdio.h>
#include <string.h>

#include "tests/lib/packet.h"
#include "tests/lib/rig.h"
#include "tests/lib/vm_frame.h"

#define A 0
#define B 1
#define C 2

static const char policy[] = "policy \"t\" version 1\n"
                             "service http = tcp 80\n"
                             "service dns = udp 53\n"
                             "service ping = icmp echo-request, icmp6 echo-request\n"
                             "tier main {\n"
                             "    allow from vm \"a\" to vm \"b\" service http, dns, ping\n"
                             "    drop log from vm \"c\" to vm \"b\"\n"
                             "}\n"
                             "default drop\n";

static const char nothing[] = "policy \"t\" version 1\n"
                              "tier main { drop from any to any }\n"
                              "default drop\n";

static struct rig r;

static void setup(void)
{
    rig_start(&r, NULL, policy);
}

static void teardown(void)
{
    rig_destroy(&r);
}

static bool goes(unsigned from, unsigned to, struct frame f)
{
    return rig_between(&r, from, to, f.data, f.len);
}

static enum moat_reason why_not(unsigned slot, enum moat_dir dir, struct frame f)
{
    enum moat_reason reason;

    ck_assert_msg(!rig_push(&r, slot, dir, f.data, f.len, &reason), "it passes");
    return reason;
}

static void connect_ab(uint16_t sport)
{
    ck_assert(goes(A, B, vm_tcp(A, B, sport, 80, 100, 0, MOAT_TCP_SYN, 0)));
    ck_assert(goes(B, A, vm_tcp(B, A, 80, sport, 500, 101, MOAT_TCP_SYN | MOAT_TCP_ACK, 0)));
    ck_assert(goes(A, B, vm_tcp(A, B, sport, 80, 101, 501, MOAT_TCP_ACK, 0)));
}

START_TEST(a_permitted_connection_lives)
{
    connect_ab(4000);
    ck_assert(goes(A, B, vm_tcp(A, B, 4000, 80, 101, 501, MOAT_TCP_ACK | MOAT_TCP_PSH, 200)));
    ck_assert(goes(B, A, vm_tcp(B, A, 80, 4000, 501, 301, MOAT_TCP_ACK, 1000)));
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CREATED), 1);
    ck_assert_uint_eq(rig_counter(&r, B, MOAT_C_SESSIONS_CREATED), 1);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_FROM_VM_PKTS), 3);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_TO_VM_PKTS), 2);
    /* A window's worth ahead of what B allowed. */
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, vm_tcp(A, B, 4000, 80, 20000, 501, MOAT_TCP_ACK, 9)),
                     MOAT_R_TCP_WINDOW);
}
END_TEST

START_TEST(what_policy_does_not_permit_is_refused_with_its_reason)
{
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, vm_tcp(A, B, 4000, 81, 1, 0, MOAT_TCP_SYN, 0)),
                     MOAT_R_DEFAULT);
    ck_assert_int_eq(why_not(B, MOAT_FROM_VM, vm_tcp(B, A, 4000, 80, 1, 0, MOAT_TCP_SYN, 0)),
                     MOAT_R_DEFAULT);
    ck_assert_int_eq(why_not(C, MOAT_FROM_VM, vm_tcp(C, B, 4000, 80, 1, 0, MOAT_TCP_SYN, 0)),
                     MOAT_R_RULE);
    ck_assert_int_eq(why_not(B, MOAT_TO_VM, vm_tcp(C, B, 4000, 80, 1, 0, MOAT_TCP_SYN, 0)),
                     MOAT_R_RULE);
    ck_assert_uint_eq(rig_counter(&r, B, MOAT_C_DROP(MOAT_TO_VM, MOAT_R_RULE)), 1);
    ck_assert_uint_eq(rig_counter(&r, B, MOAT_C_SESSIONS_CREATED), 0);
}
END_TEST

START_TEST(a_logged_rule_writes_an_event)
{
    struct moat_event ev;
    unsigned n = 0;

    while (moat_event_take(&r.e->events, &ev))
        ;
    why_not(C, MOAT_FROM_VM, vm_udp(C, B, 7, 8));
    while (moat_event_take(&r.e->events, &ev)) {
        ck_assert_int_eq(ev.type, MOAT_EV_PACKET);
        ck_assert_int_eq(ev.reason, MOAT_R_RULE);
        ck_assert_uint_eq(ev.rule, 2);
        ck_assert_uint_eq(ev.flow.dport, 8);
        ck_assert_str_eq(ev.vnic, rig_vnic[C]);
        n++;
    }
    ck_assert_uint_eq(n, 1);
}
END_TEST

START_TEST(tcp_starts_with_syn)
{
    struct moat_slot_conf c;
    char err[128];

    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, vm_tcp(A, B, 4000, 80, 5, 6, MOAT_TCP_ACK, 10)),
                     MOAT_R_TCP_NO_SESSION);
    rig_conf(A, MOAT_SLOT_ACTIVE, &c);
    c.settings.tcp_loose = 1;
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), 0);
    struct frame f = vm_tcp(A, B, 4000, 80, 5, 6, MOAT_TCP_ACK, 10);
    ck_assert(rig_push(&r, A, MOAT_FROM_VM, f.data, f.len, NULL));
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_PICKED_UP), 1);
}
END_TEST

START_TEST(udp_answers_pass_and_nothing_else)
{
    ck_assert(goes(A, B, vm_udp(A, B, 5353, 53)));
    ck_assert(goes(B, A, vm_udp(B, A, 53, 5353)));
    ck_assert_int_eq(why_not(B, MOAT_FROM_VM, vm_udp(B, A, 53, 5354)), MOAT_R_DEFAULT);
    ck_assert_int_eq(why_not(A, MOAT_TO_VM, vm_udp(B, A, 53, 5354)), MOAT_R_DEFAULT);
    ck_assert(goes(A, B, vm_udp6(A, B, 5353, 53)));
    ck_assert(goes(B, A, vm_udp6(B, A, 53, 5353)));
    ck_assert_int_eq(why_not(A, MOAT_TO_VM, vm_udp6(B, A, 54, 5353)), MOAT_R_DEFAULT);
    rig_clock_ms += 61 * 1000; /* udp-single has passed */
    ck_assert_int_eq(why_not(B, MOAT_FROM_VM, vm_udp(B, A, 53, 5353)), MOAT_R_DEFAULT);
}
END_TEST

START_TEST(pings_have_one_direction)
{
    ck_assert(goes(A, B, vm_icmp(A, B, 8, 77)));
    ck_assert(goes(B, A, vm_icmp(B, A, 0, 77)));
    ck_assert_int_eq(why_not(B, MOAT_FROM_VM, vm_icmp(B, A, 0, 78)), MOAT_R_DEFAULT);
    ck_assert_int_eq(why_not(B, MOAT_FROM_VM, vm_icmp(B, A, 8, 77)), MOAT_R_DEFAULT);
    ck_assert_int_eq(why_not(A, MOAT_TO_VM, vm_icmp(B, A, 8, 77)), MOAT_R_DEFAULT);
}
END_TEST

/* Port unreachable from B about a datagram that it got. */
static struct frame unreachable(unsigned from, unsigned to, const struct frame *about)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip4(&f, rig_ip4[from], rig_ip4[to], 1);
    frame_icmp(&f, 3, 3, 0);
    frame_bytes(&f, about->data + 14, 28);
    frame_end(&f);
    return f;
}

START_TEST(icmp_errors_must_quote_a_session)
{
    struct frame sent = vm_udp(A, B, 5353, 53), other = vm_udp(A, B, 5354, 53);
    struct frame backwards = vm_udp(B, A, 53, 5353);

    ck_assert(goes(A, B, sent));
    ck_assert(goes(B, A, unreachable(B, A, &sent)));
    ck_assert_int_eq(why_not(B, MOAT_FROM_VM, unreachable(B, A, &other)), MOAT_R_ICMP_UNRELATED);
    ck_assert_int_eq(why_not(A, MOAT_TO_VM, unreachable(B, A, &other)), MOAT_R_ICMP_UNRELATED);
    /* B never answered: nobody can complain to it. */
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, unreachable(A, B, &backwards)),
                     MOAT_R_ICMP_UNRELATED);
}
END_TEST

START_TEST(a_vm_speaks_only_for_itself)
{
    static const uint8_t bcast[6] = {255, 255, 255, 255, 255, 255};
    struct frame f = vm_udp(A, B, 5353, 53);

    f.data[11] = 9;
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, f), MOAT_R_SPOOF_MAC);
    f = vm_udp(A, B, 5353, 53);
    f.data[29] = 3;
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, f), MOAT_R_SPOOF_IP);
    f = vm_udp6(A, B, 5353, 53);
    f.data[37] = 3;
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, f), MOAT_R_SPOOF_IP);
    frame_eth(&f, bcast, rig_mac[A]);
    frame_arp(&f, 1, rig_mac[A], rig_ip4[A], rig_mac[B], rig_ip4[B]);
    frame_end(&f);
    ck_assert(rig_push(&r, A, MOAT_FROM_VM, f.data, f.len, NULL));
    ck_assert(rig_push(&r, B, MOAT_TO_VM, f.data, f.len, NULL));
    frame_eth(&f, bcast, rig_mac[A]);
    frame_arp(&f, 1, rig_mac[A], rig_ip4[C], rig_mac[B], rig_ip4[B]);
    frame_end(&f);
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, f), MOAT_R_SPOOF_ARP);
    frame_eth(&f, bcast, rig_mac[A]);
    frame_arp(&f, 2, rig_mac[C], rig_ip4[A], rig_mac[B], rig_ip4[B]);
    frame_end(&f);
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, f), MOAT_R_SPOOF_ARP);
}
END_TEST

START_TEST(tags_and_strange_types_do_not_hide_a_packet)
{
    struct frame f;

    frame_eth(&f, rig_mac[B], rig_mac[A]);
    frame_vlan(&f, 0x8100, 5);
    frame_ip4(&f, rig_ip4[A], rig_ip4[B], 17);
    frame_udp(&f, 5353, 53);
    frame_end(&f);
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, f), MOAT_R_VLAN);
    f = vm_udp(A, B, 1, 53);
    f.data[12] = 0x88;
    f.data[13] = 0xcc;
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, f), MOAT_R_L2_TYPE);
}
END_TEST

START_TEST(only_the_own_rarp_passes_a_blocked_slot)
{
    static const uint8_t bcast[6] = {255, 255, 255, 255, 255, 255};
    struct moat_ctl_state st = {.state = MOAT_SLOT_BLOCKED};
    struct frame f, g;
    unsigned passed = 0;
    char err[128];

    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[A]);
    ck_assert_int_eq(moat_slot_set_state(r.e, &st, err, sizeof err), 0);
    frame_eth(&f, bcast, rig_mac[A]);
    frame_rarp(&f, rig_mac[A]);
    g = f;
    for (int i = 0; i < 1000; i++)
        passed += rig_push(&r, A, MOAT_FROM_VM, f.data, f.len, NULL);
    ck_assert_uint_ge(passed, 1);
    ck_assert_uint_le(passed, 20);
    rig_clock_ms += 2000;
    g.data[24] ^= 1; /* somebody else's MAC inside */
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, g), MOAT_R_BLOCKED);
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, vm_udp(A, B, 5353, 53)), MOAT_R_BLOCKED);
    ck_assert_int_eq(why_not(A, MOAT_TO_VM, f), MOAT_R_BLOCKED);
}
END_TEST

START_TEST(logged_packets_do_not_use_up_the_announcement)
{
    static const uint8_t bcast[6] = {255, 255, 255, 255, 255, 255};
    struct frame f;

    for (int i = 0; i < 100; i++)
        why_not(C, MOAT_FROM_VM, vm_udp(C, B, 7, 8));
    frame_eth(&f, bcast, rig_mac[C]);
    frame_rarp(&f, rig_mac[C]);
    ck_assert(rig_push(&r, C, MOAT_FROM_VM, f.data, f.len, NULL));
}
END_TEST

START_TEST(a_new_policy_judges_live_sessions_again)
{
    connect_ab(4000);
    ck_assert(goes(A, B, vm_udp(A, B, 5353, 53)));
    rig_publish(&r, A, policy); /* the same: nothing to judge */
    ck_assert(goes(A, B, vm_tcp(A, B, 4000, 80, 101, 501, MOAT_TCP_ACK, 0)));
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_REJUDGED), 0);
    /* Without DNS: the connection stays, though its answers come the other way. */
    rig_publish(&r, A,
                "policy \"t\" version 1\nservice http = tcp 80\n"
                "tier main { allow from vm \"a\" to vm \"b\" service http }\ndefault drop\n");
    ck_assert(goes(B, A, vm_tcp(B, A, 80, 4000, 501, 101, MOAT_TCP_ACK, 5)));
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_REJUDGED), 1);
    ck_assert_int_eq(why_not(A, MOAT_TO_VM, vm_udp(B, A, 53, 5353)), MOAT_R_POLICY_CHANGE);
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, vm_udp(A, B, 5353, 53)), MOAT_R_DEFAULT);
    rig_publish(&r, A, nothing);
    ck_assert_int_eq(why_not(A, MOAT_TO_VM, vm_tcp(B, A, 80, 4000, 506, 101, MOAT_TCP_ACK, 5)),
                     MOAT_R_POLICY_CHANGE);
    /* Cut for good: the old policy does not bring it back. */
    rig_publish(&r, A, policy);
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, vm_tcp(A, B, 4000, 80, 101, 506, MOAT_TCP_ACK, 0)),
                     MOAT_R_TCP_NO_SESSION);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CUT), 2);
}
END_TEST

START_TEST(a_port_is_used_again_after_the_end)
{
    connect_ab(4000);
    ck_assert(goes(A, B, vm_tcp(A, B, 4000, 80, 101, 501, MOAT_TCP_RST | MOAT_TCP_ACK, 0)));
    ck_assert(goes(A, B, vm_tcp(A, B, 4000, 80, 70000, 0, MOAT_TCP_SYN, 0)));
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CREATED), 2);
    ck_assert(goes(B, A, vm_tcp(B, A, 80, 4000, 9, 70001, MOAT_TCP_SYN | MOAT_TCP_ACK, 0)));
}
END_TEST

START_TEST(a_quota_is_kept)
{
    struct moat_slot_conf c;
    char err[128];

    rig_conf(A, MOAT_SLOT_ACTIVE, &c);
    c.settings.max_sessions = 3;
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), 0);
    connect_ab(4000);
    connect_ab(4001);
    connect_ab(4002);
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, vm_tcp(A, B, 4003, 80, 1, 0, MOAT_TCP_SYN, 0)),
                     MOAT_R_QUOTA);
    ck_assert(goes(A, B, vm_tcp(A, B, 4001, 80, 101, 501, MOAT_TCP_ACK, 10)));
    /* What has ended makes room when ageing has come by. */
    ck_assert(goes(A, B, vm_tcp(A, B, 4002, 80, 101, 501, MOAT_TCP_RST | MOAT_TCP_ACK, 0)));
    rig_clock_ms += 21 * 1000;
    for (int i = 0; i < 8; i++)
        moat_engine_turn(r.e);
    ck_assert(goes(A, B, vm_tcp(A, B, 4003, 80, 1, 0, MOAT_TCP_SYN, 0)));
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_EXPIRED), 1);
}
END_TEST

START_TEST(enrolling_only_says_what_it_would_do)
{
    struct moat_ctl_state st = {.state = MOAT_SLOT_ENROLLING};
    struct frame f = vm_tcp(A, B, 4000, 80, 5, 6, MOAT_TCP_ACK, 10);
    char err[128];

    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[A]);
    ck_assert_int_eq(moat_slot_set_state(r.e, &st, err, sizeof err), 0);
    ck_assert(rig_push(&r, A, MOAT_FROM_VM, f.data, f.len, NULL));
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_PICKED_UP), 1);
    f = vm_udp(A, C, 1, 2);
    ck_assert(rig_push(&r, A, MOAT_FROM_VM, f.data, f.len, NULL));
    st.state = MOAT_SLOT_ACTIVE;
    ck_assert_int_eq(moat_slot_set_state(r.e, &st, err, sizeof err), 0);
    f = vm_tcp(A, B, 4000, 80, 15, 6, MOAT_TCP_ACK, 10);
    ck_assert(rig_push(&r, A, MOAT_FROM_VM, f.data, f.len, NULL));
    ck_assert_int_eq(why_not(A, MOAT_FROM_VM, vm_udp(A, C, 1, 2)), MOAT_R_DEFAULT);
}
END_TEST

/* The same packets in bursts of any size give the same verdicts. */
START_TEST(burst_size_does_not_matter)
{
    struct frame f[8] = {
        vm_tcp(A, B, 4000, 80, 100, 0, MOAT_TCP_SYN, 0), vm_udp(A, B, 5353, 53),
        vm_tcp(A, B, 4000, 80, 100, 0, MOAT_TCP_SYN, 0), vm_udp(A, B, 5353, 54),
        vm_udp(A, B, 5353, 53),                          vm_icmp(A, B, 8, 1),
        vm_udp6(A, B, 1, 53),                            vm_tcp(A, C, 1, 2, 3, 4, MOAT_TCP_SYN, 0),
    };
    const uint32_t want = 0x77;

    for (unsigned size = 1; size <= 8; size++) {
        uint32_t got = 0;

        rig_destroy(&r);
        rig_start(&r, NULL, policy);
        for (unsigned at = 0; at < 8; at += size) {
            struct moat_pkt p[8];
            unsigned n = at + size <= 8 ? size : 8 - at;

            for (unsigned i = 0; i < n; i++)
                p[i] = rig_pkt(f[at + i].data, f[at + i].len, f[at + i].len);
            got |= moat_pipe_burst(moat_thread_self(r.e), r.port[A], MOAT_FROM_VM, p, n) << at;
        }
        ck_assert_msg(got == want, "burst of %u: %#x, not %#x", size, got, want);
        ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CREATED), 4);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pipe");
    TCase *tc = tcase_create("verdicts");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_permitted_connection_lives);
    tcase_add_test(tc, what_policy_does_not_permit_is_refused_with_its_reason);
    tcase_add_test(tc, a_logged_rule_writes_an_event);
    tcase_add_test(tc, tcp_starts_with_syn);
    tcase_add_test(tc, udp_answers_pass_and_nothing_else);
    tcase_add_test(tc, pings_have_one_direction);
    tcase_add_test(tc, icmp_errors_must_quote_a_session);
    tcase_add_test(tc, a_vm_speaks_only_for_itself);
    tcase_add_test(tc, tags_and_strange_types_do_not_hide_a_packet);
    tcase_add_test(tc, only_the_own_rarp_passes_a_blocked_slot);
    tcase_add_test(tc, logged_packets_do_not_use_up_the_announcement);
    tcase_add_test(tc, a_new_policy_judges_live_sessions_again);
    tcase_add_test(tc, a_port_is_used_again_after_the_end);
    tcase_add_test(tc, a_quota_is_kept);
    tcase_add_test(tc, enrolling_only_says_what_it_would_do);
    tcase_add_test(tc, burst_size_does_not_matter);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
