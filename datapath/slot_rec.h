/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SLOT_REC_H
#define MOAT_DP_SLOT_REC_H 1

/* Changes of a slot's record that a crash cannot cut in two.
 *
 *   begin ... fields are written, in any order ... commit
 *
 * begin() keeps a copy of the fields beside them; commit() seals the new ones with a checksum and
 * forgets the copy by one store.  A process that is killed in between leaves the copy, and
 * recovery puts it back: a change is there as a whole or not at all.  A ruleset or a
 * configuration is written to the buffer that is not in use first; which one that is, is one of the
 * fields.
 *
 * What packet threads write (struct moat_learnt) is no part of this.  All of it is called with the
 * engine's lock held, or before there are threads. */

#include <stdbool.h>
#include <stddef.h>

struct moat_slot_rec;
struct moat_slot_conf;

/* A change begins; within one that is under way nothing happens. */
void moat_slot_rec_begin(struct moat_slot_rec *);

/* Writes the buffer that is not in use and chooses it.  Within a change. */
void moat_slot_rec_set_conf(struct moat_slot_rec *, const struct moat_slot_conf *);

/* The change is done; without one nothing happens. */
void moat_slot_rec_commit(struct moat_slot_rec *);

/* At start: undoes what a crash cut off, then checks.  False with the reason in err: the record is
 * damaged, nothing in it can be believed. */
bool moat_slot_rec_recover(struct moat_slot_rec *, char *err, size_t err_size);

/* Makes a damaged record a free one. */
void moat_slot_rec_clear(struct moat_slot_rec *);

#endif /* datapath/slot_rec.h */
