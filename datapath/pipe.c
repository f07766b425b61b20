/* SPDX-License-Identifier: Apache-2.0 */

/* The burst in passes (as VPP and Gatekeeper do): parse, guard and hash all packets;
 * look all keys up; track the packets of known sessions; classify the rest, open what
 * policy permits.  The passes share one struct burst on the stack.
 *
 * The packet that nearly all are takes a straight line through the first pass (quick.h),
 * and a burst of nothing else through the second.
 *
 * Every packet starts refused.  A packet leaves a pass with a reason, or goes on to the
 * next one, or has passed. */

#include "pipe.h"

#include <string.h>

#include "classify.h"
#include "engine.h"
#include "guard.h"
#include "quick.h"
#include "session_private.h"
#include "slot.h"
#include "state_other.h"
#include "state_tcp.h"

struct burst {
    struct moat_thread *thread;
    struct moat_engine *engine;
    const struct moat_view *view;
    uint64_t *counters;
    struct moat_pkt *pkts;
    enum moat_dir dir;
    uint32_t passed;    /* bit i: packet i */
    uint64_t bytes;     /* of those */
    uint32_t stateless; /* to be judged by the rules alone */
    uint32_t errors;    /* ICMP errors */
    bool all_quick;     /* no key came the long way */
    unsigned n;         /* with a key: */
    uint8_t which[MOAT_BURST_MAX];
    struct moat_key keys[MOAT_BURST_MAX];
    uint64_t hashes[MOAT_BURST_MAX];
    struct moat_pkt *keyed[MOAT_BURST_MAX];
    uint32_t found[MOAT_BURST_MAX];
};

/* One copy of the live path per direction: `dir` is a constant in each. */
#define STRAIGHT static inline __attribute__((always_inline))

#define LOAD(P) __atomic_load_n(P, __ATOMIC_RELAXED)
#define STORE(P, V) __atomic_store_n(P, V, __ATOMIC_RELAXED)

static inline void pass(struct burst *b, unsigned i)
{
    b->passed |= 1u << i;
    b->bytes += b->pkts[i].total;
}

static void refuse(struct burst *b, unsigned i, enum moat_reason reason)
{
    if (reason == MOAT_TCP_UNBELIEVED) { /* no sign of life: not counted for the session */
        moat_count(b->counters, MOAT_C_UNBELIEVED, 1);
        pass(b, i);
        return;
    }
    b->pkts[i].reason = reason;
    moat_count(b->counters, MOAT_C_DROP(b->dir, reason), 1);
}

static void log_packet(struct burst *b, const struct moat_pkt *p, const struct moat_flow *flow,
                       const struct moat_match *d, enum moat_reason reason)
{
    struct moat_event ev = {.type = MOAT_EV_PACKET,
                            .reason = reason,
                            .rule = d->rule ? d->rule : d->log_rule,
                            .frame_len = p->total,
                            .value = d->verdict,
                            .flow = *flow};
    const struct moat_slot_rec *r = &b->engine->map->slots[b->view->index];

    if (!moat_slot_may_log(b->view->slot, b->thread->now_s))
        return;
    memcpy(ev.vnic, r->conf[r->conf_index & 1].vnic, sizeof ev.vnic);
    ev.vnic[sizeof ev.vnic - 1] = '\0';
    ev.generation = moat_ruleset_head(b->view->rules)->generation;
    if (!moat_event_post(&b->engine->events, &ev, false))
        moat_count(b->counters, MOAT_C_LOG_LOST, 1);
}

static void post_quota(struct burst *b, enum moat_reason reason)
{
    struct moat_event ev = {.type = MOAT_EV_QUOTA, .reason = reason};
    const struct moat_slot_rec *r = &b->engine->map->slots[b->view->index];

    if (!moat_slot_may_log(b->view->slot, b->thread->now_s))
        return;
    memcpy(ev.vnic, r->conf[r->conf_index & 1].vnic, sizeof ev.vnic - 1);
    moat_event_post(&b->engine->events, &ev, false);
}

/* --- first pass: parse, guard, key --- */

static bool makes_sessions(const struct moat_pkt *p)
{
    return (p->kind == MOAT_PKT_TCP || p->kind == MOAT_PKT_UDP || p->kind == MOAT_PKT_ICMP_QUERY ||
            p->kind == MOAT_PKT_IP_OTHER) &&
           p->cast == MOAT_UNICAST && !p->ip_multicast;
}

static inline enum moat_reason admit(struct burst *b, struct moat_pkt *p)
{
    if (__builtin_expect(p->reason | p->n_tags | p->frag | (p->kind == MOAT_PKT_RARP), 0)) {
        if (p->reason)
            return p->reason;
        if (p->vlan || p->n_tags > 1)
            return MOAT_R_VLAN;
        if (p->kind == MOAT_PKT_RARP)
            return MOAT_R_L2_TYPE; /* the VM's own went its way before */
        if (p->frag)
            return MOAT_R_FRAG;
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
    pass(b, i);
    return true;
}

/* Packet i has b->keys[k]. */
STRAIGHT void add_key(struct burst *b, unsigned k, unsigned i, uint64_t hash)
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
    if (reason) {
        refuse(b, i, reason);
    } else if (makes_sessions(p)) {
        b->all_quick = false;
        add_key(b, b->n, i,
                moat_session_key(b->engine->sessions, p, b->dir, b->view->tag, &b->keys[b->n]));
        b->n++;
    } else if (p->kind == MOAT_PKT_ICMP_ERROR) {
        b->errors |= 1u << i;
    } else {
        b->stateless |= 1u << i;
    }
}

STRAIGHT void parse_all(struct burst *b, unsigned n, const enum moat_dir dir)
{
    unsigned k = 0;

    for (unsigned i = 0; i < n; i++) {
        struct moat_pkt *p = &b->pkts[i];

        if (__builtin_expect(moat_quick(b->view, p, dir, &b->keys[k]), 1)) {
            p->quick = true;
            add_key(b, k, i, moat_session_hash4(b->engine->sessions, &b->keys[k]));
            k++;
        } else {
            b->n = k;
            parse_one(b, i);
            k = b->n;
        }
    }
    b->n = k;
}

/* --- known sessions --- */

/* The flow of a session's first packet: what admitted it. */
static void session_flow(const struct moat_session *s, struct moat_flow *f)
{
    uint16_t lport = s->key.lport, rport = s->key.rport;

    memset(f, 0, sizeof *f);
    f->dir = s->dir;
    f->family = s->key.family;
    f->proto = s->key.proto;
    if (s->key.proto == 1 || s->key.proto == 58) {
        f->dport = rport >> 1; /* type of the request, code 0 */
    } else {
        f->sport = s->dir == MOAT_FROM_VM ? lport : rport;
        f->dport = s->dir == MOAT_FROM_VM ? rport : lport;
    }
    if (s->key.family == MOAT_FAM_IP4) {
        memcpy(f->local, &s->key.local, 4);
        memcpy(f->remote, &s->key.remote, 4);
    } else {
        memcpy(f->local, s->local6, 16);
        memcpy(f->remote, s->remote6, 16);
    }
}

/* An older ruleset admitted it, or none.  A newer one may have, if another thread sees a
 * newer view than this burst: that one's word counts. */
static bool is_stale(const struct burst *b, const struct moat_session *s)
{
    uint32_t serial = LOAD(&s->serial);

    return !serial || (int32_t)(b->view->serial - serial) > 0;
}

/* Another ruleset admitted it: does this one?  Judged in its original direction. */
static bool rejudge(struct burst *b, struct moat_session *s)
{
    struct moat_match d;
    struct moat_flow flow;

    moat_count(b->counters, MOAT_C_SESSIONS_REJUDGED, 1);
    session_flow(s, &flow);
    moat_classify(b->view->rules, &flow, 1, &d);
    if (d.verdict != MOAT_ALLOW) {
        __atomic_fetch_or(&s->flags, MOAT_SES_F_CUT, __ATOMIC_RELAXED);
        moat_count(b->counters, MOAT_C_SESSIONS_CUT, 1);
        return false;
    }
    STORE(&s->rule, d.rule);
    STORE(&s->generation, moat_ruleset_head(b->view->rules)->generation);
    STORE(&s->serial, b->view->serial);
    return true;
}

STRAIGHT enum moat_reason track_state(struct moat_session *s, const struct moat_pkt *p,
                                      const enum moat_dir dir)
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
    if (flags & mine)
        __atomic_fetch_and(&s->flags, (uint8_t)~mine, __ATOMIC_RELAXED);
    if (dir != LOAD(&s->dir) && !(flags & MOAT_SES_F_REPLIED))
        __atomic_fetch_or(&s->flags, MOAT_SES_F_REPLIED, __ATOMIC_RELAXED);
    return MOAT_R_NONE;
}

/* True if the session is over, and this packet may only open a new one. */
STRAIGHT bool is_over(const struct burst *b, const struct moat_session *s, const struct moat_pkt *p)
{
    return LOAD(&s->flags) & MOAT_SES_F_CUT || moat_session_expired(s, b->thread->now_s) ||
           (p->kind == MOAT_PKT_TCP && moat_tcp_reopens(s->side, b->dir, &p->tcp));
}

/* Counts may lose a packet if two threads serve one direction (several queues). */
STRAIGHT void account(const struct burst *b, struct moat_session *s, const struct moat_pkt *p,
                      const enum moat_dir dir)
{
    if (LOAD(&s->seen) != b->thread->now_s)
        STORE(&s->seen, b->thread->now_s);
    STORE(&s->packets[dir], LOAD(&s->packets[dir]) + 1);
    STORE(&s->bytes[dir], LOAD(&s->bytes[dir]) + p->total);
}

/* A packet of a live session: MOAT_R_NONE and counted, or why not. */
STRAIGHT enum moat_reason track_in(struct burst *b, struct moat_session *s,
                                   const struct moat_pkt *p, const enum moat_dir dir)
{
    enum moat_reason reason;

    if (__builtin_expect(LOAD(&s->serial) != b->view->serial, 0) && is_stale(b, s) &&
        !rejudge(b, s))
        return MOAT_R_POLICY_CHANGE;
    reason = track_state(s, p, dir);
    if (!reason)
        account(b, s, p, dir);
    return reason;
}

static void track(struct burst *b, unsigned i, struct moat_session *s)
{
    enum moat_reason reason = track_in(b, s, &b->pkts[i], b->dir);

    if (reason)
        refuse(b, i, reason);
    else
        pass(b, i);
}

/* --- new sessions --- */

static uint32_t rule_hit(struct burst *b, const struct moat_match *d)
{
    __atomic_fetch_add(&moat_ruleset_hits(b->view->rules)[d->index], 1, __ATOMIC_RELAXED);
    return d->rule;
}

/* What the rules say about packet i.  MOAT_R_NONE: allowed. */
static enum moat_reason judge(struct burst *b, unsigned i, const struct moat_flow *flow,
                              struct moat_match *d)
{
    enum moat_reason reason = MOAT_R_NONE;

    moat_classify(b->view->rules, flow, 1, d);
    rule_hit(b, d);
    if (d->verdict != MOAT_ALLOW)
        reason = d->rule ? MOAT_R_RULE : MOAT_R_DEFAULT;
    if (d->logged)
        log_packet(b, &b->pkts[i], flow, d, reason);
    return reason;
}

static bool starts_loose(const struct burst *b, const struct moat_match *d)
{
    return b->view->settings.tcp_loose || d->loose || b->view->state == MOAT_SLOT_ENROLLING ||
           (b->view->pickup_until && b->thread->now_s < b->view->pickup_until);
}

/* State of a session's first packet, all but the key. */
static enum moat_reason open_state(struct burst *b, const struct moat_pkt *p,
                                   const struct moat_match *d, struct moat_session *s)
{
    if (p->kind == MOAT_PKT_TCP) {
        enum moat_reason reason = moat_tcp_open(s->side, b->dir, &p->tcp, starts_loose(b, d));

        if (reason)
            return reason;
        if ((p->tcp.flags & (MOAT_TCP_SYN | MOAT_TCP_ACK)) != MOAT_TCP_SYN) {
            s->flags |= MOAT_SES_F_LOOSE;
            moat_count(b->counters, MOAT_C_PICKED_UP, 1);
        }
    } else if (p->kind == MOAT_PKT_ICMP_QUERY && p->icmp_reply) {
        return MOAT_R_ICMP_REPLY;
    } else {
        moat_other_open(s->side, b->dir);
    }
    s->serial = b->view->serial;
    s->seen = s->created = b->thread->now_s;
    s->dir = b->dir;
    s->rule = d->rule;
    s->generation = moat_ruleset_head(b->view->rules)->generation;
    s->packets[b->dir] = 1;
    s->bytes[b->dir] = p->total;
    if (p->family == MOAT_FAM_IP6) {
        memcpy(s->local6, b->dir == MOAT_FROM_VM ? p->src : p->dst, 16);
        memcpy(s->remote6, b->dir == MOAT_FROM_VM ? p->dst : p->src, 16);
    }
    return MOAT_R_NONE;
}

/* A new connection on the tuple of one that is over: the entry serves again.  False if it
 * has been collected meanwhile. */
static bool restart(struct burst *b, unsigned k, struct moat_session *s,
                    const struct moat_session *fresh)
{
    bool alive;

    moat_session_lock(b->engine->sessions, b->hashes[k]);
    alive = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE) == fresh->key.tag;
    if (alive) {
        for (int d = 0; d < 2; d++) {
            STORE(&s->side[d].state, fresh->side[d].state);
            STORE(&s->side[d].seq_lo, fresh->side[d].seq_lo);
            STORE(&s->side[d].seq_hi, fresh->side[d].seq_hi);
            STORE(&s->side[d].max_win, fresh->side[d].max_win);
            STORE(&s->side[d].wscale, fresh->side[d].wscale);
            STORE(&s->packets[d], fresh->packets[d]);
            STORE(&s->bytes[d], fresh->bytes[d]);
        }
        STORE(&s->dir, fresh->dir);
        STORE(&s->rule, fresh->rule);
        STORE(&s->generation, fresh->generation);
        STORE(&s->created, fresh->created);
        STORE(&s->seen, fresh->seen);
        STORE(&s->serial, fresh->serial);
        STORE(&s->flags, fresh->flags);
    }
    moat_session_unlock(b->engine->sessions, b->hashes[k]);
    return alive;
}

static void insert(struct burst *b, unsigned k, const struct moat_session *fresh)
{
    struct moat_session_table *t = b->engine->sessions;
    unsigned i = b->which[k];
    enum moat_reason reason = MOAT_R_INTERNAL;
    bool found;
    uint32_t index;

    if (LOAD(&b->view->slot->sessions) >= b->view->max_sessions) {
        refuse(b, i, MOAT_R_QUOTA);
        post_quota(b, MOAT_R_QUOTA);
        return;
    }
    index = moat_session_insert(t, b->thread, b->hashes[k], fresh, &found, &reason);
    if (index == MOAT_NO_SESSION) {
        refuse(b, i, reason);
        post_quota(b, reason);
    } else if (found) {
        /* The other direction's thread was faster. */
        track(b, i, moat_session_at(t, index));
    } else {
        __atomic_fetch_add(&b->view->slot->sessions, 1, __ATOMIC_RELAXED);
        moat_count(b->counters, MOAT_C_SESSIONS_CREATED, 1);
        pass(b, i);
    }
}

/* Packet k of the keyed ones has no live session. */
static void open_session(struct burst *b, unsigned k)
{
    unsigned i = b->which[k];
    struct moat_pkt *p = b->keyed[k];
    struct moat_session *old = NULL;
    struct moat_session fresh;
    struct moat_match d;
    struct moat_flow flow;
    enum moat_reason reason;
    uint32_t index;

    if (p->quick)
        moat_parse(p);
    index = moat_session_lookup(b->engine->sessions, &b->keys[k], b->hashes[k], p, b->dir);
    if (index != MOAT_NO_SESSION) {
        old = moat_session_at(b->engine->sessions, index);
        if (!is_over(b, old, p)) { /* opened by a packet before this one */
            track(b, i, old);
            return;
        }
    }
    moat_pkt_flow(p, b->dir, &flow);
    reason = judge(b, i, &flow, &d);
    memset(&fresh, 0, sizeof fresh);
    if (!reason)
        reason = open_state(b, p, &d, &fresh);
    if (reason) {
        refuse(b, i, reason);
        return;
    }
    fresh.key = b->keys[k];
    if (old && restart(b, k, old, &fresh)) {
        moat_count(b->counters, MOAT_C_SESSIONS_CREATED, 1);
        pass(b, i);
    } else {
        insert(b, k, &fresh);
    }
}

/* --- packets without a session of their own --- */

/* An ICMP error passes if the packet that it quotes belongs to a live session, and went
 * the other way. */
static void judge_error(struct burst *b, unsigned i)
{
    enum moat_dir back = b->dir == MOAT_FROM_VM ? MOAT_TO_VM : MOAT_FROM_VM;
    struct moat_pkt quoted;
    struct moat_key key;
    uint64_t hash;
    uint32_t index;

    if (!moat_parse_quoted(&b->pkts[i], &quoted)) {
        refuse(b, i, MOAT_R_ICMP_UNRELATED);
        return;
    }
    hash = moat_session_key(b->engine->sessions, &quoted, back, b->view->tag, &key);
    index = moat_session_lookup(b->engine->sessions, &key, hash, &quoted, back);
    if (index != MOAT_NO_SESSION) {
        struct moat_session *s = moat_session_at(b->engine->sessions, index);

        if (!(LOAD(&s->flags) & MOAT_SES_F_CUT) && !moat_session_expired(s, b->thread->now_s) &&
            LOAD(&s->side[back].state) && (LOAD(&s->serial) == b->view->serial || rejudge(b, s))) {
            pass(b, i);
            return;
        }
    }
    refuse(b, i, MOAT_R_ICMP_UNRELATED);
}

static void judge_stateless(struct burst *b, unsigned i)
{
    struct moat_match d;
    struct moat_flow flow;
    enum moat_reason reason;

    moat_pkt_flow(&b->pkts[i], b->dir, &flow);
    reason = judge(b, i, &flow, &d);
    if (reason)
        refuse(b, i, reason);
    else
        pass(b, i);
}

/* Tracks the packets of live sessions; bit k of the result: keyed packet k has none, or
 * it is not where it was looked for. */
STRAIGHT uint32_t track_found(struct burst *b, const enum moat_dir dir, const bool candidates)
{
    struct moat_session *sessions = moat_session_at(b->engine->sessions, 0);
    uint32_t misses = 0, passed = 0;
    uint64_t bytes = 0;

    for (unsigned k = 0; k < b->n; k++) {
        const struct moat_pkt *p = b->keyed[k];
        enum moat_reason reason;
        struct moat_session *s;

        if (!candidates && b->found[k] == MOAT_NO_SESSION) {
            misses |= 1u << k;
            continue;
        }
        s = &sessions[b->found[k]];
        if (__builtin_expect((candidates && !moat_session_is(s, &b->keys[k])) || is_over(b, s, p),
                             0)) {
            misses |= 1u << k;
            continue;
        }
        reason = track_in(b, s, p, dir);
        if (__builtin_expect(reason != MOAT_R_NONE, 0)) {
            refuse(b, b->which[k], reason);
        } else {
            passed |= 1u << b->which[k];
            bytes += p->total;
        }
    }
    b->passed |= passed;
    b->bytes += bytes;
    return misses;
}

static __attribute__((noinline)) uint32_t look_up_all(struct burst *b)
{
    moat_session_lookup_bulk(b->engine->sessions, b->keys, b->hashes,
                             (const struct moat_pkt *const *)b->keyed, b->dir, b->n, b->found);
    return track_found(b, b->dir, false);
}

STRAIGHT void filter_in(struct burst *b, unsigned n, const enum moat_dir dir)
{
    uint32_t misses;

    parse_all(b, n, dir);
    if (__builtin_expect(b->all_quick, 1)) {
        moat_session_candidates(b->engine->sessions, b->keys, b->hashes, b->n, b->found);
        misses = track_found(b, dir, true);
    } else {
        misses = look_up_all(b);
    }
    for (; misses; misses &= misses - 1)
        open_session(b, (unsigned)__builtin_ctz(misses));
    for (uint32_t m = b->stateless; m; m &= m - 1)
        judge_stateless(b, (unsigned)__builtin_ctz(m));
    for (uint32_t m = b->errors; m; m &= m - 1)
        judge_error(b, (unsigned)__builtin_ctz(m));
}

static void filter(struct burst *b, unsigned n)
{
    b->all_quick = true;
    if (b->dir == MOAT_FROM_VM)
        filter_in(b, n, MOAT_FROM_VM);
    else
        filter_in(b, n, MOAT_TO_VM);
}

/* --- the slot's state decides --- */

static void refuse_all(struct burst *b, unsigned n, enum moat_reason reason)
{
    for (unsigned i = 0; i < n; i++) {
        if (reason == MOAT_R_BLOCKED) {
            moat_parse(&b->pkts[i]);
            if (own_rarp(b, i))
                continue;
        }
        refuse(b, i, reason);
    }
}

static void pass_all(struct burst *b, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (!(b->passed >> i & 1))
            pass(b, i);
    moat_count(b->counters, MOAT_C_FAIL_ALLOWED, n);
}

static void judge_burst(struct burst *b, unsigned n)
{
    const struct moat_view *v = b->view;

    switch ((enum moat_slot_state)v->state) {
    case MOAT_SLOT_ACTIVE:
    case MOAT_SLOT_ENROLLING:
        if (v->rules) {
            filter(b, n);
            if (v->state == MOAT_SLOT_ENROLLING)
                pass_all(b, n);
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

uint32_t moat_pipe_burst(struct moat_thread *t, struct moat_port *port, enum moat_dir dir,
                         struct moat_pkt *pkts, unsigned n)
{
    struct burst b;
    struct moat_slot *slot;

    b.thread = t;
    b.engine = t->engine;
    b.pkts = pkts;
    b.dir = dir;
    b.passed = b.stateless = b.errors = 0;
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
    } else if (b.engine->conf.unclaimed == MOAT_FAIL_ALLOW && !port->replugged) {
        b.passed = (uint32_t)((1ull << n) - 1);
    }
    moat_qsbr_leave(t->reader);
    return b.passed;
}
