/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_CLUSTER_H
#define MOAT_AGENT_CLUSTER_H 1

/* The Moat database; this file is its sole user.
 *
 * Reading: from the IDL's replica, which stays when the connection is lost: the
 * last known contents are the grant for moves that the database permitted.
 *
 * Writing: callers say what shall be so, not which operations to do.  Each turn
 * what differs is written, one transaction at a time; what could not be written
 * (database away, lost race) is still different and is tried again. */

#include <stdbool.h>
#include <stdint.h>

#include "migrate.h"
#include "moat/ctl.h"
#include "smap.h"

struct moat_inventory;

#define CLUSTER_EMPTY_TEXT \
    "the database is empty: `moatctl policy apply` or `moatctl network add` starts it"

void cluster_init(const char *remote, const char *host);
void cluster_run(void);
void cluster_wait(void);
void cluster_exit(void);

bool cluster_up(void);         /* connected now */
bool cluster_known(void);      /* has contents of an initialised database */
bool cluster_empty(void);      /* connected, but there is nothing in it yet */
long long cluster_down_since(void); /* not connected since (ms); start of the agent if never */
unsigned cluster_seqno(void);  /* changes with what is read here */
const char *cluster_remote(void);

/* --- reading ----------------------------------------------------------------- */

struct cluster_vnic {
    bool known; /* there is such a vNIC and its rows can be used */
    char problem[160]; /* why not, if it is there */
    struct moat_slot_conf conf; /* all but path, state and settings */
    char vm_uuid[MOAT_ID_MAX];
    bool quarantine;          /* an operator's word; even if the rows cannot be used */
    char holder[MOAT_ID_MAX]; /* "" if none */
    uint64_t epoch;
};
void cluster_vnic(const char *vnic, struct cluster_vnic *);
bool cluster_permits(const char *vnic, const char *host); /* may its VM live there? */
bool cluster_is_host(const char *host);
const char *cluster_peer_address(const char *host);      /* NULL: unknown */
const char *cluster_host_setting(const char *key);       /* of this host; NULL: not set */
const char *cluster_last_destination(const char *vnic);  /* by its latest Migration from here */

struct cluster_policy {
    const char *name, *text; /* text NULL: there is none */
    uint64_t generation;
};
void cluster_policy(struct cluster_policy *);
struct moat_inventory *cluster_inventory(char **problems);

/* --- writing ------------------------------------------------------------------ */

void cluster_host(const char *peer_address, const char *version);
void cluster_status(const char *key, const char *value);    /* Host.status */
void cluster_problem(const char *key, const char *text);    /* Host.problems; NULL: solved */
const struct smap *cluster_problems(void);

struct cluster_enforced {
    char state[16], problem[256];
    char quarantine[16]; /* "", "policy", "operator" */
    uint64_t generation, intended_generation, epoch;
    char digest[33], intended_digest[33];
};
void cluster_enforced(const char *vnic, const struct cluster_enforced *); /* NULL: remove */

/* We want to hold a vNIC that nobody holds: tried once; the result shows in
 * cluster_vnic(). */
void cluster_take(const char *vnic);
/* We hold it with this epoch: written when the database has a lower one. */
void cluster_write_holder(const char *vnic, uint64_t epoch);

struct cluster_migration {
    char vnic[MOAT_ID_MAX], vm[MOAT_ID_MAX], source[MOAT_ID_MAX], destination[MOAT_ID_MAX];
    uint64_t epoch;
    char state[16];
    long long started_at, finished_at; /* seconds since 1970; 0: not yet */
    struct smap evidence;
    bool written;
};
/* Finds or makes the record; change it, then say so. */
struct cluster_migration *cluster_migration(const char *vnic, uint64_t epoch);
void cluster_migration_changed(struct cluster_migration *);
void cluster_migration_each(void (*)(const struct cluster_migration *, void *), void *);

enum cluster_severity { SEV_INFO, SEV_NOTICE, SEV_WARNING, SEV_ALARM };
struct cluster_event {
    enum cluster_severity severity;
    uint64_t time_us; /* 0: now */
    const char *kind, *vnic, *vm, *message;
    const struct smap *details; /* NULL: none */
};
void cluster_event(const struct cluster_event *);
unsigned long long cluster_events_dropped(void);

#endif /* cluster.h */
