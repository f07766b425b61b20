/* SPDX-License-Identifier: Apache-2.0 */

/* engine->traces is a list that only the control thread changes; packet threads walk it
 * within their burst.  A trace that was taken out of it is freed when all of them have left
 * the bursts in which they may have met it.
 *
 * The filter runs on packet threads, on behalf of a client that may be anyone who is root, so
 * it must end and must not stop the switch.  libpcap's bpf_filter() reads within the
 * packet only; but it calls abort() at an instruction that it does not know, and
 * bpf_validate() lets some of those pass, and jumps backward too (for "protochain").
 * Hence check_insns(). */

#include "trace.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h> /* before pcap/bpf.h, which takes it for granted */
#include <time.h>

#include <pcap/bpf.h>

#include "classify.h"
#include "engine.h"
#include "ring.h"
#include "session.h"
#include "slot.h"

struct moat_trace {
    struct moat_trace *next; /* atomic */
    char vnic[MOAT_ID_MAX];  /* empty: all */
    uint32_t which, snaplen, n_insns;
    struct moat_ring ring; /* of struct cell */
    struct bpf_insn insns[];
};

struct cell {
    struct moat_traced traced;
    uint8_t data[]; /* snaplen bytes */
};

_Static_assert(sizeof(struct moat_trace_insn) == sizeof(struct bpf_insn) &&
                   offsetof(struct moat_trace_insn, code) == offsetof(struct bpf_insn, code) &&
                   offsetof(struct moat_trace_insn, jt) == offsetof(struct bpf_insn, jt) &&
                   offsetof(struct moat_trace_insn, jf) == offsetof(struct bpf_insn, jf) &&
                   offsetof(struct moat_trace_insn, k) == offsetof(struct bpf_insn, k),
               "copied as they are");

#define LOAD(P) __atomic_load_n(P, __ATOMIC_RELAXED)

/* --- one packet --- */

static bool makes_sessions(const struct moat_pkt *p)
{
    return (p->kind == MOAT_PKT_TCP || p->kind == MOAT_PKT_UDP || p->kind == MOAT_PKT_ICMP_QUERY ||
            p->kind == MOAT_PKT_IP_OTHER) &&
           p->frag != 2;
}

static const struct moat_session *find_session(const struct moat_engine *e,
                                               const struct moat_view *v, enum moat_dir dir,
                                               const struct moat_pkt *p)
{
    const struct moat_session *s;
    struct moat_key key;
    uint64_t hash = moat_session_key(e->sessions, p, dir, v->tag, &key);
    uint32_t index = moat_session_lookup(e->sessions, &key, hash, p, dir);

    if (index == MOAT_NO_SESSION)
        return NULL;
    s = moat_session_at(e->sessions, index);
    return LOAD(&s->flags) & MOAT_SES_F_CUT ? NULL : s;
}

/* The live session that admitted the packet, met it or was opened by it.  NULL: none. */
static const struct moat_session *session_of(const struct moat_engine *e, const struct moat_view *v,
                                             enum moat_dir dir, const struct moat_pkt *p,
                                             unsigned by, bool passed)
{
    struct moat_pkt quoted;

    if (by == MOAT_BY_RELATED)
        return p->kind == MOAT_PKT_ICMP_ERROR && moat_parse_quoted(p, &quoted) &&
                       makes_sessions(&quoted)
                   ? find_session(e, v, dir == MOAT_FROM_VM ? MOAT_TO_VM : MOAT_FROM_VM, &quoted)
                   : NULL;
    /* What a rule refused met none, or one that is over. */
    if (by == MOAT_BY_SESSION || by == MOAT_BY_ENROLLING || (by == MOAT_BY_RULE && passed))
        return makes_sessions(p) ? find_session(e, v, dir, p) : NULL;
    return NULL;
}

static void put_session(const struct moat_session_table *t, const struct moat_session *s,
                        uint32_t now_s, struct moat_traced *out)
{
    int32_t age = (int32_t)(now_s - LOAD(&moat_session_cold(t, s)->created));

    out->has_session = 1;
    out->generation = moat_session_generation(t, s);
    out->session_dir = (uint8_t)moat_session_dir(s);
    out->session_flags = LOAD(&s->flags) & (uint8_t)~MOAT_SES_F_INTERNAL;
    out->age_s = age > 0 ? (uint32_t)age : 0;
    for (int d = 0; d < 2; d++) {
        out->side_state[d] = LOAD(&s->side[d].state);
        moat_session_counts(t, s, (enum moat_dir)d, &out->packets[d], &out->bytes[d]);
    }
}

/* A rule that rejects looks like one that drops from outside of the classifier. */
static uint8_t refusal(const struct moat_view *v, const struct moat_pkt *p,
                       const struct moat_flow *flow)
{
    struct moat_match d;

    if (p->by != MOAT_BY_RULE || !v->rules ||
        (p->reason != MOAT_R_RULE && p->reason != MOAT_R_DEFAULT))
        return MOAT_DROP;
    moat_classify(v->rules, flow, 1, &d);
    return d.rule == p->rule && d.verdict == MOAT_REJECT ? MOAT_REJECT : MOAT_DROP;
}

static void put_vnic(const struct moat_engine *e, const struct moat_view *v, char *out)
{
    const struct moat_slot_rec *r = &e->map->slots[v->index];

    memcpy(out, r->conf[__atomic_load_n(&r->conf_index, __ATOMIC_ACQUIRE) & 1].vnic, MOAT_ID_MAX);
    out[MOAT_ID_MAX - 1] = '\0';
}

void moat_explain(struct moat_thread *t, const struct moat_view *v, enum moat_dir dir,
                  const struct moat_pkt *p, bool passed, struct moat_traced *out)
{
    struct moat_pkt q = {.data = p->data, .len = p->len, .total = p->total};
    const struct moat_session *s;

    memset(out, 0, sizeof *out);
    moat_parse(&q);
    put_vnic(t->engine, v, out->vnic);
    out->flow.dir = (uint8_t)dir;
    if (q.family && q.src)
        moat_pkt_flow(&q, dir, &out->flow);
    out->frame_len = p->total;
    out->vlan = q.vlan;
    out->tcp_flags = q.tcp.flags;
    out->slot_state = v->state;
    out->generation = v->rules ? moat_ruleset_head(v->rules)->generation : 0;
    out->by = p->by;
    out->rule = p->rule;
    out->reason = !passed || p->by == MOAT_BY_ENROLLING ? p->reason : MOAT_R_NONE;
    out->verdict = passed ? MOAT_ALLOW : refusal(v, p, &out->flow);
    s = session_of(t->engine, v, dir, &q, p->by, passed);
    if (p->by == MOAT_BY_SESSION || p->by == MOAT_BY_RELATED)
        out->rule = s ? LOAD(&moat_session_cold(t->engine->sessions, s)->rule) : 0;
    if (s)
        put_session(t->engine->sessions, s, t->now_s, out);
}

/* --- a burst --- */

static bool wants(const struct moat_trace *tr, const struct moat_pkt *p, bool passed)
{
    return tr->which & (passed ? MOAT_TRACE_PASSED : MOAT_TRACE_REFUSED) &&
           (!tr->n_insns || bpf_filter(tr->insns, p->data, p->total, p->len));
}

static uint64_t realtime_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void record(struct moat_trace *tr, struct moat_thread *t, const struct moat_view *v,
                   enum moat_dir dir, const struct moat_pkt *p, bool passed)
{
    struct cell *c = moat_ring_claim(&tr->ring);

    moat_count(moat_thread_counters(t, v->index), c ? MOAT_C_TRACED : MOAT_C_TRACE_LOST, 1);
    if (!c)
        return;
    moat_explain(t, v, dir, p, passed, &c->traced);
    c->traced.time_us = realtime_us();
    c->traced.cap_len = p->len < tr->snaplen ? p->len : tr->snaplen;
    memcpy(c->data, p->data, c->traced.cap_len);
    moat_ring_publish(c);
}

void moat_trace_burst(struct moat_thread *t, const struct moat_view *v, enum moat_dir dir,
                      const struct moat_pkt *pkts, unsigned n, uint32_t passed)
{
    struct moat_engine *e = t->engine;
    char vnic[MOAT_ID_MAX];

    put_vnic(e, v, vnic);
    for (struct moat_trace *tr = __atomic_load_n(&e->traces, __ATOMIC_ACQUIRE); tr;
         tr = __atomic_load_n(&tr->next, __ATOMIC_ACQUIRE)) {
        if (tr->vnic[0] && strcmp(tr->vnic, vnic))
            continue;
        for (unsigned i = 0; i < n; i++)
            if (wants(tr, &pkts[i], passed >> i & 1))
                record(tr, t, v, dir, &pkts[i], passed >> i & 1);
    }
}

/* --- filters --- */

static bool known_code(uint16_t code)
{
    static const uint16_t known[] = {
        BPF_LD | BPF_W | BPF_ABS,
        BPF_LD | BPF_H | BPF_ABS,
        BPF_LD | BPF_B | BPF_ABS,
        BPF_LD | BPF_W | BPF_IND,
        BPF_LD | BPF_H | BPF_IND,
        BPF_LD | BPF_B | BPF_IND,
        BPF_LD | BPF_W | BPF_LEN,
        BPF_LD | BPF_IMM,
        BPF_LD | BPF_MEM,
        BPF_LDX | BPF_W | BPF_LEN,
        BPF_LDX | BPF_B | BPF_MSH,
        BPF_LDX | BPF_IMM,
        BPF_LDX | BPF_MEM,
        BPF_ST,
        BPF_STX,
        BPF_ALU | BPF_NEG,
        BPF_JMP | BPF_JA,
        BPF_RET | BPF_K,
        BPF_RET | BPF_A,
        BPF_MISC | BPF_TAX,
        BPF_MISC | BPF_TXA,
    };
    uint16_t op = code & (uint16_t)~BPF_X;

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (code == known[i])
            return true;
    /* With a constant or with X. */
    if (BPF_CLASS(op) == BPF_ALU)
        return op <= (BPF_ALU | BPF_XOR) && op != (BPF_ALU | BPF_NEG);
    if (BPF_CLASS(op) == BPF_JMP)
        return op > (BPF_JMP | BPF_JA) && op <= (BPF_JMP | BPF_JSET);
    return false;
}

static int check_insns(const struct moat_trace_insn *v, uint32_t n, char *err, size_t err_size)
{
    for (uint32_t i = 0; i < n; i++) {
        const char *what = NULL;
        uint32_t left = n - i - 1; /* behind it; a jump of 0 goes to the next one */

        if (!known_code(v[i].code))
            what = "is unknown";
        else if (v[i].code == (BPF_JMP | BPF_JA) && v[i].k >= left)
            what = "jumps backward or out";
        else if (BPF_CLASS(v[i].code) == BPF_JMP && v[i].code != (BPF_JMP | BPF_JA) &&
                 (v[i].jt >= left || v[i].jf >= left))
            what = "jumps out";
        else if ((v[i].code == (BPF_ALU | BPF_LSH | BPF_K) ||
                  v[i].code == (BPF_ALU | BPF_RSH | BPF_K)) &&
                 v[i].k > 31)
            what = "shifts by too much";
        if (what) {
            snprintf(err, err_size, "instruction %u of the filter %s", i, what);
            return -EINVAL;
        }
    }
    /* Constant divisors, cells of the scratch memory, the end. */
    if (n && !bpf_validate((const struct bpf_insn *)v, (int)n)) {
        snprintf(err, err_size, "the filter is not valid");
        return -EINVAL;
    }
    return 0;
}

/* --- life --- */

static int check(struct moat_engine *e, const struct moat_ctl_trace *ask,
                 const struct moat_trace_insn *insns, char *err, size_t err_size)
{
    unsigned n = 0;

    if (ask->n_insns > MOAT_TRACE_INSNS_MAX) {
        snprintf(err, err_size, "a filter of %u instructions, at most %u", ask->n_insns,
                 MOAT_TRACE_INSNS_MAX);
        return -EINVAL;
    }
    if (ask->snaplen > MOAT_TRACE_SNAPLEN_MAX) {
        snprintf(err, err_size, "%u bytes of each frame, at most %u", ask->snaplen,
                 MOAT_TRACE_SNAPLEN_MAX);
        return -EINVAL;
    }
    if (!ask->which || ask->which & ~(MOAT_TRACE_PASSED | MOAT_TRACE_REFUSED)) {
        snprintf(err, err_size, "packets of kind %#x to trace", ask->which);
        return -EINVAL;
    }
    if (check_insns(insns, ask->n_insns, err, err_size))
        return -EINVAL;
    if (ask->vnic[0] && moat_slot_find(e, ask->vnic) < 0) {
        snprintf(err, err_size, "no slot for vNIC %s", ask->vnic);
        return -ENOENT;
    }
    for (const struct moat_trace *tr = e->traces; tr; tr = tr->next)
        n++;
    if (n >= MOAT_TRACES_MAX) {
        snprintf(err, err_size, "there are %u traces already", n);
        return -EUSERS;
    }
    return 0;
}

struct moat_trace *moat_trace_start(struct moat_engine *e, const struct moat_ctl_trace *ask,
                                    const struct moat_trace_insn *insns, char *err, size_t err_size)
{
    size_t size = sizeof(struct moat_trace) + ask->n_insns * sizeof(struct bpf_insn);
    int rc = check(e, ask, insns, err, err_size);
    struct moat_trace *tr = rc ? NULL : aligned_alloc(64, (size + 63) / 64 * 64);

    if (rc) {
        errno = -rc;
        return NULL;
    }
    if (!tr || moat_ring_init(&tr->ring, MOAT_TRACE_CELLS, sizeof(struct cell) + ask->snaplen)) {
        free(tr);
        snprintf(err, err_size, "out of memory");
        errno = ENOMEM;
        return NULL;
    }
    snprintf(tr->vnic, sizeof tr->vnic, "%s", ask->vnic);
    tr->which = ask->which;
    tr->snaplen = ask->snaplen;
    tr->n_insns = ask->n_insns;
    if (tr->n_insns)
        memcpy(tr->insns, insns, tr->n_insns * sizeof *insns);
    tr->next = e->traces;
    __atomic_store_n(&e->traces, tr, __ATOMIC_RELEASE);
    return tr;
}

void moat_trace_stop(struct moat_engine *e, struct moat_trace *tr)
{
    struct moat_trace **at = &e->traces;

    if (!tr)
        return;
    while (*at != tr)
        at = &(*at)->next;
    __atomic_store_n(at, tr->next, __ATOMIC_RELEASE);
    moat_qsbr_synchronize(&e->qsbr);
    moat_ring_destroy(&tr->ring);
    free(tr);
}

bool moat_trace_take(struct moat_trace *tr, struct moat_traced *out, uint8_t *data)
{
    const struct cell *c = moat_ring_peek(&tr->ring);

    if (!c)
        return false;
    *out = c->traced;
    memcpy(data, c->data, out->cap_len);
    out->seq = moat_ring_release(&tr->ring);
    return true;
}
