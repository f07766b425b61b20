/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_COMPILE_H
#define MOAT_POLICY_COMPILE_H 1

/* Between compile (which rules, which sets) and emit (bytes). */

#include "policy/policy.h"
#include "policy/range.h"

/* The ruleset, but for its layout.  Rules name sets by index into sets[] or
 * MOAT_SET_ANY; their `name` is an offset in strings. */
struct moat_program {
    struct moat_rule *rules;
    uint32_t n_rules, cap_rules;
    const struct moat_rangeset **sets;
    uint32_t n_sets;
    char *strings;
    uint32_t strings_len;
    uint8_t default_action, default_flags;
    uint64_t generation;
};

/* A blob that the caller frees.  -ENOMEM; -E2BIG: *size is then the size that it
 * would have had, or 0 if there are more than 65536 classes. */
int moat_emit(const struct moat_program *, uint8_t **blob, size_t *size);

#endif /* policy/compile.h */
