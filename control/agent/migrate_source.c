/* SPDX-License-Identifier: Apache-2.0 */

/* The holder's side: HOLDING, FEEDING, FROZEN, GONE, TAKING_BACK. */

#include <string.h>

#include "migrate_private.h"
#include "wire.h"

/* --- changes of state that several paths share ----------------------------------- */

/* We are the holder again, after an offer that came to nothing. */
static void come_back(struct mig *m, uint64_t epoch, long long now, struct mig_out *out)
{
    mig_set_state(out, MOAT_SLOT_ACTIVE, epoch);
    mig_hold(m, epoch, now);
    mig_write_holder(m, out, epoch);
    m->remote_running = false;
}

static void depart(struct mig *m, uint64_t epoch, const char *host, long long now,
                   struct mig_out *out)
{
    mig_set_state(out, MOAT_SLOT_DEPARTED, epoch);
    m->epoch = epoch;
    if (host)
        mig_set_peer(m, host);
    mig_enter(m, MIG_GONE, now);
}

void mig_stop_feeding(struct mig *m, struct mig_out *out, long long now)
{
    mig_act(out, MIG_DO_FEED_STOP);
    mig_precopy(out, false);
    mig_enter(m, MIG_HOLDING, now);
}

static void take_back(struct mig *m, long long now, struct mig_out *out)
{
    mig_enter(m, MIG_TAKING_BACK, now);
    mig_act(out, MIG_DO_FEED_STOP);
    if (m->link)
        mig_send(out, WIRE_TAKE_BACK, m->offer);
}

/* What went away comes (back) as any vNIC comes that another host holds. */
static void arrive(struct mig *m, long long now, struct mig_out *out)
{
    mig_disconnect(m, out);
    mig_act(out, MIG_DO_FLUSH);
    mig_claim(m, MOAT_SLOT_ARRIVING, out);
    mig_set_state(out, MOAT_SLOT_ARRIVING, 0);
    m->denied = m->expired = m->shut = m->done = false;
    mig_wait_for(m, now, now);
}

/* It resumed here after the other host had opened: who runs it now is for the other
 * one to say; it refuses if the VM runs there. */
static void come_late(struct mig *m, long long now, struct mig_out *out)
{
    mig_say(out, MIG_DO_ALARM, "the VM resumed here after the other host had opened");
    if (m->epoch < m->offer)
        m->epoch = m->offer;
    mig_set_state(out, MOAT_SLOT_BLOCKED, m->epoch);
    arrive(m, now, out);
}

/* --- settle ---------------------------------------------------------------------- */

static void settle_holding(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (m->orphan && f->holder >= MIG_DB_NONE) {
        /* The database has spoken at last. */
        if (f->holder == MIG_DB_NONE) {
            if (f->db_up && now >= m->retry_at)
                mig_take(m, now, out);
            return;
        }
        if (f->holder == MIG_DB_SELF) {
            enum moat_slot_state open = mig_open_as(m);
            mig_claim(m, open, out);
            mig_hold(m, f->db_epoch, now);
            if (open == MOAT_SLOT_ACTIVE)
                mig_set_state(out, MOAT_SLOT_ACTIVE, f->db_epoch);
            return;
        }
        /* Another host has it: ask for it as any arriving vNIC does. */
        m->orphan = m->first = false;
        m->epoch = f->db_epoch;
        mig_set_peer(m, f->db_host);
        mig_set_state(out, MOAT_SLOT_ARRIVING, 0);
        mig_wait_for(m, now, now);
        return;
    }
    if (mig_lost_it(m)) {
        if (f->running && mig_is_open(m))
            mig_say(out, MIG_DO_ALARM,
                    "the database gave this vNIC to another host while it runs here");
        mig_disconnect(m, out);
        depart(m, f->db_epoch, f->db_host, now, out);
        return;
    }
    if (f->holder == MIG_DB_NO_VNIC && !m->orphan) {
        mig_say(out, MIG_DO_NOTICE, "the VM is no longer in the database");
        mig_release(m, now, out);
        return;
    }
    if (m->orphan) {
        if (!f->port)
            mig_release(m, now, out);
        else if (f->slot_state == MOAT_SLOT_BLOCKED) {
            mig_act(out, MIG_DO_CLAIM_ORPHAN);
        }
        return;
    }
    if (f->holder == MIG_DB_SELF && f->db_epoch > m->epoch)
        m->epoch = f->db_epoch;
    if (f->slot_state == MOAT_SLOT_FROZEN) {
        /* It froze while the destination was just being lost. */
        m->offer = m->epoch + 1;
        mig_act(out, MIG_DO_FEED_STOP);
        mig_enter(m, MIG_FROZEN, now);
        if (!f->running && !m->link)
            mig_act(out, MIG_DO_HANDED_OVER); /* nobody to wait for */
        return;
    }
    if (f->slot_state == MOAT_SLOT_BLOCKED && f->port) {
        if (!m->wary || f->running)
            mig_claim(m, mig_open_as(m), out); /* plugged again, or not opened yet */
        return;
    }
    m->wary = false;
    if (mig_is_open(m))
        m->first = false;
    else if (f->slot_state != MOAT_SLOT_BLOCKED)
        mig_set_state(out, MOAT_SLOT_ACTIVE, m->epoch);
    if ((f->holder == MIG_DB_OTHER && f->db_epoch < m->epoch) || f->holder == MIG_DB_NONE ||
        (f->holder == MIG_DB_SELF && f->db_epoch < m->epoch))
        mig_write_holder(m, out, m->epoch);
    /* An opened destination whose source does not know yet. */
    if (!m->done && m->tell_until) {
        if (now >= m->tell_until)
            m->tell_until = 0;
        else if (!m->link && now >= m->retry_at && m->peer[0]) {
            mig_act(out, MIG_DO_CONNECT);
            m->retry_at = now + RETRY_SLOW_MS;
        }
    }
}

static void settle_feeding(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (mig_lost_it(m)) {
        mig_act(out, MIG_DO_FEED_STOP);
        mig_precopy(out, false);
        mig_disconnect(m, out);
        depart(m, f->db_epoch, f->db_host, now, out);
        return;
    }
    if (mig_is_shut(m)) {
        m->offer = m->epoch + 1;
        mig_send(out, WIRE_FENCED, m->offer);
        mig_act(out, MIG_DO_FEED_FINAL);
        mig_enter(m, MIG_FROZEN, now);
        m->offered = true;
        return;
    }
    /* The rings stopped before we could say that a destination is being fed: freeze
     * by hand, once it is sure that this is no reboot of the guest. */
    if (!f->running && (m->remote_running || !f->connected) && mig_is_open(m)) {
        mig_set_state(out, MOAT_SLOT_BLOCKED, 0);
        return;
    }
    if (f->running && m->remote_running) {
        if (!m->both_since)
            m->both_since = now;
        if (now - m->both_since >= BOTH_RUN_MS) {
            mig_say(out, MIG_DO_ALARM, "the VM seems to run on two hosts; the newcomer is refused");
            mig_send_refuse(out, MIG_REFUSE_DENIED, "the VM runs on the host that holds it");
            mig_stop_feeding(m, out, now);
            m->remote_running = false;
        }
    } else {
        m->both_since = 0;
    }
}

static void settle_frozen(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (mig_lost_it(m)) {
        mig_act(out, MIG_DO_FEED_STOP);
        mig_act(out, MIG_DO_HANDED_OVER);
        depart(m, f->db_epoch, f->db_host, now, out);
    } else if (f->holder == MIG_DB_NO_VNIC && !f->port) {
        mig_release(m, now, out);
    } else if (mig_is_open(m)) {
        mig_enter(m, MIG_HOLDING, now);
    } else if (f->running && !m->offered) {
        mig_act(out, MIG_DO_FEED_STOP);
        mig_precopy(out, false);
        if (m->link)
            mig_send(out, WIRE_CANCEL, 0)->text = "the VM resumed at the source";
        mig_set_state(out, MOAT_SLOT_ACTIVE, m->epoch);
        mig_enter(m, MIG_HOLDING, now);
    } else if (f->running) {
        mig_precopy(out, false);
        take_back(m, now, out);
    }
}

static void settle_gone(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (f->holder == MIG_DB_SELF && f->db_epoch > m->epoch) {
        mig_claim(m, MOAT_SLOT_ACTIVE, out);
        mig_set_state(out, MOAT_SLOT_ACTIVE, f->db_epoch);
        mig_hold(m, f->db_epoch, now);
        return;
    }
    if (f->holder == MIG_DB_OTHER && f->db_epoch >= m->epoch) {
        m->epoch = f->db_epoch;
        mig_set_peer(m, f->db_host);
    }
    if (!f->port) {
        if ((f->holder == MIG_DB_OTHER && f->db_epoch >= m->epoch) ||
            f->holder == MIG_DB_NO_VNIC)
            mig_release(m, now, out);
        return;
    }
    if ((m->fresh && f->connected) ||
        (f->running && f->holder == MIG_DB_OTHER && f->db_epoch >= m->epoch)) {
        arrive(m, now, out);
    } else if (f->running) {
        m->offer = m->epoch;
        take_back(m, now, out);
    }
}

static void settle_taking_back(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;
    uint64_t target = m->offer + 1;

    if (f->holder == MIG_DB_SELF && f->db_epoch == target) {
        come_back(m, target, now, out);
        return;
    }
    if (f->holder == MIG_DB_OTHER && f->db_epoch >= m->offer) {
        m->epoch = f->db_epoch;
        mig_set_peer(m, f->db_host);
        come_late(m, now, out);
        return;
    }
    if (!f->running) {
        bool was_offered = m->offered;
        mig_enter(m, f->slot_state == MOAT_SLOT_DEPARTED ? MIG_GONE : MIG_FROZEN, now);
        m->offered = m->state == MIG_FROZEN && was_offered;
        return;
    }
    if (!m->link && now - m->since >= TAKE_BACK_ALONE_MS) {
        if (!m->told)
            mig_say(out, MIG_DO_ALARM,
                    "the VM resumed here and the host it was offered to is silent: asking the "
                    "database");
        m->told = true;
        if (f->db_up)
            mig_write_holder(m, out, target);
    }
}

void mig_settle_source(struct mig *m, long long now, struct mig_out *out)
{
    switch (m->state) {
    case MIG_HOLDING:
        settle_holding(m, now, out);
        break;
    case MIG_FEEDING:
        settle_feeding(m, now, out);
        break;
    case MIG_FROZEN:
        settle_frozen(m, now, out);
        break;
    case MIG_GONE:
        settle_gone(m, now, out);
        break;
    case MIG_TAKING_BACK:
        settle_taking_back(m, now, out);
        break;
    default:
        break;
    }
}

/* --- frames of the destination --------------------------------------------------- */

bool mig_may_ask(const struct mig *m, const char *host, bool permitted, enum mig_refuse *code,
                 const char **why)
{
    bool same = !strcmp(m->peer, host);

    *code = MIG_REFUSE_DENIED;
    *why = NULL;
    switch (m->state) {
    case MIG_HOLDING:
    case MIG_FEEDING:
    case MIG_FROZEN:
    case MIG_GONE:
    case MIG_TAKING_BACK:
        if (!m->orphan)
            break;
        /* fall through */
    default:
        *code = MIG_REFUSE_NOT_HERE;
        *why = "this host does not hold the vNIC";
        return false;
    }
    if (!permitted)
        *why = "the database does not permit the VM on that host";
    else if (!same && m->peer[0] && (m->state == MIG_FEEDING || m->offered))
        *why = "the vNIC is being handed over to another host";
    else if (!same && (m->state == MIG_GONE || m->state == MIG_TAKING_BACK))
        *why = "the vNIC was handed over to another host";
    return !*why;
}

/* The destination says that it has everything of epoch ev->epoch. */
static void on_committed_request(struct mig *m, const struct mig_event *ev, long long now,
                                 struct mig_out *out)
{
    switch (m->state) {
    case MIG_FROZEN:
        if (ev->epoch == m->offer) {
            mig_act(out, MIG_DO_FEED_STOP);
            mig_act(out, MIG_DO_HANDED_OVER);
            depart(m, ev->epoch, ev->host, now, out);
            mig_send(out, WIRE_DONE, 0);
        }
        break;
    case MIG_GONE:
        mig_send(out, WIRE_DONE, 0);
        break;
    case MIG_TAKING_BACK:
        mig_send(out, WIRE_TAKE_BACK, m->offer);
        break;
    case MIG_HOLDING:
    case MIG_FEEDING:
        if (m->epoch >= ev->epoch || m->f.running) {
            mig_send(out, WIRE_TAKE_BACK, ev->epoch);
        } else {
            depart(m, ev->epoch, ev->host, now, out);
            mig_send(out, WIRE_DONE, 0);
        }
        break;
    default:
        mig_send_refuse(out, MIG_REFUSE_NOT_HERE, "not the source of this vNIC");
        m->link = false;
    }
}

static void on_request(struct mig *m, const struct mig_event *ev, long long now,
                       struct mig_out *out)
{
    enum mig_refuse code;
    const char *why;

    if (!mig_may_ask(m, ev->host, ev->ok, &code, &why)) {
        mig_send_refuse(out, code, why);
        return;
    }
    if (m->state == MIG_FEEDING)
        mig_stop_feeding(m, out, now); /* a new connection in place of the old one */
    else if (m->state == MIG_FROZEN)
        mig_act(out, MIG_DO_FEED_STOP);
    m->link = true;
    m->remote_running = ev->flags & WIRE_REQ_RUNNING;
    if (ev->flags & WIRE_REQ_COMMITTED) {
        on_committed_request(m, ev, now, out);
        return;
    }
    switch (m->state) {
    case MIG_HOLDING:
    case MIG_FROZEN:
        mig_set_peer(m, ev->host);
        m->tell_until = 0;
        mig_send(out, WIRE_POLICY, m->epoch);
        break;
    case MIG_TAKING_BACK: /* it has lost what it had: nothing to be given back */
        come_back(m, m->offer + 1, now, out);
        mig_send(out, WIRE_POLICY, m->epoch);
        break;
    default:
        mig_send_refuse(out, MIG_REFUSE_NOT_HERE, "the vNIC was handed over");
        m->link = false;
    }
}

static void on_start(struct mig *m, long long now, struct mig_out *out)
{
    if (m->state == MIG_HOLDING && m->link) {
        mig_precopy(out, true);
        mig_act(out, MIG_DO_FEED_START);
        mig_enter(m, MIG_FEEDING, now);
    } else if (m->state == MIG_FROZEN && m->link) {
        mig_act(out, MIG_DO_FEED_START);
        mig_send(out, WIRE_FENCED, m->offer);
        mig_act(out, MIG_DO_FEED_FINAL);
        m->offered = true;
    }
}

void mig_source_event(struct mig *m, const struct mig_event *ev, long long now,
                      struct mig_out *out)
{
    switch (ev->type) {
    case MIG_EV_REQUEST:
        on_request(m, ev, now, out);
        break;
    case MIG_EV_START:
        on_start(m, now, out);
        break;
    case MIG_EV_STOP:
        if (m->state == MIG_FEEDING)
            mig_stop_feeding(m, out, now);
        break;
    case MIG_EV_STARTED:
        m->remote_running = true;
        break;
    case MIG_EV_FINAL_ACK:
        if (m->state == MIG_FROZEN && ev->epoch == m->offer) {
            mig_act(out, MIG_DO_FEED_STOP);
            mig_act(out, MIG_DO_HANDED_OVER);
            depart(m, m->offer, NULL, now, out);
            mig_send(out, WIRE_DONE, 0);
        }
        break;
    case MIG_EV_OPENED:
        if (m->state == MIG_TAKING_BACK && ev->epoch == m->offer)
            come_late(m, now, out);
        break;
    case MIG_EV_TAKEN_BACK:
        if (m->state != MIG_TAKING_BACK && m->state != MIG_GONE && m->state != MIG_FROZEN)
            break;
        if (ev->epoch != (m->state == MIG_GONE ? m->epoch : m->offer))
            break;
        if (ev->ok)
            come_back(m, ev->epoch + 1, now, out);
        else if (m->state == MIG_TAKING_BACK)
            come_late(m, now, out);
        break;
    default:
        break;
    }
}
