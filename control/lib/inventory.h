/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CONTROL_INVENTORY_H
#define MOAT_CONTROL_INVENTORY_H 1

/* From the Moat database (its IDL) to what the policy library takes.
 *
 * All or nothing: one bad row (an address that is none, a MAC that is none, a
 * vNIC id that is too long) and there is no inventory, because a group that
 * silently lacks a member makes a `drop` rule leak.  The caller keeps the last
 * good one and shows the problems. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"

struct moat_inventory;
struct moatrec_vm;
struct moatrec_vnic;
struct ovsdb_idl;

/* NULL if there is any problem; *problems is then text, one line each.  The
 * caller frees *problems (NULL if there are none) and destroys the inventory
 * (moat_inventory_destroy). */
struct moat_inventory *moat_inventory_from_db(const struct ovsdb_idl *, char **problems);

/* "52:54:00:12:34:56". */
bool moat_mac_parse(const char *text, uint8_t mac[6]);

/* What the vNIC may speak for: addresses and allowed_addresses.  Returns how
 * many, or -EINVAL with the bad text in *bad, or -E2BIG. */
int moat_vnic_addrs(const struct moatrec_vnic *, struct moat_addr *out, size_t max,
                    const char **bad);

/* The part of a slot's configuration that the database knows: all but path,
 * state and settings.  False and a reason if the row cannot be used. */
bool moat_vnic_conf(const struct moatrec_vm *, const struct moatrec_vnic *,
                    struct moat_slot_conf *, char *why, size_t why_size);

#endif /* inventory.h */
