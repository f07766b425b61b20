/* SPDX-License-Identifier: Apache-2.0 */

/* Traces: what is told of a packet, who gets it, what is lost, and filters that must not reach a
 * packet thread. */

#include "datapath/trace.h"

#include <check.h>
#include <errno.h>
#include <pcap/pcap.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "tests/lib/packet.h"
#include "tests/lib/rig.h"

static const char policy[] = "policy \"t\" version 1\n"
                             "tier main {\n"
                             "    allow from vm \"a\" to vm \"b\" service udp 53, tcp 80\n"
                             "    reject from vm \"a\" to vm \"b\" service tcp 81\n"
                             "    drop from vm \"a\" to vm \"b\" service tcp 82\n"
                             "    allow from vms to vms service arp\n"
                             "}\n"
                             "default drop\n";

static struct rig r;

static void setup(void)
{
    rig_start(&r, NULL, policy);
}

static void teardown(void)
{
    ck_assert_ptr_null(r.e->traces);
    rig_destroy(&r);
}

/* --- frames --- */

static void udp4(struct frame *f, unsigned from, unsigned to, uint16_t sport, uint16_t dport)
{
    frame_eth(f, rig_mac[to], rig_mac[from]);
    frame_ip4(f, rig_ip4[from], rig_ip4[to], 17);
    frame_udp(f, sport, dport);
    frame_data(f, 20);
    frame_end(f);
}

static void tcp4(struct frame *f, unsigned from, unsigned to, uint16_t sport, uint16_t dport,
                 uint32_t seq, uint32_t ack, uint8_t flags)
{
    frame_eth(f, rig_mac[to], rig_mac[from]);
    frame_ip4(f, rig_ip4[from], rig_ip4[to], 6);
    frame_tcp(f, sport, dport, seq, ack, flags, 1000);
    frame_end(f);
}

/* --- what is told --- */

/* Slot 0 judges the frame; then it is explained as if `by` had decided. */
static struct moat_traced explain(enum moat_dir dir, const struct frame *f, unsigned by,
                                  uint32_t rule)
{
    struct moat_thread *t = moat_thread_self(r.e);
    struct moat_pkt p = rig_pkt(f->data, f->len, f->len);
    uint32_t passed = moat_pipe_burst(t, r.port[0], dir, &p, 1);
    struct moat_traced out;

    p.by = (uint8_t)by;
    p.rule = rule;
    memset(&out, 0xff, sizeof out);
    moat_qsbr_enter(&r.e->qsbr, t->reader);
    moat_explain(t, r.e->slots[0].view, dir, &p, passed & 1, &out);
    moat_qsbr_leave(t->reader);
    return out;
}

START_TEST(a_session_from_its_first_packet)
{
    struct moat_traced x;
    struct frame f;

    udp4(&f, 0, 1, 1000, 53);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_RULE, 1);
    ck_assert_uint_eq(x.verdict, MOAT_ALLOW);
    ck_assert_uint_eq(x.reason, MOAT_R_NONE);
    ck_assert_uint_eq(x.by, MOAT_BY_RULE);
    ck_assert_uint_eq(x.rule, 1);
    ck_assert_uint_eq(x.generation, 1);
    ck_assert_str_eq(x.vnic, rig_vnic[0]);
    ck_assert_uint_eq(x.slot_state, MOAT_SLOT_ACTIVE);
    ck_assert_uint_eq(x.frame_len, f.len);
    ck_assert_uint_eq(x.vlan, 0);
    ck_assert_uint_eq(x.flow.dir, MOAT_FROM_VM);
    ck_assert_uint_eq(x.flow.family, MOAT_FAM_IP4);
    ck_assert_uint_eq(x.flow.proto, 17);
    ck_assert_uint_eq(x.flow.sport, 1000);
    ck_assert_uint_eq(x.flow.dport, 53);
    ck_assert_mem_eq(x.flow.local, rig_ip4[0], 4);
    ck_assert_mem_eq(x.flow.remote, rig_ip4[1], 4);
    ck_assert_uint_eq(x.has_session, 1);
    ck_assert_uint_eq(x.session_dir, MOAT_FROM_VM);
    ck_assert_uint_eq(x.session_flags, 0);
    ck_assert_uint_eq(x.side_state[MOAT_FROM_VM], 1);
    ck_assert_uint_eq(x.side_state[MOAT_TO_VM], 0);
    ck_assert_uint_eq(x.packets[MOAT_FROM_VM], 1);
    ck_assert_uint_eq(x.bytes[MOAT_FROM_VM], f.len);

    /* The answer comes by the session: its rule and generation are told, though the slot has a
     * newer policy by now and the caller names no rule. */
    rig_clock_ms += 7000;
    udp4(&f, 1, 0, 53, 1000);
    x = explain(MOAT_TO_VM, &f, MOAT_BY_SESSION, 0);
    ck_assert_uint_eq(x.verdict, MOAT_ALLOW);
    ck_assert_uint_eq(x.by, MOAT_BY_SESSION);
    ck_assert_uint_eq(x.rule, 1);
    ck_assert_uint_eq(x.generation, 1);
    ck_assert_uint_eq(x.age_s, 7);
    ck_assert_uint_eq(x.session_flags, MOAT_SES_F_REPLIED);
    ck_assert_uint_eq(x.side_state[MOAT_TO_VM], 1);
    ck_assert_uint_eq(x.packets[MOAT_TO_VM], 1);
    ck_assert_uint_eq(x.packets[MOAT_FROM_VM], 1);
    ck_assert_mem_eq(x.flow.local, rig_ip4[0], 4);
}
END_TEST

START_TEST(a_tcp_session_and_what_it_refuses)
{
    struct moat_traced x;
    struct frame f;

    tcp4(&f, 0, 1, 1000, 80, 100, 0, MOAT_TCP_SYN);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_RULE, 1);
    ck_assert_uint_eq(x.tcp_flags, MOAT_TCP_SYN);
    ck_assert_uint_eq(x.side_state[MOAT_FROM_VM], 1);
    ck_assert_uint_eq(x.side_state[MOAT_TO_VM], 0);
    tcp4(&f, 1, 0, 80, 1000, 900, 101, MOAT_TCP_SYN | MOAT_TCP_ACK);
    x = explain(MOAT_TO_VM, &f, MOAT_BY_SESSION, 0);
    ck_assert_uint_eq(x.verdict, MOAT_ALLOW);
    ck_assert_uint_eq(x.side_state[MOAT_FROM_VM], 2);
    tcp4(&f, 0, 1, 1000, 80, 101, 901, MOAT_TCP_ACK);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_SESSION, 0); /* this one takes the straight line */
    ck_assert_uint_eq(x.verdict, MOAT_ALLOW);
    ck_assert_uint_eq(x.rule, 1);
    ck_assert_uint_eq(x.flow.dport, 80);
    ck_assert_uint_eq(x.packets[MOAT_FROM_VM], 2);
    /* Out of the window: refused, and the session is told. */
    tcp4(&f, 0, 1, 1000, 80, 101 + (1u << 30), 901, MOAT_TCP_ACK);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_SESSION, 0);
    ck_assert_uint_eq(x.verdict, MOAT_DROP);
    ck_assert_uint_eq(x.reason, MOAT_R_TCP_WINDOW);
    ck_assert_uint_eq(x.rule, 1);
    ck_assert_uint_eq(x.has_session, 1);
    ck_assert_uint_eq(x.packets[MOAT_FROM_VM], 2);
}
END_TEST

START_TEST(an_error_that_belongs_to_a_session)
{
    struct moat_traced x;
    struct frame f, e;

    udp4(&f, 0, 1, 1000, 53);
    explain(MOAT_FROM_VM, &f, MOAT_BY_RULE, 1);
    frame_eth(&e, rig_mac[0], rig_mac[1]);
    frame_ip4(&e, rig_ip4[1], rig_ip4[0], 1);
    frame_icmp(&e, 3, 3, 0);
    frame_bytes(&e, f.data + 14, 28);
    frame_end(&e);
    x = explain(MOAT_TO_VM, &e, MOAT_BY_RELATED, 0);
    ck_assert_uint_eq(x.verdict, MOAT_ALLOW);
    ck_assert_uint_eq(x.by, MOAT_BY_RELATED);
    ck_assert_uint_eq(x.rule, 1);
    ck_assert_uint_eq(x.has_session, 1);
    ck_assert_uint_eq(x.session_dir, MOAT_FROM_VM);
    ck_assert_uint_eq(x.flow.dport, 3); /* the error's own type and code */
    ck_assert_uint_eq(x.flow.sport, 3);
    /* One that quotes nothing of ours. */
    e.data[e.len - 5]++;
    x = explain(MOAT_TO_VM, &e, MOAT_BY_RELATED, 0);
    ck_assert_uint_eq(x.verdict, MOAT_DROP);
    ck_assert_uint_eq(x.has_session, 0);
    ck_assert_uint_eq(x.rule, 0);
}
END_TEST

START_TEST(refusals_by_rule)
{
    static const struct {
        uint16_t port;
        uint32_t rule;
        uint8_t verdict, reason;
    } rows[] = {
        {81, 2, MOAT_REJECT, MOAT_R_RULE},
        {82, 3, MOAT_DROP, MOAT_R_RULE},
        {83, 0, MOAT_DROP, MOAT_R_DEFAULT},
    };
    struct moat_traced x;
    struct frame f;

    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        tcp4(&f, 0, 1, 1000, rows[i].port, 1, 0, MOAT_TCP_SYN);
        x = explain(MOAT_FROM_VM, &f, MOAT_BY_RULE, rows[i].rule);
        ck_assert_uint_eq(x.verdict, rows[i].verdict);
        ck_assert_uint_eq(x.reason, rows[i].reason);
        ck_assert_uint_eq(x.rule, rows[i].rule);
        ck_assert_uint_eq(x.has_session, 0);
        ck_assert_uint_eq(x.generation, 1);
    }
    /* A rejected destination's packet that something else refuses is not said to be rejected. */
    tcp4(&f, 0, 1, 1000, 81, 1, 0, MOAT_TCP_SYN | MOAT_TCP_FIN);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_CHECK, 0);
    ck_assert_uint_eq(x.verdict, MOAT_DROP);
    ck_assert_uint_eq(x.reason, MOAT_R_TCP_FLAGS);
}
END_TEST

START_TEST(a_slot_that_is_blocked)
{
    struct moat_ctl_state s = {.state = MOAT_SLOT_BLOCKED};
    struct moat_traced x;
    struct frame f;
    char err[128];

    udp4(&f, 0, 1, 1000, 53);
    explain(MOAT_FROM_VM, &f, MOAT_BY_RULE, 1);
    snprintf(s.vnic, sizeof s.vnic, "%s", rig_vnic[0]);
    ck_assert_int_eq(moat_slot_set_state(r.e, &s, err, sizeof err), 0);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_STATE, 0);
    ck_assert_uint_eq(x.verdict, MOAT_DROP);
    ck_assert_uint_eq(x.reason, MOAT_R_BLOCKED);
    ck_assert_uint_eq(x.slot_state, MOAT_SLOT_BLOCKED);
    ck_assert_uint_eq(x.flow.dport, 53);
    ck_assert_uint_eq(x.has_session, 0); /* it had no say */
}
END_TEST

START_TEST(a_session_that_was_cut)
{
    struct moat_traced x;
    struct frame f;

    udp4(&f, 0, 1, 1000, 53);
    explain(MOAT_FROM_VM, &f, MOAT_BY_RULE, 1);
    rig_publish(&r, 0, "policy \"t\" version 1\ndefault drop\n");
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_SESSION, 0);
    ck_assert_uint_eq(x.verdict, MOAT_DROP);
    ck_assert_uint_eq(x.reason, MOAT_R_POLICY_CHANGE);
    ck_assert_uint_eq(x.has_session, 0);
    ck_assert_uint_eq(x.rule, 0);
    ck_assert_uint_eq(x.generation, r.generation);
}
END_TEST

START_TEST(other_families)
{
    static const uint8_t none[6] = {0};
    struct moat_traced x;
    struct frame f;

    frame_eth(&f, rig_mac[1], rig_mac[0]);
    frame_ip6(&f, rig_ip6[0], rig_ip6[1], 17);
    frame_udp(&f, 1000, 53);
    frame_end(&f);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_RULE, 1);
    ck_assert_uint_eq(x.flow.family, MOAT_FAM_IP6);
    ck_assert_mem_eq(x.flow.remote, rig_ip6[1], 16);
    ck_assert_uint_eq(x.has_session, 1);
    frame_eth(&f, rig_mac[1], rig_mac[0]);
    frame_arp(&f, 1, rig_mac[0], rig_ip4[0], none, rig_ip4[1]);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_RULE, 4);
    ck_assert_uint_eq(x.flow.family, MOAT_FAM_ARP);
    ck_assert_mem_eq(x.flow.local, rig_ip4[0], 4);
    ck_assert_uint_eq(x.verdict, MOAT_ALLOW);
    ck_assert_uint_eq(x.has_session, 0);
    frame_eth(&f, rig_mac[1], rig_mac[0]);
    frame_vlan(&f, 0x8100, 77);
    frame_ip4(&f, rig_ip4[0], rig_ip4[1], 17);
    frame_udp(&f, 1000, 53);
    frame_end(&f);
    x = explain(MOAT_FROM_VM, &f, MOAT_BY_CHECK, 0);
    ck_assert_uint_eq(x.vlan, 77);
    ck_assert_uint_eq(x.verdict, MOAT_DROP);
}
END_TEST

/* Every beginning of frames of each kind, under every decision: no address may be read that
 * is not there. */
START_TEST(frames_cut_short)
{
    struct frame f[4], cut;

    udp4(&f[0], 0, 1, 1000, 53);
    tcp4(&f[1], 0, 1, 1000, 80, 1, 0, MOAT_TCP_SYN);
    frame_eth(&f[2], rig_mac[1], rig_mac[0]);
    frame_ip6(&f[2], rig_ip6[0], rig_ip6[1], 17);
    frame_udp(&f[2], 1000, 53);
    frame_end(&f[2]);
    frame_eth(&f[3], rig_mac[1], rig_mac[0]);
    frame_ip4(&f[3], rig_ip4[0], rig_ip4[1], 1);
    frame_icmp(&f[3], 3, 3, 0);
    frame_bytes(&f[3], f[0].data + 14, 28);
    frame_end(&f[3]);
    for (unsigned i = 0; i < 4; i++)
        for (uint32_t len = 0; len < f[i].len; len++)
            for (unsigned by = 0; by < MOAT_N_BY + 1; by++) {
                struct moat_traced x;

                memset(&cut, 0xee, sizeof cut);
                memcpy(cut.data, f[i].data, len);
                cut.len = len;
                x = explain(MOAT_FROM_VM, &cut, by, 0);
                ck_assert_uint_eq(x.frame_len, len);
                if (len < 14)
                    ck_assert_uint_eq(x.flow.family, 0);
            }
}
END_TEST

/* --- who gets what --- */

static struct moat_trace *start(const char *vnic, const char *filter, uint32_t which,
                                uint32_t snaplen)
{
    struct moat_ctl_trace ask = {.which = which, .snaplen = snaplen};
    struct bpf_program prog = {0, NULL};
    struct moat_trace *tr;
    char err[128] = "";

    snprintf(ask.vnic, sizeof ask.vnic, "%s", vnic);
    if (filter) {
        pcap_t *dead = pcap_open_dead(DLT_EN10MB, 65535);

        ck_assert_int_eq(pcap_compile(dead, &prog, filter, 1, PCAP_NETMASK_UNKNOWN), 0);
        pcap_close(dead);
        ask.n_insns = prog.bf_len;
    }
    tr =
        moat_trace_start(r.e, &ask, (const struct moat_trace_insn *)prog.bf_insns, err, sizeof err);
    pcap_freecode(&prog);
    ck_assert_msg(tr != NULL, "%s", err);
    return tr;
}

static void stop(struct moat_trace *tr)
{
    moat_trace_stop(r.e, tr);
}

/* A burst of slot `slot` that was judged so: bit i of `passed`. */
static void burst(unsigned slot, const struct frame *f, unsigned n, uint32_t passed)
{
    struct moat_thread *t = moat_thread_self(r.e);
    const struct moat_view *view;
    struct moat_pkt p[MOAT_BURST_MAX];

    for (unsigned i = 0; i < n; i++)
        p[i] = (struct moat_pkt){.data = f[i].data,
                                 .len = f[i].len,
                                 .total = f[i].len,
                                 .by = MOAT_BY_RULE,
                                 .reason = passed >> i & 1 ? MOAT_R_NONE : MOAT_R_DEFAULT};
    moat_qsbr_enter(&r.e->qsbr, t->reader);
    view = __atomic_load_n(&r.e->slots[slot].view, __ATOMIC_ACQUIRE);
    if (__atomic_load_n(&r.e->traces, __ATOMIC_ACQUIRE))
        moat_trace_burst(t, view, MOAT_FROM_VM, p, n, passed);
    moat_qsbr_leave(t->reader);
}

/* Takes all; returns the destination ports in order. */
static const char *taken(struct moat_trace *tr)
{
    static uint8_t data[MOAT_TRACE_SNAPLEN_MAX];
    static char text[256];
    struct moat_traced x;
    int at = 0;

    text[0] = 0;
    while (moat_trace_take(tr, &x, data))
        at += snprintf(text + at, sizeof text - (size_t)at, "%s%u", at ? " " : "", x.flow.dport);
    return text;
}

START_TEST(each_gets_what_it_asked_for)
{
    struct moat_trace *all, *refused, *passed, *dns, *of_b;
    struct frame f[3];

    all = start("", NULL, MOAT_TRACE_PASSED | MOAT_TRACE_REFUSED, 0);
    refused = start("", NULL, MOAT_TRACE_REFUSED, 0);
    passed = start("", NULL, MOAT_TRACE_PASSED, 0);
    dns = start("", "udp port 53", MOAT_TRACE_PASSED | MOAT_TRACE_REFUSED, 0);
    of_b = start(rig_vnic[1], NULL, MOAT_TRACE_PASSED | MOAT_TRACE_REFUSED, 0);
    udp4(&f[0], 0, 1, 1, 53);
    udp4(&f[1], 0, 1, 1, 54);
    tcp4(&f[2], 0, 1, 1, 55, 1, 0, MOAT_TCP_SYN);
    burst(0, f, 3, 0x3);
    burst(1, f, 2, 0x1);
    ck_assert_str_eq(taken(all), "53 54 55 53 54");
    ck_assert_str_eq(taken(refused), "55 54");
    ck_assert_str_eq(taken(passed), "53 54 53");
    ck_assert_str_eq(taken(dns), "53 53");
    ck_assert_str_eq(taken(of_b), "53 54");
    ck_assert_uint_eq(rig_counter(&r, 0, MOAT_C_TRACED), 3 + 1 + 2 + 1);
    ck_assert_uint_eq(rig_counter(&r, 1, MOAT_C_TRACED), 2 + 1 + 1 + 1 + 2);
    ck_assert_uint_eq(rig_counter(&r, 0, MOAT_C_TRACE_LOST), 0);
    /* Each may leave, in any order, and the others go on. */
    stop(passed);
    stop(all);
    stop(of_b);
    burst(0, f, 3, 0x3);
    ck_assert_str_eq(taken(refused), "55");
    ck_assert_str_eq(taken(dns), "53");
    stop(dns);
    stop(refused);
    burst(0, f, 3, 0x3);
}
END_TEST

START_TEST(bytes_of_the_frame)
{
    static const uint32_t lens[] = {0, 1, 14, 40, 62, 63, MOAT_TRACE_SNAPLEN_MAX};
    uint8_t data[MOAT_TRACE_SNAPLEN_MAX + 1];
    struct moat_traced x;
    struct frame f;

    udp4(&f, 0, 1, 1, 53);
    ck_assert_uint_eq(f.len, 62);
    for (unsigned i = 0; i < sizeof lens / sizeof *lens; i++) {
        struct moat_trace *tr = start("", NULL, MOAT_TRACE_PASSED, lens[i]);
        uint32_t want = lens[i] < f.len ? lens[i] : f.len;

        burst(0, &f, 1, 1);
        memset(data, 0xaa, sizeof data);
        ck_assert(moat_trace_take(tr, &x, data));
        ck_assert_uint_eq(x.cap_len, want);
        ck_assert_uint_eq(x.frame_len, f.len);
        ck_assert_uint_gt(x.time_us, 0);
        ck_assert_mem_eq(data, f.data, want);
        ck_assert_uint_eq(data[want], 0xaa);
        ck_assert(!moat_trace_take(tr, &x, data));
        stop(tr);
    }
}
END_TEST

START_TEST(what_is_lost)
{
    struct moat_trace *tr = start("", NULL, MOAT_TRACE_PASSED, 0);
    uint8_t data[MOAT_TRACE_SNAPLEN_MAX];
    struct moat_traced x;
    struct frame f[8];
    uint64_t seq = 0;

    for (unsigned i = 0; i < 8; i++)
        udp4(&f[i], 0, 1, 1, 53);
    for (unsigned i = 0; i < MOAT_TRACE_CELLS + 80; i += 8)
        burst(0, f, 8, 0xff);
    ck_assert_uint_eq(rig_counter(&r, 0, MOAT_C_TRACED), MOAT_TRACE_CELLS);
    ck_assert_uint_eq(rig_counter(&r, 0, MOAT_C_TRACE_LOST), 80);
    for (unsigned i = 0; i < MOAT_TRACE_CELLS; i++) {
        ck_assert(moat_trace_take(tr, &x, data));
        ck_assert(x.seq > seq);
        seq = x.seq;
    }
    ck_assert(!moat_trace_take(tr, &x, data));
    burst(0, f, 1, 1);
    ck_assert(moat_trace_take(tr, &x, data));
    ck_assert_uint_eq(x.seq, MOAT_TRACE_CELLS + 80 + 1);
    stop(tr);
}
END_TEST

/* --- through the pipe --- */

/* What the pipe itself says of each packet: verdict, who decided, reason, rule. */
START_TEST(the_pipe_tells)
{
    static const struct {
        uint16_t sport, dport;
        uint8_t flags, verdict, by, reason;
        uint32_t rule;
        bool tcp, back, has_session;
        uint32_t seq;
    } rows[] = {
        {1000, 53, 0, MOAT_ALLOW, MOAT_BY_RULE, MOAT_R_NONE, 1, false, false, true, 0},
        {53, 1000, 0, MOAT_ALLOW, MOAT_BY_SESSION, MOAT_R_NONE, 1, false, true, true, 0},
        {1000, 53, 0, MOAT_ALLOW, MOAT_BY_SESSION, MOAT_R_NONE, 1, false, false, true, 0},
        {1000, 54, 0, MOAT_DROP, MOAT_BY_RULE, MOAT_R_DEFAULT, 0, false, false, false, 0},
        {1000, 0, 0, MOAT_DROP, MOAT_BY_CHECK, MOAT_R_L4_MALFORMED, 0, false, false, false, 0},
        {1000, 80, MOAT_TCP_SYN, MOAT_ALLOW, MOAT_BY_RULE, MOAT_R_NONE, 1, true, false, true, 0},
        {1000, 80, MOAT_TCP_ACK, MOAT_DROP, MOAT_BY_SESSION, MOAT_R_TCP_STATE, 1, true, false, true,
         1u << 30},
        {1000, 81, MOAT_TCP_SYN, MOAT_REJECT, MOAT_BY_RULE, MOAT_R_RULE, 2, true, false, false, 0},
        {1000, 82, MOAT_TCP_SYN, MOAT_DROP, MOAT_BY_RULE, MOAT_R_RULE, 3, true, false, false, 0},
    };
    struct moat_trace *tr = start("", NULL, MOAT_TRACE_PASSED | MOAT_TRACE_REFUSED, 0);
    uint8_t data[MOAT_TRACE_SNAPLEN_MAX];
    struct moat_traced x;
    struct frame f;

    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        unsigned from = rows[i].back, to = !rows[i].back;

        if (rows[i].tcp)
            tcp4(&f, from, to, rows[i].sport, rows[i].dport, 100 + rows[i].seq, 0, rows[i].flags);
        else
            udp4(&f, from, to, rows[i].sport, rows[i].dport);
        rig_push(&r, 0, rows[i].back ? MOAT_TO_VM : MOAT_FROM_VM, f.data, f.len, NULL);
        ck_assert_msg(moat_trace_take(tr, &x, data), "row %u: not traced", i);
        ck_assert_msg(x.verdict == rows[i].verdict && x.by == rows[i].by &&
                          x.reason == rows[i].reason && x.rule == rows[i].rule &&
                          x.has_session == rows[i].has_session,
                      "row %u: verdict %u by %u reason %s rule %u session %u", i, x.verdict, x.by,
                      moat_reason_name(x.reason), x.rule, x.has_session);
        ck_assert(!moat_trace_take(tr, &x, data));
    }
    stop(tr);
    rig_push(&r, 0, MOAT_FROM_VM, f.data, f.len, NULL);
}
END_TEST

/* --- what must not start --- */

#define ALL (MOAT_TRACE_PASSED | MOAT_TRACE_REFUSED)

static int try(struct moat_ctl_trace ask, const struct moat_trace_insn *insns)
{
    char err[128] = "";
    struct moat_trace *tr = moat_trace_start(r.e, &ask, insns, err, sizeof err);
    int rc = errno;

    if (tr) {
        ck_assert_str_eq(err, "");
        stop(tr);
        return 0;
    }
    ck_assert_ptr_null(r.e->traces);
    ck_assert_uint_gt(strlen(err), 3);
    return rc;
}

START_TEST(requests_out_of_range)
{
    static struct moat_trace_insn many[MOAT_TRACE_INSNS_MAX + 1];
    struct moat_trace *tr[MOAT_TRACES_MAX];
    struct moat_ctl_trace ask = {.which = ALL};
    char err[128];

    for (unsigned i = 0; i <= MOAT_TRACE_INSNS_MAX; i++)
        many[i].code = BPF_RET;
    ck_assert_int_eq(try(ask, NULL), 0);
    ask.n_insns = MOAT_TRACE_INSNS_MAX;
    ck_assert_int_eq(try(ask, many), 0);
    ask.n_insns++;
    ck_assert_int_eq(try(ask, many), EINVAL);
    ask = (struct moat_ctl_trace){.which = 0};
    ck_assert_int_eq(try(ask, NULL), EINVAL);
    ask.which = 4;
    ck_assert_int_eq(try(ask, NULL), EINVAL);
    ask = (struct moat_ctl_trace){.which = ALL, .snaplen = MOAT_TRACE_SNAPLEN_MAX};
    ck_assert_int_eq(try(ask, NULL), 0);
    ask.snaplen++;
    ck_assert_int_eq(try(ask, NULL), EINVAL);
    ask = (struct moat_ctl_trace){.which = ALL, .vnic = "nobody"};
    ck_assert_int_eq(try(ask, NULL), ENOENT);

    for (unsigned i = 0; i < MOAT_TRACES_MAX; i++)
        tr[i] = start("", NULL, ALL, 0);
    ask.vnic[0] = 0;
    ck_assert_ptr_null(moat_trace_start(r.e, &ask, NULL, err, sizeof err));
    ck_assert_int_eq(errno, EUSERS);
    for (unsigned i = 0; i < MOAT_TRACES_MAX; i++)
        stop(tr[i]);
    moat_trace_stop(r.e, NULL);
}
END_TEST

#define END                                                                                        \
    {                                                                                              \
        BPF_RET, 0, 0, 1                                                                           \
    }

START_TEST(hostile_filters)
{
    static const struct {
        const char *what;
        uint32_t n;
        struct moat_trace_insn v[4];
    } rows[] = {
        {"no end", 1, {{BPF_LD | BPF_IMM, 0, 0, 1}}},
        {"no end behind a branch", 2, {END, {BPF_LD | BPF_IMM, 0, 0, 1}}},
        {"loop of one", 2, {{BPF_JMP | BPF_JA, 0, 0, UINT32_MAX}, END}},
        {"loop of two", 3, {{BPF_LD, 0, 0, 1}, {BPF_JMP | BPF_JA, 0, 0, UINT32_MAX - 1}, END}},
        {"jump out", 2, {{BPF_JMP | BPF_JA, 0, 0, 1}, END}},
        {"far jump out", 2, {{BPF_JMP | BPF_JA, 0, 0, INT32_MAX}, END}},
        {"branch out, true", 2, {{BPF_JMP | BPF_JEQ, 1, 0, 0}, END}},
        {"branch out, false", 2, {{BPF_JMP | BPF_JEQ, 0, 1, 0}, END}},
        {"branch far out", 2, {{BPF_JMP | BPF_JSET, 255, 0, 0}, END}},
        {"memory 16", 2, {{BPF_ST, 0, 0, 16}, END}},
        {"memory -1", 2, {{BPF_LD | BPF_MEM, 0, 0, UINT32_MAX}, END}},
        {"memory 16 to X", 2, {{BPF_LDX | BPF_MEM, 0, 0, 16}, END}},
        {"division by 0", 2, {{BPF_ALU | BPF_DIV | BPF_K, 0, 0, 0}, END}},
        {"modulo 0", 2, {{BPF_ALU | BPF_MOD | BPF_K, 0, 0, 0}, END}},
        {"shift by 32", 2, {{BPF_ALU | BPF_LSH | BPF_K, 0, 0, 32}, END}},
        /* These pass bpf_validate(), and bpf_filter() ends the process. */
        {"immediate of half a word", 2, {{BPF_LD | BPF_H | BPF_IMM, 0, 0, 0}, END}},
        {"length of a byte", 2, {{BPF_LD | BPF_B | BPF_LEN, 0, 0, 0}, END}},
        {"return X", 1, {{BPF_RET | BPF_X, 0, 0, 0}}},
        {"bits above the code", 2, {{0x8000 | BPF_LD, 0, 0, 0}, END}},
        {"misc", 2, {{BPF_MISC | 0x40, 0, 0, 0}, END}},
        {"all ones", 2, {{UINT16_MAX, 0, 0, 0}, END}},
    };

    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct moat_ctl_trace ask = {.which = ALL, .n_insns = rows[i].n};

        ck_assert_msg(try(ask, rows[i].v) == EINVAL, "%s was accepted", rows[i].what);
    }
}
END_TEST

/* libpcap's compiler makes none that is refused, but for the loops of protochain. */
START_TEST(filters_of_the_compiler)
{
    static const char *const good[] = {
        "",
        "tcp port 80",
        "ip6 proto 58 or icmp",
        "host 10.0.0.1 and not port 22",
        "vlan 5 and arp",
        "ether host 02:00:00:00:00:01",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
        "ip[2:2] - ((ip[0]&0xf)<<2) - ((tcp[12]&0xf0)>>2) != 0",
        "greater 100",
        "less 10",
        "net 10.0.0.0/8 and portrange 1000-2000",
        "udp[8:4] % 7 == 3",
        "ip[6:2] & 0x1fff != 0",
        "icmp[icmptype] == icmp-echo",
        "broadcast or multicast",
        "sctp or ip proto 47",
    };

    for (unsigned i = 0; i < sizeof good / sizeof *good; i++)
        stop(start("", good[i], ALL, 0));

    struct bpf_program prog;
    pcap_t *dead = pcap_open_dead(DLT_EN10MB, 65535);
    struct moat_ctl_trace ask = {.which = ALL};

    ck_assert_int_eq(pcap_compile(dead, &prog, "ip6 protochain 6", 0, PCAP_NETMASK_UNKNOWN), 0);
    ask.n_insns = prog.bf_len;
    ck_assert_int_eq(try(ask, (const struct moat_trace_insn *)prog.bf_insns), EINVAL);
    pcap_freecode(&prog);
    pcap_close(dead);
}
END_TEST

static uint64_t seed = 1;

static uint32_t below(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

/* Programs of noise: whatever is accepted ends, and stays in the packet. */
START_TEST(filters_of_noise)
{
    struct moat_trace_insn v[12];
    struct frame f[2];
    unsigned n_good = 0;

    udp4(&f[0], 0, 1, 1, 53);
    f[1] = f[0];
    f[1].len = 3;
    for (unsigned i = 0; i < 100000; i++) {
        struct moat_ctl_trace ask = {.which = ALL, .n_insns = 1 + below(12)};
        struct moat_trace *tr;
        char err[128];

        for (uint32_t k = 0; k < ask.n_insns; k++) {
            v[k] = (struct moat_trace_insn){(uint16_t)(below(50) ? below(256) : below(65536)),
                                            (uint8_t)below(3), (uint8_t)below(3),
                                            below(3) ? below(20) : UINT32_MAX - below(80)};
            if (k == ask.n_insns - 1)
                v[k].code = BPF_RET | (below(2) ? BPF_A : BPF_K);
        }
        tr = moat_trace_start(r.e, &ask, v, err, sizeof err);
        if (!tr)
            continue;
        n_good++;
        burst(0, f, 2, 1);
        stop(tr);
    }
    ck_assert_uint_gt(n_good, 1000);
}
END_TEST

/* --- threads --- */

static bool over; /* atomic */
static uint64_t offered;

static void *packets(void *slot)
{
    static __thread struct frame f[16];
    unsigned n = (unsigned)(uintptr_t)slot;
    uint64_t sent = 0;

    for (unsigned i = 0; i < 16; i++)
        udp4(&f[i], n, (n + 1) % RIG_SLOTS, (uint16_t)i, (uint16_t)(100 + n));
    while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
        burst(n, f, 16, 0x5555);
        sent += 16;
        if (sent % 1024 == 0)
            sched_yield();
    }
    __atomic_fetch_add(&offered, sent, __ATOMIC_RELAXED);
    return NULL;
}

/* Three packet threads; traces come and go meanwhile.  Each that runs sees its packets whole, and
 * what it takes and what is lost add up. */
START_TEST(threads)
{
    static uint8_t data[MOAT_TRACE_SNAPLEN_MAX];
    struct moat_trace *tr[4] = {NULL};
    uint64_t seq[4] = {0}, n_taken = 0;
    pthread_t t[RIG_SLOTS];
    struct moat_traced x;

    for (uintptr_t i = 0; i < RIG_SLOTS; i++)
        ck_assert_int_eq(pthread_create(&t[i], NULL, packets, (void *)i), 0);
    for (unsigned turn = 0; turn < 400 || n_taken < 20000; turn++) {
        unsigned k = turn % 4;

        if (turn % 3 == 0) {
            stop(tr[k]);
            tr[k] = start(k == 3 ? rig_vnic[1] : "", k == 1 ? "udp port 101" : NULL,
                          k == 2 ? MOAT_TRACE_REFUSED : ALL, 64);
            seq[k] = 0;
        }
        if (turn % 7 == 0)
            rig_claim(&r, 1, MOAT_SLOT_ACTIVE);
        for (unsigned i = 0; tr[k] && i < 200 && moat_trace_take(tr[k], &x, data); i++) {
            if (x.seq <= seq[k] || x.cap_len != 62 || x.frame_len != 62 ||
                data[37] != 100 + data[29] - 1 || (k == 1 && x.flow.dport != 101) ||
                (k == 2 && x.verdict != MOAT_DROP) || (k == 3 && strcmp(x.vnic, rig_vnic[1])) ||
                x.flow.dport != data[37])
                ck_abort_msg("trace %u: packet %lu is not what was asked for", k,
                             (unsigned long)x.seq);
            seq[k] = x.seq;
            n_taken++;
        }
    }
    __atomic_store_n(&over, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < RIG_SLOTS; i++)
        pthread_join(t[i], NULL);
    for (unsigned k = 0; k < 4; k++)
        stop(tr[k]);
    ck_assert_uint_gt(offered, 0);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {a_session_from_its_first_packet,
                                  a_tcp_session_and_what_it_refuses,
                                  an_error_that_belongs_to_a_session,
                                  refusals_by_rule,
                                  a_slot_that_is_blocked,
                                  a_session_that_was_cut,
                                  other_families,
                                  frames_cut_short,
                                  each_gets_what_it_asked_for,
                                  bytes_of_the_frame,
                                  what_is_lost,
                                  the_pipe_tells,
                                  requests_out_of_range,
                                  hostile_filters,
                                  filters_of_the_compiler,
                                  filters_of_noise,
                                  threads};
    Suite *s = suite_create("trace");
    TCase *t = tcase_create("trace");
    SRunner *sr;
    int failed;

    tcase_set_timeout(t, 120);
    tcase_add_checked_fixture(t, setup, teardown);
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++)
        tcase_add_test(t, tests[i]);
    suite_add_tcase(s, t);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
