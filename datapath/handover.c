/* SPDX-License-Identifier: Apache-2.0 */

/* The engine that serves: what its successor may ask of it. */

#include "handover.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine.h"
#include "session_private.h"
#include "slot_private.h"

/* --- slots and ports --- */

static void lock(struct moat_engine *e)
{
    pthread_mutex_lock(&e->lock);
}

static void unlock(struct moat_engine *e)
{
    pthread_mutex_unlock(&e->lock);
}

static uint32_t threads(struct moat_engine *e)
{
    uint32_t n = 0;

    for (const struct moat_thread *t = __atomic_load_n(&e->threads, __ATOMIC_ACQUIRE); t;
         t = t->next)
        n += t->reader != NULL;
    return n;
}

static void tell_rules(struct moat_engine *e, const struct moat_slot *s,
                       struct moat_handover_slot *out)
{
    if (!s->rules)
        return;
    out->rules = moat_ruleset_head(s->rules);
    out->rules_len = rec_of(e, s)->rules_len[rec_of(e, s)->rules_index & 1];
    out->hits = moat_ruleset_hits(s->rules);
    out->n_hits = moat_ruleset_body(out->rules)->n_rules + 1;
}

static bool tell_slot(struct moat_engine *e, uint32_t index, struct moat_handover_slot *out)
{
    const struct moat_slot *s = &e->slots[index];
    struct moat_slot_rec *r = &e->map->slots[index];

    memset(out, 0, sizeof *out);
    out->incarnation = r->incarnation;
    out->serial = r->serial;
    if (!r->used)
        return false;
    out->conf = *conf_of(r);
    out->epoch = r->epoch;
    out->state = r->state;
    out->pickup_until = r->pickup_until;
    out->enroll_until = r->enroll_until;
    out->unplugged = r->unplugged;
    out->sessions = __atomic_load_n(&s->sessions, __ATOMIC_RELAXED);
    out->half_open = __atomic_load_n(&s->half_open, __ATOMIC_RELAXED);
    out->enroll_s = s->enroll_s;
    out->enroll_base = s->enroll_base;
    out->sweep = s->sweep;
    for (unsigned i = 0; i < 2; i++) {
        out->learnt_state[i] = __atomic_load_n(&r->learnt[i].state, __ATOMIC_ACQUIRE);
        memcpy(out->learnt[i], r->learnt[i].addr, sizeof out->learnt[i]);
        out->learnt_told[i] = s->learnt_told[i];
    }
    tell_rules(e, s, out);
    return true;
}

static bool tell_port(struct moat_engine *e, uint32_t index, struct moat_handover_port *out)
{
    const struct moat_port *p;

    if (index >= e->n_ports)
        return false;
    p = e->ports[index];
    *out = (struct moat_handover_port){.connected = p->connected,
                                       .running = p->running,
                                       .logging = p->logging,
                                       .replugged = p->replugged,
                                       .slot = p->slot ? p->slot->index : UINT32_MAX,
                                       .vid = __atomic_load_n(&p->vid, __ATOMIC_ACQUIRE)};
    memcpy(out->path, p->path, sizeof out->path);
    return true;
}

static bool busy(struct moat_engine *e, char vnic[MOAT_ID_MAX])
{
    for (uint32_t i = 0; i < e->conf.n_slots; i++) {
        const struct moat_slot_rec *r = &e->map->slots[i];
        const struct moat_slot *s = &e->slots[i];

        if (r->used && (r->state == MOAT_SLOT_ARRIVING || r->state == MOAT_SLOT_FROZEN ||
                        s->precopy_wanted || s->hold_from_us)) {
            memcpy(vnic, conf_of(r)->vnic, MOAT_ID_MAX);
            return true;
        }
    }
    return false;
}

static uint32_t take_frame(struct moat_engine *e, uint32_t port, uint8_t *out, uint32_t size)
{
    return port < e->n_ports ? moat_pending_pop(&e->ports[port]->pending, out, size) : 0;
}

/* --- sessions --- */

/* What waits for readers need not wait in the gate. */
static void tidy(struct moat_engine *e)
{
    for (unsigned i = 0; i < 2; i++) {
        moat_qsbr_synchronize(&e->qsbr);
        moat_session_reclaim(e->sessions, &e->qsbr);
    }
}

static int watch(struct moat_engine *e, bool on)
{
    struct moat_session_watch *w = e->watch;

    if (on && !w) {
        w = moat_session_watch_create(moat_session_table_size(e->sessions));
        if (!w)
            return -ENOMEM;
        e->watch = w;
        moat_session_table_watch(e->sessions, w);
        moat_qsbr_synchronize(&e->qsbr); /* bursts that did not know */
    } else if (!on && w) {
        moat_session_table_watch(e->sessions, NULL);
        moat_qsbr_synchronize(&e->qsbr);
        moat_session_watch_destroy(w);
        e->watch = NULL;
    }
    return 0;
}

static void read_session(struct moat_engine *e, uint32_t number, struct moat_handover_session *out)
{
    const struct moat_session *s = moat_session_at(e->sessions, number);
    struct moat_session_whole w;

    *out = (struct moat_handover_session){.number = number};
    if (!__atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE))
        return;
    moat_session_read(e->sessions, s, &w);
    out->tag = w.s.key.tag;
    out->local = w.s.key.local;
    out->remote = w.s.key.remote;
    out->lport = w.s.key.lport;
    out->rport = w.s.key.rport;
    out->vlan = w.s.key.vlan;
    out->proto = w.s.key.proto;
    out->family = w.s.key.family;
    out->flags = w.s.flags;
    out->marks = w.s.marks;
    out->serial = w.s.serial;
    out->seen = w.s.seen;
    out->rule = w.rule;
    out->created = w.created;
    out->generation = w.generation;
    memcpy(out->packets, w.packets, sizeof out->packets);
    memcpy(out->bytes, w.bytes, sizeof out->bytes);
    memcpy(out->side, w.s.side, sizeof out->side);
    memcpy(out->local6, w.local6, sizeof out->local6);
    memcpy(out->remote6, w.remote6, sizeof out->remote6);
}

/* Within a burst of its own, so that no entry is used again while it is read. */
static uint32_t copy(struct moat_engine *e, uint32_t *number, struct moat_handover_session *out,
                     uint32_t max)
{
    uint32_t size = moat_session_table_size(e->sessions), n = 0;
    struct moat_thread *self = moat_thread_self(e);

    if (!self)
        return 0;
    moat_qsbr_enter(&e->qsbr, self->reader);
    for (; *number < size && n < max; ++*number) {
        read_session(e, *number, &out[n]);
        n += out[n].tag != 0;
    }
    moat_qsbr_leave(self->reader);
    return n;
}

static uint32_t changed(struct moat_engine *e, uint32_t *number, struct moat_handover_session *out,
                        uint32_t max)
{
    struct moat_thread *self = moat_thread_self(e);
    uint32_t n = 0;

    if (!self || !e->watch)
        return 0;
    moat_qsbr_enter(&e->qsbr, self->reader);
    while (n < max) {
        uint32_t found = moat_session_watch_take(e->watch, *number);

        if (found == UINT32_MAX)
            break;
        *number = found + 1;
        read_session(e, found, &out[n++]);
    }
    moat_qsbr_leave(self->reader);
    return n;
}

static void leave(struct moat_engine *e)
{
    for (struct moat_thread *t = __atomic_load_n(&e->threads, __ATOMIC_ACQUIRE); t; t = t->next)
        moat_session_thread_flush(e->sessions, t);
    moat_session_table_leave(e->sessions);
}

/* --- behind the gate --- */

static void counters(struct moat_engine *e, uint32_t slot, uint64_t *out, uint32_t n)
{
    uint64_t all[MOAT_N_COUNTERS];

    moat_engine_counters(e, slot, all);
    memset(out, 0, n * sizeof *out);
    memcpy(out, all, (n < MOAT_N_COUNTERS ? n : MOAT_N_COUNTERS) * sizeof *out);
}

static bool take_event(struct moat_engine *e, struct moat_event *out)
{
    return moat_event_take(&e->events, out);
}

static void retire(struct moat_engine *e)
{
    if (e->has_key)
        pthread_key_delete(e->thread_key);
    e->has_key = false;
}

void moat_handover_offer(struct moat_engine *e, struct moat_handover *h)
{
    *h = (struct moat_handover){
        .version = MOAT_HANDOVER_VERSION,
        .size = sizeof *h,
        .conf_size = sizeof(struct moat_slot_conf),
        .event_size = sizeof(struct moat_event),
        .slot_size = sizeof(struct moat_handover_slot),
        .port_size = sizeof(struct moat_handover_port),
        .session_size = sizeof(struct moat_handover_session),
        .n_counters = MOAT_N_COUNTERS,
        .layout = MOAT_MAPPING_LAYOUT,
        .n_slots = e->conf.n_slots,
        .n_sessions = e->conf.n_sessions,
        .n_sessions6 = e->conf.n_sessions6,
        .mapping_fd = e->map->fd,
        .listen_fd = -1,
        .replacements = e->replacements,
        .engine = e,
        .lock = lock,
        .unlock = unlock,
        .threads = threads,
        .slot = tell_slot,
        .tidy = tidy,
        .watch = watch,
        .copy = copy,
        .changed = changed,
        .busy = busy,
        .port = tell_port,
        .frame = take_frame,
        .leave = leave,
        .counters = counters,
        .event = take_event,
        .retire = retire,
    };
}
