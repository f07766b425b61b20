/* SPDX-License-Identifier: Apache-2.0 */

/* The glue around migrate.c.  Nothing here decides: facts come from ovsdb, cluster
 * and engine, decisions from migrate and arrive.  What an action does to the slot is
 * in vnic_slot.c, what it says to the other host in handover.c.
 *
 * Callbacks of connections and of the engine only note what happened where they
 * could be called from within an action; vnics_run() then tells the machine. */

#include <config.h>

#include "vnic.h"

#include <stdlib.h>
#include <string.h>

#include "alert.h"
#include "cluster.h"
#include "ctl_client.h"
#include "engine.h"
#include "host_config.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/shash.h"
#include "openvswitch/vlog.h"
#include "ovsdb.h"
#include "peer.h"
#include "timeval.h"
#include "util.h"
#include "vnic_private.h"
#include "wire.h"

VLOG_DEFINE_THIS_MODULE(vnic);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(20, 60);

#define CHECK_MS 5000     /* wanted and enforced are compared at least so often */
#define SILENT_MS 5000    /* a source that says nothing is taken for dead */
#define HOLD_GRACE_MS 300 /* the engine's own event should have come by now */

static char *self;
static struct shash vnics = SHASH_INITIALIZER(&vnics);

const char *vnic_self(void)
{
    return self;
}

struct vnic *vnic_find(const char *id)
{
    return shash_find_data(&vnics, id);
}

static struct vnic *find_or_create(const char *id)
{
    struct vnic *v = vnic_find(id);

    if (!v) {
        v = xzalloc(sizeof *v);
        ovs_strlcpy(v->id, id, sizeof v->id);
        mig_init(&v->mig);
        shash_add(&vnics, id, v);
    }
    return v;
}

const char *vnic_vm(const char *id)
{
    const struct moat_slot_info *s = engine_slot(id);

    return s ? s->conf.vm : "";
}

void vnic_drop_peer(struct vnic *v)
{
    if (v->peer)
        peer_close(v->peer);
    v->peer = NULL;
    v->lost = v->up = false;
}

/* --- facts ----------------------------------------------------------------------- */

static void gather(const struct vnic *v, struct mig_facts *f)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    unsigned wait_ms = host_config_uint("database-wait-ms", 5000);
    struct cluster_vnic row;

    memset(f, 0, sizeof *f);
    f->port = ovsdb_port(v->id) != NULL;
    f->engine = engine_up() && ovsdb_ready();
    if (s) {
        f->slot = true;
        f->slot_state = s->state;
        f->connected = s->connected;
        f->running = s->running;
        f->ready = s->ready;
        f->has_ruleset = s->has_ruleset;
        f->slot_epoch = s->conf.epoch;
    }
    f->db_up = cluster_up() && cluster_known();
    f->db_given_up = !f->db_up && time_msec() - cluster_down_since() >= wait_ms;
    if (cluster_up() && !cluster_known()) /* there, but empty */
        f->db_given_up = true;
    cluster_vnic(v->id, &row);
    f->db_epoch = row.epoch;
    if (!cluster_known()) {
        f->holder = MIG_DB_UNKNOWN;
    } else if (!row.known) {
        /* A row that cannot be used is no reason to let go of a VM. */
        f->holder = row.problem[0] ? MIG_DB_UNKNOWN : MIG_DB_NO_VNIC;
    } else if (!row.holder[0]) {
        f->holder = MIG_DB_NONE;
    } else if (!strcmp(row.holder, self)) {
        f->holder = MIG_DB_SELF;
    } else {
        f->holder = MIG_DB_OTHER;
        ovs_strlcpy(f->db_host, row.holder, sizeof f->db_host);
    }
    f->permitted = cluster_permits(v->id, self);
}

/* --- actions --------------------------------------------------------------------- */

static void do_handed_over(struct vnic *v)
{
    v->wait_us = v->frozen_at_us ? (uint64_t)(time_usec() - v->frozen_at_us) : 0;
    v->frozen_at_us = 0;
    int rc = moat_ctl_handed_over(engine_ctl(), v->id);
    engine_touch();
    if (rc)
        VLOG_INFO_RL(&rl, "%s: handed over: %s", v->id, engine_error());
}

static void do_precopy(struct vnic *v, bool on)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    struct moat_ctl_state st = {.precopy = on,
                                .wait_ms = on ? host_config_uint("handover-wait-ms", 400) : 0};

    if (!s)
        return;
    st.state = s->state;
    vnic_set_state(v, &st);
}

static void execute(struct vnic *v, const struct mig_action *a)
{
    const struct moat_slot_info *s;

    VLOG_DBG("%s: action %d state %u epoch %llu %s", v->id, a->what, a->state,
             (unsigned long long)a->epoch, a->what == MIG_DO_SEND ? wire_type_name(a->frame) : "");
    switch (a->what) {
    case MIG_DO_CLAIM:
        vnic_claim(v, (enum moat_slot_state)a->state);
        break;
    case MIG_DO_CLAIM_ORPHAN:
        vnic_claim_orphan(v);
        break;
    case MIG_DO_RELEASE:
        handover_forget(v);
        v->rec_epoch = 0;
        vnic_ok(v, moat_ctl_release(engine_ctl(), v->id), "releasing its slot");
        break;
    case MIG_DO_STATE:
        vnic_set_state(v, &(struct moat_ctl_state){.state = a->state, .epoch = a->epoch});
        break;
    case MIG_DO_OPEN:
        vnic_open(v, a->epoch, a->why);
        break;
    case MIG_DO_PRECOPY:
        do_precopy(v, a->ok);
        break;
    case MIG_DO_FLUSH:
        v->accepted = v->refused = 0;
        vnic_ok(v, moat_ctl_flush(engine_ctl(), v->id), "forgetting its sessions");
        break;
    case MIG_DO_HANDED_OVER:
        do_handed_over(v);
        break;
    case MIG_DO_TAKE:
        cluster_take(v->id);
        break;
    case MIG_DO_WRITE_HOLDER:
        cluster_write_holder(v->id, a->epoch);
        break;
    case MIG_DO_CONNECT:
        handover_connect(v);
        break;
    case MIG_DO_DISCONNECT:
        vnic_drop_peer(v);
        break;
    case MIG_DO_SEND:
        handover_send(v, a);
        break;
    case MIG_DO_FEED_START:
        s = engine_slot(v->id);
        feed_start(&v->feed, v->id, s && s->conf.settings.transfer_sessions);
        break;
    case MIG_DO_FEED_FINAL:
        feed_final(&v->feed, v->mig.offer);
        break;
    case MIG_DO_FEED_STOP:
        feed_stop(&v->feed);
        break;
    case MIG_DO_INSTALL_POLICY:
        handover_install_policy(v);
        break;
    case MIG_DO_RECORD:
        evidence_state(v, a->text);
        break;
    case MIG_DO_NOTICE:
        alert(SEV_NOTICE, "vnic", v->id, vnic_vm(v->id), "%s", a->text);
        break;
    case MIG_DO_ALARM:
        alert(SEV_ALARM, "vnic", v->id, vnic_vm(v->id), "%s", a->text);
        break;
    }
}

/* Steps the machine with fresh facts and does what it says. */
void vnic_step(struct vnic *v, struct mig_event *ev)
{
    enum mig_state was = v->mig.state;
    struct mig_facts facts;
    struct mig_out out;

    engine_refresh();
    gather(v, &facts);
    ev->facts = &facts;
    mig_step(&v->mig, ev, time_msec(), &out);
    if (v->mig.state != was)
        VLOG_INFO_RL(&rl, "%s: %s -> %s, epoch %llu%s%s", v->id, mig_state_name(was),
                     mig_state_name(v->mig.state), (unsigned long long)v->mig.epoch,
                     v->mig.peer[0] ? ", other host " : "", v->mig.peer);
    for (unsigned i = 0; i < out.n; i++) {
        if (!engine_up() && out.a[i].what != MIG_DO_DISCONNECT && out.a[i].what != MIG_DO_RECORD)
            continue; /* the facts will differ when it is back */
        execute(v, &out.a[i]);
    }
    if (was == MIG_IDLE && v->mig.state == MIG_GONE && !v->mig.peer[0]) {
        /* Found a tombstone at start; who got it may be in the database. */
        const char *to = cluster_last_destination(v->id);
        if (to)
            ovs_strlcpy(v->mig.peer, to, sizeof v->mig.peer);
    }
    if (out.n || v->mig.state != was)
        poll_immediate_wake();
}

static void step_type(struct vnic *v, enum mig_event_type type)
{
    struct mig_event ev = {.type = type};

    vnic_step(v, &ev);
}

/* --- the engine's events --------------------------------------------------------- */

void vnics_event(const struct moat_event *ev)
{
    struct vnic *v = ev->vnic[0] ? vnic_find(ev->vnic) : NULL;

    alert_engine(ev, ev->vnic[0] ? vnic_vm(ev->vnic) : "");
    if (!v)
        return;
    switch (ev->type) {
    case MOAT_EV_CONNECTED:
        v->edges |= 1u << MIG_EV_CONNECTED;
        break;
    case MOAT_EV_REPLUGGED:
        v->claim_at = 0;
        break;
    case MOAT_EV_PRECOPY:
        if (!ev->value)
            v->edges |= 1u << MIG_EV_PRECOPY_OFF;
        break;
    case MOAT_EV_HOLD_EXPIRED:
        v->edges |= 1u << MIG_EV_HOLD_EXPIRED;
        break;
    case MOAT_EV_FROZEN:
        v->frozen_at_us = time_usec();
        break;
    case MOAT_EV_OPENED:
        v->hold_us = ev->value;
        break;
    default:
        break;
    }
}

/* The engine's HOLD_EXPIRED may have been lost. */
static bool hold_is_over(struct vnic *v)
{
    const struct moat_slot_info *s = engine_slot(v->id);

    if (!s || s->state != MOAT_SLOT_ARRIVING || !s->running) {
        v->running_since = 0;
        return false;
    }
    if (!v->running_since)
        v->running_since = time_msec();
    return time_msec() - v->running_since >= s->conf.settings.hold_ms + HOLD_GRACE_MS &&
           !v->mig.expired;
}

/* --- each turn ------------------------------------------------------------------- */

static void run_one(struct vnic *v)
{
    if (v->lost) {
        v->lost = false;
        step_type(v, MIG_EV_LINK_DOWN);
    }
    if (v->up && v->peer) {
        v->up = false;
        step_type(v, MIG_EV_LINK_UP);
    }
    for (unsigned type = 0; v->edges && type < MIG_N_EVENTS; type++) {
        if (v->edges & 1u << type) {
            v->edges &= ~(1u << type);
            step_type(v, (enum mig_event_type)type);
        }
    }
    if (hold_is_over(v))
        step_type(v, MIG_EV_HOLD_EXPIRED);
    if (time_msec() >= v->claim_at)
        step_type(v, MIG_EV_FACTS);
    if (v->peer && v->feed.phase != FEED_OFF && !feed_run(&v->feed, v->peer)) {
        vnic_drop_peer(v);
        step_type(v, MIG_EV_LINK_DOWN);
    }
    if (v->peer && !peer_is_incoming(v->peer) &&
        (v->mig.state == MIG_ASKED || (v->mig.state == MIG_FILLING && v->mig.start_sent)) &&
        time_msec() - peer_last_heard(v->peer) > SILENT_MS) {
        vnic_drop_peer(v);
        step_type(v, MIG_EV_LINK_DOWN);
    }
    vnic_check(v);
}

void vnics_init(const char *host)
{
    self = xstrdup(host);
}

static void discover(void)
{
    const struct moat_slot_info *slots;
    struct shash_node *node;
    size_t n = engine_slots(&slots);

    for (size_t i = 0; i < n; i++)
        find_or_create(slots[i].conf.vnic);
    SHASH_FOR_EACH (node, ovsdb_ports())
        find_or_create(node->name);
}

void vnics_run(void)
{
    static long long check_at;
    struct shash_node *node;

    if (time_msec() >= check_at) {
        check_at = time_msec() + CHECK_MS;
        engine_touch();
        engine_refresh();
    }
    discover();
    SHASH_FOR_EACH (node, &vnics)
        run_one(node->data);
    SHASH_FOR_EACH_SAFE (node, &vnics) {
        struct vnic *v = node->data;
        if (v->mig.state != MIG_IDLE || v->peer || ovsdb_port(v->id) || !engine_up() ||
            engine_slot(v->id))
            continue;
        cluster_enforced(v->id, NULL);
        handover_forget(v);
        shash_delete(&vnics, node);
        free(v);
    }
    poll_timer_wait_until(check_at);
}

void vnics_wait(void)
{
    struct shash_node *node;
    long long now = time_msec();

    SHASH_FOR_EACH (node, &vnics) {
        const struct vnic *v = node->data;
        long long at = mig_wake_at(&v->mig);

        if (at < LLONG_MAX && engine_up())
            poll_timer_wait_until(MAX(at, now + 10));
        if (v->claim_at > now)
            poll_timer_wait_until(v->claim_at);
        if (v->lost || v->up || v->edges)
            poll_immediate_wake();
        if (v->peer)
            feed_wait(&v->feed);
        if (v->diff && !v->alarmed)
            poll_timer_wait_until(MAX(v->fix_at, now + 100));
        if (v->running_since && !v->mig.expired)
            poll_timer_wait_until(now + 100);
        if (v->peer && (v->mig.state == MIG_ASKED || v->mig.state == MIG_FILLING))
            poll_timer_wait_until(now + SILENT_MS);
        if (v->mig.state == MIG_IDLE && ovsdb_port(v->id) && !cluster_up())
            poll_timer_wait_until(now + 200); /* for the wait for the database to end */
    }
}

void vnics_exit(void)
{
    struct shash_node *node;

    SHASH_FOR_EACH (node, &vnics)
        handover_forget(node->data);
    shash_destroy_free_data(&vnics);
    free(self);
}

const struct shash *vnics_all(void)
{
    return &vnics;
}

void vnics_resync(void)
{
    struct shash_node *node;

    engine_touch();
    SHASH_FOR_EACH (node, &vnics) {
        struct vnic *v = node->data;
        v->claim_at = v->fix_at = 0;
    }
}
