/* SPDX-License-Identifier: Apache-2.0 */

/* Packets that no session answers for: quotas, answers to what is refused, ICMP errors, port
 * reuse. */

#include <check.h>
#include <string.h>

#include "datapath/pipe.h"
#include "tests/lib/rig.h"
#include "tests/lib/vm_frame.h"

#define A 0
#define B 1
#define C 2
#define SYN MOAT_TCP_SYN
#define ACK MOAT_TCP_ACK
#define RST MOAT_TCP_RST
#define FIN MOAT_TCP_FIN

static const char policy[] = "policy \"t\" version 1\n"
                             "tier main {\n"
                             "    reject from any to any service tcp 99, udp 99\n"
                             "    drop log from any to any service tcp 98\n"
                             "    allow from any to any\n"
                             "}\n";

static struct rig r;
static struct moat_settings settings;

static void setup(void)
{
    rig_start(&r, NULL, policy);
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

static enum moat_reason out(struct frame f)
{
    return push(A, MOAT_FROM_VM, f);
}

static enum moat_reason in(struct frame f)
{
    return push(A, MOAT_TO_VM, f);
}

static struct moat_slot_info info_of(unsigned slot)
{
    struct moat_slot_info info;

    ck_assert(moat_slot_info(r.e, slot, &info));
    return info;
}

/* A to B, established at A's slot. */
static void connect_a(uint16_t sport)
{
    ck_assert_int_eq(out(vm_tcp(A, B, sport, 80, 100, 0, SYN, 0)), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_tcp(B, A, 80, sport, 500, 101, SYN | ACK, 0)), MOAT_R_NONE);
    ck_assert_int_eq(out(vm_tcp(A, B, sport, 80, 101, 501, ACK, 0)), MOAT_R_NONE);
}

/* --- quotas --- */

static void expect_quota_event(enum moat_reason reason, int64_t limit)
{
    struct moat_event ev;

    ck_assert(rig_event(&r, MOAT_EV_QUOTA, &ev));
    ck_assert_uint_eq(ev.reason, reason);
    ck_assert_int_eq(ev.value, limit);
    ck_assert_str_eq(ev.vnic, rig_vnic[A]);
    ck_assert(!rig_event(&r, MOAT_EV_QUOTA, &ev)); /* once a second */
}

START_TEST(quota_of_sessions)
{
    settings.max_sessions = 3;
    rig_settings(&r, A, &settings);
    connect_a(1000);
    ck_assert_int_eq(out(vm_udp(A, B, 1, 1)), MOAT_R_NONE);
    ck_assert_int_eq(out(vm_udp(A, B, 2, 1)), MOAT_R_NONE);
    for (uint16_t p = 3; p < 20; p++)
        ck_assert_int_eq(out(vm_udp(A, B, p, 1)), MOAT_R_QUOTA);
    expect_quota_event(MOAT_R_QUOTA, 3);
    /* Its own sessions live on, and others are not concerned. */
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 80, 101, 501, ACK, 5)), MOAT_R_NONE);
    ck_assert_int_eq(out(vm_udp(A, B, 1, 1)), MOAT_R_NONE);
    ck_assert_int_eq(push(B, MOAT_FROM_VM, vm_udp(B, C, 1, 1)), MOAT_R_NONE);
    ck_assert_uint_eq(info_of(A).sessions, 3);
    /* Room comes back when sessions end. */
    rig_pass_time(&r, 120000);
    ck_assert_uint_eq(info_of(A).sessions, 1);
    ck_assert_int_eq(out(vm_udp(A, B, 30, 1)), MOAT_R_NONE);
}
END_TEST

START_TEST(quota_of_half_open_sessions)
{
    settings.max_half_open = 4;
    rig_settings(&r, A, &settings);
    connect_a(1000);
    ck_assert_uint_eq(info_of(A).half_open, 0);
    for (uint16_t p = 1; p <= 4; p++)
        ck_assert_int_eq(in(vm_tcp(B, A, p, 80, 100, 0, SYN, 0)), MOAT_R_NONE);
    ck_assert_uint_eq(info_of(A).half_open, 4);
    ck_assert_int_eq(in(vm_tcp(B, A, 5, 80, 100, 0, SYN, 0)), MOAT_R_QUOTA_HALF_OPEN);
    expect_quota_event(MOAT_R_QUOTA_HALF_OPEN, 4);
    /* Other protocols and established connections are not concerned. */
    ck_assert_int_eq(out(vm_udp(A, B, 1, 1)), MOAT_R_NONE);
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 80, 101, 501, ACK, 5)), MOAT_R_NONE);
    /* One handshake ends, one is refused, one times out with the others. */
    ck_assert_int_eq(out(vm_tcp(A, B, 80, 1, 500, 101, SYN | ACK, 0)), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_tcp(B, A, 1, 80, 101, 501, ACK, 0)), MOAT_R_NONE);
    ck_assert_uint_eq(info_of(A).half_open, 3);
    ck_assert_int_eq(out(vm_tcp(A, B, 80, 2, 0, 101, RST | ACK, 0)), MOAT_R_NONE);
    ck_assert_uint_eq(info_of(A).half_open, 2);
    ck_assert_int_eq(in(vm_tcp(B, A, 5, 80, 100, 0, SYN, 0)), MOAT_R_NONE);
    rig_pass_time(&r, 200000);
    ck_assert_uint_eq(info_of(A).half_open, 0);
    ck_assert_uint_eq(info_of(A).sessions, 2);
}
END_TEST

/* A half-open session that has timed out, but not been collected, serves again. */
START_TEST(half_open_sessions_are_counted_once)
{
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(out(vm_tcp(A, B, 1000, 80, 100, 0, SYN, 0)), MOAT_R_NONE);
        ck_assert_uint_eq(info_of(A).half_open, 1);
        ck_assert_int_eq(out(vm_tcp(A, B, 1000, 80, 100, 0, SYN, 0)), MOAT_R_NONE);
        ck_assert_uint_eq(info_of(A).half_open, 1);
        rig_clock_ms += 200000;
    }
    rig_pass_time(&r, 10000);
    ck_assert_uint_eq(info_of(A).half_open, 0);
    /* Voided sessions no longer count. */
    ck_assert_int_eq(out(vm_tcp(A, B, 1001, 80, 100, 0, SYN, 0)), MOAT_R_NONE);
    char err[128];
    ck_assert_int_eq(moat_slot_flush(r.e, rig_vnic[A], err, sizeof err), 0);
    ck_assert_uint_eq(info_of(A).half_open, 0);
    rig_pass_time(&r, 200000);
    ck_assert_uint_eq(info_of(A).half_open, 0);
    ck_assert_uint_eq(info_of(A).sessions, 0);
}
END_TEST

START_TEST(quota_of_new_sessions_a_second)
{
    settings.max_new = 10;
    rig_settings(&r, A, &settings);
    for (int second = 0; second < 3; second++) {
        unsigned opened = 0;

        for (uint16_t p = 1; p <= 30; p++) {
            enum moat_reason reason = out(vm_udp(A, B, (uint16_t)(second * 100 + p), 1));

            opened += !reason;
            ck_assert(!reason || reason == MOAT_R_QUOTA_NEW);
        }
        ck_assert_uint_eq(opened, 10);
        expect_quota_event(MOAT_R_QUOTA_NEW, 10);
        rig_clock_ms += 1000;
    }
    /* What is refused by a rule uses nothing up. */
    for (int i = 0; i < 30; i++)
        ck_assert_int_eq(out(vm_tcp(A, B, 1, 98, 1, 0, SYN, 0)), MOAT_R_RULE);
    ck_assert_int_eq(out(vm_udp(A, B, 9999, 1)), MOAT_R_NONE);
}
END_TEST

START_TEST(quota_of_log_lines)
{
    struct moat_event ev;
    unsigned logged = 0, told = 0;

    settings.max_logs = 5;
    rig_settings(&r, A, &settings);
    for (int i = 0; i < 30; i++)
        ck_assert_int_eq(out(vm_tcp(A, B, 1, 98, 1, 0, SYN, 0)), MOAT_R_RULE);
    while (moat_event_take(&r.e->events, &ev)) {
        logged += ev.type == MOAT_EV_PACKET;
        if (ev.type == MOAT_EV_QUOTA) {
            told++;
            ck_assert_int_eq(ev.value, 5);
            ck_assert_ptr_nonnull(strstr(ev.text, "logged"));
        }
    }
    ck_assert_uint_eq(logged, 5);
    ck_assert_uint_eq(told, 1);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_LOG_LOST), 25);
}
END_TEST

/* --- answers --- */

START_TEST(a_refused_connection_is_told)
{
    struct moat_pkt p;

    /* At its own slot: the VM gets the answer. */
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 99, 100, 0, SYN, 0)), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 1);
    ck_assert_ptr_eq(rig_injected[0].port, r.port[A]);
    ck_assert_int_eq(rig_injected[0].dir, MOAT_TO_VM);
    p = (struct moat_pkt){
        .data = rig_injected[0].frame, .len = rig_injected[0].len, .total = rig_injected[0].len};
    moat_parse(&p);
    ck_assert_int_eq(p.kind, MOAT_PKT_TCP);
    ck_assert_uint_eq(p.tcp.flags, RST | ACK);
    ck_assert_uint_eq(p.tcp.ack, 101);
    ck_assert_mem_eq(p.data, rig_mac[A], 6);
    ck_assert_mem_eq(p.src, rig_ip4[B], 4);
    /* At the other's slot: the switch gets it, as if that VM had sent it. */
    rig_forget();
    ck_assert_int_eq(push(B, MOAT_TO_VM, vm_tcp(A, B, 1000, 99, 100, 0, SYN, 0)), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 1);
    ck_assert_ptr_eq(rig_injected[0].port, r.port[B]);
    ck_assert_int_eq(rig_injected[0].dir, MOAT_FROM_VM);
    ck_assert_uint_eq(rig_counter(&r, B, MOAT_C_ANSWERS), 1);
    /* UDP: an ICMP error. */
    rig_forget();
    ck_assert_int_eq(out(vm_udp(A, B, 1000, 99)), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 1);
    ck_assert_uint_eq(rig_injected[0].frame[14 + 9], 1);
    ck_assert_uint_eq(rig_injected[0].frame[34], 3);
}
END_TEST

/* The switch floods what it does not know.  A VM that sees another one's packet must not answer it
 * in the other's name. */
START_TEST(a_flooded_packet_is_not_answered)
{
    struct frame tcp = vm_tcp(A, B, 1000, 99, 100, 0, SYN, 0), udp = vm_udp(A, B, 1000, 99);

    ck_assert_int_eq(push(C, MOAT_TO_VM, tcp), MOAT_R_L2_DESTINATION);
    settings.spoof = MOAT_SPOOF_OFF;
    rig_settings(&r, C, &settings);
    ck_assert_int_eq(push(C, MOAT_TO_VM, tcp), MOAT_R_RULE);
    ck_assert_int_eq(push(C, MOAT_TO_VM, udp), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 0);
    ck_assert_uint_eq(rig_counter(&r, C, MOAT_C_ANSWERS), 0);
    ck_assert_int_eq(push(B, MOAT_TO_VM, tcp), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 1);
}
END_TEST

/* The sender's own slot takes the far side's answer for what it is. */
START_TEST(the_answer_reaches_the_sender)
{
    static const char open[] = "policy \"t\" version 1\ntier main { allow from any to any }\n";

    rig_publish(&r, A, open);
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 99, 100, 0, SYN, 0)), MOAT_R_NONE);
    ck_assert_int_eq(push(B, MOAT_TO_VM, vm_tcp(A, B, 1000, 99, 100, 0, SYN, 0)), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 1);
    ck_assert(rig_push(&r, A, MOAT_TO_VM, rig_injected[0].frame, rig_injected[0].len, NULL));
    rig_forget();
    ck_assert_int_eq(out(vm_udp(A, B, 1000, 99)), MOAT_R_NONE);
    ck_assert_int_eq(push(B, MOAT_TO_VM, vm_udp(A, B, 1000, 99)), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 1);
    ck_assert(rig_push(&r, A, MOAT_TO_VM, rig_injected[0].frame, rig_injected[0].len, NULL));
}
END_TEST

START_TEST(drop_is_silent_and_answers_are_bounded)
{
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 98, 100, 0, SYN, 0)), MOAT_R_RULE);
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 99, 100, 0, RST, 0)), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 0);
    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(out(vm_udp(A, B, 1000, 99)), MOAT_R_RULE);
    ck_assert_uint_eq(rig_n_injected, 100);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_ANSWERS), 100);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_ANSWERS_LIMITED), 900);
}
END_TEST

/* --- frames for other MACs --- */

static struct frame to_mac(struct frame f, uint8_t last)
{
    f.data[5] = last;
    return f;
}

static struct frame arp_of_b(void)
{
    static const uint8_t none[6];
    struct frame f;

    frame_eth(&f, rig_mac[A], rig_mac[B]);
    frame_arp(&f, 1, rig_mac[B], rig_ip4[B], none, rig_ip4[A]);
    frame_end(&f);
    return f;
}

static struct frame fragment(struct frame f, uint16_t id, uint16_t field)
{
    f.data[f.ip_off + 4] = (uint8_t)(id >> 8);
    f.data[f.ip_off + 5] = (uint8_t)id;
    f.data[f.ip_off + 6] = (uint8_t)(field >> 8);
    f.data[f.ip_off + 7] = (uint8_t)field;
    return f;
}

/* Policy admits all of it by address, but the switch has only flooded it: nothing opens, nothing
 * counts. */
START_TEST(a_flood_for_another_mac_uses_up_nothing)
{
    static const uint8_t modes[] = {MOAT_SPOOF_STRICT, MOAT_SPOOF_LEARN};

    settings.max_half_open = settings.max_sessions = settings.max_new = settings.max_fragments = 4;
    settings.spoof = modes[_i];
    rig_settings(&r, A, &settings);
    for (uint16_t p = 1; p < 100; p++) {
        ck_assert_int_eq(in(to_mac(vm_tcp(B, A, p, 80, 100, 0, SYN, 0), 77)),
                         MOAT_R_L2_DESTINATION);
        ck_assert_int_eq(in(to_mac(vm_tcp(B, C, p, 80, 100, 0, SYN, 0), 3)), MOAT_R_L2_DESTINATION);
        ck_assert_int_eq(in(to_mac(vm_udp(B, A, p, 80), 77)), MOAT_R_L2_DESTINATION);
        ck_assert_int_eq(in(to_mac(vm_udp6(B, A, p, 80), 77)), MOAT_R_L2_DESTINATION);
        ck_assert_int_eq(in(to_mac(vm_icmp(B, A, 8, p), 77)), MOAT_R_L2_DESTINATION);
        ck_assert_int_eq(in(to_mac(arp_of_b(), 77)), MOAT_R_L2_DESTINATION);
        ck_assert_int_eq(in(to_mac(fragment(vm_udp(B, A, 1, 80), p, 0x2000), 77)),
                         MOAT_R_L2_DESTINATION);
        ck_assert_int_eq(in(to_mac(fragment(vm_udp(B, A, 1, 80), p, 0x0010), 77)),
                         MOAT_R_L2_DESTINATION);
    }
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_DROP(MOAT_TO_VM, MOAT_R_L2_DESTINATION)), 99 * 8);
    ck_assert_uint_eq(info_of(A).sessions, 0);
    ck_assert_uint_eq(info_of(A).half_open, 0);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CREATED), 0);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_FRAGMENTS_HELD), 0);
    ck_assert_int_eq(in(arp_of_b()), MOAT_R_NONE);
    /* The quotas are whole. */
    for (uint16_t p = 1; p <= 4; p++)
        ck_assert_int_eq(in(vm_tcp(B, A, p, 80, 100, 0, SYN, 0)), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_tcp(B, A, 5, 80, 100, 0, SYN, 0)), MOAT_R_QUOTA);
    for (uint16_t id = 201; id <= 204; id++)
        ck_assert_int_eq(in(fragment(vm_udp(B, A, 1, 80), id, 0x0010)), MOAT_R_FRAG); /* held */
    ck_assert_int_eq(in(fragment(vm_udp(B, A, 1, 80), 205, 0x0010)), MOAT_R_FRAG_QUOTA);
}
END_TEST

START_TEST(a_live_session_does_not_ask_for_the_mac)
{
    connect_a(1000);
    ck_assert_int_eq(in(to_mac(vm_tcp(B, A, 80, 1000, 501, 101, ACK, 5), 77)), MOAT_R_NONE);
    ck_assert_int_eq(in(to_mac(vm_tcp(B, A, 80, 1000, 506, 101, FIN | ACK, 0), 77)), MOAT_R_NONE);
    ck_assert_int_eq(out(to_mac(vm_udp(A, B, 1, 1), 77)), MOAT_R_NONE); /* its own are its affair */
}
END_TEST

START_TEST(groups_are_for_everybody)
{
    struct frame f = vm_udp(B, A, 1, 1);

    memset(f.data, 0xff, 6);
    ck_assert_int_eq(in(f), MOAT_R_NONE);
    memcpy(f.data, "\x01\x00\x5e\x00\x00\x12", 6); /* VRRP */
    ck_assert_int_eq(in(f), MOAT_R_NONE);
}
END_TEST

/* A bridge, or one with virtual MACs. */
START_TEST(without_anti_spoofing_a_vm_gets_what_comes)
{
    settings.spoof = MOAT_SPOOF_OFF;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(in(to_mac(vm_tcp(B, A, 1, 80, 100, 0, SYN, 0), 77)), MOAT_R_NONE);
    ck_assert_int_eq(in(to_mac(vm_icmp(B, A, 8, 1), 77)), MOAT_R_NONE);
    ck_assert_uint_eq(info_of(A).sessions, 2);
}
END_TEST

/* --- groups --- */

static struct frame to_group(struct frame f)
{
    f.data[0] |= 1;
    return f;
}

/* TCP and replies to one address are tracked whatever MAC the frame has. */
START_TEST(a_group_mac_is_no_way_around_a_session)
{
    ck_assert_int_eq(out(to_group(vm_icmp(A, B, 0, 7))), MOAT_R_ICMP_REPLY);
    ck_assert_int_eq(in(to_group(vm_icmp(B, A, 0, 7))), MOAT_R_ICMP_REPLY);
    ck_assert_int_eq(out(to_group(vm_tcp(A, B, 1000, 80, 100, 1, ACK, 5))), MOAT_R_TCP_NO_SESSION);
    ck_assert_int_eq(out(vm_icmp(A, B, 8, 7)), MOAT_R_NONE);
    ck_assert_int_eq(in(to_group(vm_icmp(B, A, 0, 7))), MOAT_R_NONE);
    connect_a(1000);
    ck_assert_int_eq(out(to_group(vm_tcp(A, B, 1000, 80, 101, 501, ACK, 5))), MOAT_R_NONE);
    ck_assert_int_eq(in(to_group(vm_tcp(B, A, 80, 1000, 501, 106, ACK, 5))), MOAT_R_NONE);
    ck_assert_int_eq(in(to_group(vm_tcp(B, A, 80, 1000, 100000, 106, ACK, 5))), MOAT_R_TCP_WINDOW);
    /* Others: the rules alone. */
    ck_assert_int_eq(out(to_group(vm_udp(A, B, 1000, 80))), MOAT_R_NONE);
    ck_assert_uint_eq(info_of(A).sessions, 2);
}
END_TEST

static struct frame to_group_address(struct frame f)
{
    f = to_group(f);
    f.data[30] = 224;
    return f;
}

START_TEST(nobody_connects_to_a_group)
{
    ck_assert_int_eq(out(to_group_address(vm_tcp(A, B, 1000, 80, 100, 0, SYN, 0))),
                     MOAT_R_TCP_NO_SESSION);
    ck_assert_int_eq(out(to_group_address(vm_icmp(A, B, 0, 7))), MOAT_R_ICMP_REPLY);
    ck_assert_int_eq(out(to_group_address(vm_icmp(A, B, 8, 7))), MOAT_R_NONE);
    ck_assert_int_eq(out(to_group_address(vm_udp(A, B, 1000, 80))), MOAT_R_NONE);
    ck_assert_uint_eq(info_of(A).sessions, 0);
}
END_TEST

/* --- ICMP errors --- */

START_TEST(errors_need_a_packet_that_was_sent)
{
    struct frame sent = vm_udp(A, B, 1000, 53), reply = vm_udp(B, A, 53, 1000),
                 other = vm_udp(A, B, 1001, 53), cut = vm_icmp_error(B, A, 3, 3, &sent, 20);

    ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 3, &sent, 28)), MOAT_R_ICMP_UNRELATED);
    ck_assert_int_eq(out(sent), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 3, &sent, 28)), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_icmp_error(C, A, 11, 0, &sent, 28)), MOAT_R_NONE); /* a router's */
    ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 3, &other, 28)), MOAT_R_ICMP_UNRELATED);
    /* The wrong way: A has sent nothing to be complained about in what B never sent. */
    ck_assert_int_eq(out(vm_icmp_error(A, B, 3, 3, &reply, 28)), MOAT_R_ICMP_UNRELATED);
    ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 3, &reply, 28)), MOAT_R_ICMP_QUOTE);
    ck_assert_int_eq(in(cut), MOAT_R_ICMP_QUOTE);
}
END_TEST

/* The same in IPv6: unreachable, too big, time exceeded, parameter problem. */
START_TEST(errors_of_ip6)
{
    struct frame sent = vm_udp6(A, B, 1000, 53), reply = vm_udp6(B, A, 53, 1000);
    uint8_t body[4 + 48] = {0};

    for (int live = 0; live < 2; live++) {
        for (uint8_t type = 1; type <= 4; type++) {
            memcpy(body + 4, sent.data + sent.ip_off, 48);
            ck_assert_int_eq(in(vm_icmp6(B, rig_ip6[A], type, body, sizeof body)),
                             live ? MOAT_R_NONE : MOAT_R_ICMP_UNRELATED);
            memcpy(body + 4, reply.data + reply.ip_off, 48); /* A never sent this */
            ck_assert_int_eq(in(vm_icmp6(B, rig_ip6[A], type, body, sizeof body)),
                             MOAT_R_ICMP_QUOTE);
        }
        if (!live)
            ck_assert_int_eq(out(sent), MOAT_R_NONE);
    }
    /* Cut short of its ports. */
    memcpy(body + 4, sent.data + sent.ip_off, 48);
    ck_assert_int_eq(in(vm_icmp6(B, rig_ip6[A], 1, body, 4 + 44)), MOAT_R_ICMP_QUOTE);
}
END_TEST

/* --- protocols without ports: address pairs --- */

static struct frame other(unsigned from, unsigned to, uint8_t family, uint8_t proto)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    if (family == MOAT_FAM_IP4)
        frame_ip4(&f, rig_ip4[from], rig_ip4[to], proto);
    else
        frame_ip6(&f, rig_ip6[from], rig_ip6[to], proto);
    frame_data(&f, 24);
    frame_end(&f);
    return f;
}

static const uint8_t protocols[] = {132 /* SCTP */, 47 /* GRE */, 50 /* ESP */, 112 /* VRRP */,
                                    253};

START_TEST(other_protocols_are_address_pairs)
{
    static const char ours[] =
        "policy \"t\" version 1\ntier main { allow from vm \"a\" to vm \"b\" }\n";
    uint8_t proto = protocols[_i];

    rig_publish(&r, A, ours);
    for (uint8_t family = 4; family <= 6; family += 2) {
        ck_assert_int_eq(in(other(B, A, family, proto)), MOAT_R_DEFAULT);
        ck_assert_int_eq(out(other(A, C, family, proto)), MOAT_R_DEFAULT);
        ck_assert_int_eq(out(other(A, B, family, proto)), MOAT_R_NONE);
        ck_assert_int_eq(in(other(B, A, family, proto)), MOAT_R_NONE);
        ck_assert_int_eq(in(other(C, A, family, proto)), MOAT_R_DEFAULT);
        ck_assert_int_eq(in(other(B, A, family, proto - 1)), MOAT_R_DEFAULT);
    }
    ck_assert_uint_eq(info_of(A).sessions, 2);
}
END_TEST

START_TEST(errors_about_tcp_need_a_number_in_the_window)
{
    struct frame sent = vm_tcp(A, B, 1000, 80, 101, 501, ACK, 100),
                 never = vm_tcp(A, B, 1000, 80, 0x70000000, 501, ACK, 100);

    connect_a(1000);
    ck_assert_int_eq(out(sent), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 4, &sent, 28)), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 4, &never, 28)), MOAT_R_ICMP_QUOTE);
}
END_TEST

START_TEST(errors_of_cut_sessions_are_refused)
{
    static const char nothing[] = "policy \"t\" version 1\ntier main { drop from any to any }\n";
    struct frame sent = vm_udp(A, B, 1000, 53);

    ck_assert_int_eq(out(sent), MOAT_R_NONE);
    rig_publish(&r, A, nothing);
    ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 3, &sent, 28)), MOAT_R_POLICY_CHANGE);
    ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 3, &sent, 28)), MOAT_R_ICMP_UNRELATED);
}
END_TEST

START_TEST(a_query_that_got_an_error_ends_sooner)
{
    struct frame ping = vm_icmp(A, B, 8, 7);

    for (int error = 0; error < 2; error++) {
        ck_assert_int_eq(out(ping), MOAT_R_NONE);
        if (error)
            ck_assert_int_eq(in(vm_icmp_error(B, A, 3, 1, &ping, 28)), MOAT_R_NONE);
        rig_clock_ms += 15000;
        ck_assert_int_eq(in(vm_icmp(B, A, 0, 7)), error ? MOAT_R_ICMP_REPLY : MOAT_R_NONE);
        rig_pass_time(&r, 60000);
    }
}
END_TEST

/* --- port reuse --- */

/* A client that lost its memory: SYN on a live tuple, challenge, exact RST, SYN. */
START_TEST(a_rebooted_client_gets_its_port_back)
{
    connect_a(1000);
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 80, 0x5000000, 0, SYN, 0)), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_tcp(B, A, 80, 1000, 501, 101, ACK, 0)), MOAT_R_NONE);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_UNBELIEVED), 1);
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 80, 101, 0, RST, 0)), MOAT_R_NONE);
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 80, 0x5000000, 0, SYN, 0)), MOAT_R_NONE);
    ck_assert_int_eq(in(vm_tcp(B, A, 80, 1000, 900, 0x5000001, SYN | ACK, 0)), MOAT_R_NONE);
    ck_assert_int_eq(out(vm_tcp(A, B, 1000, 80, 0x5000001, 901, ACK, 10)), MOAT_R_NONE);
    ck_assert_uint_ge(rig_counter(&r, A, MOAT_C_SESSIONS_CREATED), 2);
    ck_assert_uint_eq(info_of(A).sessions, 1);
}
END_TEST

/* --- bursts --- */

/* All of one burst, from A; their reasons. */
static void out_together(const struct frame *f, unsigned n, enum moat_reason *reason)
{
    struct moat_pkt p[MOAT_BURST_MAX];
    uint32_t passed;

    for (unsigned i = 0; i < n; i++)
        p[i] = rig_pkt(f[i].data, f[i].len, f[i].len);
    passed = moat_pipe_burst(moat_thread_self(r.e), r.port[A], MOAT_FROM_VM, p, n);
    for (unsigned i = 0; i < n; i++)
        reason[i] = passed >> i & 1 ? MOAT_R_NONE : (enum moat_reason)p[i].reason;
}

static uint64_t hits_of_all_rules(void)
{
    struct moat_rule_hit hit[32];
    uint64_t sum = 0;
    uint32_t next;
    int n = moat_slot_hits(r.e, rig_vnic[A], 0, 32, hit, &next);

    ck_assert_int_gt(n, 0);
    ck_assert_uint_eq(next, 0);
    while (n--)
        sum += hit[n].hits;
    return sum;
}

/* The rules are asked for all of a burst at once; what they say of a tuple's second packet must
 * count for nothing: no hit, no part of a quota, no second session. */
START_TEST(a_burst_opens_each_tuple_once)
{
    bool quick = _i; /* nothing but what the straight line takes */
    struct frame f[7];
    enum moat_reason reason[7];
    uint64_t hits = hits_of_all_rules();

    settings.max_new = 2;
    rig_settings(&r, A, &settings);
    for (unsigned i = 0; i < 7; i++) {
        unsigned tuple = i == 3 || i == 6 ? 2 : i == 5 ? 3 : 1; /* 1 1 1 2 1 3 2 */

        f[i] = quick ? vm_udp(A, B, (uint16_t)(1000 + tuple), 80)
                     : vm_tcp(A, B, (uint16_t)(1000 + tuple), 80, 100, 0, SYN, 0);
    }
    out_together(f, 7, reason);
    for (unsigned i = 0; i < 7; i++)
        ck_assert_int_eq(reason[i], i == 5 ? MOAT_R_QUOTA_NEW : MOAT_R_NONE);
    ck_assert_uint_eq(info_of(A).sessions, 2);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CREATED), 2);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_DROP(MOAT_FROM_VM, MOAT_R_QUOTA_NEW)), 1);
    ck_assert_uint_eq(hits_of_all_rules() - hits, 3);
}
END_TEST

/* Each packet of a burst has its own verdict, whatever its place. */
START_TEST(a_burst_keeps_verdicts_apart)
{
    struct frame f[6] = {vm_tcp(A, B, 1, 99, 1, 0, SYN, 0),
                         vm_tcp(A, B, 1, 80, 1, 0, SYN, 0),
                         vm_udp(A, B, 1, 99),
                         vm_tcp(A, B, 1, 98, 1, 0, SYN, 0),
                         vm_udp(A, B, 1, 53),
                         vm_tcp(A, B, 2, 99, 1, 0, SYN, 0)};
    uint64_t hits = hits_of_all_rules();
    enum moat_reason reason[6];

    out_together(f, 6, reason);
    for (unsigned i = 0; i < 6; i++)
        ck_assert_int_eq(reason[i], i == 1 || i == 4 ? MOAT_R_NONE : MOAT_R_RULE);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_ANSWERS), 3);
    ck_assert_uint_eq(hits_of_all_rules() - hits, 6);
    ck_assert_uint_eq(info_of(A).sessions, 2);
}
END_TEST

/* The first packet of a tuple is cut with its session, the second one finds none and is judged
 * anew; in a table so full that many sessions are in their second bucket. */
START_TEST(a_burst_meets_what_those_before_ended)
{
    static const char nothing[] = "policy \"t\" version 1\n"
                                  "tier main {\n"
                                  "    allow from any to any service udp 53\n"
                                  "    drop from any to any\n"
                                  "}\n";

    rig_destroy(&r);
    rig_create_sized(&r, NULL, 64);
    rig_claim(&r, A, MOAT_SLOT_ACTIVE);
    rig_publish(&r, A, policy);
    settings.max_sessions = 60;
    rig_settings(&r, A, &settings);
    for (uint16_t p = 1; p <= 60; p++)
        ck_assert_int_eq(out(vm_udp(A, B, p, 80)), MOAT_R_NONE);
    rig_publish(&r, A, nothing);
    for (uint16_t p = 1; p <= 60; p++) {
        struct frame f[2] = {vm_udp(A, B, p, 80), vm_udp(A, B, p, 80)};
        struct frame before[2] = {vm_udp(A, B, 1, 53), vm_udp(A, B, 2, 53)};
        enum moat_reason reason[2];

        out_together(before, 2, reason); /* permitted, but there is no room */
        ck_assert_int_eq(reason[0], MOAT_R_QUOTA);
        ck_assert_int_eq(reason[1], MOAT_R_QUOTA);
        out_together(f, 2, reason);
        ck_assert_int_eq(reason[0], MOAT_R_POLICY_CHANGE);
        ck_assert_int_eq(reason[1], MOAT_R_RULE);
    }
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_SESSIONS_CUT), 60);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("open");
    TCase *tc = tcase_create("packets");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, quota_of_sessions);
    tcase_add_test(tc, quota_of_half_open_sessions);
    tcase_add_test(tc, half_open_sessions_are_counted_once);
    tcase_add_test(tc, quota_of_new_sessions_a_second);
    tcase_add_test(tc, quota_of_log_lines);
    tcase_add_test(tc, a_refused_connection_is_told);
    tcase_add_test(tc, a_flooded_packet_is_not_answered);
    tcase_add_test(tc, the_answer_reaches_the_sender);
    tcase_add_test(tc, drop_is_silent_and_answers_are_bounded);
    tcase_add_loop_test(tc, a_flood_for_another_mac_uses_up_nothing, 0, 2);
    tcase_add_test(tc, a_live_session_does_not_ask_for_the_mac);
    tcase_add_test(tc, groups_are_for_everybody);
    tcase_add_test(tc, without_anti_spoofing_a_vm_gets_what_comes);
    tcase_add_test(tc, a_group_mac_is_no_way_around_a_session);
    tcase_add_test(tc, nobody_connects_to_a_group);
    tcase_add_test(tc, errors_need_a_packet_that_was_sent);
    tcase_add_test(tc, errors_of_ip6);
    tcase_add_loop_test(tc, other_protocols_are_address_pairs, 0, sizeof protocols);
    tcase_add_test(tc, errors_about_tcp_need_a_number_in_the_window);
    tcase_add_test(tc, errors_of_cut_sessions_are_refused);
    tcase_add_test(tc, a_query_that_got_an_error_ends_sooner);
    tcase_add_test(tc, a_rebooted_client_gets_its_port_back);
    tcase_add_loop_test(tc, a_burst_opens_each_tuple_once, 0, 2);
    tcase_add_test(tc, a_burst_keeps_verdicts_apart);
    tcase_add_test(tc, a_burst_meets_what_those_before_ended);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
