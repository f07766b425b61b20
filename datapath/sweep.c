/* SPDX-License-Identifier: Apache-2.0 */

/* One position for all slots: a slot that is added while a sweep runs makes it go round once
 * more from where it is.  Sessions may be opened meanwhile; they are of the new ruleset. */

#include "sweep.h"

#include <string.h>

#include "engine.h"
#include "rejudge.h"
#include "slot.h"

#define TURNS 8
#define AT_ONCE 32768 /* sessions, with the lock held */

void moat_sweep_start(struct moat_engine *e, struct moat_slot *s)
{
    s->sweep = true;
    s->swept = 0;
    __atomic_store_n(&e->sweep_left, moat_session_table_size(e->sessions), __ATOMIC_RELEASE);
}

static void look_at(struct moat_engine *e, struct moat_thread *self, struct moat_session *s)
{
    uint32_t tag = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE);
    uint32_t index = (tag & 0xfff) - 1;
    const struct moat_view *v;

    if (!tag || index >= e->conf.n_slots || !e->slots[index].sweep)
        return;
    v = __atomic_load_n(&e->slots[index].view, __ATOMIC_ACQUIRE);
    if (v && v->tag == tag && v->rules &&
        !(__atomic_load_n(&s->flags, __ATOMIC_RELAXED) & MOAT_SES_F_CUT) &&
        moat_session_is_stale(v, s) &&
        !moat_rejudge(e->sessions, v, moat_thread_counters(self, index), s))
        e->slots[index].swept++;
}

static void finish(struct moat_engine *e)
{
    for (uint32_t i = 0; i < e->conf.n_slots; i++) {
        const struct moat_slot_rec *r = &e->map->slots[i];
        struct moat_event ev = {.type = MOAT_EV_CUT, .value = e->slots[i].swept};

        if (!e->slots[i].sweep)
            continue;
        e->slots[i].sweep = false;
        memcpy(ev.vnic, r->conf[r->conf_index & 1].vnic, sizeof ev.vnic);
        moat_event_post(&e->events, &ev, false);
    }
}

/* Up to n sessions, with the lock; false: that was the last of them. */
static bool sweep_some(struct moat_engine *e, struct moat_thread *self, uint32_t n)
{
    uint32_t size = moat_session_table_size(e->sessions);
    bool more;

    pthread_mutex_lock(&e->lock);
    moat_qsbr_enter(&e->qsbr, self->reader);
    for (; n && e->sweep_left; n--, e->sweep_left--) {
        look_at(e, self, moat_session_at(e->sessions, e->sweep_next));
        e->sweep_next = e->sweep_next + 1 < size ? e->sweep_next + 1 : 0;
    }
    moat_qsbr_leave(self->reader);
    more = e->sweep_left;
    if (!more)
        finish(e);
    pthread_mutex_unlock(&e->lock);
    return more;
}

void moat_sweep_turn(struct moat_engine *e, struct moat_thread *self)
{
    uint32_t left = (moat_session_table_size(e->sessions) + TURNS - 1) / TURNS;

    if (!__atomic_load_n(&e->sweep_left, __ATOMIC_ACQUIRE))
        return;
    while (left) {
        uint32_t n = left < AT_ONCE ? left : AT_ONCE;

        left -= n;
        if (!sweep_some(e, self, n))
            return;
    }
}
