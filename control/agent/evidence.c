/* SPDX-License-Identifier: Apache-2.0 */

/* The record of a move, kept by its destination: a Migration row, and an alarm when
 * the two ends' counts differ.  A row belongs to the epoch that the vNIC gets by the
 * move (rec_epoch). */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "alert.h"
#include "cluster.h"
#include "engine.h"
#include "smap.h"
#include "timeval.h"
#include "util.h"
#include "vnic_private.h"
#include "wire.h"

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

void evidence_state(struct vnic *v, const char *state)
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

void evidence_opened(struct vnic *v, uint64_t epoch, const char *decided_by,
                     const char *policy_from, uint64_t generation)
{
    v->rec_epoch = epoch;
    engine_touch(); /* for the count of sessions that are here now */
    engine_refresh();
    const struct moat_slot_info *s = engine_slot(v->id);
    struct cluster_migration *m = record(v);
    smap_replace(&m->evidence, "decided-by", decided_by);
    smap_replace(&m->evidence, "policy-from", policy_from);
    evidence_u64(m, "policy-generation", generation);
    evidence_u64(m, "sessions-accepted", v->accepted);
    evidence_u64(m, "sessions-refused", v->refused);
    if (!smap_get(&m->evidence, "sessions-sent"))
        evidence_u64(m, "sessions-sent", v->accepted + v->refused);
    if (s)
        evidence_u64(m, "sessions-live-destination", s->sessions);
}

void evidence_final(struct vnic *v, const struct wire *w)
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

void evidence_final_ack(struct vnic *v, const struct wire *w)
{
    if (v->mig.state == MIG_FROZEN && w->epoch == v->mig.offer &&
        v->feed.phase == FEED_SENT && w->accepted != v->feed.records)
        alert(SEV_ALARM, "sessions-lost", v->id, vnic_vm(v->id),
              "%llu session records were sent to %s, which accepted %llu and refused %llu",
              (unsigned long long)v->feed.records, v->mig.peer, (unsigned long long)w->accepted,
              (unsigned long long)w->refused);
}

void evidence_done(struct vnic *v, const struct wire *w)
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
