/* SPDX-License-Identifier: Apache-2.0 */

/* Datagrams in fragments, as whole frames through the filter core. */

#include <check.h>
#include <stdio.h>
#include <string.h>

#include "datapath/fragment.h"
#include "datapath/pipe.h"
#include "tests/lib/rig.h"
#include "tests/lib/vm_frame.h"

#define A 0
#define B 1
#define C 2
#define SYN MOAT_TCP_SYN
#define ACK MOAT_TCP_ACK
#define FIN MOAT_TCP_FIN

static const char policy[] = "policy \"t\" version 1\n"
                             "tier main {\n"
                             "    drop from any to any service udp 98, tcp 98\n"
                             "    allow from any to any\n"
                             "}\n";

/* Others, and the same for the packets here. */
static const char other_policy[] = "policy \"t\" version 1\n"
                                   "tier main {\n"
                                   "    drop from any to any service udp 97\n"
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

static enum moat_reason push(unsigned slot, enum moat_dir dir, const struct frame *f)
{
    enum moat_reason reason;

    rig_push(&r, slot, dir, f->data, f->len, &reason);
    return reason;
}

static enum moat_reason out(struct frame f)
{
    return push(A, MOAT_FROM_VM, &f);
}

static uint32_t used(void)
{
    return moat_fragments_used(r.e->fragments, UINT32_MAX);
}

/* --- frames --- */

/* Bytes [at, at + len) of what the whole frame's IP header carries, as a fragment. */
static struct frame piece(const struct frame *whole, uint32_t id, uint32_t at, uint32_t len)
{
    uint32_t l3 = whole->family == 4 ? 20 : 40, start = whole->ip_off + l3;
    uint32_t more = at + len < whole->len - start;
    struct frame f = *whole;

    ck_assert_uint_le(start + at + len, whole->len);
    f.len = start;
    if (whole->family == 6) {
        f.ip6_next_off = whole->ip_off + 6;
        f.proto = whole->data[whole->ip_off + 6];
        frame_frag6(&f, (uint16_t)at, (int)more, id);
    } else {
        f.data[f.ip_off + 4] = (uint8_t)(id >> 8);
        f.data[f.ip_off + 5] = (uint8_t)id;
        f.data[f.ip_off + 6] = (uint8_t)(more << 5 | at / 8 >> 8);
        f.data[f.ip_off + 7] = (uint8_t)(at / 8);
    }
    frame_bytes(&f, whole->data + start + at, len);
    l3 = f.len - f.ip_off - (whole->family == 6 ? 40 : 0);
    f.data[f.ip_off + (whole->family == 6 ? 4 : 2)] = (uint8_t)(l3 >> 8);
    f.data[f.ip_off + (whole->family == 6 ? 5 : 3)] = (uint8_t)l3;
    return f;
}

/* The i-th of three: [0, 32), [32, 64), the rest. */
static struct frame third(const struct frame *whole, uint32_t id, unsigned i)
{
    uint32_t all = whole->len - whole->ip_off - (whole->family == 4 ? 20 : 40);

    return piece(whole, id, i * 32, i < 2 ? 32 : all - 64);
}

enum kind { UDP4, UDP6, TCP4, TCP6, ECHO4, ECHO6, GRE4, MULTICAST4, MULTICAST6, N_KINDS };

static const uint8_t group4[4] = {239, 1, 1, 1}, group6[16] = {0xff, 0x1e, [15] = 9};
static const uint8_t group_mac4[6] = {1, 0, 0x5e, 1, 1, 1}, group_mac6[6] = {0x33, 0x33, [5] = 9};

/* A to B (or to the group), 100 bytes behind the IP header. */
static struct frame whole_frame(enum kind kind, uint16_t dport)
{
    bool ip6 = kind == UDP6 || kind == TCP6 || kind == ECHO6 || kind == MULTICAST6;
    uint8_t proto = kind == TCP4 || kind == TCP6 ? 6
                    : kind == ECHO4              ? 1
                    : kind == ECHO6              ? 58
                    : kind == GRE4               ? 47
                                                 : 17;
    struct frame f;

    frame_eth(&f,
              kind == MULTICAST4   ? group_mac4
              : kind == MULTICAST6 ? group_mac6
                                   : rig_mac[B],
              rig_mac[A]);
    if (ip6)
        frame_ip6(&f, rig_ip6[A], kind == MULTICAST6 ? group6 : rig_ip6[B], proto);
    else
        frame_ip4(&f, rig_ip4[A], kind == MULTICAST4 ? group4 : rig_ip4[B], proto);
    if (proto == 17)
        frame_udp(&f, 1000, dport);
    else if (proto == 6)
        frame_tcp(&f, 1000, dport, 100, 0, SYN, 8192);
    else if (proto != 47)
        frame_icmp(&f, ip6 ? 128 : 8, 0, 7);
    frame_data(&f, f.l4_off + 100 - f.len);
    for (uint32_t i = f.l4_off + 20; i < f.len; i++)
        f.data[i] = (uint8_t)i;
    frame_end(&f);
    return f;
}

/* --- what passes --- */

START_TEST(in_order)
{
    struct frame w = whole_frame((enum kind)_i, 80);

    for (unsigned i = 0; i < 3; i++) {
        struct frame f = third(&w, 5, i);

        ck_assert_msg(rig_between(&r, A, B, f.data, f.len), "piece %u of kind %d", i, _i);
    }
    for (unsigned slot = A; slot <= B; slot++) {
        ck_assert_uint_eq(rig_counter(&r, slot, MOAT_C_FRAGMENTS), 3);
        ck_assert_uint_eq(rig_counter(&r, slot, MOAT_C_FRAGMENTS_HELD), 0);
        ck_assert_uint_eq(rig_counter(&r, slot, MOAT_C_SESSIONS_CREATED),
                          _i != MULTICAST4 && _i != MULTICAST6);
    }
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_FROM_VM_PKTS), 3);
    ck_assert_uint_eq(rig_n_injected, 0);
    ck_assert_uint_eq(used(), 0);
}
END_TEST

/* Those that come too early wait, and leave beside the burst, as they came. */
START_TEST(last_first)
{
    struct frame w = whole_frame((enum kind)_i, 80), f[3];
    enum moat_dir dir = _i % 2 ? MOAT_TO_VM : MOAT_FROM_VM;
    unsigned slot = _i % 2 ? B : A;

    for (unsigned i = 3; i--;) {
        f[i] = third(&w, 5, i);
        ck_assert_int_eq(push(slot, dir, &f[i]), i ? MOAT_R_FRAG : MOAT_R_NONE);
    }
    ck_assert_uint_eq(rig_counter(&r, slot, MOAT_C_FRAGMENTS_HELD), 2);
    ck_assert_uint_eq(rig_counter(&r, slot, MOAT_C_FRAGMENTS), 3);
    ck_assert_uint_eq(rig_counter(&r, slot, MOAT_C_DROP(dir, MOAT_R_FRAG)), 0);
    ck_assert_uint_eq(
        rig_counter(&r, slot, dir == MOAT_FROM_VM ? MOAT_C_FROM_VM_PKTS : MOAT_C_TO_VM_PKTS), 3);
    ck_assert_uint_eq(
        rig_counter(&r, slot, dir == MOAT_FROM_VM ? MOAT_C_FROM_VM_BYTES : MOAT_C_TO_VM_BYTES),
        f[0].len + f[1].len + f[2].len);
    ck_assert_uint_eq(rig_n_injected, 2);
    for (unsigned i = 0; i < 2; i++) {
        const struct rig_injected *x = &rig_injected[i];

        ck_assert(x->port == r.port[slot] && x->dir == dir);
        ck_assert_uint_eq(x->len, f[2 - i].len);
        ck_assert_mem_eq(x->frame, f[2 - i].data, x->len);
    }
    ck_assert_uint_eq(used(), 0);
    ck_assert_uint_eq(moat_fragments_held(r.e->fragments, UINT32_MAX), 0);
}
END_TEST

static uint32_t burst(const struct frame *frames, unsigned n, struct moat_pkt *pkts)
{
    for (unsigned i = 0; i < n; i++)
        pkts[i] = rig_pkt(frames[i].data, frames[i].len, frames[i].len);
    return moat_pipe_burst(moat_thread_self(r.e), r.port[A], MOAT_FROM_VM, pkts, n);
}

START_TEST(in_one_burst)
{
    struct frame w = whole_frame(UDP4, 80), v = whole_frame(UDP6, 80), f[5];
    struct moat_pkt p[5];

    for (unsigned i = 0; i < 3; i++)
        f[i] = third(&w, 1, i);
    ck_assert_uint_eq(burst(f, 3, p), 7);
    for (unsigned i = 0; i < 3; i++)
        f[i] = third(&w, 2, 2 - i);
    f[3] = w; /* a whole one of the same session meanwhile */
    f[4] = third(&v, 2, 1);
    ck_assert_uint_eq(burst(f, 5, p), 4 | 8);
    ck_assert_uint_eq(p[0].reason, MOAT_R_FRAG);
    ck_assert_uint_eq(rig_n_injected, 2);
    ck_assert_uint_eq(used(), 1);
}
END_TEST

/* A full burst, of datagrams of which each has one fragment too early. */
START_TEST(full_burst)
{
    struct frame f[MOAT_BURST_MAX];
    struct moat_pkt p[MOAT_BURST_MAX];
    struct frame w = whole_frame(UDP4, 80);
    uint32_t want = 0;

    for (unsigned i = 0; i < MOAT_BURST_MAX; i++) {
        f[i] = third(&w, i / 2, !(i % 2));
        want |= (i % 2) << i;
    }
    ck_assert_uint_eq(burst(f, MOAT_BURST_MAX, p), want);
    ck_assert_uint_eq(rig_n_injected, MOAT_BURST_MAX / 2);
    ck_assert_uint_eq(used(), MOAT_BURST_MAX / 2);
}
END_TEST

/* --- what does not --- */

START_TEST(refused_by_rule)
{
    struct frame w = whole_frame((enum kind)_i, 98);

    ck_assert_int_eq(out(third(&w, 5, 0)), MOAT_R_RULE);
    ck_assert_int_eq(out(third(&w, 5, 1)), MOAT_R_FRAG);
    ck_assert_int_eq(out(third(&w, 5, 2)), MOAT_R_FRAG);
    ck_assert_int_eq(out(third(&w, 6, 2)), MOAT_R_FRAG); /* held */
    ck_assert_int_eq(out(third(&w, 6, 0)), MOAT_R_RULE);
    ck_assert_int_eq(out(third(&w, 6, 1)), MOAT_R_FRAG);
    ck_assert_uint_eq(rig_n_injected, 0);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_FRAGMENTS), 0);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_FROM_VM_PKTS), 0);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_DROP(MOAT_FROM_VM, MOAT_R_RULE)), 2);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_DROP(MOAT_FROM_VM, MOAT_R_FRAG)), 3);
    ck_assert_uint_eq(moat_fragments_held(r.e->fragments, UINT32_MAX), 0);
    rig_pass_time(&r, (MOAT_FRAGMENT_S + 3) * 1000);
    ck_assert_uint_eq(used(), 0);
}
END_TEST

START_TEST(overlap)
{
    struct frame w = whole_frame((enum kind)_i, 80);

    ck_assert_int_eq(out(third(&w, 5, 0)), MOAT_R_NONE);
    ck_assert_int_eq(out(piece(&w, 5, 24, 32)), MOAT_R_FRAG_OVERLAP);
    ck_assert_int_eq(out(third(&w, 5, 1)), MOAT_R_FRAG);
    ck_assert_int_eq(out(third(&w, 5, 2)), MOAT_R_FRAG);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_FRAGMENTS), 1);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_DROP(MOAT_FROM_VM, MOAT_R_FRAG_OVERLAP)), 1);
    /* Another datagram of the same session is not concerned. */
    for (unsigned i = 0; i < 3; i++)
        ck_assert_int_eq(out(third(&w, 6, i)), MOAT_R_NONE);
}
END_TEST

START_TEST(policy_changes)
{
    struct frame w = whole_frame(UDP4, 80);

    ck_assert_int_eq(out(third(&w, 5, 0)), MOAT_R_NONE);
    ck_assert_int_eq(out(third(&w, 6, 1)), MOAT_R_FRAG); /* held, judged by nobody yet */
    ck_assert_int_eq(out(third(&w, 7, 0)), MOAT_R_NONE);
    rig_publish(&r, A, policy); /* nothing new */
    ck_assert_int_eq(out(third(&w, 7, 1)), MOAT_R_NONE);
    rig_publish(&r, A, other_policy);
    ck_assert_int_eq(out(third(&w, 5, 1)), MOAT_R_POLICY_CHANGE);
    ck_assert_int_eq(out(third(&w, 5, 2)), MOAT_R_FRAG);
    ck_assert_int_eq(out(third(&w, 6, 0)), MOAT_R_NONE);
    ck_assert_uint_eq(rig_n_injected, 1);
    ck_assert_int_eq(out(third(&w, 6, 2)), MOAT_R_NONE);
}
END_TEST

START_TEST(session_is_cut)
{
    struct frame w = whole_frame((enum kind)_i, 80);

    ck_assert_int_eq(out(third(&w, 5, 0)), MOAT_R_NONE);
    ck_assert_int_eq(out(third(&w, 5, 1)), MOAT_R_NONE);
    for (uint32_t i = 0; i < moat_session_table_size(r.e->sessions); i++) {
        struct moat_session *s = moat_session_at(r.e->sessions, i);

        if (s->key.tag)
            s->flags |= MOAT_SES_F_CUT;
    }
    ck_assert_int_eq(out(third(&w, 5, 2)), MOAT_R_FRAG);
}
END_TEST

/* RFC 6980: neighbour discovery comes whole. */
START_TEST(neighbour_discovery)
{
    uint8_t body[60] = {0};
    struct frame w;

    memcpy(body + 4, rig_ip6[B], 16);
    w = vm_icmp6(A, rig_ip6[B], (uint8_t)_i, body, sizeof body);
    memcpy(w.data, rig_mac[B], 6);
    ck_assert_int_eq(out(piece(&w, 5, 0, 32)), MOAT_R_FRAG);
    ck_assert_int_eq(out(piece(&w, 5, 32, 32)), MOAT_R_FRAG);
    ck_assert_uint_eq(rig_n_injected, 0);
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_FRAGMENTS), 0);
}
END_TEST

START_TEST(errors_in_fragments)
{
    struct frame about = whole_frame(UDP4, 80), w;

    ck_assert(rig_between(&r, A, B, about.data, about.len));
    w = vm_icmp_error(B, A, 3, 3, &about, 100);
    ck_assert_int_eq(push(B, MOAT_FROM_VM, &w), MOAT_R_NONE); /* whole, it passes */
    for (uint32_t at = 0; at < 96; at += 48) {
        struct frame f = piece(&w, 5, at, 48);

        ck_assert_int_eq(push(B, MOAT_FROM_VM, &f), MOAT_R_FRAG);
    }
    ck_assert_uint_eq(rig_counter(&r, B, MOAT_C_FRAGMENTS), 0);
}
END_TEST

START_TEST(quota)
{
    struct frame w = whole_frame(UDP4, 80), v = vm_udp(B, C, 1, 2);
    struct moat_event ev;

    settings.max_fragments = 2;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(out(third(&w, 1, 0)), MOAT_R_NONE);
    ck_assert_int_eq(out(third(&w, 2, 2)), MOAT_R_FRAG); /* held counts too */
    for (uint32_t id = 3; id < 20; id++)
        ck_assert_int_eq(out(third(&w, id, 0)), MOAT_R_FRAG_QUOTA);
    ck_assert(rig_event(&r, MOAT_EV_QUOTA, &ev));
    ck_assert_uint_eq(ev.reason, MOAT_R_FRAG_QUOTA);
    ck_assert_int_eq(ev.value, 2);
    ck_assert_str_eq(ev.vnic, rig_vnic[A]);
    ck_assert(!rig_event(&r, MOAT_EV_QUOTA, &ev)); /* once a second */
    ck_assert_uint_eq(rig_counter(&r, A, MOAT_C_DROP(MOAT_FROM_VM, MOAT_R_FRAG_QUOTA)), 17);
    /* What is under way goes on, whole packets and others are not concerned. */
    ck_assert_int_eq(out(w), MOAT_R_NONE);
    v = piece(&v, 1, 0, 16);
    ck_assert_int_eq(push(B, MOAT_FROM_VM, &v), MOAT_R_NONE);
    ck_assert_int_eq(out(third(&w, 1, 1)), MOAT_R_NONE);
    ck_assert_int_eq(out(third(&w, 1, 2)), MOAT_R_NONE);
    ck_assert_int_eq(out(third(&w, 3, 0)), MOAT_R_NONE);
    ck_assert_int_eq(out(third(&w, 4, 0)), MOAT_R_FRAG_QUOTA);
    rig_pass_time(&r, (MOAT_FRAGMENT_S + 3) * 1000);
    ck_assert_uint_eq(used(), 0);
    ck_assert_uint_eq(moat_fragments_held(r.e->fragments, UINT32_MAX), 0);
    ck_assert_int_eq(out(third(&w, 4, 0)), MOAT_R_NONE);
}
END_TEST

/* --- TCP: the state machine hears of all of the segment --- */

static void connect_ab(void)
{
    struct frame f = vm_tcp(A, B, 2000, 80, 100, 0, SYN, 0);

    ck_assert(rig_between(&r, A, B, f.data, f.len));
    f = vm_tcp(B, A, 80, 2000, 500, 101, SYN | ACK, 0);
    ck_assert(rig_between(&r, B, A, f.data, f.len));
    f = vm_tcp(A, B, 2000, 80, 101, 501, ACK, 0);
    ck_assert(rig_between(&r, A, B, f.data, f.len));
}

/* Seen at A's slot; the last one first if `reversed`. */
static void segment(uint32_t seq, uint32_t len, uint8_t flags, uint32_t id, bool reversed)
{
    struct frame w = vm_tcp(A, B, 2000, 80, seq, 501, flags, len);

    for (unsigned i = 0; i < 3; i++) {
        unsigned which = reversed ? 2 - i : i;

        ck_assert_int_eq(out(third(&w, id, which)), reversed && which ? MOAT_R_FRAG : MOAT_R_NONE);
    }
}

static enum moat_reason acked(uint32_t ack)
{
    struct frame f = vm_tcp(B, A, 80, 2000, 501, ack, ACK, 0);

    return push(A, MOAT_TO_VM, &f);
}

START_TEST(acknowledged)
{
    bool reversed = _i;

    connect_ab();
    segment(101, 1000, ACK, 1, reversed);
    ck_assert_int_eq(acked(1102), MOAT_R_TCP_WINDOW);
    ck_assert_int_eq(acked(1101), MOAT_R_NONE);
    segment(1101, 200, ACK | FIN, 2, reversed);
    ck_assert_int_eq(acked(1303), MOAT_R_TCP_WINDOW);
    ck_assert_int_eq(acked(1302), MOAT_R_NONE); /* with its FIN */
    ck_assert_uint_eq(used(), 0);
}
END_TEST

/* --- a vNIC that is being enrolled --- */

START_TEST(enrolling)
{
    struct moat_ctl_state st = {.state = MOAT_SLOT_ENROLLING};
    struct frame w = whole_frame(UDP4, 98);
    char err[128];

    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[A]);
    ck_assert_int_eq(moat_slot_set_state(r.e, &st, err, sizeof err), 0);
    for (unsigned i = 3; i--;)
        ck_assert_int_eq(out(third(&w, 5, i)), MOAT_R_NONE);
    ck_assert_uint_eq(rig_n_injected, 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("datagrams");
    TCase *tc = tcase_create("fragments");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, in_order, 0, N_KINDS);
    tcase_add_loop_test(tc, last_first, 0, N_KINDS);
    tcase_add_test(tc, in_one_burst);
    tcase_add_test(tc, full_burst);
    tcase_add_loop_test(tc, refused_by_rule, UDP4, TCP4 + 1);
    tcase_add_loop_test(tc, overlap, 0, N_KINDS);
    tcase_add_test(tc, policy_changes);
    tcase_add_loop_test(tc, session_is_cut, 0, ECHO6);
    tcase_add_loop_test(tc, neighbour_discovery, 133, 138);
    tcase_add_test(tc, errors_in_fragments);
    tcase_add_test(tc, quota);
    tcase_add_loop_test(tc, acknowledged, 0, 2);
    tcase_add_test(tc, enrolling);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
