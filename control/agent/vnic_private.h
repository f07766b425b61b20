/* SPDX-License-Identifier: Apache-2.0 */

#ifndef MOAT_AGENT_VNIC_PRIVATE_H
#define MOAT_AGENT_VNIC_PRIVATE_H 1

/* What vnic.c, vnic_slot.c, handover.c and evidence.c share; for nobody else. */

#include <stddef.h>

#include "vnic.h"

struct moat_ctl_state;

/* --- vnic.c: its life ------------------------------------------------------------ */

const char *vnic_self(void); /* this host's name */
struct vnic *vnic_find(const char *id);
const char *vnic_vm(const char *id); /* its VM's name, as the slot has it; or "" */
void vnic_drop_peer(struct vnic *);

/* Steps the machine with fresh facts and does what it says. */
void vnic_step(struct vnic *, struct mig_event *);

/* --- vnic_slot.c: its slot in the fast path ---------------------------------------- */

/* Notes a refusal of the engine; false then. */
bool vnic_ok(struct vnic *, int rc, const char *what);

/* Identity and settings for the slot, and where the settings are from. */
void vnic_wanted_conf(struct vnic *, struct moat_slot_conf *);

/* The ruleset that this host would enforce: its own, else the one handed over. */
bool vnic_best_ruleset(struct vnic *, const void **blob, size_t *len);

bool vnic_publish(struct vnic *, const void *blob, size_t len);
bool vnic_set_state(struct vnic *, const struct moat_ctl_state *);
void vnic_claim(struct vnic *, enum moat_slot_state);
void vnic_claim_orphan(struct vnic *); /* nobody knows it: the host's setting decides */
void vnic_open(struct vnic *, uint64_t epoch, enum mig_open why);
void vnic_check(struct vnic *); /* wanted against enforced: puts right, reports */

/* --- handover.c: the other host ---------------------------------------------------- */

void handover_connect(struct vnic *); /* to mig.peer */
void handover_send(struct vnic *, const struct mig_action *);
void handover_install_policy(struct vnic *); /* the one that came, or this host's own */
void handover_forget(struct vnic *);         /* what came */

/* --- evidence.c: the record of a move ---------------------------------------------- */

void evidence_state(struct vnic *, const char *state);
void evidence_opened(struct vnic *, uint64_t epoch, const char *decided_by,
                     const char *policy_from, uint64_t generation);
void evidence_final(struct vnic *, const struct wire *);
void evidence_final_ack(struct vnic *, const struct wire *);
void evidence_done(struct vnic *, const struct wire *);

#endif /* vnic_private.h */
