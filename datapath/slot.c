/* SPDX-License-Identifier: Apache-2.0 */

/* Life of a slot:
 *
 *   FREE --claim--> BLOCKED | ENROLLING | ACTIVE | ARRIVING
 *   ARRIVING --state ACTIVE, rings started--> ACTIVE
 *   ACTIVE --destroy_device while a destination is fed--> FROZEN --> DEPARTED
 *   FROZEN | DEPARTED --rings start here again, agent agrees--> ACTIVE   (roll-back)
 *   FROZEN | DEPARTED --the VM comes back--> ARRIVING
 *   any --release--> FREE
 *
 * A slot whose port was deleted and plugged again is blocked, whatever its state says,
 * until it is claimed anew.
 *
 * Each change is made in the slot's record in the mapping first, as a whole (it must survive:
 * slot_rec.h), then published as a new view; the change is complete when no packet thread is left
 * in a burst that saw the old one.  There are two views per slot, so this cannot fail. */

#include "slot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine.h"
#include "mapping.h"
#include "ruleset.h"
#include "slot_private.h"
#include "slot_rec.h"
#include "sweep.h"

#define MIN_HALF_OPEN 64
#define SILENT_AGENT_MS 2000 /* after the hold: then the engine decides alone */
#define WAIT_MS_MAX 5000

static void post(struct moat_engine *e, enum moat_event_type type, const struct moat_slot *s,
                 const struct moat_port *p, int64_t value, const char *text)
{
    struct moat_event ev = {.type = type, .value = value};

    if (s) {
        const struct moat_slot_conf *c = conf_of(rec_of(e, s));

        memcpy(ev.vnic, c->vnic, sizeof ev.vnic);
        memcpy(ev.path, c->path, sizeof ev.path);
        if (s->rules)
            ev.generation = moat_ruleset_head(s->rules)->generation;
    }
    if (p)
        memcpy(ev.path, p->path, sizeof ev.path);
    if (text)
        snprintf(ev.text, sizeof ev.text, "%s", text);
    moat_event_post(&e->events, &ev, true);
}

/* --- views --- */

static uint32_t slot_tag(const struct moat_slot *s, const struct moat_slot_rec *r)
{
    return (s->index + 1) | r->incarnation << 12;
}

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
    return value ? value : otherwise;
}

static void resolve_quotas(const struct moat_engine *e, struct moat_view *v)
{
    const struct moat_settings *s = &v->settings;

    v->max_sessions = or_default(s->max_sessions, moat_session_table_size(e->sessions) / 2);
    v->max_half_open = or_default(s->max_half_open, v->max_sessions / 4);
    if (!s->max_half_open && v->max_half_open < MIN_HALF_OPEN)
        v->max_half_open = MIN_HALF_OPEN;
    v->max_new = or_default(s->max_new, MOAT_DEFAULT_NEW);
    v->max_fragments = or_default(s->max_fragments, MOAT_DEFAULT_FRAGMENTS);
    v->max_logs = or_default(s->max_logs, MOAT_DEFAULT_LOGS);
    v->timers.shortest = UINT32_MAX;
    for (unsigned t = 0; t < MOAT_N_TIMERS; t++) {
        v->timers.seconds[t] = or_default(s->timers[t], moat_timer_default(t));
        if (v->timers.seconds[t] < v->timers.shortest)
            v->timers.shortest = v->timers.seconds[t];
    }
}

/* The addresses of the inventory, and those that the VM has made its own. */
static void own_addresses(struct moat_slot *s, struct moat_slot_rec *r, struct moat_view *v)
{
    const struct moat_slot_conf *c = conf_of(r);

    v->n_addrs = c->n_addrs;
    memcpy(v->addrs, c->addrs, c->n_addrs * sizeof *c->addrs); /* the rest stays zero */
    s->n_learnt = 0;
    for (unsigned i = 0; c->settings.spoof == MOAT_SPOOF_LEARN && i < 2; i++) {
        struct moat_addr a = {.family = i ? MOAT_FAM_IP6 : MOAT_FAM_IP4, .plen = i ? 128 : 32};

        if (__atomic_load_n(&r->learnt[i].state, __ATOMIC_ACQUIRE) != MOAT_LEARNT)
            continue;
        memcpy(a.addr, r->learnt[i].addr, i ? 16 : 4);
        v->addrs[v->n_addrs++] = a;
        s->n_learnt++;
    }
}

void moat_slot_publish_view(struct moat_engine *e, struct moat_slot *s)
{
    struct moat_slot_rec *r = rec_of(e, s);
    const struct moat_slot_conf *c = conf_of(r);
    struct moat_view *v = s->view == &s->views[0] ? &s->views[1] : &s->views[0];

    if (!r->used) {
        __atomic_store_n(&s->view, NULL, __ATOMIC_RELEASE);
        return;
    }
    memset(v, 0, sizeof *v);
    v->state = r->unplugged ? MOAT_SLOT_BLOCKED : (uint8_t)r->state;
    memcpy(v->mac, c->mac, sizeof v->mac);
    own_addresses(s, r, v);
    v->index = s->index;
    v->tag = slot_tag(s, r);
    v->serial = r->serial;
    v->pickup_until = r->pickup_until;
    v->settings = c->settings;
    resolve_quotas(e, v);
    v->rules = s->rules;
    v->slot = s;
    v->learnt = r->learnt;
    __atomic_store_n(&s->view, v, __ATOMIC_RELEASE);
}

/* Ends a change: publishes what the record says and waits until no thread uses the old view. */
static void refresh(struct moat_engine *e, struct moat_slot *s)
{
    moat_slot_rec_commit(rec_of(e, s));
    moat_slot_publish_view(e, s);
    moat_qsbr_synchronize(&e->qsbr);
    if (s->voided) {
        /* Bursts on the old view have ended; one on the new view may have opened its first
         * sessions, which then do not count, or give back room that no longer does: some 30 of
         * a thread, once, and better than counting the dead. */
        __atomic_store_n(&s->sessions, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&s->half_open, 0, __ATOMIC_RELAXED);
        s->voided = false;
    }
}

/* A change that refresh() ends. */
static void set_state(struct moat_engine *e, struct moat_slot *s, enum moat_slot_state state)
{
    struct moat_slot_rec *r = rec_of(e, s);

    if (r->state == state)
        return;
    moat_slot_rec_begin(r);
    r->state = state;
    if (state != MOAT_SLOT_ENROLLING)
        r->enroll_until = 0;
    post(e, MOAT_EV_STATE, s, NULL, state, NULL);
}

static uint64_t would_refuse(struct moat_engine *e, const struct moat_slot *s)
{
    uint64_t all[MOAT_N_COUNTERS];

    moat_engine_counters(e, s->index, all);
    return all[MOAT_C_WOULD_REFUSE];
}

/* The time of an enrolment runs from the start of the rings: before, nothing was seen. */
static void start_enrolling(struct moat_engine *e, struct moat_slot *s, uint32_t seconds)
{
    struct moat_slot_rec *r = rec_of(e, s);

    if (seconds)
        s->enroll_s = seconds;
    if (!s->enroll_s)
        s->enroll_s = or_default(conf_of(r)->settings.enroll_s, MOAT_DEFAULT_ENROLL_S);
    if (r->enroll_until || !s->port || !s->port->running)
        return;
    s->enroll_base = would_refuse(e, s);
    moat_slot_rec_begin(r);
    r->enroll_until = (uint32_t)(moat_engine_now_ms(e) / 1000) + s->enroll_s;
}

/* All sessions of the slot become void with the next view; ageing collects them, and
 * does not count them any more. */
static void void_sessions(struct moat_engine *e, struct moat_slot *s)
{
    rec_of(e, s)->incarnation = (rec_of(e, s)->incarnation + 1) & 0xfffff;
    s->voided = true;
}

static void open_slot(struct moat_engine *e, struct moat_slot *s, const char *why)
{
    struct moat_slot_rec *r = rec_of(e, s);
    uint64_t held = s->hold_from_us ? now_us(e) - s->hold_from_us : 0;

    moat_slot_rec_begin(r);
    if (s->pickup_s)
        r->pickup_until = (uint32_t)(moat_engine_now_ms(e) / 1000) + s->pickup_s;
    s->ready = false;
    s->hold_from_us = 0;
    set_state(e, s, MOAT_SLOT_ACTIVE);
    refresh(e, s);
    post(e, MOAT_EV_OPENED, s, NULL, (int64_t)held, why);
}

/* --- ports --- */

static struct moat_port *find_port(struct moat_engine *e, const char *path)
{
    for (uint32_t i = 0; i < e->n_ports; i++)
        if (!strcmp(e->ports[i]->path, path))
            return e->ports[i];
    return NULL;
}

static struct moat_slot *find_slot_by_path(struct moat_engine *e, const char *path)
{
    for (uint32_t i = 0; i < e->conf.n_slots; i++)
        if (e->map->slots[i].used && !strcmp(conf_of(&e->map->slots[i])->path, path))
            return &e->slots[i];
    return NULL;
}

void moat_port_bind(struct moat_slot *s, struct moat_port *p)
{
    s->port = p;
    __atomic_store_n(&p->slot, s, __ATOMIC_RELEASE);
}

static void unbind_port(struct moat_engine *e, struct moat_slot *s)
{
    if (s->port) {
        __atomic_store_n(&s->port->slot, NULL, __ATOMIC_RELEASE);
        s->port = NULL;
        moat_qsbr_synchronize(&e->qsbr);
    }
}

struct moat_port *moat_port_create(struct moat_engine *e, const char *path)
{
    struct moat_port *p = calloc(1, sizeof *p);
    struct moat_port **ports = realloc(e->ports, (e->n_ports + 1) * sizeof *ports);

    if (ports)
        e->ports = ports;
    if (!p || !ports) {
        free(p);
        errno = ENOMEM;
        return NULL;
    }
    snprintf(p->path, sizeof p->path, "%s", path);
    p->engine = e;
    p->vid = -1;
    p->index = e->n_ports;
    e->ports[e->n_ports++] = p;
    return p;
}

struct moat_port *moat_port_register(struct moat_engine *e, const char *path)
{
    struct moat_port *p;
    struct moat_slot *s;

    if (strlen(path) >= MOAT_PATH_MAX) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    pthread_mutex_lock(&e->lock);
    p = find_port(e, path);
    if (p) {
        /* Deleted and plugged again, perhaps for another VM. */
        p->replugged = true;
        p->connected = p->running = p->logging = false;
        s = p->slot;
        if (s) {
            moat_slot_rec_begin(rec_of(e, s));
            rec_of(e, s)->unplugged = 1;
            refresh(e, s);
        }
        post(e, MOAT_EV_REPLUGGED, s, p, 0, NULL);
    } else {
        p = moat_port_create(e, path);
        s = p ? find_slot_by_path(e, path) : NULL;
        if (s && !s->port)
            moat_port_bind(s, p);
        if (p)
            post(e, MOAT_EV_PORT, s, p, 0, NULL);
    }
    pthread_mutex_unlock(&e->lock);
    return p;
}

void moat_port_connected(struct moat_port *p, bool connected)
{
    struct moat_engine *e = p->engine;

    pthread_mutex_lock(&e->lock);
    p->connected = connected;
    p->logging = false;
    post(e, connected ? MOAT_EV_CONNECTED : MOAT_EV_DISCONNECTED, p->slot, p, 0, NULL);
    pthread_mutex_unlock(&e->lock);
}

void moat_port_logging(struct moat_port *p, bool on)
{
    struct moat_engine *e = p->engine;

    pthread_mutex_lock(&e->lock);
    if (p->logging != on) {
        p->logging = on;
        post(e, MOAT_EV_PRECOPY, p->slot, p, on, NULL);
    }
    pthread_mutex_unlock(&e->lock);
}

void moat_port_started(struct moat_port *p)
{
    struct moat_engine *e = p->engine;
    struct moat_slot *s;

    pthread_mutex_lock(&e->lock);
    p->running = true;
    s = p->slot;
    post(e, MOAT_EV_RINGS_STARTED, s, p, 0, NULL);
    if (s && rec_of(e, s)->state == MOAT_SLOT_ARRIVING) {
        if (!s->hold_from_us)
            s->hold_from_us = now_us(e);
        s->hold_expired = false;
        if (s->ready && !rec_of(e, s)->unplugged)
            open_slot(e, s, NULL);
    }
    if (s && rec_of(e, s)->state == MOAT_SLOT_ENROLLING) {
        start_enrolling(e, s, 0);
        moat_slot_rec_commit(rec_of(e, s));
    }
    pthread_mutex_unlock(&e->lock);
}

/* Waits for HANDED_OVER; the lock is released meanwhile. */
static void wait_handed_over(struct moat_engine *e, struct moat_slot *s)
{
    uint32_t ms = s->wait_ms < WAIT_MS_MAX ? s->wait_ms : WAIT_MS_MAX;
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    while (!s->handed_over && rec_of(e, s)->state == MOAT_SLOT_FROZEN)
        if (pthread_cond_timedwait(&e->handed_over, &e->lock, &until) == ETIMEDOUT)
            break;
    if (!s->handed_over && rec_of(e, s)->state == MOAT_SLOT_FROZEN)
        post(e, MOAT_EV_WAIT_EXPIRED, s, NULL, ms, NULL);
}

void moat_port_stopped(struct moat_port *p)
{
    struct moat_engine *e = p->engine;
    struct moat_slot *s;

    pthread_mutex_lock(&e->lock);
    p->running = false;
    s = p->slot;
    post(e, MOAT_EV_RINGS_STOPPED, s, p, 0, NULL);
    if (s && p->logging && s->precopy_wanted &&
        (rec_of(e, s)->state == MOAT_SLOT_ACTIVE || rec_of(e, s)->state == MOAT_SLOT_ENROLLING)) {
        s->handed_over = false;
        s->precopy_wanted = false;
        set_state(e, s, MOAT_SLOT_FROZEN);
        refresh(e, s);
        post(e, MOAT_EV_FROZEN, s, NULL, 0, NULL);
        wait_handed_over(e, s);
    }
    pthread_mutex_unlock(&e->lock);
}

bool moat_port_holds(const struct moat_port *p)
{
    const struct moat_slot *s = __atomic_load_n(&p->slot, __ATOMIC_ACQUIRE);
    const struct moat_view *v = s ? __atomic_load_n(&s->view, __ATOMIC_ACQUIRE) : NULL;

    /* Views are embedded in the slot: reading one byte of a replaced view is harmless,
     * the burst that follows decides again. */
    return v && __atomic_load_n(&v->state, __ATOMIC_RELAXED) == MOAT_SLOT_ARRIVING;
}

/* --- requests of the agent --- */

static int find_index(struct moat_engine *e, const char *vnic)
{
    for (uint32_t i = 0; i < e->conf.n_slots; i++)
        if (e->map->slots[i].used && !strcmp(conf_of(&e->map->slots[i])->vnic, vnic))
            return (int)i;
    return -1;
}

int moat_slot_find(struct moat_engine *e, const char *vnic)
{
    int i;

    pthread_mutex_lock(&e->lock);
    i = find_index(e, vnic);
    pthread_mutex_unlock(&e->lock);
    return i;
}

/* The slot of a vNIC with the lock held, or NULL with err set and the lock released. */
struct moat_slot *moat_slot_lock(struct moat_engine *e, const char *vnic, char *err, size_t n)
{
    int i;

    pthread_mutex_lock(&e->lock);
    i = find_index(e, vnic);
    if (i >= 0)
        return &e->slots[i];
    pthread_mutex_unlock(&e->lock);
    snprintf(err, n, "no slot for vNIC %s", vnic);
    return NULL;
}

static int check_conf(const struct moat_slot_conf *c, char *err, size_t n)
{
    if (!c->vnic[0] || !c->path[0]) {
        snprintf(err, n, "vNIC id and path must not be empty");
        return -EINVAL;
    }
    if (c->n_addrs > MOAT_ADDRS_MAX) {
        snprintf(err, n, "%u addresses, at most %u", c->n_addrs, MOAT_ADDRS_MAX);
        return -EINVAL;
    }
    for (unsigned i = 0; i < c->n_addrs; i++) {
        const struct moat_addr *a = &c->addrs[i];

        if (!(a->family == 4 && a->plen <= 32) && !(a->family == 6 && a->plen <= 128)) {
            snprintf(err, n, "address %u: family %u with prefix length %u", i, a->family, a->plen);
            return -EINVAL;
        }
    }
    if (c->settings.n_ethertypes > MOAT_ETHERTYPES_MAX) {
        snprintf(err, n, "%u ethertypes, at most %u", c->settings.n_ethertypes,
                 MOAT_ETHERTYPES_MAX);
        return -EINVAL;
    }
    for (unsigned i = 0; i < c->settings.n_ethertypes; i++)
        if (moat_ethertype_is_judged(c->settings.ethertypes[i])) {
            snprintf(err, n, "ethertype 0x%04x cannot pass unjudged", c->settings.ethertypes[i]);
            return -EINVAL;
        }
    for (unsigned t = 0; t < MOAT_N_TIMERS; t++)
        if (c->settings.timers[t] > MOAT_TIMER_MAX) {
            snprintf(err, n, "timer %s is too long", moat_timer_name(t));
            return -EINVAL;
        }
    if (c->state != MOAT_SLOT_BLOCKED && c->state != MOAT_SLOT_ACTIVE &&
        c->state != MOAT_SLOT_ARRIVING && c->state != MOAT_SLOT_ENROLLING) {
        snprintf(err, n, "a slot cannot be claimed as %s", moat_slot_state_name(c->state));
        return -EINVAL;
    }
    return 0;
}

static int free_index(struct moat_engine *e)
{
    for (uint32_t i = 0; i < e->conf.n_slots; i++)
        if (!e->map->slots[i].used)
            return (int)i;
    return -1;
}

static void init_slot(struct moat_engine *e, struct moat_slot *s, const struct moat_slot_conf *c)
{
    struct moat_slot_rec *r = rec_of(e, s);

    moat_slot_rec_begin(r);
    void_sessions(e, s);
    r->serial = r->serial + 1 ? r->serial + 1 : 1;
    r->rules_index = MOAT_NO_RULES;
    r->pickup_until = 0;
    r->enroll_until = 0;
    r->unplugged = 0;
    memset(r->learnt, 0, sizeof r->learnt);
    r->epoch = c->epoch;
    r->state = c->state;
    moat_slot_rec_set_conf(r, c);
    s->hold_from_us = 0;
    s->hold_expired = s->precopy_wanted = s->handed_over = s->ready = false;
    s->pickup_s = s->wait_ms = s->enroll_s = 0;
    s->sweep = false;
    r->used = 1;
}

/* The old port must have let go before the new view is out: it may be another VM's now. */
static void refresh_at(struct moat_engine *e, struct moat_slot *s, const char *path)
{
    struct moat_port *p = find_port(e, path);

    if (s->port != p)
        unbind_port(e, s);
    refresh(e, s);
    if (p && s->port != p)
        moat_port_bind(s, p);
}

int moat_slot_claim(struct moat_engine *e, const struct moat_slot_conf *c, char *err, size_t n)
{
    struct moat_slot *s, *other;
    int i, rc = check_conf(c, err, n);

    if (rc)
        return rc;
    pthread_mutex_lock(&e->lock);
    i = find_index(e, c->vnic);
    other = find_slot_by_path(e, c->path);
    if (other && (i < 0 || other != &e->slots[i])) {
        snprintf(err, n, "path %s belongs to vNIC %s: release it first", c->path,
                 conf_of(rec_of(e, other))->vnic);
        rc = -EEXIST;
        goto out;
    }
    if (i >= 0) {
        s = &e->slots[i];
        if (c->epoch < rec_of(e, s)->epoch) {
            snprintf(err, n, "epoch %llu is older than the slot's %llu",
                     (unsigned long long)c->epoch, (unsigned long long)rec_of(e, s)->epoch);
            rc = -ESTALE;
            goto out;
        }
        moat_slot_rec_begin(rec_of(e, s));
        moat_slot_rec_set_conf(rec_of(e, s), c);
        rec_of(e, s)->epoch = c->epoch;
        rec_of(e, s)->unplugged = 0;
    } else {
        i = free_index(e);
        if (i < 0) {
            snprintf(err, n, "all %u slots are in use (MOAT_SLOTS)", e->conf.n_slots);
            rc = -ENOSPC;
            goto out;
        }
        s = &e->slots[i];
        init_slot(e, s, c);
        post(e, MOAT_EV_STATE, s, NULL, c->state, "claimed");
    }
    refresh_at(e, s, c->path);
    if (s->port) {
        s->port->replugged = false;
        if (s->port->running && rec_of(e, s)->state == MOAT_SLOT_ARRIVING && !s->hold_from_us)
            s->hold_from_us = now_us(e);
        if (s->port->running && rec_of(e, s)->state == MOAT_SLOT_ARRIVING && s->ready)
            open_slot(e, s, NULL);
    }
    if (rec_of(e, s)->state == MOAT_SLOT_ENROLLING) {
        start_enrolling(e, s, 0);
        moat_slot_rec_commit(rec_of(e, s));
    }
out:
    pthread_mutex_unlock(&e->lock);
    return rc;
}

int moat_slot_release(struct moat_engine *e, const char *vnic, char *err, size_t n)
{
    struct moat_slot *s = moat_slot_lock(e, vnic, err, n);

    if (!s)
        return -ENOENT;
    unbind_port(e, s);
    post(e, MOAT_EV_STATE, s, NULL, MOAT_SLOT_FREE, "released");
    moat_slot_rec_begin(rec_of(e, s));
    void_sessions(e, s);
    rec_of(e, s)->used = 0;
    s->handed_over = true; /* nobody is left to hand over: who waits need not */
    refresh(e, s);
    moat_ruleset_destroy(s->rules);
    s->rules = NULL;
    pthread_cond_broadcast(&e->handed_over);
    pthread_mutex_unlock(&e->lock);
    return 0;
}

static bool may_change(enum moat_slot_state from, enum moat_slot_state to)
{
    switch (to) {
    case MOAT_SLOT_BLOCKED:
    case MOAT_SLOT_ACTIVE:
        return true;
    case MOAT_SLOT_ENROLLING:
        return from == MOAT_SLOT_ACTIVE || from == MOAT_SLOT_BLOCKED || from == to;
    case MOAT_SLOT_ARRIVING:
        return true;
    case MOAT_SLOT_DEPARTED:
        return from == MOAT_SLOT_FROZEN || from == MOAT_SLOT_BLOCKED || from == to;
    default:
        return from == to;
    }
}

int moat_slot_set_state(struct moat_engine *e, const struct moat_ctl_state *st, char *err, size_t n)
{
    struct moat_slot *s = moat_slot_lock(e, st->vnic, err, n);
    struct moat_slot_rec *r;
    int rc = 0;

    if (!s)
        return -ENOENT;
    r = rec_of(e, s);
    if (!may_change(r->state, st->state)) {
        snprintf(err, n, "vNIC %s: a slot that is %s cannot become %s", st->vnic,
                 moat_slot_state_name(r->state), moat_slot_state_name(st->state));
        rc = -EINVAL;
        goto out;
    }
    if (st->epoch && st->epoch < r->epoch) {
        snprintf(err, n, "vNIC %s: epoch %llu is older than the slot's %llu", st->vnic,
                 (unsigned long long)st->epoch, (unsigned long long)r->epoch);
        rc = -ESTALE;
        goto out;
    }
    moat_slot_rec_begin(r);
    if (st->epoch)
        r->epoch = st->epoch;
    s->precopy_wanted = st->precopy;
    s->wait_ms = st->wait_ms;
    s->pickup_s = st->pickup_s;
    if (r->state == MOAT_SLOT_ARRIVING && st->state == MOAT_SLOT_ACTIVE) {
        if (s->port && s->port->running && !r->unplugged)
            open_slot(e, s, NULL);
        else
            s->ready = true;
        moat_slot_rec_commit(r);
        goto out;
    }
    if (st->state == MOAT_SLOT_ARRIVING && r->state != MOAT_SLOT_ARRIVING) {
        /* What is left here of an earlier stay is stale. */
        void_sessions(e, s);
        s->ready = s->hold_expired = false;
        s->hold_from_us = s->port && s->port->running ? now_us(e) : 0;
    }
    if (st->pickup_s && st->state != MOAT_SLOT_ENROLLING)
        r->pickup_until = (uint32_t)(moat_engine_now_ms(e) / 1000) + st->pickup_s;
    if (st->state != MOAT_SLOT_ARRIVING)
        s->ready = false;
    if (st->state == MOAT_SLOT_ENROLLING && (st->pickup_s || r->state != st->state)) {
        r->enroll_until = 0;
        s->enroll_s = 0;
        start_enrolling(e, s, st->pickup_s);
    }
    set_state(e, s, st->state);
    refresh(e, s);
    pthread_cond_broadcast(&e->handed_over);
out:
    pthread_mutex_unlock(&e->lock);
    return rc;
}

int moat_slot_publish(struct moat_engine *e, const char *vnic, const void *blob, size_t len,
                      char *err, size_t n)
{
    const struct moat_ruleset_head *old_head;
    struct moat_ruleset *fresh, *old;
    struct moat_slot_rec *r;
    struct moat_slot *s;
    uint32_t which;
    uint8_t *buf;
    bool differs;

    if (len > MOAT_RULESET_VNIC_MAX) {
        snprintf(err, n, "ruleset of %zu bytes, a slot has room for %u", len,
                 MOAT_RULESET_VNIC_MAX);
        return -E2BIG;
    }
    if (moat_ruleset_check(blob, len, err, n))
        return -EINVAL;
    s = moat_slot_lock(e, vnic, err, n);
    if (!s)
        return -ENOENT;
    r = rec_of(e, s);
    which = r->rules_index == 0 ? 1 : 0;
    buf = moat_mapping_ruleset(e->map, s->index, which);
    memcpy(buf, blob, len);
    fresh = moat_ruleset_create(buf);
    if (!fresh) {
        pthread_mutex_unlock(&e->lock);
        snprintf(err, n, "out of memory");
        return -ENOMEM;
    }
    old = s->rules;
    old_head = old ? moat_ruleset_head(old) : NULL;
    differs = !old_head || memcmp(old_head->digest, moat_ruleset_head(fresh)->digest, 16);
    moat_slot_rec_begin(r);
    if (differs)
        r->serial = r->serial + 1 ? r->serial + 1 : 1;
    s->rules = fresh;
    r->rules_len[which] = (uint32_t)len;
    r->rules_index = which;
    refresh(e, s);
    /* Others are judged again by their next packet; these must not wait for one. */
    if (differs && conf_of(r)->settings.quarantine)
        moat_sweep_start(e, s);
    moat_ruleset_destroy(old);
    pthread_mutex_unlock(&e->lock);
    return 0;
}

int moat_slot_flush(struct moat_engine *e, const char *vnic, char *err, size_t n)
{
    struct moat_slot *s = moat_slot_lock(e, vnic, err, n);

    if (!s)
        return -ENOENT;
    moat_slot_rec_begin(rec_of(e, s));
    void_sessions(e, s);
    refresh(e, s);
    pthread_mutex_unlock(&e->lock);
    return 0;
}

int moat_slot_handed_over(struct moat_engine *e, const char *vnic, char *err, size_t n)
{
    struct moat_slot *s = moat_slot_lock(e, vnic, err, n);

    if (!s)
        return -ENOENT;
    s->handed_over = true;
    pthread_cond_broadcast(&e->handed_over);
    pthread_mutex_unlock(&e->lock);
    return 0;
}

/* --- housekeeping and recovery --- */

static void end_hold(struct moat_engine *e, struct moat_slot *s, uint64_t now)
{
    const struct moat_slot_rec *r = rec_of(e, s);
    const struct moat_settings *c = &conf_of(r)->settings;
    uint64_t hold = (uint64_t)c->hold_ms * 1000;

    if (!s->hold_from_us)
        return;
    if (!s->hold_expired && now - s->hold_from_us >= hold) {
        s->hold_expired = true;
        post(e, MOAT_EV_HOLD_EXPIRED, s, NULL, c->hold_ms, NULL);
    }
    if (now - s->hold_from_us >= hold + SILENT_AGENT_MS * 1000 && !r->unplugged) {
        if (c->on_missing_state != MOAT_FAIL_BLOCK)
            s->pickup_s = c->pickup_s;
        open_slot(e, s, "the agent is silent: on-missing-state decided");
    }
}

static void end_enrolment(struct moat_engine *e, struct moat_slot *s, uint64_t now)
{
    const struct moat_slot_rec *r = rec_of(e, s);

    if (!r->enroll_until || now / 1000000 < r->enroll_until)
        return;
    set_state(e, s, MOAT_SLOT_ACTIVE);
    refresh(e, s);
    post(e, MOAT_EV_ENROLLED, s, NULL, (int64_t)(would_refuse(e, s) - s->enroll_base), NULL);
}

/* A packet thread has learnt an address: it becomes one of the slot's own. */
static void adopt_learnt(struct moat_engine *e, struct moat_slot *s)
{
    const struct moat_slot_rec *r = rec_of(e, s);
    unsigned learnt = 0;

    for (unsigned i = 0; i < 2; i++)
        learnt += __atomic_load_n(&r->learnt[i].state, __ATOMIC_ACQUIRE) == MOAT_LEARNT;
    if (conf_of(r)->settings.spoof != MOAT_SPOOF_LEARN || learnt == s->n_learnt)
        return;
    refresh(e, s);
    for (unsigned i = 0; i < 2; i++) {
        struct moat_event ev = {.type = MOAT_EV_LEARNT,
                                .flow.family = i ? MOAT_FAM_IP6 : MOAT_FAM_IP4};

        if (s->learnt_told[i] ||
            __atomic_load_n(&r->learnt[i].state, __ATOMIC_ACQUIRE) != MOAT_LEARNT)
            continue;
        s->learnt_told[i] = true;
        memcpy(ev.vnic, conf_of(r)->vnic, sizeof ev.vnic);
        memcpy(ev.path, conf_of(r)->path, sizeof ev.path);
        memcpy(ev.flow.local, r->learnt[i].addr, i ? 16 : 4);
        moat_event_post(&e->events, &ev, false);
    }
}

void moat_slots_turn(struct moat_engine *e)
{
    uint64_t now = now_us(e);

    pthread_mutex_lock(&e->lock);
    for (uint32_t i = 0; i < e->conf.n_slots; i++) {
        struct moat_slot *s = &e->slots[i];
        const struct moat_slot_rec *r = &e->map->slots[i];

        if (!r->used)
            continue;
        if (r->state == MOAT_SLOT_ARRIVING)
            end_hold(e, s, now);
        else if (r->state == MOAT_SLOT_ENROLLING)
            end_enrolment(e, s, now);
        adopt_learnt(e, s);
    }
    pthread_mutex_unlock(&e->lock);
}

static bool rec_sane(const struct moat_slot_rec *r)
{
    const struct moat_slot_conf *c = conf_of(r);
    char err[128];
    struct moat_slot_conf check = *c;

    check.state = MOAT_SLOT_ACTIVE;
    return memchr(c->vnic, 0, sizeof c->vnic) && memchr(c->vm, 0, sizeof c->vm) &&
           memchr(c->network, 0, sizeof c->network) && memchr(c->path, 0, sizeof c->path) &&
           r->state > MOAT_SLOT_FREE && r->state < MOAT_N_SLOT_STATES &&
           !check_conf(&check, err, sizeof err);
}

/* Said loudly by who made the engine: the first of them, and how many. */
static void damaged(struct moat_engine *e, uint32_t index, const char *what, const char *why)
{
    if (!e->n_damaged++)
        snprintf(e->damage, sizeof e->damage, "%s of slot %u: %s", what, index, why);
}

static void recover_rules(struct moat_engine *e, struct moat_slot *s, struct moat_slot_rec *r)
{
    char err[128] = "no ruleset buffer";
    const uint8_t *blob;

    if (r->rules_index == MOAT_NO_RULES)
        return;
    if (r->rules_index <= 1 && r->rules_len[r->rules_index] <= MOAT_RULESET_VNIC_MAX) {
        blob = moat_mapping_ruleset(e->map, s->index, r->rules_index);
        if (!moat_ruleset_check(blob, r->rules_len[r->rules_index], err, sizeof err))
            s->rules = moat_ruleset_create(blob);
    }
    if (!s->rules) {
        /* Damaged: nothing passes until the agent has published again. */
        r->rules_index = MOAT_NO_RULES;
        r->unplugged = 1;
        damaged(e, s->index, "the ruleset", err);
        post(e, MOAT_EV_REFUSED, s, NULL, 0, err);
    }
}

uint32_t moat_slots_recover(struct moat_engine *e)
{
    uint32_t n = 0, now_s = (uint32_t)(now_us(e) / 1000000);
    char err[128];

    for (uint32_t i = 0; i < e->conf.n_slots; i++) {
        struct moat_slot_rec *r = &e->map->slots[i];
        struct moat_slot *s = &e->slots[i];

        s->index = i;
        if (!moat_slot_rec_recover(r, err, sizeof err)) {
            damaged(e, i, "the record", err);
            e->conf.unclaimed = e->conf.on_damaged; /* one of those ports was this vNIC's */
            moat_slot_rec_clear(r);
            continue;
        }
        if (!r->used)
            continue;
        if (!rec_sane(r)) {
            damaged(e, i, "the record", "it has impossible values");
            e->conf.unclaimed = e->conf.on_damaged;
            moat_slot_rec_clear(r);
            continue;
        }
        moat_slot_rec_begin(r);
        recover_rules(e, s, r);
        if (r->enroll_until > now_s + MOAT_ENROLL_MAX)
            r->enroll_until = now_s; /* ends with the next turn */
        if (r->pickup_until > now_s + MOAT_PICKUP_MAX)
            r->pickup_until = 0;
        for (unsigned k = 0; k < 2; k++) {
            if (r->learnt[k].state != MOAT_LEARNT) /* a crash while it was written */
                r->learnt[k].state = MOAT_LEARNT_NOTHING;
            s->learnt_told[k] = r->learnt[k].state == MOAT_LEARNT;
        }
        refresh(e, s);
        if (conf_of(r)->settings.quarantine)
            moat_sweep_start(e, s);
        n++;
    }
    return n;
}
