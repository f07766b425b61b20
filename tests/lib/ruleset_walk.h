/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_RULESET_WALK_H
#define MOAT_TESTS_RULESET_WALK_H 1

/* A ruleset read the plain way: every rule in turn, every interval in turn.  Knows
 * nothing but moat/ruleset.h. */

#include <stddef.h>
#include <stdint.h>

#include "policy/policy.h" /* struct moat_decision */

/* NULL if the blob is sound (sums, bounds, order, references), else what is wrong. */
const char *moat_walk_check(const uint8_t *blob, size_t len);

/* What a sound blob says about a packet. */
void moat_walk(const uint8_t *blob, const struct moat_flow *, struct moat_decision *);

#endif /* tests/lib/ruleset_walk.h */
