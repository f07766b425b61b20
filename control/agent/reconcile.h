/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_RECONCILE_H
#define MOAT_AGENT_RECONCILE_H 1

/* What is wanted against what the fast path says it enforces.  Pure. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate.h"
#include "moat/ctl.h"

struct reconcile_want {
    const struct moat_slot_conf *conf; /* identity, settings, path; NULL: no opinion */
    bool ruleset;                      /* digest and generation count */
    uint8_t digest[16];
    uint64_t generation;
    enum mig_state state;
};

#define DIFF_MISSING 0x01 /* no slot */
#define DIFF_CONF 0x02
#define DIFF_RULESET 0x04
#define DIFF_STATE 0x08

/* The DIFF_* that apply; 0: as wanted. `slot` NULL: there is none. */
unsigned reconcile_compare(const struct reconcile_want *, const struct moat_slot_info *slot);

/* An enrolment goes on that the settings (no longer) ask for, or that quarantine forbids. */
bool reconcile_enrolls_too_long(const struct reconcile_want *, const struct moat_slot_info *slot);

/* In words, for people. */
void reconcile_text(unsigned diff, const struct reconcile_want *, const struct moat_slot_info *,
                    char *buf, size_t size);

/* Does a vNIC in this state follow the database's policy here? */
bool reconcile_applies(enum mig_state);

void reconcile_hex(const uint8_t digest[16], char out[33]);

#endif /* reconcile.h */
