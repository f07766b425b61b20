/* SPDX-License-Identifier: Apache-2.0 */

/* The burst in passes (as VPP and Gatekeeper do): parse, guard and hash all packets;
 * look all keys up; track the packets of known sessions; the rest (open.c) meets the rules and
 * opens what policy permits.  The passes share one struct burst on the stack.
 *
 * The packet that nearly all are takes a straight line through the first pass (quick.h),
 * and a burst of nothing else through the second.
 *
 * Every packet starts refused.  A packet leaves a pass with a reason, or goes on to the
 * next one, or has passed. */

#include "pipe.h"

#include <string.h>

#include "guard.h"
#include "live.h"
#include "pipe_private.h"
#include "quick.h"
#include "trace.h"

void moat_pipe_refuse(struct burst *b, unsigned i, enum moat_by by, enum moat_reason reason)
{
    if (reason ==
        MOAT_TCP_UNBELIEVED) { /* passes to be challenged, and is nothing to the session */
        moat_count(b->counters, MOAT_C_UNBELIEVED, 1);
        b->pkts[i].by = (uint8_t)by;
        moat_pipe_pass(b, i);
        return;
    }
    b->pkts[i].reason = (uint8_t)reason;
    b->pkts[i].by = (uint8_t)by;
    b->pkts[i].rule = 0;
    /* While the vNIC is being enrolled it passes all the same (enroll()). */
    if (__builtin_expect(b->view->state != MOAT_SLOT_ENROLLING, 1))
        moat_count(b->counters, MOAT_C_DROP(b->dir, reason), 1);
}

/* --- first pass: parse, guard, key --- */

static inline enum moat_reason admit(struct burst *b, struct moat_pkt *p)
{
    if (__builtin_expect(p->reason | p->n_tags | p->frag | (p->kind == MOAT_PKT_RARP), 0)) {
        if (p->reason && !(p->reason == MOAT_R_L2_TYPE && moat_guard_ethertype(b->view, p)))
            return p->reason;
        if (!moat_guard_tags(b->view, p))
            return MOAT_R_VLAN;
        if (p->kind == MOAT_PKT_RARP)
            return MOAT_R_L2_TYPE; /* the VM's own went its way before */
    }
    return b->dir == MOAT_FROM_VM ? moat_guard_from_vm(b->view, p) : MOAT_R_NONE;
}

/* The announcement after a migration: the one frame that passes a slot by itself. */
static bool own_rarp(struct burst *b, unsigned i)
{
    if (b->dir != MOAT_FROM_VM || b->pkts[i].kind != MOAT_PKT_RARP ||
        !moat_guard_own_rarp(b->view, &b->pkts[i]) ||
        !moat_slot_may_announce(b->view->slot, b->thread->now_s))
        return false;
    moat_count(b->counters, MOAT_C_RARP_PASSED, 1);
    b->pkts[i].by = MOAT_BY_CHECK;
    moat_pipe_pass(b, i);
    return true;
}

/* Packet i has b->keys[k]. */
static void add_key(struct burst *b, unsigned k, unsigned i, uint64_t hash)
{
    b->which[k] = (uint8_t)i;
    b->keyed[k] = &b->pkts[i];
    b->hashes[k] = hash;
    moat_session_prefetch(b->engine->sessions, hash);
}

static __attribute__((noinline)) void parse_one(struct burst *b, unsigned i)
{
    struct moat_pkt *p = &b->pkts[i];
    enum moat_reason reason;

    p->quick = false;
    moat_parse(p);
    if (p->kind == MOAT_PKT_RARP && own_rarp(b, i))
        return;
    reason = admit(b, p);
    p->by = MOAT_BY_SESSION;
    if (reason) {
        moat_pipe_refuse(b, i, MOAT_BY_CHECK, reason);
    } else if (p->frag) {
        b->fragments |= 1u << i;
    } else if (moat_pipe_makes_sessions(p)) {
        add_key(b, b->n, i,
                moat_session_key(b->engine->sessions, p, b->dir, b->view->tag, &b->keys[b->n]));
        b->n++;
    } else if (p->kind == MOAT_PKT_ICMP_ERROR) {
        b->errors |= 1u << i;
    } else if (p->kind == MOAT_PKT_BAD) { /* an ethertype of the slot's own list */
        p->by = MOAT_BY_CHECK;
        p->reason = MOAT_R_NONE;
        moat_pipe_pass(b, i);
    } else {
        b->stateless |= 1u << i;
    }
}

/* Packets from i on, which is not quick; but it may be a SYN. */
static __attribute__((noinline)) void parse_rest(struct burst *b, unsigned i, unsigned n)
{
    const struct moat_hash_seed *seed = &b->engine->sessions->seed;
    struct moat_quick q;

    moat_quick_begin(&q, b->view, b->dir);
    for (; i < n; i++) {
        struct moat_key *key = &b->keys[b->n];
        __m128i rest;

        if (q.any &&
            (b->dir == MOAT_FROM_VM ? moat_quick(&q, &b->pkts[i], MOAT_FROM_VM, true, &rest)
                                    : moat_quick(&q, &b->pkts[i], MOAT_TO_VM, true, &rest))) {
            key->tag = b->view->tag;
            memcpy(&key->local, &rest, sizeof rest);
            add_key(b, b->n, i, moat_quick_hash(seed, rest, key->proto));
            moat_live_name(b, b->n++, i);
        } else {
            parse_one(b, i);
        }
    }
}

/* --- known sessions --- */

/* The handshake may be over now: then the session no longer counts as half-open. */
static __attribute__((noinline)) void end_half_open(struct burst *b, struct moat_session *s)
{
    if (!moat_tcp_half_open(s->side) &&
        __atomic_fetch_and(&s->flags, (uint8_t)~MOAT_SES_F_HALF_OPEN, __ATOMIC_RELAXED) &
            MOAT_SES_F_HALF_OPEN)
        moat_slot_half_open_ended(b->view->slot);
}

STRAIGHT enum moat_reason track_state(struct burst *b, struct moat_session *s,
                                      const struct moat_pkt *p, const enum moat_dir dir)
{
    const uint8_t waits = MOAT_SES_F_WAIT_FROM_VM | MOAT_SES_F_WAIT_TO_VM;
    uint8_t flags = LOAD(&s->flags);
    uint8_t mine = dir == MOAT_FROM_VM ? MOAT_SES_F_WAIT_FROM_VM : MOAT_SES_F_WAIT_TO_VM;

    if (p->kind == MOAT_PKT_TCP) {
        enum moat_reason reason = moat_tcp_track(s->side, dir, &p->tcp, flags & waits);

        if (reason)
            return reason;
    } else {
        moat_other_track(s->side, dir);
    }
    if (__builtin_expect(flags & (mine | MOAT_SES_F_HALF_OPEN), 0)) {
        if (flags & mine)
            __atomic_fetch_and(&s->flags, (uint8_t)~mine, __ATOMIC_RELAXED);
        if (flags & MOAT_SES_F_HALF_OPEN)
            end_half_open(b, s);
    }
    if (__builtin_expect(!(flags & MOAT_SES_F_REPLIED), 0) && dir != moat_session_dir(s))
        __atomic_fetch_or(&s->flags, MOAT_SES_F_REPLIED, __ATOMIC_RELAXED);
    return MOAT_R_NONE;
}

/* True if the session is over, and this packet may only open a new one. */
STRAIGHT bool is_over(const struct burst *b, const struct moat_session *s, const struct moat_pkt *p)
{
    return LOAD(&s->flags) & MOAT_SES_F_CUT ||
           moat_session_expired(s, b->thread->now_s, &b->view->timers) ||
           (p->kind == MOAT_PKT_TCP && moat_tcp_reopens(s->side, b->dir, &p->tcp));
}

/* A packet of a live session: MOAT_R_NONE and counted, or why not. */
STRAIGHT enum moat_reason track_in(struct burst *b, struct moat_session *s,
                                   const struct moat_pkt *p, const enum moat_dir dir)
{
    enum moat_reason reason;

    if (__builtin_expect(LOAD(&s->serial) != b->view->serial, 0) &&
        moat_session_is_stale(b->view, s) &&
        !moat_rejudge(b->engine->sessions, b->view, b->counters, s))
        return MOAT_R_POLICY_CHANGE;
    reason = track_state(b, s, p, dir);
    if (!reason)
        moat_pipe_account(b, s, p, dir);
    return reason;
}

void moat_pipe_track(struct burst *b, unsigned i, struct moat_session *s)
{
    enum moat_reason reason;

    moat_quick_options(&b->pkts[i]);
    reason = track_in(b, s, &b->pkts[i], b->dir);
    moat_session_touch(b->engine->sessions, s);
    if (reason)
        moat_pipe_refuse(b, i, MOAT_BY_SESSION, reason);
    else
        moat_pipe_pass(b, i);
}

bool moat_pipe_is_over(const struct burst *b, const struct moat_session *s,
                       const struct moat_pkt *p)
{
    return is_over(b, s, p);
}

/* Packets behind k that seem to be of the same session: they must not overtake one that may
 * open a new one on its tuple. */
static __attribute__((noinline)) uint32_t behind(const struct burst *b, unsigned k)
{
    uint32_t bits = 0;

    for (unsigned j = k + 1; j < b->n; j++)
        bits |= (uint32_t)(b->found[j] == b->found[k]) << j;
    return bits;
}

/* Tracks the packets of live sessions; bit k of the result: keyed packet k has none, or
 * one before it comes first. */
static uint32_t track_found(struct burst *b)
{
    uint32_t misses = 0;

    for (unsigned k = 0; k < b->n; k++) {
        struct moat_session *s;

        if (misses >> k & 1)
            continue;
        if (b->found[k] == MOAT_NO_SESSION) {
            misses |= 1u << k;
            continue;
        }
        s = moat_session_at(b->engine->sessions, b->found[k]);
        if (is_over(b, s, b->keyed[k]))
            misses |= 1u << k | behind(b, k);
        else
            moat_pipe_track(b, b->which[k], s);
    }
    return misses;
}

static __attribute__((noinline)) uint32_t look_up_all(struct burst *b)
{
    moat_session_lookup_bulk(b->engine->sessions, b->keys, b->hashes,
                             (const struct moat_pkt *const *)b->keyed, b->dir, b->n, b->found);
    return track_found(b);
}

static __attribute__((noinline)) void judge_odd(struct burst *b)
{
    for (uint32_t m = b->stateless; m; m &= m - 1)
        moat_open_stateless(b, (unsigned)__builtin_ctz(m));
    for (uint32_t m = b->errors; m; m &= m - 1)
        moat_open_error(b, (unsigned)__builtin_ctz(m));
    for (uint32_t m = b->fragments; m; m &= m - 1)
        moat_open_fragment(b, (unsigned)__builtin_ctz(m));
}

/* Somebody copies the table while it is in use: all sessions that a packet of the burst may have
 * met. */
static __attribute__((noinline)) void touch_all(const struct burst *b)
{
    const struct moat_session_table *t = b->engine->sessions;

    for (unsigned k = 0; k < b->n; k++)
        if (b->found[k] < t->n_sessions)
            moat_session_touch(t, &t->sessions[b->found[k]]);
}

static void filter(struct burst *b, unsigned n)
{
    uint32_t misses = 0;
    unsigned front = moat_live(b, n, &misses);

    if (__builtin_expect(front < n, 0)) {
        parse_rest(b, front, n);
        misses = look_up_all(b);
    }
    if (__builtin_expect(LOAD(&b->engine->sessions->watch) != NULL, 0))
        touch_all(b);
    if (misses)
        moat_open(b, misses);
    if (__builtin_expect(b->stateless | b->errors | b->fragments, 0))
        judge_odd(b);
}

/* --- the slot's state decides --- */

static void refuse_all(struct burst *b, unsigned n, enum moat_reason reason)
{
    for (unsigned i = 0; i < n; i++) {
        b->pkts[i].quick = true; /* not parsed: who wants to know must do it */
        if (reason == MOAT_R_BLOCKED) {
            moat_parse(&b->pkts[i]);
            if (own_rarp(b, i))
                continue;
        }
        moat_pipe_refuse(b, i, MOAT_BY_STATE, reason);
    }
}

static void pass_all(struct burst *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        b->pkts[i].quick = true;
        b->pkts[i].by = MOAT_BY_STATE;
        b->pkts[i].rule = 0;
        moat_pipe_pass(b, i);
    }
    moat_count(b->counters, MOAT_C_FAIL_ALLOWED, n);
}

/* What would be refused passes, and is told. */
static void enroll(struct burst *b, unsigned n)
{
    uint32_t would = (uint32_t)((1ull << n) - 1) & ~b->passed;

    for (; would; would &= would - 1) {
        unsigned i = (unsigned)__builtin_ctz(would);
        struct moat_pkt *p = &b->pkts[i];
        struct moat_match d = {.verdict = MOAT_DROP, .rule = p->rule};
        enum moat_reason reason = (enum moat_reason)p->reason;
        struct moat_flow flow;

        if (p->quick)
            moat_parse(p);
        memset(&flow, 0, sizeof flow);
        if (p->family)
            moat_pkt_flow(p, b->dir, &flow);
        moat_pipe_log(b, p, &flow, &d, reason, "passes because the vNIC is being enrolled");
        p->quick = false;
        p->reason = (uint8_t)reason;
        p->by = MOAT_BY_ENROLLING;
        p->rule = d.rule;
        moat_count(b->counters, MOAT_C_WOULD_REFUSE, 1);
        moat_pipe_pass(b, i);
    }
}

static void judge_burst(struct burst *b, unsigned n)
{
    const struct moat_view *v = b->view;

    switch ((enum moat_slot_state)v->state) {
    case MOAT_SLOT_ACTIVE:
    case MOAT_SLOT_ENROLLING:
        if (v->rules) {
            filter(b, n);
            if (__builtin_expect(v->state == MOAT_SLOT_ENROLLING, 0))
                enroll(b, n);
        } else if (v->settings.on_missing_policy == MOAT_FAIL_ALLOW) {
            pass_all(b, n);
        } else {
            refuse_all(b, n, MOAT_R_NO_POLICY);
        }
        break;
    case MOAT_SLOT_ARRIVING:
        refuse_all(b, n, MOAT_R_ARRIVING);
        break;
    case MOAT_SLOT_FROZEN:
        refuse_all(b, n, MOAT_R_FROZEN);
        break;
    case MOAT_SLOT_DEPARTED:
        refuse_all(b, n, MOAT_R_DEPARTED);
        break;
    case MOAT_SLOT_BLOCKED:
    default:
        refuse_all(b, n, MOAT_R_BLOCKED);
    }
}

static void sum_up(struct burst *b)
{
    bool out = b->dir == MOAT_FROM_VM;

    moat_count(b->counters, out ? MOAT_C_FROM_VM_PKTS : MOAT_C_TO_VM_PKTS,
               (uint64_t)__builtin_popcount(b->passed));
    moat_count(b->counters, out ? MOAT_C_FROM_VM_BYTES : MOAT_C_TO_VM_BYTES, b->bytes);
}

static __attribute__((noinline)) void trace(struct burst *b, unsigned n)
{
    for (uint32_t m = b->straight; m; m &= m - 1)
        b->pkts[__builtin_ctz(m)].by = MOAT_BY_SESSION;
    moat_trace_burst(b->thread, b->view, b->dir, b->pkts, n, b->passed);
}

uint32_t moat_pipe_burst(struct moat_thread *t, struct moat_port *port, enum moat_dir dir,
                         struct moat_pkt *pkts, unsigned n)
{
    struct burst b;
    struct moat_slot *slot;

    b.thread = t;
    b.engine = t->engine;
    b.port = port;
    b.pkts = pkts;
    b.dir = dir;
    b.passed = b.stateless = b.errors = b.fragments = b.straight = 0;
    b.room = b.room_half_open = 0;
    b.bytes = 0;
    b.n = 0;
    moat_qsbr_enter(&b.engine->qsbr, t->reader);
    t->now_s = (uint32_t)(moat_engine_now_ms(b.engine) / 1000);
    slot = __atomic_load_n(&port->slot, __ATOMIC_ACQUIRE);
    b.view = slot ? __atomic_load_n(&slot->view, __ATOMIC_ACQUIRE) : NULL;
    if (b.view) {
        b.counters = moat_thread_counters(t, b.view->index);
        judge_burst(&b, n);
        sum_up(&b);
        if (__builtin_expect(__atomic_load_n(&b.engine->traces, __ATOMIC_ACQUIRE) != NULL, 0))
            trace(&b, n);
    } else if (b.engine->conf.unclaimed == MOAT_FAIL_ALLOW && !port->replugged) {
        b.passed = (uint32_t)((1ull << n) - 1);
    }
    moat_qsbr_leave(t->reader);
    return b.passed;
}
