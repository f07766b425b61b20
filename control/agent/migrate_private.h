/* SPDX-License-Identifier: Apache-2.0 */

#ifndef MOAT_MIGRATE_PRIVATE_H
#define MOAT_MIGRATE_PRIVATE_H 1

/* What migrate.c, migrate_source.c and migrate_destination.c share; for nobody else. */

#include "migrate.h"
#include "wire.h"

#define RETRY_FAST_MS 200       /* after a lost connection */
#define RETRY_SLOW_MS 1000      /* after a refusal; between attempts to connect */
#define TAKE_BACK_ALONE_MS 3000 /* the destination is silent: ask the database */
#define BOTH_RUN_MS 1000        /* events of two hosts may cross for so long */
#define SHUT_MS 1200            /* after the hold: the engine opens alone soon after */

/* --- the two sides ------------------------------------------------------------- */

void mig_settle_source(struct mig *, long long now, struct mig_out *);
void mig_settle_destination(struct mig *, long long now, struct mig_out *);

/* Of the destination's frames, and of the source's (and LINK_UP). */
void mig_source_event(struct mig *, const struct mig_event *, long long now, struct mig_out *);
void mig_destination_event(struct mig *, const struct mig_event *, long long now,
                           struct mig_out *);

void mig_stop_feeding(struct mig *, struct mig_out *, long long now); /* FEEDING -> HOLDING */

/* --- actions ------------------------------------------------------------------- */

struct mig_action *mig_act(struct mig_out *, enum mig_do);
void mig_set_state(struct mig_out *, enum moat_slot_state, uint64_t epoch);
struct mig_action *mig_send(struct mig_out *, enum wire_type, uint64_t epoch);
void mig_send_refuse(struct mig_out *, enum mig_refuse, const char *text);
void mig_say(struct mig_out *, enum mig_do, const char *text);
void mig_precopy(struct mig_out *, bool on);
void mig_claim(struct mig *, enum moat_slot_state, struct mig_out *);
void mig_take(struct mig *, long long now, struct mig_out *);
void mig_disconnect(struct mig *, struct mig_out *);
void mig_write_holder(struct mig *, struct mig_out *, uint64_t epoch); /* once in each state */

/* --- what is so ---------------------------------------------------------------- */

bool mig_is_shut(const struct mig *);
bool mig_lost_it(const struct mig *);
bool mig_is_open(const struct mig *);              /* ACTIVE or ENROLLING */
enum moat_slot_state mig_open_as(const struct mig *); /* ENROLLING, or ACTIVE */

/* --- changes of state ---------------------------------------------------------- */

void mig_enter(struct mig *, enum mig_state, long long now);
void mig_set_peer(struct mig *, const char *host);
void mig_hold(struct mig *, uint64_t epoch, long long now);
void mig_wait_for(struct mig *, long long retry_at, long long now);
void mig_release(struct mig *, long long now, struct mig_out *);

#endif /* migrate_private.h */
