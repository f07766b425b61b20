/* SPDX-License-Identifier: Apache-2.0 */

/* The engine that comes after: takes what the one before it offers (handover.h).
 *
 *   prepare   rulesets, ports, threads' contexts; by records: slots and sessions too, in rounds
 *   take      in the gate: what slots and ports are now, the rest of the sessions
 *   finish    counters, hits, events: the one before is at rest, and nobody asks the new one yet
 *
 * take() first does what can fail and touches nothing of the other engine, then what cannot. */

#include "handover.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"
#include "session_private.h"
#include "slot_private.h"
#include "slot_rec.h"
#include "sweep.h"

#define PAGE 128        /* sessions at once */
#define LITTLE 400      /* changed sessions that the gate may be closed with */
#define MOST 1500       /* that are copied in it */
#define ROUNDS 50       /* to get there */
#define EVENTS_MAX 8192 /* more are not in the other one's ring */

/* A ruleset that has been indexed. */
struct known_rules {
    uint64_t generation;
    uint8_t digest[16];
    uint32_t len;
    uint32_t which; /* buffer in the mapping */
};

struct moat_takeover {
    bool by_records;
    bool copied;     /* all sessions, once */
    bool prepared;   /* once */
    uint32_t *moved; /* by records: number in the old table to index in the new one, plus one */
    uint32_t *from;  /* and back: index in the new table to the number that it was copied from */
    struct known_rules *rules;
    struct moat_thread *carried; /* has the counters of the engines before */
    char next[MOAT_PATH_MAX + 8];
    struct moat_handover_session page[PAGE];
};

/* --- the mapping --- */

static bool fits(const struct moat_engine *e, const struct moat_handover *h)
{
    return h->layout == MOAT_MAPPING_LAYOUT && h->n_slots == e->conf.n_slots &&
           h->n_sessions == e->conf.n_sessions && h->n_sessions6 == e->conf.n_sessions6 &&
           h->mapping_fd >= 0 && !e->conf.by_records;
}

static int check(const struct moat_engine *e, const struct moat_handover *h, char *err, size_t n)
{
    if (h->version != MOAT_HANDOVER_VERSION || h->size < sizeof *h ||
        h->conf_size != sizeof(struct moat_slot_conf) ||
        h->event_size != sizeof(struct moat_event) ||
        h->slot_size != sizeof(struct moat_handover_slot) ||
        h->port_size != sizeof(struct moat_handover_port) ||
        h->session_size != sizeof(struct moat_handover_session)) {
        snprintf(err, n,
                 "the engine that serves hands over in version %u, this one takes %u: restart the "
                 "switch to change",
                 h->version, MOAT_HANDOVER_VERSION);
        return -EPROTONOSUPPORT;
    }
    if (e->conf.n_slots < h->n_slots) {
        snprintf(err, n, "it has room for %u slots, the engine that serves for %u", e->conf.n_slots,
                 h->n_slots);
        return -ENOSPC;
    }
    return 0;
}

struct moat_mapping *moat_handover_map(struct moat_engine *e, char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    struct moat_takeover *t;

    if (check(e, h, err, err_size))
        return NULL;
    t = e->takeover = calloc(1, sizeof *t);
    if (!t)
        goto no_memory;
    t->rules = calloc(e->conf.n_slots, sizeof *t->rules);
    t->by_records = !fits(e, h);
    if (!t->rules)
        goto no_memory;
    if (!t->by_records)
        return moat_mapping_share(h->mapping_fd, e->conf.mapping, e->conf.n_slots,
                                  e->conf.n_sessions, e->conf.n_sessions6, err, err_size);
    t->moved = calloc(h->n_sessions, sizeof *t->moved);
    t->from = calloc(e->conf.n_sessions, sizeof *t->from);
    if (!t->moved || !t->from)
        goto no_memory;
    if (!e->conf.mapping)
        return moat_mapping_open(NULL, e->conf.n_slots, e->conf.n_sessions, e->conf.n_sessions6,
                                 e->conf.seed, err, err_size);
    moat_mapping_next_name(e->conf.mapping, t->next, sizeof t->next);
    unlink(t->next); /* of an exchange that was cut off */
    return moat_mapping_open(t->next, e->conf.n_slots, e->conf.n_sessions, e->conf.n_sessions6,
                             e->conf.seed, err, err_size);

no_memory:
    snprintf(err, err_size, "out of memory");
    return NULL;
}

/* --- rulesets --- */

static bool is_known(const struct known_rules *k, const struct moat_handover_slot *s,
                     uint32_t which)
{
    const struct moat_ruleset_head *h = s->rules;

    return k->len == s->rules_len && k->generation == h->generation && k->which == which &&
           !memcmp(k->digest, h->digest, sizeof k->digest);
}

/* Indexes the slot's ruleset, if that was not done yet.  With the other one's lock, or its control
 * thread's standing still. */
static int index_rules(struct moat_engine *e, uint32_t i, const struct moat_handover_slot *s,
                       char *err, size_t err_size)
{
    struct known_rules *k = &e->takeover->rules[i];
    struct moat_slot *slot = &e->slots[i];
    const struct moat_ruleset_head *h = s->rules;
    struct moat_ruleset *fresh;
    uint32_t which = e->map->slots[i].rules_index;
    uint8_t *buf;
    char why[128];

    if (!s->rules_len) {
        moat_ruleset_destroy(slot->rules);
        slot->rules = NULL;
        *k = (struct known_rules){0};
        return 0;
    }
    if (slot->rules && is_known(k, s, e->takeover->by_records ? k->which : which))
        return 0;
    if (e->takeover->by_records)
        which = slot->rules ? !k->which : 0;
    if (which > 1 || s->rules_len > MOAT_RULESET_VNIC_MAX ||
        moat_ruleset_check(s->rules, s->rules_len, why, sizeof why)) {
        snprintf(err, err_size, "the ruleset of vNIC %s: %s", s->conf.vnic,
                 which > 1                              ? "it has no place"
                 : s->rules_len > MOAT_RULESET_VNIC_MAX ? "it is too long for this engine"
                                                        : why);
        return -EINVAL;
    }
    buf = moat_mapping_ruleset(e->map, i, which);
    if (e->takeover->by_records)
        memcpy(buf, s->rules, s->rules_len);
    fresh = moat_ruleset_create(buf);
    if (!fresh) {
        snprintf(err, err_size, "out of memory");
        return -ENOMEM;
    }
    moat_ruleset_destroy(slot->rules);
    slot->rules = fresh;
    *k = (struct known_rules){.generation = h->generation, .len = s->rules_len, .which = which};
    memcpy(k->digest, h->digest, sizeof k->digest);
    return 0;
}

static int index_all_rules(struct moat_engine *e, char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    struct moat_handover_slot s;
    int rc = 0;

    for (uint32_t i = 0; !rc && i < h->n_slots; i++) {
        h->lock(h->engine);
        if (h->slot(h->engine, i, &s))
            rc = index_rules(e, i, &s, err, err_size);
        h->unlock(h->engine);
    }
    return rc;
}

/* --- slots and ports --- */

/* By records: the slot's record in the new mapping, as it is now. */
static void write_record(struct moat_engine *e, uint32_t i, const struct moat_handover_slot *s)
{
    struct moat_slot_rec *r = &e->map->slots[i];
    const struct known_rules *k = &e->takeover->rules[i];

    moat_slot_rec_begin(r);
    r->used = 1;
    r->incarnation = s->incarnation;
    r->state = s->state;
    r->serial = s->serial;
    r->epoch = s->epoch;
    r->pickup_until = s->pickup_until;
    r->enroll_until = s->enroll_until;
    r->unplugged = s->unplugged;
    r->rules_index = s->rules_len ? k->which : MOAT_NO_RULES;
    r->rules_len[k->which] = k->len;
    moat_slot_rec_set_conf(r, &s->conf);
    for (unsigned a = 0; a < 2; a++) {
        r->learnt[a].state = s->learnt_state[a] == MOAT_LEARNT ? MOAT_LEARNT : MOAT_LEARNT_NOTHING;
        memcpy(r->learnt[a].addr, s->learnt[a], sizeof r->learnt[a].addr);
    }
    moat_slot_rec_commit(r);
}

static void take_slot(struct moat_engine *e, uint32_t i, const struct moat_handover_slot *s)
{
    struct moat_slot *slot = &e->slots[i];

    if (e->takeover->by_records)
        write_record(e, i, s);
    slot->sessions = s->sessions;
    slot->half_open = s->half_open;
    slot->enroll_s = s->enroll_s;
    slot->enroll_base = s->enroll_base;
    for (unsigned a = 0; a < 2; a++)
        slot->learnt_told[a] = s->learnt_told[a];
    moat_slot_publish_view(e, slot);
    if (s->sweep)
        moat_sweep_start(e, slot);
}

/* Its next vNIC must not inherit sessions of the last one. */
static void take_free_slot(struct moat_engine *e, uint32_t i, const struct moat_handover_slot *s)
{
    struct moat_slot_rec *r = &e->map->slots[i];

    moat_ruleset_destroy(e->slots[i].rules);
    e->slots[i].rules = NULL;
    if (!e->takeover->by_records)
        return;
    moat_slot_rec_begin(r);
    r->used = 0;
    r->incarnation = s->incarnation;
    r->serial = s->serial;
    moat_slot_rec_commit(r);
}

/* Ports only ever come. */
static int make_ports(struct moat_engine *e, char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    struct moat_handover_port p;

    while (h->port(h->engine, e->n_ports, &p))
        if (!moat_port_create(e, p.path)) {
            snprintf(err, err_size, "out of memory");
            return -ENOMEM;
        }
    return 0;
}

static void take_port(struct moat_engine *e, uint32_t i, const struct moat_handover_port *from)
{
    const struct moat_handover *h = e->conf.before;
    struct moat_port *p = e->ports[i];
    uint8_t frame[MOAT_PENDING_FRAME_MAX];
    uint32_t len;

    p->connected = from->connected;
    p->running = from->running;
    p->logging = from->logging;
    p->replugged = from->replugged;
    p->vid = from->vid;
    if (from->slot < e->conf.n_slots)
        moat_port_bind(&e->slots[from->slot], p);
    while ((len = h->frame(h->engine, i, frame, sizeof frame)))
        moat_pending_push(&p->pending, frame, len);
}

/* --- sessions, by records --- */

static bool always(void *aux, const struct moat_session *s)
{
    (void)aux;
    (void)s;
    return true;
}

/* The copy of the session that has this number, or had it; NULL: there is none.  What was copied
 * from it may be another number's by now. */
static struct moat_session *copy_of(const struct moat_engine *e, uint32_t number)
{
    uint32_t moved = e->takeover->moved[number];

    return moved && e->takeover->from[moved - 1] == number ? moat_session_at(e->sessions, moved - 1)
                                                           : NULL;
}

static void drop_copy(struct moat_engine *e, uint32_t number)
{
    if (copy_of(e, number)) {
        moat_session_remove_if(e->sessions, e->takeover->moved[number] - 1, always, NULL);
        moat_session_reclaim(e->sessions, &e->qsbr);
        moat_session_reclaim(e->sessions, &e->qsbr);
    }
    e->takeover->moved[number] = 0;
}

static bool is_same(const struct moat_engine *e, const struct moat_session_whole *w,
                    const struct moat_session *s)
{
    const uint8_t *addrs6 = moat_session_addresses(e->sessions, s);

    return moat_session_is(s, &w->s.key) &&
           (!addrs6 || (!memcmp(addrs6, w->local6, 16) && !memcmp(addrs6 + 16, w->remote6, 16)));
}

static int take_session(struct moat_engine *e, struct moat_thread *self,
                        const struct moat_handover_session *from)
{
    struct moat_session *copy = copy_of(e, from->number);
    uint32_t index;
    struct moat_session_whole w = {
        .rule = from->rule, .created = from->created, .generation = from->generation};
    enum moat_reason reason;
    bool found;

    if (!from->tag) {
        drop_copy(e, from->number);
        return 0;
    }
    w.s.key = (struct moat_key){.tag = from->tag,
                                .local = from->local,
                                .remote = from->remote,
                                .lport = from->lport,
                                .rport = from->rport,
                                .vlan = from->vlan,
                                .proto = from->proto,
                                .family = from->family};
    w.s.serial = from->serial;
    w.s.seen = from->seen;
    w.s.flags = from->flags;
    w.s.marks = from->marks;
    memcpy(w.s.side, from->side, sizeof w.s.side);
    memcpy(w.packets, from->packets, sizeof w.packets);
    memcpy(w.bytes, from->bytes, sizeof w.bytes);
    memcpy(w.local6, from->local6, sizeof w.local6);
    memcpy(w.remote6, from->remote6, sizeof w.remote6);
    if (copy && is_same(e, &w, copy)) {
        moat_session_renew(e->sessions, copy, &w);
        return 0;
    }
    drop_copy(e, from->number);
    index = moat_session_insert(e->sessions, self, moat_session_hash(e->sessions, &w.s.key), &w,
                                &found, &reason);
    if (index == MOAT_NO_SESSION)
        return -ENOSPC;
    /* A tuple whose session ended, and which has one of another number again: the end of that one
     * will be told, and must not end this. */
    if (found)
        moat_session_renew(e->sessions, moat_session_at(e->sessions, index), &w);
    e->takeover->moved[from->number] = index + 1;
    e->takeover->from[index] = from->number;
    return 0;
}

typedef uint32_t source_fn(struct moat_engine *, uint32_t *number, struct moat_handover_session *,
                           uint32_t max);

/* All that a source gives, or the first `most` of them; *n counts. */
static int take_sessions(struct moat_engine *e, source_fn *source, uint32_t most, uint32_t *n,
                         char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    struct moat_handover_session *page = e->takeover->page;
    struct moat_thread *self = moat_thread_self(e);
    uint32_t number = 0, got;

    *n = 0;
    while (self && *n < most && (got = source(h->engine, &number, page, PAGE))) {
        *n += got;
        for (uint32_t i = 0; i < got; i++)
            if (take_session(e, self, &page[i])) {
                snprintf(err, err_size, "no room for a session of the %u before it",
                         moat_session_table_used(e->sessions));
                return -ENOSPC;
            }
    }
    if (!self)
        snprintf(err, err_size, "out of memory");
    return self ? 0 : -ENOMEM;
}

static int copy_sessions(struct moat_engine *e, char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    uint32_t n = UINT32_MAX;
    int rc = 0;

    if (!e->takeover->copied) {
        moat_session_table_recover(e->sessions, NULL, NULL); /* empty */
        rc = h->watch(h->engine, true);
        if (rc)
            snprintf(err, err_size, "out of memory");
        else
            rc = take_sessions(e, h->copy, UINT32_MAX, &n, err, err_size);
        e->takeover->copied = !rc;
    }
    for (unsigned i = 0; !rc && n > LITTLE && i < ROUNDS; i++)
        rc = take_sessions(e, h->changed, UINT32_MAX, &n, err, err_size);
    return rc;
}

/* --- the steps --- */

/* Threads find their context made, and need not do it between two packets. */
static int make_threads(struct moat_engine *e, char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    struct moat_takeover *t = e->takeover;

    if (!t->carried)
        t->carried = moat_thread_spare(e, false);
    if (t->carried && moat_thread_spares(e, h->threads(h->engine)))
        return 0;
    snprintf(err, err_size, "out of memory");
    return -ENOMEM;
}

int moat_handover_prepare(struct moat_engine *e, char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    int rc = make_threads(e, err, err_size);

    rc = rc ? rc : index_all_rules(e, err, err_size);
    if (!rc) {
        h->lock(h->engine);
        rc = make_ports(e, err, err_size);
        h->unlock(h->engine);
    }
    if (!rc && e->takeover->by_records)
        rc = copy_sessions(e, err, err_size);
    if (!rc && e->takeover->prepared)
        h->tidy(h->engine);
    e->takeover->prepared = true;
    return rc;
}

/* What can fail. */
static int take_the_rest(struct moat_engine *e, char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    char vnic[MOAT_ID_MAX];
    uint32_t n = 0;
    int rc;

    if (h->busy(h->engine, vnic)) {
        snprintf(err, err_size, "vNIC %s is being moved", vnic);
        return -EAGAIN;
    }
    rc = make_ports(e, err, err_size);
    if (!rc && e->takeover->by_records) {
        rc = take_sessions(e, h->changed, MOST, &n, err, err_size);
        if (!rc && n >= MOST) {
            snprintf(err, err_size, "sessions change faster than they can be copied");
            rc = -EAGAIN;
        }
    }
    return rc;
}

int moat_handover_take(struct moat_engine *e, char *err, size_t err_size)
{
    const struct moat_handover *h = e->conf.before;
    struct moat_handover_port port;
    struct moat_handover_slot slot;
    int rc = take_the_rest(e, err, err_size);

    if (rc)
        return rc;
    if (e->takeover->by_records && e->takeover->next[0] &&
        rename(e->takeover->next, e->conf.mapping)) {
        snprintf(err, err_size, "%s: %s", e->takeover->next, strerror(errno));
        return -errno;
    }
    if (!e->takeover->by_records) {
        h->leave(h->engine);
        moat_session_table_resume(e->sessions);
    }
    for (uint32_t i = 0; i < h->n_slots; i++) {
        if (h->slot(h->engine, i, &slot)) {
            take_slot(e, i, &slot);
            e->recovered_slots++;
        } else {
            take_free_slot(e, i, &slot);
        }
    }
    for (uint32_t i = 0; h->port(h->engine, i, &port); i++)
        take_port(e, i, &port);
    e->replacements = h->replacements + 1;
    e->started_s = moat_engine_now_ms(e) / 1000;
    return 0;
}

void moat_handover_finish(struct moat_engine *e)
{
    const struct moat_handover *h = e->conf.before;
    struct moat_takeover *t = e->takeover;
    struct moat_handover_slot slot;
    struct moat_event event;

    e->recovered_sessions = moat_session_table_used(e->sessions);
    for (uint32_t i = 0; i < h->n_slots; i++) {
        uint64_t *hits;

        h->counters(h->engine, i, moat_thread_counters(t->carried, i), MOAT_N_COUNTERS);
        if (!h->slot(h->engine, i, &slot) || !e->slots[i].rules)
            continue;
        hits = moat_ruleset_hits(e->slots[i].rules);
        for (uint32_t k = 0; k < slot.n_hits &&
                             k <= moat_ruleset_body(moat_ruleset_head(e->slots[i].rules))->n_rules;
             k++)
            __atomic_fetch_add(&hits[k], slot.hits[k], __ATOMIC_RELAXED);
    }
    for (unsigned i = 0; i < EVENTS_MAX && h->event(h->engine, &event); i++)
        moat_event_put(&e->events, &event);
    h->retire(h->engine);
    moat_takeover_free(e);
}

void moat_handover_cancel(struct moat_engine *e)
{
    const struct moat_handover *h = e->conf.before;

    h->watch(h->engine, false);
    if (e->takeover && e->takeover->next[0])
        unlink(e->takeover->next);
    moat_takeover_free(e);
}

void moat_takeover_free(struct moat_engine *e)
{
    if (e->takeover) {
        free(e->takeover->moved);
        free(e->takeover->from);
        free(e->takeover->rules);
        free(e->takeover);
        e->takeover = NULL;
    }
}
