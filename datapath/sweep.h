/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SWEEP_H
#define MOAT_DP_SWEEP_H 1

/* Judging all sessions of a slot again without waiting for their packets: a VM that is put in
 * quarantine loses idle sessions too.
 *
 * A sweep looks at the whole table once, an eighth of it a turn of the engine (50 ms): it
 * ends within half a second.  Sessions that the slot's newest ruleset does not admit are marked as
 * cut; ageing collects them. */

struct moat_engine;
struct moat_slot;
struct moat_thread;

/* From slot.c, when a ruleset has been published.  Under the engine's lock. */
void moat_sweep_start(struct moat_engine *, struct moat_slot *);

/* From moat_engine_turn(): goes on with what has been started.  Posts MOAT_EV_CUT at the end. */
void moat_sweep_turn(struct moat_engine *, struct moat_thread *self);

#endif /* datapath/sweep.h */
