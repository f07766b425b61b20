/* SPDX-License-Identifier: Apache-2.0 */

/* The glue around migrate.c.  Nothing here decides: facts come from ovsdb, cluster
 * and engine, decisions from migrate and arrive.
 *
 * Callbacks of connections and of the engine only note what happened where they
 * could be called from within an action; vnics_run() then tells the machine. */

#include <config.h>

#include "vnic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alert.h"
#include "cluster.h"
#include "ctl_client.h"
#include "engine.h"
#include "host_config.h"
#include "intent.h"
#include "moat/ruleset.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/shash.h"
#include "openvswitch/vlog.h"
#include "ovsdb.h"
#include "peer.h"
#include "reconcile.h"
#include "timeval.h"
#include "util.h"
#include "wire.h"

VLOG_DEFINE_THIS_MODULE(vnic);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(20, 60);

#define CHECK_MS 5000      /* wanted and enforced are compared at least so often */
#define RETRY_MS 1000      /* after the engine refused something */
#define DIFF_ALARM_MS 1000 /* a difference that lasts so long is an alarm */
#define SILENT_MS 5000     /* a source that says nothing is taken for dead */
#define HOLD_GRACE_MS 300  /* the engine's own event should have come by now */

static char *self;
static struct shash vnics = SHASH_INITIALIZER(&vnics);
static unsigned long long n_refused;

static void run_one(struct vnic *);
static void step(struct vnic *, struct mig_event *);

static struct vnic *find(const char *id)
{
    return shash_find_data(&vnics, id);
}

static struct vnic *find_or_create(const char *id)
{
    struct vnic *v = find(id);

    if (!v) {
        v = xzalloc(sizeof *v);
        ovs_strlcpy(v->id, id, sizeof v->id);
        mig_init(&v->mig);
        shash_add(&vnics, id, v);
    }
    return v;
}

static const char *vm_of(const char *id)
{
    const struct moat_slot_info *s = engine_slot(id);

    return s ? s->conf.vm : "";
}

static void drop_peer(struct vnic *v)
{
    if (v->peer)
        peer_close(v->peer);
    v->peer = NULL;
    v->lost = v->up = false;
}

static void forget_handover(struct vnic *v)
{
    free(v->handed_blob);
    v->handed_blob = NULL;
    v->handed_len = 0;
    v->has_handover = v->same_policy = false;
    v->accepted = v->refused = 0;
}

/* --- facts ---------------------------------------------------------------------- */

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

/* --- the slot ---------------------------------------------------------------------- */

/* Notes a refusal of the engine; false then. */
static bool ok(struct vnic *v, int rc, const char *what)
{
    engine_touch();
    if (!rc)
        return true;
    const char *why = engine_up() ? engine_error() : "the fast path is away";
    snprintf(v->io_problem, sizeof v->io_problem, "%s: %.150s", what, why);
    VLOG_WARN_RL(&rl, "%s: %s: %s", v->id, what, why);
    v->claim_at = time_msec() + RETRY_MS;
    return false;
}

static enum moat_fail orphan_mode(enum arrive_from *from)
{
    return arrive_host_setting(cluster_known() ? cluster_host_setting("on-missing-policy") : NULL,
                               host_config_get("on-missing-policy"), from);
}

/* Identity and settings for the slot, and where the settings are from. */
static void wanted_conf(struct vnic *v, struct moat_slot_conf *conf)
{
    const struct intent *it = intent_get(v->id);
    const struct ovsdb_port *port = ovsdb_port(v->id);
    const struct moat_slot_info *s = engine_slot(v->id);

    if (it->known) {
        *conf = it->conf;
        v->settings_from = FROM_DATABASE;
    } else if (v->has_handover) {
        *conf = v->handed_conf;
        v->settings_from = FROM_HAND_OVER;
    } else {
        enum arrive_from from;
        memset(conf, 0, sizeof *conf);
        arrive_orphan(orphan_mode(&from), &conf->settings);
        v->settings_from = from;
    }
    ovs_strlcpy(conf->vnic, v->id, sizeof conf->vnic);
    memset(conf->path, 0, sizeof conf->path);
    if (port)
        ovs_strlcpy(conf->path, port->path, sizeof conf->path);
    else if (s)
        ovs_strlcpy(conf->path, s->conf.path, sizeof conf->path);
    conf->epoch = v->mig.epoch;
    if (s && s->conf.epoch > conf->epoch)
        conf->epoch = s->conf.epoch;
    conf->state = MOAT_SLOT_BLOCKED;
}

static bool publish(struct vnic *v, const void *blob, size_t len)
{
    return ok(v, moat_ctl_ruleset_put(engine_ctl(), v->id, blob, len), "publishing the ruleset");
}

/* The ruleset that this host would enforce: its own, else the one handed over. */
static bool best_ruleset(struct vnic *v, const void **blob, size_t *len)
{
    const struct intent *it = intent_get(v->id);

    if (it->known && it->blob) {
        v->policy_from = FROM_DATABASE;
        *blob = it->blob;
        *len = it->len;
        return true;
    }
    if (v->has_handover && v->handed_len) {
        v->policy_from = FROM_HAND_OVER;
        *blob = v->handed_blob;
        *len = v->handed_len;
        return true;
    }
    v->policy_from = FROM_NOWHERE;
    return false;
}

static bool slot_state(struct vnic *v, const struct moat_ctl_state *st)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    struct moat_ctl_state copy = *st;

    ovs_strlcpy(copy.vnic, v->id, sizeof copy.vnic);
    if (s && copy.epoch && copy.epoch < s->conf.epoch)
        copy.epoch = 0;
    if (copy.state == MOAT_SLOT_DEPARTED && s && s->state != MOAT_SLOT_FROZEN &&
        s->state != MOAT_SLOT_DEPARTED) {
        /* The engine knows no other way there. */
        struct moat_ctl_state blocked = copy;
        blocked.state = MOAT_SLOT_BLOCKED;
        if (!ok(v, moat_ctl_set_state(engine_ctl(), &blocked), "blocking"))
            return false;
    }
    return ok(v, moat_ctl_set_state(engine_ctl(), &copy), moat_slot_state_name(copy.state));
}

/* Another vNIC's slot may sit on our path: that of a port that is no more. */
static void evict(const char *path, const char *id)
{
    const struct moat_slot_info *s = engine_slot_of_path(path);

    if (!s || !strcmp(s->conf.vnic, id))
        return;
    const struct ovsdb_port *port = ovsdb_port(s->conf.vnic);
    if (port && !strcmp(port->path, path))
        return;
    alert(SEV_NOTICE, "slot-evicted", s->conf.vnic, s->conf.vm,
          "its port now belongs to vNIC %s: slot released", id);
    moat_ctl_release(engine_ctl(), s->conf.vnic);
    engine_touch();
    engine_refresh();
}

/* Claims the slot, gives it its ruleset, and only then opens it: a slot is never
 * open without the policy that there is. */
static void claim(struct vnic *v, enum moat_slot_state state)
{
    struct moat_slot_conf conf;
    const void *blob;
    size_t len;

    wanted_conf(v, &conf);
    if (!conf.path[0] || time_msec() < v->claim_at)
        return;
    evict(conf.path, v->id);
    conf.state = state == MOAT_SLOT_ARRIVING ? MOAT_SLOT_ARRIVING : MOAT_SLOT_BLOCKED;
    if (!ok(v, moat_ctl_claim(engine_ctl(), &conf), "claiming its slot"))
        return;
    if (best_ruleset(v, &blob, &len) && !publish(v, blob, len))
        return;
    v->io_problem[0] = '\0';
    if (state == MOAT_SLOT_ACTIVE)
        slot_state(v, &(struct moat_ctl_state){.state = MOAT_SLOT_ACTIVE, .epoch = conf.epoch});
}

static void claim_orphan(struct vnic *v)
{
    struct moat_slot_info was;
    const struct moat_slot_info *s = engine_slot(v->id);
    enum arrive_from from;

    if (s)
        was = *s;
    claim(v, MOAT_SLOT_ACTIVE);
    enum moat_fail mode = orphan_mode(&from);
    snprintf(v->decided, sizeof v->decided, "on-missing-policy=%s (%s)", moat_fail_name(mode),
             arrive_from_name(from));
    if (!s || was.conf.settings.on_missing_policy != mode)
        alert(mode == MOAT_FAIL_ALLOW ? SEV_ALARM : SEV_WARNING, "no-policy", v->id, "",
              "%s: %s", cluster_known() ? "the database knows no such vNIC"
                                        : "the database cannot be reached and nothing is known "
                                          "of this vNIC",
              v->decided);
}

/* --- evidence ---------------------------------------------------------------------- */

static struct cluster_migration *record(struct vnic *v)
{
    struct cluster_migration *m = cluster_migration(v->id, v->rec_epoch);
    const struct moat_slot_info *s = engine_slot(v->id);

    ovs_strlcpy(m->source, v->mig.peer, sizeof m->source);
    if (s && s->conf.vm[0])
        ovs_strlcpy(m->vm, s->conf.vm, sizeof m->vm);
    else if (v->has_handover)
        ovs_strlcpy(m->vm, v->handed_conf.vm, sizeof m->vm);
    cluster_migration_changed(m);
    return m;
}

static void evidence_u64(struct cluster_migration *m, const char *key, uint64_t value)
{
    char text[24];

    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    smap_replace(&m->evidence, key, text);
}

static void do_record(struct vnic *v, const char *state)
{
    if (!strcmp(state, "precopy") || !strcmp(state, "frozen"))
        v->rec_epoch = v->mig.offer;
    if (!v->rec_epoch)
        return;
    struct cluster_migration *m = record(v);
    if (!strcmp(state, "precopy")) {
        m->started_at = time_wall();
        m->finished_at = 0;
        smap_clear(&m->evidence);
    }
    if (!strcmp(state, "completed") || !strcmp(state, "rolled-back") || !strcmp(state, "failed"))
        m->finished_at = time_wall();
    if (!strcmp(state, "completed")) {
        evidence_u64(m, "hold-us", (uint64_t)v->hold_us);
        alert(SEV_INFO, "migrated", v->id, m->vm,
              "arrived from %s with epoch %llu: %s session records, held %llu us, decided by %s",
              m->source[0] ? m->source : "nowhere", (unsigned long long)v->rec_epoch,
              smap_get_def(&m->evidence, "sessions-accepted", "0"), (unsigned long long)v->hold_us,
              v->decided);
    }
    ovs_strlcpy(m->state, state, sizeof m->state);
}

static void do_open(struct vnic *v, uint64_t epoch, enum mig_open why)
{
    const struct moat_slot_info *s;
    struct moat_slot_conf conf;
    struct arrive_out out;
    const void *blob;
    size_t len;

    wanted_conf(v, &conf);
    bool have = best_ruleset(v, &blob, &len);
    s = engine_slot(v->id);
    struct arrive_in in = {.has_policy = have || (s && s->has_ruleset),
                           .settings = &conf.settings,
                           .settings_from = v->settings_from,
                           .why = why};
    arrive_decide(&in, &out);
    ovs_strlcpy(v->decided, out.by, sizeof v->decided);
    /* Policy first: usually it is there since POLICY came. */
    struct reconcile_want want = {.conf = conf.path[0] ? &conf : NULL, .state = MIG_FILLING};
    if (have) {
        const struct moat_ruleset_head *h = blob;
        want.ruleset = true;
        want.generation = h->generation;
        memcpy(want.digest, h->digest, sizeof want.digest);
    }
    unsigned diff = reconcile_compare(&want, s);
    if ((diff & DIFF_CONF) && !ok(v, moat_ctl_claim(engine_ctl(), &conf), "claiming its slot"))
        return;
    if ((diff & DIFF_RULESET) && !publish(v, blob, len))
        return;
    v->rec_epoch = epoch;
    engine_touch(); /* for the count of sessions that are here now */
    engine_refresh();
    s = engine_slot(v->id);
    struct cluster_migration *m = record(v);
    smap_replace(&m->evidence, "decided-by", out.by);
    smap_replace(&m->evidence, "policy-from",
                 have ? arrive_from_name(v->policy_from)
                      : in.has_policy ? "earlier stay" : arrive_from_name(v->settings_from));
    evidence_u64(m, "policy-generation", want.generation);
    evidence_u64(m, "sessions-accepted", v->accepted);
    evidence_u64(m, "sessions-refused", v->refused);
    if (!smap_get(&m->evidence, "sessions-sent"))
        evidence_u64(m, "sessions-sent", v->accepted + v->refused);
    if (s)
        evidence_u64(m, "sessions-live-destination", s->sessions);
    if (out.decided)
        alert(SEV_WARNING, "decided", v->id, conf.vm, "%s decided how it opens (epoch %llu)",
              out.by, (unsigned long long)epoch);
    slot_state(v, &(struct moat_ctl_state){
                      .state = MOAT_SLOT_ACTIVE, .epoch = epoch, .pickup_s = out.pickup_s});
}

/* --- frames out ----------------------------------------------------------------------- */

static bool fill_policy(struct vnic *v, struct wire *w, void **blob)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    size_t len = 0;

    if (!s)
        return false;
    w->conf = s->conf;
    memset(w->conf.path, 0, sizeof w->conf.path);
    w->conf.state = 0;
    w->conf.epoch = w->epoch = v->mig.epoch;
    int rc = moat_ctl_ruleset_get(engine_ctl(), v->id, blob, &len);
    if (rc && rc != -ENOENT && moat_ctl_is_dead(engine_ctl()))
        return false;
    if (!rc && len >= sizeof(struct moat_ruleset_head)) {
        const struct moat_ruleset_head *h = *blob;
        w->generation = h->generation;
        memcpy(w->digest, h->digest, sizeof w->digest);
        w->blob = *blob;
        w->blob_len = len;
    }
    return true;
}

static void do_send(struct vnic *v, const struct mig_action *a)
{
    struct wire w = {.type = a->frame, .flags = a->flags, .epoch = a->epoch, .ok = a->ok};
    void *blob = NULL;

    if (!v->peer)
        return;
    if (a->text)
        ovs_strlcpy(w.text, a->text, sizeof w.text);
    switch ((enum wire_type)a->frame) {
    case WIRE_REQUEST:
        ovs_strlcpy(w.vnic, v->id, sizeof w.vnic);
        ovs_strlcpy(w.host, self, sizeof w.host);
        break;
    case WIRE_REFUSE:
        n_refused++;
        alert(SEV_WARNING, "request-refused", v->id, vm_of(v->id), "host %s asked for it: %s",
              peer_host(v->peer), w.text);
        break;
    case WIRE_POLICY:
        if (!fill_policy(v, &w, &blob)) {
            w = (struct wire){.type = WIRE_REFUSE, .flags = MIG_REFUSE_DENIED};
            ovs_strlcpy(w.text, "the fast path of the source does not answer", sizeof w.text);
        }
        break;
    case WIRE_FINAL_ACK:
        w.accepted = v->accepted;
        w.refused = v->refused;
        break;
    case WIRE_DONE:
        w.wait_us = v->wait_us;
        break;
    default:
        break;
    }
    peer_send(v->peer, &w);
    free(blob);
}

/* --- actions ------------------------------------------------------------------------- */

static void do_connect(struct vnic *v)
{
    const char *address = cluster_peer_address(v->mig.peer);

    if (v->peer)
        return;
    if (!address) {
        alert(SEV_WARNING, "no-peer-address", v->id, vm_of(v->id),
              "the database has no address of host %s, which holds it", v->mig.peer);
        v->lost = true;
        return;
    }
    v->peer = peer_open(address, v->mig.peer, v);
    if (!v->peer)
        v->lost = true;
}

static void do_install_policy(struct vnic *v)
{
    const struct intent *it = intent_get(v->id);
    struct moat_slot_conf conf;
    const void *blob;
    size_t len;

    v->same_policy = false;
    v->accepted = v->refused = 0;
    wanted_conf(v, &conf);
    conf.state = MOAT_SLOT_ARRIVING;
    if (conf.path[0])
        ok(v, moat_ctl_claim(engine_ctl(), &conf), "claiming its slot");
    if (!best_ruleset(v, &blob, &len))
        return;
    if (!publish(v, blob, len))
        return;
    const struct moat_ruleset_head *ours = blob;
    const struct moat_ruleset_head *theirs = (const void *)v->handed_blob;
    v->same_policy = v->handed_len >= sizeof *theirs &&
                     !memcmp(ours->digest, theirs->digest, sizeof ours->digest);
    VLOG_INFO("%s: policy generation %llu from %s%s%s", v->id,
              (unsigned long long)ours->generation, arrive_from_name(v->policy_from),
              v->same_policy ? ", the same as at the source" : "",
              it->known ? "" : "; the database does not know the vNIC");
}

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
    slot_state(v, &st);
}

static void execute(struct vnic *v, const struct mig_action *a)
{
    const struct moat_slot_info *s;

    VLOG_DBG("%s: action %d state %u epoch %llu %s", v->id, a->what, a->state,
             (unsigned long long)a->epoch, a->what == MIG_DO_SEND ? wire_type_name(a->frame) : "");
    switch (a->what) {
    case MIG_DO_CLAIM:
        claim(v, (enum moat_slot_state)a->state);
        break;
    case MIG_DO_CLAIM_ORPHAN:
        claim_orphan(v);
        break;
    case MIG_DO_RELEASE:
        forget_handover(v);
        v->rec_epoch = 0;
        ok(v, moat_ctl_release(engine_ctl(), v->id), "releasing its slot");
        break;
    case MIG_DO_STATE:
        slot_state(v, &(struct moat_ctl_state){.state = a->state, .epoch = a->epoch});
        break;
    case MIG_DO_OPEN:
        do_open(v, a->epoch, a->why);
        break;
    case MIG_DO_PRECOPY:
        do_precopy(v, a->ok);
        break;
    case MIG_DO_FLUSH:
        v->accepted = v->refused = 0;
        ok(v, moat_ctl_flush(engine_ctl(), v->id), "forgetting its sessions");
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
        do_connect(v);
        break;
    case MIG_DO_DISCONNECT:
        drop_peer(v);
        break;
    case MIG_DO_SEND:
        do_send(v, a);
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
        do_install_policy(v);
        break;
    case MIG_DO_RECORD:
        do_record(v, a->text);
        break;
    case MIG_DO_NOTICE:
        alert(SEV_NOTICE, "vnic", v->id, vm_of(v->id), "%s", a->text);
        break;
    case MIG_DO_ALARM:
        alert(SEV_ALARM, "vnic", v->id, vm_of(v->id), "%s", a->text);
        break;
    }
}

/* Steps the machine with fresh facts and does what it says. */
static void step(struct vnic *v, struct mig_event *ev)
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

    step(v, &ev);
}

/* --- connections --------------------------------------------------------------------- */

void vnics_peer_connected(struct peer *p)
{
    struct vnic *v = peer_owner(p);

    if (v)
        v->up = true;
    poll_immediate_wake();
}

void vnics_peer_closed(struct peer *p, const char *why)
{
    struct vnic *v = peer_owner(p);

    if (v && v->peer == p) {
        v->peer = NULL;
        v->lost = true;
        v->up = false;
        VLOG_INFO_RL(&rl, "%s: connection to %s lost: %s", v->id, peer_host(p), why);
    }
    poll_immediate_wake();
}

static void refuse_request(struct peer *p, const char *vnic, enum mig_refuse code, const char *why)
{
    struct wire w = {.type = WIRE_REFUSE, .flags = (uint16_t)code};

    n_refused++;
    ovs_strlcpy(w.text, why, sizeof w.text);
    alert(SEV_WARNING, "request-refused", vnic, "", "host %s asked for it: %s", peer_host(p), why);
    if (peer_send(p, &w))
        peer_close(p);
}

static void on_request(struct peer *p, const struct wire *w)
{
    struct vnic *v = find(w->vnic);
    enum mig_refuse code = MIG_REFUSE_NOT_HERE;
    const char *why = "this host does not hold the vNIC";

    if (strcmp(w->host, peer_host(p))) {
        refuse_request(p, w->vnic, MIG_REFUSE_DENIED, "the certificate belongs to another host");
        return;
    }
    bool permitted = cluster_known() && cluster_permits(w->vnic, w->host);
    if (!v || !mig_may_ask(&v->mig, w->host, permitted, &code, &why)) {
        refuse_request(p, w->vnic, code, why);
        return;
    }
    if (!engine_up()) {
        refuse_request(p, w->vnic, MIG_REFUSE_DENIED, "the fast path of the source is away");
        return;
    }
    if (v->peer && v->peer != p) {
        peer_close(v->peer);
        v->lost = v->up = false;
    }
    v->peer = p;
    peer_set_owner(p, v);
    struct mig_event ev = {.type = MIG_EV_REQUEST,
                           .epoch = w->epoch,
                           .flags = w->flags,
                           .ok = permitted,
                           .host = w->host};
    step(v, &ev);
    if (!v->mig.link && v->peer == p)
        drop_peer(v);
}

static void on_sessions(struct vnic *v, const struct wire *w)
{
    struct moat_ctl_import_reply sum;

    if (v->mig.state != MIG_FILLING || !engine_up())
        return;
    int rc = moat_ctl_import(engine_ctl(), v->id, v->same_policy, w->blob, w->blob_len, &sum);
    v->accepted += sum.accepted;
    v->refused += sum.refused;
    if (rc) {
        VLOG_WARN_RL(&rl, "%s: import: %s", v->id, engine_error());
        v->refused += w->n - MIN(w->n, sum.accepted + sum.refused);
    }
}

static void on_policy(struct vnic *v, const struct wire *w)
{
    if (v->mig.state != MIG_ASKED)
        return;
    forget_handover(v);
    v->has_handover = true;
    v->handed_conf = w->conf;
    v->handed_len = w->blob_len;
    v->handed_blob = w->blob_len ? xmemdup(w->blob, w->blob_len) : NULL;
    v->handed_generation = w->generation;
}

static void on_final(struct vnic *v, const struct wire *w)
{
    if (v->mig.state != MIG_FILLING)
        return;
    v->rec_epoch = w->epoch;
    struct cluster_migration *m = record(v);
    evidence_u64(m, "sessions-sent", w->records);
    evidence_u64(m, "rounds", w->round);
    evidence_u64(m, "final-delta", w->final_records);
    evidence_u64(m, "final-bytes", w->final_bytes);
    evidence_u64(m, "sessions-live-source", w->live);
    if (v->accepted + v->refused != w->records || v->refused)
        alert(SEV_ALARM, "sessions-lost", v->id, v->handed_conf.vm,
              "%llu session records were sent, %llu accepted, %llu refused",
              (unsigned long long)w->records, (unsigned long long)v->accepted,
              (unsigned long long)v->refused);
}

static void on_done(struct vnic *v, const struct wire *w)
{
    if (!v->rec_epoch)
        return;
    struct cluster_migration *m = record(v);
    if (!smap_get(&m->evidence, "wait-ms")) {
        char text[32];
        snprintf(text, sizeof text, "%llu.%03llu", (unsigned long long)w->wait_us / 1000,
                 (unsigned long long)w->wait_us % 1000);
        smap_replace(&m->evidence, "wait-ms", text);
    }
}

static void on_final_ack(struct vnic *v, const struct wire *w)
{
    if (v->mig.state == MIG_FROZEN && w->epoch == v->mig.offer &&
        v->feed.phase == FEED_SENT && w->accepted != v->feed.records)
        alert(SEV_ALARM, "sessions-lost", v->id, vm_of(v->id),
              "%llu session records were sent to %s, which accepted %llu and refused %llu",
              (unsigned long long)v->feed.records, v->mig.peer, (unsigned long long)w->accepted,
              (unsigned long long)w->refused);
}

static enum mig_event_type event_of(unsigned type)
{
    static const enum mig_event_type map[WIRE_N_TYPES] = {
        [WIRE_REFUSE] = MIG_EV_REFUSE,       [WIRE_POLICY] = MIG_EV_POLICY,
        [WIRE_START] = MIG_EV_START,         [WIRE_STOP] = MIG_EV_STOP,
        [WIRE_FENCED] = MIG_EV_FENCED,       [WIRE_FINAL] = MIG_EV_FINAL,
        [WIRE_FINAL_ACK] = MIG_EV_FINAL_ACK, [WIRE_DONE] = MIG_EV_DONE,
        [WIRE_STARTED] = MIG_EV_STARTED,     [WIRE_OPENED] = MIG_EV_OPENED,
        [WIRE_TAKE_BACK] = MIG_EV_TAKE_BACK, [WIRE_TAKEN_BACK] = MIG_EV_TAKEN_BACK,
        [WIRE_CANCEL] = MIG_EV_CANCEL,
    };

    return map[type];
}

/* Which end may send what: the one that called is the destination. */
static bool frame_fits(const struct peer *p, unsigned type)
{
    static const unsigned from_destination =
        1u << WIRE_REQUEST | 1u << WIRE_START | 1u << WIRE_STOP | 1u << WIRE_FINAL_ACK |
        1u << WIRE_STARTED | 1u << WIRE_OPENED | 1u << WIRE_TAKEN_BACK;

    return !!(from_destination & 1u << type) == peer_is_incoming(p);
}

void vnics_peer_frame(struct peer *p, const struct wire *w)
{
    struct vnic *v = peer_owner(p);

    if (!frame_fits(p, w->type) || (!v && w->type != WIRE_REQUEST) ||
        (w->type == WIRE_POLICY && v && strcmp(w->conf.vnic, v->id))) {
        alert(SEV_WARNING, "protocol", v ? v->id : "", "", "host %s sent %s out of place",
              peer_host(p), wire_type_name(w->type));
        if (v && v->peer == p) {
            v->peer = NULL;
            v->lost = true;
        }
        peer_close(p);
        return;
    }
    if (w->type == WIRE_REQUEST) {
        if (v && strcmp(v->id, w->vnic)) /* one connection is one vNIC's */
            refuse_request(p, w->vnic, MIG_REFUSE_DENIED, "the connection is another vNIC's");
        else
            on_request(p, w);
        return;
    }
    if (v->peer != p)
        return;
    switch ((enum wire_type)w->type) {
    case WIRE_SESSIONS:
        on_sessions(v, w);
        return;
    case WIRE_ROUND:
        return;
    case WIRE_POLICY:
        on_policy(v, w);
        break;
    case WIRE_FINAL:
        on_final(v, w);
        break;
    case WIRE_FINAL_ACK:
        on_final_ack(v, w);
        break;
    case WIRE_DONE:
        on_done(v, w);
        break;
    case WIRE_REFUSE:
        alert(SEV_WARNING, "refused-by-holder", v->id, vm_of(v->id), "host %s: %s", peer_host(p),
              w->text);
        break;
    default:
        break;
    }
    struct mig_event ev = {.type = event_of(w->type),
                           .epoch = w->type == WIRE_POLICY ? w->conf.epoch : w->epoch,
                           .flags = w->flags,
                           .ok = w->ok};
    step(v, &ev);
    if (v->mig.state == MIG_HOLDING && !v->mig.link && v->peer == p)
        drop_peer(v);
}

/* --- the engine's events ---------------------------------------------------------------- */

void vnics_event(const struct moat_event *ev)
{
    struct vnic *v = ev->vnic[0] ? find(ev->vnic) : NULL;

    alert_engine(ev, ev->vnic[0] ? vm_of(ev->vnic) : "");
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

/* --- wanted against enforced --------------------------------------------------------------- */

static void fill_want(struct vnic *v, struct reconcile_want *want, struct moat_slot_conf *conf,
                      const void **blob, size_t *len)
{
    const struct intent *it = intent_get(v->id);

    memset(want, 0, sizeof *want);
    want->state = v->mig.state;
    *blob = NULL;
    *len = 0;
    if (it->known || v->mig.orphan) {
        /* An orphan that was here before the agent keeps what it has until the
         * database has spoken. */
        if (v->mig.orphan && !it->known && !v->decided[0])
            return;
        wanted_conf(v, conf);
        want->conf = conf;
    }
    if (it->known && it->blob) {
        want->ruleset = true;
        want->generation = it->generation;
        memcpy(want->digest, it->digest, sizeof want->digest);
        *blob = it->blob;
        *len = it->len;
    }
}

static void fix(struct vnic *v, unsigned diff, const struct moat_slot_conf *conf, const void *blob,
                size_t len)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    bool good = true;

    if (diff & DIFF_CONF) {
        struct moat_slot_conf c = *conf;
        c.state = s->state == MOAT_SLOT_ARRIVING ? MOAT_SLOT_ARRIVING : MOAT_SLOT_BLOCKED;
        good = ok(v, moat_ctl_claim(engine_ctl(), &c), "updating its slot");
    }
    if (good && (diff & DIFF_RULESET))
        good = publish(v, blob, len);
    if (good)
        v->io_problem[0] = '\0';
    v->fix_at = time_msec() + (good ? 0 : RETRY_MS);
    engine_refresh();
}

static void report(struct vnic *v, const struct reconcile_want *want,
                   const struct moat_slot_info *s, unsigned diff)
{
    const struct intent *it = intent_get(v->id);
    struct cluster_enforced e;

    memset(&e, 0, sizeof e);
    v->problem[0] = '\0';
    if (diff)
        reconcile_text(diff, want, s, v->problem, sizeof v->problem);
    if (diff && v->io_problem[0])
        ovs_strlcpy(v->problem, v->io_problem, sizeof v->problem);
    else if (!diff && it->problem[0])
        ovs_strlcpy(v->problem, it->problem, sizeof v->problem);
    else if (!diff && v->mig.orphan)
        ovs_strlcpy(v->problem, v->decided[0] ? v->decided : "the database does not know it",
                    sizeof v->problem);
    if (!s) {
        cluster_enforced(v->id, v->mig.state == MIG_IDLE && !v->problem[0] ? NULL : &e);
        return;
    }
    ovs_strlcpy(e.state, moat_slot_state_name(s->state), sizeof e.state);
    ovs_strlcpy(e.problem, v->problem, sizeof e.problem);
    e.epoch = s->conf.epoch;
    e.generation = s->generation;
    if (s->has_ruleset)
        reconcile_hex(s->digest, e.digest);
    if (want->ruleset) {
        e.intended_generation = want->generation;
        reconcile_hex(want->digest, e.intended_digest);
    }
    cluster_enforced(v->id, &e);
}

static void check(struct vnic *v)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    struct reconcile_want want;
    struct moat_slot_conf conf;
    const void *blob;
    size_t len;

    if (!engine_up())
        return;
    fill_want(v, &want, &conf, &blob, &len);
    unsigned diff = reconcile_compare(&want, s);
    if (s && (diff & (DIFF_CONF | DIFF_RULESET)) && time_msec() >= v->fix_at) {
        fix(v, diff, &conf, blob, len);
        s = engine_slot(v->id);
        if (!engine_up())
            return;
        diff = reconcile_compare(&want, s);
    }
    if (!diff) {
        v->diff_since = 0;
        v->alarmed = false;
    } else if (!v->diff_since) {
        v->diff_since = time_msec();
    }
    v->diff = diff;
    report(v, &want, s, diff);
    if (diff && !v->alarmed && time_msec() - v->diff_since >= DIFF_ALARM_MS) {
        v->alarmed = true;
        alert(SEV_ALARM, "difference", v->id, vm_of(v->id), "%s", v->problem);
    }
}

/* --- each turn ------------------------------------------------------------------------------ */

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
        drop_peer(v);
        step_type(v, MIG_EV_LINK_DOWN);
    }
    if (v->peer && !peer_is_incoming(v->peer) &&
        (v->mig.state == MIG_ASKED || (v->mig.state == MIG_FILLING && v->mig.start_sent)) &&
        time_msec() - peer_last_heard(v->peer) > SILENT_MS) {
        drop_peer(v);
        step_type(v, MIG_EV_LINK_DOWN);
    }
    check(v);
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
        forget_handover(v);
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
        forget_handover(node->data);
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

unsigned long long vnics_n_refused(void)
{
    return n_refused;
}
