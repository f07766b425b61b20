/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_INTENT_H
#define MOAT_AGENT_INTENT_H 1

/* What the database wants for a vNIC: identity, settings, compiled ruleset.
 *
 * A policy or an inventory that is refused changes nothing: the last good one
 * stays in force, and intent_problem() says why. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"

struct intent {
    bool known; /* the database knows the vNIC; else nothing below counts */
    struct moat_slot_conf conf; /* with settings; no path, no state */
    uint8_t *blob; /* NULL: could not be compiled */
    size_t len;
    uint64_t generation;
    uint8_t digest[16];
    bool by_operator; /* quarantine, whatever the policy says */
    char problem[200]; /* "": none */
    unsigned serial;
};

void intent_run(void); /* once a turn, after cluster_run() */
void intent_exit(void);
unsigned intent_serial(void); /* changes when any vNIC's intent may have changed */
const char *intent_problem(void); /* of the policy or inventory as a whole; NULL: none */
uint64_t intent_generation(void); /* of the policy in force */

/* Valid until the next intent_run(). */
const struct intent *intent_get(const char *vnic);

#endif /* intent.h */
