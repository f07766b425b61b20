/* SPDX-License-Identifier: Apache-2.0 */

/* Writes are sorted into kinds, one transaction each, so that a row which the
 * server refuses (a constraint, its access rules) does not keep the others from
 * being written.  Holders come first: another host may be waiting for them. */

#include <config.h>

#include "cluster.h"

#include <stdlib.h>
#include <string.h>

#include "inventory.h"
#include "moat-idl.h"
#include "openvswitch/list.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/shash.h"
#include "openvswitch/vlog.h"
#include "ovsdb-idl.h"
#include "timeval.h"
#include "util.h"

VLOG_DEFINE_THIS_MODULE(cluster);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(10, 30);

#define MAX_EVENTS 1000     /* rows of this host */
#define MAX_QUEUE 1000      /* not written yet */
#define EVENTS_A_TXN 100
#define MAX_MIGRATIONS 200  /* remembered; rows of this host: as many */

enum kind { HOLDERS, MIGRATIONS, ENFORCED, HOST, EVENTS, N_KINDS };

static const char *const kind_names[] = {"holders", "migrations", "enforced", "host", "events"};

struct kind_state {
    bool dirty;
    long long not_before;
    unsigned errors;
};

struct holder_wish {
    struct ovs_list node;
    char vnic[MOAT_ID_MAX];
    uint64_t epoch;
    bool take, sent;
};

struct queued_event {
    struct ovs_list node;
    enum cluster_severity severity;
    uint64_t time_us;
    char *kind, *vnic, *vm, *message;
    struct smap details;
    bool sent;
};

static struct ovsdb_idl *idl;
static char *self, *remote_name;
static unsigned seqno;
static bool was_up;
static long long down_since;
static struct shash index_ = SHASH_INITIALIZER(&index_); /* vnic id -> struct entry */

struct entry {
    const struct moatrec_vm *vm;
    const struct moatrec_vnic *vnic;
};

static struct ovsdb_idl_txn *txn;
static enum kind txn_kind;
static struct kind_state kinds[N_KINDS];

static char *peer_address, *version;
static int64_t started_at;
static struct smap status = SMAP_INITIALIZER(&status);
static struct smap problems = SMAP_INITIALIZER(&problems);
static struct shash enforced = SHASH_INITIALIZER(&enforced);
static struct ovs_list holders = OVS_LIST_INITIALIZER(&holders);
static struct ovs_list events = OVS_LIST_INITIALIZER(&events);
static size_t n_events;
static unsigned long long n_dropped;
static struct cluster_migration *migrations[MAX_MIGRATIONS];
static size_t n_migrations;

void cluster_init(const char *remote, const char *host)
{
    self = xstrdup(host);
    remote_name = xstrdup(remote);
    started_at = time_wall();
    down_since = time_msec();
    idl = ovsdb_idl_create(remote, &moatrec_idl_class, true, true);
    ovsdb_idl_set_leader_only(idl, false);
    ovsdb_idl_set_write_changed_only_all(idl, true);

    /* Ours to write: no need to be woken by them. */
    struct ovsdb_idl_column *quiet[] = {
        &moatrec_event_col_host, &moatrec_event_col_time_us, &moatrec_event_col_severity,
        &moatrec_event_col_kind, &moatrec_event_col_vnic_id, &moatrec_event_col_vm,
        &moatrec_event_col_message, &moatrec_event_col_details,
        &moatrec_enforced_col_state, &moatrec_enforced_col_generation,
        &moatrec_enforced_col_digest, &moatrec_enforced_col_intended_generation,
        &moatrec_enforced_col_intended_digest, &moatrec_enforced_col_epoch,
        &moatrec_enforced_col_quarantine, &moatrec_enforced_col_problem, &moatrec_enforced_col_host, &moatrec_enforced_col_vnic_id,
        &moatrec_migration_col_evidence, &moatrec_migration_col_state,
        &moatrec_migration_col_started_at, &moatrec_migration_col_finished_at,
        &moatrec_migration_col_vm, &moatrec_migration_col_source,
        &moatrec_migration_col_destination, &moatrec_migration_col_vnic_id,
        &moatrec_migration_col_epoch, &moatrec_host_col_status, &moatrec_host_col_problems,
    };
    for (size_t i = 0; i < ARRAY_SIZE(quiet); i++)
        ovsdb_idl_omit_alert(idl, quiet[i]);

    /* Other hosts' events and reports are none of our business. */
    struct ovsdb_idl_condition cond = OVSDB_IDL_CONDITION_INIT(&cond);
    moatrec_event_add_clause_host(&cond, OVSDB_F_EQ, self);
    moatrec_event_set_condition(idl, &cond);
    ovsdb_idl_condition_destroy(&cond);
    ovsdb_idl_condition_init(&cond);
    moatrec_enforced_add_clause_host(&cond, OVSDB_F_EQ, self);
    moatrec_enforced_set_condition(idl, &cond);
    ovsdb_idl_condition_destroy(&cond);
    seqno = ovsdb_idl_get_seqno(idl);
}

static void reindex(void)
{
    const struct moatrec_vm *vm;

    shash_clear_free_data(&index_);
    MOATREC_VM_FOR_EACH (vm, idl) {
        for (size_t i = 0; i < vm->n_vnics; i++) {
            struct entry *e = xmalloc(sizeof *e);
            *e = (struct entry){vm, vm->vnics[i]};
            if (!shash_add_once(&index_, vm->vnics[i]->vnic_id, e))
                free(e);
        }
    }
}

/* --- transactions ---------------------------------------------------------------- */

static void fill_holders(void)
{
    struct holder_wish *w;

    LIST_FOR_EACH_SAFE (w, node, &holders) {
        struct entry *e = shash_find_data(&index_, w->vnic);
        bool wanted = e && (w->take ? !e->vnic->holder : (uint64_t)e->vnic->epoch < w->epoch);
        if (!wanted) {
            ovs_list_remove(&w->node);
            free(w);
            continue;
        }
        moatrec_vnic_verify_holder(e->vnic);
        moatrec_vnic_verify_epoch(e->vnic);
        moatrec_vnic_set_holder(e->vnic, self);
        moatrec_vnic_set_epoch(e->vnic, w->take ? e->vnic->epoch + 1 : (int64_t)w->epoch);
        w->sent = true;
    }
}

static void done_holders(enum ovsdb_idl_txn_status st)
{
    struct holder_wish *w;

    LIST_FOR_EACH_SAFE (w, node, &holders) {
        if (w->sent && (w->take || st == TXN_SUCCESS || st == TXN_UNCHANGED)) {
            ovs_list_remove(&w->node);
            free(w);
        } else {
            w->sent = false;
        }
    }
}

static int by_age(const void *a_, const void *b_)
{
    const struct moatrec_migration *const *a = a_, *const *b = b_;

    return (*a)->started_at < (*b)->started_at ? -1 : (*a)->started_at > (*b)->started_at;
}

static void prune_migrations(void)
{
    const struct moatrec_migration *row, **old;
    size_t n = 0;

    MOATREC_MIGRATION_FOR_EACH (row, idl)
        n += !strcmp(row->destination, self);
    if (n <= MAX_MIGRATIONS)
        return;
    old = xmalloc(n * sizeof *old);
    n = 0;
    MOATREC_MIGRATION_FOR_EACH (row, idl)
        if (!strcmp(row->destination, self))
            old[n++] = row;
    qsort(old, n, sizeof *old, by_age);
    for (size_t i = 0; i < n - MAX_MIGRATIONS; i++)
        moatrec_migration_delete(old[i]);
    free(old);
}

static const struct moatrec_migration *find_migration(const struct cluster_migration *m)
{
    const struct moatrec_migration *row;

    MOATREC_MIGRATION_FOR_EACH (row, idl)
        if ((uint64_t)row->epoch == m->epoch && !strcmp(row->vnic_id, m->vnic))
            return row;
    return NULL;
}

static void fill_migrations(void)
{
    for (size_t i = 0; i < n_migrations; i++) {
        struct cluster_migration *m = migrations[i];

        if (m->written)
            continue;
        const struct moatrec_migration *row = find_migration(m);
        if (!row) {
            row = moatrec_migration_insert(txn);
            moatrec_migration_set_vnic_id(row, m->vnic);
            moatrec_migration_set_epoch(row, (int64_t)m->epoch);
        }
        moatrec_migration_set_vm(row, m->vm);
        moatrec_migration_set_source(row, m->source);
        moatrec_migration_set_destination(row, m->destination);
        moatrec_migration_set_state(row, m->state);
        moatrec_migration_set_started_at(row, m->started_at);
        moatrec_migration_set_finished_at(row, m->finished_at);
        moatrec_migration_set_evidence(row, &m->evidence);
        m->written = true; /* taken back if the transaction fails */
    }
    prune_migrations();
}

static void done_migrations(enum ovsdb_idl_txn_status st)
{
    if (st != TXN_SUCCESS && st != TXN_UNCHANGED)
        for (size_t i = 0; i < n_migrations; i++)
            migrations[i]->written = false; /* what is so already is not written again */
}

static void fill_enforced(void)
{
    const struct moatrec_enforced *row;
    struct shash left = SHASH_INITIALIZER(&left);
    struct shash_node *node;

    SHASH_FOR_EACH (node, &enforced)
        shash_add(&left, node->name, node->data);
    MOATREC_ENFORCED_FOR_EACH (row, idl)
        if (!strcmp(row->host, self) && !shash_find(&enforced, row->vnic_id))
            moatrec_enforced_delete(row);
    SHASH_FOR_EACH (node, &left) {
        const struct cluster_enforced *e = node->data;
        const struct moatrec_enforced *found = NULL;

        MOATREC_ENFORCED_FOR_EACH (row, idl)
            if (!strcmp(row->host, self) && !strcmp(row->vnic_id, node->name))
                found = row;
        if (!found) {
            found = moatrec_enforced_insert(txn);
            moatrec_enforced_set_host(found, self);
            moatrec_enforced_set_vnic_id(found, node->name);
        }
        moatrec_enforced_set_state(found, e->state);
        moatrec_enforced_set_generation(found, (int64_t)e->generation);
        moatrec_enforced_set_digest(found, e->digest);
        moatrec_enforced_set_intended_generation(found, (int64_t)e->intended_generation);
        moatrec_enforced_set_intended_digest(found, e->intended_digest);
        moatrec_enforced_set_epoch(found, (int64_t)e->epoch);
        moatrec_enforced_set_quarantine(found, e->quarantine);
        moatrec_enforced_set_problem(found, e->problem);
    }
    shash_destroy(&left);
}

static const struct moatrec_host *host_row(const char *name)
{
    const struct moatrec_host *row;

    MOATREC_HOST_FOR_EACH (row, idl)
        if (!strcmp(row->name, name))
            return row;
    return NULL;
}

static void fill_host(void)
{
    const struct moatrec_host *row = host_row(self);

    if (!row) {
        row = moatrec_host_insert(txn);
        moatrec_host_set_name(row, self);
    }
    if (peer_address)
        moatrec_host_set_peer_address(row, peer_address);
    moatrec_host_set_version(row, version ? version : "");
    moatrec_host_set_started_at(row, started_at);
    moatrec_host_set_status(row, &status);
    moatrec_host_set_problems(row, &problems);
}

static int by_time(const void *a_, const void *b_)
{
    const struct moatrec_event *const *a = a_, *const *b = b_;

    return (*a)->time_us < (*b)->time_us ? -1 : (*a)->time_us > (*b)->time_us;
}

static void prune_events(size_t coming)
{
    const struct moatrec_event *row, **old;
    size_t n = 0;

    MOATREC_EVENT_FOR_EACH (row, idl)
        n += !strcmp(row->host, self);
    if (n + coming <= MAX_EVENTS)
        return;
    size_t excess = MIN(n, n + coming - MAX_EVENTS);
    old = xmalloc(n * sizeof *old);
    n = 0;
    MOATREC_EVENT_FOR_EACH (row, idl)
        if (!strcmp(row->host, self))
            old[n++] = row;
    qsort(old, n, sizeof *old, by_time);
    for (size_t i = 0; i < excess; i++)
        moatrec_event_delete(old[i]);
    free(old);
}

static const char *const severities[] = {"info", "notice", "warning", "alarm"};

static void fill_events(void)
{
    struct queued_event *e;
    size_t n = 0;

    LIST_FOR_EACH (e, node, &events)
        if (++n == EVENTS_A_TXN)
            break;
    prune_events(n);
    LIST_FOR_EACH (e, node, &events) {
        if (!n--)
            break;
        const struct moatrec_event *row = moatrec_event_insert(txn);
        moatrec_event_set_host(row, self);
        moatrec_event_set_time_us(row, (int64_t)e->time_us);
        moatrec_event_set_severity(row, severities[e->severity]);
        moatrec_event_set_kind(row, e->kind);
        moatrec_event_set_vnic_id(row, e->vnic);
        moatrec_event_set_vm(row, e->vm);
        moatrec_event_set_message(row, e->message);
        moatrec_event_set_details(row, &e->details);
        e->sent = true;
    }
}

static void event_free(struct queued_event *e)
{
    ovs_list_remove(&e->node);
    n_events--;
    free(e->kind);
    free(e->vnic);
    free(e->vm);
    free(e->message);
    smap_destroy(&e->details);
    free(e);
}

static void done_events(enum ovsdb_idl_txn_status st)
{
    struct queued_event *e;

    LIST_FOR_EACH_SAFE (e, node, &events) {
        if (e->sent && (st == TXN_SUCCESS || st == TXN_UNCHANGED)) {
            event_free(e);
        } else if (e->sent && st == TXN_ERROR) {
            n_dropped++; /* the server will not have them: do not try for ever */
            event_free(e);
        } else {
            e->sent = false;
        }
    }
    if (!ovs_list_is_empty(&events))
        kinds[EVENTS].dirty = true;
}

static void finish(enum ovsdb_idl_txn_status st)
{
    struct kind_state *k = &kinds[txn_kind];

    if (st == TXN_ERROR)
        VLOG_WARN_RL(&rl, "the database refuses %s: %s", kind_names[txn_kind],
                     ovsdb_idl_txn_get_error(txn));
    if (st == TXN_SUCCESS || st == TXN_UNCHANGED) {
        k->errors = 0;
    } else {
        k->dirty = true;
        k->errors++;
        k->not_before = time_msec() + (st == TXN_ERROR ? MIN(1000u * k->errors, 30000) : 20);
    }
    if (txn_kind == HOLDERS)
        done_holders(st);
    else if (txn_kind == MIGRATIONS)
        done_migrations(st);
    else if (txn_kind == EVENTS)
        done_events(st);
    ovsdb_idl_txn_destroy(txn);
    txn = NULL;
}

static bool begin(enum kind kind)
{
    static void (*const fill[])(void) = {fill_holders, fill_migrations, fill_enforced, fill_host,
                                         fill_events};

    if (!kinds[kind].dirty || time_msec() < kinds[kind].not_before)
        return false;
    kinds[kind].dirty = false;
    txn_kind = kind;
    txn = ovsdb_idl_txn_create(idl);
    ovsdb_idl_txn_add_comment(txn, "moatd on %s: %s", self, kind_names[kind]);
    fill[kind]();
    enum ovsdb_idl_txn_status st = ovsdb_idl_txn_commit(txn);
    if (st == TXN_INCOMPLETE)
        return true;
    finish(st);
    return false;
}

void cluster_run(void)
{
    ovsdb_idl_run(idl);
    bool up = ovsdb_idl_is_connected(idl) && ovsdb_idl_has_ever_connected(idl);
    if (up != was_up) {
        VLOG_INFO("%s: %s", remote_name, up ? "connected" : "connection lost");
        was_up = up;
        if (!up)
            down_since = time_msec();
        for (int i = 0; i < N_KINDS; i++)
            kinds[i].dirty = true;
    }
    if (ovsdb_idl_get_seqno(idl) != seqno) {
        seqno = ovsdb_idl_get_seqno(idl);
        reindex();
        if (!host_row(self)) /* somebody deleted it */
            kinds[HOST].dirty = true;
    }
    if (txn) {
        enum ovsdb_idl_txn_status st = ovsdb_idl_txn_commit(txn);
        if (st != TXN_INCOMPLETE)
            finish(st);
    }
    for (int k = 0; !txn && up && k < N_KINDS; k++)
        begin((enum kind)k);
}

void cluster_wait(void)
{
    ovsdb_idl_wait(idl);
    if (txn) {
        ovsdb_idl_txn_wait(txn);
        return;
    }
    for (int k = 0; was_up && cluster_known() && k < N_KINDS; k++)
        if (kinds[k].dirty)
            poll_timer_wait_until(kinds[k].not_before);
}

void cluster_exit(void)
{
    struct queued_event *e;
    struct holder_wish *w;

    if (txn)
        ovsdb_idl_txn_destroy(txn);
    ovsdb_idl_destroy(idl);
    LIST_FOR_EACH_SAFE (e, node, &events)
        event_free(e);
    LIST_FOR_EACH_SAFE (w, node, &holders)
        free(w);
    for (size_t i = 0; i < n_migrations; i++) {
        smap_destroy(&migrations[i]->evidence);
        free(migrations[i]);
    }
    shash_destroy_free_data(&index_);
    shash_destroy_free_data(&enforced);
    smap_destroy(&status);
    smap_destroy(&problems);
    free(peer_address);
    free(version);
    free(self);
    free(remote_name);
}

/* --- reading ----------------------------------------------------------------------- */

bool cluster_up(void)
{
    return was_up;
}

/* An empty database has just been made or has just been lost: its word that a VM
 * does not exist counts for nothing. */
bool cluster_known(void)
{
    return ovsdb_idl_has_ever_connected(idl) &&
           (moatrec_global_first(idl) || moatrec_vm_first(idl) || moatrec_network_first(idl));
}

bool cluster_empty(void)
{
    return was_up && !cluster_known();
}

long long cluster_down_since(void)
{
    return was_up ? LLONG_MAX : down_since;
}

unsigned cluster_seqno(void)
{
    return seqno;
}

const char *cluster_remote(void)
{
    return remote_name;
}

void cluster_vnic(const char *vnic, struct cluster_vnic *out)
{
    const struct entry *e = shash_find_data(&index_, vnic);

    memset(out, 0, sizeof *out);
    if (!e)
        return;
    out->known = moat_vnic_conf(e->vm, e->vnic, &out->conf, out->problem, sizeof out->problem);
    ovs_strlcpy(out->vm_uuid, e->vm->vm_uuid, sizeof out->vm_uuid);
    out->quarantine = e->vm->quarantine;
    ovs_strlcpy(out->holder, e->vnic->holder ? e->vnic->holder : "", sizeof out->holder);
    out->epoch = (uint64_t)e->vnic->epoch;
}

bool cluster_permits(const char *vnic, const char *host)
{
    const struct entry *e = shash_find_data(&index_, vnic);

    if (!e || !cluster_is_host(host))
        return false;
    for (size_t i = 0; i < e->vm->n_hosts; i++)
        if (!strcmp(e->vm->hosts[i], host))
            return true;
    return !e->vm->n_hosts;
}

bool cluster_is_host(const char *host)
{
    return host_row(host) != NULL;
}

const char *cluster_peer_address(const char *host)
{
    const struct moatrec_host *row = host_row(host);

    return row && *row->peer_address ? row->peer_address : NULL;
}

const char *cluster_host_setting(const char *key)
{
    const struct moatrec_host *row = host_row(self);

    return row ? smap_get(&row->settings, key) : NULL;
}

const char *cluster_last_destination(const char *vnic)
{
    const struct moatrec_migration *row, *last = NULL;

    MOATREC_MIGRATION_FOR_EACH (row, idl)
        if (!strcmp(row->vnic_id, vnic) && !strcmp(row->source, self) &&
            (!last || row->epoch > last->epoch))
            last = row;
    return last ? last->destination : NULL;
}

void cluster_policy(struct cluster_policy *out)
{
    const struct moatrec_global *global = moatrec_global_first(idl);

    *out = (struct cluster_policy){NULL, NULL, 0};
    if (global && global->policy) {
        out->name = global->policy->name;
        out->text = global->policy->text;
        out->generation = (uint64_t)global->policy->generation;
    }
}

struct moat_inventory *cluster_inventory(char **problems_)
{
    return moat_inventory_from_db(idl, problems_);
}

/* --- writing -------------------------------------------------------------------------- */

void cluster_host(const char *address, const char *ver)
{
    free(peer_address);
    peer_address = nullable_xstrdup(address);
    free(version);
    version = xstrdup(ver);
    kinds[HOST].dirty = true;
}

static void set_key(struct smap *map, const char *key, const char *value)
{
    const char *old = smap_get(map, key);

    if (value ? old && !strcmp(old, value) : !old)
        return;
    if (value)
        smap_replace(map, key, value);
    else
        smap_remove(map, key);
    kinds[HOST].dirty = true;
}

void cluster_status(const char *key, const char *value)
{
    set_key(&status, key, value);
}

void cluster_problem(const char *key, const char *text)
{
    set_key(&problems, key, text);
}

const struct smap *cluster_problems(void)
{
    return &problems;
}

void cluster_enforced(const char *vnic, const struct cluster_enforced *e)
{
    struct cluster_enforced *old = shash_find_data(&enforced, vnic);

    if (!e) {
        if (old) {
            free(shash_find_and_delete(&enforced, vnic));
            kinds[ENFORCED].dirty = true;
        }
        return;
    }
    if (!old) {
        old = xzalloc(sizeof *old);
        shash_add(&enforced, vnic, old);
        kinds[ENFORCED].dirty = true;
    }
    if (memcmp(old, e, sizeof *e)) {
        *old = *e;
        kinds[ENFORCED].dirty = true;
    }
}

static void wish(const char *vnic, uint64_t epoch, bool take)
{
    struct holder_wish *w;

    kinds[HOLDERS].dirty = true;
    LIST_FOR_EACH (w, node, &holders) {
        if (!strcmp(w->vnic, vnic) && w->take == take) {
            w->epoch = MAX(w->epoch, epoch);
            return;
        }
    }
    w = xzalloc(sizeof *w);
    ovs_strlcpy(w->vnic, vnic, sizeof w->vnic);
    w->epoch = epoch;
    w->take = take;
    ovs_list_push_back(&holders, &w->node);
}

void cluster_take(const char *vnic)
{
    wish(vnic, 0, true);
}

void cluster_write_holder(const char *vnic, uint64_t epoch)
{
    wish(vnic, epoch, false);
}

struct cluster_migration *cluster_migration(const char *vnic, uint64_t epoch)
{
    for (size_t i = 0; i < n_migrations; i++)
        if (migrations[i]->epoch == epoch && !strcmp(migrations[i]->vnic, vnic))
            return migrations[i];
    if (n_migrations == MAX_MIGRATIONS) { /* the oldest goes */
        smap_destroy(&migrations[0]->evidence);
        free(migrations[0]);
        n_migrations--;
        memmove(&migrations[0], &migrations[1], n_migrations * sizeof *migrations);
    }
    struct cluster_migration *m = xzalloc(sizeof *m);
    ovs_strlcpy(m->vnic, vnic, sizeof m->vnic);
    ovs_strlcpy(m->destination, self, sizeof m->destination);
    ovs_strlcpy(m->state, "precopy", sizeof m->state);
    m->epoch = epoch;
    m->started_at = time_wall();
    smap_init(&m->evidence);
    m->written = true; /* until it is said to have changed */
    migrations[n_migrations++] = m;
    return m;
}

void cluster_migration_changed(struct cluster_migration *m)
{
    m->written = false;
    kinds[MIGRATIONS].dirty = true;
}

void cluster_migration_each(void (*fn)(const struct cluster_migration *, void *), void *aux)
{
    for (size_t i = 0; i < n_migrations; i++)
        fn(migrations[i], aux);
}

void cluster_event(const struct cluster_event *ev)
{
    struct queued_event *e;

    if (n_events >= MAX_QUEUE) { /* the oldest goes, but not from under a transaction */
        e = CONTAINER_OF(ovs_list_front(&events), struct queued_event, node);
        n_dropped++;
        if (e->sent)
            return;
        event_free(e);
    }
    e = xzalloc(sizeof *e);
    e->severity = ev->severity;
    e->time_us = ev->time_us ? ev->time_us : (uint64_t)time_wall_usec();
    e->kind = xstrdup(ev->kind);
    e->vnic = xstrdup(ev->vnic ? ev->vnic : "");
    e->vm = xstrdup(ev->vm ? ev->vm : "");
    e->message = xstrdup(ev->message);
    if (ev->details)
        smap_clone(&e->details, ev->details);
    else
        smap_init(&e->details);
    ovs_list_push_back(&events, &e->node);
    n_events++;
    kinds[EVENTS].dirty = true;
}

unsigned long long cluster_events_dropped(void)
{
    return n_dropped;
}
