/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_HANDOVER_H
#define MOAT_DP_HANDOVER_H 1

/* From one engine to the next in the same process, while packets flow (loader/engine_abi.h says in
 * which order).  The two may be of different builds: what follows, moat/ctl.h's structures and
 * rulesets are all that they share.
 *
 *                same layout and sizes of the mapping     another
 *   slots        are in the mapping, which both have      are written to a new mapping
 *   sessions     the table changes hands, index and all   are copied while the old engine serves;
 * then what has changed since, until that is little rulesets     indexed before the gate closes the
 * same both: ports and vids, counters, hits, what waits for a dequeue, events that nobody has read
 *
 * Not handed over: fragments of datagrams under way (what comes of them after is refused), traces
 * (their clients are disconnected), what a vNIC has used up of this second's allowances.
 *
 * A vNIC that is being moved (arriving, frozen, or a destination is fed) stays with the engine that
 * it knows: the exchange waits for it. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"
#include "moat/session.h"

/* Rises with any change of what is here or of what a moat_slot_conf, a moat_event or a ruleset
 * means. */
#define MOAT_HANDOVER_VERSION 1

struct moat_engine;

/* A slot in use. */
struct moat_handover_slot {
    struct moat_slot_conf conf;
    uint64_t epoch;
    uint32_t state, incarnation, serial; /* of its record (mapping.h) */
    uint32_t pickup_until, enroll_until; /* engine clock, seconds */
    uint32_t unplugged;
    uint32_t sessions, half_open;
    uint32_t enroll_s;
    uint32_t sweep; /* its sessions are being judged again */
    uint64_t enroll_base;
    uint32_t learnt_state[2]; /* IPv4, IPv6: MOAT_LEARNT_* */
    uint8_t learnt[2][16];
    uint32_t learnt_told[2];
    uint32_t rules_len; /* 0: none */
    uint32_t n_hits;
    const void *rules;    /* the blob */
    const uint64_t *hits; /* of its rules and the default */
};

struct moat_handover_port {
    char path[MOAT_PATH_MAX];
    uint32_t connected, running, logging, replugged;
    uint32_t slot; /* index; UINT32_MAX: none */
    int32_t vid;   /* of the running device; -1: none */
};

/* A session, by the number that it had in the old table; all its fields.  tag 0: there is none of
 * this number any more. */
struct moat_handover_session {
    uint32_t number;
    uint32_t tag, local, remote;
    uint16_t lport, rport, vlan;
    uint8_t proto, family;
    uint8_t flags, marks; /* MOAT_SES_F_*, MOAT_SES_MARK_* of session.h */
    uint8_t pad[2];
    uint32_t serial, seen, rule, created;
    uint64_t generation;
    uint64_t packets[2], bytes[2];
    struct moat_ses_side side[2];
    uint8_t local6[16], remote6[16];
};

/* What an engine offers to its successor.  `engine` is the first argument of all functions. */
struct moat_handover {
    uint32_t version, size;
    uint32_t conf_size, event_size;              /* moat/ctl.h's structures, which both must know */
    uint32_t slot_size, port_size, session_size; /* those above */
    uint32_t n_counters;                         /* of a slot */
    uint32_t layout;                             /* of the mapping, whose sizes are: */
    uint32_t n_slots, n_sessions, n_sessions6;
    int mapping_fd;        /* -1: private memory */
    int listen_fd;         /* of the control socket; -1: there is none */
    uint32_t replacements; /* before this engine */
    struct moat_engine *engine;

    /* While it serves: with its lock held nothing but packets changes anything. */
    void (*lock)(struct moat_engine *);
    void (*unlock)(struct moat_engine *);
    uint32_t (*threads)(struct moat_engine *); /* how many there are */

    /* With the lock, or in the gate.  False: slot `index` is free; incarnation and serial are set.
     */
    bool (*slot)(struct moat_engine *, uint32_t index, struct moat_handover_slot *);

    /* From its control thread, before the gate is closed: makes the rest short. */
    void (*tidy)(struct moat_engine *);

    /* Copying sessions, from any one thread.  watch: from now on changes are noted.  copy: up to
     * max of them, from *number on, *number is the next one then; returns how many, 0 at the end.
     * changed: the same of those that have changed and were not returned since. */
    int (*watch)(struct moat_engine *, bool on);
    uint32_t (*copy)(struct moat_engine *, uint32_t *number, struct moat_handover_session *,
                     uint32_t max);
    uint32_t (*changed)(struct moat_engine *, uint32_t *number, struct moat_handover_session *,
                        uint32_t max);

    /* In the gate; busy and port also with the lock. */
    bool (*busy)(struct moat_engine *, char vnic[MOAT_ID_MAX]); /* one is being moved */
    bool (*port)(struct moat_engine *, uint32_t index, struct moat_handover_port *);
    int (*port_of_vid)(int vid); /* index of the port, -1; NULL: there are no vids */
    uint32_t (*frame)(struct moat_engine *, uint32_t port, uint8_t *out, uint32_t size);

    /* The last call in the gate, if the mapping changes hands: it is the successor's from now on.
     */
    void (*leave)(struct moat_engine *);

    /* Behind the gate: nobody uses the engine any more. */
    void (*counters)(struct moat_engine *, uint32_t slot, uint64_t *out, uint32_t n);
    bool (*event)(struct moat_engine *, struct moat_event *);
    void (*retire)(struct moat_engine *); /* threads that end have nothing more to do with it */
};

/* Fills what this engine offers; port_of_vid and listen_fd are set by who knows. */
void moat_handover_offer(struct moat_engine *, struct moat_handover *);

/* --- the successor's side; its engine was created with conf.before --- */

/* The mapping that `e` will have.  NULL with the reason in err. */
struct moat_mapping *moat_handover_map(struct moat_engine *e, char *err, size_t err_size);

/* Whatever can be done while the other one serves: makes take_over short.  May be repeated; the
 * last time in the other one's control thread.  0 or negative errno with the reason. */
int moat_handover_prepare(struct moat_engine *e, char *err, size_t err_size);

/* In the gate.  0: `e` serves from now on.  -EAGAIN: a vNIC is being moved, or too much has
 * changed.  Another negative errno: it cannot be.  Then the other one is as it was. */
int moat_handover_take(struct moat_engine *e, char *err, size_t err_size);

/* Behind the gate, before `e` has a control thread: what need not be done in it. */
void moat_handover_finish(struct moat_engine *e);

/* Called off: the other one forgets about it. */
void moat_handover_cancel(struct moat_engine *e);

void moat_takeover_free(struct moat_engine *e); /* for the engine's end */

#endif /* datapath/handover.h */
