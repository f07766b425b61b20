/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_POLICY_IDENTITY_H
#define MOAT_POLICY_IDENTITY_H 1

/* Groups to sets of addresses, as one vNIC sees them: its network says what an
 * address is, its VM says what the local side is. */

#include "policy/ast.h"
#include "policy/inventory.h"
#include "policy/range.h"

enum identity_side {
    SIDE_LOCAL,  /* terms about VMs match the vNIC's VM, whatever the address */
    SIDE_REMOTE, /* terms about VMs match their addresses */
    N_SIDES
};

struct moat_identity;

/* NULL: no memory.  policy and inventory must outlive it. */
struct moat_identity *moat_identity_create(const struct moat_policy *,
                                           const struct moat_inventory *, unsigned vnic);
void moat_identity_destroy(struct moat_identity *);

/* The set of addresses that an expression matches; equal sets have equal numbers.
 * -ENOMEM, or -E2BIG: more ranges than anyone can mean. */
int moat_identity_set(struct moat_identity *, const struct ast_expr *, enum identity_side,
                      uint32_t *set);
/* Valid until the identity is destroyed or asked for another set. */
const struct moat_rangeset *moat_identity_ranges(const struct moat_identity *, uint32_t set);

#endif /* policy/identity.h */
