/* SPDX-License-Identifier: Apache-2.0 */

/* The whole filter core: an engine with three slots, driven by the input as a program of
 * packets (traffic.h) and of what agent, switch and clock do meanwhile.
 *
 * What must hold whatever comes:
 * - a packet passes only where the slot's state, a fail mode or the slot's present rules, in
 *   one direction or the other, let it (permitted(), by a plain reader of rules);
 * - what passes from a VM has the VM's MAC, and could be parsed;
 * - what is refused has a reason, and passed + refused + held = pushed;
 * - a slot counts as many sessions as it has, and the table is empty when all is over. */

#include "datapath/trace.h"
#include "datapath/transfer.h"
#include "tests/lib/blob.h"
#include "tests/lib/ruleset_walk.h"
#include "tests/lib/traffic.h"

#include "tests/fuzz/fuzz.h"

#define MAX_OPS 400
#define N_POLICIES 5
#define N_SESSIONS 128 /* a table that can be filled */
#define INPUTS_PER_ENGINE 1000

static const char *const policies[N_POLICIES - 1] = {
    "policy \"p\" version 1\n"
    "service web = tcp 80, tcp 443\nservice dns = udp 53\n"
    "service ping = icmp echo-request, icmp6 echo-request\n"
    "tier t {\n"
    "  allow from vm \"a\" to vm \"b\" service web\n"
    "  allow log from any to vm \"b\" service dns, ping\n"
    "  reject log from vm \"b\" to vm \"c\"\n"
    "  allow from vm \"c\" to any service tcp 22, udp, protocol 47, sctp\n"
    "  allow loose from outside to vms service tcp 8080\n"
    "}\ndefault drop log\n",
    "policy \"p\" version 1\n"
    "tier t { reject from any to vm \"a\" service tcp 80\n allow from any to any }\n"
    "default allow\n",
    "policy \"p\" version 1\n"
    "tier t { allow loose log from any to any service tcp, udp }\ndefault reject log\n",
    "policy \"p\" version 1\n"
    "tier t { drop from any to vm \"b\" service udp 53\n"
    "  allow from vm \"a\" to vm \"b\" service udp, tcp 80\n"
    "  allow from vm \"b\" to vm \"a\" service icmp, icmp6, tcp 22 }\ndefault drop\n",
};

/* Compiled once: [policy][slot]; the last policy is to drop everything, ARP too. */
static struct {
    uint8_t *blob;
    size_t len;
} compiled[N_POLICIES][RIG_SLOTS];

/* One input's world.  The engine serves many inputs, for speed: each leaves it empty, and
 * that is checked. */
static struct {
    struct rig rig;
    unsigned inputs; /* that this engine has seen */
    struct choice c;
    struct traffic traffic;
    int policy[RIG_SLOTS]; /* -1: none */
    uint64_t pushed;       /* to ports with a slot */
    uint64_t injected;     /* answers and released fragments */
    struct moat_trace *trace;
    struct traffic_pkt queue[RIG_SLOTS][2][MOAT_BURST_MAX];
    unsigned n_queued[RIG_SLOTS][2];
} w;

static void compile_all(void)
{
    struct blob *none = blob_create();
    struct rig rig;

    rig_create(&rig, NULL);
    for (unsigned i = 0; i < N_POLICIES - 1; i++) {
        struct moat_policy *p = moat_policy_parse(policies[i], strlen(policies[i]), "p", NULL);

        HOLDS(p);
        for (unsigned s = 0; s < RIG_SLOTS; s++)
            HOLDS(!moat_policy_compile(p, rig.inv, s, i + 1, &compiled[i][s].blob,
                                       &compiled[i][s].len, NULL));
        moat_policy_destroy(p);
    }
    for (unsigned s = 0; s < RIG_SLOTS; s++)
        compiled[N_POLICIES - 1][s].blob = blob_emit(none, &compiled[N_POLICIES - 1][s].len);
    blob_destroy(none);
    rig_destroy(&rig);
}

static uint32_t below(uint32_t n)
{
    return choice_below(&w.c, n);
}

static bool one_in(uint32_t n)
{
    return choice_one_in(&w.c, n);
}

static const struct moat_view *view_of(unsigned slot)
{
    return w.rig.port[slot]->slot ? w.rig.port[slot]->slot->view : NULL;
}

/* --- may it pass? --- */

static bool walk_allows(unsigned slot, struct moat_flow *f)
{
    struct moat_decision d;

    moat_walk(compiled[w.policy[slot]][slot].blob, f, &d);
    return d.verdict == MOAT_ALLOW;
}

/* By the rules, as a first packet or as an answer to one. */
static bool flow_permitted(unsigned slot, enum moat_dir dir, const struct moat_pkt *p)
{
    struct moat_flow f;
    uint16_t port;

    moat_pkt_flow(p, dir, &f);
    if (p->kind == MOAT_PKT_ICMP_QUERY)
        f.dport = p->icmp_base;
    if (!(p->kind == MOAT_PKT_ICMP_QUERY && p->icmp_reply) && walk_allows(slot, &f))
        return true;
    if (p->kind == MOAT_PKT_ARP || p->kind == MOAT_PKT_ICMP_OTHER || p->ip_multicast ||
        (p->cast && p->kind != MOAT_PKT_TCP && p->kind != MOAT_PKT_ICMP_QUERY))
        return false;
    f.dir = !dir;
    if (p->kind == MOAT_PKT_TCP || p->kind == MOAT_PKT_UDP) {
        port = f.sport;
        f.sport = f.dport;
        f.dport = port;
    }
    return walk_allows(slot, &f);
}

static bool permitted(unsigned slot, enum moat_dir dir, const struct moat_pkt *p)
{
    struct moat_pkt quoted;

    if (p->frag == 2) /* has no ports of its own */
        return w.policy[slot] != N_POLICIES - 1;
    if (p->kind != MOAT_PKT_ICMP_ERROR)
        return flow_permitted(slot, dir, p);
    return moat_parse_quoted(p, &quoted) && flow_permitted(slot, !dir, &quoted);
}

static void check_passed(unsigned slot, enum moat_dir dir, struct moat_pkt p)
{
    const struct moat_view *v = view_of(slot);
    bool rarp;

    HOLDS(v);
    moat_parse(&p);
    rarp = p.kind == MOAT_PKT_RARP && dir == MOAT_FROM_VM && !memcmp(p.data + 6, v->mac, 6);
    if (v->state == MOAT_SLOT_ENROLLING || (v->state == MOAT_SLOT_BLOCKED && rarp))
        return;
    HOLDS(v->state == MOAT_SLOT_ACTIVE);
    if (w.policy[slot] < 0) {
        HOLDS(v->settings.on_missing_policy == MOAT_FAIL_ALLOW);
        return;
    }
    HOLDS(v->rules);
    if (dir == MOAT_FROM_VM && v->settings.spoof != MOAT_SPOOF_OFF)
        HOLDS(!memcmp(p.data + 6, v->mac, 6));
    if (rarp || (p.reason == MOAT_R_L2_TYPE && v->settings.n_ethertypes &&
                 p.ethertype == v->settings.ethertypes[0]))
        return;
    HOLDS(!p.reason);
    HOLDS(permitted(slot, dir, &p));
}

/* --- packets --- */

/* Answers and released fragments are frames that can be parsed. */
static void check_injected(unsigned slot)
{
    w.injected += rig_n_injected;
    for (unsigned i = 0; i < rig_n_injected && i < RIG_INJECTED; i++) {
        const struct rig_injected *in = &rig_injected[i];
        struct moat_pkt p = {.data = in->frame, .len = in->len, .total = in->len};

        moat_parse(&p);
        HOLDS(!p.reason && in->port == w.rig.port[slot]);
    }
}

static void push(unsigned slot, enum moat_dir dir)
{
    struct traffic_pkt *q = w.queue[slot][dir];
    unsigned n = w.n_queued[slot][dir];
    struct moat_pkt p[MOAT_BURST_MAX];
    uint32_t passed;

    w.n_queued[slot][dir] = 0;
    for (unsigned i = 0; i < n; i++)
        p[i] = rig_pkt(fuzz_exact(q[i].f.data, q[i].len), q[i].len, q[i].total);
    rig_forget();
    passed = moat_pipe_burst(moat_thread_self(w.rig.e), w.rig.port[slot], dir, p, n);
    check_injected(slot);
    HOLDS(!((uint64_t)passed >> n));
    w.pushed += view_of(slot) ? n : 0;
    for (unsigned i = 0; i < n; i++) {
        if (passed >> i & 1)
            check_passed(slot, dir, p[i]);
        else if (view_of(slot))
            HOLDS(p[i].reason > MOAT_R_NONE && p[i].reason < MOAT_N_REASONS);
        /* From here to the receiver, as between VMs of one host. */
        if (dir == MOAT_FROM_VM && q[i].to < RIG_SLOTS && (passed >> i & 1) &&
            w.n_queued[q[i].to][MOAT_TO_VM] < MOAT_BURST_MAX)
            w.queue[q[i].to][MOAT_TO_VM][w.n_queued[q[i].to][MOAT_TO_VM]++] = q[i];
        free((void *)(uintptr_t)p[i].data);
    }
}

static void packets(unsigned n)
{
    while (n--) {
        struct traffic_pkt pkt;
        unsigned *queued;

        traffic_next(&w.traffic, &pkt);
        rig_clock_ms += pkt.wait_ms;
        if (pkt.from < RIG_SLOTS && !one_in(8)) {
            queued = &w.n_queued[pkt.from][MOAT_FROM_VM];
            if (*queued < MOAT_BURST_MAX)
                w.queue[pkt.from][MOAT_FROM_VM][(*queued)++] = pkt;
        } else if (pkt.to < RIG_SLOTS) {
            queued = &w.n_queued[pkt.to][MOAT_TO_VM];
            if (*queued < MOAT_BURST_MAX)
                w.queue[pkt.to][MOAT_TO_VM][(*queued)++] = pkt;
        }
    }
    for (unsigned s = 0; s < RIG_SLOTS; s++)
        push(s, MOAT_FROM_VM);
    for (unsigned s = 0; s < RIG_SLOTS; s++)
        push(s, MOAT_TO_VM);
}

/* --- what others do --- */

static void publish(unsigned slot)
{
    int policy = (int)below(N_POLICIES);
    char err[256];

    if (!moat_slot_publish(w.rig.e, rig_vnic[slot], compiled[policy][slot].blob,
                           compiled[policy][slot].len, err, sizeof err))
        w.policy[slot] = policy;
    else
        HOLDS(!view_of(slot));
}

static void claim(unsigned slot)
{
    static const uint8_t states[8] = {MOAT_SLOT_ACTIVE,   MOAT_SLOT_ACTIVE,   MOAT_SLOT_ACTIVE,
                                      MOAT_SLOT_ACTIVE,   MOAT_SLOT_ACTIVE,   MOAT_SLOT_BLOCKED,
                                      MOAT_SLOT_ARRIVING, MOAT_SLOT_ENROLLING};
    struct moat_slot_conf c;
    char err[256];

    rig_conf(slot, states[below(8)], &c);
    c.settings.spoof = (uint8_t)(one_in(4) ? below(3) : MOAT_SPOOF_STRICT);
    c.settings.vlan = (uint8_t)below(2);
    c.settings.tcp_loose = one_in(8);
    c.settings.on_missing_policy = one_in(8);
    c.settings.quarantine = one_in(16);
    c.settings.ra_guard = !one_in(8);
    c.settings.dhcp_guard = !one_in(8);
    c.settings.enroll_s = below(4);
    if (one_in(4)) { /* quotas that are reached */
        c.settings.max_sessions = 1 + below(8);
        c.settings.max_half_open = 1 + below(4);
        c.settings.max_new = 1 + below(8);
        c.settings.max_fragments = 1 + below(2);
        c.settings.max_logs = 1 + below(4);
    }
    if (one_in(8))
        c.settings.timers[below(MOAT_N_TIMERS)] = 1 + below(20);
    if (one_in(8))
        c.n_addrs = (uint8_t)below(3);
    if (one_in(8)) {
        c.settings.n_ethertypes = 1;
        c.settings.ethertypes[0] = 0x88b5; /* one that traffic.h has */
    }
    HOLDS(!moat_slot_claim(w.rig.e, &c, err, sizeof err));
}

static void release(unsigned slot)
{
    char err[256];

    if (!moat_slot_release(w.rig.e, rig_vnic[slot], err, sizeof err))
        w.policy[slot] = -1;
}

static void set_state(unsigned slot, unsigned state)
{
    struct moat_ctl_state st = {.state = (uint8_t)state};
    char err[256];

    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[slot]);
    st.precopy = one_in(4);
    st.pickup_s = one_in(8) ? below(100) : 0;
    moat_slot_set_state(w.rig.e, &st, err, sizeof err);
}

/* All sessions leave as records and come back. */
static void save_and_restore(unsigned slot)
{
    static _Alignas(8) uint8_t buf[MOAT_CTL_MAX];
    struct moat_ctl_sessions ask = {.cursor = 0};
    struct moat_ctl_sessions_reply *reply = (void *)buf;
    struct moat_ctl_import head = {.same_policy = !one_in(4)};
    struct moat_ctl_import_reply done;
    const struct moat_view *v = view_of(slot);
    char err[256];
    int len;

    if (!v || v->state != MOAT_SLOT_ACTIVE)
        return;
    snprintf(ask.vnic, sizeof ask.vnic, "%s", rig_vnic[slot]);
    snprintf(head.vnic, sizeof head.vnic, "%s", rig_vnic[slot]);
    len = moat_transfer_export(w.rig.e, &ask, buf, sizeof buf);
    HOLDS(len >= (int)sizeof *reply);
    head.n = reply->n;
    set_state(slot, MOAT_SLOT_ARRIVING);
    HOLDS(!moat_transfer_import(w.rig.e, &head, reply + 1, (size_t)len - sizeof *reply, &done, err,
                                sizeof err));
    HOLDS(done.accepted + done.refused == head.n);
    set_state(slot, MOAT_SLOT_ACTIVE);
}

static void port_event(unsigned slot)
{
    struct moat_port *p = w.rig.port[slot];

    switch (below(8)) {
    case 0:
        moat_port_stopped(p);
        break;
    case 1:
        HOLDS(moat_port_register(w.rig.e, p->path) == p); /* plugged again: blocked */
        break;
    case 2:
        moat_port_logging(p, one_in(2));
        break;
    case 3:
        moat_port_connected(p, one_in(2));
        break;
    default:
        moat_port_started(p);
    }
}

/* Starts a trace, of packets that a filter takes which may be nonsense, or ends it. */
static void toggle_trace(void)
{
    struct moat_ctl_trace ask = {.which = 1 + below(3), .snaplen = below(300)};
    struct moat_trace_insn insns[8];
    char err[256];

    if (w.trace) {
        moat_trace_stop(w.rig.e, w.trace);
        w.trace = NULL;
        return;
    }
    if (one_in(4))
        snprintf(ask.vnic, sizeof ask.vnic, "%s", rig_vnic[below(RIG_SLOTS)]);
    if (one_in(2))
        ask.n_insns = (uint32_t)(choice_take(&w.c, insns, sizeof insns) / sizeof *insns);
    w.trace = moat_trace_start(w.rig.e, &ask, insns, err, sizeof err);
}

static void drain_trace(void)
{
    static uint8_t data[MOAT_TRACE_SNAPLEN_MAX];
    struct moat_traced t;

    while (w.trace && moat_trace_take(w.trace, &t, data)) {
        HOLDS(t.cap_len <= sizeof data && t.cap_len <= t.frame_len);
        HOLDS(memchr(t.vnic, 0, sizeof t.vnic) && t.reason < MOAT_N_REASONS && t.by < MOAT_N_BY);
        HOLDS(t.verdict == MOAT_ALLOW || t.reason);
    }
}

static void drain_events(void)
{
    struct moat_event ev;

    while (moat_event_take(&w.rig.e->events, &ev)) {
        HOLDS(ev.type && ev.reason < MOAT_N_REASONS);
        HOLDS(memchr(ev.vnic, 0, sizeof ev.vnic) && memchr(ev.text, 0, sizeof ev.text));
    }
}

static void control(void)
{
    static const uint32_t steps[8] = {1, 50, 500, 1000, 10000, 31000, 121000, 50000000};
    unsigned slot = below(RIG_SLOTS), what = below(20);
    char err[256];

    switch (what) {
    case 0:
    case 1:
        publish(slot);
        break;
    case 2:
        moat_slot_flush(w.rig.e, rig_vnic[slot], err, sizeof err);
        break;
    case 3:
    case 4:
        save_and_restore(slot);
        break;
    case 5:
        set_state(slot, below(MOAT_N_SLOT_STATES));
        break;
    case 6:
        port_event(slot);
        break;
    case 7:
        release(slot);
        claim(slot);
        publish(slot);
        break;
    case 8:
        claim(slot);
        break;
    case 9:
        set_state(slot, MOAT_SLOT_ACTIVE);
        break;
    case 10:
        toggle_trace();
        break;
    default:
        rig_clock_ms += steps[what & 7];
        moat_engine_turn(w.rig.e);
        drain_events();
        drain_trace();
    }
}

/* --- accounts --- */

/* What has been counted: passed, refused and held.  A fragment that was held and released is
 * counted when it is held, and when it passes. */
static uint64_t counted(void)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < w.rig.e->conf.n_slots; i++) {
        uint64_t c[MOAT_N_COUNTERS];

        moat_engine_counters(w.rig.e, i, c);
        sum += c[MOAT_C_FROM_VM_PKTS] + c[MOAT_C_TO_VM_PKTS] + c[MOAT_C_FRAGMENTS_HELD] +
               c[MOAT_C_ANSWERS];
        for (unsigned r = MOAT_N_NAMED_COUNTERS; r < MOAT_N_COUNTERS; r++)
            sum += c[r];
    }
    return sum;
}

static void check_sessions(void)
{
    struct moat_engine *e = w.rig.e;

    for (uint32_t i = 0; i < e->conf.n_slots; i++) {
        uint32_t live = 0, half_open = 0;

        for (uint32_t k = 0; e->slots[i].view && k < moat_session_table_size(e->sessions); k++) {
            const struct moat_session *s = moat_session_at(e->sessions, k);

            live += s->key.tag == e->slots[i].view->tag;
            half_open += s->key.tag == e->slots[i].view->tag && s->flags & MOAT_SES_F_HALF_OPEN;
        }
        HOLDS(live == e->slots[i].sessions && half_open == e->slots[i].half_open);
    }
}

static void check_empty_in_the_end(void)
{
    for (unsigned s = 0; s < RIG_SLOTS; s++)
        release(s);
    rig_clock_ms += 100000000;
    for (unsigned i = 0; i < 8; i++)
        moat_engine_turn(w.rig.e);
    moat_session_thread_flush(w.rig.e->sessions, moat_thread_self(w.rig.e));
    HOLDS(!moat_session_table_used(w.rig.e->sessions));
}

static void start_engine(void)
{
    if (w.rig.e && ++w.inputs < INPUTS_PER_ENGINE)
        return;
    if (w.rig.e)
        rig_destroy(&w.rig);
    rig_clock_ms = 1000000;
    rig_create_sized(&w.rig, NULL, N_SESSIONS);
    w.inputs = 0;
}

static void start_slot(unsigned slot)
{
    char err[256];

    w.policy[slot] = -1;
    moat_port_connected(w.rig.port[slot], true);
    moat_port_started(w.rig.port[slot]);
    if (one_in(4)) {
        claim(slot);
        publish(slot);
        return;
    }
    rig_claim(&w.rig, slot, MOAT_SLOT_ACTIVE);
    HOLDS(!moat_slot_publish(w.rig.e, rig_vnic[slot], compiled[0][slot].blob, compiled[0][slot].len,
                             err, sizeof err));
    w.policy[slot] = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    uint64_t before;

    if (!compiled[0][0].blob)
        compile_all();
    start_engine();
    before = counted();
    memset(&w.n_queued, 0, sizeof w.n_queued);
    w.pushed = 0;
    w.injected = 0;
    choice_bytes(&w.c, input, size);
    traffic_init(&w.traffic, &w.c, 8);
    for (unsigned s = 0; s < RIG_SLOTS; s++)
        start_slot(s);
    for (unsigned i = 0; i < MAX_OPS && !choice_ended(&w.c); i++) {
        if (one_in(8))
            control();
        else
            packets(one_in(4) ? 1 + below(32) : 1);
    }
    HOLDS(counted() - before == w.pushed + w.injected);
    check_sessions();
    drain_events();
    drain_trace();
    if (w.trace)
        toggle_trace();
    check_empty_in_the_end();
    return 0;
}
