/* SPDX-License-Identifier: Apache-2.0 */

/* An event first changes what we know (take_event), then settle() compares what
 * we know with where we are.  settle() is level-triggered: called twice with the
 * same facts it does nothing new, but for retries when their time has come. */

#include "migrate.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "wire.h"

#define RETRY_FAST_MS 200     /* after a lost connection */
#define RETRY_SLOW_MS 1000    /* after a refusal; between attempts to connect */
#define TAKE_BACK_ALONE_MS 3000 /* the destination is silent: ask the database */
#define TELL_MS 60000         /* how long an opened destination tries to tell its source */
#define BOTH_RUN_MS 1000      /* events of two hosts may cross for so long */
#define SHUT_MS 1200          /* after the hold: the engine opens alone soon after */

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

/* --- actions ------------------------------------------------------------------ */

static struct mig_action *act(struct mig_out *out, enum mig_do what)
{
    assert(out->n < MIG_MAX_ACTIONS);
    struct mig_action *a = &out->a[out->n++];
    memset(a, 0, sizeof *a);
    a->what = what;
    return a;
}

static void set_state(struct mig_out *out, enum moat_slot_state state, uint64_t epoch)
{
    struct mig_action *a = act(out, MIG_DO_STATE);
    a->state = (uint8_t)state;
    a->epoch = epoch;
}

static struct mig_action *send(struct mig_out *out, enum wire_type frame, uint64_t epoch)
{
    struct mig_action *a = act(out, MIG_DO_SEND);
    a->frame = (uint16_t)frame;
    a->epoch = epoch;
    return a;
}

static void refuse(struct mig_out *out, enum mig_refuse code, const char *text)
{
    struct mig_action *a = send(out, WIRE_REFUSE, 0);
    a->flags = (uint16_t)code;
    a->text = text;
}

static void say(struct mig_out *out, enum mig_do what, const char *text)
{
    act(out, what)->text = text;
}

static void precopy(struct mig_out *out, bool on)
{
    act(out, MIG_DO_PRECOPY)->ok = on;
}

static void enter(struct mig *m, enum mig_state state, long long now)
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

static void set_peer(struct mig *m, const char *host)
{
    snprintf(m->peer, sizeof m->peer, "%s", host);
}

static void disconnect(struct mig *m, struct mig_out *out)
{
    if (m->link)
        act(out, MIG_DO_DISCONNECT);
    m->link = false;
}

static void write_holder(struct mig *m, struct mig_out *out, uint64_t epoch)
{
    if (!m->wrote)
        act(out, MIG_DO_WRITE_HOLDER)->epoch = epoch;
    m->wrote = true;
}

/* The slot passes nothing and will not by itself. */
static bool shut_here(const struct mig *m)
{
    return m->f.slot_state == MOAT_SLOT_FROZEN || m->f.slot_state == MOAT_SLOT_BLOCKED ||
           m->f.slot_state == MOAT_SLOT_DEPARTED;
}

/* The database has given the vNIC to another host since we last had it.  The same
 * epoch on two hosts means that one opened while it could reach nobody: the
 * database has the last word then, too. */
static bool lost_it(const struct mig *m)
{
    return m->f.holder == MIG_DB_OTHER && m->f.db_epoch >= m->epoch;
}

/* --- changes of state that several paths share ----------------------------------- */

static void hold(struct mig *m, uint64_t epoch, long long now)
{
    m->epoch = epoch;
    m->orphan = false;
    enter(m, MIG_HOLDING, now);
}

/* We are the holder again, after an offer that came to nothing. */
static void come_back(struct mig *m, uint64_t epoch, long long now, struct mig_out *out)
{
    set_state(out, MOAT_SLOT_ACTIVE, epoch);
    hold(m, epoch, now);
    write_holder(m, out, epoch);
    m->remote_running = false;
}

static void depart(struct mig *m, uint64_t epoch, const char *host, long long now,
                   struct mig_out *out)
{
    set_state(out, MOAT_SLOT_DEPARTED, epoch);
    m->epoch = epoch;
    if (host)
        set_peer(m, host);
    enter(m, MIG_GONE, now);
}

/* Keeps what is known about the hold: it goes on. */
static void wait_for(struct mig *m, long long retry_at, long long now)
{
    m->fenced = m->start_sent = m->started = false;
    m->retry_at = retry_at;
    enter(m, MIG_WAITING, now);
}

static void stop_feeding(struct mig *m, struct mig_out *out, long long now)
{
    act(out, MIG_DO_FEED_STOP);
    precopy(out, false);
    enter(m, MIG_HOLDING, now);
}

/* Open here; from now on the epoch is ours. */
static void open_here(struct mig *m, uint64_t epoch, enum mig_open why, long long now,
                      struct mig_out *out)
{
    struct mig_action *a = act(out, MIG_DO_OPEN);
    a->epoch = epoch;
    a->why = why;
    m->epoch = epoch;
    m->expired = m->shut = false;
    m->orphan = false;
    enter(m, MIG_COMMITTED, now);
    m->retry_at = now + RETRY_SLOW_MS;
}

static void forget(struct mig *m, struct mig_out *out)
{
    (void)m;
    set_state(out, MOAT_SLOT_BLOCKED, 0);
    act(out, MIG_DO_FLUSH);
    set_state(out, MOAT_SLOT_ARRIVING, 0);
}

static void request(struct mig *m, struct mig_out *out, unsigned flags)
{
    struct mig_action *a = send(out, WIRE_REQUEST, m->epoch);
    a->flags = (uint16_t)(flags | (m->f.running ? WIRE_REQ_RUNNING : 0));
}

static void release(struct mig *m, long long now, struct mig_out *out)
{
    disconnect(m, out);
    act(out, MIG_DO_RELEASE);
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
        set_peer(m, f->db_host);
    switch (f->slot_state) {
    case MOAT_SLOT_BLOCKED:
        /* Plugged again, shut while arriving, or stopped by hand at the source. */
        if (f->holder == MIG_DB_UNKNOWN && !f->db_given_up)
            return;
        if (f->holder == MIG_DB_SELF || f->db_epoch < f->slot_epoch) {
            enter(m, MIG_HOLDING, now);
            m->wary = true;
        } else {
            wait_for(m, now, now);
        }
        break;
    case MOAT_SLOT_ARRIVING:
        if (f->ready)
            enter(m, MIG_COMMITTED, now);
        else
            wait_for(m, now, now);
        break;
    case MOAT_SLOT_FROZEN:
        enter(m, MIG_FROZEN, now);
        m->offered = true; /* perhaps: so be careful */
        break;
    case MOAT_SLOT_DEPARTED:
        m->offer = f->slot_epoch;
        enter(m, MIG_GONE, now);
        break;
    default:
        enter(m, MIG_HOLDING, now);
        m->orphan = f->slot_epoch == 0;
    }
}

static void claim(struct mig *m, enum moat_slot_state state, struct mig_out *out)
{
    struct mig_action *a = act(out, MIG_DO_CLAIM);
    a->state = (uint8_t)state;
    a->epoch = m->epoch;
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
        act(out, MIG_DO_CLAIM_ORPHAN);
        hold(m, 0, now);
        m->orphan = true;
        break;
    case MIG_DB_NONE:
        if (f->db_up && now >= m->retry_at) {
            act(out, MIG_DO_TAKE);
            m->retry_at = now + RETRY_SLOW_MS;
        } else if (!f->db_up && f->db_given_up) {
            m->epoch = f->db_epoch + 1;
            claim(m, MOAT_SLOT_ACTIVE, out);
            hold(m, m->epoch, now);
            write_holder(m, out, m->epoch);
        }
        break;
    case MIG_DB_SELF:
        m->epoch = f->db_epoch;
        claim(m, MOAT_SLOT_ACTIVE, out);
        hold(m, m->epoch, now);
        break;
    case MIG_DB_OTHER:
        m->epoch = f->db_epoch;
        set_peer(m, f->db_host);
        claim(m, MOAT_SLOT_ARRIVING, out);
        wait_for(m, now, now);
        break;
    }
}

static void settle_holding(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (m->orphan && f->holder >= MIG_DB_NONE) {
        /* The database has spoken at last. */
        if (f->holder == MIG_DB_NONE) {
            if (f->db_up && now >= m->retry_at) {
                act(out, MIG_DO_TAKE);
                m->retry_at = now + RETRY_SLOW_MS;
            }
            return;
        }
        if (f->holder == MIG_DB_SELF) {
            claim(m, MOAT_SLOT_ACTIVE, out);
            hold(m, f->db_epoch, now);
            set_state(out, MOAT_SLOT_ACTIVE, f->db_epoch);
            return;
        }
        /* Another host has it: ask for it as any arriving vNIC does. */
        m->orphan = false;
        m->epoch = f->db_epoch;
        set_peer(m, f->db_host);
        set_state(out, MOAT_SLOT_ARRIVING, 0);
        wait_for(m, now, now);
        return;
    }
    if (lost_it(m)) {
        if (f->running && f->slot_state == MOAT_SLOT_ACTIVE)
            say(out, MIG_DO_ALARM, "the database gave this vNIC to another host while it runs here");
        disconnect(m, out);
        depart(m, f->db_epoch, f->db_host, now, out);
        return;
    }
    if (f->holder == MIG_DB_NO_VNIC && !m->orphan) {
        say(out, MIG_DO_NOTICE, "the VM is no longer in the database");
        release(m, now, out);
        return;
    }
    if (m->orphan) {
        if (!f->port)
            release(m, now, out);
        else if (f->slot_state == MOAT_SLOT_BLOCKED) {
            act(out, MIG_DO_CLAIM_ORPHAN);
        }
        return;
    }
    if (f->holder == MIG_DB_SELF && f->db_epoch > m->epoch)
        m->epoch = f->db_epoch;
    if (f->slot_state == MOAT_SLOT_FROZEN) {
        /* It froze while the destination was just being lost. */
        m->offer = m->epoch + 1;
        act(out, MIG_DO_FEED_STOP);
        enter(m, MIG_FROZEN, now);
        if (!f->running && !m->link)
            act(out, MIG_DO_HANDED_OVER); /* nobody to wait for */
        return;
    }
    if (f->slot_state == MOAT_SLOT_BLOCKED && f->port) {
        if (!m->wary || f->running)
            claim(m, MOAT_SLOT_ACTIVE, out); /* plugged again */
        return;
    }
    m->wary = false;
    if (f->slot_state != MOAT_SLOT_ACTIVE && f->slot_state != MOAT_SLOT_ENROLLING &&
        f->slot_state != MOAT_SLOT_BLOCKED)
        set_state(out, MOAT_SLOT_ACTIVE, m->epoch);
    if ((f->holder == MIG_DB_OTHER && f->db_epoch < m->epoch) || f->holder == MIG_DB_NONE ||
        (f->holder == MIG_DB_SELF && f->db_epoch < m->epoch))
        write_holder(m, out, m->epoch);
    /* An opened destination whose source does not know yet. */
    if (!m->done && m->tell_until) {
        if (now >= m->tell_until)
            m->tell_until = 0;
        else if (!m->link && now >= m->retry_at && m->peer[0]) {
            act(out, MIG_DO_CONNECT);
            m->retry_at = now + RETRY_SLOW_MS;
        }
    }
}

static void settle_feeding(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (lost_it(m)) {
        act(out, MIG_DO_FEED_STOP);
        precopy(out, false);
        disconnect(m, out);
        depart(m, f->db_epoch, f->db_host, now, out);
        return;
    }
    if (shut_here(m)) {
        m->offer = m->epoch + 1;
        send(out, WIRE_FENCED, m->offer);
        act(out, MIG_DO_FEED_FINAL);
        enter(m, MIG_FROZEN, now);
        m->offered = true;
        return;
    }
    /* The rings stopped before we could say that a destination is being fed: freeze
     * by hand, once it is sure that this is no reboot of the guest. */
    if (!f->running && (m->remote_running || !f->connected) &&
        f->slot_state == MOAT_SLOT_ACTIVE) {
        set_state(out, MOAT_SLOT_BLOCKED, 0);
        return;
    }
    if (f->running && m->remote_running) {
        if (!m->both_since)
            m->both_since = now;
        if (now - m->both_since >= BOTH_RUN_MS) {
            say(out, MIG_DO_ALARM, "the VM seems to run on two hosts; the newcomer is refused");
            refuse(out, MIG_REFUSE_DENIED, "the VM runs on the host that holds it");
            stop_feeding(m, out, now);
            m->remote_running = false;
        }
    } else {
        m->both_since = 0;
    }
}

static void take_back(struct mig *m, long long now, struct mig_out *out)
{
    enter(m, MIG_TAKING_BACK, now);
    act(out, MIG_DO_FEED_STOP);
    if (m->link)
        send(out, WIRE_TAKE_BACK, m->offer);
}

static void settle_frozen(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (lost_it(m)) {
        act(out, MIG_DO_FEED_STOP);
        act(out, MIG_DO_HANDED_OVER);
        depart(m, f->db_epoch, f->db_host, now, out);
    } else if (f->holder == MIG_DB_NO_VNIC && !f->port) {
        release(m, now, out);
    } else if (f->slot_state == MOAT_SLOT_ACTIVE) {
        enter(m, MIG_HOLDING, now);
    } else if (f->running && !m->offered) {
        act(out, MIG_DO_FEED_STOP);
        precopy(out, false);
        if (m->link)
            send(out, WIRE_CANCEL, 0)->text = "the VM resumed at the source";
        set_state(out, MOAT_SLOT_ACTIVE, m->epoch);
        enter(m, MIG_HOLDING, now);
    } else if (f->running) {
        precopy(out, false);
        take_back(m, now, out);
    }
}

/* What went away comes (back) as any vNIC comes that another host holds. */
static void arrive(struct mig *m, long long now, struct mig_out *out)
{
    disconnect(m, out);
    act(out, MIG_DO_FLUSH);
    claim(m, MOAT_SLOT_ARRIVING, out);
    set_state(out, MOAT_SLOT_ARRIVING, 0);
    m->denied = m->expired = m->shut = m->done = false;
    wait_for(m, now, now);
}

/* It resumed here after the other host had opened: who runs it now is for the other
 * one to say; it refuses if the VM runs there. */
static void come_late(struct mig *m, long long now, struct mig_out *out)
{
    say(out, MIG_DO_ALARM, "the VM resumed here after the other host had opened");
    if (m->epoch < m->offer)
        m->epoch = m->offer;
    set_state(out, MOAT_SLOT_BLOCKED, m->epoch);
    arrive(m, now, out);
}

static void settle_gone(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (f->holder == MIG_DB_SELF && f->db_epoch > m->epoch) {
        claim(m, MOAT_SLOT_ACTIVE, out);
        set_state(out, MOAT_SLOT_ACTIVE, f->db_epoch);
        hold(m, f->db_epoch, now);
        return;
    }
    if (f->holder == MIG_DB_OTHER && f->db_epoch >= m->epoch) {
        m->epoch = f->db_epoch;
        set_peer(m, f->db_host);
    }
    if (!f->port) {
        if ((f->holder == MIG_DB_OTHER && f->db_epoch >= m->epoch) ||
            f->holder == MIG_DB_NO_VNIC)
            release(m, now, out);
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
        set_peer(m, f->db_host);
        come_late(m, now, out);
        return;
    }
    if (!f->running) {
        bool was_offered = m->offered;
        enter(m, f->slot_state == MOAT_SLOT_DEPARTED ? MIG_GONE : MIG_FROZEN, now);
        m->offered = m->state == MIG_FROZEN && was_offered;
        return;
    }
    if (!m->link && now - m->since >= TAKE_BACK_ALONE_MS) {
        if (!m->told)
            say(out, MIG_DO_ALARM,
                "the VM resumed here and the host it was offered to is silent: asking the database");
        m->told = true;
        if (f->db_up)
            write_holder(m, out, target);
    }
}

/* The hold is over, but opening is not ours to decide: shut, before the engine
 * takes us for dead and opens by itself. */
static void shut(struct mig *m, struct mig_out *out, const char *why)
{
    if (!m->shut) {
        set_state(out, MOAT_SLOT_BLOCKED, 0);
        say(out, MIG_DO_ALARM, why);
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
        send(out, WIRE_FINAL_ACK, epoch);
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
            act(out, MIG_DO_FLUSH);
        write_holder(m, out, f->db_epoch + 1);
        if (late)
            shut(m, out, "the VM runs here, but the database does not make this host its holder");
    } else if (!f->db_up) {
        uint64_t known = f->holder == MIG_DB_UNKNOWN || f->db_epoch < m->epoch ? m->epoch
                                                                               : f->db_epoch;
        act(out, MIG_DO_FLUSH);
        open_here(m, known + 1, MIG_OPEN_EXPIRED, now, out);
    }
}

/* WAITING, ASKED, FILLING: not ours yet. */
static void settle_arriving(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (!f->port || f->holder == MIG_DB_NO_VNIC) {
        release(m, now, out);
        return;
    }
    if (!f->running)
        m->shut = false;
    if (f->slot_state == MOAT_SLOT_ACTIVE && f->running && !m->expired) {
        /* The engine took us for dead and opened. */
        m->expired = true;
        m->expired_at = now;
    }
    if (!m->shut && shut_here(m)) {
        claim(m, MOAT_SLOT_ARRIVING, out); /* plugged again, or forgetting was cut short */
        set_state(out, MOAT_SLOT_ARRIVING, 0);
    }
    if (f->holder == MIG_DB_SELF && f->db_epoch >= m->epoch) {
        disconnect(m, out);
        m->done = true;
        open_here(m, f->db_epoch, m->expired ? MIG_OPEN_EXPIRED : MIG_OPEN_NO_SOURCE, now, out);
        return;
    }
    if (f->holder == MIG_DB_OTHER && f->db_epoch >= m->epoch &&
        strcmp(m->peer, f->db_host)) {
        disconnect(m, out);
        m->epoch = f->db_epoch;
        set_peer(m, f->db_host);
        wait_for(m, now, now);
    }
    if (f->holder == MIG_DB_OTHER && !f->permitted) {
        if (!m->told)
            say(out, MIG_DO_ALARM, "the database does not permit this VM on this host");
        m->told = true;
        m->tried = false;
        disconnect(m, out);
        if (m->state != MIG_WAITING) {
            wait_for(m, now + RETRY_SLOW_MS, now);
            m->told = true;
        }
        if (m->expired && f->running)
            settle_expired(m, now, out);
        return;
    }
    if (f->holder == MIG_DB_NONE && f->db_up && now >= m->retry_at) {
        act(out, MIG_DO_TAKE);
        m->retry_at = now + RETRY_SLOW_MS;
        return;
    }
    if (m->state == MIG_FILLING) {
        if (f->connected && !m->start_sent) {
            send(out, WIRE_START, 0);
            say(out, MIG_DO_RECORD, "precopy");
            m->start_sent = true;
        } else if (!f->connected && m->start_sent && !m->fenced) {
            send(out, WIRE_STOP, 0);
            m->start_sent = false;
        }
        if (f->running && m->start_sent && !m->started) {
            send(out, WIRE_STARTED, 0);
            m->started = true;
        }
    }
    if (m->expired && f->running) {
        settle_expired(m, now, out);
        if (m->state == MIG_COMMITTED)
            return;
    }
    if (m->state == MIG_WAITING && !m->link && m->peer[0] && now >= m->retry_at) {
        act(out, MIG_DO_CONNECT);
        m->retry_at = now + RETRY_SLOW_MS;
    }
}

static void settle_committed(struct mig *m, long long now, struct mig_out *out)
{
    const struct mig_facts *f = &m->f;

    if (f->slot_state == MOAT_SLOT_ACTIVE) {
        bool done = m->done;
        if (m->link)
            send(out, WIRE_OPENED, m->epoch);
        say(out, MIG_DO_RECORD, "completed");
        hold(m, m->epoch, now);
        write_holder(m, out, m->epoch);
        if (done)
            disconnect(m, out);
        m->tell_until = done ? 0 : now + TELL_MS;
        return;
    }
    if (!f->port || f->holder == MIG_DB_NO_VNIC) {
        if (m->link) {
            struct mig_action *a = send(out, WIRE_TAKEN_BACK, m->epoch);
            a->ok = true;
            a->text = "the port was taken away before the VM started";
        }
        say(out, MIG_DO_RECORD, "failed");
        release(m, now, out);
        return;
    }
    if (lost_it(m)) {
        say(out, MIG_DO_RECORD, "rolled-back");
        forget(m, out);
        disconnect(m, out);
        m->epoch = f->db_epoch;
        wait_for(m, now + RETRY_SLOW_MS, now);
        return;
    }
    if (!f->ready && now >= m->retry_at && now - m->since >= RETRY_SLOW_MS) {
        /* The engine did not take it, or the port was plugged again. */
        claim(m, MOAT_SLOT_ARRIVING, out);
        set_state(out, MOAT_SLOT_ARRIVING, 0);
        struct mig_action *a = act(out, MIG_DO_OPEN);
        a->epoch = m->epoch;
        m->retry_at = now + RETRY_SLOW_MS;
    }
    if (!m->done && !m->link && m->peer[0] && now >= m->retry_at) {
        act(out, MIG_DO_CONNECT);
        m->retry_at = now + RETRY_FAST_MS;
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
            act(out, MIG_DO_FEED_STOP);
        if (link)
            act(out, MIG_DO_DISCONNECT);
        struct mig_facts f = m->f;
        mig_init(m);
        m->f = f;
        m->since = now;
    }
    switch (m->state) {
    case MIG_IDLE:
        settle_idle(m, now, out);
        break;
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
    case MIG_WAITING:
    case MIG_ASKED:
    case MIG_FILLING:
        settle_arriving(m, now, out);
        break;
    case MIG_COMMITTED:
        settle_committed(m, now, out);
        break;
    case MIG_N_STATES:
        break;
    }
}

/* --- the source's frames ----------------------------------------------------------- */

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
            act(out, MIG_DO_FEED_STOP);
            act(out, MIG_DO_HANDED_OVER);
            depart(m, ev->epoch, ev->host, now, out);
            send(out, WIRE_DONE, 0);
        }
        break;
    case MIG_GONE:
        send(out, WIRE_DONE, 0);
        break;
    case MIG_TAKING_BACK:
        send(out, WIRE_TAKE_BACK, m->offer);
        break;
    case MIG_HOLDING:
    case MIG_FEEDING:
        if (m->epoch >= ev->epoch || m->f.running) {
            send(out, WIRE_TAKE_BACK, ev->epoch);
        } else {
            depart(m, ev->epoch, ev->host, now, out);
            send(out, WIRE_DONE, 0);
        }
        break;
    default:
        refuse(out, MIG_REFUSE_NOT_HERE, "not the source of this vNIC");
        m->link = false;
    }
}

static void on_request(struct mig *m, const struct mig_event *ev, long long now,
                       struct mig_out *out)
{
    enum mig_refuse code;
    const char *why;

    if (!mig_may_ask(m, ev->host, ev->ok, &code, &why)) {
        refuse(out, code, why);
        return;
    }
    if (m->state == MIG_FEEDING)
        stop_feeding(m, out, now); /* a new connection in place of the old one */
    else if (m->state == MIG_FROZEN)
        act(out, MIG_DO_FEED_STOP);
    m->link = true;
    m->remote_running = ev->flags & WIRE_REQ_RUNNING;
    if (ev->flags & WIRE_REQ_COMMITTED) {
        on_committed_request(m, ev, now, out);
        return;
    }
    switch (m->state) {
    case MIG_HOLDING:
    case MIG_FROZEN:
        set_peer(m, ev->host);
        m->tell_until = 0;
        send(out, WIRE_POLICY, m->epoch);
        break;
    case MIG_TAKING_BACK: /* it has lost what it had: nothing to be given back */
        come_back(m, m->offer + 1, now, out);
        send(out, WIRE_POLICY, m->epoch);
        break;
    default:
        refuse(out, MIG_REFUSE_NOT_HERE, "the vNIC was handed over");
        m->link = false;
    }
}

static void on_start(struct mig *m, long long now, struct mig_out *out)
{
    if (m->state == MIG_HOLDING && m->link) {
        precopy(out, true);
        act(out, MIG_DO_FEED_START);
        enter(m, MIG_FEEDING, now);
    } else if (m->state == MIG_FROZEN && m->link) {
        act(out, MIG_DO_FEED_START);
        send(out, WIRE_FENCED, m->offer);
        act(out, MIG_DO_FEED_FINAL);
        m->offered = true;
    }
}

static void source_frame(struct mig *m, const struct mig_event *ev, long long now,
                         struct mig_out *out)
{
    switch (ev->type) {
    case MIG_EV_START:
        on_start(m, now, out);
        break;
    case MIG_EV_STOP:
        if (m->state == MIG_FEEDING)
            stop_feeding(m, out, now);
        break;
    case MIG_EV_STARTED:
        m->remote_running = true;
        break;
    case MIG_EV_FINAL_ACK:
        if (m->state == MIG_FROZEN && ev->epoch == m->offer) {
            act(out, MIG_DO_FEED_STOP);
            act(out, MIG_DO_HANDED_OVER);
            depart(m, m->offer, NULL, now, out);
            send(out, WIRE_DONE, 0);
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

/* --- the destination's frames -------------------------------------------------------- */

static void on_take_back(struct mig *m, const struct mig_event *ev, long long now,
                         struct mig_out *out)
{
    bool open = m->state == MIG_HOLDING ||
                (m->state == MIG_COMMITTED && m->f.slot_state == MOAT_SLOT_ACTIVE);
    struct mig_action *a;

    if (open) {
        a = send(out, WIRE_TAKEN_BACK, ev->epoch);
        a->ok = false;
        a->text = "the VM runs here";
        say(out, MIG_DO_ALARM, "the source wanted the vNIC back after it was opened here");
        return;
    }
    if (m->state != MIG_COMMITTED && m->state != MIG_FILLING && m->state != MIG_ASKED)
        return;
    if (m->state == MIG_COMMITTED)
        say(out, MIG_DO_RECORD, "rolled-back");
    forget(m, out);
    a = send(out, WIRE_TAKEN_BACK, ev->epoch);
    a->ok = true;
    a->text = "forgotten";
    m->epoch = ev->epoch;
    wait_for(m, now, now);
    request(m, out, 0);
    enter(m, MIG_ASKED, now);
}

static void dest_frame(struct mig *m, const struct mig_event *ev, long long now,
                       struct mig_out *out)
{
    bool arriving = m->state == MIG_WAITING || m->state == MIG_ASKED || m->state == MIG_FILLING;

    switch (ev->type) {
    case MIG_EV_LINK_UP:
        m->link = true;
        m->denied = m->tried = false;
        if (m->state == MIG_WAITING) {
            request(m, out, 0);
            enter(m, MIG_ASKED, now);
        } else if (m->state == MIG_COMMITTED || m->state == MIG_HOLDING) {
            request(m, out, WIRE_REQ_COMMITTED);
            if (m->state == MIG_HOLDING)
                send(out, WIRE_OPENED, m->epoch);
        } else {
            disconnect(m, out);
        }
        break;
    case MIG_EV_REFUSE:
        m->denied = ev->flags == MIG_REFUSE_DENIED;
        m->done = true;
        disconnect(m, out);
        if (arriving) {
            m->done = false;
            wait_for(m, now + RETRY_SLOW_MS, now);
        }
        break;
    case MIG_EV_POLICY:
        if (m->state == MIG_ASKED) {
            if (m->shut) { /* it can be had after all */
                set_state(out, MOAT_SLOT_ARRIVING, 0);
                m->shut = m->expired = false;
            }
            act(out, MIG_DO_INSTALL_POLICY);
            m->epoch = ev->epoch;
            m->offer = ev->epoch + 1;
            m->done = false;
            enter(m, MIG_FILLING, now);
        }
        break;
    case MIG_EV_FENCED:
        if (m->state == MIG_FILLING) {
            m->fenced = true;
            m->offer = ev->epoch;
            say(out, MIG_DO_RECORD, "frozen");
        }
        break;
    case MIG_EV_FINAL:
        if (m->state == MIG_FILLING && m->fenced && ev->epoch == m->offer) {
            open_here(m, ev->epoch,
                      ev->flags & WIRE_FINAL_NO_SESSIONS ? MIG_OPEN_NO_SESSIONS
                                                         : MIG_OPEN_COMPLETE,
                      now, out);
            send(out, WIRE_FINAL_ACK, ev->epoch);
        }
        break;
    case MIG_EV_DONE:
        m->done = true;
        m->tell_until = 0;
        if (m->state == MIG_HOLDING)
            disconnect(m, out);
        break;
    case MIG_EV_TAKE_BACK:
        on_take_back(m, ev, now, out);
        break;
    case MIG_EV_CANCEL:
        if (arriving) {
            if (m->state == MIG_FILLING && m->start_sent)
                say(out, MIG_DO_RECORD, "failed");
            act(out, MIG_DO_FLUSH);
            disconnect(m, out);
            wait_for(m, now + RETRY_SLOW_MS, now);
        }
        break;
    default:
        break;
    }
}

static void on_link_down(struct mig *m, long long now, struct mig_out *out)
{
    m->link = false;
    m->remote_running = false;
    switch (m->state) {
    case MIG_FEEDING:
        stop_feeding(m, out, now);
        break;
    case MIG_FROZEN:
        act(out, MIG_DO_FEED_STOP);
        break;
    case MIG_ASKED:
    case MIG_FILLING:
        m->tried = true;
        wait_for(m, now + RETRY_FAST_MS, now);
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
        if (m->state == MIG_FEEDING && m->f.running && m->f.slot_state == MOAT_SLOT_ACTIVE) {
            send(out, WIRE_CANCEL, 0)->text = "the migration was cancelled";
            stop_feeding(m, out, now);
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
        on_request(m, ev, now, out);
        break;
    case MIG_EV_START:
    case MIG_EV_STOP:
    case MIG_EV_STARTED:
    case MIG_EV_FINAL_ACK:
    case MIG_EV_OPENED:
    case MIG_EV_TAKEN_BACK:
        source_frame(m, ev, now, out);
        break;
    default:
        dest_frame(m, ev, now, out);
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
