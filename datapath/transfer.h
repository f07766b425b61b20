/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_TRANSFER_H
#define MOAT_DP_TRANSFER_H 1

/* Sessions as records: out of the table for dump and migration, into it on arrival.
 * Control thread. */

#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"

struct moat_engine;

/* Fills buf with a moat_ctl_sessions_reply and frames.  Length, or negative errno. */
int moat_transfer_export(struct moat_engine *, const struct moat_ctl_sessions *, void *buf,
                         size_t size);

/* Takes the frames of an import into an arriving slot.  A bad record is refused,
 * counted and reported by an event; the others are taken.  0 or negative errno with the
 * reason in err: then none was taken. */
int moat_transfer_import(struct moat_engine *, const struct moat_ctl_import *, const void *frames,
                         size_t len, struct moat_ctl_import_reply *, char *err, size_t err_size);

#endif /* datapath/transfer.h */
