/* SPDX-License-Identifier: Apache-2.0 */

/* An event first changes what we know (take_event), then settle() compares what
 * we know with where we are.  settle() is level-triggered: called twice with the
 * same facts it does nothing new, but for retries when their time has come.
 *
 * Here: the way into the machine, and what both of its sides need.  The states of
 * a holder are in migrate_source.c, those of a newcomer in migrate_destination.c. */

#include "migrate.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "migrate_private.h"

void mig_init(struct mig *m)
{
    memset(m, 0, sizeof *m);
}

const char *mig_state_name(enum mig_state s)
{
    static const char *const names[] = {"idle",    "holding", "feeding", "frozen",
                                        "gone",    "taking-back", "waiting",
                                        "asked",   "filling", "committed"};
    _Static_assert(sizeof names / sizeof *names == MIG_N_STATES, "a name for each state");

    return (unsigned)s < MIG_N_STATES ? names[s] : "?";
}

/* --- actions --------------------------------------------------------------------- */

struct mig_action *mig_act(struct mig_out *out, enum mig_do what)
{
    assert(out->n < MIG_MAX_ACTIONS);
    struct mig_action *a = &out->a[out->n++];
    memset(a, 0, sizeof *a);
    a->what = what;
    return a;
}

void mig_set_state(struct mig_out *out, enum moat_slot_state state, uint64_t epoch)
{
    struct mig_action *a = mig_act(out, MIG_DO_STATE);
    a->state = (uint8_t)state;
    a->epoch = epoch;
}

struct mig_action *mig_send(struct mig_out *out, enum wire_type frame, uint64_t epoch)
{
    struct mig_action *a = mig_act(out, MIG_DO_SEND);
    a->frame = (uint16_t)frame;
    a->epoch = epoch;
    return a;
}

void mig_send_refuse(struct mig_out *out, enum mig_refuse code, const char *text)
{
    struct mig_action *a = mig_send(out, WIRE_REFUSE, 0);
    a->flags = (uint16_t)code;
    a->text = text;
}

void mig_say(struct mig_out *out, enum mig_do what, const char *text)
{
    mig_act(out, what)->text = text;
}

void mig_precopy(struct mig_out *out, bool on)
{
    mig_act(out, MIG_DO_PRECOPY)->ok = on;
}

void mig_enter(struct mig *m, enum mig_state state, long long now)
{
    m->state = state;
    m->since = now;
    m->told = m->wrote = false;
    m->both_since = 0;
    if (state != MIG_FROZEN && state != MIG_TAKING_BACK)
        m->offered = false;
    if (state != MIG_GONE)
        m->fresh = false;
}

void mig_set_peer(struct mig *m, const char *host)
{
    snprintf(m->peer, sizeof m->peer, "%s", host);
}

void mig_disconnect(struct mig *m, struct mig_out *out)
{
    if (m->link)
        mig_act(out, MIG_DO_DISCONNECT);
    m->link = false;
}

void mig_write_holder(struct mig *m, struct mig_out *out, uint64_t epoch)
{
    if (!m->wrote)
        mig_act(out, MIG_DO_WRITE_HOLDER)->epoch = epoch;
    m->wrote = true;
}

void mig_claim(struct mig *m, enum moat_slot_state state, struct mig_out *out)
{
    struct mig_action *a = mig_act(out, MIG_DO_CLAIM);
    a->state = (uint8_t)state;
    a->epoch = m->epoch;
}

/* Asks the database for a vNIC that nobody holds. */
void mig_take(struct mig *m, long long now, struct mig_out *out)
{
    mig_act(out, MIG_DO_TAKE);
    m->first = m->f.db_epoch == 0;
    m->retry_at = now + RETRY_SLOW_MS;
}

/* --- what is so ------------------------------------------------------------------ */

bool mig_is_open(const struct mig *m)
{
    return m->f.slot_state == MOAT_SLOT_ACTIVE || m->f.slot_state == MOAT_SLOT_ENROLLING;
}

/* Another holder in between has given it a firewall: its epoch is above ours. */
enum moat_slot_state mig_open_as(const struct mig *m)
{
    return m->first && m->f.holder == MIG_DB_SELF && m->f.db_epoch == 1 ? MOAT_SLOT_ENROLLING
                                                                         : MOAT_SLOT_ACTIVE;
}

/* The slot passes nothing and will not by itself. */
bool mig_is_shut(const struct mig *m)
{
    return m->f.slot_state == MOAT_SLOT_FROZEN || m->f.slot_state == MOAT_SLOT_BLOCKED ||
           m->f.slot_state == MOAT_SLOT_DEPARTED;
}

/* The database has given the vNIC to another host since we last had it.  The same
 * epoch on two hosts means that one opened while it could reach nobody: the
 * database has the last word then, too. */
bool mig_lost_it(const struct mig *m)
{
    return m->f.holder == MIG_DB_OTHER && m->f.db_epoch >= m->epoch;
}

/* --- changes of state that several paths share ----------------------------------- */

void mig_hold(struct mig *m, uint64_t epoch, long long now)
{
    m->epoch = epoch;
    m->orphan = false;
    mig_enter(m, MIG_HOLDING, now);
}

/* Keeps what is known about the hold: it goes on. */
void mig_wait_for(struct mig *m, long long retry_at, long long now)
{
    m->fenced = m->start_sent = m->started = false;
    m->retry_at = retry_at;
    mig_enter(m, MIG_WAITING, now);
}

void mig_release(struct mig *m, long long now, struct mig_out *out)
{
    mig_disconnect(m, out);
    mig_act(out, MIG_DO_RELEASE);
    mig_init(m); /* the facts too: they come again with the next event */
    m->since = now;
}

/* --- settle: where we are against what is so ------------------------------------- */

/* A slot is there and we remember nothing: the agent has just started. */
static void derive(struct mig *m, long long now)
{
    const struct mig_facts *f = &m->f;

    m->epoch = f->slot_epoch;
    m->offer = f->slot_epoch + 1;
    if (f->holder == MIG_DB_OTHER)
        mig_set_peer(m, f->db_host);
    switch (f->slot_state) {
    case MOAT_SLOT_BLOCKED:
        /* Plugged again, shut while arriving, or stopped by hand at the source. */
        if (f->holder == MIG_DB_UNKNOWN && !f->db_given_up)
            return;
        if (f->holder == MIG_DB_SELF || f->db_epoch < f->slot_epoch) {
            mig_enter(m, MIG_HOLDING, now);
            m->wary = true;
        } else {
            mig_wait_for(m, now, now);
        }
        break;
    case MOAT_SLOT_ARRIVING:
        if (f->ready)
            mig_enter(m, MIG_COMMITTED, now);
        else
            mig_wait_for(m, now, now);
        break;
    case MOAT_SLOT_FROZEN:
        mig_enter(m, MIG_FROZEN, now);
        m->offered = true; /* perhaps: so be careful */
        break;
    case MOAT_SLOT_DEPARTED:
        m->offer = f->slot_epoch;
        mig_enter(m, MIG_GONE, now);
        break;
    default:
        mig_enter(m, MIG_HOLDING, now);
        m->orphan = f->slot_epoch == 0;
    }
}

static void settle_idle(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (f->slot) {
        derive(m, now);
        return;
    }
    if (!f->port)
        return;
    switch (f->holder) {
    case MIG_DB_UNKNOWN:
        if (!f->db_given_up)
            break;
        /* fall through */
    case MIG_DB_NO_VNIC:
        mig_act(out, MIG_DO_CLAIM_ORPHAN);
        mig_hold(m, 0, now);
        m->orphan = true;
        break;
    case MIG_DB_NONE:
        if (f->db_up && now >= m->retry_at) {
            mig_take(m, now, out);
        } else if (!f->db_up && f->db_given_up) {
            m->epoch = f->db_epoch + 1;
            mig_claim(m, MOAT_SLOT_ACTIVE, out);
            mig_hold(m, m->epoch, now);
            mig_write_holder(m, out, m->epoch);
        }
        break;
    case MIG_DB_SELF:
        m->epoch = f->db_epoch;
        mig_claim(m, mig_open_as(m), out);
        mig_hold(m, m->epoch, now);
        break;
    case MIG_DB_OTHER:
        m->first = false;
        m->epoch = f->db_epoch;
        mig_set_peer(m, f->db_host);
        mig_claim(m, MOAT_SLOT_ARRIVING, out);
        mig_wait_for(m, now, now);
        break;
    }
}

static void settle(struct mig *m, long long now, struct mig_out *out)
{
    /* Without the engine nothing can be done about a slot; without a slot there
     * is only one place to be. */
    if (!m->f.engine)
        return;
    if (!m->f.slot && m->state != MIG_IDLE) {
        bool link = m->link;
        if (m->state == MIG_FEEDING || m->state == MIG_FROZEN)
            mig_act(out, MIG_DO_FEED_STOP);
        if (link)
            mig_act(out, MIG_DO_DISCONNECT);
        struct mig_facts f = m->f;
        bool first = m->first; /* the claim was refused, and will be tried again */
        mig_init(m);
        m->f = f;
        m->first = first;
        m->since = now;
    }
    switch (m->state) {
    case MIG_IDLE:
        settle_idle(m, now, out);
        break;
    case MIG_HOLDING:
    case MIG_FEEDING:
    case MIG_FROZEN:
    case MIG_GONE:
    case MIG_TAKING_BACK:
        mig_settle_source(m, now, out);
        break;
    case MIG_WAITING:
    case MIG_ASKED:
    case MIG_FILLING:
    case MIG_COMMITTED:
        mig_settle_destination(m, now, out);
        break;
    case MIG_N_STATES:
        break;
    }
}

/* --- events ---------------------------------------------------------------------- */

static void on_link_down(struct mig *m, long long now, struct mig_out *out)
{
    m->link = false;
    m->remote_running = false;
    switch (m->state) {
    case MIG_FEEDING:
        mig_stop_feeding(m, out, now);
        break;
    case MIG_FROZEN:
        mig_act(out, MIG_DO_FEED_STOP);
        break;
    case MIG_ASKED:
    case MIG_FILLING:
        m->tried = true;
        mig_wait_for(m, now + RETRY_FAST_MS, now);
        break;
    case MIG_WAITING:
        m->tried = true;
        m->retry_at = now + RETRY_FAST_MS;
        break;
    case MIG_COMMITTED:
    case MIG_HOLDING:
        m->retry_at = now + RETRY_FAST_MS;
        break;
    default:
        break;
    }
}

static void take_event(struct mig *m, const struct mig_event *ev, long long now,
                       struct mig_out *out)
{
    switch (ev->type) {
    case MIG_EV_FACTS:
        break;
    case MIG_EV_CONNECTED:
        m->fresh = true;
        break;
    case MIG_EV_PRECOPY_OFF:
        if (m->state == MIG_FEEDING && m->f.running && mig_is_open(m)) {
            mig_send(out, WIRE_CANCEL, 0)->text = "the migration was cancelled";
            mig_stop_feeding(m, out, now);
        }
        break;
    case MIG_EV_HOLD_EXPIRED:
        if (!m->expired &&
            (m->state == MIG_WAITING || m->state == MIG_ASKED || m->state == MIG_FILLING)) {
            m->expired = true;
            m->expired_at = now;
        }
        break;
    case MIG_EV_LINK_DOWN:
        on_link_down(m, now, out);
        break;
    case MIG_EV_REQUEST:
    case MIG_EV_START:
    case MIG_EV_STOP:
    case MIG_EV_STARTED:
    case MIG_EV_FINAL_ACK:
    case MIG_EV_OPENED:
    case MIG_EV_TAKEN_BACK:
        mig_source_event(m, ev, now, out);
        break;
    default:
        mig_destination_event(m, ev, now, out);
    }
}

void mig_step(struct mig *m, const struct mig_event *ev, long long now, struct mig_out *out)
{
    out->n = 0;
    if (ev->facts)
        m->f = *ev->facts;
    if (m->state == MIG_GONE && !m->f.connected && m->f.engine)
        m->fresh = true; /* whoever connects next is not the QEMU that left */
    if (m->f.engine && !m->f.running)
        m->expired = false;
    take_event(m, ev, now, out);
    if (ev->type == MIG_EV_FACTS || ev->type == MIG_EV_HOLD_EXPIRED ||
        ev->type == MIG_EV_CONNECTED || ev->type == MIG_EV_POLICY || ev->type == MIG_EV_STARTED)
        settle(m, now, out);
}

long long mig_wake_at(const struct mig *m)
{
    switch (m->state) {
    case MIG_IDLE:
        return m->f.port && m->f.db_up && m->f.holder == MIG_DB_NONE ? m->retry_at : LLONG_MAX;
    case MIG_HOLDING:
        if (m->orphan)
            return m->f.db_up && m->f.holder == MIG_DB_NONE ? m->retry_at : LLONG_MAX;
        return !m->done && m->tell_until && !m->link ? m->retry_at : LLONG_MAX;
    case MIG_WAITING:
    case MIG_ASKED:
    case MIG_FILLING:
        if (m->expired && !m->shut && m->f.running)
            return m->expired_at + SHUT_MS;
        return m->state == MIG_WAITING && (m->f.permitted || m->f.holder != MIG_DB_OTHER)
                   ? m->retry_at
                   : LLONG_MAX;
    case MIG_COMMITTED:
        return m->f.ready && (m->link || m->done) ? LLONG_MAX : m->retry_at;
    case MIG_TAKING_BACK:
        return m->told ? LLONG_MAX : m->since + TAKE_BACK_ALONE_MS;
    case MIG_FEEDING:
        return m->both_since ? m->both_since + BOTH_RUN_MS : LLONG_MAX;
    default:
        return LLONG_MAX;
    }
}
