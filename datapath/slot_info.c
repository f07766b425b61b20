/* SPDX-License-Identifier: Apache-2.0 */

/* What others get to see of slots and ports. */

#include "slot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "mapping.h"
#include "ruleset.h"
#include "slot_private.h"

bool moat_port_info(struct moat_engine *e, uint32_t index, struct moat_port_info *out)
{
    bool ok = false;

    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&e->lock);
    if (index < e->n_ports) {
        const struct moat_port *p = e->ports[index];

        memcpy(out->path, p->path, sizeof out->path);
        out->connected = p->connected;
        out->running = p->running;
        out->replugged = p->replugged;
        out->claimed = p->slot && !rec_of(e, p->slot)->unplugged;
        if (p->slot)
            memcpy(out->vnic, conf_of(rec_of(e, p->slot))->vnic, sizeof out->vnic);
        ok = true;
    }
    pthread_mutex_unlock(&e->lock);
    return ok;
}

bool moat_slot_info(struct moat_engine *e, uint32_t index, struct moat_slot_info *out)
{
    const struct moat_slot_rec *r;
    const struct moat_slot *s;
    bool used;

    memset(out, 0, sizeof *out);
    if (index >= e->conf.n_slots)
        return false;
    pthread_mutex_lock(&e->lock);
    r = &e->map->slots[index];
    s = &e->slots[index];
    used = r->used;
    if (used) {
        out->conf = *conf_of(r);
        out->conf.epoch = r->epoch;
        out->state = s->view->state;
        out->ready = s->ready;
        out->has_port = s->port != NULL;
        if (s->port) {
            out->connected = s->port->connected;
            out->running = s->port->running;
            out->precopy = s->port->logging;
        }
        out->index = index;
        out->sessions = __atomic_load_n(&s->sessions, __ATOMIC_RELAXED);
        out->half_open = __atomic_load_n(&s->half_open, __ATOMIC_RELAXED);
        if (r->state == MOAT_SLOT_ENROLLING && r->enroll_until > now_us(e) / 1000000)
            out->enroll_left_s = r->enroll_until - (uint32_t)(now_us(e) / 1000000);
        out->n_learnt = s->n_learnt;
        for (unsigned i = 0; i < s->n_learnt; i++)
            out->learnt[i] = s->view->addrs[s->view->n_addrs - s->n_learnt + i];
        out->serial = r->serial;
        if (s->rules) {
            const struct moat_ruleset_head *h = moat_ruleset_head(s->rules);

            out->has_ruleset = 1;
            out->n_rules = moat_ruleset_body(h)->n_rules;
            out->generation = h->generation;
            memcpy(out->digest, h->digest, sizeof out->digest);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return used;
}

void *moat_slot_ruleset(struct moat_engine *e, const char *vnic, size_t *len)
{
    char err[128];
    struct moat_slot *s = moat_slot_lock(e, vnic, err, sizeof err);
    void *copy = NULL;

    if (!s) {
        errno = ENOENT;
        return NULL;
    }
    if (!s->rules) {
        errno = ENODATA;
    } else {
        const struct moat_ruleset_head *h = moat_ruleset_head(s->rules);

        copy = malloc(h->size);
        if (copy) {
            memcpy(copy, h, h->size);
            *len = h->size;
        }
    }
    pthread_mutex_unlock(&e->lock);
    return copy;
}

int moat_slot_hits(struct moat_engine *e, const char *vnic, uint32_t first, uint32_t max,
                   struct moat_rule_hit *out, uint32_t *next)
{
    char err[128];
    struct moat_slot *s = moat_slot_lock(e, vnic, err, sizeof err);
    int n = 0;

    *next = 0;
    if (!s)
        return -ENOENT;
    if (s->rules) {
        const struct moat_ruleset_head *h = moat_ruleset_head(s->rules);
        uint32_t n_rules = moat_ruleset_body(h)->n_rules;
        const struct moat_rule *rules = moat_ruleset_at(h, moat_ruleset_body(h)->rules_off);
        uint64_t *hits = moat_ruleset_hits(s->rules);

        for (uint32_t i = first; i <= n_rules; i++) {
            if ((uint32_t)n == max) {
                *next = i;
                break;
            }
            out[n].rule = i < n_rules ? rules[i].id : 0;
            out[n].pad = 0;
            out[n++].hits = __atomic_load_n(&hits[i], __ATOMIC_RELAXED);
        }
    }
    pthread_mutex_unlock(&e->lock);
    return n;
}
