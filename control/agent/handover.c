/* SPDX-License-Identifier: Apache-2.0 */

/* What goes to and comes from the other host: connections, frames, and the policy
 * that was handed over.  A frame's payload is dealt with here, its meaning is an event
 * for the machine. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alert.h"
#include "cluster.h"
#include "ctl_client.h"
#include "engine.h"
#include "intent.h"
#include "moat/ruleset.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/vlog.h"
#include "peer.h"
#include "timeval.h"
#include "util.h"
#include "vnic_private.h"
#include "wire.h"

VLOG_DEFINE_THIS_MODULE(handover);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(20, 60);

static unsigned long long n_refused;

void handover_forget(struct vnic *v)
{
    free(v->handed_blob);
    v->handed_blob = NULL;
    v->handed_len = 0;
    v->has_handover = v->same_policy = false;
    v->accepted = v->refused = 0;
}

void handover_install_policy(struct vnic *v)
{
    const struct intent *it = intent_get(v->id);
    struct moat_slot_conf conf;
    const void *blob;
    size_t len;

    v->same_policy = false;
    v->accepted = v->refused = 0;
    vnic_wanted_conf(v, &conf);
    conf.state = MOAT_SLOT_ARRIVING;
    if (conf.path[0])
        vnic_ok(v, moat_ctl_claim(engine_ctl(), &conf), "claiming its slot");
    if (!vnic_best_ruleset(v, &blob, &len))
        return;
    if (!vnic_publish(v, blob, len))
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

/* --- frames out ------------------------------------------------------------------ */

static bool fill_policy(struct vnic *v, struct wire *w, void **blob)
{
    const struct moat_slot_info *s = engine_slot(v->id);
    size_t len = 0;

    if (!s)
        return false;
    w->conf = s->conf;
    memset(w->conf.path, 0, sizeof w->conf.path);
    w->conf.state = 0;
    w->enroll_left_s = s->state == MOAT_SLOT_ENROLLING ? MIN(s->enroll_left_s, MOAT_ENROLL_MAX) : 0;
    w->conf.epoch = w->epoch = v->mig.epoch;
    int rc = moat_ctl_ruleset_get(engine_ctl(), v->id, blob, &len);
    if (rc && rc != -ENOENT && !engine_up())
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

void handover_send(struct vnic *v, const struct mig_action *a)
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
        ovs_strlcpy(w.host, vnic_self(), sizeof w.host);
        break;
    case WIRE_REFUSE:
        n_refused++;
        alert(SEV_WARNING, "request-refused", v->id, vnic_vm(v->id), "host %s asked for it: %s",
              peer_host(v->peer), w.text);
        break;
    case WIRE_POLICY:
        if (!fill_policy(v, &w, &blob)) {
            w = (struct wire){.type = WIRE_REFUSE, .flags = MIG_REFUSE_DENIED};
            ovs_strlcpy(w.text, "the fast path of the source does not answer", sizeof w.text);
        }
        feed_count_anew(&v->feed);
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

/* --- connections ----------------------------------------------------------------- */

void handover_connect(struct vnic *v)
{
    const char *address = cluster_peer_address(v->mig.peer);

    if (v->peer)
        return;
    if (!address) {
        alert(SEV_WARNING, "no-peer-address", v->id, vnic_vm(v->id),
              "the database has no address of host %s, which holds it", v->mig.peer);
        v->lost = true;
        return;
    }
    v->peer = peer_open(address, v->mig.peer, v);
    if (!v->peer)
        v->lost = true;
}

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

/* --- frames in ------------------------------------------------------------------- */

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
    struct vnic *v = vnic_find(w->vnic);
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
    vnic_step(v, &ev);
    if (!v->mig.link && v->peer == p)
        vnic_drop_peer(v);
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
    handover_forget(v);
    v->has_handover = true;
    v->handed_conf = w->conf;
    v->handed_len = w->blob_len;
    v->handed_blob = w->blob_len ? xmemdup(w->blob, w->blob_len) : NULL;
    v->handed_generation = w->generation;
    v->enroll_until = w->enroll_left_s ? time_msec() + w->enroll_left_s * 1000LL : 0;
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
        evidence_final(v, w);
        break;
    case WIRE_FINAL_ACK:
        evidence_final_ack(v, w);
        break;
    case WIRE_DONE:
        evidence_done(v, w);
        break;
    case WIRE_REFUSE:
        alert(SEV_WARNING, "refused-by-holder", v->id, vnic_vm(v->id), "host %s: %s", peer_host(p),
              w->text);
        break;
    default:
        break;
    }
    struct mig_event ev = {.type = event_of(w->type),
                           .epoch = w->type == WIRE_POLICY ? w->conf.epoch : w->epoch,
                           .flags = w->flags,
                           .ok = w->ok};
    vnic_step(v, &ev);
    if (v->mig.state == MIG_HOLDING && !v->mig.link && v->peer == p)
        vnic_drop_peer(v);
}

unsigned long long vnics_n_refused(void)
{
    return n_refused;
}
