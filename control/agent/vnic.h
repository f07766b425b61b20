/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_VNIC_H
#define MOAT_AGENT_VNIC_H 1

/* The vNICs of this host: gathers facts for the state machine (migrate.h), does
 * what it says, and reports. */

#include <stdbool.h>
#include <stdint.h>

#include "arrive.h"
#include "feed.h"
#include "migrate.h"
#include "moat/ctl.h"

struct peer;
struct shash;
struct wire;

struct vnic {
    char id[MOAT_ID_MAX];
    struct mig mig;
    struct peer *peer;
    bool lost, up; /* to be told to the machine */
    unsigned edges; /* 1 << enum mig_event_type, from the engine */
    long long claim_at; /* not before: the last claim failed */
    long long fix_at;
    unsigned intent_serial, engine_generation;

    /* What was last enforced here, and said. */
    enum vnic_quarantine {
        QUARANTINE_UNKNOWN, /* the agent has just started */
        QUARANTINE_NONE,
        QUARANTINE_POLICY,   /* no rule names the VM */
        QUARANTINE_OPERATOR, /* a person said so */
    } quarantine;

    /* source */
    struct feed feed;
    long long frozen_at_us; /* 0: not; of the last freeze */
    uint64_t wait_us;

    /* destination */
    bool has_handover, same_policy;
    struct moat_slot_conf handed_conf;
    uint8_t *handed_blob;
    size_t handed_len;
    uint64_t handed_generation;
    enum arrive_from policy_from, settings_from;
    long long enroll_until; /* it was being enrolled at the source: until then, ms */
    uint64_t accepted, refused; /* records since POLICY, as feed.records at the source */
    uint64_t rec_epoch;
    int64_t hold_us;
    long long running_since;
    char decided[80];

    /* report */
    unsigned diff;
    long long diff_since;
    char problem[256], io_problem[200];
    bool alarmed;
};

void vnics_init(const char *host);
void vnics_event(const struct moat_event *); /* from the engine */
void vnics_run(void);
void vnics_wait(void);
void vnics_exit(void);

/* From peer.c. */
void vnics_peer_connected(struct peer *);
void vnics_peer_frame(struct peer *, const struct wire *);
void vnics_peer_closed(struct peer *, const char *why);

const struct shash *vnics_all(void); /* id -> struct vnic */
void vnics_resync(void);             /* look at everything again */
unsigned long long vnics_n_refused(void); /* requests of other hosts */

#endif /* vnic.h */
