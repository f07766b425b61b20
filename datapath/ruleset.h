/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_RULESET_H
#define MOAT_DP_RULESET_H 1

/* A checked ruleset, ready to match: a private index over a blob
 * (moat/ruleset.h).  Immutable once made; any thread may read it; the maker
 * retires it after all packet threads have passed a quiescent point. */

#include <stdint.h>
#include <stddef.h>

#include "moat/ruleset.h"

struct moat_ruleset;

/* Checks every byte of a blob: sizes, offsets, alignment, checksum, digest, order of
 * partitions, class and set numbers, actions, skip_to, strings.  0, or -EINVAL with
 * the reason in err.  Reads nothing outside of [blob, blob + len). */
int moat_ruleset_check(const void *blob, size_t len, char *err, size_t err_size);

/* Makes the index over a checked blob, which must stay unchanged as long as the
 * ruleset lives and is not owned by it.  NULL with errno ENOMEM. */
struct moat_ruleset *moat_ruleset_create(const void *blob);
void moat_ruleset_destroy(struct moat_ruleset *); /* NULL is harmless */

const struct moat_ruleset_head *moat_ruleset_head(const struct moat_ruleset *);

/* Hits per rule: entry i counts rules[i], entry n_rules the default.  Relaxed
 * atomics: only packets without a session meet the classifier. */
uint64_t *moat_ruleset_hits(const struct moat_ruleset *);

#endif /* datapath/ruleset.h */
