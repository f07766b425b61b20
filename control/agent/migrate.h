/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_MIGRATE_H
#define MOAT_MIGRATE_H 1

/* The life of one vNIC on one host: who holds it, how it leaves, how it comes.
 *
 * Pure: events and facts in, actions out; no I/O, no clock (`now` is given, in
 * milliseconds).  The same machine runs at the source and at the destination.
 *
 *   holder's side                          newcomer's side
 *
 *              +---------+   port, holder other   +---------+
 *     +------->|  IDLE   |----------------------->| WAITING |<------------+
 *     |        +---------+                        +---------+             |
 *     |   port, |  holder self                      | link up   link lost,|
 *     |         v                                   v            refused, |
 *     |     +---------+<------------------+     +---------+      cancelled|
 *     |     | HOLDING |<--+ roll-back     |     |  ASKED  |---------------+
 *     |     +---------+   |               |     +---------+               |
 *     |  START | ^ STOP,  |               |         | POLICY              |
 *     |        v | lost   |               |         v                     |
 *     |     +---------+   |               |     +---------+               |
 *     |     | FEEDING |   |               |     | FILLING |---------------+
 *     |     +---------+   |               |     +---------+               |
 *     |        | the rings stop           |         | FINAL, or the hold  |
 *     |        v          |               |         v ran out     TAKE_BACK
 *     |     +---------+   |               |     +-----------+             |
 *     |     | FROZEN  |   |               +-----| COMMITTED |-------------+
 *     |     +---------+   |        opened       +-----------+
 *     |        | ACK      |
 *     |        v          |
 *     |     +---------+   |  rings restart   +-------------+  the other has opened
 *     +-----|  GONE   |---)----------------->| TAKING_BACK |----------> WAITING
 *  port gone+---------+   |                  +-------------+
 *              |          +-------------------------+ given back
 *              | a new QEMU connects
 *              v
 *           WAITING
 *
 * Facts are levels (what OVSDB, the database and the engine say now); the machine
 * compares them with its state each time, so that a lost event, a restart of the
 * agent or of the engine needs no path of its own.  Edges are only what a level
 * cannot show.
 *
 * Rules that keep the two from being open at once:
 *  - a source that has offered its epoch (FENCED sent) passes nothing until the
 *    destination has given it back, or the database shows that it is ours;
 *  - a destination opens with the source's fence, or, if the source cannot be
 *    reached, after the database has made it the holder; only if neither can be
 *    reached does the start of the VM's rings suffice;
 *  - the epoch only rises; the database keeps the highest.
 *
 * A vNIC is enrolled only if it never had a firewall: the database said that nobody
 * held it and that nobody ever did (epoch 0), this agent took it, and has not opened it
 * since.  Only the agent's memory knows, so that whatever is forgotten makes a slot
 * that enforces: a lost mapping, a reboot or a restored host never opens one. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/ctl.h"

enum mig_state {
    MIG_IDLE,
    MIG_HOLDING,
    MIG_FEEDING,
    MIG_FROZEN,
    MIG_GONE,
    MIG_TAKING_BACK,
    MIG_WAITING,
    MIG_ASKED,
    MIG_FILLING,
    MIG_COMMITTED,
    MIG_N_STATES
};

enum mig_holder {
    MIG_DB_UNKNOWN, /* the database was never heard */
    MIG_DB_NO_VNIC, /* it knows no such vNIC */
    MIG_DB_NONE,    /* nobody holds it */
    MIG_DB_SELF,
    MIG_DB_OTHER,
};

struct mig_facts {
    bool port; /* OVSDB has its port */

    bool engine; /* the fields below are fresh: the fast path answers */
    bool slot;
    bool connected, running, ready, has_ruleset;
    uint8_t slot_state;
    uint64_t slot_epoch;

    enum mig_holder holder;
    bool db_up;       /* connected to the database now */
    bool db_given_up; /* not connected, for longer than one should wait */
    bool permitted;   /* the VM may live on this host */
    uint64_t db_epoch;
    char db_host[MOAT_ID_MAX]; /* MIG_DB_OTHER */
};

enum mig_event_type {
    MIG_EV_FACTS, /* new facts, or time has passed */
    /* edges from the engine */
    MIG_EV_CONNECTED,
    MIG_EV_PRECOPY_OFF,
    MIG_EV_HOLD_EXPIRED,
    /* the connection to the other agent */
    MIG_EV_LINK_UP,
    MIG_EV_LINK_DOWN,
    MIG_EV_REQUEST,
    MIG_EV_REFUSE,
    MIG_EV_POLICY,
    MIG_EV_START,
    MIG_EV_STOP,
    MIG_EV_FENCED,
    MIG_EV_FINAL,
    MIG_EV_FINAL_ACK,
    MIG_EV_DONE,
    MIG_EV_STARTED,
    MIG_EV_OPENED,
    MIG_EV_TAKE_BACK,
    MIG_EV_TAKEN_BACK,
    MIG_EV_CANCEL,
    MIG_N_EVENTS
};

/* Codes of a refusal. */
enum mig_refuse {
    MIG_REFUSE_NOT_HERE = 0, /* there is nothing to be had from this host */
    MIG_REFUSE_DENIED = 1,   /* this host says no: do not open */
};

struct mig_event {
    enum mig_event_type type;
    const struct mig_facts *facts; /* of any event: fresh ones, or NULL */
    uint64_t epoch;
    uint16_t flags;   /* REQUEST: WIRE_REQ_*; FINAL: WIRE_FINAL_*; REFUSE: enum mig_refuse */
    bool ok;          /* TAKEN_BACK; REQUEST: the database permits that host */
    const char *host; /* REQUEST */
};

/* Why a slot is opened: what the arriving VM's state is. */
enum mig_open {
    MIG_OPEN_COMPLETE,    /* the final delta came */
    MIG_OPEN_NO_SESSIONS, /* the source sends none, by its settings */
    MIG_OPEN_EXPIRED,     /* the hold ran out */
    MIG_OPEN_NO_SOURCE,   /* the database made us the holder without a hand-over */
};

enum mig_do {
    MIG_DO_CLAIM,        /* state: ACTIVE, ENROLLING (the very first one) or ARRIVING; epoch */
    MIG_DO_CLAIM_ORPHAN, /* nobody knows this vNIC: the host's fail mode decides */
    MIG_DO_RELEASE,
    MIG_DO_STATE,        /* state, epoch (0: keep) */
    MIG_DO_OPEN,         /* ARRIVING -> ACTIVE: epoch, why */
    MIG_DO_PRECOPY,      /* ok: a destination is being fed */
    MIG_DO_FLUSH,
    MIG_DO_HANDED_OVER,
    MIG_DO_TAKE,         /* make us the holder of a vNIC that nobody holds */
    MIG_DO_WRITE_HOLDER, /* epoch: we hold it */
    MIG_DO_CONNECT,      /* to m->peer */
    MIG_DO_DISCONNECT,
    MIG_DO_SEND,         /* frame: enum wire_type, epoch, flags, ok, text */
    MIG_DO_FEED_START,
    MIG_DO_FEED_FINAL,
    MIG_DO_FEED_STOP,
    MIG_DO_INSTALL_POLICY,
    MIG_DO_RECORD,       /* text: state of the Migration row */
    MIG_DO_NOTICE,       /* text: event, severity notice */
    MIG_DO_ALARM,        /* text: event, severity alarm */
};

struct mig_action {
    enum mig_do what;
    uint8_t state;
    bool ok;
    uint16_t frame, flags;
    enum mig_open why;
    uint64_t epoch;
    const char *text;
};

#define MIG_MAX_ACTIONS 24

struct mig_out {
    unsigned n;
    struct mig_action a[MIG_MAX_ACTIONS];
};

struct mig {
    enum mig_state state;
    struct mig_facts f;
    uint64_t epoch; /* of what we have or gave away */
    uint64_t offer; /* the epoch that goes with the hand-over under way */
    char peer[MOAT_ID_MAX];
    bool link;
    bool wary;           /* found blocked: not ours to open before the VM runs here */
    bool orphan;         /* claimed without the database's word */
    bool first;          /* we took what nobody ever held, and have not opened it yet */
    bool fresh;          /* a QEMU has connected since GONE */
    bool offered;        /* FENCED was sent */
    bool remote_running; /* the destination said STARTED */
    bool started, start_sent; /* we said STARTED, START */
    bool fenced;         /* the source said FENCED on this link */
    bool expired;        /* the hold ran out */
    bool shut;           /* blocked after that, because opening was not ours to decide */
    bool denied;         /* the source said no */
    bool tried;          /* arriving: the source could not be reached, or the link was lost */
    bool done;           /* the source knows that it is over */
    bool told;           /* an alarm about this state was given */
    bool wrote;          /* WRITE_HOLDER was asked for in this state */
    long long since;     /* the state was entered */
    long long expired_at;
    long long retry_at;
    long long tell_until; /* HOLDING: try to tell the source so long */
    long long both_since; /* the rings seem to run on both hosts */
};

void mig_init(struct mig *);
void mig_step(struct mig *, const struct mig_event *, long long now, struct mig_out *);

/* May `host` ask for this vNIC here?  To be asked before its connection takes the
 * place of another one.  If not: code and why. */
bool mig_may_ask(const struct mig *, const char *host, bool permitted, enum mig_refuse *code,
                 const char **why);

/* When mig_step wants to be called with MIG_EV_FACTS at the latest. */
long long mig_wake_at(const struct mig *);

const char *mig_state_name(enum mig_state);

#endif /* migrate.h */
