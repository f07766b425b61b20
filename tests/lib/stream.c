/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/lib/stream.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/fragment.h"
#include "tests/lib/traffic.h"

static const char *const policies[STREAM_POLICIES] = {
    "policy \"t\" version 1\n"
    "service web = tcp 80, tcp 443\n"
    "service ping = icmp echo-request, icmp6 echo-request\n"
    "tier t {\n"
    "  reject from vm \"b\" to vm \"c\" service tcp 443\n"
    "  drop log from vm \"a\" to vm \"c\" service udp 53\n"
    "  allow loose from outside to vm \"b\" service tcp 8080\n"
    "  allow from vms to vms service web, udp 53, ping, sctp, tcp 22\n"
    "  allow from any to vm \"a\" service tcp, udp, ping\n"
    "  allow from vms to outside service web, tcp 8080, udp\n"
    "}\ndefault drop\n",
    "policy \"t\" version 1\n"
    "tier t {\n"
    "  drop from any to vm \"b\" service tcp 443\n"
    "  allow from any to any service tcp, udp, icmp, icmp6\n"
    "}\ndefault drop log\n",
};

static struct {
    uint8_t *blob;
    size_t len;
} compiled[STREAM_POLICIES][RIG_SLOTS];

/* --- the stream --- */

static uint64_t mix(uint64_t h, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3;
    return h;
}

/* Sum of both ends: the same for both directions. */
static void key_of(const struct moat_pkt *p, struct packet *out)
{
    unsigned len = p->family == MOAT_FAM_IP6 ? 16 : 4;
    uint16_t sport = p->kind == MOAT_PKT_ICMP_QUERY ? p->icmp_id : p->sport;
    uint16_t dport = p->kind == MOAT_PKT_ICMP_QUERY ? p->icmp_id : p->dport;
    uint64_t src = mix(1, p->src, len), dst = mix(1, p->dst, len);
    uint64_t a = mix(src, &sport, 2), b = mix(dst, &dport, 2);

    out->pair = src + dst;
    out->tuple = (a + b) * 31 + p->proto * 256u + p->family + ((uint64_t)p->vlan << 40);
    out->up = a == b ? p->icmp_reply : a < b;
}

static void classify(struct packet *k)
{
    struct moat_pkt p = {.data = k->data, .len = k->len, .total = k->total}, quoted;

    moat_parse(&p);
    k->tcp = p.kind == MOAT_PKT_TCP;
    k->fragment = p.frag;
    k->pair = k->hop[0]; /* what is rationed by slot stays with one thread */
    if (p.reason || p.family == MOAT_FAM_ARP)
        return;
    if (p.kind == MOAT_PKT_ICMP_ERROR) {
        k->error = moat_parse_quoted(&p, &quoted);
        if (k->error)
            key_of(&quoted, k);
    } else if (p.frag == 2) {
        key_of(&p, k); /* one direction only: the tuple without ports is nobody else's */
    } else if (p.cast == MOAT_UNICAST && p.kind != MOAT_PKT_ICMP_OTHER) {
        key_of(&p, k);
    }
}

static bool conflicts(const struct packet *a, const struct packet *b)
{
    return a->tuple && a->tuple == b->tuple && (a->up != b->up || a->error || b->error);
}

static bool begins_step(const struct stream *s, const struct step *now, const struct packet *p)
{
    if (now->n == STREAM_STEP_MAX)
        return true;
    for (unsigned i = 0; i < now->n; i++)
        if (conflicts(&s->packets[now->first + i], p))
            return true;
    return false;
}

/* Packet i, the next that the traffic has. */
static uint32_t make_packet(struct stream *s, unsigned i, struct traffic *traffic)
{
    struct packet *p = &s->packets[i];
    struct traffic_pkt made;

    traffic_next(traffic, &made);
    *p = (struct packet){.len = made.len,
                         .total = made.total,
                         .hop = {made.from, made.to},
                         .data = malloc(made.len)};
    ck_assert_ptr_nonnull(p->data);
    memcpy(p->data, made.f.data, made.len);
    classify(p);
    return made.wait_ms;
}

void stream_make(struct stream *s, uint64_t seed, unsigned n_convs, bool fragments)
{
    static struct traffic traffic;
    struct choice choice;
    struct step *now = NULL;

    choice_seed(&choice, seed);
    traffic_init(&traffic, &choice, n_convs);
    s->steps = calloc(STREAM_PACKETS, sizeof *s->steps);
    ck_assert_ptr_nonnull(s->steps);
    for (unsigned i = 0; i < STREAM_PACKETS; i++) {
        bool change = choice_one_in(&choice, 500);
        uint32_t wait_ms = make_packet(s, i, &traffic);

        while (s->packets[i].fragment && !fragments) {
            free(s->packets[i].data);
            wait_ms += make_packet(s, i, &traffic);
        }
        if (!now || wait_ms || change || begins_step(s, now, &s->packets[i])) {
            now = &s->steps[s->n_steps++];
            *now = (struct step){.first = i, .wait_ms = wait_ms};
            if (change) {
                now->change = choice_one_in(&choice, 8) ? FLUSH : PUBLISH;
                now->slot = choice_below(&choice, RIG_SLOTS);
                now->policy = choice_below(&choice, STREAM_POLICIES);
            }
        }
        now->n++;
    }
}

void stream_compile(void)
{
    struct rig r;

    rig_create(&r, NULL);
    for (unsigned i = 0; i < STREAM_POLICIES; i++) {
        struct moat_policy *p = moat_policy_parse(policies[i], strlen(policies[i]), "t", NULL);

        ck_assert_ptr_nonnull(p);
        for (unsigned s = 0; s < RIG_SLOTS; s++)
            ck_assert_int_eq(moat_policy_compile(p, r.inv, s, i + 1, &compiled[i][s].blob,
                                                 &compiled[i][s].len, NULL),
                             0);
        moat_policy_destroy(p);
    }
    rig_destroy(&r);
}

/* --- an engine for it --- */

void stream_publish(struct rig *r, unsigned slot, unsigned policy)
{
    char err[256] = "";

    ck_assert_msg(!moat_slot_publish(r->e, rig_vnic[slot], compiled[policy][slot].blob,
                                     compiled[policy][slot].len, err, sizeof err),
                  "%s", err);
}

void stream_start(struct rig *r, const char *mapping, uint32_t n_sessions)
{
    rig_create_sized(r, mapping, n_sessions);
    for (unsigned s = 0; s < RIG_SLOTS; s++) {
        struct moat_slot_conf c;
        char err[256] = "";

        rig_conf(s, MOAT_SLOT_ACTIVE, &c);
        c.settings.vlan = s == 2 ? MOAT_VLAN_INSPECT : MOAT_VLAN_BLOCK;
        c.settings.max_sessions = n_sessions / 3;
        c.settings.max_half_open = c.settings.max_new = c.settings.max_fragments = 1u << 30;
        ck_assert_msg(!moat_slot_claim(r->e, &c, err, sizeof err), "%s", err);
        stream_publish(r, s, 0);
    }
}

/* What happens before a step, but for the time. */
void stream_change(struct rig *r, const struct step *s)
{
    char err[256];

    if (s->change == PUBLISH)
        stream_publish(r, s->slot, s->policy);
    else if (s->change == FLUSH)
        ck_assert_int_eq(moat_slot_flush(r->e, rig_vnic[s->slot], err, sizeof err), 0);
}

void stream_begin(struct rig *r, const struct step *s)
{
    struct moat_event ev;

    __atomic_fetch_add(&rig_clock_ms, s->wait_ms, __ATOMIC_RELAXED);
    if (s->wait_ms)
        moat_engine_turn(r->e);
    stream_change(r, s);
    while (moat_event_take(&r->e->events, &ev))
        ;
}

static uint8_t verdict_of(bool passed, const struct moat_pkt *p)
{
    return passed ? STREAM_PASSED : p->reason;
}

/* Packets which[0..n) meet their slot on one hop, as one burst. */
void stream_push(struct rig *r, const struct stream *s, const unsigned *which, unsigned n,
                 unsigned hop, stream_verdicts out)
{
    struct moat_port *port = r->port[s->packets[which[0]].hop[hop]];
    struct moat_pkt p[MOAT_BURST_MAX];
    uint32_t passed;

    for (unsigned i = 0; i < n; i++)
        p[i] = rig_pkt(s->packets[which[i]].data, s->packets[which[i]].len,
                       s->packets[which[i]].total);
    passed = moat_pipe_burst(moat_thread_self(r->e), port, hop ? MOAT_TO_VM : MOAT_FROM_VM, p, n);
    for (unsigned i = 0; i < n; i++)
        out[which[i]][hop] = verdict_of(passed >> i & 1, &p[i]);
}

void stream_push_one(struct rig *r, const struct stream *s, unsigned i, stream_verdicts out)
{
    for (unsigned hop = 0; hop < 2; hop++)
        if (s->packets[i].hop[hop] < RIG_SLOTS)
            stream_push(r, s, &i, 1, hop, out);
}

void stream_reset(void)
{
    rig_clock_ms = 1000000;
}

/* --- what is compared with --- */

void stream_reference(const struct stream *s, uint32_t n_sessions, stream_verdicts out)
{
    struct rig r;

    stream_reset();
    memset(out, STREAM_NOT_PUSHED, sizeof(stream_verdicts));
    stream_start(&r, NULL, n_sessions);
    for (unsigned k = 0; k < s->n_steps; k++) {
        stream_begin(&r, &s->steps[k]);
        for (unsigned i = 0; i < s->steps[k].n; i++)
            stream_push_one(&r, s, s->steps[k].first + i, out);
        /* There is room for 64 of each slot: who gets the last of it would be a matter of order. */
        for (unsigned slot = 0; slot < RIG_SLOTS; slot++)
            ck_assert_uint_lt(moat_fragments_held(r.e->fragments, slot), 64);
    }
    rig_destroy(&r);
}

const char *stream_verdict(uint8_t v)
{
    return v == STREAM_PASSED ? "passed" : moat_reason_name(v);
}

/* Equal, or the first difference. */
void stream_compare(const struct stream *s, const stream_verdicts want, const stream_verdicts got,
                    const char *how)
{
    for (unsigned i = 0; i < STREAM_PACKETS; i++)
        for (unsigned hop = 0; hop < 2; hop++)
            if (want[i][hop] != got[i][hop]) {
                for (unsigned b = 0; b < s->packets[i].len && b < 100; b++)
                    fprintf(stderr, "%02x%s", s->packets[i].data[b], b % 16 == 15 ? "\n" : " ");
                ck_abort_msg("%s: packet %u at slot %u, hop %u: %s, reference: %s", how, i,
                             s->packets[i].hop[hop], hop, stream_verdict(got[i][hop]),
                             stream_verdict(want[i][hop]));
            }
}

/* A stream that only passes, or only fails, compares nothing. */
void stream_check(const struct stream *s, const stream_verdicts v, const char *name)
{
    unsigned count[256] = {0}, reasons = 0, all = 0;

    for (unsigned i = 0; i < STREAM_PACKETS; i++)
        for (unsigned hop = 0; hop < 2; hop++)
            if (v[i][hop] != STREAM_NOT_PUSHED) {
                count[v[i][hop]]++;
                all++;
            }
    fprintf(stderr, "%s: %u packets in %u steps, %u verdicts, %u passed;", name, STREAM_PACKETS,
            s->n_steps, all, count[STREAM_PASSED]);
    for (unsigned r = 1; r < MOAT_N_REASONS; r++)
        if (count[r]) {
            fprintf(stderr, " %s %u", moat_reason_name(r), count[r]);
            reasons++;
        }
    fprintf(stderr, "\n");
    ck_assert_uint_gt(count[STREAM_PASSED], all / 4);
    ck_assert_uint_lt(count[STREAM_PASSED], all * 3 / 4);
    ck_assert_uint_ge(reasons, 15);
}
