/* SPDX-License-Identifier: Apache-2.0 */

/* Start: open the mapping, recover slots, then sessions (each must belong to a slot of
 * the same incarnation), then serve.  Stop: the caller guarantees that no packet thread
 * is inside; everything that matters is in the mapping already. */

#include "engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fragment.h"
#include "handover.h"
#include "lines.h"
#include "session_watch.h"
#include "slot.h"
#include "sweep.h"

#define DEFAULT_SLOTS 128
#define MAX_SLOTS 4000 /* 12 bits of the session key, and not 0 */
#define DEFAULT_SESSIONS 262144
#define MIN_SESSIONS 64
#define MAX_SESSIONS (1u << 26)
#define EVENTS 4096
#define MAX_DATAGRAMS 65536 /* in fragments; some 1.3 KB each, touched when used */
#define HELD_FRAGMENTS 2048
#define AGE_SLICES 64 /* turns to look at every session once; twice as many if little happens: */
#define AGE_REST 256  /* less than one of so many is new or over */

static uint64_t next_engine_id = 1;

static uint64_t monotonic_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

uint64_t moat_engine_now_ms(const struct moat_engine *e)
{
    return e->conf.now_ms();
}

static bool session_belongs(void *e_, const struct moat_session *s)
{
    struct moat_engine *e = e_;
    uint32_t index = (s->key.tag & 0xfff) - 1;

    if (index >= e->conf.n_slots || !e->slots[index].view ||
        e->slots[index].view->tag != s->key.tag)
        return false;
    return true;
}

/* What the mapping said of recovered sessions is not believed where it would make them permanent or
 * pass them unjudged; then they count. */
static void adopt_sessions(struct moat_engine *e)
{
    uint32_t now_s = (uint32_t)(moat_engine_now_ms(e) / 1000);

    for (uint32_t i = 0; i < moat_session_table_size(e->sessions); i++) {
        struct moat_session *s = moat_session_at(e->sessions, i);
        struct moat_slot *slot;

        if (!s->key.tag)
            continue;
        slot = &e->slots[(s->key.tag & 0xfff) - 1];
        if (s->serial != slot->view->serial)
            s->serial = 0; /* to be judged again */
        if ((int32_t)(now_s - s->seen) < 0)
            s->seen = now_s;
        if (s->key.proto != 6)
            s->flags &= (uint8_t)~MOAT_SES_F_HALF_OPEN;
        slot->sessions++;
        slot->half_open += !!(s->flags & MOAT_SES_F_HALF_OPEN);
    }
}

/* Runs in a packet thread that ends (OVS replaces them when its CPU mask changes).  Its
 * counters stay in the sum. */
static void thread_ended(void *t_)
{
    struct moat_thread *t = t_;

    moat_session_thread_flush(t->engine->sessions, t);
    __atomic_store_n(&t->in_use, 0, __ATOMIC_RELEASE);
}

static int init_locks(struct moat_engine *e)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&e->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->handed_over, &attr);
    pthread_condattr_destroy(&attr);
    if (moat_events_init(&e->events, EVENTS) || pthread_key_create(&e->thread_key, thread_ended))
        return -1;
    e->has_key = true;
    return 0;
}

/* A process that was killed while its engine was exchanged may have left half a mapping. */
static void remove_next(const struct moat_engine *e)
{
    char next[MOAT_PATH_MAX + 8];

    if (e->conf.mapping) {
        moat_mapping_next_name(e->conf.mapping, next, sizeof next);
        unlink(next);
    }
}

/* The first time, which may take long; and the last time if it fails. */
static struct moat_engine *prepare(struct moat_engine *e, char *err, size_t err_size)
{
    if (!moat_handover_prepare(e, err, err_size))
        return e;
    moat_handover_cancel(e);
    moat_engine_destroy(e);
    return NULL;
}

struct moat_engine *moat_engine_create(const struct moat_engine_conf *conf, char *err,
                                       size_t err_size)
{
    struct moat_engine *e = moat_lines_alloc(1, sizeof *e);

    if (!e) {
        snprintf(err, err_size, "out of memory");
        return NULL;
    }
    e->conf = *conf;
    if (!e->conf.n_slots)
        e->conf.n_slots = DEFAULT_SLOTS;
    if (!e->conf.n_sessions)
        e->conf.n_sessions = DEFAULT_SESSIONS;
    if (!e->conf.n_sessions6)
        e->conf.n_sessions6 = e->conf.n_sessions / 2;
    if (!e->conf.now_ms)
        e->conf.now_ms = monotonic_ms;
    e->id = __atomic_fetch_add(&next_engine_id, 1, __ATOMIC_RELAXED);
    if (e->conf.n_slots > MAX_SLOTS || e->conf.n_sessions > MAX_SESSIONS ||
        e->conf.n_sessions < MIN_SESSIONS || e->conf.n_sessions6 > e->conf.n_sessions) {
        snprintf(
            err, err_size,
            "%u slots, %u sessions, %u of them for IPv6: at most %u slots, and %u to %u sessions",
            e->conf.n_slots, e->conf.n_sessions, e->conf.n_sessions6, MAX_SLOTS, MIN_SESSIONS,
            MAX_SESSIONS);
        free(e);
        return NULL;
    }
    moat_qsbr_init(&e->qsbr);
    e->map = conf->before ? moat_handover_map(e, err, err_size)
                          : moat_mapping_open(conf->mapping, e->conf.n_slots, e->conf.n_sessions,
                                              e->conf.n_sessions6, conf->seed, err, err_size);
    if (!e->map) {
        moat_takeover_free(e);
        free(e);
        return NULL;
    }
    if (!conf->before)
        remove_next(e);
    e->slots = moat_lines_alloc(e->conf.n_slots, sizeof *e->slots);
    e->sessions = moat_session_table_create(e->map);
    e->fragments = moat_fragments_create(&(struct moat_fragment_conf){
        .n_slots = e->conf.n_slots,
        /* So that the quotas of all slots fit. */
        .n_datagrams = e->conf.n_slots < MAX_DATAGRAMS / MOAT_DEFAULT_FRAGMENTS
                           ? e->conf.n_slots * MOAT_DEFAULT_FRAGMENTS
                           : MAX_DATAGRAMS,
        .n_held = HELD_FRAGMENTS,
        .seed = {e->map->head->seed[0], e->map->head->seed[3]}});
    if (!e->slots || !e->sessions || !e->fragments || init_locks(e)) {
        snprintf(err, err_size, "out of memory");
        moat_engine_destroy(e);
        return NULL;
    }
    for (uint32_t i = 0; i < e->conf.n_slots; i++)
        e->slots[i].index = i;
    if (conf->before)
        return prepare(e, err, err_size);
    e->started_s = moat_engine_now_ms(e) / 1000;
    e->recovered_slots = moat_slots_recover(e);
    e->recovered_sessions = moat_session_table_recover(e->sessions, session_belongs, e);
    adopt_sessions(e);
    return e;
}

void moat_engine_destroy(struct moat_engine *e)
{
    if (!e)
        return;
    if (e->has_key)
        pthread_key_delete(e->thread_key);
    moat_takeover_free(e);
    for (struct moat_thread *t = e->threads, *next; t; t = next) {
        next = t->next;
        free(t->counters);
        free(t);
    }
    for (uint32_t i = 0; i < e->n_ports; i++)
        free(e->ports[i]);
    free(e->ports);
    for (uint32_t i = 0; e->slots && i < e->conf.n_slots; i++)
        moat_ruleset_destroy(e->slots[i].rules);
    free(e->slots);
    moat_session_table_destroy(e->sessions);
    moat_session_watch_destroy(e->watch);
    moat_fragments_destroy(e->fragments);
    moat_events_destroy(&e->events);
    moat_mapping_close(e->map);
    free(e);
}

static struct moat_thread *thread_take_over(struct moat_engine *e)
{
    for (struct moat_thread *t = __atomic_load_n(&e->threads, __ATOMIC_ACQUIRE); t; t = t->next) {
        uint32_t unused = 0;

        if (__atomic_compare_exchange_n(&t->in_use, &unused, 1, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return t;
    }
    return NULL;
}

static struct moat_thread *thread_create(struct moat_engine *e, bool in_use, bool reads)
{
    struct moat_thread *t = moat_lines_alloc(1, sizeof *t);
    struct moat_thread *head;

    if (!t)
        return NULL;
    t->engine = e;
    t->in_use = in_use;
    t->counters = moat_lines_alloc(e->conf.n_slots, MOAT_COUNTERS_STRIDE * sizeof *t->counters);
    t->reader = reads ? moat_qsbr_attach(&e->qsbr) : NULL;
    if (!t->counters || (reads && !t->reader)) {
        moat_qsbr_detach(t->reader);
        free(t->counters);
        free(t);
        return NULL;
    }
    head = __atomic_load_n(&e->threads, __ATOMIC_ACQUIRE);
    do {
        t->next = head;
    } while (!__atomic_compare_exchange_n(&e->threads, &head, t, true, __ATOMIC_ACQ_REL,
                                          __ATOMIC_ACQUIRE));
    return t;
}

struct moat_thread *moat_thread_spare(struct moat_engine *e, bool free)
{
    return thread_create(e, !free, free);
}

bool moat_thread_spares(struct moat_engine *e, uint32_t n)
{
    uint32_t has = 0;

    for (struct moat_thread *t = __atomic_load_n(&e->threads, __ATOMIC_ACQUIRE); t; t = t->next)
        has += t->reader != NULL;
    for (; has < n; has++)
        if (!moat_thread_spare(e, true))
            return false;
    return true;
}

struct moat_thread *moat_thread_self(struct moat_engine *e)
{
    static __thread struct moat_thread *self;
    static __thread uint64_t self_engine;

    if (self_engine != e->id) {
        self = thread_take_over(e);
        if (!self)
            self = thread_create(e, true, true);
        if (self)
            pthread_setspecific(e->thread_key, self);
        self_engine = self ? e->id : 0;
    }
    return self;
}

void moat_engine_counters(struct moat_engine *e, uint32_t slot, uint64_t *out)
{
    memset(out, 0, MOAT_N_COUNTERS * sizeof *out);
    for (struct moat_thread *t = __atomic_load_n(&e->threads, __ATOMIC_ACQUIRE); t; t = t->next)
        for (unsigned i = 0; i < MOAT_N_COUNTERS; i++)
            out[i] += __atomic_load_n(&moat_thread_counters(t, slot)[i], __ATOMIC_RELAXED);
}

/* --- ageing --- */

#define AT_ONCE 32u /* sessions whose buckets are fetched together */
#define AHEAD 32    /* how far ahead sessions are fetched; past the last one it is harmless */

struct ageing {
    struct moat_engine *engine;
    uint32_t now_s;
    uint32_t slot, gone; /* of this slot so many have been removed and not been uncounted yet */
};

/* The view of the slot that has this tag; NULL: no more. */
static const struct moat_view *view_of(const struct moat_engine *e, uint32_t tag)
{
    uint32_t index = (tag & 0xfff) - 1;
    const struct moat_view *v =
        index < e->conf.n_slots ? __atomic_load_n(&e->slots[index].view, __ATOMIC_ACQUIRE) : NULL;

    return v && v->tag == tag ? v : NULL;
}

static bool is_over(const struct moat_session *s, const struct moat_view *v, uint32_t now_s)
{
    return !v || __atomic_load_n(&s->flags, __ATOMIC_RELAXED) & MOAT_SES_F_CUT ||
           moat_session_expired(s, now_s, &v->timers);
}

static bool session_over(void *a_, const struct moat_session *s)
{
    struct ageing *a = a_;

    return is_over(s, view_of(a->engine, __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE)), a->now_s);
}

/* A removed session's slot forgets it.  Those of an earlier incarnation were uncounted when they
 * became void. */
static void uncount(struct ageing *a, uint32_t slot, uint32_t tag, struct moat_session *s)
{
    struct moat_engine *e = a->engine;
    uint8_t flags = __atomic_fetch_and(&s->flags, (uint8_t)~MOAT_SES_F_HALF_OPEN, __ATOMIC_RELAXED);

    if (!view_of(e, tag))
        return;
    if (a->slot != slot) {
        moat_slot_give_back(&e->slots[a->slot].sessions, a->gone);
        a->slot = slot;
        a->gone = 0;
    }
    a->gone++;
    if (flags & MOAT_SES_F_HALF_OPEN)
        moat_slot_half_open_ended(&e->slots[slot]);
}

/* Which of the n sessions from `first` on are over; their buckets are on the way. */
static uint32_t find_over(struct ageing *a, uint32_t first, uint32_t n)
{
    const struct moat_session *s = moat_session_at(a->engine->sessions, first);
    const struct moat_view *v = NULL;
    uint32_t over = 0, last = 0;

    for (uint32_t i = 0; i < n; i++, s++) {
        uint32_t tag = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE);

        __builtin_prefetch(s + AHEAD);
        if (tag != last) { /* sessions of one slot often lie together */
            v = view_of(a->engine, tag);
            last = tag;
        }
        if (tag && is_over(s, v, a->now_s)) {
            over |= 1u << i;
            moat_session_will_remove(a->engine->sessions, first + i);
        }
    }
    return over;
}

static bool remove_over(struct ageing *a, struct moat_thread *self, uint32_t index)
{
    struct moat_session *s = moat_session_at(a->engine->sessions, index);
    uint32_t tag = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE), slot = (tag & 0xfff) - 1;

    if (tag && slot < a->engine->conf.n_slots &&
        moat_session_remove_if(a->engine->sessions, index, session_over, a)) {
        uncount(a, slot, tag, s);
        moat_count(moat_thread_counters(self, slot), MOAT_C_SESSIONS_EXPIRED, 1);
        return true;
    }
    return false;
}

/* A slice per turn, so that no turn is long however large the table is: half of one while hardly
 * anything begins or ends (what is over is over whether it has been collected or not, but it takes
 * up room).  Reads views as a packet thread does. */
static void age(struct moat_engine *e, struct moat_thread *self)
{
    static const uint32_t min_slice = 1024;
    struct ageing a = {.engine = e, .now_s = (uint32_t)(moat_engine_now_ms(e) / 1000)};
    uint32_t size = moat_session_table_size(e->sessions);
    uint32_t slice = size / AGE_SLICES, gone = 0;
    int32_t grown = (int32_t)(moat_session_table_used(e->sessions) - e->age_used);

    if (e->age_rests)
        slice /= 2;
    slice = slice > min_slice ? slice : min_slice;
    moat_qsbr_enter(&e->qsbr, self->reader);
    for (uint32_t left = slice < size ? slice : size, n; left; left -= n) {
        uint32_t first = e->age_next;

        n = left < AT_ONCE ? left : AT_ONCE;
        n = size - first < n ? size - first : n;
        for (uint32_t over = find_over(&a, first, n); over; over &= over - 1)
            gone += remove_over(&a, self, first + (uint32_t)__builtin_ctz(over));
        e->age_next = first + n < size ? first + n : 0;
    }
    e->age_rests = gone + (uint32_t)abs(grown) < slice / AGE_REST;
    e->age_used += (uint32_t)grown;
    moat_slot_give_back(&e->slots[a.slot].sessions, a.gone);
    moat_qsbr_leave(self->reader);
    moat_session_reclaim(e->sessions, &e->qsbr);
}

void moat_engine_turn(struct moat_engine *e)
{
    struct moat_thread *self = moat_thread_self(e);

    moat_slots_turn(e);
    moat_fragments_age(e->fragments, (uint32_t)(moat_engine_now_ms(e) / 1000));
    if (!self)
        return;
    moat_sweep_turn(e, self);
    age(e, self);
}
