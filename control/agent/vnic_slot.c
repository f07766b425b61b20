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

static bool is_lost(int rc)
{
    return rc == -ECONNRESET || rc == -EPIPE || rc == -ENOTCONN;
}

/* Notes a refusal of the engine; false then. */
bool vnic_ok(struct vnic *v, int rc, const char *what)
{
    engine_touch();
    if (!rc)
        return true;
    if (is_lost(rc) && engine_up()) {
        VLOG_INFO("%s: %s: the engine was replaced meanwhile; once more", v->id, what);
        v->claim_at = 0;
        return false;
    }
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

/* Opens the first slot of a vNIC as its settings ask: for a time what runs is picked up,
 * and what is refused passes.  False: it shall enforce at once.  Quarantine is not for
 * later, and without a ruleset there is nothing to be enrolled into. */
static bool enroll(struct vnic *v, const struct moat_slot_conf *conf)
{
    const struct moat_settings *s = &conf->settings;

    if (!s->enroll_s || s->quarantine)
        return false;
    if (!vnic_set_state(v, &(struct moat_ctl_state){.state = MOAT_SLOT_ENROLLING,
                                                    .epoch = conf->epoch,
                                                    .pickup_s = s->enroll_s}))
        return false;
    alert(SEV_NOTICE, "enrolling", v->id, conf->vm,
          "its first firewall: for %u s connections are picked up, and what policy refuses is "
          "only counted and logged",
          s->enroll_s);
    return true;
}

/* Whoever is being fed goes on being fed. */
static bool end_enrolment(struct vnic *v)
{
    bool fed = v->mig.state == MIG_FEEDING;

    return vnic_set_state(v, &(struct moat_ctl_state){
                                 .state = MOAT_SLOT_ACTIVE,
                                 .precopy = fed,
                                 .wait_ms = fed ? host_config_uint("handover-wait-ms", 400) : 0});
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
    if (!engine_slot(v->id))
        v->quarantine = QUARANTINE_NONE;
    evict(conf.path, v->id);
    conf.state = state == MOAT_SLOT_ARRIVING ? MOAT_SLOT_ARRIVING : MOAT_SLOT_BLOCKED;
    if (!vnic_ok(v, moat_ctl_claim(engine_ctl(), &conf), "claiming its slot"))
        return;
    bool have = vnic_best_ruleset(v, &blob, &len);
    if (have && !vnic_publish(v, blob, len))
        return;
    v->io_problem[0] = '\0';
    if (state == MOAT_SLOT_ENROLLING && have && enroll(v, &conf))
        return;
    if (state == MOAT_SLOT_ACTIVE || state == MOAT_SLOT_ENROLLING)
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

/* What arrives enforces; but what its enrolment had not seen yet may still be picked up. */
static uint32_t enroll_rest_s(const struct vnic *v)
{
    long long rest_ms = v->has_handover ? v->enroll_until - time_msec() : 0;

    return rest_ms > 0 ? (uint32_t)((rest_ms + 999) / 1000) : 0;
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
                                               .pickup_s = MAX(out.pickup_s, enroll_rest_s(v))});
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

/* Settings before rules: sessions are judged again when the rules come, and quarantine
 * then cuts those that are idle. */
static void fix(struct vnic *v, unsigned diff, const struct reconcile_want *want,
                const struct moat_slot_conf *conf, const void *blob, size_t len)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    bool good = true;

    if (reconcile_enrolls_too_long(want, s))
        good = end_enrolment(v);
    if (good && (diff & DIFF_CONF)) {
        struct moat_slot_conf c = *conf;
        c.state = s->state == MOAT_SLOT_ARRIVING ? MOAT_SLOT_ARRIVING : MOAT_SLOT_BLOCKED;
        good = vnic_ok(v, moat_ctl_claim(engine_ctl(), &c), "updating its slot");
    }
    if (good && (diff & DIFF_RULESET))
        good = vnic_publish(v, blob, len);
    if (good)
        v->io_problem[0] = '\0';
    v->fix_at = good ? 0 : v->claim_at; /* as vnic_ok() has set it */
    engine_refresh();
}

static enum vnic_quarantine quarantine_of(const struct intent *it, const struct moat_settings *s)
{
    return !s->quarantine    ? QUARANTINE_NONE
           : it->by_operator ? QUARANTINE_OPERATOR
                             : QUARANTINE_POLICY;
}

/* Says what has changed since the last time, now that it is enforced. */
static void note_quarantine(struct vnic *v, const struct reconcile_want *want,
                            const struct moat_slot_info *s, unsigned diff)
{
    static const char *const texts[] = {
        [QUARANTINE_NONE] = "quarantine is lifted: the policy's rules hold",
        [QUARANTINE_POLICY] = "quarantine, base tier only: no rule of the policy names the VM",
        [QUARANTINE_OPERATOR] =
            "quarantine by an operator: base tier only, whatever the policy says",
    };
    const struct intent *it = intent_get(v->id);

    if (!s || !it->known || !want->conf || !reconcile_applies(want->state) ||
        (diff & (DIFF_CONF | DIFF_RULESET)))
        return;
    enum vnic_quarantine now = quarantine_of(it, &s->conf.settings);
    if (now != v->quarantine)
        alert_always(SEV_NOTICE, "quarantine", v->id, s->conf.vm, "%s", texts[now]);
    v->quarantine = now;
}

static const char *quarantine_name(enum vnic_quarantine q)
{
    return q == QUARANTINE_OPERATOR ? "operator" : q == QUARANTINE_POLICY ? "policy" : "";
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
    ovs_strlcpy(e.quarantine, quarantine_name(v->quarantine), sizeof e.quarantine);
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
    if (s && v->quarantine == QUARANTINE_UNKNOWN) /* as it was left: nothing new to be said */
        v->quarantine = quarantine_of(intent_get(v->id), &s->conf.settings);
    fill_want(v, &want, &conf, &blob, &len);
    unsigned diff = reconcile_compare(&want, s);
    if (s && ((diff & (DIFF_CONF | DIFF_RULESET)) || reconcile_enrolls_too_long(&want, s)) &&
        time_msec() >= v->fix_at) {
        fix(v, diff, &want, &conf, blob, len);
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
    note_quarantine(v, &want, s, diff);
    report(v, &want, s, diff);
    if (diff && !v->alarmed && time_msec() - v->diff_since >= DIFF_ALARM_MS) {
        v->alarmed = true;
        alert(SEV_ALARM, "difference", v->id, vnic_vm(v->id), "%s", v->problem);
    }
}
