/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_GUARD_H
#define MOAT_DP_GUARD_H 1

/* Anti-spoofing: a VM speaks only for itself, and not as a router or DHCP server unless it
 * may; and what opens something at its slot is addressed to it.  Pure, but that learn-once lets a
 * packet claim an address for the slot. */

#include <stdbool.h>

#include "moat/flow.h"

#include "parse.h"

struct moat_view;

/* A parsed packet from the VM: MOAT_R_NONE, or what it pretends.  A frame of another ethertype
 * (kind BAD, MOAT_R_L2_TYPE) is asked for its source MAC only. */
enum moat_reason moat_guard_from_vm(const struct moat_view *, const struct moat_pkt *);

/* A parsed packet to the VM that no live session answers for: MOAT_R_NONE, or that its frame is for
 * somebody else. */
enum moat_reason moat_guard_to_vm(const struct moat_view *, const struct moat_pkt *);

/* Either way: may a frame with these tags pass, and is its ethertype one of the slot's own list
 * (then nothing more is asked). */
bool moat_guard_tags(const struct moat_view *, const struct moat_pkt *);
bool moat_guard_ethertype(const struct moat_view *, const struct moat_pkt *);

/* True if this is exactly the RARP with which a VM announces itself after a migration
 * (the frame that the vhost library makes for VHOST_USER_SEND_RARP). */
bool moat_guard_own_rarp(const struct moat_view *, const struct moat_pkt *);

#endif /* datapath/guard.h */
