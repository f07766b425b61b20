/* SPDX-License-Identifier: Apache-2.0 */

/* A vNIC's slot in the fast path: what it shall be, making it so, and the comparison
 * with what it is. */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "alert.h"
#include "cluster.h"
#include "ctl_client.h"
#include "engine.h"
#include "host_config.h"
#include "intent.h"
#include "moat/ruleset.h"
#include "openvswitch/vlog.h"
#include "ovsdb.h"
#include "reconcile.h"
#include "timeval.h"
#include "util.h"
#include "vnic_private.h"

VLOG_DEFINE_THIS_MODULE(vnic_slot);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(20, 60);

#define RETRY_MS 1000      /* after the engine refused something */
#define DIFF_ALARM_MS 1000 /* a difference that lasts so long is an alarm */

/* Notes a refusal of the engine; false then. */
bool vnic_ok(struct vnic *v, int rc, const char *what)
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

/* --- what it shall be ------------------------------------------------------------ */

static enum moat_fail orphan_mode(enum arrive_from *from)
{
    return arrive_host_setting(cluster_known() ? cluster_host_setting("on-missing-policy") : NULL,
                               host_config_get("on-missing-policy"), from);
}

/* Identity and settings for the slot, and where the settings are from. */
void vnic_wanted_conf(struct vnic *v, struct moat_slot_conf *conf)
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

/* The ruleset that this host would enforce: its own, else the one handed over. */
bool vnic_best_ruleset(struct vnic *v, const void **blob, size_t *len)
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

/* --- making it so ---------------------------------------------------------------- */

bool vnic_publish(struct vnic *v, const void *blob, size_t len)
{
    return vnic_ok(v, moat_ctl_ruleset_put(engine_ctl(), v->id, blob, len),
                   "publishing the ruleset");
}

bool vnic_set_state(struct vnic *v, const struct moat_ctl_state *st)
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
        if (!vnic_ok(v, moat_ctl_set_state(engine_ctl(), &blocked), "blocking"))
            return false;
    }
    return vnic_ok(v, moat_ctl_set_state(engine_ctl(), &copy), moat_slot_state_name(copy.state));
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
void vnic_claim(struct vnic *v, enum moat_slot_state state)
{
    struct moat_slot_conf conf;
    const void *blob;
    size_t len;

    vnic_wanted_conf(v, &conf);
    if (!conf.path[0] || time_msec() < v->claim_at)
        return;
    evict(conf.path, v->id);
    conf.state = state == MOAT_SLOT_ARRIVING ? MOAT_SLOT_ARRIVING : MOAT_SLOT_BLOCKED;
    if (!vnic_ok(v, moat_ctl_claim(engine_ctl(), &conf), "claiming its slot"))
        return;
    if (vnic_best_ruleset(v, &blob, &len) && !vnic_publish(v, blob, len))
        return;
    v->io_problem[0] = '\0';
    if (state == MOAT_SLOT_ACTIVE)
        vnic_set_state(v, &(struct moat_ctl_state){.state = MOAT_SLOT_ACTIVE, .epoch = conf.epoch});
}

void vnic_claim_orphan(struct vnic *v)
{
    struct moat_slot_info was;
    const struct moat_slot_info *s = engine_slot(v->id);
    enum arrive_from from;

    if (s)
        was = *s;
    vnic_claim(v, MOAT_SLOT_ACTIVE);
    enum moat_fail mode = orphan_mode(&from);
    snprintf(v->decided, sizeof v->decided, "on-missing-policy=%s (%s)", moat_fail_name(mode),
             arrive_from_name(from));
    const char *why = "the database cannot be reached and nothing is known of this vNIC";
    if (cluster_known())
        why = "the database knows no such vNIC";
    else if (cluster_empty())
        why = CLUSTER_EMPTY_TEXT;
    if (!s || was.conf.settings.on_missing_policy != mode)
        alert(mode == MOAT_FAIL_ALLOW ? SEV_ALARM : SEV_WARNING, "no-policy", v->id, "", "%s; %s",
              why, v->decided);
}

void vnic_open(struct vnic *v, uint64_t epoch, enum mig_open why)
{
    const struct moat_slot_info *s;
    struct moat_slot_conf conf;
    struct arrive_out out;
    const void *blob;
    size_t len;

    vnic_wanted_conf(v, &conf);
    bool have = vnic_best_ruleset(v, &blob, &len);
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
    if ((diff & DIFF_CONF) && !vnic_ok(v, moat_ctl_claim(engine_ctl(), &conf), "claiming its slot"))
        return;
    if ((diff & DIFF_RULESET) && !vnic_publish(v, blob, len))
        return;
    const char *policy_from = arrive_from_name(have ? v->policy_from : v->settings_from);
    if (!have && in.has_policy)
        policy_from = "earlier stay";
    evidence_opened(v, epoch, out.by, policy_from, want.generation);
    if (out.decided)
        alert(SEV_WARNING, "decided", v->id, conf.vm, "%s decided how it opens (epoch %llu)",
              out.by, (unsigned long long)epoch);
    vnic_set_state(v, &(struct moat_ctl_state){.state = MOAT_SLOT_ACTIVE,
                                               .epoch = epoch,
                                               .pickup_s = out.pickup_s});
}

/* --- wanted against enforced ----------------------------------------------------- */

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
        vnic_wanted_conf(v, conf);
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
        good = vnic_ok(v, moat_ctl_claim(engine_ctl(), &c), "updating its slot");
    }
    if (good && (diff & DIFF_RULESET))
        good = vnic_publish(v, blob, len);
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

void vnic_check(struct vnic *v)
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
        alert(SEV_ALARM, "difference", v->id, vnic_vm(v->id), "%s", v->problem);
    }
}
