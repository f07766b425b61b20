/* SPDX-License-Identifier: Apache-2.0 */

/* The newcomer's side: WAITING, ASKED, FILLING, COMMITTED. */

#include <string.h>

#include "migrate_private.h"
#include "wire.h"

#define TELL_MS 60000 /* how long an opened destination tries to tell its source */

/* --- changes of state that several paths share ----------------------------------- */

/* Open here; from now on the epoch is ours. */
static void open_here(struct mig *m, uint64_t epoch, enum mig_open why, long long now,
                      struct mig_out *out)
{
    struct mig_action *a = mig_act(out, MIG_DO_OPEN);
    a->epoch = epoch;
    a->why = why;
    m->epoch = epoch;
    m->expired = m->shut = false;
    m->orphan = false;
    mig_enter(m, MIG_COMMITTED, now);
    m->retry_at = now + RETRY_SLOW_MS;
}

static void forget(struct mig *m, struct mig_out *out)
{
    (void)m;
    mig_set_state(out, MOAT_SLOT_BLOCKED, 0);
    mig_act(out, MIG_DO_FLUSH);
    mig_set_state(out, MOAT_SLOT_ARRIVING, 0);
}

static void request(struct mig *m, struct mig_out *out, unsigned flags)
{
    struct mig_action *a = mig_send(out, WIRE_REQUEST, m->epoch);
    a->flags = (uint16_t)(flags | (m->f.running ? WIRE_REQ_RUNNING : 0));
}

/* --- settle ---------------------------------------------------------------------- */

/* The hold is over, but opening is not ours to decide: shut, before the engine
 * takes us for dead and opens by itself. */
static void shut(struct mig *m, struct mig_out *out, const char *why)
{
    if (!m->shut) {
        mig_set_state(out, MOAT_SLOT_BLOCKED, 0);
        mig_say(out, MIG_DO_ALARM, why);
    }
    m->shut = true;
}

/* The VM runs here and its state has not come in time. */
static void settle_expired(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;
    bool late = now - m->expired_at >= SHUT_MS;

    if (m->link && m->fenced) {
        uint64_t epoch = m->offer;
        open_here(m, epoch, MIG_OPEN_EXPIRED, now, out);
        mig_send(out, WIRE_FINAL_ACK, epoch);
    } else if (f->holder == MIG_DB_OTHER && !f->permitted) {
        shut(m, out, "the VM runs here, but the database does not permit it on this host: blocked");
    } else if (m->denied) {
        shut(m, out, "the VM runs here, but the host that holds it refuses: blocked");
    } else if (m->link) {
        /* The source is there: it has our STARTED and will answer. */
        if (late)
            shut(m, out, "the VM runs here, but the host that holds it does not let go: blocked");
    } else if (m->shut && !m->tried) {
        /* Shut for another reason that is no more, such as a host that was not permitted:
         * nothing passes, so there is time to ask the source for the VM's state. */
        return;
    } else if (f->holder == MIG_DB_OTHER && f->db_up) {
        /* Opens when the database says that it is ours. */
        if (!m->wrote)
            mig_act(out, MIG_DO_FLUSH);
        mig_write_holder(m, out, f->db_epoch + 1);
        if (late)
            shut(m, out, "the VM runs here, but the database does not make this host its holder");
    } else if (!f->db_up) {
        uint64_t known = f->holder == MIG_DB_UNKNOWN || f->db_epoch < m->epoch ? m->epoch
                                                                               : f->db_epoch;
        mig_act(out, MIG_DO_FLUSH);
        open_here(m, known + 1, MIG_OPEN_EXPIRED, now, out);
    }
}

/* WAITING, ASKED, FILLING: not ours yet. */
static void settle_arriving(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (!f->port || f->holder == MIG_DB_NO_VNIC) {
        mig_release(m, now, out);
        return;
    }
    if (!f->running)
        m->shut = false;
    if (f->slot_state == MOAT_SLOT_ACTIVE && f->running && !m->expired) {
        /* The engine took us for dead and opened. */
        m->expired = true;
        m->expired_at = now;
    }
    if (!m->shut && mig_is_shut(m)) {
        mig_claim(m, MOAT_SLOT_ARRIVING, out); /* plugged again, or forgetting was cut short */
        mig_set_state(out, MOAT_SLOT_ARRIVING, 0);
    }
    if (f->holder == MIG_DB_SELF && f->db_epoch >= m->epoch) {
        mig_disconnect(m, out);
        m->done = true;
        open_here(m, f->db_epoch, m->expired ? MIG_OPEN_EXPIRED : MIG_OPEN_NO_SOURCE, now, out);
        return;
    }
    if (f->holder == MIG_DB_OTHER && f->db_epoch >= m->epoch &&
        strcmp(m->peer, f->db_host)) {
        mig_disconnect(m, out);
        m->epoch = f->db_epoch;
        mig_set_peer(m, f->db_host);
        mig_wait_for(m, now, now);
    }
    if (f->holder == MIG_DB_OTHER && !f->permitted) {
        if (!m->told)
            mig_say(out, MIG_DO_ALARM, "the database does not permit this VM on this host");
        m->told = true;
        m->tried = false;
        mig_disconnect(m, out);
        if (m->state != MIG_WAITING) {
            mig_wait_for(m, now + RETRY_SLOW_MS, now);
            m->told = true;
        }
        if (m->expired && f->running)
            settle_expired(m, now, out);
        return;
    }
    if (f->holder == MIG_DB_NONE && f->db_up && now >= m->retry_at) {
        mig_act(out, MIG_DO_TAKE);
        m->retry_at = now + RETRY_SLOW_MS;
        return;
    }
    if (m->state == MIG_FILLING) {
        if (f->connected && !m->start_sent) {
            mig_send(out, WIRE_START, 0);
            mig_say(out, MIG_DO_RECORD, "precopy");
            m->start_sent = true;
        } else if (!f->connected && m->start_sent && !m->fenced) {
            mig_send(out, WIRE_STOP, 0);
            m->start_sent = false;
        }
        if (f->running && m->start_sent && !m->started) {
            mig_send(out, WIRE_STARTED, 0);
            m->started = true;
        }
    }
    if (m->expired && f->running) {
        settle_expired(m, now, out);
        if (m->state == MIG_COMMITTED)
            return;
    }
    if (m->state == MIG_WAITING && !m->link && m->peer[0] && now >= m->retry_at) {
        mig_act(out, MIG_DO_CONNECT);
        m->retry_at = now + RETRY_SLOW_MS;
    }
}

static void settle_committed(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (f->slot_state == MOAT_SLOT_ACTIVE) {
        bool done = m->done;
        if (m->link)
            mig_send(out, WIRE_OPENED, m->epoch);
        mig_say(out, MIG_DO_RECORD, "completed");
        mig_hold(m, m->epoch, now);
        mig_write_holder(m, out, m->epoch);
        if (done)
            mig_disconnect(m, out);
        m->tell_until = done ? 0 : now + TELL_MS;
        return;
    }
    if (!f->port || f->holder == MIG_DB_NO_VNIC) {
        if (m->link) {
            struct mig_action *a = mig_send(out, WIRE_TAKEN_BACK, m->epoch);
            a->ok = true;
            a->text = "the port was taken away before the VM started";
        }
        mig_say(out, MIG_DO_RECORD, "failed");
        mig_release(m, now, out);
        return;
    }
    if (mig_lost_it(m)) {
        mig_say(out, MIG_DO_RECORD, "rolled-back");
        forget(m, out);
        mig_disconnect(m, out);
        m->epoch = f->db_epoch;
        mig_wait_for(m, now + RETRY_SLOW_MS, now);
        return;
    }
    if (!f->ready && now >= m->retry_at && now - m->since >= RETRY_SLOW_MS) {
        /* The engine did not take it, or the port was plugged again. */
        mig_claim(m, MOAT_SLOT_ARRIVING, out);
        mig_set_state(out, MOAT_SLOT_ARRIVING, 0);
        struct mig_action *a = mig_act(out, MIG_DO_OPEN);
        a->epoch = m->epoch;
        m->retry_at = now + RETRY_SLOW_MS;
    }
    if (!m->done && !m->link && m->peer[0] && now >= m->retry_at) {
        mig_act(out, MIG_DO_CONNECT);
        m->retry_at = now + RETRY_FAST_MS;
    }
}

void mig_settle_destination(struct mig *m, long long now, struct mig_out *out)
{
    if (m->state == MIG_COMMITTED)
        settle_committed(m, now, out);
    else
        settle_arriving(m, now, out);
}

/* --- frames of the source -------------------------------------------------------- */

static void on_take_back(struct mig *m, const struct mig_event *ev, long long now,
                         struct mig_out *out)
{
    bool open = m->state == MIG_HOLDING ||
                (m->state == MIG_COMMITTED && m->f.slot_state == MOAT_SLOT_ACTIVE);
    struct mig_action *a;

    if (open) {
        a = mig_send(out, WIRE_TAKEN_BACK, ev->epoch);
        a->ok = false;
        a->text = "the VM runs here";
        mig_say(out, MIG_DO_ALARM, "the source wanted the vNIC back after it was opened here");
        return;
    }
    if (m->state != MIG_COMMITTED && m->state != MIG_FILLING && m->state != MIG_ASKED)
        return;
    if (m->state == MIG_COMMITTED)
        mig_say(out, MIG_DO_RECORD, "rolled-back");
    forget(m, out);
    a = mig_send(out, WIRE_TAKEN_BACK, ev->epoch);
    a->ok = true;
    a->text = "forgotten";
    m->epoch = ev->epoch;
    mig_wait_for(m, now, now);
    request(m, out, 0);
    mig_enter(m, MIG_ASKED, now);
}

void mig_destination_event(struct mig *m, const struct mig_event *ev, long long now,
                           struct mig_out *out)
{
    bool arriving = m->state == MIG_WAITING || m->state == MIG_ASKED || m->state == MIG_FILLING;

    switch (ev->type) {
    case MIG_EV_LINK_UP:
        m->link = true;
        m->denied = m->tried = false;
        if (m->state == MIG_WAITING) {
            request(m, out, 0);
            mig_enter(m, MIG_ASKED, now);
        } else if (m->state == MIG_COMMITTED || m->state == MIG_HOLDING) {
            request(m, out, WIRE_REQ_COMMITTED);
            if (m->state == MIG_HOLDING)
                mig_send(out, WIRE_OPENED, m->epoch);
        } else {
            mig_disconnect(m, out);
        }
        break;
    case MIG_EV_REFUSE:
        m->denied = ev->flags == MIG_REFUSE_DENIED;
        m->done = true;
        mig_disconnect(m, out);
        if (arriving) {
            m->done = false;
            mig_wait_for(m, now + RETRY_SLOW_MS, now);
        }
        break;
    case MIG_EV_POLICY:
        if (m->state == MIG_ASKED) {
            if (m->shut) { /* it can be had after all */
                mig_set_state(out, MOAT_SLOT_ARRIVING, 0);
                m->shut = m->expired = false;
            }
            mig_act(out, MIG_DO_INSTALL_POLICY);
            m->epoch = ev->epoch;
            m->offer = ev->epoch + 1;
            m->done = false;
            mig_enter(m, MIG_FILLING, now);
        }
        break;
    case MIG_EV_FENCED:
        if (m->state == MIG_FILLING) {
            m->fenced = true;
            m->offer = ev->epoch;
            mig_say(out, MIG_DO_RECORD, "frozen");
        }
        break;
    case MIG_EV_FINAL:
        if (m->state == MIG_FILLING && m->fenced && ev->epoch == m->offer) {
            open_here(m, ev->epoch,
                      ev->flags & WIRE_FINAL_NO_SESSIONS ? MIG_OPEN_NO_SESSIONS
                                                         : MIG_OPEN_COMPLETE,
                      now, out);
            mig_send(out, WIRE_FINAL_ACK, ev->epoch);
        }
        break;
    case MIG_EV_DONE:
        m->done = true;
        m->tell_until = 0;
        if (m->state == MIG_HOLDING)
            mig_disconnect(m, out);
        break;
    case MIG_EV_TAKE_BACK:
        on_take_back(m, ev, now, out);
        break;
    case MIG_EV_CANCEL:
        if (arriving) {
            if (m->state == MIG_FILLING && m->start_sent)
                mig_say(out, MIG_DO_RECORD, "failed");
            mig_act(out, MIG_DO_FLUSH);
            mig_disconnect(m, out);
            mig_wait_for(m, now + RETRY_SLOW_MS, now);
        }
        break;
    default:
        break;
    }
}
