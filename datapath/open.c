/* SPDX-License-Identifier: Apache-2.0 */

/* Packets that no live session answers for: the rules judge them, quotas bound them, and
 * what policy permits opens a session.  ICMP errors go by the session of the packet that they
 * quote, fragments by their datagram.
 *
 * All of it is off the straight line.  The rules are asked for all misses of a burst at once; what
 * comes of it is done packet by packet, in their order: the second packet of a tuple meets the
 * session that the first one opened, and what the rules said of it counts for nothing.
 *
 * Rules come before quotas, though a quota would be cheaper to ask: what policy refuses is
 * refused by policy, counted for its rule, answered if the rule says so, and uses up nothing. */

#include <stdio.h>
#include <string.h>

#include "fragment.h"
#include "guard.h"
#include "pipe_private.h"
#include "quick.h"
#include "reject.h"

/* --- telling --- */

static void name_event(const struct burst *b, struct moat_event *ev)
{
    const struct moat_slot_rec *r = &b->engine->map->slots[b->view->index];

    memcpy(ev->vnic, r->conf[r->conf_index & 1].vnic, sizeof ev->vnic);
    ev->vnic[sizeof ev->vnic - 1] = '\0';
}

/* A quota has been reached: said once a second. */
static void tell_quota(struct burst *b, enum moat_quota quota, enum moat_reason reason,
                       uint32_t limit)
{
    static const char *const what[MOAT_N_QUOTAS] = {
        "the quota of sessions is reached",
        "the quota of half-open sessions is reached",
        "the quota of new sessions a second is reached",
        "the quota of datagrams in fragments is reached",
        "the quota of logged packets a second is reached",
        "the session table is full"};
    struct moat_event ev;

    if (!moat_slot_may_tell(b->view->slot, quota, b->thread->now_s))
        return;
    ev = (struct moat_event){.type = MOAT_EV_QUOTA, .reason = reason, .value = limit};
    name_event(b, &ev);
    snprintf(ev.text, sizeof ev.text, "%s: %u", what[quota], limit);
    moat_event_post(&b->engine->events, &ev, false);
}

void moat_pipe_log(struct burst *b, const struct moat_pkt *p, const struct moat_flow *flow,
                   const struct moat_match *d, enum moat_reason reason, const char *text)
{
    struct moat_event ev = {.type = MOAT_EV_PACKET,
                            .reason = reason,
                            .rule = d->rule ? d->rule : d->log_rule,
                            .frame_len = p->total,
                            .value = d->verdict,
                            .flow = *flow};

    if (!moat_slot_may_log(b->view->slot, b->thread->now_s, b->view->max_logs)) {
        moat_count(b->counters, MOAT_C_LOG_LOST, 1);
        tell_quota(b, MOAT_QUOTA_LOGS, MOAT_R_NONE, b->view->max_logs);
        return;
    }
    name_event(b, &ev);
    if (text)
        snprintf(ev.text, sizeof ev.text, "%s", text);
    ev.generation = moat_ruleset_head(b->view->rules)->generation;
    if (!moat_event_post(&b->engine->events, &ev, false))
        moat_count(b->counters, MOAT_C_LOG_LOST, 1);
}

static void count_rule_hits(struct burst *b, uint32_t index, uint32_t n)
{
    __atomic_fetch_add(&moat_ruleset_hits(b->view->rules)[index], n, __ATOMIC_RELAXED);
}

/* What the rules have said about packet i.  MOAT_R_NONE: allowed. */
static enum moat_reason heed(struct burst *b, unsigned i, const struct moat_flow *flow,
                             const struct moat_match *d)
{
    enum moat_reason reason = MOAT_R_NONE;

    if (d->verdict != MOAT_ALLOW)
        reason = d->rule ? MOAT_R_RULE : MOAT_R_DEFAULT;
    if (d->logged)
        moat_pipe_log(b, &b->pkts[i], flow, d, reason, NULL);
    return reason;
}

static enum moat_reason judge(struct burst *b, unsigned i, const struct moat_flow *flow,
                              struct moat_match *d)
{
    moat_classify(b->view->rules, flow, 1, d);
    count_rule_hits(b, d->index, 1);
    return heed(b, i, flow, d);
}

/* Tells who sent it, as the packet's destination would have. */
static void answer(struct burst *b, const struct moat_pkt *p)
{
    uint8_t frame[MOAT_REJECT_MAX];
    unsigned len;

    if (!b->engine->conf.inject || b->view->state == MOAT_SLOT_ENROLLING)
        return;
    /* Without anti-spoofing the VM gets what is for others, but does not answer it. */
    if (b->dir == MOAT_TO_VM && memcmp(p->data, b->view->mac, sizeof b->view->mac))
        return;
    len = moat_reject_build(p, frame);
    if (!len)
        return;
    if (!moat_slot_may_answer(b->view->slot, b->thread->now_s)) {
        moat_count(b->counters, MOAT_C_ANSWERS_LIMITED, 1);
        return;
    }
    b->engine->conf.inject(b->port, b->dir == MOAT_FROM_VM ? MOAT_TO_VM : MOAT_FROM_VM, frame, len);
    moat_count(b->counters, MOAT_C_ANSWERS, 1);
}

/* The rules refuse packet i. */
static void refuse_by_rule(struct burst *b, unsigned i, enum moat_reason reason,
                           const struct moat_match *d)
{
    moat_pipe_refuse(b, i, MOAT_BY_RULE, reason);
    b->pkts[i].rule = d->rule;
    if (d->verdict == MOAT_REJECT)
        answer(b, &b->pkts[i]);
}

static void pass_by_rule(struct burst *b, unsigned i, const struct moat_match *d)
{
    b->pkts[i].by = MOAT_BY_RULE;
    b->pkts[i].rule = d->rule;
    moat_pipe_pass(b, i);
}

/* Packet i is for another MAC, and the rules are not asked: refused. */
static bool for_another(struct burst *b, unsigned i)
{
    enum moat_reason reason =
        b->dir == MOAT_TO_VM ? moat_guard_to_vm(b->view, &b->pkts[i]) : MOAT_R_NONE;

    if (reason)
        moat_pipe_refuse(b, i, MOAT_BY_CHECK, reason);
    return reason;
}

/* --- new sessions --- */

static bool starts_loose(const struct burst *b, const struct moat_match *d)
{
    return b->view->settings.tcp_loose || d->loose || b->view->state == MOAT_SLOT_ENROLLING ||
           (b->view->pickup_until && b->thread->now_s < b->view->pickup_until);
}

static enum moat_reason open_tcp(struct burst *b, struct moat_pkt *p, const struct moat_match *d,
                                 struct moat_session *s)
{
    enum moat_reason reason;

    moat_quick_options(p);
    reason = moat_tcp_open(s->side, b->dir, &p->tcp, starts_loose(b, d));

    if (reason)
        return reason;
    if ((p->tcp.flags & (MOAT_TCP_SYN | MOAT_TCP_ACK)) == MOAT_TCP_SYN)
        s->flags |= MOAT_SES_F_HALF_OPEN;
    else
        s->flags |= MOAT_SES_F_LOOSE;
    return MOAT_R_NONE;
}

/* Its state after the first packet. */
static enum moat_reason open_state(struct burst *b, struct moat_pkt *p, const struct moat_match *d,
                                   struct moat_session *s)
{
    memset(s, 0, sizeof *s);
    if (p->kind == MOAT_PKT_TCP)
        return open_tcp(b, p, d, s);
    if (p->kind == MOAT_PKT_ICMP_QUERY && p->icmp_reply)
        return MOAT_R_ICMP_REPLY;
    moat_other_open(s->side, b->dir);
    return MOAT_R_NONE;
}

/* And all else. */
static void fill_session(struct burst *b, unsigned k, const struct moat_match *d,
                         struct moat_session_whole *w)
{
    const struct moat_pkt *p = b->keyed[k];
    struct moat_session *s = &w->s;

    s->key = b->keys[k];
    s->serial = b->view->serial;
    s->seen = w->created = b->thread->now_s;
    s->marks = b->dir == MOAT_TO_VM ? MOAT_SES_MARK_TO_VM : 0;
    w->rule = d->rule;
    w->generation = moat_ruleset_head(b->view->rules)->generation;
    w->packets[b->dir] = 1;
    w->bytes[b->dir] = p->total;
    w->packets[!b->dir] = w->bytes[!b->dir] = 0;
    if (s->key.family == MOAT_FAM_IP6) {
        memcpy(w->local6, b->dir == MOAT_FROM_VM ? p->src : p->dst, 16);
        memcpy(w->remote6, b->dir == MOAT_FROM_VM ? p->dst : p->src, 16);
    }
}

static void count_opened(struct burst *b, const struct moat_session_whole *fresh)
{
    moat_count(b->counters, MOAT_C_SESSIONS_CREATED, 1);
    if (fresh->s.flags & MOAT_SES_F_LOOSE)
        moat_count(b->counters, MOAT_C_PICKED_UP, 1);
}

/* Room is counted for as many as may open in the rest of the burst, at once: the counters are the
 * slot's, and all its threads write them. */
static bool has_room(struct burst *b, uint32_t *room, uint32_t *count, uint32_t max)
{
    if (!*room)
        *room = moat_slot_reserve(count, b->may_open, max);
    return *room;
}

/* The burst opens no more. */
static void give_back_room(struct burst *b)
{
    struct moat_slot *slot = b->view->slot;

    moat_slot_give_back(&slot->sessions, b->room);
    moat_slot_give_back(&slot->half_open, b->room_half_open);
    b->room = b->room_half_open = 0;
}

/* May the vNIC have one more?  `more`: it adds to those that there are. */
static enum moat_reason check_quotas(struct burst *b, const struct moat_session_whole *fresh,
                                     bool more)
{
    const struct moat_view *v = b->view;

    if (more && !has_room(b, &b->room, &v->slot->sessions, v->max_sessions)) {
        tell_quota(b, MOAT_QUOTA_SESSIONS, MOAT_R_QUOTA, v->max_sessions);
        return MOAT_R_QUOTA;
    }
    if (fresh->s.flags & MOAT_SES_F_HALF_OPEN &&
        !has_room(b, &b->room_half_open, &v->slot->half_open, v->max_half_open)) {
        tell_quota(b, MOAT_QUOTA_HALF_OPEN, MOAT_R_QUOTA_HALF_OPEN, v->max_half_open);
        return MOAT_R_QUOTA_HALF_OPEN;
    }
    if (!moat_slot_may_open(v->slot, b->thread->now_s, v->max_new)) {
        tell_quota(b, MOAT_QUOTA_NEW, MOAT_R_QUOTA_NEW, v->max_new);
        return MOAT_R_QUOTA_NEW;
    }
    return MOAT_R_NONE;
}

/* A new connection on the tuple of one that is over: the entry serves again.  False if it
 * has been collected meanwhile. */
static bool restart(struct burst *b, unsigned k, struct moat_session *s,
                    const struct moat_session_whole *fresh)
{
    uint8_t before = 0;
    bool alive;

    moat_session_lock(b->engine->sessions, b->hashes[k]);
    alive = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE) == fresh->s.key.tag;
    if (alive)
        before = moat_session_renew(b->engine->sessions, s, fresh);
    moat_session_unlock(b->engine->sessions, b->hashes[k]);
    if (before & MOAT_SES_F_HALF_OPEN)
        moat_slot_half_open_ended(b->view->slot);
    return alive;
}

static enum moat_reason insert(struct burst *b, unsigned k, const struct moat_session_whole *fresh)
{
    struct moat_session_table *t = b->engine->sessions;
    enum moat_reason reason = MOAT_R_INTERNAL;
    bool found;
    uint32_t index = moat_session_insert(t, b->thread, b->hashes[k], fresh, &found, &reason);

    if (index == MOAT_NO_SESSION) {
        if (reason == MOAT_R_TABLE_FULL)
            tell_quota(b, MOAT_QUOTA_TABLE, reason, moat_session_table_size(t));
        return reason;
    }
    if (found) { /* another thread was faster */
        moat_pipe_track(b, b->which[k], moat_session_at(t, index));
        return MOAT_R_NONE;
    }
    b->room--;
    b->room_half_open -= !!(fresh->s.flags & MOAT_SES_F_HALF_OPEN);
    count_opened(b, fresh);
    moat_pipe_pass(b, b->which[k]);
    return MOAT_R_NONE;
}

/* Policy permits it: a session opens on key k, or a quota or the table is against it. */
static enum moat_reason open_session(struct burst *b, unsigned k, struct moat_session *old,
                                     struct moat_session_whole *fresh, const struct moat_match *d)
{
    unsigned i = b->which[k];
    enum moat_reason reason = check_quotas(b, fresh, !old);

    b->keyed[k]->by = MOAT_BY_RULE;
    b->keyed[k]->rule = d->rule;
    if (!reason) {
        fill_session(b, k, d, fresh);
        if (old && restart(b, k, old, fresh)) {
            b->room_half_open -= !!(fresh->s.flags & MOAT_SES_F_HALF_OPEN);
            count_opened(b, fresh);
            moat_pipe_pass(b, i);
            return MOAT_R_NONE;
        }
        if (old) /* it has been collected just now */
            b->room += moat_slot_reserve(&b->view->slot->sessions, 1, UINT32_MAX);
        reason = insert(b, k, fresh);
    }
    if (reason) {
        moat_pipe_refuse(b, i, MOAT_BY_QUOTA, reason);
        b->keyed[k]->rule = d->rule;
    }
    return reason;
}

/* The rules have judged key k's packet.  True: there is a session on its tuple now, for all that is
 * known here. */
static bool do_as_judged(struct burst *b, unsigned k, struct moat_session *old,
                         const struct moat_flow *flow, const struct moat_match *d)
{
    unsigned i = b->which[k];
    struct moat_session_whole fresh;
    enum moat_reason reason = heed(b, i, flow, d);

    if (reason) {
        refuse_by_rule(b, i, reason, d);
        return false;
    }
    reason = open_state(b, b->keyed[k], d, &fresh.s);
    if (reason) {
        moat_pipe_refuse(b, i, MOAT_BY_RULE, reason);
        b->keyed[k]->rule = d->rule;
        return false;
    }
    return !open_session(b, k, old, &fresh, d);
}

/* The session of key k, or NULL; it may be over. */
static struct moat_session *session_of_key(const struct burst *b, unsigned k)
{
    uint32_t index =
        moat_session_lookup(b->engine->sessions, &b->keys[k], b->hashes[k], b->keyed[k], b->dir);

    return index == MOAT_NO_SESSION ? NULL : moat_session_at(b->engine->sessions, index);
}

/* As moat_pkt_flow(), which the straight line does not know enough for. */
static void flow_of_key(const struct burst *b, unsigned k, struct moat_flow *f)
{
    const struct moat_key *key = &b->keys[k];
    bool out = b->dir == MOAT_FROM_VM;

    if (key->family != MOAT_FAM_IP4 || (key->proto != 6 && key->proto != 17)) {
        moat_pkt_flow(b->keyed[k], b->dir, f);
        return;
    }
    memset(f, 0, sizeof *f);
    f->dir = (uint8_t)b->dir;
    f->family = MOAT_FAM_IP4;
    f->proto = key->proto;
    f->sport = out ? key->lport : key->rport;
    f->dport = out ? key->rport : key->lport;
    memcpy(f->local, &key->local, sizeof key->local);
    memcpy(f->remote, &key->remote, sizeof key->remote);
}

static void open_alone(struct burst *b, unsigned k)
{
    struct moat_session *s = session_of_key(b, k);
    struct moat_match d;
    struct moat_flow flow;

    if (s && !moat_pipe_is_over(b, s, b->keyed[k])) {
        moat_pipe_track(b, b->which[k], s);
        return;
    }
    if (for_another(b, b->which[k]))
        return;
    flow_of_key(b, k, &flow);
    moat_classify(b->view->rules, &flow, 1, &d);
    count_rule_hits(b, d.index, 1);
    do_as_judged(b, k, s, &flow, &d);
}

/* What is known of a burst's misses before their turn, and the rule that the last ones hit. */
struct misses {
    struct moat_session *session[MOAT_BURST_MAX]; /* over; or live, if there is no verdict */
    struct moat_flow flow[MOAT_BURST_MAX];
    struct moat_match match[MOAT_BURST_MAX];
    uint8_t at[MOAT_BURST_MAX]; /* by key: of flow and match */
    uint32_t judged;            /* bit k: key k has a verdict */
    uint64_t opened;            /* by six bits of the hash: a session has been opened on it */
    uint32_t rule, hits;
};

/* The table is asked again only if the first look was half of one. */
static void ask_rules(struct burst *b, uint32_t misses, struct misses *m)
{
    unsigned n = 0;

    m->judged = 0;
    for (; misses; misses &= misses - 1) {
        unsigned k = (unsigned)__builtin_ctz(misses);

        m->session[k] = b->found[k] == MOAT_NO_SESSION ? NULL : session_of_key(b, k);
        if (m->session[k] && !moat_pipe_is_over(b, m->session[k], b->keyed[k]))
            continue;
        flow_of_key(b, k, &m->flow[n]);
        m->judged |= 1u << k;
        m->at[k] = (uint8_t)n++;
    }
    if (n)
        moat_classify(b->view->rules, m->flow, n, m->match);
}

static void count_hit(struct burst *b, struct misses *m, uint32_t rule)
{
    if (m->rule != rule && m->hits) {
        count_rule_hits(b, m->rule, m->hits);
        m->hits = 0;
    }
    m->rule = rule;
    m->hits++;
}

static void take_turn(struct burst *b, unsigned k, struct misses *m)
{
    uint64_t mark = UINT64_C(1) << (b->hashes[k] >> 58);
    struct moat_session *s = m->session[k];
    const struct moat_match *d;

    if (m->opened & mark) /* perhaps by a packet of this tuple before it */
        s = session_of_key(b, k);
    if (s && !moat_pipe_is_over(b, s, b->keyed[k])) {
        moat_pipe_track(b, b->which[k], s);
        return;
    }
    if (for_another(b, b->which[k]))
        return;
    if (!(m->judged >> k & 1)) { /* one before it has ended its session */
        open_alone(b, k);
        m->opened |= mark;
        return;
    }
    d = &m->match[m->at[k]];
    count_hit(b, m, d->index);
    if (do_as_judged(b, k, s, &m->flow[m->at[k]], d))
        m->opened |= mark;
}

__attribute__((noinline)) void moat_open(struct burst *b, uint32_t misses)
{
    struct misses m;
    uint32_t ready = 0;

    /* Where nothing opens, nothing is made ready for it: a flood that is refused should be cheap.
     */
    for (uint32_t left = misses; left; left &= left - 1) {
        unsigned k = (unsigned)__builtin_ctz(left);

        if (b->thread->opens || b->found[k] != MOAT_NO_SESSION)
            ready |= 1u << k;
    }
    if (ready)
        moat_session_prepare(b->engine->sessions, b->thread, b->keys, b->hashes, ready);
    ask_rules(b, misses, &m);
    m.opened = 0;
    m.rule = m.hits = 0;
    for (; misses; misses &= misses - 1) {
        b->may_open = (uint32_t)__builtin_popcount(misses);
        take_turn(b, (unsigned)__builtin_ctz(misses), &m);
    }
    give_back_room(b);
    if (m.hits)
        count_rule_hits(b, m.rule, m.hits);
    b->thread->opens = m.opened != 0;
}

/* --- packets without a session of their own --- */

/* What no rule can make right: nobody has a connection with a group (RFC 1122, 4.2.3.10), or is
 * answered through one. */
static enum moat_reason needs_session(const struct moat_pkt *p)
{
    if (p->kind == MOAT_PKT_TCP)
        return MOAT_R_TCP_NO_SESSION;
    return p->kind == MOAT_PKT_ICMP_QUERY && p->icmp_reply ? MOAT_R_ICMP_REPLY : MOAT_R_NONE;
}

void moat_open_stateless(struct burst *b, unsigned i)
{
    enum moat_reason reason = needs_session(&b->pkts[i]);
    struct moat_match d;
    struct moat_flow flow;

    if (reason) {
        moat_pipe_refuse(b, i, MOAT_BY_CHECK, reason);
        return;
    }
    if (for_another(b, i))
        return;
    moat_pkt_flow(&b->pkts[i], b->dir, &flow);
    reason = judge(b, i, &flow, &d);
    if (reason)
        refuse_by_rule(b, i, reason, &d);
    else
        pass_by_rule(b, i, &d);
}

/* The live session that a quoted packet belongs to, if it may have been sent in direction
 * `back`. */
static struct moat_session *quoted_session(struct burst *b, const struct moat_pkt *quoted,
                                           enum moat_dir back, enum moat_reason *reason)
{
    struct moat_session *s;
    struct moat_key key;
    uint64_t hash = moat_session_key(b->engine->sessions, quoted, back, b->view->tag, &key);
    uint32_t index = moat_session_lookup(b->engine->sessions, &key, hash, quoted, back);

    *reason = MOAT_R_ICMP_UNRELATED;
    if (index == MOAT_NO_SESSION)
        return NULL;
    s = moat_session_at(b->engine->sessions, index);
    if (LOAD(&s->flags) & MOAT_SES_F_CUT ||
        moat_session_expired(s, b->thread->now_s, &b->view->timers) || !LOAD(&s->side[back].state))
        return NULL;
    if (moat_session_is_stale(b->view, s) &&
        !moat_rejudge(b->engine->sessions, b->view, b->counters, s)) {
        *reason = MOAT_R_POLICY_CHANGE;
        return NULL;
    }
    *reason = MOAT_R_ICMP_QUOTE;
    if (quoted->kind == MOAT_PKT_TCP && !moat_tcp_was_sent(s->side, back, quoted->tcp.seq))
        return NULL; /* RFC 5927, section 4.1: a blind attacker does not know it */
    return s;
}

/* An ICMP error passes if the packet that it quotes belongs to a live session, and went
 * the other way. */
void moat_open_error(struct burst *b, unsigned i)
{
    enum moat_dir back = b->dir == MOAT_FROM_VM ? MOAT_TO_VM : MOAT_FROM_VM;
    enum moat_reason reason = MOAT_R_ICMP_QUOTE;
    struct moat_session *s = NULL;
    struct moat_pkt quoted;

    if (moat_parse_quoted(&b->pkts[i], &quoted))
        s = quoted_session(b, &quoted, back, &reason);
    if (!s) {
        moat_pipe_refuse(b, i, MOAT_BY_RELATED, reason);
        return;
    }
    __atomic_fetch_or(&s->marks, MOAT_SES_MARK_ERROR, __ATOMIC_RELAXED);
    moat_session_touch(b->engine->sessions, s);
    b->pkts[i].by = MOAT_BY_RELATED;
    b->pkts[i].rule = LOAD(&moat_session_cold(b->engine->sessions, s)->rule);
    moat_pipe_pass(b, i);
}

/* --- fragments --- */

static void release(void *b_, const uint8_t *frame, uint32_t len)
{
    struct burst *b = b_;
    bool out = b->dir == MOAT_FROM_VM;

    if (!b->engine->conf.inject)
        return;
    b->engine->conf.inject(b->port, b->dir, frame, len);
    moat_count(b->counters, MOAT_C_FRAGMENTS, 1);
    moat_count(b->counters, out ? MOAT_C_FROM_VM_PKTS : MOAT_C_TO_VM_PKTS, 1);
    moat_count(b->counters, out ? MOAT_C_FROM_VM_BYTES : MOAT_C_TO_VM_BYTES, len);
}

/* The first fragment is judged as any packet; the datagram shares its fate. */
static void judge_first(struct burst *b, unsigned i, const struct moat_fragment_answer *a)
{
    struct moat_pkt *p = &b->pkts[i];
    unsigned k = b->n; /* fragments have no key yet: there is room for one */
    bool keyed = moat_pipe_makes_sessions(p), passed;

    if (keyed) {
        b->which[k] = (uint8_t)i;
        b->keyed[k] = p;
        b->hashes[k] = moat_session_key(b->engine->sessions, p, b->dir, b->view->tag, &b->keys[k]);
        if (p->kind == MOAT_PKT_TCP)
            p->tcp = a->tcp; /* as long as is known */
        b->may_open = 1;
        open_alone(b, k);
        give_back_room(b);
    } else if (p->kind == MOAT_PKT_ICMP_ERROR) {
        moat_pipe_refuse(b, i, MOAT_BY_FRAGMENT, MOAT_R_FRAG);
    } else {
        moat_open_stateless(b, i);
    }
    passed = b->passed >> i & 1;
    if (passed)
        moat_count(b->counters, MOAT_C_FRAGMENTS, 1);
    moat_fragment_judged(b->engine->fragments, a, passed, keyed ? &b->keys[k] : NULL,
                         keyed ? b->hashes[k] : 0, release, b);
}

/* The session of an admitted datagram lives, and a TCP segment that grows fits it. */
static struct moat_session *session_of(struct burst *b, const struct moat_fragment_answer *a,
                                       const struct moat_pkt *p)
{
    uint32_t index = moat_session_lookup(b->engine->sessions, &a->key, a->hash, p, b->dir);
    struct moat_session *s;
    enum moat_reason reason = MOAT_R_NONE;

    if (index == MOAT_NO_SESSION)
        return NULL;
    s = moat_session_at(b->engine->sessions, index);
    if (LOAD(&s->flags) & MOAT_SES_F_CUT ||
        moat_session_expired(s, b->thread->now_s, &b->view->timers))
        return NULL;
    if (a->key.proto == 6)
        reason = moat_tcp_track(s->side, b->dir, &a->tcp, false);
    return reason && reason != MOAT_TCP_UNBELIEVED ? NULL : s;
}

/* A later fragment of an admitted datagram. */
static void pass_later(struct burst *b, unsigned i, const struct moat_fragment_answer *a)
{
    struct moat_pkt *p = &b->pkts[i];
    struct moat_session *s = NULL;

    if (a->has_key) {
        s = session_of(b, a, p);
        if (!s) {
            moat_pipe_refuse(b, i, MOAT_BY_FRAGMENT, MOAT_R_FRAG);
            moat_fragment_judged(b->engine->fragments, a, false, NULL, 0, NULL, NULL);
            return;
        }
        moat_pipe_account(b, s, p, b->dir);
        moat_session_touch(b->engine->sessions, s);
    }
    p->by = MOAT_BY_FRAGMENT;
    p->rule = s ? LOAD(&moat_session_cold(b->engine->sessions, s)->rule) : 0;
    moat_count(b->counters, MOAT_C_FRAGMENTS, 1);
    moat_pipe_pass(b, i);
}

void moat_open_fragment(struct burst *b, unsigned i)
{
    struct moat_pkt *p = &b->pkts[i];
    struct moat_fragment_ctx ctx = {.slot = b->view->index,
                                    .tag = b->view->tag,
                                    .serial = b->view->serial,
                                    .limit = b->view->max_fragments,
                                    .now_s = b->thread->now_s,
                                    .dir = b->dir};
    struct moat_fragment_answer a;

    if (b->view->state == MOAT_SLOT_ENROLLING && p->frag == 2) {
        p->by = MOAT_BY_ENROLLING;
        p->rule = 0;
        moat_pipe_pass(b, i);
        return;
    }
    if (for_another(b, i)) /* also of a live session: its datagrams count before it is known */
        return;
    switch (moat_fragment_in(b->engine->fragments, &ctx, p, &a)) {
    case MOAT_FRAGMENT_JUDGE:
        judge_first(b, i, &a);
        break;
    case MOAT_FRAGMENT_PASS:
        pass_later(b, i, &a);
        break;
    case MOAT_FRAGMENT_HOLD:
        p->reason = MOAT_R_FRAG;
        p->by = MOAT_BY_FRAGMENT;
        p->rule = 0;
        moat_count(b->counters, MOAT_C_FRAGMENTS_HELD, 1);
        break;
    case MOAT_FRAGMENT_REFUSE:
        moat_pipe_refuse(b, i, MOAT_BY_FRAGMENT, a.reason);
        if (a.reason == MOAT_R_FRAG_QUOTA)
            tell_quota(b, MOAT_QUOTA_FRAGMENTS, a.reason, b->view->max_fragments);
        break;
    }
}
