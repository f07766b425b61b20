/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SLOT_H
#define MOAT_DP_SLOT_H 1

/* Ports and slots.
 *
 * A port is a vhost-user socket path that the switch has registered; a slot is a
 * vNIC.  A port is born without a slot, which blocks it (conf.unclaimed), unless the
 * mapping knows a vNIC with this path from before a restart.  What packet threads
 * need of a slot is an immutable view, replaced as a whole and freed when all of them
 * have passed a quiescent point; so a burst sees one coherent state.
 *
 * Packet threads call moat_port_holds(), moat_slot_may_*() and moat_slot_half_open_ended(), within
 * a burst too. All others take the engine's lock; none of them may be called from within one. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"

#include "pending.h"
#include "ruleset.h"
#include "session.h"

struct moat_engine;
struct moat_learnt;

/* Quotas of a vNIC whose settings say 0; the sessions' ones depend on the table. */
#define MOAT_DEFAULT_FRAGMENTS 256
#define MOAT_DEFAULT_LOGS 20
#define MOAT_DEFAULT_NEW UINT32_MAX /* no limit */
#define MOAT_DEFAULT_ENROLL_S 60

/* What has a quota, as far as events about it go. */
enum moat_quota {
    MOAT_QUOTA_SESSIONS,
    MOAT_QUOTA_HALF_OPEN,
    MOAT_QUOTA_NEW,
    MOAT_QUOTA_FRAGMENTS,
    MOAT_QUOTA_LOGS,
    MOAT_QUOTA_TABLE, /* of all vNICs together */
    MOAT_N_QUOTAS
};

/* What a burst needs to know.  Immutable while published. */
struct moat_view {
    uint8_t state; /* enum moat_slot_state */
    uint8_t mac[6];
    uint8_t n_addrs;
    uint32_t index;        /* of the slot */
    uint32_t tag;          /* slot and incarnation: part of the session key */
    uint32_t serial;       /* of the ruleset */
    uint32_t pickup_until; /* engine clock, seconds */
    uint32_t max_sessions, max_half_open, max_new, max_fragments, max_logs;
    struct moat_settings settings;
    const struct moat_ruleset *rules; /* NULL: no policy */
    struct moat_slot *slot;
    struct moat_learnt *learnt; /* of the slot's record; IPv4, IPv6 */
    struct moat_timers timers;
    struct moat_addr addrs[MOAT_ADDRS_MAX + 2]; /* with those that were learnt */
};

/* So many a second; atomic, and exact enough. */
struct moat_tokens {
    uint32_t second, taken;
};

struct moat_slot {
    const struct moat_view *view; /* atomic; NULL: free */
    struct moat_view views[2];    /* the published one, and the next */
    struct moat_ruleset *rules;
    struct moat_port *port; /* NULL: the switch has no such port */
    uint32_t index;
    /* Written by packet threads that open sessions: on lines that others do not read. */
    uint32_t sessions __attribute__((aligned(64))); /* atomic: live, or reserved */
    uint32_t half_open; /* atomic: of those, how many have MOAT_SES_F_HALF_OPEN */
    struct moat_tokens logs, rarps, opens, answers;
    uint32_t told[MOAT_N_QUOTAS]; /* atomic: second of the last event about it */

    /* ARRIVING and the rings run since; 0: not. */
    uint64_t hold_from_us __attribute__((aligned(64)));
    bool voided; /* sessions of an earlier incarnation still count; under lock */
    bool hold_expired;
    bool precopy_wanted; /* a destination is being fed */
    uint32_t wait_ms;
    uint32_t pickup_s; /* to apply when an arriving slot opens */
    bool handed_over;
    bool ready;           /* ARRIVING: opens when the rings start */
    uint32_t enroll_s;    /* ENROLLING: for how long, from the start of the rings */
    uint64_t enroll_base; /* MOAT_C_WOULD_REFUSE when it began */
    uint8_t n_learnt;     /* in the view */
    bool learnt_told[2];  /* an event said so */
    bool sweep;           /* quarantine: all its sessions are being judged again (sweep.c) */
    uint32_t swept;       /* so many of them have ended */
};

struct moat_port {
    char path[MOAT_PATH_MAX];
    struct moat_slot *slot; /* atomic; NULL: unclaimed */
    struct moat_engine *engine;
    bool connected, running, logging, replugged;
    uint32_t index;              /* in the engine's list */
    int vid;                     /* the hook's: of the running device; -1: none.  Atomic */
    struct moat_pending pending; /* the hook's */
    void *host;                  /* its user's own; not handed over */
};

/* Called by the hook before the vhost driver of this path starts.  Creates the port
 * born blocked, or finds it: if this process had it already, the port was deleted and
 * plugged again, perhaps for another VM, and stays blocked until it is claimed anew.
 * Ports are never freed while the engine lives.  NULL with errno. */
struct moat_port *moat_port_register(struct moat_engine *, const char *path);

/* What the vhost library says, on its thread. */
void moat_port_connected(struct moat_port *, bool connected);
void moat_port_logging(struct moat_port *, bool on); /* VHOST_F_LOG_ALL */
void moat_port_started(struct moat_port *);          /* new_device */

/* destroy_device, after the switch has let go of the device.  If the vNIC is being
 * moved: freezes the slot and waits, bounded, until the destination has everything. */
void moat_port_stopped(struct moat_port *);

/* True: leave the VM's packets in its ring for now. Packet threads; cheap. */
bool moat_port_holds(const struct moat_port *);

/* For ctl.c.  0 or negative errno with the reason in err; a refusal changes nothing. */
int moat_slot_claim(struct moat_engine *, const struct moat_slot_conf *, char *err, size_t);
int moat_slot_release(struct moat_engine *, const char *vnic, char *err, size_t);
int moat_slot_set_state(struct moat_engine *, const struct moat_ctl_state *, char *err, size_t);
int moat_slot_publish(struct moat_engine *, const char *vnic, const void *blob, size_t len,
                      char *err, size_t);
int moat_slot_flush(struct moat_engine *, const char *vnic, char *err, size_t);
int moat_slot_handed_over(struct moat_engine *, const char *vnic, char *err, size_t);

/* Index of the slot, or -1. */
int moat_slot_find(struct moat_engine *, const char *vnic);

/* False if slot `index` is free. */
bool moat_slot_info(struct moat_engine *, uint32_t index, struct moat_slot_info *);
bool moat_port_info(struct moat_engine *, uint32_t index, struct moat_port_info *);

/* Copies the slot's ruleset blob (malloc, the caller frees).  NULL with errno. */
void *moat_slot_ruleset(struct moat_engine *, const char *vnic, size_t *len);

/* Fills up to max hits from rule index `first`; *next is 0 at the end. */
int moat_slot_hits(struct moat_engine *, const char *vnic, uint32_t first, uint32_t max,
                   struct moat_rule_hit *, uint32_t *next);

/* From moat_engine_turn(): ends holds that took too long. */
void moat_slots_turn(struct moat_engine *);

/* At start: rebuilds slots from the mapping.  Returns how many. */
uint32_t moat_slots_recover(struct moat_engine *);

/* Room for up to n more in slot->sessions or slot->half_open, which is to be at most max: how many.
 * They are counted.  What is not used is given back before the burst ends: other threads may find
 * that much less room meanwhile, never more. */
uint32_t moat_slot_reserve(uint32_t *count, uint32_t n, uint32_t max);
void moat_slot_give_back(uint32_t *count, uint32_t n);

/* Never below zero: sessions that were opened while the count was reset did not count. */
static inline void moat_slot_half_open_ended(struct moat_slot *s)
{
    moat_slot_give_back(&s->half_open, 1);
}

/* Counts one towards so many a second; false: that was too much.  Packet threads.  Log lines; the
 * VM's own RARP, which what is logged must not use up; new sessions; answers to refused
 * packets. */
bool moat_slot_may_log(struct moat_slot *, uint32_t now_s, uint32_t per_second);
bool moat_slot_may_announce(struct moat_slot *, uint32_t now_s);
bool moat_slot_may_open(struct moat_slot *, uint32_t now_s, uint32_t per_second);
bool moat_slot_may_answer(struct moat_slot *, uint32_t now_s);

/* True once a second and quota: its having been reached may be told.  Packet threads. */
bool moat_slot_may_tell(struct moat_slot *, enum moat_quota, uint32_t now_s);

#endif /* datapath/slot.h */
